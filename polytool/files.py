"""Files: read-only maps, paths that stay inside a directory, copies, atomic writing."""

from __future__ import annotations

import errno
import mmap
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TypeAlias

from polytool.errors import ModelError
from polytool.wire import Chunk, FileRange

StrPath: TypeAlias = str | os.PathLike[str]

_COPY_BLOCK = 8 << 20
_ENGINE = b'"format":"polytool-engine-'
# copy_file_range refuses some pairs of files: other file systems, special files, old kernels.
_NO_COPY = {errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM, errno.EBADF}


class DataFile:
    """Read-only bytes: an open file, mapped on first use, or an object in memory.

    The file stays open, so it can be replaced or removed on disk while its old content is in use.
    """

    def __init__(self, fd: int | None, memory: memoryview | None, size: int) -> None:
        self._fd, self._memory, self.size = fd, memory, size

    @classmethod
    def of(cls, data: bytes | memoryview) -> DataFile:
        """A file that is an object in memory."""
        view = memoryview(data)
        return cls(None, view, view.nbytes)

    @classmethod
    def open(cls, path: StrPath) -> DataFile:
        """Open a regular file.

        Raises:
            ModelError: there is no such file, or it cannot be read.
        """
        where = os.fspath(path)
        try:
            fd = os.open(where, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
        except FileNotFoundError:
            raise ModelError(f"{where!r} does not exist") from None
        except OSError as err:
            raise ModelError(f"{where!r} cannot be read: {err.strerror}") from err
        if os.path.isdir(where):
            os.close(fd)
            raise ModelError(f"{where!r} is a directory; name the file in it")
        return cls(fd, None, os.fstat(fd).st_size)

    @classmethod
    def temporary(cls) -> DataFile:
        """An empty file without a name, for `append`."""
        fd, path = tempfile.mkstemp(prefix="polytool-")
        os.unlink(path)
        return cls(fd, None, 0)

    def append(self, data: bytes) -> int:
        """Write `data` at the end of a temporary file; returns where it begins."""
        assert self._fd is not None
        offset = self.size
        written = 0
        while written < len(data):
            written += os.pwrite(self._fd, memoryview(data)[written:], offset + written)
        self.size += len(data)
        self._memory = None
        return offset

    def is_at(self, path: StrPath) -> bool:
        """Whether `path` is this very file."""
        try:
            return self._fd is not None and os.path.samestat(os.fstat(self._fd), os.stat(path))
        except OSError:
            return False

    @property
    def view(self) -> memoryview:
        """The whole content; pages are read when they are touched."""
        if self._memory is None:
            assert self._fd is not None
            if self.size:
                self._memory = memoryview(mmap.mmap(self._fd, self.size, access=mmap.ACCESS_READ))
            else:
                self._memory = memoryview(b"")
        return self._memory

    def read(self, offset: int, length: int) -> bytes | memoryview:
        """A copy of a stretch, without leaving it mapped."""
        if self._fd is None:
            return self.view[offset : offset + length]
        whole = os.pread(self._fd, length, offset)
        if len(whole) == length:
            return whole
        out = bytearray(whole)
        while len(out) < length:
            block = os.pread(self._fd, length - len(out), offset + len(out))
            if not block:
                raise ModelError("a data file became shorter while it was being read")
            out += block
        return bytes(out)

    def copy_to(self, target: int, offset: int, length: int) -> None:
        """Append a stretch to the file descriptor `target`, in the kernel where it can do that."""
        if self._fd is None:
            write_all(target, self.view[offset : offset + length])
            return
        end = offset + length
        while offset < end:
            try:
                done = os.copy_file_range(self._fd, target, end - offset, offset)
            except (OSError, AttributeError) as err:
                if isinstance(err, OSError) and err.errno not in _NO_COPY:
                    raise
                block = self.read(offset, min(_COPY_BLOCK, end - offset))
                write_all(target, block)
                done = len(block)
            if not done:
                raise ModelError("a data file became shorter while it was being copied")
            offset += done

    def __del__(self) -> None:
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None


def write_all(target: int, data: bytes | memoryview) -> None:
    """Write every byte; `os.write` may stop short."""
    view = memoryview(data)
    while view.nbytes:
        view = view[os.write(target, view) :]


def write_chunks(target: int, chunks: Iterable[Chunk], source: Callable[[str], DataFile]) -> None:
    """Write `chunks` one after the other; ranges come from the file that `source` gives."""
    pending: list[bytes | memoryview] = []
    size = 0
    for chunk in chunks:
        if isinstance(chunk, FileRange):
            write_all(target, b"".join(pending))
            pending, size = [], 0
            source(chunk.location).copy_to(target, chunk.offset, chunk.length)
            continue
        pending.append(chunk)
        size += len(chunk)
        if size > _COPY_BLOCK:
            write_all(target, b"".join(pending))
            pending, size = [], 0
    write_all(target, b"".join(pending))


def inside(directory: str, location: str, model: str | None = None) -> str:
    """The path of `location` below `directory`.

    Links are followed as onnxruntime does: within the directory, and, from a model that is a link
    itself, into the directory of the file that it means, which is how download caches look.

    Args:
        directory: where the model lies.
        location: what its tensors say.
        model: the path of the model, if it has one.

    Raises:
        ModelError: it is absolute or leads out of the directory, also through symbolic links.
    """
    if "\0" in location:
        raise ModelError(f"external data {location!r} is no path: re-export the model")
    path = os.path.join(directory, location)
    real, roots = os.path.realpath(path), [os.path.realpath(directory)]
    if model is not None and os.path.islink(model) and os.path.islink(path):
        roots.append(os.path.dirname(os.path.realpath(model)))
    below = any(os.path.commonpath([r, real]) == r and real != r for r in roots)
    if os.path.isabs(location) or not below:
        raise ModelError(
            f"external data {location!r} lies outside the model's directory {directory!r}; "
            "put the file beside the model, or name its directory with --external-data-dir"
        )
    return path


@contextmanager
def _written_in_place(path: StrPath) -> Iterator[int]:
    try:
        fd = os.open(path, os.O_WRONLY)
        try:
            yield fd
        finally:
            os.close(fd)
    except OSError as err:
        raise ModelError(f"{os.fspath(path)!r} cannot be written: {err.strerror}") from err


def is_engine_file(path: StrPath) -> bool:
    """Whether a path says that it is an engine, or the file there begins as one.

    Files of other formats that are called `*.engine` count: reading them tells what is wrong.
    """
    where = os.fspath(path)
    if where.endswith(".engine"):
        return True
    try:
        if not os.path.isfile(where):
            return False
        with open(where, "rb") as file:
            return _ENGINE in file.read(256)
    except OSError:
        return False  # who opens it next says so


@contextmanager
def replacing(path: StrPath) -> Iterator[int]:
    """A file descriptor whose content becomes `path` when the block ends without an exception.

    A device or a pipe, as /dev/null, is written to as it is.

    Raises:
        ModelError: the file cannot be written; what was at `path` is then still there.
    """
    where = os.path.realpath(path)
    if os.path.exists(where) and not os.path.isfile(where):
        with _written_in_place(path) as fd:
            yield fd
        return
    directory, base = os.path.split(where)
    temporary = os.path.join(directory, f".{base}.{os.getpid()}.tmp")
    try:
        fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
    except OSError as err:
        raise ModelError(f"{os.fspath(path)!r} cannot be written: {err.strerror}") from err
    try:
        try:
            yield fd
        finally:
            os.close(fd)
        os.replace(temporary, where)
    except OSError as err:
        raise ModelError(f"{os.fspath(path)!r} cannot be written: {err.strerror}") from err
    finally:
        if os.path.exists(temporary):
            os.unlink(temporary)
