"""Convolutions, attention and products by cuDNN's graph interface, by address and capture-safe.

cuDNN is reached through nvidia-cudnn-frontend. Every plan of a graph is a candidate; which one is
best differs from shape to shape. A built graph serialises together with its chosen plan.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any, ClassVar

from polytool.backends.native.kernels import libraries
from polytool.backends.native.kernels.source import LibraryPlan, LibraryRequest
from polytool.errors import MissingDependencyError, RunnerError, UnsupportedError
from polytool.tensors import DType

_NAMES = {
    DType.FLOAT: "FLOAT",
    DType.FLOAT16: "HALF",
    DType.BFLOAT16: "BFLOAT16",
    DType.INT8: "INT8",
    DType.INT32: "INT32",
    DType.BOOL: "BOOLEAN",
}
_LARGEST_WORKSPACE = 256 << 20
ACTIVATIONS = ("none", "relu", "silu", "hardswish", "gelu", "gelu_tanh", "sigmoid", "tanh", "clip")


@cache
def _frontend() -> Any:
    libraries.load("libcudnn.so.9", "nvidia-cudnn-cu13", "cuDNN graphs")
    try:
        import cudnn
    except ImportError as err:
        raise MissingDependencyError("nvidia-cudnn-frontend", "cuda", "cuDNN graphs") from err
    return cudnn


def version() -> int:
    """cuDNN's version, part of the key of every time and plan."""
    return int(_frontend().backend_version())


class Handle:
    """A cuDNN handle; one a context, since it carries the stream."""

    def __init__(self) -> None:
        self.value = _frontend().create_handle()

    def on(self, stream: int) -> Any:
        """The handle, set to a stream."""
        _frontend().set_stream(handle=self.value, stream=stream)
        return self.value

    def close(self) -> None:
        """Destroy it; idempotent."""
        if self.value is not None:
            _frontend().destroy_handle(self.value)
            self.value = None


_handles = threading.local()


def thread_handle() -> Handle:
    """The calling thread's handle for building plans."""
    if not hasattr(_handles, "value"):
        _handles.value = Handle()
    return _handles.value  # type: ignore[no-any-return]  # threading.local is untyped


def _type(dtype: DType) -> Any:
    if dtype not in _NAMES:
        raise UnsupportedError(f"cuDNN graphs do not take {dtype.label}")
    return getattr(_frontend().data_type, _NAMES[dtype])


def _channels_last(shape: Sequence[int]) -> list[int]:
    """Strides of a tensor described as NCHW that lies as NHWC."""
    _, c, *spatial = shape
    steps, step = [], c
    for size in reversed(spatial):
        steps.append(step)
        step *= size
    return [step, 1, *reversed(steps)]


@dataclass(frozen=True)
class Convolution:
    """Convolution, NHWC, weights [out, kh, kw, in / groups], with an epilogue.

    Buffers: image, weights, bias if there is one, addend if there is one, output.

    Attributes:
        image: N, C, H, W of the input, whatever its layout.
        weights: out, in / groups, kh, kw.
        output: N, C, H, W of the result.
        pads: as in ONNX: top, left, bottom, right.
        addend: a tensor like the output is added before the activation.
        clip: limits of the activation `clip`.
    """

    image: tuple[int, ...]
    weights: tuple[int, ...]
    output: tuple[int, ...]
    strides: tuple[int, ...] = (1, 1)
    pads: tuple[int, ...] = (0, 0, 0, 0)
    dilations: tuple[int, ...] = (1, 1)
    dtype: DType = DType.FLOAT16
    bias: bool = True
    addend: bool = False
    activation: str = "none"
    clip: tuple[float, float] = (0.0, 6.0)

    def define(self, graph: Any) -> list[Any]:
        """Write the graph; returns its tensors in the order of the buffers."""
        n = len(self.strides)
        x = _tensor(graph, "x", self.image, _channels_last(self.image), self.dtype)
        w = _tensor(graph, "w", self.weights, _channels_last(self.weights), self.dtype)
        tensors = [x, w]
        y = graph.conv_fprop(
            image=x,
            weight=w,
            pre_padding=list(self.pads[:n]),
            post_padding=list(self.pads[n:]),
            stride=list(self.strides),
            dilation=list(self.dilations),
        )
        if self.bias:
            shape = (1, self.output[1], *(1 for _ in self.output[2:]))
            b = _tensor(graph, "b", shape, _channels_last(shape), self.dtype)
            tensors.append(b)
            y = graph.bias(input=y, bias=b)
        if self.addend:
            z = _tensor(graph, "z", self.output, _channels_last(self.output), self.dtype)
            tensors.append(z)
            y = graph.add(a=y, b=z)
        y = _activate(graph, y, self.activation, self.clip)
        y.set_output(True).set_data_type(_type(self.dtype))
        y.set_dim(list(self.output)).set_stride(_channels_last(self.output))
        return [*tensors, y]


