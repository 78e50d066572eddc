"""Recording kernels of one thread an element: what most rare operators are made of."""

from __future__ import annotations

from collections.abc import Mapping

from polytool.backends.native.cuda.buffers import Dims, View
from polytool.backends.native.cuda.recorder import Recorder
from polytool.backends.native.kernels.indexed import Indexed, Scalar, kind


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


def each(rec: Recorder, view: View, shape: Dims) -> tuple[View, str]:
    """An operand that broadcasts to `shape`, and the index under which `unit` finds its value."""
    if view.count == 1:
        return view, "0"
    return view.broadcast(shape), "unit"
