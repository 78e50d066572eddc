"""Cutting models out, putting nodes in, weights that are sparse, stripped and restored."""

from __future__ import annotations

from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from polytool.cli import main
from polytool.errors import ModelError, UsageError
from polytool.inspection import inspect_model
from polytool.model import load
from polytool.surgeon import (
    Port,
    extract,
    insert,
    inspect_sparsity,
    lint,
    prune,
    reconstruct_weights,
    sanitize,
    simplify,
    strip_weights,
)
from polytool.surgeon.extraction import parse_attributes
from polytool.surgeon.sparsity import is_sparse, pruned
from polytool.tensors import DType
from tests.surgeon.surgery import ops, parse, session

TEXT = (
    "g (float[N,4] x, float[N,4] z) => (float[N,4] y) <float[4] k = {1, 2, 3, 4}> "
    "{a = Exp(x) b = Mul(a, k) c = Neg(z) y = Add(b, c)}"
)
X = np.ones((2, 4), np.float32)
RNG = np.random.default_rng(3)


@pytest.mark.parametrize(
    ("text", "port"),
    [
        ("x", Port("x")),
        ("x:auto:auto", Port("x")),
        ("x:[1,3]:float32", Port("x", (1, 3), DType.FLOAT)),
        ("x:1x3:int64", Port("x", (1, 3), DType.INT64)),
        ("x:[N,-1,2]", Port("x", ("N", None, 2))),
        ("x:0:[]:float16", Port("x:0", (), DType.FLOAT16)),
        ("a:b", Port("a:b")),
        ("x:float32", Port("x", None, DType.FLOAT)),
    ],
)
def test_ports_are_read(text: str, port: Port) -> None:
    assert Port.parse(text) == port


def test_the_names_of_outputs_may_look_like_shapes() -> None:
    assert Port.parse("x:0", has_shape=False) == Port("x:0")
    assert Port.parse("x:0:float32", has_shape=False) == Port("x:0", None, DType.FLOAT)


@pytest.mark.ort
def test_a_part_computes_what_it_did_in_the_model() -> None:
    part = extract(parse(TEXT), ["a", "c:[2,4]:float32"], ["y"])
    assert ops(part) == {"Mul": 1, "Add": 1}
    graph = part.proto.graph
    assert [d.dim_param or d.dim_value for d in graph.input[0].type.tensor_type.shape.dim] == [
        "N",
        4,
    ]
    assert [d.dim_value for d in graph.input[1].type.tensor_type.shape.dim] == [2, 4]
    got = session(part.serialize()).run(None, {"a": X, "c": 2 * X})[0]
    np.testing.assert_array_equal(got, X * [1, 2, 3, 4] + 2)


def test_inputs_that_are_not_needed_go() -> None:
    part = extract(parse(TEXT), outputs=["b"])
    assert [i.name for i in part.proto.graph.input] == ["x"]
    assert [o.name for o in part.proto.graph.output] == ["b"]


def test_a_weight_can_become_an_input() -> None:
    part = extract(parse(TEXT), ["x", "k"], ["b"])
    assert [i.name for i in part.proto.graph.input] == ["x", "k"]
    assert not part.proto.graph.initializer


def test_what_is_missing_is_said() -> None:
    with pytest.raises(UsageError, match="also depend on 'z'"):
        extract(parse(TEXT), ["a"], ["y"])
    with pytest.raises(UsageError, match="'q', which does not exist"):
        extract(parse(TEXT), ["a"], ["q"])


def test_values_that_bodies_need_stay() -> None:
    proto = parse(
        "g (float[2] x, bool c) => (float[2] y) {o = Exp(x) p = Neg(x) y = If(c) <"
        "then_branch = t () => (float[2] a) {a = Abs(o)}, "
        "else_branch = e () => (float[2] b) {b = Abs(p)}>}"
    )
    part = extract(proto, ["o", "c", "x"], ["y"])
    assert ops(part) == {"If": 1, "Abs": 2, "Neg": 1}


def test_only_the_weights_of_the_part_are_written(tmp_path: Path) -> None:
    proto = parse("g (float[N,64] x) => (float[N,64] y) {a = MatMul(x, v) y = MatMul(a, w)}")
    for name in "vw":
        values = RNG.standard_normal((64, 64)).astype(np.float32)
        proto.graph.initializer.append(numpy_helper.from_array(values, name))
    onnx.save(proto, tmp_path / "m.onnx", save_as_external_data=True, location="w.bin")
    extract(tmp_path / "m.onnx", ["a"], ["y"]).save(tmp_path / "p.onnx")
    assert (tmp_path / "p.onnx.data").stat().st_size == 64 * 64 * 4


