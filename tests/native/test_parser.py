"""ONNX files as they are, not as they should be."""

import numpy as np
import onnx
import onnx.parser
import pytest

from polytool import NativeRunner
from polytool.backends.native.parser import parse
from polytool.errors import ModelError, UnsupportedError
from polytool.model import load


def model(text: str, opset: str = '"" : 18') -> onnx.ModelProto:
    return onnx.parser.parse_model(f"<ir_version: 9, opset_import: [{opset}]> {text}")


def run(proto: onnx.ModelProto, **feeds: np.ndarray) -> dict[str, np.ndarray]:
    return NativeRunner(proto, optimize=False).infer(feeds)


X = np.float32([1, -2, 3])


def test_nodes_out_of_order_are_sorted():
    proto = model("g (float[3] x) => (float[3] y) { y = Neg(a)  a = Abs(x) }")
    assert run(proto, x=X)["y"].tolist() == [-1, -2, -3]


def test_a_cycle_is_named():
    proto = model("g (float[3] x) => (float[3] y) { a = Add(x, y)  y = Neg(a) }")
    with pytest.raises(ModelError, match="cycle through node"):
        parse(load(proto))


def test_an_undefined_tensor_is_named_with_its_reader():
    proto = model("g (float[3] x) => (float[3] y) { y = Add(x, ghost) }")
    with pytest.raises(ModelError, match=r"Add:y reads 'ghost'"):
        parse(load(proto))


def test_every_unsupported_node_is_named_at_once():
    proto = model("g (float[3] x) => (float[3] y) { a = Foo(x) b = Bar(a) y = Neg(b) }")
    with pytest.raises(UnsupportedError, match=r"2 node.*Foo:a.*Bar:b"):
        parse(load(proto))


def test_an_unknown_attribute_is_unsupported_not_ignored():
    proto = model("g (float[3] x) => (float[3] y) { y = Abs <strange = 1> (x) }")
    with pytest.raises(UnsupportedError, match="attribute strange"):
        parse(load(proto))


def test_local_functions_are_expanded_with_attributes_and_defaults():
    proto = onnx.parser.parse_model(
        """<ir_version: 9, opset_import: ["" : 18, "own" : 1]>
        g (float[3] x) => (float[3] y) { a = own.leak <slope = 0.5> (x)  y = own.leak (a) }
        <domain: "own", opset_import: ["" : 18]>
        leak <slope: float = 0.25> (v) => (w) { w = LeakyRelu <alpha: float = @slope> (v) }"""
    )
    assert run(proto, x=X)["y"].tolist() == [1, -0.25, 3]


def test_operators_that_onnx_defines_as_functions_run_through_their_definition():
    proto = model(
        """g (seq(float[N]) x) => (seq(float[N]) y) {
            y = SequenceMap (x) <body = b (float[N] e) => (float[N] f) { f = Neg(e) }>
        }"""
    )
    (y,) = NativeRunner(proto, optimize=False).infer({"x": [X]})["y"]
    assert y.tolist() == [-1, 2, -3]


def test_bodies_read_outer_names():
    proto = model(
        """g (bool c, float[3] x) => (float[3] y) {
            k = Abs(x)
            y = If (c) <then_branch = t () => (float[3] a) { a = Add(x, k) },
                        else_branch = e () => (float[3] b) { b = Sub(x, k) }>
        }"""
    )
    assert run(proto, x=X, c=np.array(True))["y"].tolist() == [2, 0, 6]
    assert run(proto, x=X, c=np.array(False))["y"].tolist() == [0, -4, 0]


def test_tensors_of_bodies_have_unique_names():
    proto = model(
        """g (bool c, float[3] x) => (float[3] y) {
            y = If (c) <then_branch = t () => (float[3] r) { r = Neg(x) },
                        else_branch = e () => (float[3] r) { r = Abs(x) }>
        }"""
    )
    network = parse(load(proto))
    names = [t.name for _, layer in network.walk() for t in layer.outputs]
    assert len(names) == len(set(names)) == 3


def test_initializers_repeated_as_inputs_are_constants():
    proto = model("g (float[3] x, float[3] w) => (float[3] y) { y = Add(x, w) }")
    proto.graph.initializer.append(onnx.numpy_helper.from_array(X, "w"))
    runner = NativeRunner(proto)
    assert [t.name for t in runner.inputs] == ["x"]
    assert runner.infer({"x": X})["y"].tolist() == [2, -4, 6]


def test_sparse_initializers_are_dense_constants():
    proto = model("g (float[3] x) => (float[3] y) { y = Add(x, w) }")
    values = onnx.numpy_helper.from_array(np.float32([5]), "w")
    indices = onnx.numpy_helper.from_array(np.int64([1]))
    proto.graph.sparse_initializer.append(onnx.helper.make_sparse_tensor(values, indices, [3]))
    assert run(proto, x=X)["y"].tolist() == [1, 3, 3]


def test_empty_names_are_absent_inputs():
    proto = model("g (float[3] x, float m) => (float[3] y) { y = Clip(x, , m) }")
    assert run(proto, x=X, m=np.float32(2))["y"].tolist() == [1, -2, 2]


def test_a_missing_opset_import_is_named():
    proto = model("g (float[3] x) => (float[3] y) { y = Neg(x) }", '"other" : 1')
    with pytest.raises(ModelError, match="imports no opset for domain 'ai.onnx'"):
        parse(load(proto))


@pytest.mark.parametrize("opset", [11, 13])
def test_resize_is_written_without_roi_and_scales_by_exporters(opset):
    proto = onnx.parser.parse_model(
        f'<ir_version: 7, opset_import: ["" : {opset}]> g (float[1,1,2,2] x) => (float[1,1,4,4] y) '
        "<int64[4] s = {1, 1, 4, 4}> { y = Resize(x, , , s) }"
    )
    with NativeRunner(proto, device="cpu") as runner:
        assert runner.infer({"x": np.ones((1, 1, 2, 2), np.float32)})["y"].shape == (1, 1, 4, 4)


def test_old_forms_of_resize_are_raised():
    for opset, op in ((9, "Upsample"), (10, "Resize")):
        proto = onnx.parser.parse_model(
            f'<ir_version: 7, opset_import: ["" : {opset}]> g (float[1,1,2,2] x) => '
            f"(float[1,1,4,4] y) <float[4] s = {{1, 1, 2, 2}}> {{ y = {op}(x, s) }}"
        )
        with NativeRunner(proto, device="cpu") as runner:
            assert runner.infer({"x": np.ones((1, 1, 2, 2), np.float32)})["y"].shape[2] == 4
