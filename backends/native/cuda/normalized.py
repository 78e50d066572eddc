"""Products of normalised rows, and products that measure their rows for such a one."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from polytool.backends.native.cuda.buffers import View
from polytool.backends.native.cuda.epilogues import is_constant, renumbered
from polytool.backends.native.cuda.recorder import Recorder
from polytool.backends.native.kernels import gemm_wide
from polytool.backends.native.kernels.epilogue import Epilogue
from polytool.backends.native.kernels.expr import Step, Tree
from polytool.backends.native.kernels.gemm import Gemm, Matrix, Tile, vector_width
from polytool.backends.native.kernels.row_moments import PART, RowNorm, measuring, scaling
from polytool.backends.native.kernels.source import Buffer, Candidate, Plan
from polytool.backends.native.network import Tensor
from polytool.errors import UnsupportedError
from polytool.tensors import DType

_PLAIN = Tile(128, 128, 2, 4, 3)  # for a GPU without Hopper's matrix units


def moments_of(rec: Recorder, tensor: Tensor) -> View:
    """The moments of the rows of `tensor`, whose product may have stored them already."""
    if tensor not in rec.moments:
        view = rec.dense(rec.view(tensor))
        rows, columns = view.count // view.shape[-1], view.shape[-1]
        rec.moments[tensor] = _moments(rows, columns)
        plan = Plan((measuring(view.dtype, rows, columns, 0, 1),))
        rec.launch([plan], [view, rec.moments[tensor]])
    return rec.moments[tensor]


def _moments(rows: int, columns: int) -> View:
    return View.new(DType.FLOAT, (columns // PART, rows, 2))


def measured_product(
    rec: Recorder, epilogue: Epilogue, problem: Matrix, views: Sequence[View], output: Tensor
) -> bool:
    """Record a product that also stores moments, where the rows of `output` are normalised later.

    Returns:
        False where nothing was recorded.
    """
    wanted = any(
        layer.kind == "norm_gemm" and layer.nodes[0].inputs[0] is output for layer in rec.line
    )
    if not wanted or problem.n % PART or not gemm_wide.in_boxes(epilogue):
        return False
    dtype, constant = views[0].dtype, is_constant(epilogue, views)
    wide = gemm_wide.candidates(dtype, epilogue, problem, constant=constant, measured=True)
    if not wide:
        return False
    plain = _plain(dtype, epilogue, problem, constant).plan(problem)
    last = len(views) - 1
    measure = measuring(epilogue.dtype, problem.m, problem.n, last, last + 1)
    plans: list[Candidate] = [tile.plan(problem) for tile in wide]
    plans.append(dataclasses.replace(plain, calls=(*plain.calls, measure)))
    rec.moments[output] = _moments(problem.m, problem.n)
    signature = f"measured gemm {dtype.label} {problem!r} {epilogue!r} {constant}"
    rec.launch(plans, [*views, rec.moments[output]], writes=2, signature=signature)
    return True


def normalized_product(
    rec: Recorder, epilogue: Epilogue, problem: Matrix, norm: RowNorm, views: Sequence[View]
) -> None:
    """Record a product whose sums are divided by the deviation of the rows of its left operand.

    Args:
        views: the operands, those of the epilogue, moments and factor, and the result.

    Raises:
        UnsupportedError: it is small, or its epilogue reads what lies like the result.
    """
    dtype, constant = views[0].dtype, is_constant(epilogue, views)
    if not gemm_wide.in_registers(epilogue):
        raise UnsupportedError("a product of normalised rows with an addend")
    wide = gemm_wide.candidates(dtype, epilogue, problem, constant=constant, normalized=True)
    if not wide:
        raise UnsupportedError("a small product of normalised rows")
    plans: list[Candidate] = [tile.plan(problem, norm=norm) for tile in wide]
    plans.append(normalized_by_rows(dtype, epilogue, problem, norm, constant))
    signature = f"normalized gemm {dtype.label} {problem!r} {epilogue!r} {norm.centred} {constant}"
    rec.launch(plans, views, signature=signature)


def normalized_by_rows(
    dtype: DType, epilogue: Epilogue, problem: Matrix, norm: RowNorm, constant: bool = False
) -> Plan:
    """The same for any GPU: one launch for the deviations, and a product that multiplies by them.

    Buffers: those of `WideGemm.plan`, and a workspace.
    """
    tree, count = epilogue.tree, len(epilogue.tree.inputs)
    scaled = Step.of("Mul", 0, count, dtype=DType.FLOAT)
    steps = (scaled, *renumbered(tree, count + 1, count + 1, 1, 0))
    by_row = Epilogue(Tree((*tree.inputs, DType.FLOAT), steps), (*epilogue.operands, "row"))
    plan = _plain(dtype, by_row, problem, constant).plan(problem)
    moments, factor, output, scales = range(count + 1, count + 5)
    places = {moments: scales, factor: output}  # the plan's last operand, and its result
    (call,) = plan.calls
    args = tuple(
        Buffer(places.get(arg.index, arg.index)) if isinstance(arg, Buffer) else arg
        for arg in call.args
    )
    calls = (
        scaling(problem.m, norm, moments, factor, scales), dataclasses.replace(call, args=args),
    )  # fmt: skip
    return Plan(calls, 4 * problem.m, f"rows, {plan.name}")


def _plain(dtype: DType, epilogue: Epilogue, problem: Matrix, constant: bool) -> Gemm:
    vector = vector_width(problem.n, (epilogue.dtype, *epilogue.tree.inputs[1:]))
    return Gemm(dtype, epilogue, _PLAIN, vector=vector, constant=constant)
