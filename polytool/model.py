"""An ONNX model on disk or in memory, whose weights stay where they are until they are needed.

    model = load("model.onnx")
    for tensor in model.proto.graph.initializer:
        print(tensor.name, model.nbytes(tensor))       # reads nothing
    w = model.array(model.proto.graph.initializer[0])  # mapped, read-only

`Model.proto` is an ordinary ModelProto in which every large tensor is a reference (external data):
into the file itself where the weights are embedded, into the data files where they are external.
"""

from __future__ import annotations

import os
import tempfile
from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, TypeAlias

from polytool import arrays
from polytool.errors import ModelError, UsageError
from polytool.files import DataFile, StrPath, inside
from polytool.tensors import DType
from polytool.wire import FileRange, WireError, strip

if TYPE_CHECKING:
    import onnx

Source: TypeAlias = "StrPath | bytes | onnx.ModelProto | Model"

WEIGHTLESS = "TRT_WEIGHTLESS"  # how Polygraphy marks weights whose content was taken out
EMBEDDED_FROM = 1024  # bytes of content from which an embedded tensor becomes a reference
_SPILL = "<new>"
_SPILL_FROM = 4 << 20  # bytes from which a new tensor goes to a temporary file
_MAX_EXPANDED = 250_000  # nodes of a model whose functions are expanded
_MAX_VERSION = 2**31 - 1
_TYPE_FIELDS = frozenset({"elem_type", "data_type", "key_type"})
_TYPES = frozenset(DType) | {0}
_MEMORY_SESSION = 256 << 20  # bytes up to which onnxruntime is given a changed model in memory


def load(
    source: Source,
    *,
    external_data_dir: StrPath | None = None,
    ignore_external_data: bool = False,
) -> Model:
    """Open a model.

    Args:
        source: a path, a serialized model, a ModelProto (used as it is, not copied) or a Model
            (returned as it is).
        external_data_dir: where external data files lie; by default beside the model.
        ignore_external_data: do not look for external data files; weights in them have no values.

    Raises:
        ModelError: the file is missing, is no ONNX model, is damaged, or its external data is
            missing, too short, or outside of the model's directory.
    """
    import onnx

    directory = None if external_data_dir is None else os.fspath(external_data_dir)
    if isinstance(source, Model):
        return source
    if isinstance(source, onnx.ModelProto):
        model = Model(source, directory=directory)
    elif isinstance(source, (bytes, bytearray, memoryview)):
        model = _parse(DataFile.of(memoryview(source).cast("B")), "the model", None, directory)
    elif isinstance(source, (str, os.PathLike)):
        path = os.fspath(source)
        file = DataFile.open(path)
        model = _parse(file, repr(path), path, directory or os.path.dirname(path) or ".")
    else:
        raise UsageError(
            f"a model is a path, bytes or an onnx.ModelProto, not {type(source).__name__}"
        )
    model.ignore_external_data = ignore_external_data
    _check(model)
    return model


def _parse(file: DataFile, who: str, path: str | None, directory: str | None) -> Model:
    import onnx
    from google.protobuf.message import DecodeError

    if not file.size:
        raise ModelError(f"{who} is empty: download or export it again")
    location = os.path.abspath(path) if path is not None else "<bytes>"
    try:
        proto = onnx.ModelProto.FromString(strip(file.view, location, EMBEDDED_FROM))
    except (WireError, DecodeError, IndexError) as err:
        raise ModelError(f"{who} {_not_a_model(file)}") from err
    if not proto.HasField("graph") or not (proto.ir_version or proto.opset_import):
        raise ModelError(f"{who} {_not_a_model(file)}")
    return Model(proto, path=path, directory=directory, files={location: file})


def _not_a_model(file: DataFile) -> str:
    """What to say of a file that does not parse."""
    head = bytes(file.view[:512])
    if b"__metadata__" in head or head[8:9] == b"{":
        return "is a safetensors file or an engine, not an ONNX model"
    if head.startswith(b"version https://git-lfs"):
        return "is a Git LFS pointer, not an ONNX model: fetch the file itself (git lfs pull)"
    if head.isascii() and b"\0" not in head and all(b >= 32 or b in b"\t\r\n\f" for b in head):
        return "is a text file, not an ONNX model: name the .onnx file"
    return "is not an ONNX model, or is damaged or cut short: download or export it again"


