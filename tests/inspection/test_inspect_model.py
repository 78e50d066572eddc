"""`inspect model` and `inspect sparsity`: what they count, and how they say it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from polytool.cli import main
from polytool.cli._described import quantity, size
from polytool.cost import measure
from polytool.errors import UsageError
from polytool.inspection import Statistics, inspect_model
from polytool.model import load


def model_of(text: str, **weights: np.ndarray) -> onnx.ModelProto:
    proto = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["" : 17]> {text}')
    for name, array in weights.items():
        proto.graph.initializer.append(numpy_helper.from_array(array, name))
    return proto


CONV = model_of(
    "g (float[N,3,8,8] x) => (float[N,4,6,6] y) "
    "{[c] c = Conv(x, w) s = Shape(c) r = Reshape(c, s) y = Relu(r)}",
    w=np.arange(108, dtype=np.float32).reshape(4, 3, 3, 3),
)
BRANCH = model_of(
    "g (float[2] x, bool c) => (float[2] y) {y = If(c) <"
    "then_branch = t () => (float[2] a) {a = Mul(x, k)}, "
    "else_branch = e () => (float[2] b) {b = Neg(x)}>}",
    k=np.ones(2, np.float32),
)


def test_a_model_is_described() -> None:
    found = inspect_model(CONV)
    assert [str(s) for s in found.inputs] == ["x: float32[N, 3, 8, 8]"]
    assert [str(s) for s in found.outputs] == ["y: float32[N, 4, 6, 6]"]
    assert found.operators == {"Conv": 1, "Shape": 1, "Reshape": 1, "Relu": 1}
    assert (found.parameters, found.weight_bytes) == (108, 432)
    assert found.layers[0].name == "c"
    assert found.layers[0].inputs == ("x", "w")
    assert "the shapes of x are open" in found.cost.reason


def test_cost_is_counted_for_given_shapes() -> None:
    cost = measure(load(CONV), {"x": (2, 3, 8, 8)})
    outputs = 2 * 4 * 6 * 6
    assert cost.flops["c"] == 2 * outputs * 3 * 3 * 3
    assert cost.flops["y"] == outputs
    assert cost.flops["r"] == 0
    assert cost.bytes_moved["c"] == 4 * (2 * 3 * 8 * 8 + 108 + outputs)
    assert cost.bytes_moved["r"] == 0
    assert cost.open == ()
    assert cost.peak is not None
    assert cost.peak >= 4 * (2 * 3 * 64 + outputs)


def test_shapes_of_no_input_are_refused() -> None:
    with pytest.raises(UsageError, match="'q', which does not exist"):
        measure(load(CONV), {"q": (1,)})
    with pytest.raises(UsageError, match="has 4 dimensions"):
        measure(load(CONV), {"x": (1,)})


def test_what_data_decides_is_left_open() -> None:
    proto = model_of("g (float[4] x) => (int64[1,n] y) {a = Relu(x) y = NonZero(a)}")
    cost = measure(load(proto))
    assert cost.open == ("y",)
    assert cost.peak is None
    assert cost.flops == {"a": 4}


def test_bodies_are_described_with_the_way_to_them() -> None:
    found = inspect_model(BRANCH)
    assert [(x.graph, x.op) for x in found.layers] == [
        ("", "If"),
        ("If:y/then_branch", "Mul"),
        ("If:y/else_branch", "Neg"),
    ]
    assert found.layers[0].attributes == {
        "then_branch": "graph of 1 nodes",
        "else_branch": "graph of 1 nodes",
    }


def test_attributes_that_onnx_does_not_know_are_shown_too() -> None:
    proto = model_of('g (float[2] x) => (float[2] y) {y = Relu<other=3, words=["a"]>(x)}')
    (layer,) = inspect_model(proto).layers
    assert layer.attributes == {"other": 3, "words": ["a"]}


def test_statistics_of_weights() -> None:
    values = np.array([0, -3, 4, np.nan, np.inf, 0], np.float32)
    proto = model_of("g (float[6] x) => (float[6] y) {y = Add(x, w)}", w=values)
    (weight,) = inspect_model(proto, statistics=True).weights
    assert weight.statistics == Statistics(-3.0, 4.0, 0.25, pytest.approx(2.4874685), 2, 2)


def test_statistics_do_not_depend_on_where_the_weight_lies(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    array = rng.standard_normal((1100, 1000)).astype(np.float32)
    proto = model_of("g (float[1000] x) => (float[1100] y) {y = MatMul(w, x)}", w=array)
    onnx.save(proto, tmp_path / "m.onnx")
    (inside,) = inspect_model(proto, statistics=True).weights
    (mapped,) = inspect_model(tmp_path / "m.onnx", statistics=True).weights
    assert inside.statistics is not None
    assert mapped.statistics is not None
    assert mapped.statistics.minimum == inside.statistics.minimum == float(array.min())
    assert mapped.statistics.std == pytest.approx(float(array.std()), rel=1e-4)


def test_units() -> None:
    assert quantity(1778969064, "FLOP") == "1.78 GFLOP"
    assert quantity(12) == "12"
    assert size(4687364) == "4.47 MiB"
    assert size(17) == "17 B"


@pytest.fixture
def path(tmp_path: Path) -> str:
    onnx.save(CONV, tmp_path / "m.onnx")
    return str(tmp_path / "m.onnx")


def test_the_command_in_text(path: str, capsys: pytest.CaptureFixture[str]) -> None:
    args = ["--show", "layers", "attrs", "weights", "stats", "--input-shapes", "x:2x3x8x8"]
    assert main(["inspect", "model", path, *args]) == 0
    shown = capsys.readouterr().out
    for text in ("opset ai.onnx 17", "108 parameters", "x: float32[N, 3, 8, 8]", "15.8 KFLOP"):
        assert text in shown
    assert "float32[4, 3, 3, 3]" in shown


def test_the_command_in_json(path: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", "model", path, "--json", "--show", "layers", "stats"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["operators"]["Conv"] == 1
    assert shown["inputs"][0]["shape"] == ["N", 3, 8, 8]
    assert shown["layers"][0]["outputs"][0]["dtype"] == "float32"
    assert shown["weights"][0]["statistics"]["maximum"] == 107
    assert shown["cost"]["flops"] is None
    assert main(["inspect", "model", path, "--json"]) == 0
    assert "layers" not in json.loads(capsys.readouterr().out)


def test_an_engine_is_described(
    path: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from polytool import engine_from_onnx

    engine = str(tmp_path / "m.engine")
    engine_from_onnx(path).save(engine)
    assert main(["inspect", "model", engine, "--show", "layers", "--verify", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["kind"] == "engine"
    assert shown["weight_bytes"] >= 432
    assert any("c" in layer["origin"] for layer in shown["layers"])
    assert shown["sound_parts"] > 0
    assert main(["inspect", "model", engine]) == 0
    assert ": engine, fp32" in capsys.readouterr().out


def test_an_engine_shows_costs_weights_and_a_page(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from polytool import engine_from_onnx

    model = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 17]> g (float[N,4] x) => (float[N,6] y) '
        f"<float[4,6] w = {{{', '.join(['1'] * 24)}}}> {{m = MatMul(x, w) y = Relu(m)}}"
    )
    engine, page = str(tmp_path / "m.engine"), tmp_path / "m.html"
    engine_from_onnx(model).save(engine)
    command = ["inspect", "model", engine, "--input-shapes", "x:[2,4]", "--json"]
    assert main([*command, "--show", "stats", "attrs", "--save-visual", str(page)]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["parameters"] == 24
    assert shown["cost"]["flops"] == 2 * 2 * 4 * 6 + 12
    # the product is fused with Relu, so that only x, w and y move
    assert shown["cost"]["bytes_moved"] == 4 * (8 + 24 + 12)
    assert shown["weights"][0]["statistics"]["mean"] == 1
    assert '"MatMul' in page.read_text(encoding="utf-8") or "m.engine" in page.read_text()
    assert main(["inspect", "model", engine]) == 0
    assert "cost: not known, because the shapes of x are open" in capsys.readouterr().out
    assert main(["inspect", "model", engine, "--list-unbounded-dds"]) == 2


def test_long_metadata_is_abridged(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 17]> g (float[2] x) => (float[2] y) {y = Relu(x)}'
    )
    model.metadata_props.add(key="character", value="a\n" * 5000)
    onnx.save(model, tmp_path / "m.onnx")
    assert main(["inspect", "model", str(tmp_path / "m.onnx")]) == 0
    (line,) = [x for x in capsys.readouterr().out.splitlines() if x.startswith("character: ")]
    assert line.endswith("... (10000 characters)")


def test_sparsity(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    dense = np.ones((8, 8), np.float32)
    sparse = dense.copy()
    sparse[::2] = 0
    proto = model_of(
        "g (float[2,8] x) => (float[2,8] y) {a = MatMul(x, v) y = MatMul(a, w)}", v=dense, w=sparse
    )
    onnx.save(proto, tmp_path / "m.onnx")
    assert main(["inspect", "sparsity", str(tmp_path / "m.onnx"), "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown == {"sparse": 1, "weights": {"v": "dense", "w": "2:4"}}
    assert main(["inspect", "sparsity", str(tmp_path / "m.onnx")]) == 0
    assert "1 of 2 weights are 2:4 sparse" in capsys.readouterr().out
