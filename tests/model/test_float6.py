"""float6 tensors: a stream of bits in raw_data, one code an entry in int32_data."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from polytool.arrays import decode, encode, to_tensor
from polytool.tensors import DType


@pytest.mark.parametrize("dtype", [DType.FLOAT6E2M3, DType.FLOAT6E3M2])
@pytest.mark.parametrize("count", [0, 1, 2, 3, 4, 5, 64])
def test_float6_is_packed_as_onnx_packs_it(dtype: DType, count: int) -> None:
    codes = (np.arange(count, dtype=np.uint8) * 37 + 5) & 63
    array = codes.view(dtype.numpy)
    tensor = to_tensor(array, "x")
    assert tensor.data_type == dtype == DType.of(array)
    assert numpy_helper.to_array(tensor).view(np.uint8).tolist() == codes.tolist()
    theirs = numpy_helper.from_array(array)
    assert theirs.raw_data == encode(array, dtype)
    assert decode(theirs).view(np.uint8).tolist() == codes.tolist()


@pytest.mark.parametrize("dtype", [DType.FLOAT6E2M3, DType.FLOAT6E3M2])
def test_float6_in_int32_data(dtype: DType) -> None:
    values = [1.5, -2.0, 0.25, 4.0, -0.5]
    tensor = helper.make_tensor("x", int(dtype), [5], values)
    assert not tensor.HasField("raw_data")
    assert decode(tensor).astype(np.float32).tolist() == values


def test_float6_goes_through_a_model() -> None:
    import polytool

    nodes = [
        helper.make_node("Cast", ["x"], ["y"], to=int(DType.FLOAT6E3M2)),
        helper.make_node("Cast", ["y"], ["z"], to=int(DType.FLOAT)),
    ]
    infos = [
        helper.make_tensor_value_info(name, int(dtype), [4])
        for name, dtype in (("x", DType.FLOAT), ("y", DType.FLOAT6E3M2), ("z", DType.FLOAT))
    ]
    graph = helper.make_graph(nodes, "g", infos[:1], infos[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 28)])
    assert onnx.checker.check_model(model) is None
    with polytool.runner("native", model) as runner:
        results = runner.infer({"x": np.float32([0.3, -100, 27, 1e-9])})
    assert results["y"].dtype == DType.FLOAT6E3M2.numpy
    assert results["z"].tolist() == [0.3125, -28, 28, 0]