def _check(model: Model) -> None:
    """Find data that is missing before somebody relies on it."""
    _check_fields(model.proto, model.name)
    if not 0 <= model.proto.ir_version <= _MAX_VERSION:
        raise ModelError(
            f"{model.name} has IR version {model.proto.ir_version}, which cannot exist"
        )
    imports = [o for f in model.proto.functions for o in f.opset_import]
    for opset in (*model.proto.opset_import, *imports):
        lowest = 1 if opset.domain in ("", "ai.onnx") else 0
        if not lowest <= opset.version <= _MAX_VERSION:
            raise ModelError(f"{model.name} imports opset {opset.version}, which cannot exist")
    for tensor in tensors(model.proto):
        arrays.dtype_of(tensor)
        if tensor.data_location == tensor.EXTERNAL and not model.ignore_external_data:
            model.locate(tensor)
    _check_functions(model.proto)


def _check_fields(message: Any, who: str) -> None:
    """Names that are text, and element types that ONNX has: protobuf checks neither."""
    for field, value in message.ListFields():
        kind = field.type
        if kind == field.TYPE_STRING:
            if type(value) is bytes or (
                field.is_repeated and any(type(item) is bytes for item in value)
            ):
                raise ModelError(f"{who} is damaged: its field {field.full_name} is not UTF-8 text")
        elif kind == field.TYPE_MESSAGE:
            if field.is_repeated:
                for item in value:
                    _check_fields(item, who)
            else:
                _check_fields(value, who)
        elif kind == field.TYPE_INT32 and field.name in _TYPE_FIELDS and value not in _TYPES:
            raise ModelError(
                f"{who} has a tensor of element type {value}, which ONNX does not define"
            )


def _check_functions(proto: onnx.ModelProto) -> None:
    """No function calls itself, and all calls together expand to a bounded number of nodes."""
    calls = {
        (f.domain, f.name): Counter((n.domain, n.op_type) for n in nodes(f.node))
        for f in proto.functions
    }
    pending = {name: set(called) & set(calls) for name, called in calls.items()}
    sizes: dict[tuple[str, str], int] = {}

    def expanded(called: Counter[tuple[str, str]]) -> int:
        return sum(times * sizes.get(name, 1) for name, times in called.items())

    while leaves := [f for f, called in pending.items() if not called]:
        for leaf in leaves:
            del pending[leaf]
            sizes[leaf] = max(expanded(calls[leaf]), 1)  # an empty one is still called
        for called in pending.values():
            called.difference_update(leaves)
    if pending:
        raise ModelError(
            "functions call each other in a circle: " + ", ".join(sorted(n for _, n in pending))
        )
    total = expanded(Counter((n.domain, n.op_type) for n in nodes(proto.graph.node)))
    if calls and total > _MAX_EXPANDED:
        raise ModelError(
            f"the functions of the model expand to {total:.3g} nodes, more than {_MAX_EXPANDED}"
        )


def graphs(node: onnx.NodeProto) -> Iterator[onnx.GraphProto]:
    """The bodies of an If, Loop, Scan ... node, without those inside of them."""
    for attribute in node.attribute:
        if attribute.HasField("g"):
            yield attribute.g
        yield from attribute.graphs


def nodes(some: Any) -> Iterator[onnx.NodeProto]:
    """Every node of a list of nodes, and of the bodies inside."""
    for node in some:
        yield node
        for attribute in node.attribute:
            if attribute.type in (5, 10):  # GRAPH, GRAPHS
                for graph in graphs(node):
                    yield from nodes(graph.node)
                break


