"""ai.onnx.ml: tree ensembles. All trees and rows go down one level at a time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from polytool.backends.native.ops.ml_scores import (
    ML,
    as_matrix,
    label_array,
    label_dtype,
    post_transform,
    two_columns,
)
from polytool.backends.native.ops.registry import Arg, Array, dtypes, op, shape
from polytool.errors import ModelError
from polytool.tensors import DType

Ints = Sequence[int]
Floats = Sequence[float]
_MODES = {
    "BRANCH_LEQ": 0,
    "BRANCH_LT": 1,
    "BRANCH_GTE": 2,
    "BRANCH_GT": 3,
    "BRANCH_EQ": 4,
    "BRANCH_NEQ": 5,
    "BRANCH_MEMBER": 6,
}
_LEAF = 7
_COMPARE = (np.less_equal, np.less, np.greater_equal, np.greater, np.equal, np.not_equal)
_ROWS = 1 << 22  # elements of the largest intermediate array


@dataclass(frozen=True)
class Forest:
    """Trees as arrays over nodes; a leaf is its own child.

    Attributes:
        votes: (nodes, targets) what a leaf adds to each target; NaN where it says nothing.
    """

    roots: Array
    features: Array
    thresholds: Array
    modes: Array
    yes: Array
    no: Array
    missing_is_yes: Array
    votes: Array
    members: dict[int, Array]

    def leaves(self, x: Array) -> Array:
        """(N, trees): the leaf that each row reaches."""
        node = np.broadcast_to(self.roots, (x.shape[0], len(self.roots))).copy()
        rows = np.arange(x.shape[0])[:, None]
        while True:
            mode = self.modes[node]
            if (mode == _LEAF).all():
                return node
            value, threshold = x[rows, self.features[node]], self.thresholds[node]
            goes = self.missing_is_yes[node] & np.isnan(value)
            for kind, compare in enumerate(_COMPARE):
                goes |= (mode == kind) & compare(value, threshold)
            for index in np.unique(node[mode == _MODES["BRANCH_MEMBER"]]):
                goes |= (node == index) & np.isin(value, self.members[int(index)])
            node = np.where(goes, self.yes[node], self.no[node])

    def aggregate(self, x: Array, function: str) -> Array:
        """(N, targets): SUM, AVERAGE, MIN or MAX over the trees; NaN where no leaf votes."""
        targets, trees = self.votes.shape[1], max(len(self.roots), 1)
        step = max(1, _ROWS // (targets * trees))
        parts = [
            self._aggregate(x[start : start + step], function)
            for start in range(0, x.shape[0], step)
        ]
        return np.concatenate(parts) if parts else np.zeros((0, targets), dtype=x.dtype)

    def _aggregate(self, x: Array, function: str) -> Array:
        votes = self.votes[self.leaves(x)].astype(x.dtype, copy=False)
        silent = np.isnan(votes)
        if function in ("SUM", "AVERAGE"):
            total = np.where(silent, 0, votes).sum(axis=1, dtype=x.dtype)
            total = total / len(self.roots) if function == "AVERAGE" else total
        elif function in ("MIN", "MAX"):
            edge = np.inf if function == "MIN" else -np.inf
            reduce = np.min if function == "MIN" else np.max
            total = reduce(np.where(silent, edge, votes), axis=1)
        else:
            raise ModelError(f"tree ensembles have no aggregate_function {function!r}")
        return np.where(silent.all(axis=1), np.nan, total).astype(x.dtype)


def _classic_forest(
    treeids: Ints,
    nodeids: Ints,
    featureids: Ints,
    modes: Sequence[str],
    values: Any,
    yes: Ints,
    no: Ints,
    missing: Ints | None,
    votes: tuple[Ints, Ints, Ints, Any],
    targets: int,
) -> Forest:
    """From versions 1 and 3: nodes named by (tree, node), votes by (tree, node, target)."""
    place = {key: i for i, key in enumerate(zip(treeids, nodeids, strict=True))}
    kinds = np.array([_MODES.get(m, _LEAF) for m in modes], dtype=np.int64)
    own = np.arange(len(kinds))
    leaf = kinds == _LEAF
    children = [
        np.where(leaf, own, [place.get((t, c), 0) for t, c in zip(treeids, ids, strict=True)])
        for ids in (yes, no)
    ]
    inner = set(children[0][~leaf]) | set(children[1][~leaf])
    roots = np.array([i for i in range(len(kinds)) if i not in inner], dtype=np.int64)
    tracks = np.zeros(len(kinds), dtype=bool) if not missing else np.array(missing, dtype=bool)
    thresholds = np.asarray(values, dtype=getattr(values, "dtype", np.float32))
    return Forest(
        roots,
        np.array(featureids, dtype=np.int64),
        thresholds,
        kinds,
        children[0],
        children[1],
        tracks,
        _votes(place, votes, len(kinds), targets),
        {},
    )


def _votes(
    place: dict[tuple[int, int], int], votes: tuple[Ints, Ints, Ints, Any], nodes: int, targets: int
) -> Array:
    treeids, nodeids, ids, weights = votes
    table = np.full((nodes, targets), np.nan, dtype=getattr(weights, "dtype", np.float32))
    for tree, node, target, weight in zip(treeids, nodeids, ids, weights, strict=True):
        row = place[tree, node]
        before = table[row, target]
        table[row, target] = weight if np.isnan(before) else before + weight
    return table


@op("TreeEnsembleRegressor", since=1, domain=ML, host=(0,))
def tree_ensemble_regressor(
    xp: Any,
    x: Array,
    *,
    aggregate_function: str = "SUM",
    base_values: Floats | None = None,
    base_values_as_tensor: Array | None = None,
    n_targets: int = 1,
    nodes_falsenodeids: Ints,
    nodes_featureids: Ints,
    nodes_hitrates: Floats | None = None,
    nodes_hitrates_as_tensor: Array | None = None,
    nodes_missing_value_tracks_true: Ints | None = None,
    nodes_modes: Sequence[str],
    nodes_nodeids: Ints,
    nodes_treeids: Ints,
    nodes_truenodeids: Ints,
    nodes_values: Floats | None = None,
    nodes_values_as_tensor: Array | None = None,
    post_transform: str = "NONE",
    target_ids: Ints,
    target_nodeids: Ints,
    target_treeids: Ints,
    target_weights: Floats | None = None,
    target_weights_as_tensor: Array | None = None,
) -> Array:
    """The aggregated votes for each target, plus base values."""
    weights = target_weights if target_weights_as_tensor is None else target_weights_as_tensor
    forest = _classic_forest(
        nodes_treeids,
        nodes_nodeids,
        nodes_featureids,
        nodes_modes,
        nodes_values if nodes_values_as_tensor is None else nodes_values_as_tensor,
        nodes_truenodeids,
        nodes_falsenodeids,
        nodes_missing_value_tracks_true,
        (target_treeids, target_nodeids, target_ids, weights),
        n_targets,
    )
    scores = np.nan_to_num(forest.aggregate(as_matrix(x), aggregate_function), nan=0.0)
    base = base_values if base_values_as_tensor is None else base_values_as_tensor
    if base is not None and len(base):
        scores = scores + np.asarray(base, dtype=scores.dtype)
    return _transformed(scores, post_transform)


def _transformed(scores: Array, name: str) -> Array:
    """A single score is only ever changed by PROBIT, as in ONNX Runtime."""
    if scores.shape[1] == 1 and name != "PROBIT":
        return scores
    return post_transform(scores, name)


@op("TreeEnsembleClassifier", since=1, domain=ML, host=(0,))
def tree_ensemble_classifier(
    xp: Any,
    x: Array,
    *,
    base_values: Floats | None = None,
    base_values_as_tensor: Array | None = None,
    class_ids: Ints,
    class_nodeids: Ints,
    class_treeids: Ints,
    class_weights: Floats | None = None,
    class_weights_as_tensor: Array | None = None,
    classlabels_int64s: Ints | None = None,
    classlabels_strings: Sequence[str] | None = None,
    nodes_falsenodeids: Ints,
    nodes_featureids: Ints,
    nodes_hitrates: Floats | None = None,
    nodes_hitrates_as_tensor: Array | None = None,
    nodes_missing_value_tracks_true: Ints | None = None,
    nodes_modes: Sequence[str],
    nodes_nodeids: Ints,
    nodes_treeids: Ints,
    nodes_truenodeids: Ints,
    nodes_values: Floats | None = None,
    nodes_values_as_tensor: Array | None = None,
    post_transform: str = "NONE",
) -> tuple[Array, Array]:
    """The class with the most votes, and the votes of all classes.

    Two classes of which only one has votes are a binary model, as converters write it: a positive
    vote, or one above 0.5 where all weights are probabilities, decides for the second class.
    """
    labels = classlabels_strings or classlabels_int64s or []
    weights = class_weights if class_weights_as_tensor is None else class_weights_as_tensor
    forest = _classic_forest(
        nodes_treeids,
        nodes_nodeids,
        nodes_featureids,
        nodes_modes,
        nodes_values if nodes_values_as_tensor is None else nodes_values_as_tensor,
        nodes_truenodeids,
        nodes_falsenodeids,
        nodes_missing_value_tracks_true,
        (class_treeids, class_nodeids, class_ids, weights),
        len(labels),
    )
    scores = np.nan_to_num(forest.aggregate(as_matrix(x), "SUM"), nan=0.0)
    base = base_values if base_values_as_tensor is None else base_values_as_tensor
    offset = np.zeros(len(labels), dtype=scores.dtype)
    if base is not None and len(base):
        offset[:] = base
    if len(labels) == 1:
        index = (scores[:, 0] + offset > 0).astype(np.int64)
        return index, _transformed(scores + offset, post_transform)
    if len(labels) > 2 or len(set(class_ids)) > 1:
        scores = scores + offset
        return label_array(labels, scores.argmax(axis=1)), _transformed(scores, post_transform)
    positive = scores[:, class_ids[:1] or [0]] + offset[1]
    probabilities = bool(min(weights if weights is not None else [0]) >= 0)
    index = (positive[:, 0] > (0.5 if probabilities else 0)).astype(np.int64)
    if set(class_ids) == {1}:
        scores = _transformed(scores + offset, post_transform)
    else:
        scores = two_columns(positive, post_transform, complement=probabilities)
    return label_array(labels, index), scores


@op("TreeEnsemble", since=5, domain=ML, host=(0,))
def tree_ensemble(
    xp: Any,
    x: Array,
    *,
    aggregate_function: int = 1,
    leaf_targetids: Ints,
    leaf_weights: Array,
    membership_values: Array | None = None,
    n_targets: int = 1,
    nodes_falseleafs: Ints,
    nodes_falsenodeids: Ints,
    nodes_featureids: Ints,
    nodes_hitrates: Array | None = None,
    nodes_missing_value_tracks_true: Ints | None = None,
    nodes_modes: Array,
    nodes_splits: Array,
    nodes_trueleafs: Ints,
    nodes_truenodeids: Ints,
    post_transform: int = 0,
    tree_roots: Ints,
) -> Array:
    """The aggregated votes for each target."""
    inner, leaves = len(nodes_featureids), len(leaf_targetids)
    yes, no = (
        np.where(np.array(leafs, dtype=bool), np.array(ids) + inner, np.array(ids))
        for leafs, ids in (
            (nodes_trueleafs, nodes_truenodeids),
            (nodes_falseleafs, nodes_falsenodeids),
        )
    )
    own = np.arange(inner, inner + leaves)
    nothing = np.zeros(leaves, dtype=np.int64)
    votes = np.full((inner + leaves, n_targets), np.nan, dtype=leaf_weights.dtype)
    votes[own, np.array(leaf_targetids)] = leaf_weights
    tracks = np.zeros(inner + leaves, dtype=bool)
    if nodes_missing_value_tracks_true:
        tracks[:inner] = nodes_missing_value_tracks_true
    forest = Forest(
        np.array(tree_roots, dtype=np.int64),
        np.concatenate([np.array(nodes_featureids, dtype=np.int64), nothing]),
        np.concatenate([nodes_splits, np.zeros(leaves, dtype=nodes_splits.dtype)]),
        np.concatenate([nodes_modes.astype(np.int64), nothing + _LEAF]),
        np.concatenate([yes, own]),
        np.concatenate([no, own]),
        tracks,
        votes,
        _members(nodes_modes, membership_values),
    )
    function = ("AVERAGE", "SUM", "MIN", "MAX")[aggregate_function]
    scores = np.nan_to_num(forest.aggregate(as_matrix(x), function), nan=0.0)
    names = ("NONE", "SOFTMAX", "LOGISTIC", "SOFTMAX_ZERO", "PROBIT")
    return _transformed(scores, names[post_transform])


def _members(modes: Array, values: Array | None) -> dict[int, Array]:
    """The set of each membership node; NaN ends a set."""
    nodes = np.flatnonzero(modes == _MODES["BRANCH_MEMBER"])
    if values is None:
        return {}
    ends = np.flatnonzero(np.isnan(values))
    starts = np.concatenate([[0], ends[:-1] + 1])
    sets = [values[a:b] for a, b in zip(starts, ends, strict=True)]
    return dict(zip(nodes.tolist(), sets, strict=True))


@shape("TreeEnsembleRegressor", "TreeEnsemble", domain=ML)
def tree_regressor_shape(x: Arg, *, n_targets: int = 1, **_: Any) -> tuple[int, int]:
    """(N, targets)."""
    return (x.shape[0] if len(x.shape) > 1 else 1, n_targets)


@shape("TreeEnsembleClassifier", domain=ML)
def tree_classifier_shape(
    x: Arg,
    *,
    classlabels_int64s: Ints | None = None,
    classlabels_strings: Sequence[str] | None = None,
    **_: Any,
) -> list[tuple[int, ...] | None]:
    """(N,), and scores whose number the transform decides where there are two classes."""
    rows = x.shape[0] if len(x.shape) > 1 else 1
    count = len(classlabels_strings or classlabels_int64s or [])
    return [(rows,), (rows, count) if count > 2 else None]


@dtypes("TreeEnsembleClassifier", domain=ML)
def tree_classifier_dtypes(
    _: list[DType | None], *, classlabels_strings: Sequence[str] | None = None, **__: Any
) -> list[DType]:
    """Labels by attribute, scores in float32."""
    return [label_dtype(classlabels_strings), DType.FLOAT]
