"""Small models, each with one way to go wrong when a model is cleaned up.

An entry: opset, text of the graph, and what text cannot say (a function that changes the proto).
"""

from __future__ import annotations

from collections.abc import Callable

import onnx
from onnx import TensorProto, helper

Change = Callable[[onnx.ModelProto], None]
Trap = tuple[int, str] | tuple[int, str, Change]


def out_of_order(proto: onnx.ModelProto) -> None:
    """Reverse the nodes, in bodies too."""
    for graph in (proto.graph, *(a.g for n in proto.graph.node for a in n.attribute)):
        nodes = [onnx.NodeProto.FromString(n.SerializeToString()) for n in graph.node]
        del graph.node[:]
        graph.node.extend(reversed(nodes))


def as_input(proto: onnx.ModelProto) -> None:
    """Every initializer is an input too, which callers may override."""
    for tensor in proto.graph.initializer:
        proto.graph.input.append(
            helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
        )


def wrong_shapes(proto: onnx.ModelProto) -> None:
    """Intermediate values declare shapes that they do not have."""
    for node in proto.graph.node[:-1]:
        info = helper.make_tensor_value_info(node.output[0], TensorProto.FLOAT, [7, 9])
        proto.graph.value_info.append(info)


def without_output_shape(proto: onnx.ModelProto) -> None:
    proto.graph.output[0].type.tensor_type.ClearField("shape")


def sparse(proto: onnx.ModelProto) -> None:
    """A sparse initializer `s` of two elements."""
    tensor = proto.graph.sparse_initializer.add(dims=[2])
    tensor.values.CopyFrom(helper.make_tensor("s", TensorProto.FLOAT, [1], [5.0]))
    tensor.indices.CopyFrom(helper.make_tensor("", TensorProto.INT64, [1], [1]))


def sparse_constant(proto: onnx.ModelProto) -> None:
    """A Constant node whose value is sparse, read by the first node as `s`."""
    values = helper.make_tensor("v", TensorProto.FLOAT, [1], [5.0])
    indices = helper.make_tensor("i", TensorProto.INT64, [1], [1])
    value = helper.make_sparse_tensor(values, indices, [2])
    proto.graph.node.insert(0, helper.make_node("Constant", [], ["s"], sparse_value=value))


def absent_attribute(proto: onnx.ModelProto) -> None:
    """The second node says in words what the first leaves to the default."""
    proto.graph.node[1].attribute.append(helper.make_attribute("axis", -1))


def documented(proto: onnx.ModelProto) -> None:
    for index, node in enumerate(proto.graph.node):
        node.doc_string = f"number {index}"


def typed_data(proto: onnx.ModelProto) -> None:
    """Values stand in the typed fields, not in raw_data."""
    for tensor in proto.graph.initializer:
        values = onnx.numpy_helper.to_array(tensor)
        typed = helper.make_tensor(tensor.name, tensor.data_type, tensor.dims, values.ravel())
        tensor.CopyFrom(typed)


def old_ir(proto: onnx.ModelProto) -> None:
    as_input(proto)
    proto.ir_version = 3