@pytest.mark.ort
def test_a_node_replaces_what_computed_its_output() -> None:
    model = insert(parse(TEXT), op="Sub", inputs=["x", "k"], outputs=["b"], name="new")
    assert ops(model) == {"Sub": 1, "Neg": 1, "Add": 1}
    got = session(model.serialize()).run(None, {"x": X, "z": X})[0]
    np.testing.assert_array_equal(got, X - [1, 2, 3, 4] - 1)


@pytest.mark.ort
@pytest.mark.parametrize("tensor", ["a", "y", "x"])
def test_a_node_stands_between_a_tensor_and_its_readers(tensor: str) -> None:
    attributes = {"alpha": 3.0}
    model = insert(
        parse(TEXT), op="LeakyRelu", inputs=[tensor], outputs=[tensor], attributes=attributes
    )
    assert ops(model) == {"Exp": 1, "Mul": 1, "Neg": 1, "Add": 1, "LeakyRelu": 1}
    onnx.checker.check_model(model.to_proto())
    leaky = {tensor: lambda v: np.where(v < 0, 3 * v, v)}
    same = lambda v: v  # noqa: E731  # shorter than a function for every tensor
    x, z = leaky.get("x", same)(-X), 90 * X
    y = leaky.get("a", same)(np.exp(x)) * [1, 2, 3, 4] - z
    got = session(model.serialize()).run(["y"], {"x": -X, "z": z})[0]
    np.testing.assert_allclose(got, leaky.get("y", same)(y), rtol=1e-6)


def test_a_node_of_another_domain_brings_its_opset() -> None:
    model = insert(parse(TEXT), op="Thing", domain="my", inputs=["a"], outputs=["a"])
    assert model.opsets == {"": 17, "my": 1}


def test_attributes_are_read() -> None:
    assert parse_attributes(["axis=1", "a=-0.5", "m=linear", "q='53'", "l=[0, 1]", "e=[]"]) == {
        "axis": 1, "a": -0.5, "m": "linear", "q": "53", "l": [0, 1], "e": [],
    }  # fmt: skip
    with pytest.raises(UsageError, match="write name=value"):
        parse_attributes(["axis"])


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_pruning_keeps_the_two_largest_of_four(dtype: type, axis: int) -> None:
    array = RNG.standard_normal((8, 4, 12)).astype(dtype)
    sparse = pruned(array, axis)
    assert sparse.shape == array.shape
    assert is_sparse(sparse, axis)
    assert not is_sparse(array, axis)
    kept = sparse != 0
    assert kept.sum() * 2 == array.size
    np.testing.assert_array_equal(sparse[kept], array[kept])
    row = np.moveaxis(np.abs(array.astype(np.float32)), axis, -1).reshape(-1, 4)
    left = np.moveaxis(np.abs(sparse.astype(np.float32)), axis, -1).reshape(-1, 4)
    np.testing.assert_array_equal(np.sort(row)[:, 2:], np.sort(left)[:, 2:])


def weighted() -> onnx.ModelProto:
    proto = parse(
        "g (float[N,8,6,6] x) => (float[N,M] y) "
        "{c = Conv(x, w) d = Transpose(t) f = Flatten(c) m = MatMul(f, d) y = Gemm<transB=1>(m, g)}"
    )
    for name, shape in (("w", (8, 8, 3, 3)), ("t", (16, 128)), ("g", (32, 15))):
        values = RNG.standard_normal(shape).astype(np.float32)
        proto.graph.initializer.append(numpy_helper.from_array(values, name))
    return proto


def test_weights_are_pruned_along_the_reduced_axis() -> None:
    made = prune(weighted())
    assert made.done == ("w", "t")
    assert "no multiple of 4" in made.skipped["g"]
    assert inspect_sparsity(weighted()) == {
        "w": "dense",
        "t": "dense",
        "g": "axis 1 has 15 elements, no multiple of 4",
    }
    found = inspect_sparsity(made.model.to_proto())
    assert (found["w"], found["t"]) == ("2:4", "2:4")
    assert prune(weighted(), exclude=["w"]).done == ("t",)


