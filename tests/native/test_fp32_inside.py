"""docs/precision.md: a lowered layer computes in float32 and rounds once, kind by kind.

Operands lie on the reduced grid, and reductions are long: a step that rounded to the reduced type
would be off by far more than the half unit in the last place that one rounding costs.
"""

import re
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import onnx.parser
import pytest

from polytool import NativeRunner
from polytool.backends.native.passes import fuse_norm_gemm

RNG = np.random.default_rng(0)
KINDS = {"fp16": np.dtype(np.float16), "bf16": np.dtype(ml_dtypes.bfloat16)}
LONG = 2000

# Kind of the table -> what to run, and the shapes of x, of which w is the second half.
CASES = {
    "gemm": [
        (f"float[3,{LONG}] x, float[{LONG},5] w", "y = MatMul(x, w)"),
        (f"float[3,{LONG}] x, float[{LONG},5] w", "a = MatMul(x, w) b = Sigmoid(a) y = Mul(a, b)"),
    ],
    "conv": [
        ("float[1,128,6,6] x, float[4,128,3,3] w", "a = Conv(x, w) y = Tanh(a)"),
        ("float[1,64,6,6] x, float[64,1,3,3] w", "y = Conv<group = 64>(x, w)"),
    ],
    "deconv": [("float[1,128,4,4] x, float[128,4,3,3] w", "y = ConvTranspose(x, w)")],
    "pointwise": [
        (
            "float[40,50] x, float[50] w",
            "a = Exp(x) b = Mul(a, w) c = Sub(b, a) d = Mul(c, c) y = Sqrt(d)",
        ),
    ],
    "softmax": [
        (f"float[4,{LONG}] x", "y = Softmax(x)"),
        (f"float[4,{LONG}] x", "y = LogSoftmax(x)"),
    ],
    "normalization": [
        (f"float[4,{LONG}] x, float[{LONG}] w", "y = LayerNormalization(x, w)"),
        (f"float[4,{LONG}] x, float[{LONG}] w", "y = RMSNormalization(x, w)"),
        ("float[2,3,40,50] x, float[3] w", "y = InstanceNormalization(x, w, w)"),
        ("float[2,4,40,50] x, float[4] w", "y = GroupNormalization<num_groups = 2>(x, w, w)"),
    ],
    "residual_norm": [
        (
            f"float[2,{LONG}] x, float[2,{LONG}] w",
            f"s = Add(x, w) n = {norm} y = Concat<axis = 0>(n, n)",
        )
        for norm in ("LayerNormalization(s, ones)", "RMSNormalization(s, ones)")
    ],
    "norm_gemm": [
        ("float[4,1984] x", f"n = {norm} y = MatMul(n, matrix)")
        for norm in ("LayerNormalization(x, row)", "RMSNormalization(x, row)")
    ],
    "reduction": [
        (f"float[4,{LONG}] x", f"y = Reduce{op}<keepdims = 0>(x, axis)")
        for op in ("Sum", "Mean", "L1", "L2", "SumSquare", "LogSumExp")
    ],
    "pooling": [
        ("float[1,2,40,50] x", "y = GlobalAveragePool(x)"),
        ("float[1,2,40,50] x", "y = AveragePool<kernel_shape = [40, 40]>(x)"),
    ],
    "resize": [
        ("float[1,1,40,50] x", 'y = Resize<mode = "linear">(x, , scales)'),
        ("float[1,1,40,50] x", 'y = Resize<mode = "cubic">(x, , scales)'),
    ],
    "recurrent": [
        (
            "float[60,2,8] x, float[1,64,8] w",
            "s = Expand(r0, shape) y, h, c = LSTM<hidden_size = 16>(x, w, s)",
        ),
    ],
    "attention": [],  # tested below: the one kind that rounds inside
}
FLAT = [(kind, *case) for kind, cases in CASES.items() for case in cases]


@pytest.fixture(autouse=True)
def _small_is_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fuse_norm_gemm, "LARGE", 0)


