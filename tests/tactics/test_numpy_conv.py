"""Tuned convolutions equal the operator in float64, whatever their geometry."""

import itertools

import numpy as np
import pytest

from tests.tactics.tuned import check, model

RNG = np.random.default_rng(7)


def normal(*shape):
    return RNG.standard_normal(shape).astype(np.float32)


def conv(x_shapes, w_shape, attributes, tail="y = Identity(c)", bias=True, extra=(), weights=()):
    rank = len(w_shape)
    dims = ",".join(f"d{i}" if i != 1 else str(x_shapes[0][1]) for i in range(rank))
    out = ",".join("?" if i != 1 else str(w_shape[0]) for i in range(rank))
    table = {"w": normal(*w_shape), **dict(weights)}
    if bias:
        table["b"] = normal(w_shape[0])
    inputs = ", ".join([f"float[{dims}] x", *extra])
    body = f"c = Conv<group=1>(x, w{', b' if bias else ''}) {tail}"
    if attributes:
        body = body.replace("group=1", attributes, 1)
    return model(body, inputs, f"float[{out}] y", table)


GEOMETRIES = [  # input shapes, filters, attributes
    ([(1, 8, 9, 11), (3, 8, 1, 1)], (6, 8, 1, 1), ""),
    ([(2, 8, 9, 11)], (6, 8, 1, 1), "strides=[2,2]"),
    ([(2, 96, 40, 37)], (64, 96, 1, 1), ""),
    ([(2, 16, 13, 15), (1, 16, 40, 7), (1, 16, 3, 3)], (24, 16, 3, 3), "pads=[1,1,1,1]"),
    ([(1, 48, 52, 31)], (96, 48, 3, 3), "pads=[1,1,1,1]"),
    ([(1, 40, 23, 17)], (12, 40, 3, 3), "pads=[0,2,1,0],strides=[2,1]"),
    ([(1, 40, 23, 17)], (12, 40, 3, 3), "pads=[1,1,1,1],strides=[2,2]"),
    ([(1, 40, 23, 17)], (12, 40, 3, 3), "pads=[2,3,2,3],dilations=[2,3]"),
    ([(1, 40, 23, 17)], (12, 40, 4, 2), "pads=[5,4,5,4],strides=[3,2],dilations=[2,2]"),
    ([(2, 40, 23, 17)], (12, 40, 3, 3), 'auto_pad="SAME_UPPER",strides=[2,3]'),
    ([(2, 40, 23, 17)], (12, 40, 3, 3), 'auto_pad="SAME_LOWER",strides=[2,2]'),
    ([(1, 33, 64, 1)], (12, 33, 5, 1), ""),
    ([(1, 33, 1, 64)], (12, 33, 1, 5), "pads=[0,2,0,2]"),
    ([(1, 3, 32, 40)], (16, 3, 3, 3), "pads=[1,1,1,1],strides=[2,2]"),
    ([(1, 1, 8, 90)], (16, 1, 3, 25), "pads=[1,12,1,12]"),
    ([(2, 12, 14, 15)], (18, 4, 3, 3), "pads=[1,1,1,1],group=3"),
    ([(1, 96, 40, 41)], (96, 24, 3, 3), "pads=[1,1,1,1],group=4"),
    ([(2, 10, 14, 15), (1, 10, 1, 1)], (10, 1, 3, 3), "pads=[1,1,1,1],group=10"),
    ([(1, 64, 41, 59)], (64, 1, 5, 5), "pads=[2,2,2,2],group=64"),
    ([(1, 64, 40, 60)], (64, 1, 5, 5), "pads=[2,2,2,2],group=64"),
    ([(1, 24, 41, 59)], (24, 1, 5, 3), "pads=[2,0,1,2],strides=[2,1],group=24"),
    ([(1, 24, 41, 59)], (24, 1, 3, 3), "pads=[2,2,2,2],strides=[3,2],dilations=[2,2],group=24"),
    ([(2, 12, 9, 50)], (36, 1, 3, 3), "pads=[1,1,1,1],group=12"),
    ([(2, 5, 4, 4)], (5, 1, 4, 4), "group=5"),
    ([(2, 24, 50), (1, 24, 3)], (8, 24, 3), "pads=[1,1]"),
    ([(1, 80, 700)], (8, 80, 5), "pads=[2,1],strides=[2]"),
    ([(2, 1, 640)], (30, 1, 256), "strides=[128]"),
    ([(2, 24, 50)], (24, 1, 7), "pads=[3,3],group=24"),
    ([(1, 6, 5, 7, 9)], (4, 6, 3, 3, 3), "pads=[1,1,1,1,1,1]"),
    ([(2, 6, 5, 7, 9)], (4, 3, 1, 2, 3), "strides=[1,2,1],group=2"),
    ([(1, 6, 5, 7, 9)], (4, 6, 1, 1, 1), ""),
]


