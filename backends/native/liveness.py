"""How much memory a network needs at least, whatever plans its arena."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from polytool.backends.native.memory import Lifetime, lower_bound
from polytool.backends.native.network import Network, Tensor
from polytool.backends.native.shapes import probe


def liveness_bound(network: Network, shapes: Mapping[str, Sequence[int]]) -> int:
    """The most bytes of tensors that are alive at once, run layer by layer in the plan's order.

    Inputs live from the start and outputs to the end. Constants, what is known on the host, and
    tensors whose shapes data decides do not count; nor do bodies of control flow.

    Args:
        network: unfused, for a bound that does not depend on fusion.
        shapes: those of the inputs that are not static.
    """
    (walker,) = probe(network, [{name: tuple(shape) for name, shape in shapes.items()}])
    last: dict[Tensor, int] = {}
    first: dict[Tensor, int] = dict.fromkeys(network.inputs, -1)
    for index, layer in enumerate(network.layers):
        last.update(dict.fromkeys(layer.inputs, index))
        first.update({t: index for t in layer.outputs if t not in first})
    last.update(dict.fromkeys(network.outputs, len(network.layers)))
    lives = []
    for tensor, start in first.items():
        shape = walker.shapes.get(tensor)
        if shape is None or tensor in walker.values or tensor.dtype is None:
            continue
        size = tensor.dtype.bits // 8
        for dim in shape:
            size *= dim
        lives.append(Lifetime(size, start, last.get(tensor, start)))
    return lower_bound(lives)
