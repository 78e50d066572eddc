"""ONNX's shape inference in a process of its own, for models on which it might end the process.

Its Slice-10 aborts where an axis has a negative size; and a window that is larger than the image,
negative pads or a negative count make such sizes from sound ones.
"""

from __future__ import annotations

import faulthandler
import os
from typing import NoReturn

import onnx
from onnx import ModelProto

# Operators that make no negative sizes of sizes that are none.
_HARMLESS = frozenset(
    """
    Abs Acos Acosh Add And ArgMax ArgMin Asin Asinh Atan Atanh BatchNormalization BitShift
    BitwiseAnd BitwiseNot BitwiseOr BitwiseXor Cast CastLike Ceil Celu Clip Concat Constant
    ConstantOfShape Cos Cosh CumSum DequantizeLinear Div Dropout DynamicQuantizeLinear Einsum Elu
    Equal Erf Exp Flatten Floor Gather GatherElements GatherND Gelu Gemm GlobalAveragePool
    GlobalMaxPool Greater GreaterOrEqual GroupNormalization HardSigmoid HardSwish Identity If
    InstanceNormalization IsInf IsNaN LayerNormalization LeakyRelu Less LessOrEqual Log LogSoftmax
    Loop LpNormalization MatMul MatMulInteger Max Mean Min Mish Mod Mul Neg NonZero Not Or PRelu
    Pow QuantizeLinear RMSNormalization Range Reciprocal ReduceL1 ReduceL2 ReduceLogSum
    ReduceLogSumExp ReduceMax ReduceMean ReduceMin ReduceProd ReduceSum ReduceSumSquare Relu
    Reshape Round Scan ScatterElements ScatterND Selu Shape Shrink Sigmoid Sign Sin Sinh Size
    Slice Softmax Softplus Softsign Sqrt Squeeze Sub Sum Tan Tanh ThresholdedRelu Transpose Trilu
    Unsqueeze Where Xor
    """.split()  # noqa: SIM905  # a list of so many strings is a page long
)
_ERRORS: dict[bytes, type[Exception]] = {
    b"i": onnx.shape_inference.InferenceError,
    b"c": onnx.checker.ValidationError,
    b"x": IndexError,
    b"m": MemoryError,
    b"v": ValueError,
    b"r": RuntimeError,
}
_DONE = b"."


def may_abort(ops: set[tuple[str, str]]) -> bool:
    """Whether a model of these operators, as (domain, name), may need a process of its own."""
    if ("", "Slice") not in ops or not hasattr(os, "fork"):
        return False
    return any(op not in _HARMLESS for domain, op in ops if domain in ("", "ai.onnx.ml"))


def infer_apart(proto: ModelProto, data_prop: bool) -> ModelProto:
    """`onnx.shape_inference.infer_shapes` in a child of this process.

    Raises:
        ValueError: it ended the child.
        onnx.shape_inference.InferenceError, onnx.checker.ValidationError, IndexError,
            MemoryError, RuntimeError: as in this process.
    """
    reading, writing = os.pipe()
    try:
        child = os.fork()
    except OSError:  # no memory or process is to be had, and most such models are sound
        os.close(reading)
        os.close(writing)
        return onnx.shape_inference.infer_shapes(proto, data_prop=data_prop)
    if not child:
        _answer(writing, proto, data_prop)
    os.close(writing)
    with open(reading, "rb") as pipe:
        content = pipe.read()
    _, status = os.waitpid(child, 0)
    kind, content = content[:1], content[1:]
    if status or not kind:
        raise ValueError("ONNX's shape inference ends the process on this model")
    if kind in _ERRORS:
        raise _ERRORS[kind](content.decode())
    found: ModelProto = ModelProto.FromString(content)
    found.graph.initializer.extend(proto.graph.initializer)
    return found


def _answer(pipe: int, proto: ModelProto, data_prop: bool) -> NoReturn:
    """Infer, write what came of it to `pipe`, and end the process, whatever happens."""
    try:
        faulthandler.disable()
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # where an abort tells of itself
        with open(pipe, "wb") as out:
            out.write(_inferred(proto, data_prop))
        os._exit(0)
    finally:
        os._exit(1)


def _inferred(proto: ModelProto, data_prop: bool) -> bytes:
    try:
        inferred = onnx.shape_inference.infer_shapes(proto, data_prop=data_prop)
    except tuple(_ERRORS.values()) as err:
        kind = next(kind for kind, error in _ERRORS.items() if isinstance(err, error))
        return kind + str(err).encode()
    del inferred.graph.initializer[:]  # the parent has the weights
    content: bytes = inferred.SerializeToString()
    return _DONE + content