TRAPS: dict[str, Trap] = {
    # --- element types
    "bool arithmetic": (
        17,
        "g (bool[2] x) => (bool[2] y) <bool[2] t = {1, 1}, bool[2] f = {0, 0}> "
        "{a = And(x, t) b = Or(a, f) c = Xor(b, f) y = Not(c)}",
    ),
    "uint64 beyond int64": (
        17,
        "g (uint64[1] x) => (uint64[1] y) <uint64[1] k = {9223372036854775807}, uint64[1] o = {2}> "
        "{m = Mul(k, o) y = Add(x, m)}",
    ),
    "int8 that wraps on the way": (
        17,
        "g (int32[2] x) => (int32[2] y) <int32[2] k = {300, -200}> "
        "{c = Cast<to=3>(k) d = Cast<to=6>(c) y = Add(x, d)}",
    ),
    "half the product of integers": (
        17,
        "g (int64[2] x) => (int64[2] y) <float h = {0.5}> "
        "{a = Cast<to=1>(x) b = Mul(a, h) y = Cast<to=7>(b)}",
    ),
    "half the product, shared": (
        17,
        "g (int64[2] x) => (int64[2] y, float[2] z) <float h = {0.5}> "
        "{a = Cast<to=1>(x) b = Mul(a, h) y = Cast<to=7>(b) z = Add(a, h)}",
    ),
    "float16 overflow": (
        17,
        "g (float16[1] x) => (float16[1] y) <float16[1] k = {60000}> {m = Add(k, k) y = Mul(x, m)}",
    ),
    "double constants stay double": (
        17,
        "g (double[2] x) => (double[2] y) <double[2] k = {0.1, 0.2}, double t = {0.3}> "
        "{m = Add(k, t) y = Sub(x, m)}",
    ),
    "double bias of a matrix product": (
        17,
        "g (double[N,2] x) => (double[N,2] y) <double[2,2] w = {1, 2, 3, 4}, double[2] b = {1, 2}> "
        "{m = MatMul(x, w) y = Add(m, b)}",
    ),
    "integer matrix product with a sum": (
        17,
        "g (int32[N,2] x) => (int32[N,2] y) <int32[2,2] w = {1, 2, 3, 4}, int32[2] b = {1, 2}> "
        "{m = MatMul(x, w) y = Add(m, b)}",
    ),
    "float8 and back": (
        19,
        "g (float[3] x) => (float[3] y) <float[3] k = {0.3, 1000, -7}> "
        "{a = Cast<to=17, saturate=0>(k) b = Cast<to=1>(a) y = Add(x, b)}",
    ),
    "quantised weights": (
        17,
        "g (float[N,2] x) => (float[N,2] y) <int8[2,2] q = {1, 2, 3, -4}, float s = {0.5}, "
        "int8 z = {1}, float[2] b = {1, 2}> "
        "{w = DequantizeLinear(q, s, z) m = MatMul(x, w) y = Add(m, b)}",
    ),
    "fake quantisation": (
        17,
        "g (float[3] x) => (float[3] y) <float s = {0.5}, int8 z = {0}> "
        "{q = QuantizeLinear(x, s, z) d = DequantizeLinear(q, s, z) y = Identity(d)}",
    ),
    "zero with a sign": (
        17,
        "g (float[2] x) => (float[2] y) <float[2] k = {0.0, -0.0}> {r = Div(x, k) y = Abs(r)}",
    ),
    "adding zero to a negative zero": (
        17,
        "g (float[2] x) => (float[2] y) <float z = {0.0}> "
        "{r = Relu(x) n = Neg(r) a = Add(n, z) y = Reciprocal(a)}",
    ),
    "one times not-a-number": (
        17,
        "g (float[2] x) => (float[2] y) <float o = {1}, float z = {0}> "
        "{r = Sqrt(x) m = Mul(r, z) n = Mul(m, o) y = Add(n, x)}",
    ),
    # --- opsets
    "clip with attributes": (
        6,
        "g (float[4] x) => (float[4] y) {a = Clip<min=-1.0, max=1.0>(x) y = Clip<min=0.0>(a)}",
    ),
    "slice with attributes": (
        9,
        "g (float[4,4] x) => (float[2,4] y) {a = Slice<starts=[1], ends=[3], axes=[0]>(x) "
        "y = Slice<starts=[0], ends=[9223372036854775807], axes=[1]>(a)}",
    ),
    "squeeze with attributes": (
        11,
        "g (float[1,4,1] x) => (float[4] y) {a = Squeeze<axes=[0]>(x) y = Squeeze<axes=[-1]>(a)}",
    ),
    "unsqueeze with attributes": (
        11,
        "g (float[4] x) => (float[1,4,1] y) {a = Unsqueeze<axes=[0]>(x) "
        "y = Unsqueeze<axes=[2]>(a)}",
    ),
    "softmax over all the rest": (
        11,
        "g (float[2,3,4] x) => (float[2,3,4] y) {a = Softmax<axis=1>(x) b = Softmax<axis=1>(x) "
        "y = Add(a, b)}",
    ),
    "dropout in its first form": (
        6,
        "g (float[4] x) => (float[4] y) {a = Dropout<is_test=1>(x) y = Relu(a)}",
    ),
    "dropout with a mask that is read": (
        10,
        "g (float[4] x) => (float[4] y, bool[4] m) {y, m = Dropout(x)}",
    ),
    "pad with attributes": (
        10,
        "g (float[4] x) => (float[4] y) {a = Pad<pads=[0, 0]>(x) y = Relu(a)}",
    ),
    "upsample": (
        9,
        "g (float[1,1,2,2] x) => (float[1,1,4,4] y) <float[4] s = {1, 1, 2, 2}> {i = Identity(s) "
        'y = Upsample<mode="nearest">(x, i)}',
    ),
    "broadcast by attribute": (
        6,
        "g (float[2,3] x) => (float[2,3] y) <float[2] k = {1, 1}> "
        "{a = Mul<broadcast=1, axis=0>(x, k) y = Relu(a)}",
    ),
    "sum over axes as attribute": (
        11,
        "g (float[2,3] x) => (float[2,1] y) {a = Identity(x) y = ReduceSum<axes=[1]>(a)}",
    ),
    "batch norm of old with its mode": (
        9,
        "g (float[1,2,2,2] x) => (float[1,2,2,2] y) <float[2] s = {1, 2}, float[2] b = {3, 4}, "
        "float[2] m = {0.5, 0.25}, float[2] v = {1, 4}, float[2,2,1,1] w = {1, 2, 3, 4}> "
        "{c = Conv(x, w) y = BatchNormalization<momentum=0.5>(c, s, b, m, v)}",
    ),
    "reshape that copies by zero": (
        14,
        "g (float[2,3,4] x) => (float[2,12] y) <int64[2] s = {0, -1}, int64[3] t = {0, 4, 3}> "
        "{a = Reshape(x, t) y = Reshape(a, s)}",
    ),
    "reshape where zero means empty": (
        14,
        "g (float[0,3] x) => (float[3,0] y) <int64[2] s = {3, 0}> {y = Reshape<allowzero=1>(x, s)}",
    ),
    # --- attributes
    "default and written default": (
        17,
        "g (float[2,3] x) => (float[2,3] y) {a = Softmax(x) b = Softmax(x) y = Add(a, b)}",
        absent_attribute,
    ),
    "equal nodes that are documented otherwise": (
        17,
        "g (float[2] x) => (float[2] y) {a = Exp(x) b = Exp(x) y = Add(a, b)}",
        documented,
    ),
    "concat along a negative axis": (
        17,
        "g (float[2,2] x) => (float[2,6] y) {a = Concat<axis=-1>(x, x) y = Concat<axis=1>(a, x)}",
    ),
    "concat along another axis": (
        17,
        "g (float[2,2] x) => (float[4,4] y) {a = Concat<axis=0>(x, x) y = Concat<axis=1>(a, a)}",
    ),
    "transposes of different rank": (
        17,
        "g (float[2,3] x) => (float[3,2,1] y) <int64[1] ax = {0}> "
        "{a = Transpose(x) b = Unsqueeze(a, ax) y = Transpose<perm=[1, 2, 0]>(b)}",
    ),
    "slice backwards": (
        17,
        "g (float[4] x) => (float[4] y) <int64[1] s = {-1}, int64[1] e = {-9223372036854775807}, "
        "int64[1] a = {0}, int64[1] t = {-1}> {b = Slice(x, s, e, a, t) y = Slice(b, s, e, a, t)}",
    ),
    "slice twice along one axis": (
        17,
        "g (float[8] x) => (float[2] y) <int64[1] o = {1}, int64[1] e = {7}, int64[1] f = {3}> "
        "{b = Slice(x, o, e) y = Slice(b, o, f)}",
    ),
    "gather by a negative index": (
        17,
        "g (float[2,N] x) => (int64 y) <int64 i = {-2}, int64 j = {1}> "
        "{s = Shape(x) a = Gather(s, i) y = Mul(a, j)}",
    ),
    "cast that rounds before another": (
        17,
        "g (float[2] x) => (int32[2] y) {a = Cast<to=16>(x) b = Cast<to=1>(a) y = Cast<to=6>(b)}",
    ),
    "cast through a boolean": (
        17,
        "g (int64[2] x) => (int64[2] y) {a = Cast<to=9>(x) y = Cast<to=7>(a)}",
    ),
    "cast from unsigned": (
        17,
        "g (uint8[2] x) => (int8[2] y) {a = Cast<to=6>(x) y = Cast<to=3>(a)}",
    ),
    "expand that broadcasts both ways": (
        17,
        "g (float[2,1] x) => (float[2,3] y) <int64[2] s = {1, 3}> {y = Expand(x, s)}",
    ),
    "expand to a lower rank": (
        17,
        "g (float[2,3] x) => (float[2,3] y) <int64[1] s = {1}> {a = Expand(x, s) y = Relu(a)}",
    ),
    "group convolution with factors": (
        17,
        "g (float[1,2,2,2] x) => (float[1,2,2,2] y) <float[2,1,1,1] w = {2, 3}, "
        "float[1,2,1,1] k = {5, 7}> {c = Conv<group=2>(x, w) y = Mul(c, k)}",
    ),
    "a factor along another axis than channels": (
        17,
        "g (float[1,2,2,2] x) => (float[1,2,2,2] y) <float[2,2,1,1] w = {2, 3, 4, 5}, "
        "float[2] k = {5, 7}> {c = Conv(x, w) y = Mul(c, k)}",
    ),
    # --- sharing
    "weights of two convolutions": (
        17,
        "g (float[1,2,2,2] x) => (float[1,2,2,2] y) <float[2,2,1,1] w = {2, 3, 4, 5}, "
        "float[1,2,1,1] k = {5, 7}> {c = Conv(x, w) d = Conv(c, w) y = Mul(d, k)}",
    ),
    "a convolution that is read twice": (
        17,
        "g (float[1,2,2,2] x) => (float[1,2,2,2] y) <float[2,2,1,1] w = {2, 3, 4, 5}, "
        "float[1,2,1,1] k = {5, 7}> {c = Conv(x, w) d = Mul(c, k) y = Add(c, d)}",
    ),
    "a shared shape": (
        17,
        "g (float[2,3] x, float[3,2] z) => (float[6] y, float[6] w) <int64[1] s = {-1}> "
        "{y = Reshape(x, s) w = Reshape(z, s)}",
    ),
    "a constant read outside and inside": (
        17,
        "g (float[2] x, bool c) => (float[2] y) <float[2] k = {1, 2}> {e = Exp(k) i = If(c) <"
        "then_branch = t () => (float[2] a) {a = Mul(x, e)}, "
        "else_branch = f () => (float[2] b) {b = Add(x, k)}> y = Add(i, e)}",
    ),
    "one input twice": (17, "g (float[2] x) => (float[2] y) {a = Identity(x) y = Mul(a, x)}"),
    # --- interface
    "an output that is an initializer": (
        17,
        "g (float[2] x) => (float[2] y, float[2] k) <float[2] k = {1, 2}> {y = Add(x, k)}",
    ),
    "outputs in another order than nodes": (
        17,
        "g (float[2] x) => (float[2] z, float[2] y) {y = Exp(x) i = Identity(y) z = Neg(i)}",
    ),
    "an input that nobody reads": (
        17,
        "g (float[2] x, float[3] unused) => (float[2] y) {y = Exp(x)}",
    ),
    "an output without a shape": (
        17,
        "g (float[2] x) => (float[2] y) {a = Identity(x) y = Exp(a)}",
        without_output_shape,
    ),
    "declared shapes that are wrong": (
        17,
        "g (float[2] x) => (int64[1] y) {a = Exp(x) y = Shape(a)}",
        wrong_shapes,
    ),
    "constants that callers may override": (
        17,
        "g (float[2] x) => (float[2] y) <float[2] k = {1, 1}> {m = Mul(x, k) y = Add(m, k)}",
        as_input,
    ),
    "shapes that callers may override": (
        17,
        "g (float[2,3] x) => (float[a,b] y) <int64[2] s = {2, 3}> {y = Reshape(x, s)}",
        as_input,
    ),
    "a condition that callers may override": (
        17,
        "g (float[2] x) => (float[2] y) <bool c = {1}> {y = If(c) <"
        "then_branch = t () => (float[2] a) {a = Exp(x)}, "
        "else_branch = e () => (float[2] b) {b = Neg(x)}>}",
        as_input,
    ),
    "initializers as inputs, of old": (
        8,
        "g (float[2] x) => (float[2] y) <float[2] k = {1, 2}> {m = Mul(x, k) y = Add(m, k)}",
        old_ir,
    ),
    "values in typed fields": (
        17,
        "g (float[2] x, int64[2] i) => (float[2] y, int64[2] j) "
        "<float[2] k = {1, 2}, int64[2] n = {3, 4}> "
        "{m = Exp(k) y = Add(x, m) o = Neg(n) j = Add(i, o)}",
        typed_data,
    ),
    # --- random
    "dropout in training": (
        17,
        "g (float[4] x) => (float[4] y) <float r = {0.0}, bool t = {1}> {a = Dropout(x, r, t) "
        "y = Neg(a)}",
    ),
    "random in a branch": (
        17,
        "g (float[2] x, bool c) => (bool[2] y) {i = If(c) <"
        "then_branch = t () => (float[2] a) {a = RandomUniform<shape=[2]>()}, "
        "else_branch = e () => (float[2] b) {b = RandomUniform<shape=[2]>()}> "
        "l = Less(i, i) y = Not(l)}",
    ),
    "equal seeds": (
        17,
        "g () => (float[2] y) {a = RandomUniform<shape=[2], seed=1.0>() "
        "b = RandomUniform<shape=[2], seed=1.0>() y = Sub(a, b)}",
    ),
    "unread random": (
        17,
        "g (float[2] x) => (float[2] y) {a = RandomUniform<shape=[2]>() y = Neg(x)}",
    ),
    # --- sequences, optionals, sparse, strings
    "split to a sequence of constants": (
        17,
        "g (float[2] x) => (float[2] y) <float[4] k = {1, 2, 3, 4}, int64 i = {1}, "
        "int64[2] p = {2, 2}> {s = SplitToSequence(k, p) a = SequenceAt(s, i) y = Add(x, a)}",
    ),
    "length of a sequence": (
        17,
        "g (float[2] x, int64 i) => (int64 y) {s = SequenceConstruct(x, x, x) "
        "n = SequenceLength(s) y = Add(n, i)}",
    ),
    "empty sequence": (
        17,
        "g (float[2] x) => (float[2] y) <int64 z = {0}> {e = SequenceEmpty<dtype=1>() "
        "s = SequenceInsert(e, x) y = SequenceAt(s, z)}",
    ),
    "sparse constant": (17, "g (float[2] x) => (float[2] y) {y = Add(x, s)}", sparse_constant),
    "sparse initializer read twice": (
        17,
        "g (float[2] x) => (float[2] y) {a = Add(x, s) i = Identity(s) y = Mul(a, i)}",
        sparse,
    ),
    "strings that are equal": (
        17,
        'g (string[2] x) => (string[4] y) <string[2] s = {"a", "b"}, string[2] t = {"a", "b"}> '
        "{c = Concat<axis=0>(s, t) i = Identity(c) y = Concat<axis=0>(x, s)}",
    ),
    "strings that are gathered": (
        17,
        'g (int64[2] x) => (string[2] y) <string[3] s = {"a", "b", "c"}> '
        "{a = Abs(x) m = Clip(a) z = Sub(m, m) t = Identity(s) y = Gather(t, z)}",
    ),
    # --- control flow
    "a branch whose condition is computed from constants": (
        17,
        "g (float[2] x) => (float[2] y) <float p = {1}, float q = {2}> {c = Less(p, q) y = If(c) <"
        "then_branch = t () => (float[2] a) {a = Exp(x)}, "
        "else_branch = e () => (float[2] b) {b = Neg(x)}>}",
    ),
    "a branch whose condition follows from a shape": (
        17,
        "g (float[2,N] x) => (float[2,N] y) <int64 z = {0}, int64 t = {2}> {s = Shape(x) "
        "d = Gather(s, z) c = Equal(d, t) y = If(c) <"
        "then_branch = t () => (float[2,N] a) {a = Exp(x)}, "
        "else_branch = e () => (float[2,N] b) {b = Neg(x)}>}",
    ),
    "a branch whose condition depends on the caller's shape": (
        17,
        "g (float[N,2] x) => (float[N,2] y) <int64 z = {0}, int64 t = {2}> {s = Shape(x) "
        "d = Gather(s, z) c = Equal(d, t) y = If(c) <"
        "then_branch = t () => (float[N,2] a) {a = Exp(x)}, "
        "else_branch = e () => (float[N,2] b) {b = Neg(x)}>}",
    ),
    "branches that give nothing but constants": (
        17,
        "g (float[2] x, bool c) => (float[2] y) {i = If(c) <then_branch = t () => (float[2] a) "
        "{a = Constant<value_floats=[1.0, 2.0]>()}, else_branch = e () => (float[2] b) "
        "{b = Constant<value_floats=[3.0, 4.0]>()}> y = Add(i, x)}",
    ),
    "nested captures out of order": (
        17,
        "g (float[2] x, bool c) => (float[2] y) {o = Exp(x) p = Neg(o) y = If(c) <"
        "then_branch = t () => (float[2] a) {i = Identity(p) a = Mul(i, o)}, "
        "else_branch = e () => (float[2] b) {b = Neg(o)}>}",
        out_of_order,
    ),
    "nodes in reverse": (
        17,
        "g (float[2] x) => (float[2] y) <float[2] k = {1, 2}> "
        "{e = Exp(k) a = Mul(x, e) b = Identity(a) y = Neg(b)}",
        out_of_order,
    ),
    "a dead node out of order": (
        17,
        "g (float[2] x) => (float[2] y) {a = Exp(x) b = Neg(a) c = Abs(b) y = Neg(a)}",
        out_of_order,
    ),
}
