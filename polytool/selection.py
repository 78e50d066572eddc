"""Which tensors of a model a run shows, and input sizes that the model does not declare.

Tensors in the middle of a model are observed where a runner stores them, so that looking changes
nothing. A tensor that is named exactly but that a runner does not store (a kernel computes it
together with its neighbours) is made an output of a copy of the model instead.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

import numpy as np

from polytool.backends.base import Feeds, Observable, Outputs, Runner, Tap
from polytool.errors import UsageError
from polytool.model import Model
from polytool.tensors import DType

if TYPE_CHECKING:
    import onnx

ALL = frozenset({"all", "*"})


def select_tensors(
    model: Model,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    types: Sequence[str] = (),
) -> tuple[str, ...]:
    """The tensors to show, in the order in which the graph makes them; `()` for its own outputs.

    Args:
        model: the model.
        include: names or patterns of tensors; `all` (or `mark all`) stands for every tensor.
        exclude: names or patterns to leave out; alone, of the model's outputs.
        types: operator types whose outputs are shown too.

    Raises:
        UsageError: a name, pattern or type fits nothing, or nothing is left.
    """
    if not (include or exclude or types):
        return ()
    graph = model.proto.graph
    made = {name: node.op_type for node in graph.node for name in node.output if name}
    every = list(dict.fromkeys([*made, *(o.name for o in graph.output)]))
    wanted = [p for p in include if not (p == "mark" and "mark" not in every)]
    chosen: set[str] = set()
    if any(p in ALL and p not in every for p in wanted):
        chosen, wanted = set(every), [p for p in wanted if p not in ALL]
    chosen |= _matching(wanted, every, "--onnx-outputs")
    for kind in types:
        fitting = {name for name, op in made.items() if fnmatchcase(op, kind)}
        if not fitting:
            known = ", ".join(sorted(set(made.values())))
            raise UsageError(f"the model has no node of type {kind!r}; it has {known}")
        chosen |= fitting
    if not (include or types):
        chosen = {o.name for o in graph.output}
    chosen -= _matching(exclude, every, "--onnx-exclude-outputs")
    if not chosen:
        raise UsageError("no tensor is left to show: exclude fewer outputs")
    return tuple(name for name in every if name in chosen)


def _matching(patterns: Iterable[str], names: Sequence[str], flag: str) -> set[str]:
    known, found = set(names), set()
    for pattern in patterns:
        fits = {pattern} if pattern in known else {n for n in names if fnmatchcase(n, pattern)}
        if not fits:
            close = difflib.get_close_matches(pattern, names, n=1)
            hint = f"; did you mean {close[0]!r}?" if close else ""
            raise UsageError(f"{flag} {pattern!r} fits no tensor of the model{hint}")
        found |= fits
    return found


def with_outputs(model: Model, names: Iterable[str]) -> Model:
    """A copy of the model whose outputs are `names`."""
    import onnx

    proto = onnx.ModelProto()
    proto.CopyFrom(model.proto)
    graph = proto.graph
    known = {v.name: v for v in (*model.proto.graph.value_info, *model.proto.graph.output)}
    del graph.output[:]
    for name in names:
        graph.output.append(known.get(name) or onnx.ValueInfoProto(name=name))
    return model.derive(proto)


def with_input_shapes(model: Model, shapes: Mapping[str, Sequence[int]]) -> Model:
    """The model with sizes that it declares otherwise overridden; itself where none is.

    Models often declare sizes that they do not need. What they declare of other tensors is
    forgotten then, because it followed from those sizes.
    """
    import onnx

    wrong = {i.name for i in model.proto.graph.input if _contradicts(i, shapes.get(i.name))}
    if not wrong:
        return model
    proto = onnx.ModelProto()
    proto.CopyFrom(model.proto)
    for value in proto.graph.input:
        if value.name in wrong:
            for dim, size in zip(value.type.tensor_type.shape.dim, shapes[value.name], strict=True):
                dim.dim_value = size
    del proto.graph.value_info[:]
    for output in proto.graph.output:
        if output.type.HasField("tensor_type"):
            output.type.tensor_type.ClearField("shape")
    return model.derive(proto)


def _contradicts(value: onnx.ValueInfoProto, sizes: Sequence[int] | None) -> bool:
    dims = value.type.tensor_type.shape.dim
    return sizes is not None and any(
        d.HasField("dim_value") and 0 <= d.dim_value != s for d, s in zip(dims, sizes, strict=False)
    )


class ObservedRunner(Runner):
    """A runner that returns tensors from the middle of the model as its outputs.

    Args:
        runner: the runner to observe.
        names: the tensors; each must be one of its taps or outputs.
        dtypes: the types in which tensors are returned, where they are stored in others.

    Attributes:
        observed: that runner.
    """

    def __init__(
        self, runner: Observable, names: Sequence[str], dtypes: Mapping[str, DType] | None = None
    ) -> None:
        self.name = runner.name
        self.inputs = runner.inputs
        self.observed = runner
        self._names = tuple(names)
        self._dtypes = dict(dtypes or {})
        specs = {tap.tensor: tap.spec for tap in runner.taps()} | {
            o.name: o for o in runner.outputs
        }
        self.outputs = tuple(specs[name] for name in names)

    def activate(self) -> None:
        """Activate the observed runner."""
        self.observed.activate()

    def deactivate(self) -> None:
        """Deactivate the observed runner."""
        self.observed.deactivate()

    def infer(self, feeds: Feeds) -> Outputs:
        """Run once and return the chosen tensors."""
        wanted, seen = set(self._names), dict[str, Any]()

        def observe(tap: Tap, value: Any) -> None:
            if tap.tensor in wanted:
                seen[tap.tensor] = _kept(value, self._dtypes.get(tap.tensor, tap.spec.dtype))

        outputs = self.observed.infer(feeds, observe)
        return {name: outputs[name] if name in outputs else seen[name] for name in self._names}

    def last_inference_time(self) -> float:
        """Seconds of the last inference, observing included."""
        return self.observed.last_inference_time()

    @property
    def settings(self) -> dict[str, Any]:
        """Those of the observed runner."""
        return self.observed.settings


def _kept(value: Any, dtype: DType | None) -> Any:
    """A copy in the tensor's own type: an oracle shows wider values than the model has."""
    if not isinstance(value, np.ndarray):
        return value
    if dtype is not None and dtype.is_float and value.dtype != dtype.numpy:
        with np.errstate(over="ignore"):
            return value.astype(dtype.numpy)
    return value.copy()


def common_types(runners: Sequence[Runner]) -> dict[str, DType]:
    """For each tensor the narrowest type in which a runner stores it, so that all can be compared.

    One that lacks a kernel for float16 stores float32 where the model says float16.
    """
    found: dict[str, DType] = {}
    for runner in runners:
        specs = [t.spec for t in runner.taps()] if isinstance(runner, Observable) else []
        for spec in specs:
            known = found.get(spec.name)
            if spec.dtype is not None and (known is None or spec.dtype.bits < known.bits):
                found[spec.name] = spec.dtype
    return found


def visible(runner: Runner) -> set[str]:
    """The whole tensors that a runner can show without changing what it computes."""
    names = {o.name for o in runner.outputs}
    if isinstance(runner, Observable):
        names |= {tap.tensor for tap in runner.taps() if not tap.rows}
    return names
