"""Resize, GridSample, AffineGrid, RoiAlign, DeformConv, MaxUnpool, LRN."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from polytool.backends.native.cuda.buffers import View
from polytool.backends.native.cuda.elements import compute
from polytool.backends.native.cuda.lower_convolution import node_windows
from polytool.backends.native.cuda.recorder import Recorder, alone, given, lowering
from polytool.backends.native.kernels.spatial import Resize, Table
from polytool.backends.native.network import Layer
from polytool.backends.native.ops.resize import resize_tables
from polytool.errors import UnsupportedError
from polytool.tensors import DType


@lowering("Resize")
def resize(rec: Recorder, layer: Layer) -> None:
    """By tables that the host makes: for each dimension where a result reads, and how much."""
    node, (output,) = layer.nodes[0], layer.outputs
    x = rec.dense(rec.view(given(node, 0)))
    values = [rec.attribute(t) for t in [*node.inputs[1:], None, None, None][:3]]
    result = rec.output(output)
    if not result.count or not x.count:
        return
    attrs = dict(node.attrs)
    outside = float(attrs.pop("extrapolation_value", 0.0))
    tables = [Table(*t) for t in resize_tables(x.shape, *values, **attrs)]
    if len(tables) > 8:
        raise UnsupportedError("a Resize of more than eight dimensions")
    where, weights = Resize.join(tables)
    rounds = bool(attrs.get("antialias", 0)) and str(attrs.get("mode", "nearest")) != "nearest"
    held = [_known(rec, a) for a in (where, weights)]
    plan = Resize(x.dtype, rounds).plan(x.shape, tables, outside)
    rec.launch([plan], [x, *held, result])


def _known(rec: Recorder, value: np.ndarray[Any, Any]) -> View:
    key = ("host", value.dtype.str, value.shape, value.tobytes())
    return rec.constant(lambda: value, value.shape, DType.of(value), key)


_SAMPLE = """
typedef COORDINATE C;
DEVICE C reflected(C x, C low, C high) {
    const C span = high - low;
    if (span <= 0) return low;
    if (x >= low && x <= high) return x;
    const C beyond = x < low ? low - x : x - high;
    const C turns = floor(beyond / span), rest = beyond - turns * span;
    const bool near_end = (fmod(turns, (C)2) == 0) == (x < low);
    return near_end ? low + rest : high - rest;
}
DEVICE C keys(C d) {
    const C a = (C)-0.75;
    if (d <= 1) return ((a + 2) * d - (a + 3)) * d * d + 1;
    return d < 2 ? ((a * d - 5 * a) * d + 8 * a) * d - 4 * a : (C)0;
}
// the place that a neighbour stands for; negative where it counts as zero
DEVICE i64 settled(i64 i, i64 size, C low) {
#if PADDING == 0
    return i < 0 || i >= size ? -1 : i;
#elif PADDING == 2
    i = (i64)reflected((C)i, low, (C)(size - 1) - low);
#endif
    return min(max(i, (i64)0), size - 1);
}
"""


@lowering("GridSample")
def grid_sample(rec: Recorder, layer: Layer) -> None:
    """Nearest, linear or cubic neighbours of each place, in any number of dimensions."""
    node, (output,) = layer.nodes[0], layer.outputs
    x, grid = rec.view(given(node, 0)), rec.view(given(node, 1))
    rank = len(x.shape) - 2
    if rank > 3:
        raise UnsupportedError("a GridSample over more than three dimensions")
    mode = ("nearest", "linear", "cubic").index(str(node.attrs.get("mode", "linear")))
    padding = ("zeros", "border", "reflection").index(str(node.attrs.get("padding_mode", "zeros")))
    aligned = int(node.attrs.get("align_corners", 0))
    points = math.prod(grid.shape[1:-1])
    whole = x.dtype.is_integer or x.dtype is DType.BOOL
    body = """
        const i64 batch = at[0], channel = at[1], point = at[2];
        const C low = ALIGNED ? (C)0 : (C)-0.5;
        i64 first[RANK_];
        C part[RANK_];
        for (int d = 0; d < RANK_; d++) {
            const C g = (C)widen(grid[(batch * points + point) * RANK_ + RANK_ - 1 - d]);
            const C n = (C)size.step[d];
            C place = ALIGNED ? (g + 1) / 2 * (n - 1) : ((g + 1) * n - 1) / 2;
            if (MODE == 0) place = rint(place);
            const C high = n - 1 - low;
            if (PADDING == 1 && MODE != 2 && (place < low || place > high))
                place = place < 0 ? 0 : place > n - 1 ? n - 1 : place;
            if (PADDING == 2) place = reflected(place, low, high);
            const C base = MODE == 0 ? rint(place) : floor(place);
            first[d] = (i64)base;
            part[d] = place - base;
        }
        const T_x* image = x + (batch * channels + channel) * pixels;
        const int taps = MODE == 0 ? 1 : MODE == 1 ? 2 : 4;
        int corners = 1;
        for (int d = 0; d < RANK_; d++) corners *= taps;
        SUM sum = 0;
        for (int n = 0; n < corners; n++) {
            int rest = n;
            i64 from = 0;
            C weight = 1;
            bool inside = true;
            for (int d = 0; d < RANK_; d++) {
                int power = 1;
                for (int e = d + 1; e < RANK_; e++) power *= taps;
                const int tap = rest / power - (MODE == 2);
                rest %= power;
                const i64 i = settled(first[d] + tap, size.step[d], low);
                inside &= i >= 0;
                from = from * size.step[d] + i;
                if (MODE == 1) weight *= tap ? part[d] : 1 - part[d];
                if (MODE == 2) weight *= keys(fabs(part[d] - (C)tap));
            }
            if (inside) sum += (SUM)widen(image[from]) * (SUM)weight;
        }
        y[unit] = narrow<T_y>(sum);"""
    coordinate = "double" if grid.dtype is DType.DOUBLE else "float"
    total = "double" if DType.DOUBLE in (x.dtype, grid.dtype) or whole else "float"
    compute(
        rec, node.op, (x.shape[0], x.shape[1], points), {"x": x, "grid": grid},
        {"y": rec.output(output)}, body, functions=_SAMPLE,
        defines={
            "RANK_": rank, "MODE": mode, "PADDING": padding, "ALIGNED": aligned,
            "COORDINATE": coordinate, "SUM": total,
        },
        points=points, channels=x.shape[1], pixels=math.prod(x.shape[2:]), size=x.shape[2:],
    )  # fmt: skip


@lowering("AffineGrid")
def affine_grid(rec: Recorder, layer: Layer) -> None:
    """Where an affine map sends each position."""
    node, (output,) = layer.nodes[0], layer.outputs
    theta, shape = rec.view(given(node, 0)), rec.shape(output)
    rank, lengths = shape[-1], shape[1:-1]
    body = """
        R_y sum = 0;
        u32 rest = at[1];
        const T_theta* row = theta + ((i64)at[0] * RANK_ + at[2]) * (RANK_ + 1);
        for (int d = RANK_ - 1; d >= 0; d--) {
            const i64 n = size.step[d], i = rest % n;
            rest /= n;
            const double step = 2.0 / (double)max(n - ALIGNED, (i64)1);
            const double place = (ALIGNED ? -1.0 : step / 2 - 1) + step * (double)i;
            sum += (R_y)widen(narrow<T_theta>(place)) * widen(row[RANK_ - 1 - d]);
        }
        y[unit] = narrow<T_y>(sum + widen(row[RANK_]));"""
    compute(
        rec, node.op, (shape[0], math.prod(lengths), rank), {"theta": theta},
        {"y": rec.output(output)}, body,
        defines={"RANK_": rank, "ALIGNED": int(node.attrs.get("align_corners", 0))}, size=lengths,
    )  # fmt: skip


@lowering("RoiAlign")
def roi_align(rec: Recorder, layer: Layer) -> None:
    """Bilinear samples in each bin of each region, averaged or the largest weighted neighbour."""
    node, (output,) = layer.nodes[0], layer.outputs
    a = node.attrs
    x, rois, images = (rec.view(given(node, i)) for i in range(3))
    half = str(a.get("coordinate_transformation_mode", "half_pixel")) == "half_pixel"
    largest = str(a.get("mode", "avg")) == "max"
    body = """
        double edge[2][2];  // start and length of the region along height and width
        for (int d = 0; d < 2; d++) {
            const double shift = HALF ? 0.5 : 0.0;
            const double start = (double)widen(rois[at[0] * 4 + 1 - d]) * scale - shift;
            const double end = (double)widen(rois[at[0] * 4 + 3 - d]) * scale - shift;
            edge[d][0] = start;
            edge[d][1] = HALF ? end - start : fmax(end - start, 1.0);
        }
        const i64 bins[2] = {height, width}, sizes[2] = {rows, columns};
        i64 counts[2];
        for (int d = 0; d < 2; d++)
            counts[d] = ratio > 0 ? ratio : (i64)ceil(edge[d][1] / (double)bins[d]);
        const i64 number = min(max((i64)images[at[0]], (i64)0), count - 1);
        const T_x* image = x + (number * channels + at[1]) * rows * columns;
        double total = LARGEST ? -INFINITY : 0.0;
        for (i64 i = 0; i < counts[0]; i++)
            for (i64 j = 0; j < counts[1]; j++) {
                const i64 step[2] = {i, j}, bin[2] = {at[2], at[3]};
                i64 low[2], high[2];
                double near_[2], far_[2];
                for (int d = 0; d < 2; d++) {
                    const double size = edge[d][1] / (double)bins[d];
                    const double within = ((double)step[d] + 0.5) / (double)counts[d];
                    const double p = edge[d][0] + ((double)bin[d] + within) * size;
                    const bool valid = p >= -1 && p <= (double)sizes[d];
                    const double place = fmax(p, 0.0);
                    low[d] = min((i64)floor(place), sizes[d] - 1);
                    high[d] = min(low[d] + 1, sizes[d] - 1);
                    const double part = low[d] >= sizes[d] - 1 ? 0.0 : place - (double)low[d];
                    near_[d] = valid ? 1 - part : 0.0;
                    far_[d] = valid ? part : 0.0;
                }
                double sample = LARGEST ? -INFINITY : 0.0;
                for (int corner = 0; corner < 4; corner++) {
                    const i64 r = corner / 2 ? high[0] : low[0], c = corner % 2 ? high[1] : low[1];
                    const double u = corner / 2 ? far_[0] : near_[0];
                    const double w = corner % 2 ? far_[1] : near_[1];
                    const double v = (double)widen(image[r * columns + c]) * (u * w);
                    sample = LARGEST ? fmax(sample, v) : sample + v;
                }
                total = LARGEST ? fmax(total, sample) : total + sample;
            }
        const double samples = (double)(counts[0] * counts[1]);
        y[unit] = narrow<T_y>(samples > 0 ? (LARGEST ? total : total / samples) : 0.0);"""
    shape = rec.shape(output)
    compute(
        rec, node.op, shape, {"x": x, "rois": rois, "images": images}, {"y": rec.output(output)},
        body,
        defines={"HALF": int(half), "LARGEST": int(largest)},
        scale=float(a.get("spatial_scale", 1.0)), ratio=int(a.get("sampling_ratio", 0)),
        height=shape[2], width=shape[3], rows=x.shape[2], columns=x.shape[3],
        channels=x.shape[1], count=x.shape[0],
    )  # fmt: skip


@lowering("MaxRoiPool")
def max_roi_pool(rec: Recorder, layer: Layer) -> None:
    """The largest element of each bin; zero where a bin is empty."""
    node, (output,) = layer.nodes[0], layer.outputs
    x, rois = rec.view(given(node, 0)), rec.view(given(node, 1))
    shape = rec.shape(output)
    body = """
        i64 from[2], to[2];
        const i64 bins[2] = {height, width}, sizes[2] = {rows, columns}, bin[2] = {at[2], at[3]};
        for (int d = 0; d < 2; d++) {
            const i64 start = (i64)floor((double)widen(rois[at[0] * 5 + 2 - d]) * scale + 0.5);
            const i64 end = (i64)floor((double)widen(rois[at[0] * 5 + 4 - d]) * scale + 0.5);
            const float step = (float)max(end - start + 1, (i64)1) / (float)bins[d];
            from[d] = min(max((i64)floorf((float)bin[d] * step) + start, (i64)0), sizes[d]);
            to[d] = min(max((i64)ceilf((float)(bin[d] + 1) * step) + start, (i64)0), sizes[d]);
        }
        const i64 number = min(max((i64)widen(rois[at[0] * 5]), (i64)0), count - 1);
        const T_x* image = x + (number * channels + at[1]) * rows * columns;
        bool any = false;
        R_x best = 0;
        for (i64 i = from[0]; i < to[0]; i++)
            for (i64 j = from[1]; j < to[1]; j++) {
                const R_x v = widen(image[i * columns + j]);
                best = any ? propagating_max(best, v) : v;
                any = true;
            }
        y[unit] = narrow<T_y>(best);"""
    compute(
        rec, node.op, shape, {"x": x, "rois": rois}, {"y": rec.output(output)}, body,
        scale=float(node.attrs.get("spatial_scale", 1.0)), height=shape[2], width=shape[3],
        rows=x.shape[2], columns=x.shape[3], channels=x.shape[1],
        count=x.shape[0],
    )  # fmt: skip


@lowering("DeformConv")
def deform_conv(rec: Recorder, layer: Layer) -> None:
    """Windows that read at learned offsets, each scaled by a mask."""
    node, output = alone(layer, "a deformable convolution")
    x, w, offset = (rec.view(given(node, i)) for i in range(3))
    bias, mask = [*node.inputs[3:], None, None][:2]
    if len(x.shape) != 4:
        raise UnsupportedError("a deformable convolution that is not two-dimensional")
    where = node_windows(node, x.shape[2:], w.shape[2:])
    views = {"x": x, "w": w, "offset": offset}
    views |= {k: rec.view(t) for k, t in (("bias", bias), ("mask", mask)) if t is not None}
    groups, offsets = (int(node.attrs.get(k, 1)) for k in ("group", "offset_group"))
    body = f"""
        const i64 m = at[1], group = m / per_group, taps = kernel.step[0] * kernel.step[1];
        const i64 spot = (i64)at[2] * out.step[1] + at[3], spots = out.step[0] * out.step[1];
        R_x sum = 0;
        for (i64 c = 0; c < channels; c++) {{
            const i64 channel = group * channels + c, own = channel / (all / offsets);
            const T_x* image = x + ((i64)at[0] * all + channel) * size.step[0] * size.step[1];
            for (i64 tap = 0; tap < taps; tap++) {{
                const i64 base = ((i64)at[0] * offsets + own) * taps + tap;
                R_x place[2];
                i64 low[2];
                for (int d = 0; d < 2; d++) {{
                    const i64 k = d ? tap % kernel.step[1] : tap / kernel.step[1];
                    const i64 start = (i64)at[2 + d] * stride.step[d] - pad.step[d];
                    const R_x moved = widen(offset[(base * 2 + d) * spots + spot]);
                    place[d] = (R_x)(start + k * dilation.step[d]) + moved;
                    low[d] = (i64)floor(place[d]);
                }}
                R_x value = 0;
                for (int corner = 0; corner < 4; corner++) {{
                    const i64 r = low[0] + corner / 2, q = low[1] + corner % 2;
                    if (r < 0 || q < 0 || r >= size.step[0] || q >= size.step[1]) continue;
                    const R_x u = place[0] - (R_x)low[0], v = place[1] - (R_x)low[1];
                    const R_x weight = (corner / 2 ? u : 1 - u) * (corner % 2 ? v : 1 - v);
                    value += widen(image[r * size.step[1] + q]) * weight;
                }}
                {"value *= widen(mask[base * spots + spot]);" if mask is not None else ""}
                sum += value * widen(w[(m * channels + c) * taps + tap]);
            }}
        }}
        {"sum += widen(bias[m]);" if bias is not None else ""}
        y[unit] = narrow<T_y>(sum);"""
    compute(
        rec, node.op, rec.shape(output), views, {"y": rec.output(output)}, body,
        channels=w.shape[1], per_group=w.shape[0] // groups, all=x.shape[1], offsets=offsets,
        kernel=where.kernel, stride=where.strides, dilation=where.dilations, pad=where.before,
        size=where.size, out=where.out,
    )  # fmt: skip


@lowering("MaxUnpool")
def max_unpool(rec: Recorder, layer: Layer) -> None:
    """Zeros, then each element at its index; a larger output pads the natural one behind."""
    node, (output,) = layer.nodes[0], layer.outputs
    x, indices, shape = rec.view(given(node, 0)), rec.view(given(node, 1)), rec.shape(output)
    kernel = node.attrs["kernel_shape"]
    n = len(kernel)
    pads = node.attrs.get("pads") or [0] * 2 * n
    strides = node.attrs.get("strides") or [1] * n
    natural = (*x.shape[:2], *(
        (x.shape[2 + d] - 1) * strides[d] + kernel[d] - pads[d] - pads[n + d] for d in range(n)
    ))  # fmt: skip
    result = rec.output(output)
    compute(rec, "zeros", shape, {}, {"y": result}, "y[unit] = T_y();")
    body = """
        i64 rest = indices[unit], to = 0, step = 1;
        bool inside = true;
        for (int d = DIMS - 1; d >= 0; d--) {
            const i64 i = rest % natural.step[d];
            rest /= natural.step[d];
            inside &= i >= 0 && i < size.step[d];
            to += i * step;
            step *= size.step[d];
        }
        if (inside && rest == 0) y[to] = x[unit];"""
    compute(
        rec, node.op, (x.count,), {"x": x, "indices": indices}, {"y": result}, body,
        defines={"DIMS": len(shape)}, natural=natural, size=shape,
    )  # fmt: skip


@lowering("LRN")
def lrn(rec: Recorder, layer: Layer) -> None:
    """Divided by a power of the mean square over neighbouring channels."""
    node, (output,) = layer.nodes[0], layer.outputs
    x, a = rec.view(given(node, 0)), node.attrs
    shape = (x.shape[0], x.shape[1], math.prod(x.shape[2:]))
    body = """
        R_x total = 0;
        const i64 first = (i64)at[1] - (size - 1) / 2;
        for (i64 c = max(first, (i64)0); c < min(first + size, channels); c++) {
            const R_x v = widen(x[((i64)at[0] * channels + c) * inner + at[2]]);
            total += v * v;
        }
        const R_x base = (R_x)bias + (R_x)alpha / (R_x)size * total;
        y[unit] = narrow<T_y>(widen(x[unit]) / pow(base, (R_x)beta));"""
    compute(
        rec, node.op, shape, {"x": x}, {"y": rec.output(output)}, body,
        size=int(a["size"]), alpha=float(a.get("alpha", 1e-4)), beta=float(a.get("beta", 0.75)),
        bias=float(a.get("bias", 1.0)), channels=shape[1], inner=shape[2],
    )  # fmt: skip
