"""Code that drives Hopper's matrix units: a warpgroup multiplies 64 rows at once (wgmma)."""

from __future__ import annotations

from polytool.tensors import DType

GROUP_TYPES = {
    DType.FLOAT16: ("k16.f32.f16.f16", ", 1, 1", "f", "float", "half_t"),
    DType.BFLOAT16: ("k16.f32.bf16.bf16", ", 1, 1", "f", "float", "bfloat_t"),
    DType.INT8: ("k32.s32.s8.s8", "", "r", "int", "signed char"),
}
"""The types that they multiply: instruction, signs, accumulator, and the types in C."""


def group_product(dtype: DType, columns: int, name: str = "mma_group") -> str:
    """`name(c, a, b[, add])`: 64 rows times `columns` over 32 bytes of k, both in shared memory.

    With `add` zero the sums start anew.
    """
    shape, signs, register, acc, element = GROUP_TYPES[dtype]
    order = ", 0, 0" if dtype is not DType.INT8 else ""
    count = columns // 2
    return _function(
        f"{name}({acc} (&c)[{columns // 8}][4], matrix_place a, matrix_place b, int add = 1)",
        f"emulated_group<{acc}, {element}, {columns}>(c, a, b, add);",
        f"wgmma.mma_async.sync.aligned.m64n{columns}{shape} {{{_registers(count)}}},"
        f" %{count}, %{count + 1}, p{signs}{order};",
        count + 2,
        _sums(register, count),
        '"l"(a), "l"(b), "r"(add)',
    )


def register_product(dtype: DType, columns: int, name: str) -> str:
    """`name(c, a, b, add)`: A in registers, as sums leave them; B is [16 of k, `columns`]."""
    shape, signs, register, acc, element = GROUP_TYPES[dtype]
    count = columns // 2
    operand = ", ".join(f"%{count + i}" for i in range(4))
    return _function(
        f"{name}({acc} (&c)[{columns // 8}][4], const u32 (&a)[4], matrix_place b, int add)",
        f"emulated_registers<{element}, {columns}>(c, a, b, add);",
        f"wgmma.mma_async.sync.aligned.m64n{columns}{shape} {{{_registers(count)}}},"
        f" {{{operand}}}, %{count + 4}, p{signs}, 1;",
        count + 5,
        _sums(register, count),
        '"r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(add)',
    )


def _registers(count: int) -> str:
    return ", ".join(f"%{i}" for i in range(count))


def _sums(register: str, count: int) -> str:
    return ", ".join(f'"+{register}"(c[{i // 4}][{i % 4}])' for i in range(count))


def _function(
    head: str, emulated: str, instruction: str, add: int, outputs: str, inputs: str
) -> str:
    return "\n".join(
        (
            f"DEVICE void {head} {{",
            "#ifdef HOST_EMULATION",
            f"    {emulated}",
            "#else",
            f'    asm volatile("{{\\n.reg .pred p;\\nsetp.ne.b32 p, %{add}, 0;\\n"',
            f'                 "{instruction}\\n}}"',
            f"        : {outputs} : {inputs});",
            "#endif",
            "}",
        )
    )
