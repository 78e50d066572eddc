"""Run a layer's nodes one after the other with their operators: the tactic that always works."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np

from polytool.backends.native.network import Layer, Node, Tensor
from polytool.backends.native.numerics import load, round_tf32, store
from polytool.backends.native.tactics.base import Launch, Mode, Tactic
from polytool.errors import UnsupportedError

TF32_OPERATORS = frozenset(
    {"Conv", "ConvTranspose", "MatMul", "Gemm", "Einsum", "FusedMatMul", "Attention"}
)


class Generic(Tactic):
    """Every operator, fused or not, on NumPy."""

    name = "numpy.generic"
    priority = -100

    def supports(self, layer: Layer, mode: Mode) -> bool:
        return not any(node.bodies for node in layer.nodes)

    def compile(self, layer: Layer, mode: Mode) -> Launch:
        if len(layer.nodes) == 1:
            return _single(layer, mode)
        return _several(layer, mode)


def bind(node: Node) -> Callable[..., Any]:
    """The operator of `node` with its attributes, taking arrays only."""
    operator = node.operator
    if operator is None:
        raise UnsupportedError(f"the native engine has no operator {node.op}-{node.version}")
    options = dict(node.attrs)
    if "n_outputs" in operator.wants:
        options["n_outputs"] = len(node.outputs)
    if "out_dtypes" in operator.wants:
        options["out_dtypes"] = tuple(t.dtype if t is not None else None for t in node.outputs)
    if "in_dtypes" in operator.wants:
        options["in_dtypes"] = tuple(t.dtype if t is not None else None for t in node.inputs)
    function = partial(operator.function, np, **options)
    if node.precision == "tf32" and node.op in TF32_OPERATORS:
        return lambda *args: function(*(_tf32(a) for a in args))
    return function


def bind_fused(node: Node, mode: Mode) -> Callable[..., Any]:
    """Like `bind`, for a node inside a fused layer: an explicit Cast rounds there too."""
    function = bind(node)
    (tensor, *_) = node.outputs
    if node.op not in ("Cast", "CastLike") or tensor is None or tensor.dtype is None:
        return function
    dtype = tensor.dtype
    return lambda *args: store(np.asarray(function(*args)), dtype, wide=mode.wide)


def _tf32(value: Any) -> Any:
    return round_tf32(value) if getattr(value, "dtype", None) == np.float32 else value


def stored_constant(tensor: Tensor, mode: Mode) -> Any:
    """A constant as the CPU engine stores it."""
    assert tensor.constant is not None
    value = load(tensor.constant.array(), tensor.constant.dtype, wide=mode.wide)
    return value if value.flags.aligned else value.copy()


def _single(layer: Layer, mode: Mode) -> Launch:
    """One operator: constants are put in place once, results keep the operator's order."""
    (node,) = layer.nodes
    function = bind(node)
    template = [
        stored_constant(t, mode) if t is not None and t.constant is not None else None
        for t in node.inputs
    ]
    inputs = layer.inputs
    slots = [
        (i, inputs.index(t))
        for i, t in enumerate(node.inputs)
        if t is not None and t.constant is None
    ]
    wanted = [i for i, t in enumerate(node.outputs) if t is not None]
    if len(node.outputs) == 1:
        if slots == [(i, i) for i in range(len(template))]:
            return lambda *args: (_first(function(*args)),)

        def launch_one(*args: Any) -> Sequence[Any]:
            values = template.copy()
            for position, source in slots:
                values[position] = args[source]
            return (_first(function(*values)),)

        return launch_one

    def launch(*args: Any) -> Sequence[Any]:
        values = template.copy()
        for position, source in slots:
            values[position] = args[source]
        results = function(*values)
        results = results if isinstance(results, tuple) else (results,)
        return [results[i] for i in wanted]

    return launch


def _first(result: Any) -> Any:
    return result[0] if type(result) is tuple else result


def _several(layer: Layer, mode: Mode) -> Launch:
    """Nodes in order over a small table; nothing is rounded between them but to float32."""
    keys: dict[Tensor, int] = {t: i for i, t in enumerate(layer.inputs)}
    steps = []
    base: list[Any] = [None] * len(keys)
    for node in layer.nodes:
        sources = []
        for tensor in node.inputs:
            if tensor is None:
                sources.append(-1)
                continue
            if tensor not in keys:
                keys[tensor] = len(base)
                base.append(stored_constant(tensor, mode))
            sources.append(keys[tensor])
        targets = []
        for tensor in node.outputs:
            targets.append(len(base))
            base.append(None)
            if tensor is not None:
                keys[tensor] = targets[-1]
        steps.append((bind_fused(node, mode), sources, targets))
    base.append(None)  # slot -1: an absent input
    results = [keys[t] for t in layer.outputs]
    n_inputs = len(layer.inputs)

    def launch(*args: Any) -> Sequence[Any]:
        table = base.copy()
        table[:n_inputs] = args
        for function, sources, targets in steps:
            produced = function(*[table[i] for i in sources])
            if type(produced) is tuple:
                for target, value in zip(targets, produced, strict=False):
                    table[target] = value
            else:
                table[targets[0]] = produced
        return [table[i] for i in results]

    return launch
