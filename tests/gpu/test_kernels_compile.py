"""Every kernel template compiles for Hopper, Ampere and Blackwell without a GPU."""

import itertools
import random

import pytest

from polytool.backends.native.kernels import (
    attention,
    attention_group,
    compiler,
    direct,
    gather,
    gemm,
    gemm_wide,
    handover,
    ordering,
    pool,
    reduce,
    row_moments,
    rows,
    spatial,
)
from polytool.backends.native.kernels.expr import _EMIT, Step, Tree, supported
from polytool.backends.native.kernels.pointwise import Operand, Pattern, Pointwise, copy
from polytool.backends.native.kernels.transpose import PackImage, Transpose
from polytool.errors import RunnerError
from polytool.tensors import DType

H, B, S, D = DType.FLOAT16, DType.BFLOAT16, DType.FLOAT, DType.DOUBLE
I8, I32, I64, BOOL = DType.INT8, DType.INT32, DType.INT64, DType.BOOL


def bias(kind, acc=S, *more):
    """acc + bias, then operators of one operand."""
    steps = [Step.of("Add", 0, 1, dtype=kind)]
    steps += [Step.of(op, 2 + i, dtype=kind) for i, op in enumerate(more)]
    return gemm.Epilogue(Tree((acc, kind), tuple(steps)), ("column",))


def beside(kind):
    steps = (Step.of("Add", 0, 1, dtype=kind), Step.of("Add", 3, 2, dtype=kind))
    return gemm.Epilogue(Tree((S, kind, kind), steps), ("column", "full"))


def layer_norm(kind):
    affine = Tree(
        (D if kind is D else S, kind, kind),
        (Step.of("Mul", 0, 1, dtype=kind), Step.of("Add", 3, 2, dtype=kind)),
    )
    before = Tree((kind, kind), (Step.of("Add", 0, 1, dtype=kind),))
    return rows.RowOp("layernorm", before, ("full", "outer"), affine, ("column", "column"), True)


def products():
    for tile in gemm.TILES[::3]:
        for image in (0, 1, 2):
            yield gemm.Gemm(H, bias(H, S, "Gelu"), tile, image).kernel
    for groups, columns in gemm_wide.TILES:
        yield gemm_wide.WideGemm(H, bias(H, S, "Gelu"), groups, columns).kernel
    for kind, norm in ((H, False), (B, True)):
        yield gemm_wide.WideGemm(kind, bias(S, S, "Gelu"), 3, 192, normalized=True).kernel
        yield gemm_wide.WideGemm(kind, beside(kind), 3, 192, measured=norm).kernel
        yield row_moments.measuring(kind, 64, 64, 0, 1).kernel
    yield row_moments.scaling(64, row_moments.RowNorm(), 0, 1, 2).kernel
    yield gemm_wide.WideGemm(I8, gemm.Epilogue(Tree((I32,))), 2, 128, 1).kernel
    group, warps = gemm.Tile(64, 64, 4, 1, 6, True), gemm.Tile(64, 64, 2, 2, 6)
    for tile in (group, warps):
        yield gemm.Gemm(B, bias(B, S, "Swish"), tile).kernel
        yield gemm.Gemm(I8, gemm.Epilogue(Tree((I32,))), tile, vector=4).kernel
    yield gemm.Gemm(S, bias(S, S, "Relu"), warps).kernel
    for kind, form in itertools.product((H, B), attention.FORMS[::4]):
        yield attention.Attention(kind, 64, kind, True, form).kernel
    yield attention.Attention(H, 256, BOOL, False, (4, 1, 64)).kernel
    for mask, form in itertools.product((None, H, BOOL), attention_group.forms(197, 197, 64)):
        yield attention_group.AttentionGroup(H, 64, mask, False, form).kernel
    for form in attention_group.forms(512, 512, 128, S):
        yield attention_group.AttentionGroup(B, 128, S, True, form, True).kernel
    for form in attention_group.forms(128, 128, 64, H):
        yield attention_group.AttentionGroup(H, 64, H, False, form, True).kernel
    for kind in (S, D, I32):
        yield direct._product(direct.Product(kind, kind, bias(kind, kind)))
    for kind, transposed in itertools.product((H, S, D), (False, True)):
        acc = D if kind is D else S
        yield direct._direct(direct.Direct(kind, bias(kind, acc), False, transposed))
    yield direct._direct(direct.Direct(H, bias(H, S, "HardSwish"), True, False, 8, 5))


def moves():
    for kind in (H, D):
        yield from layer_norm(kind).kernels()
    for mode in ("softmax", "logsoftmax", "rmsnorm"):
        yield from rows.RowOp(mode, Tree((B,)), ("full",), Tree((S,))).kernels()[:2]
    for op in reduce.KINDS:
        yield from reduce.Reduce(op, H, I64 if op.startswith("Arg") else H).kernels()[::3]
    for op, kind in (("ReduceSum", I64), ("ReduceMax", I8), ("ReduceMean", D), ("ArgMin", S)):
        yield from reduce.Reduce(op, kind, I64 if op == "ArgMin" else kind).kernels()[::3]
    for op, kind in (("MaxPool", H), ("AveragePool", S), ("LpPool", D), ("MaxPool", I8)):
        yield from pool.Pool(op, kind, True).kernels()
        yield from pool.Pool(op, kind, indices=op == "MaxPool").kernels()[:1]
    for kind in (I8, H, S, I64):
        yield from Transpose(kind).kernels()
        for op in ("Gather", "GatherElements", "GatherND"):
            yield from gather.Gather(op, kind, I32).kernels()
    for reduction in ("none", "add", "mul", "max", "min"):
        yield from gather.Scatter("ScatterElements", H, I64, reduction).kernels()
        yield from gather.Scatter("ScatterND", I32, I32, reduction).kernels()
    yield from PackImage(H, 4).kernels()
    for mode in ("constant", "reflect", "edge", "wrap"):
        yield from spatial.Pad(H, mode).kernels()
    yield from spatial.Resize(H).kernels()
    yield from spatial.GroupNorm(H, S, True, "Swish").kernels()
    yield from spatial.GroupNorm(D, D).kernels()
    for kind in (H, I64):
        yield from ordering.CumSum(kind, True, True).kernels()
        yield from ordering.TopK(kind).kernels()
        yield from ordering.NonZero(kind).kernels()
    yield from ordering.NonMaxSuppression(True).kernels()
    yield from copy(BOOL).kernels()
    yield handover.kernel()


