"""What the tests of surgery share: models from text, and the comparison before and after."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import onnx

from polytool.model import Model, load, nodes
from polytool.surgeon import Report, simplify

Feeds = dict[str, Any]


def parse(text: str, *, opset: int = 17, ir: int = 8, extra: str = "") -> onnx.ModelProto:
    """A model from the text of its graph."""
    return onnx.parser.parse_model(
        f'<ir_version: {ir}, opset_import: ["" : {opset}{extra}]> {text}'
    )


def ops(model: Model | onnx.ModelProto) -> dict[str, int]:
    """How often each operator stands in the model, bodies and functions included."""
    proto = model.proto if isinstance(model, Model) else model
    found = Counter(n.op_type for n in nodes(proto.graph.node))
    for function in proto.functions:
        found.update(n.op_type for n in nodes(function.node))
    return dict(found)


def simplified(proto: onnx.ModelProto, **options: Any) -> tuple[Model, Report]:
    """`simplify` on a model; the source must not change."""
    before = proto.SerializeToString(deterministic=True)
    report = Report()
    model = simplify(load(proto), report=report, **options)
    assert proto.SerializeToString(deterministic=True) == before
    return model, report


def session(source: bytes) -> Any:
    """An onnxruntime session that changes as little as possible."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    return ort.InferenceSession(source, options, providers=["CPUExecutionProvider"])


def random_feeds(inputs: Any, seed: int = 0) -> Feeds:
    """Seeded values for the inputs of a session; unknown dimensions are 2."""
    rng = np.random.default_rng(seed)
    feeds: Feeds = {}
    for spec in inputs:
        shape = [d if isinstance(d, int) else 2 for d in spec.shape]
        kind = spec.type.removeprefix("tensor(").rstrip(")")
        if kind == "string":
            feeds[spec.name] = rng.choice(np.array(["a", "b", "c"], object), shape)
        elif kind == "bool":
            feeds[spec.name] = rng.integers(0, 2, shape).astype(bool)
        else:
            dtype = {"float": "float32", "double": "float64"}.get(kind, kind)
            values = np.asarray(rng.standard_normal(shape) * 3)
            feeds[spec.name] = (
                values.astype(dtype) if "uint" not in dtype else np.abs(values).astype(dtype)
            )
    return feeds


def assert_same(a: Any, b: Any, name: str = "") -> None:
    """Equal up to rounding, in type, shape and structure."""
    if isinstance(a, list):
        assert isinstance(b, list)
        assert len(a) == len(b)
        for x, y in zip(a, b, strict=True):
            assert_same(x, y, name)
        return
    if a is None or isinstance(a, dict):
        assert a == b
        return
    assert a.dtype == b.dtype, name
    assert a.shape == b.shape, name
    if a.dtype.kind == "f":
        largest = np.max(np.abs(a[np.isfinite(a)]), initial=1)
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6 * largest, err_msg=name)
        np.testing.assert_array_equal(np.signbit(a[a == 0]), np.signbit(b[a == 0]), name)
    else:
        np.testing.assert_array_equal(a, b, name)


def assert_equivalent(
    before: onnx.ModelProto, after: Model, feeds: Feeds | None = None, seeds: int = 2
) -> None:
    """onnxruntime loads `after`, the checker accepts it, and both give the same outputs."""
    changed = after.to_proto()
    onnx.checker.check_model(changed, full_check=False)
    old, new = session(before.SerializeToString()), session(changed.SerializeToString())
    names = [o.name for o in old.get_outputs()]
    assert [o.name for o in new.get_outputs()] == names
    assert [(i.name, i.type, i.shape) for i in new.get_inputs()] == [
        (i.name, i.type, i.shape) for i in old.get_inputs()
    ]
    for seed in range(seeds):
        values = feeds if feeds is not None else random_feeds(old.get_inputs(), seed)
        for name, a, b in zip(names, old.run(None, values), new.run(None, values), strict=True):
            assert_same(a, b, name)
        if feeds is not None:
            break