@dataclass(frozen=True)
class Product:
    """A batch of row-major products A [b, m, k] B with bias and activation.

    Buffers: A, B, bias if there is one, addend if there is one, D.

    Attributes:
        transposed: B lies as [n, k].
    """

    m: int
    n: int
    k: int
    batch: int = 1
    transposed: bool = True
    dtype: DType = DType.FLOAT16
    bias: bool = True
    addend: bool = False
    activation: str = "none"
    clip: tuple[float, float] = (0.0, 6.0)

    def define(self, graph: Any) -> list[Any]:
        """Write the graph; returns its tensors in the order of the buffers."""
        b, m, n, k = self.batch, self.m, self.n, self.k
        a = _tensor(graph, "a", (b, m, k), (m * k, k, 1), self.dtype)
        steps = (n * k, 1, k) if self.transposed else (n * k, n, 1)
        w = _tensor(graph, "w", (b, k, n), steps, self.dtype)
        tensors = [a, w]
        y = graph.matmul(A=a, B=w)
        if self.bias:
            v = _tensor(graph, "v", (1, 1, n), (n, n, 1), self.dtype)
            tensors.append(v)
            y = graph.bias(input=y, bias=v)
        if self.addend:
            z = _tensor(graph, "z", (b, m, n), (m * n, n, 1), self.dtype)
            tensors.append(z)
            y = graph.add(a=y, b=z)
        y = _activate(graph, y, self.activation, self.clip)
        y.set_output(True).set_data_type(_type(self.dtype))
        y.set_dim([b, m, n]).set_stride([m * n, n, 1])
        return [*tensors, y]


@dataclass(frozen=True)
class Attention:
    """Scaled dot-product attention of [batch, head, row, element] tensors with given strides.

    Buffers: Q, K, V, the mask if there is one, the output.

    Attributes:
        mask: shape of an additive mask of the tensors' type, dense; None for none.
    """

    q: tuple[int, int, int, int]
    k: tuple[int, int, int, int]
    q_strides: tuple[int, int, int, int]
    k_strides: tuple[int, int, int, int]
    v_strides: tuple[int, int, int, int]
    o_strides: tuple[int, int, int, int]
    scale: float
    causal: bool = False
    mask: tuple[int, int, int, int] | None = None
    dtype: DType = DType.FLOAT16

    def define(self, graph: Any) -> list[Any]:
        """Write the graph; returns its tensors in the order of the buffers."""
        q = _tensor(graph, "q", self.q, self.q_strides, self.dtype)
        k = _tensor(graph, "k", self.k, self.k_strides, self.dtype)
        v = _tensor(graph, "v", self.k, self.v_strides, self.dtype)
        tensors, options = [q, k, v], {}
        if self.mask is not None:
            s = self.mask
            steps = (s[1] * s[2] * s[3], s[2] * s[3], s[3], 1)
            options["bias"] = _tensor(graph, "m", s, steps, self.dtype)
            tensors.append(options["bias"])
        if self.causal:
            options["use_causal_mask"] = True
        o, _ = graph.sdpa(
            name="sdpa",
            q=q,
            k=k,
            v=v,
            attn_scale=self.scale,
            generate_stats=False,
            **options,
        )
        o.set_output(True).set_data_type(_type(self.dtype))
        o.set_dim(list(self.q)).set_stride(list(self.o_strides))
        return [*tensors, o]


Description = Convolution | Product | Attention


def _tensor(graph: Any, name: str, shape: Sequence[int], steps: Sequence[int], dtype: DType) -> Any:
    return graph.tensor(name=name, dim=list(shape), stride=list(steps), data_type=_type(dtype))


def _activate(graph: Any, y: Any, activation: str, clip: tuple[float, float]) -> Any:
    """Append an activation."""
    simple: Mapping[str, Callable[[Any], Any]] = {
        "none": lambda v: v,
        "relu": lambda v: graph.relu(input=v),
        "silu": lambda v: graph.swish(input=v),
        "gelu": lambda v: graph.gelu(input=v),
        "gelu_tanh": lambda v: graph.gelu_approx_tanh(input=v),
        "sigmoid": lambda v: graph.sigmoid(input=v),
        "tanh": lambda v: graph.tanh(input=v),
        "clip": lambda v: graph.relu(input=v, lower_clip=clip[0], upper_clip=clip[1]),
    }
    if activation in simple:
        return simple[activation](y)
    raise UnsupportedError(f"the cuDNN graphs have no activation {activation}")


