"""NumPy's .npy format without pickle, and without believing the header's claims about size."""

from __future__ import annotations

import io
import math
from typing import Any

import numpy as np

from polytool.errors import ModelError

_HEADER = 64 << 10


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
    stream = io.BytesIO(data[:_HEADER])
    try:
        version = np.lib.format.read_magic(stream)
        reader = {
            (1, 0): np.lib.format.read_array_header_1_0,
            (2, 0): np.lib.format.read_array_header_2_0,
        }[version]
        shape, fortran, dtype = reader(stream)
    except (ValueError, KeyError, SyntaxError, EOFError) as err:
        raise ModelError(f"{who} is not in NumPy's .npy format, or is cut short: {err}") from err
    if dtype.hasobject:
        raise ModelError(f"{who} holds pickled Python objects, which are not loaded")
    if len(data) - stream.tell() < math.prod(shape) * dtype.itemsize:
        raise ModelError(f"{who} is cut short: it claims shape {list(shape)} of {dtype}")
    array = np.frombuffer(data, dtype, math.prod(shape), stream.tell())
    return array.reshape(shape[::-1]).T if fortran else array.reshape(shape)
