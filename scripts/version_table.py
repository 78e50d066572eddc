"""Models for old versions of operators, written by hand in ONNX text: see version_cases.py."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Made:
    """One row of the table.

    Attributes:
        want: the outputs from the inputs, where ONNX Runtime has no kernel.
        feeds: inputs that are not to be drawn.
    """

    version: int
    inputs: str
    outputs: str
    nodes: str
    want: Callable[..., Any] | None = None
    feeds: dict[str, Any] = field(default_factory=dict)
    domain: str = ""


def made() -> Iterator[Made]:
    """Every row."""
    yield from _broadcasting()
    yield from _attributes_that_became_inputs()
    yield from _reductions()
    yield from _meanings_that_changed()
    yield from _newest_only()


def _broadcasting() -> Iterator[Made]:
    arithmetic = {"Add": np.add, "Sub": np.subtract, "Mul": np.multiply, "Div": np.divide}
    compare = {"Equal": np.equal, "Greater": np.greater, "Less": np.less}
    logic = {"And": np.logical_and, "Or": np.logical_or, "Xor": np.logical_xor}
    for version in (1, 6):
        for op, function in arithmetic.items():
            yield Made(
                version,
                "float[2,3,4,5] x, float[3,4] y",
                "float[2,3,4,5] z",
                f"z = {op}<axis=1, broadcast=1>(x, y)",
                lambda x, y, f=function: f(x, y[:, :, None]),
            )
            yield Made(
                version,
                "float[2,3,4,5] x, float[4,5] y",
                "float[2,3,4,5] z",
                f"z = {op}<broadcast=1>(x, y)",
                function,
            )
    for op, function in (compare | logic).items():
        kind = "bool" if op in logic else "int32" if op == "Equal" else "float"
        yield Made(
            1,
            f"{kind}[2,3,4] x, {kind}[3] y",
            "bool[2,3,4] z",
            f"z = {op}<axis=1, broadcast=1>(x, y)",
            lambda x, y, f=function: f(x, y[:, None]),
        )
    yield Made(
        1,
        "float[2,3] x, float[1] y",
        "float[2,3] z",
        "z = Pow<broadcast=1>(x, y)",
        lambda x, y: np.power(x, y),
        {"x": np.float32([[1, 2, 3], [4, 5, 6]]), "y": np.float32([2.5])},
    )
    yield Made(
        6,
        "float[2,3,4,5] x, float[3] s",
        "float[2,3,4,5] z",
        "z = PRelu(x, s)",
        lambda x, s: np.where(x < 0, x * s[:, None, None], x),
    )
    yield Made(
        6,
        "float[3,4] a, float[4,5] b, float[5] c",
        "float[3,5] z",
        "z = Gemm<broadcast=1, alpha=0.5, beta=2.0>(a, b, c)",
        lambda a, b, c: 0.5 * (a @ b) + 2 * c,
    )


def _attributes_that_became_inputs() -> Iterator[Made]:
    for version in (1, 6):
        yield Made(
            version,
            "float[3,4] x",
            "float[3,4] z",
            "z = Clip<min=-0.5, max=0.25>(x)",
            lambda x: np.clip(x, -0.5, 0.25),
        )
    yield Made(6, "float[3,4] x", "float[3,4] z", "z = Clip<max=0.25>(x)")
    yield Made(6, "double[3] x", "double[3] z", "z = Clip<min=0.0>(x)", lambda x: np.maximum(x, 0))
    yield Made(
        1,
        "float[2,3] x",
        "float[5,6] z",
        "z = Pad<paddings=[1,2,2,1], value=1.5>(x)",
        lambda x: np.pad(x, ((1, 2), (2, 1)), constant_values=1.5),
    )
    for mode in ("constant", "reflect", "edge"):
        yield Made(
            2,
            "float[1,1,4,5] x",
            "float[1,1,7,7] z",
            f'z = Pad<mode="{mode}", pads=[0,0,2,1,0,0,1,1]>(x)',
        )
    yield Made(2, "float[4,5] x", "float[3,6] z", "z = Pad<pads=[-1,2,0,-1]>(x)")
    yield Made(
        1, "float[2,6] x", "float[3,4] z", "z = Reshape<shape=[3,-1]>(x)", lambda x: x.reshape(3, 4)
    )
    yield Made(
        1, "float[4,5,6] x", "float[2,5,3] z", "z = Slice<starts=[1,-4],ends=[3,-1],axes=[0,2]>(x)"
    )
    yield Made(1, "float[4,5] x", "float[3,5] z", "z = Slice<starts=[1],ends=[1000]>(x)")
    for version in (1, 11):
        yield Made(version, "float[1,3,1,2] x", "float[3,1,2] z", "z = Squeeze<axes=[0]>(x)")
        yield Made(version, "float[1,3,1,2] x", "float[3,2] z", "z = Squeeze(x)")
        yield Made(version, "float[3,2] x", "float[1,3,1,2] z", "z = Unsqueeze<axes=[0,2]>(x)")
    yield Made(11, "float[3,2] x", "float[3,2,1] z", "z = Unsqueeze<axes=[-1]>(x)")
    for version in (2, 11):
        yield Made(
            version,
            "float[6,2] x",
            "float[1,2] a, float[5,2] b",
            "a, b = Split<axis=0, split=[1,5]>(x)",
        )
    yield Made(
        1,
        "float[2,6] x",
        "float[2,3] a, float[2,3] b",
        "a, b = Split<axis=1, split=[3,3]>(x)",
        lambda x: (x[:, :3], x[:, 3:]),
    )
    yield Made(1, "float[3,8] x", "float[3,3] v, int64[3,3] i", "v, i = TopK<k=3>(x)")
    yield Made(
        10,
        "float[8,3] x, int64[1] k",
        "float[2,3] v, int64[2,3] i",
        "v, i = TopK<axis=0>(x, k)",
        None,
        {"k": np.int64([2])},
    )
    yield Made(
        1,
        "float[2,3] x, float t, float a",
        "float[2,9] z",
        "z = Tile(x, t, a)",
        lambda x, t, a: np.tile(x, (1, 3)),
        {"t": np.float32(3), "a": np.float32(1)},
    )


def _reductions() -> Iterator[Made]:
    for op in ("L1", "L2", "LogSum", "LogSumExp", "Max", "Mean", "Min", "Prod", "Sum", "SumSquare"):
        for version in (1, 11, 13):
            if op == "Sum" and version == 13:
                continue
            yield Made(
                version,
                "float[3,4,5] x",
                "float[3,1,5] z",
                f"z = Reduce{op}<axes=[1]>(x)",
                None,
                {"x": np.random.default_rng(version).uniform(0.5, 2, (3, 4, 5)).astype("f")},
            )
            yield Made(version, "int32[3,4] x", "int32 z", f"z = Reduce{op}<keepdims=0>(x)")


def _meanings_that_changed() -> Iterator[Made]:
    for version in (1, 11):
        for op in ("Softmax", "LogSoftmax", "Hardmax"):
            for axis in (0, 1, 2):
                yield Made(version, "float[2,3,4] x", "float[2,3,4] z", f"z = {op}<axis={axis}>(x)")
            yield Made(version, "float[2,3,4] x", "float[2,3,4] z", f"z = {op}(x)")
    yield Made(11, "float[2,3,4] x", "float[2,3,4] z", "z = Softmax<axis=-2>(x)")
    yield Made(
        1,
        "float[2,3] x, float[2,3] y",
        "float[2,6] z",
        "z = Concat(x, y)",
        lambda x, y: np.hstack([x, y]),
    )
    yield Made(1, "float[1,8,2,3] x", "float[1,2,4,6] z", "z = DepthToSpace<blocksize=2>(x)")
    yield Made(1, "float[1,2,4,6] x", "float[1,8,2,3] z", "z = SpaceToDepth<blocksize=2>(x)")
    yield Made(
        11,
        "float[4,3] x, int64[2,3] i, float[2,3] u",
        "float[4,3] z",
        "z = Scatter<axis=0>(x, i, u)",
        _scattered,
        {"i": np.int64([[0, 3, 1], [2, 1, 0]])},
    )
    yield Made(
        1,
        "float[5] x",
        "float[5] z",
        "z = Selu(x)",
        lambda x: 1.0506999492645264 * np.where(x > 0, x, 1.673200011253357 * np.expm1(x)),
    )
    for version in (1, 6):
        yield Made(version, "float[5] x", "float[5] z", "z = Dropout<is_test=1>(x)", lambda x: x)
    yield Made(
        7,
        "float[5] x",
        "float[5] z, float[5] m",
        "z, m = Dropout<ratio=0.3>(x)",
        lambda x: (x, np.ones(5)),
    )
    yield Made(
        10,
        "float[5] x",
        "float[5] z, bool[5] m",
        "z, m = Dropout<ratio=0.3>(x)",
        lambda x: (x, np.ones(5)),
    )
    for version in (7, 12, 13, 15):
        yield Made(
            version,
            "float[4] x, float[4] y",
            "float[4] z",
            "z = Pow(x, y)",
            None,
            {"x": np.float32([1, 2, 3, 0.5])},
        )
    yield Made(12, "int32[4] x, float[4] y", "int32[4] z", "z = Pow(x, y)")
    yield Made(
        1,
        "float[2,3,4] x, float[3] s, float[3] b, float[3] m, float[3] v",
        "float[2,3,4] z",
        "z = BatchNormalization<consumed_inputs=[0,0,0,1,1], epsilon=0.001, is_test=1>"
        "(x, s, b, m, v)",
        lambda x, s, b, m, v: (
            ((x - m[:, None]) / np.sqrt(v + 0.001)[:, None] * s[:, None]) + b[:, None]
        ),
        {"v": np.float32([0.5, 1, 2])},
    )
    yield Made(
        1,
        "float[1,2,3,4] x",
        "float[1,2,6,12] z",
        'z = Upsample<height_scale=2.0, mode="nearest", width_scale=3.0>(x)',
        lambda x: x.repeat(2, 2).repeat(3, 3),
    )
    for version in (7, 8, 9, 14):
        yield Made(
            version,
            "float[2,3,4] x, float[3] s, float[3] b, float[3] m, float[3] v",
            "float[2,3,4] z",
            "z = BatchNormalization<epsilon=0.001>(x, s, b, m, v)",
            None,
            {"v": np.float32([0.5, 1, 2])},
        )
    for version in (7, 9):
        scales = "s = Constant<value = float[4] {1.0, 1.0, 2.0, 3.0}>()"
        for mode in ("nearest", "linear"):
            call = f'Upsample<mode="{mode}", scales=[1.0,1.0,2.0,3.0]>(x)'
            if version == 9:
                call = f'Upsample<mode="{mode}">(x, s)'
            yield Made(version, "float[1,2,3,4] x", "float[1,2,6,12] z", f"{scales} z = {call}")
            resize = f'{scales} z = Resize<mode="{mode}">(x, s)'
            yield Made(10, "float[1,2,3,4] x", "float[1,2,6,12] z", resize)
    yield Made(
        10,
        "float[1,2,8,8] x, float[2,4] r, int64[2] b",
        "float[2,2,2,2] z",
        "z = RoiAlign<output_height=2, output_width=2, sampling_ratio=2, spatial_scale=0.5>"
        "(x, r, b)",
        None,
        {"r": np.float32([[1, 1, 9, 11], [0, 2, 7, 6]]), "b": np.int64([0, 0])},
    )


def _newest_only() -> Iterator[Made]:
    for version in (1, 2, 22):
        p = "2.0" if version == 1 else "2"
        yield Made(
            version,
            "float[1,2,3,4] x",
            "float[1,2,1,1] z",
            f"z = GlobalLpPool<p={p}>(x)",
            lambda x: np.sqrt((x * x).sum((2, 3), keepdims=True)),
        )
    yield Made(
        1,
        "float[1,2,8,8] x, float[2,5] r",
        "float[2,2,2,3] z",
        "z = MaxRoiPool<pooled_shape=[2,3], spatial_scale=0.5>(x, r)",
        None,
        {"r": np.float32([[0, 1, 1, 12, 13], [0, 0, 3, 9, 7]])},
    )
    sequence = "s = SequenceConstruct(x, y)"
    shapes = "float[2,3] x, float[2,3] y"
    for nodes, outputs in (
        ("p = Constant<value_int=-1>() z = SequenceAt(s, p)", "float[2,3] z"),
        ("z = SequenceLength(s)", "int64 z"),
        ("e = SequenceErase(s) z = ConcatFromSequence<axis=0>(e)", "float[2,3] z"),
        ("z = ConcatFromSequence<axis=1>(s)", "float[2,6] z"),
        ("z = ConcatFromSequence<axis=-1, new_axis=1>(s)", "float[2,3,2] z"),
        (
            "p = Constant<value_int=0>() i = SequenceInsert(s, y, p) z = SequenceAt(i, p)",
            "float[2,3] z",
        ),
    ):
        yield Made(12, shapes, outputs, f"{sequence} {nodes}")
    yield Made(
        11,
        "float[2,3] x",
        "int64 z",
        "s = SequenceEmpty<dtype=1>() i = SequenceInsert(s, x) z = SequenceLength(i)",
    )
    for version in (15, 28):
        yield Made(
            version,
            "float[2,3] x",
            "bool h, float[2,3] z",
            "o = Optional(x) h = OptionalHasElement(o) z = OptionalGetElement(o)",
            lambda x: (True, x),
        )
    for version in (1, 11, 13, 16, 19, 21, 23, 24, 25):
        yield Made(
            version,
            "float[3] x, bool c",
            "float[3] z",
            "z = If(c) <then_branch = t () => (float[3] a) { a = Add(x, x) },"
            " else_branch = e () => (float[3] b) { b = Mul(x, x) }>",
            lambda x, c: x + x if c else x * x,
        )
        yield Made(
            version,
            "int64 n, bool c, float[3] x",
            "float[3] z, float[k,3] s",
            "z, s = Loop(n, c, x) <body = b (int64 i, bool ci, float[3] v)"
            " => (bool co, float[3] w, float[3] t)"
            " { co = Identity(ci) w = Mul(v, v) t = Identity(w) }>",
            lambda n, c, x: (x**8, np.stack([x**2, x**4, x**8])),
            {"n": np.int64(3), "c": np.bool_(True)},
        )
    for version in (9, 11, 16, 19, 21, 23, 24, 25):
        yield Made(
            version,
            "float[3] v, float[4,3] x",
            "float[3] z, float[4,3] s",
            "z, s = Scan(v, x) <num_scan_inputs=1, body = b (float[3] a, float[3] e)"
            " => (float[3] o, float[3] t) { o = Add(a, e) t = Identity(o) }>",
            lambda v, x: (v + x.sum(0), v + x.cumsum(0)),
        )
    yield Made(
        8,
        "float[2,3] v, float[2,4,3] x",
        "float[2,3] z, float[2,4,3] s",
        'z, s = Scan("", v, x) <num_scan_inputs=1, body = b (float[3] a, float[3] e)'
        " => (float[3] o, float[3] t) { o = Add(a, e) t = Identity(o) }>",
        lambda v, x: (v + x.sum(1), v[:, None] + x.cumsum(1)),
    )


def _scattered(x: Any, indices: Any, updates: Any) -> Any:
    result = x.copy()
    np.put_along_axis(result, indices, updates, 0)
    return result
