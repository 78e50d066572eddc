"""What a product does to its sums before it stores them: code of generated kernels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from polytool.backends.native.kernels.expr import Tree, emit
from polytool.backends.native.kernels.source import C_TYPES, item_size
from polytool.tensors import DType


@dataclass(frozen=True)
class Epilogue:
    """What happens to the sums: a tree whose input 0 is the accumulator.

    Attributes:
        operands: for each further input how it lies: `column` [n] (bias), `row` [m], `full`
            (like the output), `scalar`.
    """

    tree: Tree
    operands: tuple[str, ...] = ()

    @property
    def dtype(self) -> DType:
        """The element type of the result."""
        (dtype,) = self.tree.output_dtypes
        return dtype

    def column_bytes(self, columns: int, vector: int) -> int:
        """Shared memory for the column operands of a tile."""
        if vector < 8:
            return 0
        kinds = zip(self.tree.inputs[1:], self.operands, strict=True)
        return sum(item_size(t) * columns for t, o in kinds if o == "column")

    def register_code(self, *, kept: bool = False) -> str:
        """What gemm_wide.cuh wants of an epilogue that is computed where the sums are.

        `fetch_columns` loads two columns of the column operands; `finish_pair` computes two sums,
        beside two elements of the one operand that may lie like the output. Sums become the
        results before they are rounded where these are `kept`.
        """
        types = list(zip(self.tree.inputs[1:], self.operands, strict=True))
        params = "".join(f", const {C_TYPES[t]}* x{i}" for i, (t, _) in enumerate(types, 1))
        args = "".join(f", x{i}" for i in range(1, len(types) + 1))
        members, loads, names = [], [], ["sum[i]"]
        beside = ""
        for i, (dtype, operand) in enumerate(types, 1):
            kind = C_TYPES[dtype]
            if operand == "full":
                beside = f"pack<{kind}, 2>"
                names.append("widen(beside.at[i])")
            elif operand == "column":
                members.append(f"    pack<{kind}, 2> c{i};")
                loads.append(f"    to.c{i} = load_pack<{kind}, 2>(x{i} + col);")
                names.append(f"widen(held.c{i}.at[i])")
            else:
                names.append(f"widen(*x{i})")
        lines, (result,) = emit(self.tree, names, " " * 8)
        return "\n".join(
            (
                f"#define EPILOGUE_PARAMS {params}",
                f"#define EPILOGUE_ARGS {args}",
                f"#define BESIDE {int(bool(beside))}",
                *((f"typedef {beside} beside_pair;",) if beside else ()),
                "struct column_operands {",
                *members,
                "};",
                f"DEVICE void fetch_columns(column_operands& to, int col{params}) {{",
                *loads,
                "}",
                f"DEVICE void finish_pair({'' if kept else 'const '}ACC* sum,"
                f" const column_operands& held{', const beside_pair& beside' if beside else ''},"
                f" pack<T_OUT, 2>& out{params}) {{",
                "#pragma unroll",
                "    for (int i = 0; i < 2; i++) {",
                *lines,
                *((f"        sum[i] = {result};",) if kept else ()),
                f"        out.at[i] = narrow<T_OUT>({result});",
                "    }",
                "}",
            )
        )

    def code(self, vector: int, columns: int, *, staged: bool = True) -> str:
        """What gemm.cuh wants of an epilogue, for `vector` columns at once and tiles of `columns`.

        `stage_columns` brings column operands to shared memory, where `staged` allows that; `fetch`
        loads what lies like the output; `epilogue` computes.
        """
        types = list(zip(self.tree.inputs[1:], self.operands, strict=True))
        params = "".join(f", const {C_TYPES[t]}* x{i}" for i, (t, _) in enumerate(types, 1))
        args = "".join(f", x{i}" for i in range(1, len(types) + 1))
        through, members, fetched, loads, names = [], [], [], [], ["sum[i]"]
        place = 0
        for i, (dtype, operand) in enumerate(types, 1):
            kind = C_TYPES[dtype]
            packed = f"pack<{kind}, {vector}>"
            if operand == "full":
                members.append(f"    {packed} p{i};")
                fetched.append(f"    to.p{i} = load_pack<{kind}, {vector}>(x{i} + at);")
                names.append(f"widen(beside.p{i}.at[i])")
            elif operand == "row":
                members.append(f"    {kind} p{i};")
                fetched.append(f"    to.p{i} = x{i}[row];")
                names.append(f"widen(beside.p{i})")
            elif operand == "scalar":
                names.append(f"widen(*x{i})")
            elif vector < 8 or not staged:
                loads.append(f"    const {packed} c{i} = load_pack<{kind}, {vector}>(x{i} + col);")
                names.append(f"widen(c{i}.at[i])")
            else:
                per = 16 // item_size(dtype)
                through += [
                    f"    for (int c = tid * {per}; c < BN; c += THREADS * {per})",
                    f"        copy_async16(columns + {place} + c * {item_size(dtype)},"
                    f" n0 + c < n ? x{i} + offset + n0 + c : x{i}, n0 + c < n);",
                ]
                loads.append(
                    f"    const {packed} c{i} = load_pack<{kind}, {vector}>((const {kind}*)"
                    f"(columns + {place}) + local);"
                )
                names.append(f"widen(c{i}.at[i])")
                place += columns * item_size(dtype)
        lines, (result,) = emit(self.tree, names, " " * 8)
        return "\n".join(
            (
                f"#define EPILOGUE_PARAMS {params}",
                f"#define EPILOGUE_ARGS {args}",
                *(("#define THREADS (WARPS_M * WARPS_N * 32)",) if columns else ()),
                f"#define BESIDE {len(members)}",
                *(_function("stage_columns", through, params) if columns else ()),
                "struct operands {",
                *members,
                "};",
                f"DEVICE void fetch(operands& to, i64 at, int row{params}) {{",
                *fetched,
                "}",
                "DEVICE void epilogue(const ACC* sum, const operands& beside,"
                " const unsigned char* columns, int local, int col,"
                f" pack<T_OUT, {vector}>& out{params}) {{",
                *loads,
                "#pragma unroll",
                f"    for (int i = 0; i < {vector}; i++) {{",
                *lines,
                f"        out.at[i] = narrow<T_OUT>({result});",
                "    }",
                "}",
            )
        )


def _function(name: str, body: Sequence[str], params: str) -> tuple[str, ...]:
    head = f"DEVICE void {name}(unsigned char* columns, int tid, int n0, int n, int offset{params})"
    return (f"{head} {{", *body, "}")
