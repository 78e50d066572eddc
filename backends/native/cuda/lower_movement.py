"""Operators that only move elements: views where they can be, copies where they must."""

from __future__ import annotations

import dataclasses

import numpy as np

from polytool.backends.native.cuda.buffers import View
from polytool.backends.native.cuda.recorder import Recorder, lowering
from polytool.backends.native.kernels.pointwise import copy
from polytool.backends.native.kernels.spatial import Pad
from polytool.backends.native.network import Layer, Tensor
from polytool.backends.native.tactics.numpy_generic import bind
from polytool.errors import UnsupportedError
from polytool.tensors import DType


def _source(rec: Recorder, layer: Layer) -> View:
    tensor = layer.nodes[0].inputs[0]
    assert tensor is not None
    return rec.view(tensor)


@lowering("Reshape", "Flatten", "Squeeze", "Unsqueeze", "Identity", "ExpandDims")
def reshape(rec: Recorder, layer: Layer) -> None:
    """A view; a dense copy first where the elements do not lie in order."""
    source, (output,) = _source(rec, layer), layer.outputs
    shape = rec.shape(output)
    view = source.reshaped(shape)
    if view is None:
        view = rec.dense(source).reshaped(shape)
        assert view is not None
    rec.define(output, view)


@lowering("AlignAxis", domain="polytool")
def align_axis(rec: Recorder, layer: Layer) -> None:
    """The second input under another shape."""
    (node,) = layer.nodes
    rest = dataclasses.replace(node, op="Reshape", domain="", inputs=node.inputs[1:])
    reshape(rec, Layer.single(rest))


@lowering("Transpose")
def transpose(rec: Recorder, layer: Layer) -> None:
    """A view: whoever needs the elements in order copies them."""
    source = _source(rec, layer)
    perm = layer.nodes[0].attrs.get("perm") or list(range(len(source.shape)))[::-1]
    rec.define(layer.outputs[0], source.permuted(perm))


@lowering("Expand")
def expand(rec: Recorder, layer: Layer) -> None:
    """A view that repeats."""
    rec.define(layer.outputs[0], _source(rec, layer).broadcast(rec.shape(layer.outputs[0])))


@lowering("Slice")
def slice_(rec: Recorder, layer: Layer) -> None:
    """A view with other strides."""
    view = _source(rec, layer)
    starts, ends, axes, steps = (
        rec.attribute(t) for t in [*layer.nodes[0].inputs[1:], None, None][:4]
    )
    count = len(starts)
    axes = np.arange(count) if axes is None else axes
    steps = np.ones(count, np.int64) if steps is None else steps
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        where = int(axis) % len(view.shape)
        chosen = range(view.shape[where])[slice(int(start), _end(int(end), int(step)), int(step))]
        view = view.sliced(where, chosen.start, len(chosen), chosen.step)
    rec.define(layer.outputs[0], view)


def _end(end: int, step: int) -> int | None:
    return None if step < 0 and end <= -(1 << 31) else end


@lowering("Split")
def split(rec: Recorder, layer: Layer) -> None:
    """Views."""
    node, view = layer.nodes[0], _source(rec, layer)
    axis = int(node.attrs.get("axis", 0)) % len(view.shape)
    start = 0
    for tensor in node.outputs:
        if tensor is None:
            raise UnsupportedError("a Split with an unused part")
        size = rec.shape(tensor)[axis]
        rec.define(tensor, view.sliced(axis, start, size))
        start += size


@lowering("Concat")
def concat(rec: Recorder, layer: Layer) -> None:
    """Each input is copied into its part of the result, which lies like the first of them."""
    node, (output,) = layer.nodes[0], layer.outputs
    views = [rec.view(t) for t in node.inputs if t is not None]
    like = next((v for v in views if v.is_packed and v.count > 1), None)
    result = rec.output(output, like.order if like is not None else None)
    axis = int(node.attrs["axis"]) % len(result.shape)
    start = 0
    for view in views:
        part = result.sliced(axis, start, view.shape[axis])
        start += view.shape[axis]
        if view.count:
            kernel, source, target = copy(view.dtype), [view.operand], [part.operand]
            pattern = kernel.pattern(view.shape, source, target)
            plan = kernel.plan(view.shape, source, target, pattern)
            rec.launch([plan], [view.whole, result])


@lowering("Shape", "Size")
def shape_of(rec: Recorder, layer: Layer) -> None:
    """A constant, once the shape is known."""
    (node,), (output,) = layer.nodes, layer.outputs
    assert node.inputs[0] is not None
    dims = rec.shape(node.inputs[0])
    known(rec, output, np.asarray(bind(node)(np.broadcast_to(np.zeros((), np.int8), dims))))


def known(rec: Recorder, output: Tensor, value: np.ndarray) -> None:
    """`output` is a value that the host knows."""
    key = ("host", value.dtype.str, value.shape, value.tobytes())
    rec.define(output, rec.constant(lambda: value, value.shape, DType.of(value), key))


@lowering("ConstantOfShape")
def constant_of_shape(rec: Recorder, layer: Layer) -> None:
    """One element that is repeated."""
    (node,), (output,) = layer.nodes, layer.outputs
    assert output.dtype is not None
    value = np.asarray(bind(node)(np.ones(1, np.int64))).astype(output.dtype.numpy)
    key = ("host", value.dtype.str, value.shape, value.tobytes())
    one = rec.constant(lambda: value, value.shape, output.dtype, key)
    rec.define(output, one.broadcast(rec.shape(output)))


