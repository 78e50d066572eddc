"""com.microsoft: operators that ONNX has adopted since, and a few small ones."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from polytool.backends.native.ops.microsoft_fused import MICROSOFT
from polytool.backends.native.ops.registry import Arg, Array, Node, limits, op, shape, upgrade
from polytool.errors import UnsupportedError

Dims = tuple[int, ...]


@upgrade("Trilu", since=1, domain=MICROSOFT)
def trilu(node: Node) -> Node:
    """Trilu-14."""
    return node.raised(domain="", version=14)


@upgrade("GatherND", since=1, domain=MICROSOFT)
def gather_nd(node: Node) -> Node:
    """GatherND-11, but for int32 indices, which our function takes as well."""
    return node.raised(domain="", version=13)


@upgrade("GridSample", since=1, domain=MICROSOFT)
def grid_sample(node: Node) -> Node:
    """GridSample-16."""
    return node.raised(domain="", version=16)


@upgrade("Unique", since=1, domain=MICROSOFT)
def unique(node: Node) -> Node:
    """Unique-11 in order of first occurrence; it has no output for that occurrence."""
    y, index, counts = [*node.outputs, "", ""][:3]
    return node.raised(domain="", version=11, outputs=[y, "", index, counts], attrs={"sorted": 0})


@upgrade("Pad", since=1, domain=MICROSOFT)
def pad(node: Node) -> list[Node]:
    """Pad-13, whose pads are a vector; here they may be one row."""
    pads = node.fresh("pads")
    flat = np.array([-1], dtype=np.int64)
    return [
        Node("Reshape", "", 13, [node.inputs[1], flat], [pads], {}, node.name),
        node.raised(domain="", version=13, inputs=[node.inputs[0], pads, *node.inputs[2:]]),
    ]


@upgrade("TransposeMatMul", since=1, domain=MICROSOFT)
def transpose_matmul(node: Node) -> Node:
    """FusedMatMul under its first name."""
    return node.raised(op="FusedMatMul")


def _only(node: Node, **defaults: Any) -> dict[str, Any]:
    """The attributes without those that must have their default."""
    for name, value in defaults.items():
        if node.attrs.get(name, value) != value:
            raise UnsupportedError(
                f"com.microsoft {node.op} {node.name or node.outputs[0]!r} has {name}="
                f"{node.attrs[name]}, of which only {value} is implemented: use --onnxrt"
            )
    return node.without(*defaults)


@upgrade("CausalConvWithState", since=1, domain=MICROSOFT)
def causal_conv_with_state(node: Node) -> Node:
    """CausalConvWithState-27 in one dimension, undilated, channels first."""
    attrs = _only(
        node, ndim=1, dilation=1, channels_last=0, state_window=0, state_update_capacity=0
    )
    return node.raised(domain="", version=27, attrs=attrs)


@upgrade("LinearAttention", since=1, domain=MICROSOFT)
def linear_attention(node: Node) -> Node:
    """LinearAttention-27."""
    return node.raised(domain="", version=27, attrs=_only(node, state_window=0))


@op("ExpandDims", since=1, domain=MICROSOFT, exact=True, host=(1,))
def expand_dims(xp: Any, x: Array, axis: Array) -> Array:
    """A new axis of length one."""
    return xp.expand_dims(x, int(np.asarray(axis).item()))


@shape("ExpandDims", domain=MICROSOFT)
def expand_dims_shape(x: Arg, axis: Arg) -> Dims | None:
    """One more dimension."""
    if axis.value is None:
        return None
    dims, place = list(x.shape), int(np.asarray(axis.value).item())
    dims.insert(place if place >= 0 else place + len(dims) + 1, 1)
    return tuple(dims)


@op("Range", since=1, domain=MICROSOFT, host=(0, 1, 2))
def arange(xp: Any, start: Array, limit: Array, delta: Array | None = None) -> Array:
    """From `start` up to but not including `limit`."""
    values = [np.asarray(v).item() for v in (start, limit)]
    step = 1 if delta is None else np.asarray(delta).item()
    count = max(int(np.ceil((values[1] - values[0]) / step)), 0)
    return xp.asarray((values[0] + np.arange(count) * step).astype(np.asarray(start).dtype))


@shape("Range", domain=MICROSOFT)
def arange_shape(start: Arg, limit: Arg, delta: Arg | None = None) -> Dims | None:
    """(count,)."""
    given = [start, limit, *([] if delta is None else [delta])]
    if any(a.value is None for a in given):
        return None
    first, last, step = [*(np.asarray(a.value).item() for a in given), 1][:3]
    return (max(int(np.ceil((last - first) / step)), 0),)


@op("Inverse", since=1, domain=MICROSOFT)
def inverse(xp: Any, x: Array) -> Array:
    """The inverse of the matrices in the last two axes."""
    return xp.linalg.inv(x)


@op("CDist", since=1, domain=MICROSOFT)
def cdist(xp: Any, a: Array, b: Array, *, metric: str = "sqeuclidean") -> Array:
    """(M, K): the distance of each row of `a` from each row of `b`."""
    squares = ((a[:, None] - b) ** 2).sum(axis=2)
    return squares if metric == "sqeuclidean" else xp.sqrt(squares)


@limits("CDist", domain=MICROSOFT)
def cdist_limits(given: Sequence[bool], *, metric: str = "sqeuclidean") -> str | None:
    """Two of SciPy's metrics."""
    if metric in ("sqeuclidean", "euclidean"):
        return None
    return f"metric {metric!r} is not implemented, only sqeuclidean and euclidean"


@shape("CDist", domain=MICROSOFT)
def cdist_shape(a: Arg, b: Arg, **_: Any) -> Dims:
    """(M, K)."""
    return (a.shape[0], b.shape[0])


@shape("Inverse", domain=MICROSOFT)
def inverse_shape(x: Arg) -> Dims:
    """Like the input."""
    return x.shape
