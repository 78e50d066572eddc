"""What the tests of operators against ONNX Runtime share: models of one node, run on both."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from onnx import helper

from polytool import NativeRunner
from polytool.tensors import DType

Array = np.ndarray[Any, Any]
MICROSOFT, ML = "com.microsoft", "ai.onnx.ml"


@dataclass(frozen=True)
class Case:
    """One node with its inputs.

    Attributes:
        inputs: arrays, None for an absent input.
        outputs: how many, or their names ("" for one that is not wanted).
        opset: the version of the node's domain.
        steps: by how much integers may differ, in at most a fiftieth of the elements: where a
            product of scales is rounded in another order, a tie falls to the other side.
    """

    op: str
    inputs: Sequence[Any]
    attrs: dict[str, Any] = field(default_factory=dict)
    outputs: int | Sequence[str] = 1
    domain: str = ""
    opset: int = 1
    rtol: float = 1e-4
    atol: float = 1e-5
    steps: int = 0

    def __str__(self) -> str:
        shapes = [None if x is None else f"{x.dtype}{list(x.shape)}" for x in self.inputs]
        return f"{self.op}-{self.opset} {self.attrs} on {shapes}"[:400]

    @property
    def feeds(self) -> dict[str, Array]:
        """Input name to array; types that NumPy lacks are initializers instead."""
        return {n: x for n, x in self._given().items() if x.dtype.isbuiltin == 1}

    def _given(self) -> dict[str, Array]:
        return {f"i{k}": x for k, x in enumerate(self.inputs) if x is not None}

    def model(self) -> onnx.ModelProto:
        """The node as a model; the outputs carry no types."""
        names = ["" if x is None else f"i{k}" for k, x in enumerate(self.inputs)]
        results = self.outputs
        if isinstance(results, int):
            results = [f"o{k}" for k in range(results)]
        graph = helper.make_graph(
            [helper.make_node(self.op, names, list(results), domain=self.domain, **self.attrs)],
            "g",
            [
                helper.make_tensor_value_info(name, int(DType.of(x)), x.shape)
                for name, x in self.feeds.items()
            ],
            [onnx.ValueInfoProto(name=name) for name in results if name],
            [
                onnx.numpy_helper.from_array(x, name)
                for name, x in self._given().items()
                if x.dtype.isbuiltin != 1
            ],
        )
        versions = {"": 17, self.domain: self.opset}
        opsets = [helper.make_opsetid(d, v) for d, v in versions.items()]
        return helper.make_model(graph, opset_imports=opsets, ir_version=8)


def micro(op: str, *inputs: Any, outputs: int | Sequence[str] = 1, **options: Any) -> Case:
    """A com.microsoft case; what `Case` does not know are attributes."""
    known = {k: options.pop(k) for k in ("steps", "rtol", "atol") if k in options}
    return Case(op, inputs, options, outputs, MICROSOFT, **known)


def native(case: Case, precision: str = "fp32") -> list[Any]:
    """The outputs of the native engine."""
    with NativeRunner(case.model(), precision=precision) as runner:
        return list(runner.infer(case.feeds).values())


def onnxruntime(case: Case) -> list[Any] | None:
    """The outputs of ONNX Runtime as the model is written; None where it refuses the model."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    try:
        session = ort.InferenceSession(
            case.model().SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
        return list(session.run(None, case.feeds))
    except Exception as err:
        if type(err).__module__.startswith("onnxruntime"):
            return None
        raise


def difference(case: Case, want: Sequence[Any], got: Sequence[Any]) -> str:
    """Empty when every output has the same type, shape and values."""
    for name, a, b in zip(("1st", "2nd", "3rd", "4th", "5th"), want, got, strict=False):
        if a.dtype.kind in "OUS":
            if a.tolist() != b.tolist():
                return f"{case}: the {name} output is {b.tolist()}, not {a.tolist()}"
            continue
        if (a.dtype, a.shape) != (b.dtype, b.shape):
            return f"{case}: the {name} output is {b.dtype}{b.shape}, not {a.dtype}{a.shape}"
        x, y = (v.astype(np.float64) for v in (a, b))
        if case.steps and a.dtype.kind in "iu":
            off = np.abs(x - y)
            if off.max(initial=0) > case.steps or (off > 0).mean() > 0.02:
                return f"{case}: the {name} output is off by {off.max()} in {(off > 0).mean():.1%}"
        elif not np.allclose(y, x, case.rtol, case.atol, equal_nan=True):
            worst = np.nanmax(np.abs(x - y))
            return f"{case}: the {name} output differs by {worst:.3g}"
    return ""


def check(*cases: Case) -> None:
    """Every case gives what ONNX Runtime gives, and ONNX Runtime takes every case."""
    found = []
    for case in cases:
        want = onnxruntime(case)
        found.append(f"{case}: ONNX Runtime refuses it" if want is None else _both(case, want))
    assert not any(found), "\n".join(f for f in found if f)


def sweep(draw: Callable[[np.random.Generator], Iterable[Case]], seeds: Iterable[int]) -> None:
    """Random cases give what ONNX Runtime gives; it may refuse a third of them."""
    found, taken, refused = [], 0, 0
    for seed in seeds:
        for case in draw(np.random.default_rng(seed)):
            want = onnxruntime(case)
            if want is None:
                refused += 1
                continue
            taken += 1
            found.append(_both(case, want))
    assert not any(found), "\n".join(f for f in found if f)
    assert taken > 2 * refused


def _both(case: Case, want: Sequence[Any]) -> str:
    """Single precision against ONNX Runtime; double precision too, but where it quantises."""
    wrong = difference(case, want, native(case))
    quantises = any(x.dtype.kind in "iu" for x in want) or "Quant" in case.op
    if wrong or quantises or not all(x.dtype == np.float32 for x in want):
        return wrong
    return difference(case, want, native(case, "fp64"))
