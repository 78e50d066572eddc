"""Arrays of any origin as NumPy arrays on the host."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

from polytool.errors import UsageError
from polytool.tensors import as_numpy


class OnlyDLPack:
    """What arrays of other libraries have in common."""

    def __init__(self, array):
        self._array = array

    def __dlpack__(self, **options):
        return self._array.__dlpack__(**options)

    def __dlpack_device__(self):
        return self._array.__dlpack_device__()


class Elsewhere(OnlyDLPack):
    """An array on a device that NumPy cannot reach."""

    def __dlpack_device__(self):
        return (2, 0)

    def __dlpack__(self, **options):
        raise BufferError("on a GPU")


def test_dlpack_shares_memory():
    array = np.arange(6.0).reshape(2, 3)
    found = as_numpy(OnlyDLPack(array))
    assert np.shares_memory(found, array) and found.shape == (2, 3)


@pytest.mark.parametrize(
    ("value", "dtype", "content"),
    [
        (3, np.int64, 3),
        (1.5, np.float64, 1.5),
        (True, np.bool_, True),
        (np.float32(2), np.float32, 2),
        ([1, 2], np.int64, [1, 2]),
        (np.array([1], ">i4"), np.dtype("=i4"), [1]),
        (np.array([1], ml_dtypes.bfloat16), ml_dtypes.bfloat16, [1]),
        (np.array(["a", "bc"]), object, ["a", "bc"]),
        (np.array([b"a", b"\xff"]), object, ["a", "\udcff"]),
        ("text", object, "text"),
    ],
)
def test_values_of_python_and_numpy(value, dtype, content):
    found = as_numpy(value)
    assert found.dtype == dtype and found.tolist() == content


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (np.array(["2020"], "M8[s]"), "not an ONNX element type"),
        (np.array([object()], object), "an object of type object is not a tensor element"),
        (np.array([1], np.longdouble), "not an ONNX element type"),
        (Elsewhere(np.ones(1)), "type Elsewhere cannot be read as an array: on a GPU"),
        ([[1], [2, 3]], "cannot be read as an array"),
    ],
)
def test_what_is_no_tensor_is_refused(value, message):
    with pytest.raises(UsageError, match=message):
        as_numpy(value)