@lowering("HannWindow", "HammingWindow", "BlackmanWindow", "MelWeightMatrix")
def window(rec: Recorder, layer: Layer) -> None:
    """The host knows all that decides the value."""
    (node,), (output,) = layer.nodes, layer.outputs
    assert output.dtype is not None
    arguments = [rec.attribute(t) for t in node.inputs]
    known(rec, output, np.asarray(bind(node)(*arguments)).astype(output.dtype.numpy))


@lowering("DepthToSpace", "SpaceToDepth")
def blocks(rec: Recorder, layer: Layer) -> None:
    """A view with more dimensions, turned, and copied to fewer."""
    (node,), view = layer.nodes, _source(rec, layer)
    n, c, h, w = view.shape
    b, column_first = int(node.attrs["blocksize"]), node.attrs.get("mode", "DCR") == "DCR"
    if node.op == "DepthToSpace":
        parts = (n, b, b, c // (b * b), h, w) if column_first else (n, c // (b * b), b, b, h, w)
        order = (0, 3, 4, 1, 5, 2) if column_first else (0, 1, 4, 2, 5, 3)
    else:
        parts = (n, c, h // b, b, w // b, b)
        order = (0, 3, 5, 1, 2, 4) if column_first else (0, 1, 3, 5, 2, 4)
    split = view.reshaped(parts) or rec.dense(view).reshaped(parts)
    assert split is not None
    turned = rec.dense(split.permuted(order)).reshaped(rec.shape(layer.outputs[0]))
    assert turned is not None
    rec.define(layer.outputs[0], turned)


@lowering("Tile")
def tile(rec: Recorder, layer: Layer) -> None:
    """A view that repeats along dimensions of its own, copied."""
    view, shape = _source(rec, layer), rec.shape(layer.outputs[0])
    if 0 in view.shape or 0 in shape:
        rec.output(layer.outputs[0])
        return
    counts = [whole // size for whole, size in zip(shape, view.shape, strict=True)]
    apart = view.reshaped(tuple(d for size in view.shape for d in (1, size)))
    assert apart is not None
    wide = apart.broadcast(
        tuple(d for c, s in zip(counts, view.shape, strict=True) for d in (c, s))
    )
    whole = rec.dense(wide).reshaped(shape)
    assert whole is not None
    rec.define(layer.outputs[0], whole)


@lowering("Pad")
def pad(rec: Recorder, layer: Layer) -> None:
    """Padding and cropping; the constant may lie on the device."""
    (node,), (output,), view = layer.nodes, layer.outputs, _source(rec, layer)
    pads, constant, axes = [*node.inputs[1:], None, None][:3]
    given, rank = rec.attribute(pads).reshape(-1).tolist(), len(view.shape)
    chosen = (
        range(rank) if axes is None else [int(a) % rank for a in rec.attribute(axes).reshape(-1)]
    )
    before, after = [0] * rank, [0] * rank
    for i, axis in enumerate(chosen):
        before[axis], after[axis] = given[i], given[len(given) // 2 + i]
    mode = str(node.attrs.get("mode", "constant"))
    cropped, extra = view, []
    if mode != "constant":  # the pattern repeats what is left after cropping
        for axis, (b, a) in enumerate(zip(before, after, strict=True)):
            start, stop = max(0, -b), view.shape[axis] - max(0, -a)
            cropped = cropped.sliced(axis, start, stop - start)
        before, after = [max(0, b) for b in before], [max(0, a) for a in after]
    elif constant is not None and rec.view(constant).count:
        extra = [rec.dense(rec.view(constant))]
    kernel = Pad(view.dtype, mode, bool(extra))
    plan = kernel.plan(cropped.shape, before, after)
    rec.launch([plan], [rec.dense(cropped), *extra, rec.output(output)])


@lowering("CenterCropPad")
def center_crop_pad(rec: Recorder, layer: Layer) -> None:
    """A Pad with zeros whose amounts follow from the shapes."""
    view, shape = _source(rec, layer), rec.shape(layer.outputs[0])
    before, after = [], []
    for have, want in zip(view.shape, shape, strict=True):
        less = have - want
        front = -(less // 2) if less >= 0 else -less // 2
        before.append(front)
        after.append(-less - front)
    plan = Pad(view.dtype).plan(view.shape, before, after)
    rec.launch([plan], [rec.dense(view), rec.output(layer.outputs[0])])


@lowering("Dropout", reads=(1, 2))
def dropout(rec: Recorder, layer: Layer) -> None:
    """Nothing happens at inference; what training drops is decided on the host."""
    (node,), view = layer.nodes, _source(rec, layer)
    ratio, training = [*node.inputs[1:], None, None][:2]
    if training is not None and bool(rec.attribute(training).reshape(-1)[0]):
        drops = ratio is None or float(rec.attribute(ratio).reshape(-1)[0]) != 0.0
        if drops:
            raise UnsupportedError("random numbers come from the host")
    for tensor, output in zip(node.outputs, (view, None), strict=False):
        if tensor is None:
            continue
        if output is not None:
            rec.define(tensor, output)
        else:
            one = rec.constant(lambda: np.ones((), bool), (), DType.BOOL, ("host", "true"))
            rec.define(tensor, one.broadcast(view.shape))


@lowering("BitCast")
def bit_cast(rec: Recorder, layer: Layer) -> None:
    """The same memory read as another type; types below a byte hold their bits differently."""
    view, (output,) = _source(rec, layer), layer.outputs
    assert output.dtype is not None
    if output.dtype.bits < 8:
        raise UnsupportedError("a BitCast of less than a byte")
    rec.define(output, View(view.storage, output.dtype, view.shape, view.steps, view.offset))