def tensors(proto: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    """Every tensor of a model: initializers and attributes, in bodies and functions too."""
    yield from _graph_tensors(proto.graph)
    for function in proto.functions:
        yield from _node_tensors(function.node)
        yield from _attribute_tensors(function.attribute_proto)
    for training in proto.training_info:
        yield from _graph_tensors(training.initialization)
        yield from _graph_tensors(training.algorithm)


def _graph_tensors(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    yield from graph.initializer
    for sparse in graph.sparse_initializer:
        yield from (sparse.values, sparse.indices)
    yield from _node_tensors(graph.node)


def _node_tensors(some: Any) -> Iterator[onnx.TensorProto]:
    for node in some:
        if node.attribute:
            yield from _attribute_tensors(node.attribute)


def _attribute_tensors(some: Any) -> Iterator[onnx.TensorProto]:
    for attribute in some:
        kind = attribute.type
        if 0 < kind < 4 or 6 <= kind <= 8:  # numbers and strings, the common case
            continue
        if attribute.HasField("t"):
            yield attribute.t
        yield from attribute.tensors
        if attribute.HasField("sparse_tensor"):
            yield from (attribute.sparse_tensor.values, attribute.sparse_tensor.indices)
        for sparse in attribute.sparse_tensors:
            yield from (sparse.values, sparse.indices)
        if attribute.HasField("g"):
            yield from _graph_tensors(attribute.g)
        for graph in attribute.graphs:
            yield from _graph_tensors(graph)


class Model:
    """A model and the files that hold its weights.

    Attributes:
        proto: the model; large tensors are references that only this object resolves. Treat it
            as read-only; for a changed model, make another with `derive`.
        path: the file it was loaded from, or None.
        name: how messages call it: the file's name, also of what is derived from it.
        ignore_external_data: whether external tensors have no values.
    """

    def __init__(
        self,
        proto: onnx.ModelProto,
        *,
        path: str | None = None,
        directory: str | None = None,
        files: dict[str, DataFile] | None = None,
    ) -> None:
        self.proto = proto
        self.path = path
        self.name = os.path.basename(path) if path else proto.graph.name or "the model"
        self.ignore_external_data = False
        self._directory = directory
        self._files = files if files is not None else {}
        self._own = set(self._files)  # files that are not external data
        self._stamp = _stamp(path)
        self._session: tempfile.TemporaryDirectory[str] | None = None

    def derive(self, proto: onnx.ModelProto) -> Model:
        """A changed model whose tensors may refer to the data of this one."""
        other = Model(proto, directory=self._directory, files=self._files)
        other.name = self.name
        other.ignore_external_data = self.ignore_external_data
        other._own = self._own
        return other

    @property
    def opsets(self) -> dict[str, int]:
        """Domain to version; the standard domain is the empty string."""
        found = {
            "" if o.domain == "ai.onnx" else o.domain: o.version for o in self.proto.opset_import
        }
        return found or {"": 1}

    @property
    def external_files(self) -> dict[str, DataFile]:
        """Location to file, for the external data files that have been looked at."""
        return {k: f for k, f in self._files.items() if k not in self._own}

    def has_file(self, location: str) -> bool:
        """Whether the file is known already; the model's own file always is."""
        return location in self._files

    def is_own(self, location: str) -> bool:
        """Whether `location` is the model's own file, or memory, and no external data."""
        return location in self._own

    def is_data_file(self, path: str, location: str) -> bool:
        """Whether `path` is the external data file that `location` names."""
        if self._directory is None:
            return False
        return os.path.realpath(path) == os.path.realpath(os.path.join(self._directory, location))

    def file(self, location: str) -> DataFile:
        """The file that the references' `location` entry names.

        Raises:
            ModelError: it is missing or outside of the model's directory.
        """
        if location not in self._files:
            if self._directory is None:
                raise ModelError(
                    f"the weights lie in the external file {location!r}, but the model was given "
                    "without a path: name the directory with external_data_dir"
                )
            try:
                self._files[location] = DataFile.open(inside(self._directory, location, self.path))
            except ModelError as err:
                raise ModelError(f"the model's external data cannot be used: {err}") from None
        return self._files[location]

    def path_of(self, location: str) -> str | None:
        """The path of the file that `location` names; None where it has none, or lost it."""
        file = self.file(location)
        path = location if location in self._own else os.path.join(self._directory or "", location)
        return path if file.is_at(path) else None

    def locate(self, tensor: onnx.TensorProto) -> FileRange | None:
        """Where the content lies; None when it is in `tensor` itself.

        Raises:
            ModelError: the file is missing, is too short, or holds another number of bytes than
                type and dimensions need; or external data is ignored.
        """
        if tensor.data_location != tensor.EXTERNAL:
            return None
        entries = {e.key: e.value for e in tensor.external_data}
        location = entries.get("location", "")
        who = arrays.label(tensor)
        if self.ignore_external_data and location not in self._files:
            raise ModelError(f"{who} has no value, because external data is ignored")
        need = arrays.packed_size(arrays.dtype_of(tensor), arrays.shape_of(tensor))
        file = self.file(location)
        try:
            offset, length = int(entries.get("offset") or 0), int(entries.get("length") or need)
        except ValueError:
            raise ModelError(f"{who} has an offset or a length that is no number") from None
        where = "the model file" if location in self._own else f"the data file {location!r}"
        if offset < 0 or length < 0 or offset + length > file.size:
            raise ModelError(
                f"{who} claims bytes {offset} to {offset + length} of {where}, "
                f"which has {file.size}"
            )
        if length != need:
            raise ModelError(
                f"{who} has {length} bytes in {where}, but {arrays.dtype_of(tensor).label} of "
                f"shape {list(tensor.dims)} takes {need}"
            )
        return FileRange(location, offset, length)

    def array(self, tensor: onnx.TensorProto) -> arrays.Array:
        """The value of a tensor of this model.

        Returns:
            A read-only array, mapped where the content lies on disk, and then possibly not
            aligned. Elements of 4 and 2 bits are unpacked; strings are an object array of `str`.

        Raises:
            ModelError: the content is missing, or does not fit type and dimensions.
        """
        where = self.locate(tensor)
        if where is None:
            return arrays.decode(tensor)
        return arrays.decode(
            tensor, self.file(where.location).view[where.offset : where.offset + where.length]
        )

    def has_content(self, tensor: onnx.TensorProto) -> bool:
        """False for a weight that was stripped, or lies in external data that is ignored."""
        if tensor.data_location == tensor.EXTERNAL:
            if not self.ignore_external_data:
                return True
            return any(e.key == "location" and e.value in self._files for e in tensor.external_data)
        return not (tensor.doc_string.startswith(WEIGHTLESS) and not tensor.raw_data)

    def raw(self, tensor: onnx.TensorProto) -> bytes | memoryview:
        """The content as raw_data holds it: little-endian, packed. Reads it, does not map it."""
        where = self.locate(tensor)
        if where is not None:
            return self.file(where.location).read(where.offset, where.length)
        if tensor.HasField("raw_data"):
            return tensor.raw_data
        return arrays.encode(arrays.decode(tensor), arrays.dtype_of(tensor))

    def nbytes(self, tensor: onnx.TensorProto) -> int:
        """Bytes of the content, packed as ONNX stores it; reads nothing."""
        dtype = arrays.dtype_of(tensor)
        if dtype is DType.STRING:
            return sum(map(len, tensor.string_data))
        return arrays.packed_size(dtype, arrays.shape_of(tensor))

    def store(self, array: Any, name: str, dtype: DType | None = None) -> onnx.TensorProto:
        """A tensor with a new value for this model; a large one goes to a temporary file."""
        import onnx

        dtype = DType.of(array) if dtype is None else dtype
        if dtype is DType.STRING or array.nbytes < _SPILL_FROM:
            return arrays.to_tensor(array, name, dtype)
        if _SPILL not in self._files:
            self._files[_SPILL] = DataFile.temporary()
            self._own.add(_SPILL)
        data = arrays.encode(array, dtype)
        tensor = onnx.TensorProto(
            name=name, data_type=int(dtype), dims=array.shape, data_location="EXTERNAL"
        )
        for key, value in (
            ("location", _SPILL),
            ("offset", self._files[_SPILL].append(data)),
            ("length", len(data)),
        ):
            tensor.external_data.add(key=key, value=str(value))
        return tensor

    def to_proto(self) -> onnx.ModelProto:
        """A complete copy with all weights inside, of less than 2 GB."""
        import onnx

        proto = onnx.ModelProto()
        proto.ParseFromString(self.serialize())
        return proto

    def serialize(self) -> bytes:
        """The complete model as one protobuf message.

        Raises:
            ModelError: it would pass protobuf's limit of 2 GB.
        """
        from polytool.saving import embedded

        parts = embedded(self)
        return b"".join(
            self.file(c.location).read(c.offset, c.length) if isinstance(c, FileRange) else c
            for c in parts
        )

    def save(
        self,
        path: StrPath,
        *,
        external_data: bool | StrPath | None = None,
        size_threshold: int = EMBEDDED_FROM,
    ) -> None:
        """Write the model; see `polytool.saving.save`."""
        from polytool.saving import save

        save(self, path, external_data=external_data, size_threshold=size_threshold)

    @property
    def untouched(self) -> bool:
        """Whether this is what `path` holds now."""
        return self._stamp is not None and self._stamp == _stamp(self.path)

    def session_source(self) -> str | bytes:
        """What onnxruntime should load: the path where that is this model, else its bytes.

        A large changed model is written to a temporary directory that lives as long as this one.
        """
        beside = (
            self._directory is not None
            and self.path is not None
            and os.path.realpath(self._directory) == os.path.dirname(os.path.realpath(self.path))
        )
        if self.untouched and (beside or not self.external_files):
            assert self.path is not None
            return self.path
        if sum(self.nbytes(t) for t in tensors(self.proto)) < _MEMORY_SESSION:
            return self.serialize()
        if self._session is None:
            self._session = tempfile.TemporaryDirectory(prefix="polytool-")
            self.save(os.path.join(self._session.name, "model.onnx"))
        return os.path.join(self._session.name, "model.onnx")


def _stamp(path: str | None) -> tuple[int, ...] | None:
    """What tells whether a file is still the one that was read."""
    if path is None:
        return None
    try:
        status = os.stat(path)
    except OSError:
        return None
    return (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)
