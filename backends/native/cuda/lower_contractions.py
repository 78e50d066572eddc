"""Products in their general forms: vectors, sums to add, Einsum, Det, Fourier transforms."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np

from polytool.backends.native.cuda.buffers import View
from polytool.backends.native.cuda.elements import compute, each, store
from polytool.backends.native.cuda.recorder import Recorder, alone, given, lowering
from polytool.backends.native.kernels.source import compute_type
from polytool.backends.native.network import Layer, Node, Tensor
from polytool.backends.native.ops.linear import contraction, labels
from polytool.errors import UnsupportedError
from polytool.tensors import DType

_REDUCED = (DType.FLOAT16, DType.BFLOAT16)


def as_tensor(rec: Recorder, view: View, name: str = "operand") -> Tensor:
    """A tensor between the kernels of one layer that lies in `view`."""
    tensor = rec.temporary(view.dtype, view.shape, name)
    rec.define(tensor, view)
    return tensor


def shaped(rec: Recorder, view: View, shape: tuple[int, ...]) -> View:
    """`view` under another shape, copied where that must be."""
    found = view.reshaped(shape)
    if found is None:
        found = rec.dense(view).reshaped(shape)
    assert found is not None
    return found


def matmul(rec: Recorder, node: Node, a: View, b: View, dtype: DType) -> View:
    """The product of two views of at least two dimensions, as the layers of MatMul compute it."""
    batch = tuple(np.broadcast_shapes(a.shape[:-2], b.shape[:-2]))
    result = rec.temporary(dtype, (*batch, a.shape[-2], b.shape[-1]), "product")
    inputs: list[Tensor | None] = [as_tensor(rec, a), as_tensor(rec, b)]
    product = dataclasses.replace(
        node, op="MatMul", domain="", version=13, inputs=inputs, outputs=[result], attrs={}
    )
    rec.lower(Layer.single(product))
    return rec.view(result)


def sums_dtype(dtype: DType) -> DType:
    """The type in which a product is kept before it is rounded."""
    return DType.FLOAT if dtype in _REDUCED else dtype


@lowering("MatMul", "FusedMatMul", general=True)
def matrix_product(rec: Recorder, layer: Layer) -> None:
    """Vectors as matrices of one row or column, transposed batches, whole numbers."""
    node, output = alone(layer, "a general product")
    a, b = rec.view(given(node, 0)), rec.view(given(node, 1))
    for name, batches in (("A", "transBatchA"), ("B", "transBatchB")):
        view = a if name == "A" else b
        rank = len(view.shape)
        order = list(range(rank))
        if node.attrs.get(batches, 0):
            order = [*order[1:-1], order[0], order[-1]]
        if node.attrs.get(f"trans{name}", 0) and rank > 1:
            order[-2:] = order[:-3:-1]
        view = view.permuted(order)
        a, b = (view, b) if name == "A" else (a, view)
    wide_a = a if len(a.shape) > 1 else shaped(rec, a, (1, *a.shape))
    wide_b = b if len(b.shape) > 1 else shaped(rec, b, (*b.shape, 1))
    alpha = float(node.attrs.get("alpha", 1.0))
    changed = wide_a is not a or wide_b is not b or node.op == "FusedMatMul"
    if changed and a.dtype.is_float:
        product = matmul(rec, node, wide_a, wide_b, sums_dtype(a.dtype))
        store(rec, shaped(rec, product, rec.shape(output)), output, alpha)
        return
    _naive(rec, node, wide_a, wide_b, output, alpha)


def _naive(rec: Recorder, node: Node, a: View, b: View, output: Tensor, alpha: float) -> None:
    """A thread an element; for types that no other product takes."""
    (m, k), n = a.shape[-2:], b.shape[-1]
    batch = tuple(np.broadcast_shapes(a.shape[:-2], b.shape[:-2]))
    views = {"a": a.broadcast((*batch, m, k)), "b": b.broadcast((*batch, k, n))}
    acc = compute_type(a.dtype)
    factor = "" if alpha == 1.0 else " * (R_y)alpha"
    body = f"""
        {acc} sum = 0;
        for (i64 i = 0; i < k; i++)
            sum += widen(a[((i64)at[0] * m + at[1]) * k + i])
                * widen(b[((i64)at[0] * k + i) * n + at[2]]);
        y[unit] = narrow<T_y>(sum{factor});"""
    compute(
        rec, node.op, (math.prod(batch), m, n), views, {"y": rec.output(output)}, body,
        m=m, k=k, n=n, alpha=alpha,
    )  # fmt: skip


@lowering("Gemm", general=True)
def gemm(rec: Recorder, layer: Layer) -> None:
    """The product, then what is added to it."""
    node, output = alone(layer, "a general product")
    a, b = rec.view(given(node, 0)), rec.view(given(node, 1))
    a = a.permuted((1, 0)) if node.attrs.get("transA", 0) else a
    b = b.permuted((1, 0)) if node.attrs.get("transB", 0) else b
    shape = (a.shape[0], b.shape[1])
    if a.dtype.is_float:
        product = matmul(rec, node, a, b, sums_dtype(a.dtype))
    else:
        sums = rec.temporary(a.dtype, shape, "product")
        _naive(rec, node, a, b, sums, 1.0)
        product = rec.view(sums)
    added = node.inputs[2] if len(node.inputs) > 2 else None
    views, term = {"x": product}, ""
    if added is not None:
        views["c"], at = each(rec, rec.view(added), shape)
        term = f" + (R_x)beta * widen(c[{at}])"
    body = f"y[unit] = narrow<T_y>((R_x)alpha * x[unit]{term});"
    compute(
        rec, node.op, shape, views, {"y": rec.output(output)}, body,
        alpha=float(node.attrs.get("alpha", 1.0)), beta=float(node.attrs.get("beta", 1.0)),
    )  # fmt: skip


@lowering("Einsum")
def einsum(rec: Recorder, layer: Layer) -> None:
    """Two operands as a batched product where they allow it, else a sum a thread."""
    node, output = alone(layer, "an Einsum")
    views = [rec.view(given(node, i)) for i in range(len(node.inputs))]
    operands, result = labels(str(node.attrs["equation"]), tuple(len(v.shape) for v in views))
    if (
        len(views) == 2
        and views[0].dtype.is_float
        and _as_product(rec, node, views, operands, result)
    ):
        return
    sizes: dict[str, int] = {}
    for term, view in zip(operands, views, strict=True):
        for label, size in zip(term, view.shape, strict=True):
            sizes[label] = max(size, sizes.get(label, 0)) if size != 1 else sizes.get(label, size)
    summed = [c for c in sizes if c not in result]
    if len(summed) > 8 or len(views) > 8:
        raise UnsupportedError("an Einsum over more than eight sums")
    names = [f"x{i}" for i in range(len(views))]
    acc = compute_type(views[0].dtype)
    scalars: dict[str, Any] = {"sums": tuple(sizes[c] for c in summed)}
    lines, terms = [], []
    for name, term, view in zip(names, operands, views, strict=True):
        steps = tuple(math.prod(view.shape[d + 1 :]) for d in range(len(view.shape)))

        def step(
            label: str, term: str = term, view: View = view, steps: tuple[int, ...] = steps
        ) -> int:
            return sum(
                s for c, s, n in zip(term, steps, view.shape, strict=True) if c == label and n > 1
            )

        scalars[f"{name}_out"] = tuple(step(c) for c in result) or (0,)
        scalars[f"{name}_sum"] = tuple(step(c) for c in summed) or (0,)
        lines.append(f"i64 {name}_at = 0;")
        lines += [f"{name}_at += at[{d}] * {name}_out.step[{d}];" for d in range(len(result))]
        terms.append(f"widen({name}[{name}_at + {name}_more])")
    moves = "".join(f"i64 {n}_more = 0;" for n in names)
    steps_code = "".join(f"{n}_more += index * {n}_sum.step[d];" for n in names)
    body = f"""
        {" ".join(lines)}
        {acc} sum = 0;
        i64 count = 1;
        for (int d = 0; d < {len(summed)}; d++) count *= sums.step[d];
        for (i64 i = 0; i < count; i++) {{
            {moves}
            i64 rest = i;
            for (int d = {len(summed) - 1}; d >= 0; d--) {{
                const i64 index = rest % sums.step[d];
                rest /= sums.step[d];
                {steps_code}
            }}
            sum += {" * ".join(terms)};
        }}
        y[unit] = narrow<T_y>(sum);"""
    compute(
        rec, node.op, rec.shape(output), dict(zip(names, views, strict=True)),
        {"y": rec.output(output)}, body, **scalars,
    )  # fmt: skip


def _as_product(
    rec: Recorder, node: Node, views: list[View], operands: tuple[str, ...], result: str
) -> bool:
    """Two operands without repeated or lonely labels as one batched product of matrices."""
    plan = contraction(*operands, result)
    a, b = views
    if len(set(operands[0])) != len(a.shape) or len(set(operands[1])) != len(b.shape):
        return False
    if set(plan.left) != set(operands[0]) or set(plan.right) != set(operands[1]):
        return False
    a = a.permuted([operands[0].index(c) for c in plan.left])
    b = b.permuted([operands[1].index(c) for c in plan.right])
    batch, rows, inner = plan.batch, plan.rows, plan.inner
    if (
        a.shape[:batch] != b.shape[:batch]
        or a.shape[batch + rows :] != b.shape[batch : batch + inner]
    ):
        return False  # a length of one that broadcasts
    lead, m, n = a.shape[:batch], a.shape[batch : batch + rows], b.shape[batch + inner :]
    k = math.prod(b.shape[batch : batch + inner])
    if not k:
        return False
    left = shaped(rec, a, (math.prod(lead), math.prod(m), k))
    right = shaped(rec, b, (math.prod(lead), k, math.prod(n)))
    product = matmul(rec, node, left, right, sums_dtype(a.dtype))
    whole = shaped(rec, product, (*lead, *m, *n)).permuted(plan.order)
    (output,) = node.outputs
    assert output is not None
    if whole.dtype is output.dtype:
        rec.define(output, whole)
    else:
        store(rec, whole, output)
    return True


@lowering("Det")
def det(rec: Recorder, layer: Layer) -> None:
    """Elimination with pivots, a thread a matrix."""
    node, (output,) = layer.nodes[0], layer.outputs
    x = rec.view(given(node, 0))
    n = x.shape[-1]
    work = View.new(DType.DOUBLE, x.shape)
    body = """
        double* m = work + (i64)unit * n * n;
        for (i64 i = 0; i < n * n; i++) m[i] = (double)widen(x[(i64)unit * n * n + i]);
        double result = 1;
        for (i64 c = 0; c < n; c++) {
            i64 pivot = c;
            for (i64 r = c + 1; r < n; r++)
                if (fabs(m[r * n + c]) > fabs(m[pivot * n + c])) pivot = r;
            if (m[pivot * n + c] == 0) { result = 0; break; }
            if (pivot != c) {
                result = -result;
                for (i64 k = 0; k < n; k++) {
                    const double t = m[c * n + k];
                    m[c * n + k] = m[pivot * n + k];
                    m[pivot * n + k] = t;
                }
            }
            result *= m[c * n + c];
            for (i64 r = c + 1; r < n; r++) {
                const double f = m[r * n + c] / m[c * n + c];
                for (i64 k = c; k < n; k++) m[r * n + k] -= f * m[c * n + k];
            }
        }
        y[unit] = narrow<T_y>(result);"""
    outputs = {"work": work, "y": rec.output(output)}
    compute(rec, node.op, (math.prod(x.shape[:-2]),), {"x": x}, outputs, body, n=n)


@lowering("DFT")
def dft(rec: Recorder, layer: Layer) -> None:
    """The defining sum, in float64: quadratic, but exact for any length."""
    node, (output,) = layer.nodes[0], layer.outputs
    x, shape = rec.view(given(node, 0)), rec.shape(output)
    inputs = [*node.inputs, None, None][:3]
    axis = rec.attribute(inputs[2])
    along = (-2 if axis is None else int(axis.reshape(-1)[0])) % len(shape)
    inverse, onesided = (int(node.attrs.get(k, 0)) for k in ("inverse", "onesided"))
    length, size = rec.attribute(inputs[1]), x.shape[along]
    n = int(length.reshape(-1)[0]) if length is not None else 2 * (size - 1) if (
        inverse and onesided
    ) else size  # fmt: skip
    body = """
        double real = 0, imaginary = 0;
        for (i64 i = 0; i < n; i++) {
            const bool mirrored = HALF && i > n / 2;
            const i64 j = mirrored ? n - i : i;
            if (j >= size) continue;
            const i64 from = (((i64)at[0] * size + j) * inner + at[2]) * PARTS;
            const double a = (double)widen(x[from]);
            double b = PARTS == 2 ? (double)widen(x[from + PARTS - 1]) : 0.0;
            if (mirrored) b = -b;
            double sine, cosine;
            const double turn = (double)(i * (i64)at[1] % n) / (double)n;
            sine = sinpi(2 * turn) * SIGN;
            cosine = cospi(2 * turn);
            real += a * cosine - b * sine;
            imaginary += a * sine + b * cosine;
        }
        const double scale = SIGN > 0 ? 1.0 / (double)n : 1.0;
        y[(i64)unit * OUT] = narrow<T_y>(real * scale);
        if (OUT == 2) y[(i64)unit * OUT + OUT - 1] = narrow<T_y>(imaginary * scale);"""
    before, after = math.prod(shape[:along]), math.prod(shape[along + 1 : -1])
    compute(
        rec, node.op, (before, shape[along], after), {"x": x}, {"y": rec.output(output)}, body,
        defines={
            "HALF": int(inverse and onesided), "PARTS": x.shape[-1], "OUT": shape[-1],
            "SIGN": 1 if inverse else -1,
        },
        n=n, size=size, inner=after,
    )  # fmt: skip


@lowering("STFT")
def stft(rec: Recorder, layer: Layer) -> None:
    """The transform of windowed frames, as the sum that defines it."""
    node, (output,) = layer.nodes[0], layer.outputs
    signal, shape = rec.view(given(node, 0)), rec.shape(output)
    step = int(rec.attribute(given(node, 1)).reshape(-1)[0])
    window, length = [*node.inputs[2:], None, None][:2]
    views = {"x": signal}
    if window is not None:
        views["window"] = rec.view(window)
    known = rec.attribute(length)
    size = signal.shape[1] if window is None else rec.shape(window)[0]
    n = int(known.reshape(-1)[0]) if known is not None else size
    parts = signal.shape[2] if len(signal.shape) > 2 else 1
    body = f"""
        double real = 0, imaginary = 0;
        for (i64 i = 0; i < n; i++) {{
            const i64 from = ((i64)at[0] * samples + (i64)at[1] * step + i) * PARTS;
            const double w = {"(double)widen(window[i])" if window is not None else "1.0"};
            const double a = (double)widen(x[from]) * w;
            const double b = PARTS == 2 ? (double)widen(x[from + PARTS - 1]) * w : 0.0;
            const double turn = 2 * ((double)(i * (i64)at[2] % n) / (double)n);
            const double sine = -sinpi(turn), cosine = cospi(turn);
            real += a * cosine - b * sine;
            imaginary += a * sine + b * cosine;
        }}
        y[(i64)unit * 2] = narrow<T_y>(real);
        y[(i64)unit * 2 + 1] = narrow<T_y>(imaginary);"""
    compute(
        rec, node.op, shape[:3], views, {"y": rec.output(output)}, body,
        defines={"PARTS": parts}, n=n, samples=signal.shape[1], step=step,
    )  # fmt: skip
