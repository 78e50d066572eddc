"""A residual Add joins the normalisation of its sum.

* `Add(a, b) -> LayerNormalization | RMSNormalization [-> Cast]  =>  residual_norm`
* `Add(x, a) -> norm, Add(that, b) -> norm  =>  the second layer adds all three`

The normalisation sees the sum in float32; the sum is stored, rounded once, only where something
else reads it. Of several normalisations of one sum the first is taken. The Cast is one that the
lowering to a precision wrote, such as that in front of a network's output.

A residual stream gains an error with each sum that is stored. One that only the next residual Add
reads is added up again there, which reads and writes as much as storing it.

Refused: addends that are constants or not surely of one shape (an Add of a bias stays with its
product), two precisions, a mean or deviation that is asked for, a sum that is stored and large and
that a product's epilogue could add up: a GPU moves it through memory once less then.
"""

from __future__ import annotations

from dataclasses import replace

from polytool.backends.native.config import BuilderConfig
from polytool.backends.native.network import Layer, Network, Node, Tensor
from polytool.backends.native.passes.fuse_epilogue import ANCHORS
from polytool.backends.native.passes.match import NORMALIZATIONS
from polytool.backends.native.passes.result import PassResult
from polytool.backends.native.passes.sizes import LARGE, Sizes

_ADDS = 2  # of one layer


def fuse_residual_norms(network: Network, config: BuilderConfig) -> PassResult:
    """Fuse in `network` and in every body below it."""
    result = PassResult()
    sizes = Sizes(network, config)
    for graph in (network, *network.bodies()):
        _fuse(graph, sizes, result)
    return result


def residual_parts(layer: Layer) -> tuple[list[Tensor], Node]:
    """What a `residual_norm` layer adds up, in order, and the normalisation."""
    adds = _adds(layer)
    inside = {t for node in adds for t in node.writes()}
    addends = [t for node in adds for t in node.inputs if t is not None and t not in inside]
    return addends, layer.nodes[len(adds)]


def _adds(layer: Layer) -> list[Node]:
    return [node for node in layer.nodes if node.op == "Add"]


def _fuse(graph: Network, sizes: Sizes, result: PassResult) -> None:
    readers, leaving = graph.consumers(), {*graph.outputs}
    places = {t: i for i, layer in enumerate(graph.layers) for t in layer.outputs}
    products = _Products(graph, readers)
    fused: dict[Layer, Layer | None] = {}  # what stands for a layer; None: it joined an earlier one
    streams: dict[Tensor, Layer] = {}  # sums that one layer besides the normalisation reads
    for index, layer in enumerate(graph.layers):
        add = layer.nodes[0]
        reading = readers.get(layer.outputs[0], []) if add.op == "Add" else []
        after = next((x for x in reading if x.nodes[0].op in NORMALIZATIONS), None)
        if after is None:
            continue
        reason = _refusal(add, after.nodes[0], sizes)
        if reason is None and any(places.get(t, -1) >= index for t in after.inputs[1:]):
            reason = "the scale of the normalisation is computed later"
        if reason is not None:
            result.refused.append(f"{layer.name}: {reason}")
            continue
        total, leaves = layer.outputs[0], layer.outputs[0] in leaving
        kept = leaves or len(reading) > 1
        if kept and sizes.elements(total) >= LARGE and any(map(products.feed, layer.inputs)):
            result.refused.append(f"{layer.name}: the sum is large, and stays with its product")
            continue
        joined = [after, *_cast(after.outputs[0], readers, leaving)]
        stored = [total] if kept else []
        nodes = [*_summed(add, streams), *(x.nodes[0] for x in joined)]
        whole = Layer("residual_norm", nodes, [*stored, *joined[-1].outputs])
        if not leaves and len(reading) == 2 and len(_adds(whole)) < _ADDS:
            streams[total] = whole
        fused |= {layer: whole, **dict.fromkeys(joined)}
        result.changed += 1
    standing = (fused.get(layer, layer) for layer in graph.layers)
    graph.replace_layers(layer for layer in standing if layer is not None)


def _refusal(add: Node, norm: Node, sizes: Sizes) -> str | None:
    """Why the two nodes stay apart."""
    (total,), written = add.outputs, list(norm.writes())
    a, b = add.inputs
    assert a is not None and b is not None
    if a.constant is not None or b.constant is not None:
        return "an addend is a constant"
    if norm.inputs[0] is not total or total in norm.inputs[1:]:
        return "the sum is the scale of the normalisation"
    if len(written) > 1 or norm.outputs[0] is None:
        return "the normalisation also returns mean or deviation"
    if add.precision != norm.precision:
        return "two precisions"
    if any(t.container != "tensor" or t.place != written[0].place for t in (a, b, *add.writes())):
        return "two places"
    if not sizes.same(a, b):
        return "the addends are not surely of one shape"
    return None


class _Products:
    """Knows what only an Add reads of a product, be it behind pointwise operators."""

    def __init__(self, graph: Network, readers: dict[Tensor, list[Layer]]) -> None:
        self._makers = {t: layer for layer in graph.layers for t in layer.outputs}
        self._readers = readers

    def feed(self, tensor: Tensor) -> bool:
        """Whether a product's epilogue could add to `tensor` before it is stored."""
        while tensor in self._makers and len(self._readers[tensor]) == 1:
            node = self._makers[tensor].nodes[0]
            if node.op in ANCHORS:
                return True
            computed = [t for t in node.inputs if t is not None and t.constant is None]
            pointwise = node.operator is not None and node.operator.pointwise
            if not pointwise or len(computed) != 1:
                return False
            (tensor,) = computed
        return False


def _cast(
    normalized: Tensor, readers: dict[Tensor, list[Layer]], leaving: set[Tensor]
) -> list[Layer]:
    """The cast between float types, if there is one that alone reads what is normalised."""
    found = readers.get(normalized, [])
    if normalized in leaving or len(found) != 1:
        return []
    node, target = found[0].nodes[0], found[0].outputs[0]
    known = node.op == "Cast" and not node.sources and target.place == normalized.place
    return found if known and target.dtype is not None and target.dtype.is_float else []


def _summed(add: Node, streams: dict[Tensor, Layer]) -> list[Node]:
    """`add`, behind copies of the Adds whose sum it reads; that is no longer stored then."""
    total = next((t for t in add.inputs if t in streams), None)
    if total is None or streams[total].precision != add.precision:
        return [add]
    layer = streams.pop(total)
    layer.outputs.remove(total)
    copies: dict[Tensor | None, Tensor | None] = {
        t: replace(t, name=f"{t.name}:again") for node in _adds(layer) for t in node.writes()
    }
    return [
        replace(
            node,
            inputs=[copies.get(t, t) for t in node.inputs],
            outputs=[copies.get(t, t) for t in node.outputs],
        )
        for node in (*_adds(layer), add)
    ]
