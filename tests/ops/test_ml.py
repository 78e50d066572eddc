"""ai.onnx.ml operators against ONNX Runtime."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from polytool.errors import ModelError
from tests.ops.conftest import Call
from tests.ops.one_node import ML, Case, check, native, onnxruntime

Array = np.ndarray[Any, Any]
ort = pytest.mark.ort
TRANSFORMS = ["NONE", "LOGISTIC", "SOFTMAX", "SOFTMAX_ZERO"]
BRANCHES = ["LEQ", "LT", "GTE", "GT", "EQ", "NEQ"]


def floats(*dims: int, seed: int = 0) -> Array:
    return np.random.default_rng([seed, *dims]).standard_normal(dims).astype(np.float32)


def text(*values: str) -> Array:
    return np.array(values, dtype=object)


def ml(op: str, *inputs: Array, outputs: int = 1, opset: int = 1, **attrs: Any) -> Case:
    return Case(op, inputs, attrs, outputs, ML, opset)


def forest(trees: int, depth: int, features: int, modes: list[str]) -> dict[str, Any]:
    """Full trees with random splits; missing values go either way."""
    rng = np.random.default_rng(trees)
    count, inner = 2 ** (depth + 1) - 1, 2**depth - 1
    nodes = np.arange(trees * count) % count
    leaf = nodes >= inner
    return {
        "nodes_treeids": (np.arange(trees * count) // count).tolist(),
        "nodes_nodeids": nodes.tolist(),
        "nodes_featureids": rng.integers(0, features, len(nodes)).tolist(),
        "nodes_modes": ["LEAF" if is_leaf else f"BRANCH_{rng.choice(modes)}" for is_leaf in leaf],
        "nodes_values": rng.standard_normal(len(nodes)).astype(np.float32).tolist(),
        "nodes_truenodeids": np.where(leaf, 0, 2 * nodes + 1).tolist(),
        "nodes_falsenodeids": np.where(leaf, 0, 2 * nodes + 2).tolist(),
        "nodes_missing_value_tracks_true": rng.integers(0, 2, len(nodes)).tolist(),
    }


def votes(trees: int, depth: int, ids: list[int], prefix: str, weights: str) -> dict[str, Any]:
    """A vote of every leaf for each id: `positive` ones, or any."""
    leaves = range(2**depth - 1, 2 ** (depth + 1) - 1)
    keys = [(t, n, i) for t in range(trees) for n in leaves for i in ids]
    values = floats(len(keys)) if weights == "any" else np.abs(floats(len(keys))) / trees / 2
    names = {"treeids": 0, "nodeids": 1, "ids": 2}
    columns = {f"{prefix}_{name}": [k[i] for k in keys] for name, i in names.items()}
    return columns | {f"{prefix}_weights": values.astype(np.float32).tolist()}


def rows() -> Array:
    x = floats(7, 4)
    x[0, 1] = x[3, 2] = np.nan
    return x


@ort
@pytest.mark.parametrize("function", ["SUM", "AVERAGE", "MIN", "MAX"])
def test_tree_regressors(function: str) -> None:
    cases = []
    for targets in (1, 3):
        attrs = forest(5, 3, 4, BRANCHES) | votes(5, 3, list(range(targets)), "target", "any")
        if function == "MIN":  # one mode for all nodes takes another way in ONNX Runtime
            attrs |= {"nodes_modes": forest(5, 3, 4, ["LT"])["nodes_modes"]}
        attrs |= {"n_targets": targets, "aggregate_function": function}
        base = {"base_values": [0.5] * targets}
        for name in TRANSFORMS:
            for extra in ({}, base):
                case = ml("TreeEnsembleRegressor", rows(), opset=3, post_transform=name, **attrs)
                cases.append(Case(**(vars(case) | {"attrs": case.attrs | extra})))
    check(*cases)


def classifiers() -> Iterator[tuple[str, dict[str, Any]]]:
    for name in TRANSFORMS:
        for weights in ("any", "positive"):
            for labels, ids in (([3, 5, 9], [0, 1, 2]), (["a", "b"], [0]), ([5, 7], [1])):
                attrs = forest(5, 3, 4, ["LEQ"]) | votes(5, 3, ids, "class", weights)
                kind = "strings" if isinstance(labels[0], str) else "int64s"
                yield (
                    f"{name} {weights} {labels}",
                    attrs | {f"classlabels_{kind}": labels, "post_transform": name},
                )


@ort
def test_tree_classifiers() -> None:
    cases = [
        ml("TreeEnsembleClassifier", rows(), outputs=2, opset=3, **a) for _, a in classifiers()
    ]
    check(*cases)


@ort
def test_base_values_of_tree_classifiers() -> None:
    multi = forest(5, 3, 4, ["LEQ"]) | votes(5, 3, [0, 1, 2], "class", "any")
    binary = forest(5, 3, 4, ["LEQ"]) | votes(5, 3, [0], "class", "any")
    name, two = "TreeEnsembleClassifier", {"outputs": 2, "opset": 3}
    check(
        ml(name, rows(), classlabels_int64s=[1, 2, 3], base_values=[0.1, 0.7, -1], **two, **multi),
        ml(name, rows(), classlabels_int64s=[1, 2], base_values=[0.25], **two, **binary),
    )


def test_two_classes_with_votes_for_both_give_the_larger() -> None:
    # ONNX Runtime gives 1 or 0 here, whatever the labels are
    attrs = forest(5, 3, 4, ["LEQ"]) | votes(5, 3, [0, 1], "class", "any")
    case = ml(
        "TreeEnsembleClassifier", rows(), outputs=2, opset=3, classlabels_int64s=[5, 7], **attrs
    )
    labels, scores = native(case)
    assert labels.tolist() == [[5, 7][k] for k in scores.argmax(axis=1)]
    theirs = onnxruntime(case)
    assert theirs is not None
    np.testing.assert_allclose(scores, theirs[1], rtol=1e-5)


@ort
def test_double_thresholds_are_not_rounded() -> None:
    x = np.array([[1 + 2.0**-40], [1.0]])
    attrs = {
        "nodes_treeids": [0, 0, 0],
        "nodes_nodeids": [0, 1, 2],
        "nodes_featureids": [0, 0, 0],
        "nodes_modes": ["BRANCH_LEQ", "LEAF", "LEAF"],
        "nodes_values_as_tensor": np.array([1.0, 0, 0]),
        "nodes_truenodeids": [1, 0, 0],
        "nodes_falsenodeids": [2, 0, 0],
        "target_treeids": [0, 0],
        "target_nodeids": [1, 2],
        "target_ids": [0, 0],
        "target_weights_as_tensor": np.array([1.0, 2.0]),
        "n_targets": 1,
    }
    from onnx import numpy_helper

    tensors = {k: numpy_helper.from_array(v) for k, v in attrs.items() if isinstance(v, np.ndarray)}
    case = ml("TreeEnsembleRegressor", x, opset=3, **(attrs | tensors))
    assert native(case)[0].ravel().tolist() == [2, 1]
    check(case)


@ort
@pytest.mark.parametrize("transform", TRANSFORMS)
def test_linear_models(transform: str) -> None:
    cases = []
    for x in (floats(6, 4), floats(4)):
        for targets in (1, 3):
            attrs = {
                "coefficients": (floats(4 * targets) * 0.3).tolist(),
                "intercepts": [0.3] * targets,
                "post_transform": transform,
            }
            cases.append(ml("LinearRegressor", x, targets=targets, **attrs))
            for labels in ([3, 4], ["a", "b"], [1, 2, 3], ["a", "b", "c"]):
                if targets == 1 and len(labels) == 3:
                    continue
                count = 1 if targets == 1 else len(labels)
                kind = "strings" if isinstance(labels[0], str) else "ints"
                attrs |= {
                    f"classlabels_{kind}": labels,
                    "coefficients": floats(4 * count).tolist(),
                    "intercepts": [0.1] * count,
                }
                cases.append(ml("LinearClassifier", x, outputs=2, **attrs))
                del attrs[f"classlabels_{kind}"]
    check(*cases)


@ort
@pytest.mark.parametrize("kernel", ["LINEAR", "POLY", "RBF", "SIGMOID"])
def test_support_vector_machines(kernel: str) -> None:
    x, cases = floats(9, 4), []
    shared = {"kernel_type": kernel, "kernel_params": [0.3, 0.1, 3.0]}
    for one_class in (0, 1):
        machine = {"coefficients": floats(5).tolist(), "support_vectors": floats(20).tolist()}
        machine |= {"n_supports": 5, "rho": [0.2], "one_class": one_class}
        cases.append(ml("SVMRegressor", x, **machine, **shared))
    for labels in ([3, 4], ["a", "b", "c", "d"]):
        pairs, vectors = len(labels) * (len(labels) - 1) // 2, [2 + k for k in range(len(labels))]
        total = sum(vectors)
        machine = {
            "coefficients": floats((len(labels) - 1) * total).tolist(),
            "support_vectors": floats(4 * total).tolist(),
            "vectors_per_class": vectors,
            "rho": floats(pairs).tolist(),
            "classlabels_strings" if isinstance(labels[0], str) else "classlabels_ints": labels,
        }
        chances = {"prob_a": (-np.abs(floats(pairs))).tolist(), "prob_b": floats(pairs).tolist()}
        cases += [
            ml("SVMClassifier", x, outputs=2, **machine, **shared, **extra)
            for extra in ({}, chances, {"post_transform": "LOGISTIC"})
        ]
    check(*cases)


@ort
@pytest.mark.parametrize("shape", [(3, 5), (5,)])
def test_features(shape: tuple[int, ...]) -> None:
    x, whole = floats(*shape), (floats(*shape) * 9).astype(np.int64)
    cases = [ml("ArrayFeatureExtractor", v, np.array([[0, 3, 1]])) for v in (x, whole)]
    for v in (x, whole, x.astype(np.float64), -np.abs(x), 0 * x):
        cases += [ml("Normalizer", v, norm=n) for n in ("MAX", "L1", "L2")]
        cases.append(ml("Scaler", v, offset=[0.5] * 5, scale=[2.0] * 5))
        cases.append(ml("Scaler", v, offset=[0.5], scale=[2.0]))
    cases.append(ml("Binarizer", x, threshold=0.3))
    check(*cases)


@ort
def test_encoders() -> None:
    x, nan = floats(3, 5), float("nan")
    whole = np.arange(6).reshape(2, 3) % 4
    names = {"cats_strings": ["a", "b"], "cats_int64s": [4, 5]}
    check(
        ml(
            "Imputer",
            np.array([[1, nan, 3]], np.float32),
            imputed_value_floats=[7.0, 8.0, 9.0],
            replaced_value_float=nan,
        ),
        ml("Imputer", np.array([[1, 0, 3]]), imputed_value_int64s=[7], replaced_value_int64=0),
        ml("FeatureVectorizer", x, x[:, :2].copy(), inputdimensions=[3, 4]),
        ml("FeatureVectorizer", x[0], x[1], inputdimensions=[5, 5]),
        ml("OneHotEncoder", whole, cats_int64s=[0, 1, 2]),
        ml("OneHotEncoder", whole.astype(np.float32) + np.float32(0.5), cats_int64s=[0, 1, 2]),
        ml("OneHotEncoder", text("a", "q"), cats_strings=["a", "b"]),
        ml(
            "LabelEncoder",
            text("a", "z", "b"),
            opset=2,
            keys_strings=["a", "b"],
            values_int64s=[4, 5],
        ),
        ml("LabelEncoder", np.float32([0.1, 0.2]), opset=2, keys_floats=[0.1], values_floats=[0.7]),
        ml("LabelEncoder", text("a", "z"), classes_strings=["a", "b"], default_int64=-3),
        ml("LabelEncoder", np.array([0, 1, 7]), classes_strings=["a", "b"], default_string="?"),
        ml("CategoryMapper", text("a", "z"), **names),
        ml("CategoryMapper", np.array([4, 9]), **names),
    )


def test_nan_is_a_key(call: Call) -> None:
    x, keys = np.float32([1, np.nan, 2]), [1.0, float("nan")]
    y = call("LabelEncoder", x, domain=ML, keys_floats=keys, values_strings=["one", "none"])
    assert y.tolist() == ["one", "none", "_Unused"]


def test_the_last_of_equal_keys_wins(call: Call) -> None:
    y = call("LabelEncoder", np.array([1]), domain=ML, keys_int64s=[1, 1], values_int64s=[5, 6])
    assert y.tolist() == [6]


def test_an_unknown_category_is_an_error_where_zeros_are_forbidden(call: Call) -> None:
    with pytest.raises(ModelError, match="no category"):
        call("OneHotEncoder", np.array([1, 7]), domain=ML, cats_int64s=[1], zeros=0)


def test_maps(call: Call) -> None:
    def run(op: str, x: Any, **attrs: Any) -> Any:
        return call(op, x, domain=ML, **attrs)

    assert run("CastMap", {2: 1.5, 0: 2.5}).tolist() == [[2.5, 1.5]]
    sparse = {"map_form": "SPARSE", "max_map": 4}
    assert run("CastMap", {2: 1.7, 0: 2.5}, cast_to="TO_INT64", **sparse).tolist() == [[2, 0, 1, 0]]
    written = run("CastMap", {2: 1.7}, cast_to="TO_STRING", **sparse)
    assert written.tolist() == [["0.f", "0.f", "1.700000", "0.f"]]
    assert run("CastMap", {0: "2.5"}).tolist() == [[2.5]]
    with pytest.raises(ModelError, match="key 9"):
        run("CastMap", {9: 1.0}, **sparse)
    row = run("DictVectorizer", {"c": 1.5, "a": 2.5}, string_vocabulary=["a", "b", "c"])
    assert (row.dtype, row.tolist()) == (np.float32, [[2.5, 0, 1.5]])
    assert run("DictVectorizer", {2: "z"}, int64_vocabulary=[1, 2]).tolist() == [["", "z"]]
    scores = np.float32([[0.25, 0.75]])
    assert run("ZipMap", scores, classlabels_strings=["a", "b"]) == [{"a": 0.25, "b": 0.75}]


def test_set_membership_and_leaves_as_roots(call: Call) -> None:
    x = np.float32([[1], [2], [3], [np.nan]])
    y = call(
        "TreeEnsemble",
        x,
        domain=ML,
        n_targets=2,
        tree_roots=[0, 1],
        nodes_featureids=[0, 0],
        nodes_modes=np.array([6, 0], np.uint8),
        nodes_splits=np.float32([0, 0]),
        nodes_truenodeids=[0, 2],
        nodes_trueleafs=[1, 1],
        nodes_falsenodeids=[1, 2],
        nodes_falseleafs=[1, 1],
        nodes_missing_value_tracks_true=[1, 0],
        leaf_targetids=[0, 0, 1],
        leaf_weights=np.float32([5, 6, 7]),
        membership_values=np.float32([1, 3, np.nan]),
    )
    assert y.tolist() == [[5, 7], [6, 7], [5, 7], [5, 7]]