_BINARY = {"Add", "And", "BitShift", "BitwiseAnd", "BitwiseOr", "BitwiseXor", "Div", "Mod", "Mul",
           "Or", "PRelu", "Pow", "Sub", "Xor"}  # fmt: skip
_COMPARE = {"Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual"}
_LOGIC = {"And", "Or", "Xor", "Not"}
_WHOLE = {"BitShift", "BitwiseAnd", "BitwiseOr", "BitwiseXor", "BitwiseNot"}
_BOTH = {"Abs", "Add", "Clip", "Div", "Identity", "Max", "Min", "Mod", "Mul", "Neg", "Sign", "Sub",
         "Sum", "Where"} | _COMPARE  # fmt: skip


def trees():
    """Every operator, on every kind of type that it takes, a tree for each type."""
    for kind in (H, S, D, I32, I64, I8, DType.UINT8, BOOL):
        steps, inputs = [], (kind, kind, BOOL)
        for op in sorted(_EMIT):
            takes = op in _LOGIC or op in ("Equal", "Identity", "Where") if kind is BOOL else True
            takes &= op not in _LOGIC or kind is BOOL
            takes &= op not in _WHOLE or kind.is_integer
            takes &= op in _BOTH | _WHOLE or kind.is_float or kind is BOOL
            if not takes:
                continue
            several = op in _BINARY | _COMPARE | {"Max", "Min", "Mean", "Sum"}
            several |= op in ("BiasGelu", "SwiGLU")
            arity = {"Where": (2, 0, 1), "BiasAdd": (0, 1, 0)}
            args = arity.get(op, (0, 1) if several else (0,))
            result = BOOL if op in _COMPARE | {"IsInf", "IsNaN"} else kind
            attrs = {"direction": "LEFT"} if op == "BitShift" else {}
            attrs |= {"fmod": 1} if op == "Mod" and kind.is_float else {}
            steps.append(Step.of(op, *args, dtype=result, **attrs))
            assert supported(op, (kind, result))
        targets = (H, S, D, I32, DType.UINT64, BOOL)
        steps += [Step.of("Cast", 0, dtype=target) for target in targets]
        yield Tree(inputs, tuple(steps), tuple(range(3, 3 + len(steps))))


@pytest.mark.parametrize("family", [products, moves])
def test_a_seeded_part_of_the_kernels_compiles(family):
    kernels = list(dict.fromkeys(family()))
    chosen = random.Random(1).sample(kernels, len(kernels) // 8)
    compiler.compile_all(chosen, "sm_90a", 2)


@pytest.mark.slow
@pytest.mark.parametrize("family", [products, moves])
def test_every_kernel_compiles(family):
    compiler.compile_all(family(), "sm_90a", 2)


def test_every_operator_of_the_trees_compiles():
    kernels = [Pointwise(t).kernel(Pattern(1, 1, (1,) * (3 + len(t.steps)))) for t in trees()]
    compiler.compile_all(kernels, "sm_90a", 2)
    wide = Pointwise(Tree((H, S), (Step.of("Mul", 0, 1, dtype=H),)))
    operands = [Operand((4, 64)), Operand((64,))]
    compiler.compile_kernel(wide.kernel(wide.pattern((4, 64), operands)), "sm_90a")


@pytest.mark.parametrize("arch", ["sm_80", "sm_100a"])
def test_other_generations_compile_what_they_have(arch):
    tile = gemm.Tile(64, 64, 2, 2, 4)
    kernels = [*layer_norm(H).kernels()[:1], *reduce.Reduce("ReduceSum", H, H).kernels()[:1]]
    if arch != "sm_80":  # clusters and programmatic launches begin with Hopper
        kernels.append(gemm.Gemm(H, bias(H), tile).kernel)
    compiler.compile_all(kernels, arch, 2)


def test_a_refused_source_names_the_kernel_and_the_line():
    kernel = gemm.Gemm(H, bias(H), gemm.TILES[-1]).kernel
    broken = type(kernel)("broken", kernel.source + "\nint x = nonsense;\n")
    with pytest.raises(RunnerError, match=r"(?s)refuses kernel broken: .*nonsense"):
        compiler.compile_kernel(broken, "sm_90a")


def test_a_stored_cubin_is_used_without_compiling():
    kernel = type(gemm.Gemm(H, bias(H), gemm.TILES[-1]).kernel)("stored", "never compiled")
    compiler.adopt({compiler.key(kernel, "sm_90a"): b"cubin"})
    assert compiler.compile_kernel(kernel, "sm_90a") == b"cubin"
