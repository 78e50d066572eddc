"""Where NVIDIA's shared libraries lie: in wheels, in a CUDA toolkit, or on the search path."""

from __future__ import annotations

import ctypes
import importlib.util
import os
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from polytool.errors import MissingDependencyError


def _wheel_folders() -> Iterator[Path]:
    """Folders of the nvidia-* wheels: one for all (`nvidia/cu13/lib`), or one a library."""
    spec = importlib.util.find_spec("nvidia")
    for root in (spec.submodule_search_locations or ()) if spec is not None else ():
        yield from sorted(Path(root).glob("*/lib"))


def _toolkit_folders() -> Iterator[Path]:
    for variable in ("CUDA_PATH", "CUDA_HOME"):
        if variable in os.environ:
            yield Path(os.environ[variable]) / "lib64"
    yield Path("/usr/local/cuda/lib64")


@cache
def load(soname: str, package: str, purpose: str, extra: str = "cuda") -> ctypes.CDLL:
    """Open a library once.

    Args:
        soname: file name with its major version, such as `libnvrtc.so.13`.
        package: the wheel that brings it, for the message.
        purpose: what needs it, for the message.
        extra: the extra of polytool that brings the wheel.

    Raises:
        MissingDependencyError: it is nowhere.
    """
    for folder in (*_wheel_folders(), *_toolkit_folders()):
        path = folder / soname
        if path.exists():
            for helper in folder.glob(soname.partition(".so")[0] + "-*.so.*"):
                ctypes.CDLL(str(helper))  # opened later by name only, which needs it loaded
            return ctypes.CDLL(str(path))
    try:
        return ctypes.CDLL(soname)
    except OSError as err:
        raise MissingDependencyError(f"{package} ({soname})", extra, purpose) from err