def build(inputs: str, body: str) -> onnx.ModelProto:
    text = f'<ir_version: 11, opset_import: ["" : 23]> g ({inputs}) => (float y) {{ {body} }}'
    proto = onnx.parser.parse_model(text)
    proto.graph.output[0].type.tensor_type.ClearField("shape")
    constants = {
        "axis": np.array([1]),
        "ones": np.ones(LONG, np.float32),
        "row": np.ones(1984, np.float32),
        "matrix": np.float32(np.arange(1984 * 5).reshape(1984, 5) % 61 / 64),
        "scales": np.float32([1, 1, 1.7, 2.3]),
        "r0": np.float32([[[0.125]]]),
        "shape": np.array([1, 64, 16]),
    }
    used = {name for node in proto.graph.node for name in node.input}
    for name in used & set(constants):
        proto.graph.initializer.append(onnx.numpy_helper.from_array(constants[name], name))
    return proto


def on_grid(shape: tuple[int, ...], kind: np.dtype) -> np.ndarray:
    return RNG.uniform(0.25, 1, shape).astype(kind).astype(np.float32)


def feeds_of(proto: onnx.ModelProto, kind: np.dtype) -> dict[str, np.ndarray]:
    return {
        i.name: on_grid(tuple(d.dim_value for d in i.type.tensor_type.shape.dim), kind)
        for i in proto.graph.input
    }


@pytest.mark.parametrize("precision", list(KINDS))
@pytest.mark.parametrize(("kind", "inputs", "body"), FLAT, ids=[f"{k}-{b}" for k, _, b in FLAT])
def test_a_layer_rounds_once(kind: str, inputs: str, body: str, precision: str) -> None:
    proto = build(inputs, body)
    feeds = feeds_of(proto, KINDS[precision])
    exact = NativeRunner(proto, precision="fp64", optimize=False).infer(feeds)["y"]
    got = NativeRunner(proto, precision=precision, device="cpu").infer(feeds)["y"]
    rounded = exact.astype(KINDS[precision]).astype(np.float32)
    step = 2.0 ** (-10 if precision == "fp16" else -7)
    unit = step * 2.0 ** np.floor(np.log2(np.maximum(np.abs(exact), 2.0**-14)))
    noise = (
        4e-6 * np.abs(exact).max()
    )  # of float32; one more rounding would be a hundred times that
    assert (np.abs(got - exact) <= 0.5 * unit + noise).all()
    assert (got == rounded).mean() > 0.97  # the rest lies beside the middle of two neighbours


def test_attention_rounds_the_exponentials_and_nothing_else() -> None:
    proto = build(
        "float[1,4,100,8] q, float[1,4,8,6] k, float[1,4,6,16] v",
        "s = MatMul(q, k) p = Softmax(s) y = MatMul(p, v)",
    )
    feeds = feeds_of(proto, KINDS["fp16"])
    runner = NativeRunner(proto, precision="fp16", device="cpu")
    assert "Attention" in {n.op for x in runner.engine.network.layers for n in x.nodes}  # fused
    got = runner.infer(feeds)["y"]
    scores = feeds["q"].astype(np.float64) @ feeds["k"]
    e = np.exp(scores - scores.max(axis=-1, keepdims=True))
    total = e.sum(axis=-1, keepdims=True)
    rounded = e.astype(np.float16) @ feeds["v"].astype(np.float64) / total
    unit = np.spacing(rounded.astype(np.float16)).astype(np.float64)
    assert (np.abs(got - rounded) <= 0.5 * unit + 4e-6).mean() > 0.99  # ties of the exponentials
    assert (np.abs(got - e @ feeds["v"] / total) > 0.5 * unit + 4e-6).mean() > 0.05


def test_every_kind_of_the_table_is_tested() -> None:
    text = (Path(__file__).resolve().parents[2] / "docs" / "precision.md").read_text("utf-8")
    rows = [line.split("|")[1] for line in text.splitlines() if line.startswith("| `")]
    assert sorted(CASES) == sorted(name for row in rows for name in re.findall("`(.+?)`", row))