@dataclass
class Graph:
    """A cuDNN graph with all its plans; build the plans that are wanted, then launch."""

    description: Description
    _graph: Any
    _count: int
    _built: set[int] = field(default_factory=set)

    @classmethod
    def of(cls, description: Description, handle: Handle | None = None) -> Graph:
        """Ask cuDNN for the plans of a description.

        Raises:
            UnsupportedError: cuDNN has no engine for it.
        """
        cudnn = _frontend()
        handle = handle or thread_handle()
        graph = cudnn.pygraph(
            io_data_type=_type(description.dtype),
            intermediate_data_type=cudnn.data_type.FLOAT,
            compute_data_type=cudnn.data_type.FLOAT,
            handle=handle.value,
        )
        try:
            tensors = description.define(graph)
            for uid, tensor in enumerate(tensors, 1):
                tensor.set_uid(uid)
            graph.validate()
            graph.build_operation_graph()
            graph.create_execution_plans([cudnn.heur_mode.A, cudnn.heur_mode.FALLBACK])
            graph.check_support()
        except cudnn.cudnnGraphNotSupportedError as err:
            raise UnsupportedError(f"cuDNN has no engine for {description}: {err}") from err
        return cls(description, graph, len(tensors))

    @property
    def plans(self) -> int:
        """How many plans there are; not every one can be built."""
        return int(self._graph.get_execution_plan_count())

    def name(self, plan: int) -> str:
        """cuDNN's name of a plan: engine and knobs."""
        return str(self._graph.get_plan_name_at_index(plan))

    def build(self, plan: int) -> bool:
        """Finish a plan; False when cuDNN gives it up. Run-time compiled plans take a second."""
        cudnn = _frontend()
        if plan not in self._built:
            try:
                self._graph.build_plan_at_index(plan)
            except cudnn.cudnnGraphNotSupportedError:
                return False
            except RuntimeError:  # a plan that the heuristics list but the library cannot finish
                return False
            self._built.add(plan)
        return True

    def workspace(self, plan: int) -> int:
        """Bytes that a built plan needs."""
        return int(self._graph.get_workspace_size_plan_at_index(plan))

    def serialized(self) -> bytes:
        """The graph with the plan built last, for an engine file; see `Restored`."""
        return bytes(self._graph.serialize())

    def launch(
        self, plan: int, addresses: Sequence[int], workspace: int, handle: Handle | None = None
    ) -> Launch:
        """A plan with addresses in place.

        `handle` must not be used by another thread; by default it is that of the thread that calls.
        """
        pack = _pack(addresses, self._count, str(self.description))
        return Launch(self._graph, plan, pack, workspace, handle)


class Restored:
    """A graph with one plan, as `Graph.serialized` wrote it for this device and library version."""

    def __init__(self, data: bytes, handle: Handle) -> None:
        """Load.

        Raises:
            RunnerError: cuDNN refuses the data, as it does those of another version or device.
        """
        self._graph = _frontend().pygraph(handle=handle.value)
        try:
            self._graph.deserialize(handle.value, list(data))
        except RuntimeError as err:
            raise RunnerError(
                f"cuDNN {version()} refuses a stored plan: {err}; build the engine again here"
            ) from err

    @property
    def workspace(self) -> int:
        """Bytes that the plan needs."""
        return int(self._graph.get_workspace_size())

    def launch(self, addresses: Sequence[int], workspace: int, handle: Handle) -> Launch:
        """The plan with addresses in place, in the order of the description's buffers."""
        pack = _pack(addresses, len(addresses), "a stored plan")
        return Launch(self._graph, None, pack, workspace, handle)


def _pack(addresses: Sequence[int], count: int, what: str) -> dict[int, int]:
    if len(addresses) != count:
        raise RunnerError(f"{what} has {count} buffers, {len(addresses)} are given")
    return dict(enumerate(addresses, 1))


@dataclass
class Launch:
    """A built plan that is ready to run; call it with a stream."""

    _graph: Any
    _plan: int | None
    _pack: dict[int, int]
    _workspace: int
    _handle: Handle | None
    name: str = "cudnn"

    def __call__(self, stream: int) -> None:
        handle = (self._handle or thread_handle()).on(stream)
        if self._plan is None:
            self._graph.execute(self._pack, self._workspace, handle)
        else:
            self._graph.execute_plan_at_index(self._pack, self._workspace, self._plan, handle)


class GraphPlan(LibraryPlan):
    """One plan of a graph, as a candidate.

    Attributes:
        buffers: which of the operation's buffers are the description's.
        count: how many buffers the operation has; the workspace comes after them.
    """

    source = "cudnn"

    def __init__(self, graph: Graph, plan: int, buffers: Sequence[int], count: int) -> None:
        self.name = f"cudnn {plan}"
        self.workspace = graph.workspace(plan)
        self._graph, self._plan, self._buffers, self._count = graph, plan, tuple(buffers), count

    def prepare(self, addresses: Sequence[int]) -> Sequence[Launch]:
        """The launch; see `LibraryPlan.prepare`."""
        held = [addresses[i] for i in self._buffers]
        space = addresses[self._count] if len(addresses) > self._count else 0
        return (self._graph.launch(self._plan, held, space),)


@dataclass(frozen=True)
class GraphRequest(LibraryRequest):
    """A graph whose plans join an operation's candidates; attributes as of `GraphPlan`."""

    description: Description
    buffers: tuple[int, ...]
    count: int
    most: int = 5

    source: ClassVar[str] = "cudnn"

    def candidates(self) -> Sequence[GraphPlan]:
        """The first plans that can be built and want no large workspace."""
        try:
            graph = Graph.of(self.description)
        except (MissingDependencyError, UnsupportedError):
            return ()
        found: list[GraphPlan] = []
        for plan in range(graph.plans):
            if len(found) == self.most:
                break
            if graph.build(plan) and graph.workspace(plan) <= _LARGEST_WORKSPACE:
                found.append(GraphPlan(graph, plan, self.buffers, self.count))
        return found
