"""NumPy's .npy format without pickle, and without believing the header's claims about size."""

from __future__ import annotations

import ast
import io
import math
from typing import Any

import numpy as np

from polytool.errors import ModelError

_HEADER = 64 << 10
_LAST_CHARACTER = 0x10FFFF


def npy_bytes(array: Any) -> bytes:
    """`array` as the content of an .npy file."""
    stream = io.BytesIO()
    np.lib.format.write_array(stream, np.asarray(array), allow_pickle=False)
    return stream.getvalue()


def read_npy(data: memoryview, who: str) -> Any:
    """The array in the content of an .npy file; shares its memory, so it may be read-only.

    Raises:
        ModelError: `data` is something else, is cut short, or holds pickled objects.
    """
    try:
        start, shape, fortran, dtype = _read_header(data)
    except (ValueError, TypeError, KeyError, SyntaxError, RecursionError, MemoryError) as err:
        raise ModelError(f"{who} is not in NumPy's .npy format, or is cut short") from err
    if dtype.hasobject:
        raise ModelError(f"{who} holds pickled Python objects, which are not loaded")
    if len(data) - start < math.prod(shape) * dtype.itemsize:
        raise ModelError(f"{who} is cut short: it claims shape {list(shape)} of {dtype}")
    array = np.frombuffer(data, dtype, math.prod(shape), start)
    if dtype.kind == "U" and array.size and dtype.itemsize:
        codes = array.view(np.dtype("u4").newbyteorder(dtype.byteorder))
        if codes.max() > _LAST_CHARACTER:
            raise ModelError(f"{who} holds strings of characters that do not exist")
    return array.reshape(shape[::-1]).T if fortran else array.reshape(shape)


def _read_header(data: memoryview) -> tuple[int, tuple[int, ...], bool, np.dtype[Any]]:
    """Where the data begin, and what they are; NumPy's own reader fails in too many ways."""
    magic, major = bytes(data[:6]), data[6] if len(data) > 6 else 0
    if magic != b"\x93NUMPY" or major not in (1, 2, 3):
        raise ValueError("magic")
    width = 2 if major == 1 else 4
    start = 8 + width + int.from_bytes(data[8 : 8 + width], "little")
    if start > min(len(data), _HEADER):
        raise ValueError("header")
    header = ast.literal_eval(bytes(data[8 + width : start]).decode("utf-8").strip())
    shape, dtype = header["shape"], np.lib.format.descr_to_dtype(header["descr"])
    if not all(type(d) is int and d >= 0 for d in shape):
        raise ValueError("shape")
    return start, tuple(shape), bool(header["fortran_order"]), dtype
