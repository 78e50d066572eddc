"""Models without weights, small enough to share, and back to ones that run.

The marks are Polygraphy's, so that either tool restores what the other has stripped.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
from onnx import TensorProto

from polytool.arrays import dtype_of
from polytool.model import WEIGHTLESS, Model, Source
from polytool.patterns import check_used
from polytool.surgeon.constants import lift_constants
from polytool.surgeon.graph import Value, Workspace
from polytool.surgeon.gs_graph import open_sound
from polytool.surgeon.report import Report
from polytool.surgeon.sparsity import candidates, is_sparse, pruned

_SPARSE = "SPARSE_2_4"
_PRODUCTS = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})
_SMALLEST = 1024  # bytes; smaller tensors are as likely shapes, axes or scales


@dataclass(frozen=True)
class Rewritten:
    """A model with other weights.

    Attributes:
        model: the result.
        weights: names of the initializers that were stripped or restored.
        nbytes: how many bytes they had, or have.
    """

    model: Model
    weights: tuple[str, ...]
    nbytes: int


def strip_weights(source: Source, *, exclude: Collection[str] = ()) -> Rewritten:
    """Take the content of floating-point weights out of a model.

    Large ones go, and of products and convolutions those of any size. Type, shape, and whether a
    weight is 2:4 sparse, stay. Integers stay, because indices and shapes decide what a model does.

    Args:
        source: what `polytool.model.load` takes.
        exclude: initializers to leave as they are.

    Raises:
        UsageError: `exclude` names an initializer that does not exist.
    """
    workspace = Workspace(open_sound(source))
    lift_constants(workspace, Report())
    model = workspace.model
    every = [v for graph in workspace.graphs for v in graph.constants]
    check_used(dict.fromkeys(exclude), [v.name for v in every], "an exclusion")
    reduced = candidates(workspace)
    names: list[str] = []
    total = 0
    for value in every:
        tensor = value.tensor
        if tensor is None or value.name in exclude or not _is_weight(model, value, tensor):
            continue
        weight = reduced.get(value)
        sparse = (
            weight is not None and not weight.reason and is_sparse(model.array(tensor), weight.axis)
        )
        value.tensor = TensorProto(
            name=value.name,
            data_type=tensor.data_type,
            dims=tensor.dims,
            doc_string=f"{WEIGHTLESS}/{_SPARSE if sparse else ''}",
            raw_data=b"",
        )
        names.append(value.name)
        total += model.nbytes(tensor)
    proto = workspace.to_model().proto
    if names:
        proto.doc_string = "-".join(filter(None, [proto.doc_string, WEIGHTLESS]))
    return Rewritten(model.derive(proto), tuple(names), total)


def _is_weight(model: Model, value: Value, tensor: TensorProto) -> bool:
    dtype = value.dtype
    if dtype is None or not dtype.is_float or not tensor.dims or not model.has_content(tensor):
        return False
    return model.nbytes(tensor) >= _SMALLEST or any(
        user.op in _PRODUCTS and not user.domain for user in value.used_by()
    )


def reconstruct_weights(source: Source, *, seed: int = 0) -> Rewritten:
    """Give a stripped model random weights again, 2:4 sparse where they were.

    Args:
        source: what `polytool.model.load` takes.
        seed: the same seed gives the same weights.
    """
    workspace = Workspace(open_sound(source))
    lift_constants(workspace, Report())
    model = workspace.model
    reduced = candidates(workspace)
    names: list[str] = []
    total = 0
    for graph in workspace.graphs:
        for value in graph.constants:
            tensor = value.tensor
            if tensor is None or not tensor.doc_string.startswith(WEIGHTLESS):
                continue
            dtype, shape = dtype_of(tensor), tuple(tensor.dims)
            rng = np.random.default_rng([seed, len(names)])
            # Scaled so that activations keep their size from layer to layer.
            fan_in = max(int(np.prod(shape)) // max(shape), 1) if shape else 1
            array = (rng.standard_normal(shape, np.float32) / np.sqrt(fan_in)).astype(dtype.numpy)
            if tensor.doc_string.endswith(_SPARSE) and value in reduced:
                array = pruned(array, reduced[value].axis)
            value.tensor = model.store(array, value.name, dtype)
            names.append(value.name)
            total += model.nbytes(value.tensor)
    proto = workspace.to_model().proto
    parts = [p for p in proto.doc_string.split("-") if p != WEIGHTLESS]
    proto.doc_string = "-".join(parts)
    return Rewritten(model.derive(proto), tuple(names), total)
