"""Shape inference by ONNX, on models that end the process when ONNX is asked directly.

What crashes it is kept in tests/fuzz/found; here is what must still be told of such models.
"""

from __future__ import annotations

import numpy as np
import onnx
import pytest

import polytool
from polytool.backends.native.inference import infer_shapes
from polytool.inspection import inspect_model


def shapes_of(proto: onnx.ModelProto) -> dict[str, list[int | str]]:
    inferred = infer_shapes(proto)
    infos = (*inferred.graph.value_info, *inferred.graph.output)
    return {
        v.name: [d.dim_value if d.HasField("dim_value") else d.dim_param for d in dims]
        for v in infos
        if v.type.tensor_type.HasField("shape")
        for dims in [v.type.tensor_type.shape.dim]
    }


def parsed(body: str) -> onnx.ModelProto:
    opsets = '["" : 20, "ai.onnx.ml" : 4, "some" : 1]'
    return onnx.parser.parse_model(f"<ir_version: 10, opset_import: {opsets}> {body}")


SLICED = """g (float[N,4] x) => (y) <int64[1] s = {0}, int64[1] e = {2}, int64[1] a = {1}>
{ y = Slice (x, s, e, a) }"""


def test_a_declared_size_of_minus_one_is_an_open_one() -> None:
    model = parsed(SLICED)
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = -1
    before = model.SerializeToString()
    (_, columns) = shapes_of(model)["y"]
    assert columns == 2
    assert model.SerializeToString() == before
    with polytool.runner("native", model) as runner:
        got = runner.infer({"x": np.ones((3, 4), np.float32)})["y"]
    assert got.shape == (3, 2)


def test_what_reads_the_type_of_its_input_is_inferred_once_that_is_known() -> None:
    chain = """g (string[3] x) => (z) {
        y = ai.onnx.ml.LabelEncoder <keys_strings = ["a"], values_strings = ["b"]> (x)
        z = ai.onnx.ml.LabelEncoder <keys_strings = ["b"], values_int64s = [1]> (y)
    }"""
    model = parsed(chain)
    inferred = infer_shapes(model)
    assert inferred.graph.output[0].type.tensor_type.elem_type == onnx.TensorProto.INT64
    assert shapes_of(model) == {"y": [3], "z": [3]}
    assert [n.domain for n in inferred.graph.node] == ["ai.onnx.ml"] * 2
    assert inferred.opset_import == model.opset_import


def test_it_stays_open_after_what_nobody_knows() -> None:
    model = parsed("""g (float[2,3] x) => (y, z) {
        u = some.Make (x)
        y = EyeLike <dtype: int = 1> (u)
        z = EyeLike (x)
    }""")
    assert shapes_of(model) == {"z": [2, 3]}


def test_nodes_in_bodies_and_functions_are_followed() -> None:
    model = parsed("""g (bool c, float[2,3,4] x, int64[5,2] i) => (y, z) {
        y = If (c) <
            then_branch = t () => (a) { a = GatherND (x, i) },
            else_branch = e () => (b) { b = GatherND (x, i) }
        >
        z = some.Pick (x, i)
    }
    <opset_import: ["" : 20], domain: "some"> Pick (d, j) => (r) { r = GatherND (d, j) }""")
    assert shapes_of(model)["y"] == [5, 4]


def test_a_size_that_is_inferred_as_negative_is_not_indexed_by() -> None:
    model = parsed("""g (int64[1,2] i, float[2,2] x) => (y) <int64[2] r = {1, -1}> {
        n = Tile (i, r)
        y = GatherND (x, n)
    }""")
    assert "y" not in shapes_of(model)


WINDOWED = """g (float[1,1,SIZE,8] x) => (y)
<int64[1] s = {0}, int64[1] e = {3}, int64[1] a = {2},
 float[1,1,3,3] w = {1, 1, 1, 1, 1, 1, 1, 1, 1}> {
    p = Conv (x, w)
    m = MaxPool <kernel_shape = [5, 5]> (p)
    y = Slice (m, s, e, a)
}"""


def test_slices_behind_windows_are_followed() -> None:
    found = shapes_of(parsed(WINDOWED.replace("SIZE", "9")))
    assert found["m"] == [1, 1, 3, 2]
    assert found["y"] == [1, 1, 3, 2]


def test_weights_stay_where_inference_runs_in_a_process_of_its_own() -> None:
    model = parsed(WINDOWED.replace("SIZE", "9"))
    inferred = infer_shapes(model)
    assert inferred.graph.initializer == model.graph.initializer
    del inferred.graph.value_info[:], model.graph.value_info[:]
    del inferred.graph.output[:], model.graph.output[:]
    assert inferred == model


def test_a_window_larger_than_the_image_ends_no_process() -> None:
    with pytest.raises(ValueError, match="ends the process on this model"):
        infer_shapes(parsed(WINDOWED.replace("SIZE", "3")))
    layers = inspect_model(parsed(WINDOWED.replace("SIZE", "3"))).layers
    assert [x.op for x in layers] == ["Conv", "MaxPool", "Slice"]
