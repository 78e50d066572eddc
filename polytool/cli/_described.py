"""How `inspect model` shows what it found."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING, Any

from polytool.cli.output import table
from polytool.tensors import TensorSpec, format_shape

if TYPE_CHECKING:
    from polytool.engine_inspection import EngineDescription
    from polytool.inspection import Description, LayerInfo, WeightInfo

_UNITS = ("", "K", "M", "G", "T", "P")


def quantity(number: float, unit: str = "", step: int = 1000) -> str:
    """`1.78 G`, or `12.4 MiB` with step 1024."""
    power = 0
    while abs(number) >= step and power < len(_UNITS) - 1:
        number, power = number / step, power + 1
    prefix = _UNITS[power] + ("i" if step == 1024 and power else "")
    digits = (
        f"{number:.0f}" if power == 0 else f"{number:.3g}" if number < 1000 else f"{number:.0f}"
    )
    return f"{digits} {prefix}{unit}".rstrip()


def size(number: int) -> str:
    """Bytes for people."""
    return quantity(number, "B", 1024)


def model_text(found: Description, show: Collection[str]) -> str:
    """An ONNX model for people."""
    opsets = ", ".join(f"{domain or 'ai.onnx'} {v}" for domain, v in found.opsets.items())
    outside = len({w.location for w in found.weights if w.location})
    lines = [
        f"{found.path or found.graph}: ONNX, IR {found.ir_version}, opset {opsets}"
        + (f", made by {found.producer}" if found.producer else ""),
        f"{len(found.layers)} nodes, {len(found.functions)} functions, "
        f"{quantity(found.parameters)} parameters, {size(found.weight_bytes)} of weights"
        + (f" in {outside} external file{'s' if outside > 1 else ''}" if outside else ""),
        *(f"{key}: {value}" for key, value in found.metadata.items()),
        "",
        *_interface("inputs", found.inputs),
        *_interface("outputs", found.outputs),
        "",
        *_cost(found),
        "",
        _operators(found),
    ]
    if {"layers", "attrs"} & set(show):
        lines += ["", _layers(found.layers, "attrs" in show)]
    if {"weights", "stats"} & set(show):
        lines += ["", _weights(found.weights, "stats" in show)]
    return "\n".join(lines)


def _interface(title: str, specs: Collection[TensorSpec]) -> list[str]:
    return [f"{title}:" + ("" if specs else " none"), *(f"  {spec}" for spec in specs)]


def _cost(found: Description) -> list[str]:
    cost = found.cost
    if cost.reason:
        return [f"cost: not known, because {cost.reason}"]
    peak = f"{size(cost.peak)} of activations at the peak" if cost.peak is not None else ""
    lines = [
        f"cost: {quantity(cost.total_flops, 'FLOP')}, {size(cost.total_bytes)} moved"
        + (f", {peak}" if peak else "")
    ]
    if cost.open:
        lines.append(f"  without {len(cost.open)} nodes whose sizes data decides, such as "
                     + ", ".join(cost.open[:3]))  # fmt: skip
    return lines


def _operators(found: Description) -> str:
    flops: dict[str, int] = {}
    for layer in found.layers:
        key = f"{layer.domain}.{layer.op}" if layer.domain else layer.op
        flops[key] = flops.get(key, 0) + (layer.flops or 0)
    total = sum(flops.values())
    rows = [
        (op, count, f"{100 * flops[op] / total:.1f} %" if total and flops[op] else "")
        for op, count in found.operators.items()
    ]
    return table(rows, ("operator", "nodes", "FLOP"), align="lrr")


def _layers(layers: Collection[LayerInfo], attributes: bool) -> str:
    rows = []
    for layer in layers:
        name = f"{layer.graph}/{layer.name}" if layer.graph else layer.name
        outputs = ", ".join(map(str, layer.outputs))
        flops = "" if layer.flops is None else quantity(layer.flops)
        row = [name, layer.op, ", ".join(layer.inputs), outputs, flops]
        if attributes:
            row.append(", ".join(f"{k}={v}" for k, v in layer.attributes.items()))
        rows.append(row)
    headers = ["node", "operator", "inputs", "outputs", "FLOP"]
    return table(rows, headers + ["attributes"] * attributes, align="llllr" + "l" * attributes)


def _weights(weights: Collection[WeightInfo], statistics: bool) -> str:
    rows = []
    for weight in weights:
        name = f"{weight.graph}/{weight.name}" if weight.graph else weight.name
        row = [name, f"{weight.dtype}{format_shape(weight.shape)}", size(weight.nbytes)]
        if statistics:
            s = weight.statistics
            numbers = (s.minimum, s.maximum, s.mean, s.std) if s is not None else ()
            row += [f"{v:.4g}" for v in numbers] or [""] * 4
            row += [str(s.zeros), str(s.not_finite)] if s is not None else ["", ""]
        rows.append(row)
    headers = ["weight", "type", "bytes"]
    more = ["min", "max", "mean", "std", "zeros", "not finite"] if statistics else []
    return table(rows, headers + more, align="llr" + "r" * len(more))


def model_facts(found: Description, show: Collection[str]) -> dict[str, Any]:
    """The same as plain JSON; layers and weights where `show` asks for them."""
    cost = found.cost
    facts: dict[str, Any] = {
        "kind": "onnx",
        "path": found.path,
        "ir_version": found.ir_version,
        "opsets": found.opsets,
        "producer": found.producer,
        "graph": found.graph,
        "doc": found.doc,
        "metadata": found.metadata,
        "inputs": [_spec(s) for s in found.inputs],
        "outputs": [_spec(s) for s in found.outputs],
        "nodes": len(found.layers),
        "operators": found.operators,
        "functions": found.functions,
        "parameters": found.parameters,
        "weight_bytes": found.weight_bytes,
        "cost": {
            "flops": None if cost.reason else cost.total_flops,
            "bytes_moved": None if cost.reason else cost.total_bytes,
            "peak_activation_bytes": cost.peak,
            "open": cost.open,
            "reason": cost.reason,
        },
    }
    if {"layers", "attrs"} & set(show):
        facts["layers"] = [
            {
                "name": layer.name,
                "op": layer.op,
                "domain": layer.domain,
                "graph": layer.graph,
                "inputs": layer.inputs,
                "outputs": [_spec(s) for s in layer.outputs],
                "flops": layer.flops,
                "bytes_moved": layer.bytes_moved,
            }
            | ({"attributes": layer.attributes} if "attrs" in show else {})
            for layer in found.layers
        ]
    if {"weights", "stats"} & set(show):
        facts["weights"] = found.weights
    return facts


def _spec(spec: TensorSpec) -> dict[str, Any]:
    return {
        "name": spec.name,
        "dtype": spec.dtype.label if spec.dtype is not None else None,
        "shape": spec.shape,
        "container": spec.container,
    }


def engine_text(found: EngineDescription, show: Collection[str]) -> str:
    """An engine for people."""
    lines = [
        f"{found.path}: engine for {found.device}, {found.config.get('precision', '')}",
        f"{len(found.layers)} layers of {found.nodes} nodes, {size(found.weight_bytes)} of weights",
        *(f"tactics and kernels for {name}" for name in found.devices),
        *(f"on the host under --device cuda: {n} ({why})" for n, why in found.on_host.items()),
        "",
        *_interface("inputs", found.inputs),
        *_interface("outputs", found.outputs),
        "",
        table(found.kinds.items(), ("kind", "layers"), align="lr"),
    ]
    if {"layers", "attrs"} & set(show):
        rows = [
            (x.name, x.kind, x.tactic, ", ".join(map(str, x.outputs)), ", ".join(x.origin))
            for x in found.layers
        ]
        lines += ["", table(rows, ("layer", "kind", "tactic", "outputs", "ONNX nodes"))]
    return "\n".join(lines)


def engine_facts(found: EngineDescription, show: Collection[str]) -> dict[str, Any]:
    """The same as plain JSON."""
    facts: dict[str, Any] = {
        "kind": "engine",
        "path": found.path,
        "device": found.device,
        "config": found.config,
        "inputs": [_spec(s) for s in found.inputs],
        "outputs": [_spec(s) for s in found.outputs],
        "nodes": found.nodes,
        "kinds": found.kinds,
        "weight_bytes": found.weight_bytes,
        "devices": found.devices,
        "on_host": dict(found.on_host),
    }
    if {"layers", "attrs"} & set(show):
        facts["layers"] = [
            {
                "name": x.name,
                "kind": x.kind,
                "tactic": x.tactic,
                "origin": x.origin,
                "outputs": [_spec(s) for s in x.outputs],
            }
            for x in found.layers
        ]
    return facts
