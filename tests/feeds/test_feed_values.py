"""Made data: what is chosen for an input, by its type, its name and its use in the model."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from polytool.errors import UsageError
from polytool.feed_values import parse_ranges
from polytool.feeds import as_feeds, input_specs, make_feeds
from polytool.tensors import DType, TensorSpec


def parsed(text):
    return onnx.parser.parse_model(text)


def graph(signature, body, *, opset=18, types="", rest=""):
    return parsed(
        f'<ir_version: 10, opset_import: ["" : {opset}, "com.microsoft" : 1, "local" : 1]>\n'
        f"g ({signature}) => (float[N] out) {types} {{ {body} }} {rest}"
    )


def made(model, **options):
    feeds = make_feeds(model, **options)
    return next(iter(feeds)), feeds.notes


EMBED = "<float[50,4] table = {" + ",".join(["0"] * 200) + "}>"


@pytest.mark.parametrize(
    "body",
    [
        "out = Gather(table, ids)",
        "a = Cast<to=6>(ids) b = Identity(a) out = Gather(table, b)",
        "s = Shape(ids) r = Reshape(ids, s) out = Gather(table, r)",
        "t = Identity(table) out = Gather(t, ids)",
        "c = Concat<axis=1>(ids, ids) out = Gather(table, c)",
        "out = com.microsoft.EmbedLayerNormalization(ids, ids, table, table, table, table, table)",
        "c = Constant<value = bool {1}>() out = If(c) <"
        " then_branch = t () => (float[N] y) { y = Gather(table, ids) },"
        " else_branch = e () => (float[N] z) { z = Gather(table, ids) } >",
        "n = Constant<value = int64 {2}>() c = Constant<value = bool {1}>()"
        " l, out = Loop(n, c, ids) < body = b (int64 i, bool k, int64[1,40] state)"
        " => (bool k2, int64[1,40] state2, float[N] y)"
        " { k2 = Identity(k) state2 = Identity(state) y = Gather(table, state) } >",
    ],
)
def test_token_ids_fill_the_rows_of_the_embedding(body):
    feed, notes = made(graph("int64[1,40] ids", body, types=EMBED))
    assert feed["ids"].dtype == np.int64
    assert feed["ids"].min() >= 0 and 40 < feed["ids"].max() < 50
    assert notes == ("ids: int64[1, 40], in [0, 50): rows of the embedding 'table'",)


def test_a_local_function_is_followed():
    model = graph(
        "int64[1,40] ids", "out = local.embed(table, ids)", types=EMBED,
        rest='<domain: "local", opset_import: ["" : 18]> embed (w, i) => (y) { y = Gather(w, i) }',
    )  # fmt: skip
    _, notes = made(model)
    assert notes == ("ids: int64[1, 40], in [0, 50): rows of the embedding 'table'",)


def test_the_axis_of_the_gather_decides():
    _, notes = made(graph("int64[3] ids", "out = Gather<axis=1>(table, ids)", types=EMBED))
    assert "in [0, 4)" in notes[0]


def test_indices_into_another_input_stay_inside_it():
    body = "h = Relu(nodes) r = Gather<axis=0>(edges, row) out = Gather(h, r)"
    types = "<int64 row = {1}>"
    model = graph("float[n,8] nodes, int64[2,E] edges", body, types=types)
    feed, notes = made(model, shapes={"nodes": (5, 8), "edges": (2, 300)})
    assert set(np.unique(feed["edges"])) == set(range(5))
    assert notes[1].endswith("in [0, 5): indices of 'h'")


def test_the_index_of_a_batch_is_sorted():
    body = 'out = ScatterElements<reduction="add">(zeros, batch, x)'
    model = graph("float[20] x, int64[20] batch", body, types="<float[3] zeros = {0,0,0}>")
    feed, notes = made(model)
    assert (np.diff(feed["batch"]) >= 0).all() and set(feed["batch"]) == {0, 1, 2}
    assert "sorted, in [0, 3)" in notes[1]


def test_a_scalar_takes_a_value_that_the_model_knows():
    body = "e = Equal(rate, known) f = Cast<to=1>(e) out = Mul(x, f)"
    model = graph("float[4] x, int64 rate", body, types="<int64 known = {8000}>")
    feed, notes = made(model)
    assert feed["rate"].shape == () and feed["rate"] == 8000
    assert notes[1] == "rate: int64[], 8000: the model compares it with that"


def test_a_one_hot_by_comparison_bounds_the_values():
    body = "e = Equal(bytes, known) f = Cast<to=1>(e) out = ReduceSum(f)"
    model = graph("int32[64,1] bytes", body, types="<int32[5] known = {0,1,2,3,4}>")
    feed, _ = made(model)
    assert set(np.unique(feed["bytes"])) == {0, 1, 2, 3, 4}


def test_one_hot_is_bounded_by_its_depth():
    body = "out = OneHot(c, depth, values)"
    model = graph("int64[99] c", body, types="<int64 depth = {7}, float[2] values = {0,1}>")
    assert set(np.unique(made(model)[0]["c"])) == set(range(7))


@pytest.mark.parametrize(
    "body",
    [
        "f = Cast<to = 1>(ids) out = Equal(f, c)",
        "out = OneHot(ids, c, v)",
        "out = OneHot(ids, e, v)",
        "out = OneHot(ids)",
        "out = Equal(ids)",
        "out = com.microsoft.EmbedLayerNormalization(ids, ids)",
        "t = Cast<to = 7>() out = Gather(t, ids)",
    ],
)
def test_what_makes_no_sense_tells_nothing(body):
    model = graph("int64[3] ids", body, types="<float[2] v = {0, 1}, float[0] e = {}>")
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.float32([np.inf]), "c"))
    feed, (note,) = made(model)
    assert feed["ids"].shape == (3,) and "[" in note


NAMES = [
    ("attention_mask", DType.INT64, (2, 5), np.ones((2, 5))),
    ("mask", DType.BOOL, (3,), np.ones(3)),
    ("pixel_mask", DType.FLOAT, (2, 2), np.ones((2, 2))),
    ("position_ids", DType.INT64, (2, 4), [[0, 1, 2, 3]] * 2),
    ("input_lengths", DType.INT32, (1,), [9]),
    ("x.len", DType.INT64, (), 9),
    ("sr", DType.INT64, (), 16000),
    ("sample_rate", DType.INT32, (1,), [16000]),
    ("steps", DType.INT64, (), 1),
]


@pytest.mark.parametrize(("name", "dtype", "shape", "expected"), NAMES)
def test_names_tell_what_the_graph_does_not(name, dtype, shape, expected):
    inputs = [TensorSpec(name, dtype, shape), TensorSpec("audio", DType.FLOAT, (1, 9))]
    feed = next(iter(make_feeds(inputs=inputs)))
    np.testing.assert_array_equal(feed[name], expected)
    assert feed[name].dtype == dtype.numpy and feed[name].shape == shape


@pytest.mark.parametrize("dtype", list(DType))
def test_every_element_type_can_be_made(dtype):
    feed = next(iter(make_feeds(inputs=[TensorSpec("x", dtype, (3, 4))])))
    assert feed["x"].shape == (3, 4) and DType.of(feed["x"][:0].astype(dtype.numpy)) is dtype
    if dtype is DType.STRING:
        assert all(isinstance(s, str) for s in feed["x"].reshape(-1))
    else:
        assert feed["x"].dtype == dtype.numpy
    if dtype in (DType.FLOAT, DType.DOUBLE, DType.BFLOAT16):
        assert 0 <= feed["x"].min() < feed["x"].max() <= 1


def test_sequences_are_lists_and_optionals_have_a_value():
    inputs = [
        TensorSpec("s", DType.FLOAT, (2,), "sequence"),
        TensorSpec("o", DType.FLOAT, (2,), "optional"),
    ]
    feed = next(iter(make_feeds(inputs=inputs)))
    assert isinstance(feed["s"], list) and len(feed["s"]) == 2
    assert feed["o"].shape == (2,)


def test_data_depend_on_seed_iteration_and_name_only():
    x, y = TensorSpec("x", DType.FLOAT, (4,)), TensorSpec("y", DType.FLOAT, (4,))
    one = list(make_feeds(inputs=[x, y], iterations=3))
    two = make_feeds(inputs=[y, x], iterations=5)
    for a, b, c in zip(one, two, two, strict=False):
        assert a["x"].tolist() == b["x"].tolist() == c["x"].tolist()
    values = {tuple(f[n].tolist()) for f in one for n in "xy"}
    assert len(values) == 6
    assert one[0]["x"].tolist() != next(iter(make_feeds(inputs=[x], seed=1)))["x"].tolist()


def test_ranges_are_inclusive_and_an_own_range_beats_the_meaning():
    model = graph("int64[1,400] ids, float[400] x", "out = Gather(table, ids)", types=EMBED)
    feed, notes = made(model, ranges={"ids": (3, 5), "": (-2, -1)})
    assert set(np.unique(feed["ids"])) == {3, 4, 5}
    assert -2 <= feed["x"].min() < feed["x"].max() <= -1
    assert "in [3, 5], as asked" in notes[0] and "in [-2, -1], as asked" in notes[1]
    feed, _ = made(model, ranges={"": (0, 1)})
    assert feed["ids"].max() > 1  # a range for all does not undo what the model shows


@pytest.mark.parametrize(
    ("texts", "expected"),
    [
        (["[0,1]"], {"": (0, 1)}),
        (["a:0:[-1.5,2e3]", "[0,1]"], {"a:0": (-1.5, 2000), "": (0, 1)}),
    ],
)
def test_ranges_are_read(texts, expected):
    assert parse_ranges(texts) == expected


@pytest.mark.parametrize("text", ["0,1", "[0]", "[2,1]", "[nan,1]", "x:[a,b]", "[0,1,2]"])
def test_unreadable_ranges_are_refused(text):
    with pytest.raises(UsageError, match="is not a range such as"):
        parse_ranges([text])


def test_a_range_that_the_type_lacks_is_refused():
    for limits in ((0, 300), (0.5, 3), (-1, 1)):
        with pytest.raises(UsageError, match="holds integers from 0 to 255"):
            make_feeds(inputs=[TensorSpec("x", DType.UINT8, (2,))], ranges={"x": limits})
    with pytest.raises(UsageError, match="a range is given for 'y'"):
        make_feeds(inputs=[TensorSpec("x", DType.UINT8, (2,))], ranges={"y": (0, 1)})


def test_wide_integers_are_drawn_whole():
    inputs = [TensorSpec("x", DType.UINT64, (50,)), TensorSpec("y", DType.INT4, (50,))]
    feed = next(iter(make_feeds(inputs=inputs, ranges={"x": (0, 2.0**63), "y": (-8, 7)})))
    assert feed["x"].max() > 2**61
    assert feed["y"].astype(int).min() == -8 and feed["y"].astype(int).max() == 7


def test_initializers_among_the_inputs_are_not_fed():
    model = graph("float[2] x, float[2] w", "out = Add(x, w)", types="<float[2] w = {1,2}>")
    assert [s.name for s in input_specs(model)] == ["x"]


def test_an_input_without_a_type_is_refused():
    with pytest.raises(UsageError, match=r"'m' \(map\) declares no element type"):
        make_feeds(inputs=[TensorSpec("m", None, (1,), "map")])


def test_wrong_uses_are_explained():
    inputs = [TensorSpec("x", DType.FLOAT, (1,))]
    with pytest.raises(UsageError, match="0 iterations"):
        make_feeds(inputs=inputs, iterations=0)
    with pytest.raises(UsageError, match="a model, or the inputs"):
        make_feeds()
    with pytest.raises(UsageError, match="both say where inputs come from"):
        make_feeds(inputs=inputs, files=["a.npz"], script="b.py")
    with pytest.raises(UsageError, match="shapes are for made data"):
        make_feeds(inputs=inputs, files=["a.npz"], shapes={"x": (1,)})
    with pytest.raises(UsageError, match="not str"):
        as_feeds("a.npz")
    with pytest.raises(UsageError, match="iteration 1 of the inputs is no dict"):
        as_feeds([{"x": 1}, 2])
