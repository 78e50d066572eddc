"""A model as onnxruntime loads it fastest: its graph as bytes, its weights mapped from their files.

onnxruntime reads a model file whole, which doubles the memory of embedded weights and takes
seconds a gigabyte; given references into the very same file it maps them instead. References must
be relative to a directory, so they are all relative to the root of the file system.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

import onnx

from polytool.model import Model, load, tensors

_FOLDER = "session.model_external_initializers_file_folder_path"


@dataclass(frozen=True)
class Source:
    """A model for onnxruntime.

    Attributes:
        proto: the model; large weights are references relative to `folder`. Read-only.
        folder: where references begin; None where there are none.
    """

    proto: onnx.ModelProto
    folder: str | None

    @property
    def entries(self) -> dict[str, str]:
        """The session options that make references resolve."""
        return {} if self.folder is None else {_FOLDER: self.folder}


def source_of(model: Model) -> Source:
    """Point every reference of `model` at its file, or embed the weights where none has one.

    Raises:
        ModelError: weights are missing.
    """
    paths = _paths(model)
    if paths is None:
        where = model.session_source()
        if isinstance(where, bytes):
            return Source(onnx.ModelProto.FromString(where), None)
        model = load(where)
        paths = _paths(model)
        assert paths is not None, "a model just loaded from a file has files"
    if not paths:
        return Source(model.proto, None)
    folder = os.path.splitdrive(next(iter(paths.values())))[0] + os.sep
    proto = onnx.ModelProto()
    proto.CopyFrom(model.proto)
    for tensor in tensors(proto):
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = os.path.relpath(paths[entry.value], folder)
    return Source(proto, folder)


def _paths(model: Model) -> dict[str, str] | None:
    """Location to path of every file that is referred to; None where one is not on disk as read."""
    paths: dict[str, str] = {}
    for tensor in tensors(model.proto):
        if tensor.data_location != tensor.EXTERNAL:
            continue
        location = next((e.value for e in tensor.external_data if e.key == "location"), "")
        if location in paths:
            continue
        model.locate(tensor)
        path = model.path_of(location)
        if path is None:
            return None
        paths[location] = os.path.realpath(path)
    return paths