@pytest.mark.parametrize(("shapes", "filters", "attributes"), GEOMETRIES)
def test_geometry(shapes, filters, attributes):
    proto = conv(shapes, filters, attributes)
    check(proto, *({"x": normal(*s)} for s in shapes), tactic="numpy.conv")


EPILOGUES = {
    "relu": "y = Relu(c)",
    "silu": "s = Sigmoid(c) y = Mul(c, s)",
    "hard swish": "a = Add(c, three) k = Clip(a, zero, six) m = Mul(c, k) y = Div(m, six)",
    "leaky": "y = LeakyRelu<alpha=0.1>(c)",
    "scale and shift": "m = Mul(c, scale) a = Add(m, shift) y = Relu(a)",
    "erf gelu": "e = Erf(c) o = Add(e, one) m = Mul(c, o) y = Mul(m, half)",
    "unfusable step": "a = Relu(c) y = Elu<alpha=0.7>(a)",
}
CONSTANTS = {
    "zero": np.float32(0),
    "half": np.float32(0.5),
    "one": np.float32(1),
    "three": np.float32(3),
    "six": np.float32(6),
    "scale": normal(48, 1, 1),
    "shift": normal(1, 48, 1, 1),
}


@pytest.mark.parametrize(
    ("name", "geometry"), list(itertools.product(EPILOGUES, ("1x1", "3x3", "depthwise", "tiny")))
)
def test_epilogue(name, geometry):
    channels, attributes = 48, ""
    filters, shape = (48, 48, 1, 1), (2, channels, 33, 35)
    if geometry == "3x3":
        filters, attributes = (48, 48, 3, 3), "pads=[1,1,1,1]"
    if geometry == "depthwise":
        filters, attributes = (48, 1, 3, 3), "pads=[1,1,1,1],group=48"
    if geometry == "tiny":
        shape = (1, channels, 2, 3)
    used = {n: np.asarray(v) for n, v in CONSTANTS.items() if n in EPILOGUES[name]}
    proto = conv([shape], filters, attributes, EPILOGUES[name], weights=used)
    check(proto, {"x": normal(*shape)}, tactic="numpy.conv")


def test_residual_of_the_same_shape_and_scale_of_each_image():
    tail = "r = Add(c, z) g = Mul(r, s) y = Relu(g)"
    proto = conv(
        [(2, 32, 20, 30)],
        (48, 32, 3, 3),
        "pads=[1,1,1,1]",
        tail,
        extra=("float[2,48,20,30] z", "float[2,48,1,1] s"),
    )
    proto.graph.input[0].type.CopyFrom(
        model("y = Identity(x)", "float[2,32,20,30] x", "float[2,32,20,30] y", {})
        .graph.input[0]
        .type
    )
    feeds = {"x": normal(2, 32, 20, 30), "z": normal(2, 48, 20, 30), "s": normal(2, 48, 1, 1)}
    check(proto, feeds, tactic="numpy.conv")


def test_input_that_is_a_transposed_view():
    proto = model(
        "t = Transpose<perm=[0,3,1,2]>(x) y = Conv<pads=[1,1,1,1]>(t, w)",
        "float[N,H,W,16] x",
        "float[N,20,H,W] y",
        {"w": normal(20, 16, 3, 3)},
    )
    check(proto, {"x": normal(2, 19, 21, 16)}, tactic="numpy.conv")


def test_empty_batch_gives_an_empty_result():
    proto = conv([(0, 8, 9, 9)], (4, 8, 3, 3), "pads=[1,1,1,1]", "y = Relu(c)")
    check(proto, {"x": normal(0, 8, 9, 9)}, tactic="numpy.conv")


@pytest.mark.parametrize("group", [1, 16])
def test_values_that_are_not_finite_reach_only_the_outputs_that_see_them(group):
    proto = conv([(1, 16, 12, 20)], (16, 16 // group, 3, 3), f"pads=[1,1,1,1],group={group}")
    x = normal(1, 16, 12, 20)
    for value, place in ((np.inf, (0, 3, 5, 6)), (np.nan, (0, 9, 1, 1)), (-np.inf, (0, 3, 5, 8))):
        x[place] = value
    check(proto, {"x": x}, tactic="numpy.conv")
