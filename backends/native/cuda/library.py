"""Products, convolutions and attention as libraries know them, and what these offer for them."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from polytool.backends.native.cuda.recorder import Step
from polytool.backends.native.kernels import compiler, driver, gemm
from polytool.backends.native.kernels.attention import Layout
from polytool.backends.native.kernels.epilogue import Epilogue
from polytool.backends.native.kernels.source import LibraryPlan, LibraryRequest
from polytool.backends.native.tactics import cublaslt, cudnn
from polytool.errors import MissingDependencyError
from polytool.tensors import DType

_HALVES = (DType.FLOAT16, DType.BFLOAT16)
_THREADS = 8


@dataclass(frozen=True)
class LibraryEpilogue:
    """bias, addend, activation, in this order: the epilogues that libraries have.

    Attributes:
        bias, addend: which operand of the epilogue it is, from 0.
    """

    bias: int | None = None
    addend: int | None = None
    activation: str = "none"
    clip: tuple[float, float] = (0.0, 0.0)

    @property
    def operands(self) -> tuple[int, ...]:
        """The operands in the order in which libraries take them."""
        return tuple(i for i in (self.bias, self.addend) if i is not None)


def library_epilogue(epilogue: Epilogue) -> LibraryEpilogue | None:
    """`epilogue` in the form that libraries know; None where it is another."""
    tree, found = epilogue.tree, LibraryEpilogue()
    constants: dict[int, float] = {}
    current, gate = 0, -1  # gate: the sigmoid of `current`, which may become silu
    for number, step in enumerate(tree.steps, len(tree.inputs)):
        args = [a for a in step.args if a is not None]
        others = [a for a in args if a != current]
        if step.op == "Constant":
            constants[number] = float(dict(step.attrs)["value"])
            continue
        if step.op == "Sigmoid" and args == [current] and found.activation == "none":
            gate = number
            continue
        if step.op == "Mul" and set(args) == {current, gate}:
            found = dataclasses.replace(found, activation="silu")
        elif gate >= 0 or current not in args:
            return None
        elif step.op == "Add" and len(others) == 1 and found.activation == "none":
            added = _added(epilogue, others[0] - 1, found)
            if added is None:
                return None
            found = added
        elif step.op == "Clip" and found.activation == "none" and len(args) == 3:
            low, high = (constants.get(a) for a in args[1:])
            if low is None or high is None:
                return None
            found = dataclasses.replace(found, activation="clip", clip=(low, high))
        elif step.op in ("Relu", "Gelu", "Tanh") and found.activation == "none":
            found = dataclasses.replace(found, activation=_activation(step.op, dict(step.attrs)))
        elif step.op != "Cast" or step.dtype is not epilogue.dtype:
            return None
        current, gate = number, -1
    return found if current == tree.outputs[0] else None


def _added(epilogue: Epilogue, index: int, found: LibraryEpilogue) -> LibraryEpilogue | None:
    if not 0 <= index < len(epilogue.operands):
        return None
    kind, dtype = epilogue.operands[index], epilogue.tree.inputs[index + 1]
    if dtype is not epilogue.dtype or found.addend is not None:
        return None
    if kind == "column" and found.bias is None:
        return dataclasses.replace(found, bias=index)
    return dataclasses.replace(found, addend=index) if kind == "full" else None


def _activation(op: str, attrs: dict[str, object]) -> str:
    if op != "Gelu":
        return op.lower()
    return "gelu_tanh" if attrs.get("approximate") == "tanh" else "gelu"


def product_requests(
    dtype: DType, epilogue: Epilogue, problem: gemm.Problem
) -> tuple[LibraryRequest, ...]:
    """What to ask for a product with buffers A, B, the epilogue's operands, D."""
    known = library_epilogue(epilogue)
    if known is None or epilogue.dtype is not dtype:
        return ()
    count = 3 + len(epilogue.operands)
    buffers = (0, 1, *(2 + i for i in known.operands), count - 1)
    found: list[LibraryRequest] = []
    matrix = problem if isinstance(problem, gemm.Matrix) else problem.as_matrix()
    if matrix is not None and not matrix.col_batch:
        product = _product(dtype, known, matrix)
        if known.activation in ("none", "relu", "gelu_tanh"):
            found.append(cublaslt.ProductRequest(product, buffers, count))
    if isinstance(problem, gemm.Convolution) and dtype in _HALVES:
        found.append(cudnn.GraphRequest(_convolution(dtype, known, problem), buffers, count))
    return tuple(found)


def _product(dtype: DType, known: LibraryEpilogue, m: gemm.Matrix) -> cublaslt.Product:
    several = m.batch > 1
    return cublaslt.Product(
        m.m,
        m.n,
        m.k,
        dtype,
        dtype,
        bias=known.bias is not None,
        activation=known.activation,
        addend=known.addend is not None,
        tf32=dtype is DType.FLOAT,
        batch=m.batch,
        lda=m.lda,
        ldb=m.ldb,
        ldd=m.ldd,
        batch_a=m.batch_a if several else None,
        batch_b=m.batch_b if several else None,
        batch_d=m.batch_d if several else None,
    )


def _convolution(dtype: DType, known: LibraryEpilogue, c: gemm.Convolution) -> cudnn.Convolution:
    return cudnn.Convolution(
        (c.batch_size, c.channels, c.height, c.width),
        (c.out, c.channels // c.groups, *c.kernel),
        (c.batch_size, c.out, *c.output),
        c.strides,
        c.pads,
        c.dilations,
        dtype,
        bias=known.bias is not None,
        addend=known.addend is not None,
        activation=known.activation,
        clip=known.clip,
    )


def attention_request(dtype: DType, layout: Layout, head: int, causal: bool) -> cudnn.GraphRequest:
    """Fused attention without a mask: rows whose mask is -inf throughout would become NaN."""
    g = layout
    description = cudnn.Attention(
        (g.batch, g.heads, g.queries, head),
        (g.batch, g.kv_heads, g.keys, head),
        (*g.q, 1),
        (*g.k, 1),
        (*g.v, 1),
        (*g.o, 1),
        g.scale,
        causal,
        None,
        dtype,
    )
    return cudnn.GraphRequest(description, (0, 1, 2, 3), 4)


def ask_libraries(steps: Sequence[Step]) -> list[Step]:
    """The steps with what libraries offer among their candidates; equals are asked for once."""
    asked = list(dict.fromkeys(r for step in steps for r in step.libraries))
    if not asked:
        return list(steps)
    device = driver.device()

    def ask(request: LibraryRequest) -> Sequence[LibraryPlan]:
        device.activate()
        return request.candidates()

    with ThreadPoolExecutor(_THREADS) as pool:
        answers = dict(zip(asked, pool.map(ask, asked), strict=True))
    return [
        dataclasses.replace(s, plans=(*s.plans, *(p for r in s.libraries for p in answers[r])))
        if s.libraries
        else s
        for s in steps
    ]


def library_versions(sources: Sequence[str]) -> dict[str, str]:
    """The versions of what candidates of these sources come from; absent for what is missing."""
    known = {"nvrtc": compiler.version, "cublas_lt": cublaslt.version, "cudnn": cudnn.version}
    found = {}
    for source in sources:
        try:
            found[source] = str(known[source]())
        except MissingDependencyError:
            continue
    return found
