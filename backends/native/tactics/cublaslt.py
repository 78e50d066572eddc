"""Matrix products by cuBLASLt, by address: no allocation, no stream of its own, capture-safe.

Everything is row-major here: D [m, n] = epilogue(A [m, k] B + C), B either [k, n] or, transposed,
[n, k]. cuBLASLt is column-major, so it is asked for the transposed product.
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, ClassVar

from polytool.backends.native.kernels import libraries
from polytool.backends.native.kernels.source import LibraryPlan, LibraryRequest
from polytool.errors import MissingDependencyError, RunnerError, UnsupportedError
from polytool.tensors import DType

WORKSPACE = 32 << 20
"""Bytes that every product may use."""
_SUGGESTIONS = 8  # the fastest was among these in every shape that was timed

_TYPES = {
    DType.FLOAT: 0,
    DType.DOUBLE: 1,
    DType.FLOAT16: 2,
    DType.INT8: 3,
    DType.INT32: 10,
    DType.BFLOAT16: 14,
    DType.FLOAT8E4M3FN: 28,
    DType.FLOAT8E5M2: 29,
}
_COMPUTE_F32, _COMPUTE_F64, _COMPUTE_I32, _COMPUTE_TF32 = 68, 70, 72, 77
_EPILOGUES = {
    ("none", False): 1,
    ("none", True): 4,
    ("relu", False): 2,
    ("relu", True): 6,
    ("gelu_tanh", False): 32,
    ("gelu_tanh", True): 36,
}
_TRANS_A, _TRANS_B, _EPILOGUE, _BIAS, _BIAS_TYPE = 3, 4, 7, 8, 26
_BATCH_COUNT, _BATCH_OFFSET = 5, 6
_MAX_WORKSPACE = 1
_OP_N, _OP_T = 0, 1
_STATUS = {7: "an invalid value", 8: "an unsupported device", 13: "execution", 15: "no kernel"}


class _Heuristic(ctypes.Structure):
    _fields_ = (
        ("algo", ctypes.c_uint64 * 8),
        ("workspace", ctypes.c_size_t),
        ("state", ctypes.c_int),
        ("waves", ctypes.c_float),
        ("reserved", ctypes.c_int * 4),
    )


@cache
def _lib() -> ctypes.CDLL:
    lib = libraries.load("libcublasLt.so.13", "nvidia-cublas", "cuBLASLt matrix products")
    lib.cublasLtGetVersion.restype = ctypes.c_size_t
    return lib


def version() -> int:
    """cuBLASLt's version, part of the key of every time and algorithm."""
    return int(_lib().cublasLtGetVersion())


def _call(name: str, *args: Any) -> None:
    status = getattr(_lib(), name)(*args)
    if status:
        raise RunnerError(f"{name} failed: {_STATUS.get(status, f'status {status}')}")


_handles = threading.local()


def _handle() -> ctypes.c_void_p:
    """One handle a thread; it holds no stream and no workspace."""
    if not hasattr(_handles, "value"):
        handle = ctypes.c_void_p()
        _call("cublasLtCreate", ctypes.byref(handle))
        _handles.value = handle
    return _handles.value  # type: ignore[no-any-return]  # threading.local is untyped


@dataclass(frozen=True)
class Product:
    """A batch of matrix products; leading dimensions and batch strides are in elements.

    Attributes:
        transposed: B lies as [n, k] instead of [k, n].
        bias: a vector [n] of D's type is added.
        activation: `none`, `relu` or `gelu_tanh`, after bias and addend.
        addend: a matrix like D is added to the product.
        tf32: float32 products on tensor cores, operands rounded to 10 bits of mantissa.
    """

    m: int
    n: int
    k: int
    dtype: DType = DType.FLOAT16
    output: DType = DType.FLOAT16
    transposed: bool = True
    bias: bool = False
    activation: str = "none"
    addend: bool = False
    tf32: bool = False
    batch: int = 1
    lda: int | None = None
    ldb: int | None = None
    ldd: int | None = None
    batch_a: int | None = None
    batch_b: int | None = None
    batch_d: int | None = None

    def _compute(self) -> tuple[int, int]:
        """Compute type and type of the factors."""
        if self.dtype is DType.INT8:
            return _COMPUTE_I32, _TYPES[DType.INT32 if self.output is DType.INT32 else DType.FLOAT]
        if self.dtype is DType.DOUBLE:
            return _COMPUTE_F64, _TYPES[DType.DOUBLE]
        return (_COMPUTE_TF32 if self.tf32 else _COMPUTE_F32), _TYPES[DType.FLOAT]


