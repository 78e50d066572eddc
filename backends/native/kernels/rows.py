"""LayerNorm, RMSNorm, Softmax and LogSoftmax over the last axis, with trees before and after."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

from polytool.backends.native.kernels.expr import Tree, emit
from polytool.backends.native.kernels.source import (
    C_TYPES,
    Argument,
    Buffer,
    Call,
    Kernel,
    Plan,
    assemble,
    dims,
    item_size,
    strides,
)
from polytool.errors import UnsupportedError
from polytool.tensors import DType

MODES = {"layernorm": 0, "rmsnorm": 1, "softmax": 2, "logsoftmax": 3, "attention": 4}
"""`attention` is a softmax that gives zeros for rows of -inf."""
_CACHE = 4
_MULTIPROCESSORS = 132
_RESIDENT = 2048  # threads that a multiprocessor holds at most; further rows are their next ones


@dataclass(frozen=True)
class RowOp:
    """A normalisation of the rows of [.., length] tensors.

    Operands are `full` (like the output), `column` [length], `row` (one value a row), `scalar`,
    or `outer` (broadcast over some leading dimensions, contiguous along the row) and `outer0`
    (the same, one value a row). `gather` reads row `index[row]` of a table [.., length]; the int64
    indices are one more buffer, after all others.

    Attributes:
        before: a tree over the inputs; its result is what is normalised.
        before_operands: how each input of `before` lies.
        after: a tree whose input 0 is the normalised value.
        after_operands: how the further inputs of `after` lie.
        store_before: also store the value before normalising, in the type of `before`'s result.
    """

    mode: str
    before: Tree
    before_operands: tuple[str, ...]
    after: Tree
    after_operands: tuple[str, ...] = ()
    store_before: bool = False

    @property
    def _inputs(self) -> list[tuple[DType, str]]:
        first = zip(self.before.inputs, self.before_operands, strict=True)
        return [*first, *zip(self.after.inputs[1:], self.after_operands, strict=True)]

    @property
    def _real(self) -> str:
        wide = any(t is DType.DOUBLE for t, _ in self._inputs)
        return "double" if wide else "float"

    def kernels(self) -> tuple[Kernel, ...]:
        """Every kernel that `plan` can ask for."""
        return tuple(self._kernel(v, t) for v in (8, 1) for t in (32, 128, 512))

    def _operands(self, count: int) -> tuple[str, ...]:
        return tuple(k for _, k in self._inputs)[:count]

    def _kernel(self, vector: int, row_threads: int, full: int = 0) -> Kernel:
        return _row_kernel(self, vector, row_threads, full)

    def code(self, vector: int) -> str:
        """What rows.cuh wants: `fetch` and `before`, `fetch_beside` and `after`."""
        inputs, n = self._inputs, len(self.before.inputs)
        params, args = [], []
        for i, (dtype, operand) in enumerate(inputs):
            params.append(f"const {C_TYPES[dtype]}* x{i}")
            args.append(f"x{i}")
            if operand.startswith("outer"):
                params.append(f"const strides& s{i}")
                args.append(f"s{i}")
            if operand == "gather":
                params.append(f"const i64* g{i}")
                args.append(f"g{i}")
        if any(o.startswith("outer") for _, o in inputs):
            params.append("const dims& outer")
            args.append("outer")
        if self.store_before:
            params.append(f"{C_TYPES[self.before.output_dtypes[0]]}* sums")
            args.append("sums")
        lines = "for (int c = threadIdx.x * 32; c < length; c += MAX_THREADS * 32)"
        ahead = [
            f"{lines} prefetch_l2(x{i} + c);" for i, (_, o) in enumerate(inputs) if o == "column"
        ]
        declared = "".join(f", {p}" for p in params)
        same = all(o in ("column", "scalar") for _, o in inputs[n:])
        by_value = "".join(f", {p.replace('& ', ' ')}" for p in params)
        return "\n".join(
            (
                f"#define ROW_PARAMS {by_value}",
                f"#define ROW_ARGS {''.join(', ' + a for a in args)}",
                f"#define ROW_PREFETCH {' '.join(ahead)}",
                f"#define BESIDE_STAYS {int(same)}",
                *self._fetch("operands", "fetch", range(n), vector, declared),
                f"DEVICE pack<REAL, {vector}> before(const operands& from) {{",
                f"    pack<REAL, {vector}> result;",
                *self._compute(self.before, range(n), [], vector, "result.at[i] = (REAL)"),
                "    return result;",
                "}",
                *self._fetch("further", "fetch_beside", range(n, len(inputs)), vector, declared),
                f"DEVICE void after(const pack<REAL, {vector}>& y, const further& from,"
                f" pack<T_OUT, {vector}>& out) {{",
                *self._compute(
                    self.after, range(n, len(inputs)), ["y.at[i]"], vector,
                    "out.at[i] = narrow<T_OUT>",
                ),
                "}",
            )
        )  # fmt: skip

    def _fetch(
        self, struct: str, name: str, numbers: range, vector: int, declared: str
    ) -> list[str]:
        """A structure of operands as they lie in memory, and the function that loads it."""
        members, setup, loads = [], [], []
        outer = [i for i in numbers if self._inputs[i][1].startswith("outer")]
        if outer:
            setup += [
                "    u32 rest = row;",
                "    for (int d = outer.rank - 1; d >= 0; d--) {",
                "        u32 next = divide(rest, outer.magic[d], outer.shift[d]),"
                " index = rest - next * outer.size[d];",
                *(f"        x{i} += index * s{i}.step[d];" for i in outer),
                "        rest = next;",
                "    }",
            ]
        for i in numbers:
            dtype, operand = self._inputs[i]
            kind = C_TYPES[dtype]
            if operand == "gather":
                setup.append(f"    x{i} += g{i}[row] * length;")
            place = {"full": "at", "column": "col", "outer": "col", "gather": "col"}.get(operand)
            if place is not None:
                members.append(f"    pack<{kind}, {vector}> p{i};")
                loads.append(f"    to.p{i} = load_pack<{kind}, {vector}>(x{i} + {place});")
            else:
                members.append(f"    {kind} p{i};")
                loads.append(f"    to.p{i} = x{i}[{'row' if operand == 'row' else '0'}];")
        return [
            f"struct {struct} {{",
            *members,
            "};",
            f"DEVICE void {name}({struct}& to, u32 row, int col, i64 at, int length{declared}) {{",
            *setup,
            *loads,
            "}",
        ]

    def _compute(
        self, tree: Tree, numbers: range, names: list[str], vector: int, assign: str
    ) -> list[str]:
        for i in numbers:
            single = self._inputs[i][1] in ("row", "scalar", "outer0")
            names = [*names, f"widen(from.p{i})" if single else f"widen(from.p{i}.at[i])"]
        lines, (result, *_) = emit(tree, names, " " * 8)
        return [
            "#pragma unroll",
            f"    for (int i = 0; i < {vector}; i++) {{",
            *lines,
            f"        {assign}({result});",
            "    }",
        ]

    def plan(
        self,
        rows: int,
        length: int,
        *,
        epsilon: float = 0.0,
        outer: Sequence[int] = (),
        outer_strides: Sequence[Sequence[int]] = (),
    ) -> Plan:
        """The launch.

        Buffers: inputs of `before`, further inputs of `after`, the output, the stored sum if there
        is one, then the indices of `gather` operands.

        Args:
            rows: how many rows.
            length: elements of a row.
            epsilon: of the normalisations.
            outer: the sizes whose product is `rows`, for `outer` operands.
            outer_strides: strides along `outer` for each `outer` operand in order, in elements.
        """
        widest = max(item_size(t) for t, _ in self._inputs)
        aligned = all(s % 8 == 0 for steps in outer_strides for s in steps)
        vector = 8 if length % 8 == 0 and aligned and widest <= 4 else 1
        threads, full = _threads(rows, length // vector)
        kernel = self._kernel(vector, threads, full)
        inputs = self._inputs
        steps, tables = iter(outer_strides), 0
        args: list[Argument] = [
            ctypes.c_uint(rows),
            ctypes.c_int(length),
            ctypes.c_float(epsilon),
            Buffer(len(inputs)),
        ]
        for i, (_, operand) in enumerate(inputs):
            args.append(Buffer(i))
            if operand.startswith("outer"):
                args.append(strides(tuple(next(steps))))
            if operand == "gather":
                args.append(Buffer(len(inputs) + 1 + self.store_before + tables))
                tables += 1
        if any(o.startswith("outer") for _, o in inputs):
            args.append(dims(tuple(outer)))
        if self.store_before:
            args.append(Buffer(len(inputs) + 1))
        if rows >= 1 << 31:
            raise UnsupportedError(f"a normalisation of {rows} rows is beyond 2^31")
        blocks = -(-rows // (kernel.threads // threads))
        turns = -(-blocks // (_MULTIPROCESSORS * max(1, _RESIDENT // kernel.threads)))
        grid = (max(1, -(-blocks // turns)), 1, 1)
        return Plan((Call(kernel, grid, (kernel.threads, 1, 1), tuple(args)),) if rows else ())


def _threads(rows: int, units: int) -> tuple[int, int]:
    """Threads a row, and the vectors of each where rows are just that; 0 for any length.

    Few rows get more threads than registers ask for.
    """
    few = rows < _MULTIPROCESSORS * 4
    fitting = [t for t in range(32, 513, 32) if units % t == 0 and units // t <= _CACHE]
    if fitting:
        threads = fitting[-1] if few else fitting[0]
        return threads, units // threads
    threads = 32 if units <= 32 * _CACHE else 128 if units <= 128 * _CACHE else 512
    return (128 if few and threads == 32 and units > 32 else threads), 0


@cache
def _row_kernel(op: RowOp, vector: int, row_threads: int, full: int) -> Kernel:
    defines: dict[str, str | int] = {
        "REAL": op._real,
        "MODE": MODES[op.mode],
        "VEC": vector,
        "ROW_THREADS": row_threads,
        "CACHE": full or _CACHE,
        "FULL": int(full > 0),
        "T_OUT": C_TYPES[op.after.output_dtypes[0]],
    }
    if op.store_before:
        defines["T_SUM"] = C_TYPES[op.before.output_dtypes[0]]
    threads = row_threads * max(1, 128 // row_threads)
    code = op.code(vector)
    return assemble("rows", "rows", defines=defines, code=code, threads=threads)
