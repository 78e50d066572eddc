"""Does a changed model load, and does it give the same outputs as before?"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx

from polytool.errors import PolytoolError, UsageError
from polytool.feeds import input_specs, make_feeds
from polytool.model import Model, nodes, tensors
from polytool.surgeon.fold import RANDOM

# What rounding in weights may do to outputs, relative to each output's largest value.
_RTOL, _ATOL = 1e-3, 1e-4
LOADED_UP_TO = 200_000_000  # bytes of weights up to which a result is loaded to see whether it can
_GUESSES = (32, 64, 16, 224, 8, 1)


@dataclass(frozen=True)
class Verdict:
    """Whether two models agree.

    Attributes:
        agree: None where nothing could be compared.
        reason: what differs, or why nothing was compared.
    """

    agree: bool | None
    reason: str = ""

    @property
    def label(self) -> str:
        """`agree`, `differ` or `not_compared`."""
        return {True: "agree", False: "differ", None: "not_compared"}[self.agree]


def total_weight(model: Model) -> int:
    """Bytes of all tensors."""
    return sum(model.nbytes(t) for t in tensors(model.proto))


class Reference:
    """What a model gives on made inputs, found in a thread while its caller changes the model.

    Most of that is onnxruntime loading and running, which need no interpreter.
    """

    def __init__(self, model: Model) -> None:
        self._model = model
        self._found: _Run | BaseException | None = None
        self._thread = threading.Thread(target=self._work, name="polytool-reference")
        self._thread.start()

    def _work(self) -> None:
        try:
            self._found = _run_reference(self._model)
        except BaseException as err:  # raised again where the result is wanted
            self._found = err

    def run(self) -> _Run:
        """Wait for it."""
        self._thread.join()
        if isinstance(self._found, BaseException):
            raise self._found
        assert self._found is not None
        return self._found


@dataclass(frozen=True)
class _Run:
    """Inputs and outputs by name; `reason` says why there are none."""

    feed: Mapping[str, Any]
    outputs: Mapping[str, Any]
    reason: str = ""


def compare_models(before: Model | Reference, after: Model) -> Verdict:
    """Run both on made inputs with onnxruntime and compare every output.

    Returns:
        `differ` also when `after` cannot be loaded or run where `before` can.
    """
    expected = before.run() if isinstance(before, Reference) else _run_reference(before)
    if expected.reason:
        return Verdict(None, expected.reason)
    try:
        changed = _session(after)
    except Exception as err:  # onnxruntime raises types of its own, none of them documented
        return Verdict(False, f"onnxruntime cannot load the result: {_first_line(err)}")
    try:
        outputs = changed.run(None, expected.feed)
    except Exception as err:
        return Verdict(False, f"the result does not run: {_first_line(err)}")
    differing = [
        f"output {name!r} {text}"
        for (name, a), b in zip(expected.outputs.items(), outputs, strict=True)
        if (text := difference(a, b))
    ]
    return Verdict(not differing, "; ".join(differing))


def _run_reference(model: Model) -> _Run:
    """Run `model` on the first made inputs that it takes."""
    try:
        import onnxruntime  # noqa: F401  # whether it is there at all
    except ImportError:
        return _Run({}, {}, "onnxruntime is not installed")
    if any(n.op_type in RANDOM - {"Dropout"} for n in _all_nodes(model.proto)):
        return _Run({}, {}, "the model is random")
    if not all(map(model.has_content, tensors(model.proto))):
        return _Run({}, {}, "weights have no content")
    try:
        reference = _session(model)
    except Exception as err:  # onnxruntime raises types of its own, none of them documented
        return _Run({}, {}, f"onnxruntime cannot load the original: {_first_line(err)}")
    names = [o.name for o in reference.get_outputs()]
    reason = "no inputs can be made"
    for feed in made_feeds(model):
        try:
            outputs = reference.run(None, feed)
        except Exception as err:
            reason = f"the original does not run on made inputs: {_first_line(err)}"
            continue
        return _Run(feed, dict(zip(names, outputs, strict=True)))
    return _Run({}, {}, reason)


def _all_nodes(proto: onnx.ModelProto) -> Iterator[onnx.NodeProto]:
    yield from nodes(proto.graph.node)
    for function in proto.functions:
        yield from nodes(function.node)


def load_failure(before: Model, after: Model) -> str:
    """Why onnxruntime cannot load `after`; empty where it can, or cannot load `before` either."""
    try:
        import onnxruntime  # noqa: F401  # whether it is there at all
    except ImportError:
        return ""
    if total_weight(after) >= LOADED_UP_TO or not all(map(after.has_content, tensors(after.proto))):
        return ""
    try:
        _session(after)
    except Exception as err:  # onnxruntime raises types of its own, none of them documented
        reason = _first_line(err)
    else:
        return ""
    try:
        _session(before)
    except Exception:
        return ""
    return f"onnxruntime cannot load it: {reason}"


def _session(model: Model) -> Any:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return ort.InferenceSession(model.session_source(), options, providers=["CPUExecutionProvider"])


def _first_line(err: Exception) -> str:
    return str(err).strip().splitlines()[0]


def made_feeds(model: Model) -> Iterator[Mapping[str, Any]]:
    """Made inputs; where sizes are open, with one guess after the other."""
    with contextlib.suppress(UsageError):  # a size is open
        yield from make_feeds(model)
    specs = input_specs(model)
    for guess in _GUESSES:
        shapes = {
            s.name: tuple(
                d if isinstance(d, int) else (1 if i == 0 and len(s.shape) > 1 else guess)
                for i, d in enumerate(s.shape)
            )
            for s in specs
            if s.shape is not None
        }
        try:
            yield from make_feeds(model, shapes=shapes)
        except PolytoolError:
            continue


def difference(a: Any, b: Any) -> str:
    """What differs between two outputs beyond rounding; empty when nothing does."""
    if isinstance(a, (list, tuple)):
        if not isinstance(b, (list, tuple)) or len(a) != len(b):
            return "has another number of elements"
        return next((text for x, y in zip(a, b, strict=True) if (text := difference(x, y))), "")
    if a is None or isinstance(a, (dict, str)):
        return "" if a == b else "differs"
    a, b = np.asarray(a), np.asarray(b)
    if a.dtype != b.dtype or a.shape != b.shape:
        return f"is {b.dtype}{list(b.shape)} instead of {a.dtype}{list(a.shape)}"
    if a.dtype.kind not in "fc" and a.dtype.kind != "V":
        return "" if np.array_equal(a, b) else f"differs in {int((a != b).sum())} elements"
    return _float_difference(a.astype(np.float64), b.astype(np.float64))


def _float_difference(a: Any, b: Any) -> str:
    finite = np.isfinite(a)
    if not np.array_equal(finite, np.isfinite(b)):
        return "is not finite in other elements"
    if not np.array_equal(a[~finite], b[~finite], equal_nan=True):
        return "has other infinities or NaNs"
    scale = float(np.abs(a[finite]).max(initial=0))
    error = np.abs(a[finite] - b[finite])
    if (error <= _RTOL * np.abs(a[finite]) + _ATOL * scale).all():
        return ""
    return f"differs by {float(error.max()):.3g} (its largest value is {scale:.3g})"


def check_structure(model: Model) -> str:
    """What onnx.checker says of the graph, weights aside; empty when nothing.

    Its complaints about nodes of domains that it does not know are left out.
    """
    proto = onnx.ModelProto()
    proto.CopyFrom(model.proto)
    for tensor in tensors(proto):
        if tensor.data_location == tensor.EXTERNAL:
            _make_empty(tensor)
    try:
        onnx.checker.check_model(proto)
    except onnx.checker.ValidationError as err:
        return _first_line(err)
    return ""


def _make_empty(tensor: onnx.TensorProto) -> None:
    tensor.ClearField("external_data")
    tensor.ClearField("data_location")
    tensor.ClearField("dims")
    tensor.dims.append(0)
    tensor.raw_data = b""
