"""Operators at the sizes of real models: a GPU computes what the CPU computes.

The conformance suite's tensors fit into one block; what goes wrong with more shows here.
"""

import numpy as np
import onnx
import onnx.parser
import pytest

from polytool import NativeRunner

pytestmark = pytest.mark.gpu
RNG = np.random.default_rng(0)


def real(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


def whole(high: int, *shape: int, dtype: str = "int64") -> np.ndarray:
    return RNG.integers(0, high, shape).astype(dtype)


def distinct(*shape: int) -> np.ndarray:
    """Numbers of which no two are equal, in float16 too as long as there are few."""
    return RNG.permutation(np.prod(shape)).reshape(shape).astype(np.float32) / 8


# name: graph text, inputs, constants
CASES: dict[str, tuple[str, dict, dict]] = {
    "gather": ("y = Gather<axis=1>(a, b)", {"a": real(64, 500, 33), "b": whole(500, 70)}, {}),
    "gather_nd": ("y = GatherND(a, b)", {"a": real(70, 80, 17), "b": whole(70, 999, 2)}, {}),
    "gather_elements": (
        "y = GatherElements<axis=1>(a, b)",
        {"a": real(300, 200), "b": whole(200, 300, 90)},
        {},
    ),
    "scatter_add": (
        'y = ScatterElements<axis=0, reduction="add">(a, b, c)',
        {"a": real(50, 64), "b": whole(50, 2000, 64), "c": real(2000, 64)},
        {},
    ),
    "scatter_nd": (
        'y = ScatterND<reduction="max">(a, b, c)',
        {"a": real(90, 300), "b": whole(90, 700, 1), "c": real(700, 300)},
        {},
    ),
    "top_k": ("y, i = TopK(a, k)", {"a": distinct(3, 5000)}, {"k": np.array([100])}),
    "sort_lines": ("y, i = TopK<axis=1>(a, k)", {"a": distinct(7, 90, 9)}, {"k": np.array([90])}),
    "non_zero": (
        "n = Greater(a, z) y = NonZero(n)",
        {"a": real(30, 70, 90)},
        {"z": np.array(0.5, "f")},
    ),
    "compress": (
        "n = Greater(b, z) y = Compress<axis=1>(a, n)",
        {"a": real(20, 4000), "b": real(4000)},
        {"z": np.array(0.5, "f")},
    ),
    "unique": ("y, f, i, c = Unique(a)", {"a": whole(300, 5000)}, {}),
    "cum_sum": ("y = CumSum(a, k)", {"a": whole(9, 30, 5000)}, {"k": np.array(1)}),
    "arg_max": ("y = ArgMax<axis=2>(a)", {"a": distinct(9, 7, 100)}, {}),
    "reduce_middle": (
        "y = ReduceLogSumExp(a, k)",
        {"a": real(40, 300, 50)},
        {"k": np.array([1])},
    ),
    "softmax_channels": ("y = Softmax<axis=1>(a)", {"a": real(2, 80, 60, 60)}, {}),
    "log_softmax_long": ("y = LogSoftmax(a)", {"a": real(3, 50000)}, {}),
    "resize_linear": (
        'y = Resize<mode="linear">(a, , s)',
        {"a": real(1, 16, 80, 60)},
        {"s": np.array([1, 1, 2.5, 3], "f")},
    ),
    "resize_cubic": (
        'y = Resize<mode="cubic">(a, , s)',
        {"a": real(1, 8, 50, 60)},
        {"s": np.array([1, 1, 0.6, 1.7], "f")},
    ),
    "pad_reflect": (
        'y = Pad<mode="reflect">(a, p)',
        {"a": real(2, 33, 65, 63)},
        {"p": np.array([0, 0, 7, 9, 0, 0, 8, 6])},
    ),
    "conv_transpose": (
        "y = ConvTranspose<strides=[2,2], pads=[1,1,1,1]>(a, w, c)",
        {"a": real(2, 32, 40, 50)},
        {"w": real(32, 24, 4, 4) / 20, "c": real(24)},
    ),
    "conv_1d": (
        "t = Conv<strides=[2], pads=[3,3]>(a, w, c) y = Relu(t)",
        {"a": real(2, 32, 4000)},
        {"w": real(64, 32, 7) / 15, "c": real(64)},
    ),
    "conv_3d": (
        "y = Conv<pads=[1,1,1,1,1,1]>(a, w)",
        {"a": real(1, 8, 12, 30, 31)},
        {"w": real(12, 8, 3, 3, 3) / 15},
    ),
    "conv_computed_weights": (
        "y = Conv<group=2>(a, w)",
        {"a": real(2, 16, 30, 30), "w": real(24, 8, 3, 3) / 8},
        {},
    ),
    "max_pool_indices": (
        "y, i = MaxPool<kernel_shape=[3,3], strides=[2,2]>(a)",
        {"a": distinct(1, 4, 41, 43)},
        {},
    ),
    "grid_sample": (
        'y = GridSample<mode="linear", padding_mode="border">(a, b)',
        {"a": real(2, 16, 60, 70), "b": np.tanh(real(2, 50, 40, 2))},
        {},
    ),
    "roi_align": (
        "y = RoiAlign<output_height=7, output_width=7, sampling_ratio=2>(a, b, i)",
        {
            "a": real(2, 32, 50, 60),
            "b": np.sort(RNG.uniform(0, 45, (300, 2, 2)), 1).reshape(300, 4).astype("f"),
            "i": whole(2, 300),
        },
        {},
    ),
    "lrn": ("y = LRN<size=5>(a)", {"a": real(2, 60, 40, 40)}, {}),
    "group_norm": (
        "y = GroupNormalization<num_groups=8>(a, w, c)",
        {"a": real(2, 64, 50, 51)},
        {"w": real(64), "c": real(64)},
    ),
    "layer_norm_statistics": (
        "y, m, v = LayerNormalization(a, w)",
        {"a": real(700, 300)},
        {"w": real(300)},
    ),
    "lstm": (
        'y, h, c = LSTM<hidden_size=96, direction="bidirectional">(a, w, r, b)',
        {"a": real(60, 3, 40)},
        {"w": real(2, 384, 40) / 8, "r": real(2, 384, 96) / 10, "b": real(2, 768) / 4},
    ),
    "gru": (
        "y, h = GRU<hidden_size=300, linear_before_reset=1>(a, w, r, b, n)",
        {"a": real(30, 4, 64), "n": np.array([30, 7, 1, 15], "int32")},
        {"w": real(1, 900, 64) / 9, "r": real(1, 900, 300) / 20, "b": real(1, 1800) / 4},
    ),
    "attention_cache": (
        "y, k, v = Attention<is_causal=1>(a, b, c, , d, e)",
        {
            "a": real(2, 8, 20, 64),
            "b": real(2, 2, 20, 64),
            "c": real(2, 2, 20, 64),
            "d": real(2, 2, 100, 64),
            "e": real(2, 2, 100, 64),
        },
        {},
    ),
    "attention": (
        "y = Attention(a, b, c, m)",
        {
            "a": real(2, 12, 128, 64),
            "b": real(2, 12, 128, 64),
            "c": real(2, 12, 128, 64),
            "m": RNG.random((2, 1, 1, 128)) < 0.8,
        },
        {},
    ),
    "attention_causal": (
        "y = Attention<is_causal=1, q_num_heads=4, kv_num_heads=2>(a, b, c)",
        {"a": real(2, 200, 96), "b": real(2, 200, 48), "c": real(2, 200, 48)},
        {},
    ),
    "matmul_n_bits": (
        "y = com.microsoft.MatMulNBits<K=256, N=128, bits=4, block_size=32>(a, w, s)",
        {"a": real(2, 40, 256)},
        {"w": whole(256, 128, 8, 16, dtype="uint8"), "s": np.abs(real(1024)) / 50},
    ),
    "rotary": (
        "y = RotaryEmbedding(a, c, s)",
        {"a": real(2, 8, 100, 64)},
        {"c": real(2, 100, 32), "s": real(2, 100, 32)},
    ),
    "einsum": (
        'y = Einsum<equation="bhqd,bkhd->bhqk">(a, b)',
        {"a": real(2, 6, 70, 40), "b": real(2, 90, 6, 40)},
        {},
    ),
    "matmul_integer": (
        "y = MatMulInteger(a, w, p)",
        {"a": whole(255, 3, 70, 300, dtype="uint8"), "p": np.array(7, "uint8")},
        {"w": whole(120, 300, 130, dtype="int8")},
    ),
    "matmul_integer_on_tensor_cores": (
        "y = MatMulInteger(a, w, p, z)",
        {"a": whole(255, 3, 70, 320, dtype="uint8"), "p": np.array(131, "uint8")},
        {"w": whole(255, 320, 200, dtype="uint8"), "z": np.array(128, "uint8")},
    ),
    "dynamic_quantize": ("y, s, z = DynamicQuantizeLinear(a)", {"a": real(300, 900)}, {}),
    "stft": (
        "y = STFT(a, k, w)",
        {"a": real(2, 8000, 1)},
        {"k": np.array(160), "w": np.hanning(400).astype("f")},
    ),
    "nms": (
        "y = NonMaxSuppression(a, b, k, o, s)",
        {
            "a": np.sort(RNG.uniform(0, 1, (2, 700, 2, 2)), 2).reshape(2, 700, 4).astype("f"),
            "b": distinct(2, 3, 700) / 600,
        },
        {"k": np.array([50]), "o": np.array([0.4], "f"), "s": np.array([0.1], "f")},
    ),
    "one_hot": (
        "y = OneHot(a, k, v)",
        {"a": whole(900, 5000)},
        {"k": np.array(900), "v": np.array([0, 1], "f")},
    ),
    "tile": ("y = Tile(a, k)", {"a": real(20, 30, 40)}, {"k": np.array([2, 3, 4])}),
    "depth_to_space": ("y = DepthToSpace<blocksize=2>(a)", {"a": real(2, 64, 90, 70)}, {}),
}
# decisions between values that float16 cannot tell apart
_ONLY_FLOAT32 = {"top_k", "sort_lines", "nms", "arg_max", "max_pool_indices", "dynamic_quantize"}
_ONLY_FLOAT32 |= {"non_zero", "compress", "roi_align"}


def model(name: str) -> tuple[onnx.ModelProto, dict[str, np.ndarray]]:
    text, feeds, constants = CASES[name]
    nodes = onnx.parser.parse_graph(f"g () => () {{ {text} }}").node
    outputs = list(nodes[-1].output)
    graph = onnx.helper.make_graph(
        nodes,
        "g",
        [
            onnx.helper.make_tensor_value_info(
                k, onnx.helper.np_dtype_to_tensor_dtype(v.dtype), v.shape
            )
            for k, v in feeds.items()
        ],
        [onnx.ValueInfoProto(name=n) for n in outputs],
        [onnx.numpy_helper.from_array(v, k) for k, v in constants.items()],
    )
    opset = [onnx.helper.make_opsetid("", 24), onnx.helper.make_opsetid("com.microsoft", 1)]
    return onnx.helper.make_model(graph, opset_imports=opset, ir_version=11), feeds


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("name", CASES)
def test_operator_of_usual_size(name, precision):
    if precision == "fp16" and name in _ONLY_FLOAT32:
        pytest.skip("its decisions differ by rounding")
    proto, feeds = model(name)
    with NativeRunner(proto, device="cuda", precision=precision) as runner:
        gpu = runner.infer(feeds)
        again = runner.infer(feeds)
        assert not runner.context.on_host
    cpu = NativeRunner(proto, device="cpu", precision=precision).infer(feeds)
    bound = 1e-5 if precision == "fp32" else 4e-3
    for key, expected in cpu.items():
        assert gpu[key].shape == expected.shape
        assert np.array_equal(gpu[key], again[key], equal_nan=True)
        if expected.dtype.kind == "f":
            wide = expected.astype(np.float64)
            error = np.linalg.norm(gpu[key].astype(np.float64) - wide) / np.linalg.norm(wide)
            assert error < bound, f"{key} is off by {error:.2g}"
        else:
            assert np.array_equal(gpu[key], expected), key