class _Descriptors:
    """cuBLASLt's description of a product, owned."""

    def __init__(self, product: Product) -> None:
        compute, scale = product._compute()
        epilogue = _EPILOGUES.get((product.activation, product.bias))
        if epilogue is None or not {product.dtype, product.output} <= _TYPES.keys():
            raise UnsupportedError(
                f"cuBLASLt has no product of {product.dtype.label} to {product.output.label} with"
                f" activation {product.activation}"
            )
        self.scale = scale
        self.description = ctypes.c_void_p()
        _call("cublasLtMatmulDescCreate", ctypes.byref(self.description), compute, scale)
        self._set(_TRANS_A, _OP_T if product.transposed else _OP_N)
        self._set(_TRANS_B, _OP_N)
        self._set(_EPILOGUE, epilogue)
        if product.bias:
            self._set(_BIAS_TYPE, _TYPES[product.output])
        p = product
        kind = _TYPES[p.dtype]
        rows_b, columns_b = (p.k, p.n) if p.transposed else (p.n, p.k)
        self.b = self._layout(kind, rows_b, columns_b, p.ldb, p, p.batch_b)
        self.a = self._layout(kind, p.k, p.m, p.lda, p, p.batch_a)
        self.d = self._layout(_TYPES[p.output], p.n, p.m, p.ldd, p, p.batch_d)

    def _set(self, attribute: int, value: int) -> None:
        word = ctypes.c_int32(value)
        _call(
            "cublasLtMatmulDescSetAttribute",
            self.description,
            attribute,
            ctypes.byref(word),
            ctypes.c_size_t(4),
        )

    def set_bias(self, address: int) -> None:
        """Tell where the bias lies."""
        value = ctypes.c_void_p(address)
        _call(
            "cublasLtMatmulDescSetAttribute",
            self.description,
            _BIAS,
            ctypes.byref(value),
            ctypes.c_size_t(8),
        )

    @staticmethod
    def _layout(
        kind: int, rows: int, columns: int, leading: int | None, p: Product, stride: int | None
    ) -> ctypes.c_void_p:
        layout = ctypes.c_void_p()
        leading = rows if leading is None else leading
        _call(
            "cublasLtMatrixLayoutCreate",
            ctypes.byref(layout),
            kind,
            ctypes.c_uint64(rows),
            ctypes.c_uint64(columns),
            ctypes.c_int64(leading),
        )
        if p.batch > 1:
            count = ctypes.c_int32(p.batch)
            offset = ctypes.c_int64(leading * columns if stride is None else stride)
            for attribute, value in ((_BATCH_COUNT, count), (_BATCH_OFFSET, offset)):
                _call(
                    "cublasLtMatrixLayoutSetAttribute",
                    layout,
                    attribute,
                    ctypes.byref(value),
                    ctypes.c_size_t(ctypes.sizeof(value)),
                )
        return layout

    def __del__(self) -> None:
        for layout in (getattr(self, n, None) for n in "abd"):
            if layout:
                _lib().cublasLtMatrixLayoutDestroy(layout)
        if getattr(self, "description", None):
            _lib().cublasLtMatmulDescDestroy(self.description)


@dataclass(frozen=True)
class Algorithm:
    """One of cuBLASLt's ways to do a product; valid for this device and library version.

    Attributes:
        data: 64 opaque bytes, what an engine file stores.
        workspace: bytes that it needs.
    """

    data: bytes
    workspace: int


