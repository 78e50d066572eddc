"""Recording kernels of one thread an element: what most rare operators are made of."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from polytool.backends.native.cuda.buffers import Dims, View
from polytool.backends.native.cuda.recorder import Recorder
from polytool.backends.native.kernels.indexed import Indexed, Scalar, kind
from polytool.backends.native.network import Layer, Node, Tensor


def compute(
    rec: Recorder,
    name: str,
    shape: Dims,
    inputs: Mapping[str, View],
    outputs: Mapping[str, View],
    body: str,
    *,
    functions: str = "",
    defines: Mapping[str, str | int] | None = None,
    **scalars: Scalar,
) -> None:
    """Record a kernel that runs `body` for each element of `shape`; see `Indexed`.

    Args:
        name: of the kernel, as profiles show it.
        inputs: by the names that the body uses; copied where they do not lie row-major.
        outputs: what the body writes; they must lie row-major.
        scalars: further values that the body uses: int, float, tuples of ints.
    """
    held = {key: rec.dense(view) for key, view in inputs.items()}
    views = {**held, **outputs}
    op = Indexed(
        name.lower(),
        tuple((key, view.dtype) for key, view in views.items()),
        len(outputs),
        len(shape),
        tuple((key, kind(value)) for key, value in scalars.items()),
        body,
        functions,
        tuple(sorted((defines or {}).items())),
    )
    rec.launch([op.plan(shape, scalars)], list(views.values()), writes=len(outputs))


def store(rec: Recorder, view: View, tensor: Tensor, factor: float = 1.0) -> None:
    """`view`, times a factor, as `tensor`, in its shape and type."""
    times = "" if factor == 1.0 else " * (R_x)factor"
    body = f"y[unit] = narrow<T_y>(widen(x[unit]){times});"
    compute(rec, "store", view.shape, {"x": view}, {"y": rec.output(tensor)}, body, factor=factor)


def run(
    rec: Recorder, node: Node, op: str, inputs: Sequence[Tensor | None], output: Tensor,
    version: int, **attrs: Any,
) -> None:  # fmt: skip
    """Record an operator of ONNX in the place of `node`."""
    step = dataclasses.replace(
        node, op=op, domain="", version=version, inputs=list(inputs), outputs=[output], attrs=attrs
    )
    rec.lower(Layer.single(step))


def each(rec: Recorder, view: View, shape: Dims) -> tuple[View, str]:
    """An operand that broadcasts to `shape`, and the index under which `unit` finds its value."""
    if view.count == 1:
        return view, "0"
    return view.broadcast(shape), "unit"