def test_stripped_models_are_small_and_come_back() -> None:
    proto = prune(weighted(), exclude=["t"]).model.to_proto()
    stripped = strip_weights(proto)
    assert stripped.weights == ("w", "t", "g")
    data = stripped.model.serialize()
    assert len(data) < 1500
    with pytest.raises(ModelError, match="'w' holds 0 bytes"):
        load(data).array(load(data).proto.graph.initializer[0])
    restored = reconstruct_weights(load(data))
    assert restored.weights == stripped.weights
    assert restored.model.proto.doc_string == proto.doc_string
    found = inspect_sparsity(restored.model.to_proto())
    assert (found["w"], found["t"]) == ("2:4", "dense")
    again = reconstruct_weights(load(data))
    assert again.model.serialize() == restored.model.serialize()
    assert reconstruct_weights(load(data), seed=1).model.serialize() != again.model.serialize()


def test_models_without_weights_can_still_be_operated_on(tmp_path: Path) -> None:
    proto = weighted()
    proto.graph.node.pop()  # of another size than what it reads
    proto.graph.output[0].name = "m"
    stripped = load(strip_weights(proto).model.serialize())
    assert ops(simplify(stripped)) == {"Conv": 1, "Transpose": 1, "Flatten": 1, "MatMul": 1}
    assert sanitize(stripped).verdict.reason == "weights have no content"
    assert inspect_model(stripped, statistics=True).weights[0].statistics is None
    assert set(inspect_sparsity(stripped).values()) == {"its content is not there"}
    assert lint(stripped).is_valid
    assert set(lint(stripped).unchecked.values()) == {"weights have no content"}
    path = tmp_path / "m.onnx"
    onnx.save(proto, path, save_as_external_data=True, location="w", size_threshold=0)
    (tmp_path / "w").unlink()
    ignored = load(path, ignore_external_data=True)
    assert ops(sanitize(ignored).model)["Transpose"] == 1
    assert strip_weights(ignored).weights == ()


def test_excluded_weights_are_not_stripped() -> None:
    assert strip_weights(weighted(), exclude=["w"]).weights == ("t", "g")
    with pytest.raises(UsageError, match="'nope', which does not exist"):
        strip_weights(weighted(), exclude=["nope"])


def test_the_commands(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = str(tmp_path / "m.onnx")
    onnx.save(weighted(), path)
    out, back = str(tmp_path / "o.onnx"), str(tmp_path / "b.onnx")
    (tmp_path / "skip.txt").write_text("g\n")
    exclude = ["--exclude-list", str(tmp_path / "skip.txt")]
    assert main(["surgeon", "weight-strip", path, "-o", out, *exclude]) == 0
    assert "2 weights of 10496 bytes stripped" in capsys.readouterr().out
    assert main(["surgeon", "weight-reconstruct", out, "-o", back]) == 0
    assert main(["surgeon", "prune", path, "-o", out]) == 0
    assert "2 weights made 2:4 sparse" in capsys.readouterr().out
    args = ["--inputs", "f:[2,128]:float32", "--outputs", "m"]
    assert main(["surgeon", "extract", path, "-o", out, *args]) == 0
    assert "inputs f, outputs m" in capsys.readouterr().out
    args = ["--op", "LeakyRelu", "--inputs", "f", "--outputs", "f", "--attrs", "alpha=0.5"]
    assert main(["surgeon", "insert", path, "-o", out, *args]) == 0
    assert ops(onnx.load(out))["LeakyRelu"] == 1
    assert main(["surgeon", "extract", path, "-o", out, "--outputs", "nope"]) == 2
    assert "'nope', which does not exist" in capsys.readouterr().err


def test_mistakes_of_users_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, out = str(tmp_path / "m.onnx"), str(tmp_path / "o.onnx")
    onnx.save(parse("g (float[2,4] x) => (float[2,4] y) <float[1] w = {2}> {y = Mul(x, w)}"), path)
    (tmp_path / "list.txt").write_text("nothing\n")
    insert_ = ["surgeon", "insert", path, "-o", out, "--inputs", "x", "--outputs", "x", "--op"]
    listed = ["--exclude-list", str(tmp_path / "list.txt")]
    for args, code, said in (
        ([*insert_, "Nonsense"], 2, "ONNX defines no operator 'Nonsense' in opset 17"),
        ([*insert_, "Nonsense", "--domain", "mine"], 0, ""),
        (["surgeon", "prune", path, "-o", out, *listed], 2, "exclusion is given for 'nothing'"),
        (["surgeon", "weight-strip", path, "-o", out], 0, "has no weights to strip"),
        (["surgeon", "weight-reconstruct", path, "-o", out], 0, "has no stripped weights"),
        (["template", "onnx-gs", path, "-o", f"{path}/x.py"], 2, "there is no directory"),
    ):
        assert main(args) == code, args
        assert said in capsys.readouterr().err
