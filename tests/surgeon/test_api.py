"""The functions behind the commands take a model in every form, and leave it as it is."""

from __future__ import annotations

import inspect
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import polytool
from polytool import surgeon
from polytool.inspection import inspect_model
from polytool.model import Model, load
from tests.surgeon.surgery import ops, parse

TEXT = (
    "g (float[2,4] x, int64[1] n) => (float[k,4] y, float[2,4] q) <int64[1] f = {4}> "
    "{[two] t = Add(f, f) [half] u = Sub(t, f) [shape] s = Concat<axis=0>(n, u) "
    "[mm] m = MatMul(x, w) [act] q = Relu(m) [row] r = ReduceMax<axes=[0], keepdims=1>(q) "
    "[grow] y = Expand(r, s)}"
)
# name: (what calls it, a check of what it gives)
CALLS: dict[str, tuple[Callable[[Any], Any], Callable[[Any], bool]]] = {
    "sanitize": (surgeon.sanitize, lambda r: "Add" not in ops(r.model)),
    "simplify": (surgeon.simplify, lambda r: "Add" not in ops(r)),
    "fold_constants": (
        surgeon.fold_constants,
        lambda r: "Add" not in ops(r) and ops(r)["MatMul"] == 1,
    ),
    "extract": (
        lambda m: surgeon.extract(m, ["x"], ["m"]),
        lambda r: ops(r) == {"MatMul": 1},
    ),
    "insert": (
        lambda m: surgeon.insert(m, op="Abs", inputs=["q"], outputs=["q"]),
        lambda r: ops(r)["Abs"] == 1,
    ),
    "bound_shapes": (
        lambda m: surgeon.bound_shapes(m, {"y": 5}),
        lambda r: r.records[0].bound == 5,
    ),
    "list_dds": (surgeon.list_dds, lambda r: [s.tensor for s in r] == ["y"]),
    "lint": (surgeon.lint, lambda r: r.is_valid),
    "prune": (surgeon.prune, lambda r: r.done == ("w",)),
    "inspect_sparsity": (surgeon.inspect_sparsity, lambda r: r == {"w": "dense"}),
    "strip_weights": (surgeon.strip_weights, lambda r: r.weights == ("w",)),
    "reconstruct_weights": (surgeon.reconstruct_weights, lambda r: r.weights == ()),
    "convert_precision": (
        lambda m: polytool.convert_precision(m, measure=False),
        lambda r: r.done["nodes in float16"] >= 3,
    ),
    "inspect_model": (inspect_model, lambda r: r is not None),
}


def proto() -> onnx.ModelProto:
    made = parse(TEXT)
    weight = np.arange(4 * 256, dtype=np.float32).reshape(4, 256)[:, :4].copy() + 1
    made.graph.initializer.append(onnx.numpy_helper.from_array(weight, "w"))
    wide = np.ones((4, 4), np.float32) * weight
    made.graph.initializer[-1].CopyFrom(onnx.numpy_helper.from_array(wide, "w"))
    return made


@pytest.mark.parametrize("kind", ["path", "Path", "bytes", "proto", "Model", "gs"])
@pytest.mark.parametrize("name", CALLS)
def test_a_model_is_taken_in_every_form(name: str, kind: str, tmp_path: Path) -> None:
    call, holds = CALLS[name]
    made = proto()
    if name == "strip_weights":  # only large ones are taken out
        made.graph.initializer[-1].CopyFrom(
            onnx.numpy_helper.from_array(np.ones((4, 256), np.float32), "w")
        )
    path = tmp_path / "m.onnx"
    onnx.save(made, path)
    source: Any = {
        "path": str(path),
        "Path": path,
        "bytes": made.SerializeToString(),
        "proto": made,
        "Model": load(path),
        "gs": surgeon.to_gs(made) if kind == "gs" else None,
    }[kind]
    before = made.SerializeToString(deterministic=True)
    assert holds(call(source))
    assert made.SerializeToString(deterministic=True) == before
    assert path.read_bytes() == made.SerializeToString()
    if isinstance(source, Model):
        assert source.proto.graph.node[0].name == "two"


@pytest.mark.parametrize("name", CALLS)
def test_each_says_what_it_takes_gives_and_raises(name: str) -> None:
    function = {"convert_precision": polytool.convert_precision, "inspect_model": inspect_model}
    found = function.get(name) or getattr(surgeon, name)
    text = inspect.getdoc(found) or ""
    parameters = list(inspect.signature(found).parameters)
    assert text.splitlines()[0].endswith(".")
    if len(parameters) > 1:
        documented = text.partition("Args:")[2]
        assert [p for p in parameters if f"{p}:" not in documented] == []


def test_graphsurgeon_is_imported_by_what_needs_it_only() -> None:
    code = (
        "import sys; from polytool import surgeon; from polytool.cli import main; "
        "main(['surgeon', 'sanitize', '--help']); surgeon.sanitize, surgeon.simplify; "
        "assert 'onnx_graphsurgeon' not in sys.modules; surgeon.to_gs"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == 0