def algorithms(
    product: Product, *, most: int = 16, workspace: int = WORKSPACE
) -> tuple[Algorithm, ...]:
    """What cuBLASLt's heuristics suggest, best first; empty when it has nothing.

    Operands are assumed to be aligned to 256 bytes.
    """
    descriptors, preference = _Descriptors(product), ctypes.c_void_p()
    _call("cublasLtMatmulPreferenceCreate", ctypes.byref(preference))
    try:
        limit = ctypes.c_uint64(workspace)
        _call(
            "cublasLtMatmulPreferenceSetAttribute",
            preference,
            _MAX_WORKSPACE,
            ctypes.byref(limit),
            ctypes.c_size_t(8),
        )
        results, count = (_Heuristic * most)(), ctypes.c_int()
        status = _lib().cublasLtMatmulAlgoGetHeuristic(
            _handle(),
            descriptors.description,
            descriptors.b,
            descriptors.a,
            descriptors.d,
            descriptors.d,
            preference,
            most,
            results,
            ctypes.byref(count),
        )
    finally:
        _lib().cublasLtMatmulPreferenceDestroy(preference)
    if status == 15:  # not supported
        return ()
    if status:
        raise RunnerError(f"cublasLtMatmulAlgoGetHeuristic failed: status {status}")
    found = [r for r in results[: count.value] if r.state == 0]
    return tuple(dict.fromkeys(Algorithm(bytes(r.algo), r.workspace) for r in found))


class Launch:
    """A product with addresses in place; call it with a stream."""

    name = "cublaslt"

    def __init__(
        self, product: Product, algorithm: Algorithm, addresses: Sequence[int], workspace: int
    ) -> None:
        """Prepare.

        Args:
            product: what is computed.
            algorithm: how.
            addresses: of A, B, the bias if there is one, the addend if there is one, D.
            workspace: address of `algorithm.workspace` bytes.
        """
        self._descriptors = _Descriptors(product)
        rest = list(addresses[2:])
        if product.bias:
            self._descriptors.set_bias(rest.pop(0))
        d = rest[-1]
        c = rest[0] if product.addend else d
        self._factors = _factors(self._descriptors.scale, product.addend)
        self._algo = (ctypes.c_uint64 * 8).from_buffer_copy(algorithm.data)
        self._size = ctypes.c_size_t(algorithm.workspace)
        self._pointers = [ctypes.c_void_p(p) for p in (addresses[1], addresses[0], c, d, workspace)]

    def __call__(self, stream: int) -> None:
        b, a, c, d, workspace = self._pointers
        which = self._descriptors
        _call(
            "cublasLtMatmul",
            _handle(),
            which.description,
            ctypes.byref(self._factors[0]),
            b,
            which.b,
            a,
            which.a,
            ctypes.byref(self._factors[1]),
            c,
            which.d,
            d,
            which.d,
            ctypes.byref(self._algo),
            workspace,
            self._size,
            ctypes.c_void_p(stream),
        )


class ProductPlan(LibraryPlan):
    """One algorithm for a product, as a candidate.

    Attributes:
        buffers: which of the operation's buffers are A, B, the bias, the addend, D.
        count: how many buffers the operation has; the workspace comes after them.
    """

    source = "cublas_lt"

    def __init__(
        self,
        product: Product,
        algorithm: Algorithm,
        number: int,
        buffers: Sequence[int],
        count: int,
    ) -> None:
        self.name = f"cublas_lt {number}"
        self.workspace = algorithm.workspace
        self._product, self._algorithm = product, algorithm
        self._buffers, self._count = tuple(buffers), count

    def prepare(self, addresses: Sequence[int]) -> Sequence[Launch]:
        """The launch; see `LibraryPlan.prepare`."""
        held = [addresses[i] for i in self._buffers]
        space = addresses[self._count] if len(addresses) > self._count else 0
        return (Launch(self._product, self._algorithm, held, space),)


@dataclass(frozen=True)
class ProductRequest(LibraryRequest):
    """A product whose algorithms join an operation's candidates; attributes as of `ProductPlan`."""

    product: Product
    buffers: tuple[int, ...]
    count: int

    source: ClassVar[str] = "cublas_lt"

    def candidates(self) -> Sequence[ProductPlan]:
        """What the heuristics suggest, best first."""
        try:
            found = algorithms(self.product, most=_SUGGESTIONS)
        except (MissingDependencyError, UnsupportedError):
            return ()
        return tuple(
            ProductPlan(self.product, algorithm, number, self.buffers, self.count)
            for number, algorithm in enumerate(found)
        )


def _factors(scale: int, addend: bool) -> tuple[Any, Any]:
    kind = {0: ctypes.c_float, 1: ctypes.c_double, 10: ctypes.c_int32}[scale]
    return kind(1), kind(1 if addend else 0)
