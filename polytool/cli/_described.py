"""How `inspect model` shows what it found."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from polytool.cli.output import table
from polytool.tensors import TensorSpec, format_shape

if TYPE_CHECKING:
    from polytool.cost import Cost
    from polytool.engine_inspection import EngineDescription
    from polytool.inspection import Description, LayerInfo, WeightInfo

_MOST_TEXT = 100  # characters of a value in the metadata
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
        *(f"{key}: {_abridged(value)}" for key, value in found.metadata.items()),
        "",
        *_interface("inputs", found.inputs),
        *_interface("outputs", found.outputs),
        "",
        *_cost(found.cost),
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


def _abridged(text: str) -> str:
    """One line of a text that may be a whole dictionary."""
    line = " ".join(text.split())
    return line if len(line) <= _MOST_TEXT else f"{line[:_MOST_TEXT]}... ({len(text)} characters)"


def _cost(cost: Cost) -> list[str]:
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


def _operators(found: Description, what: str = "operator", of: str = "nodes") -> str:
    """Nodes, operations and bytes moved by operator; shares of the whole where they are known."""
    flops: dict[str, int] = {}
    moved: dict[str, int] = {}
    for layer in found.layers:
        key = f"{layer.domain}.{layer.op}" if layer.domain else layer.op
        flops[key] = flops.get(key, 0) + (layer.flops or 0)
        moved[key] = moved.get(key, 0) + (layer.bytes_moved or 0)
    rows = [
        (op, count, _share(flops[op], flops), _share(moved[op], moved))
        for op, count in found.operators.items()
    ]
    return table(rows, (what, of, "FLOP", "moved"), align="lrrr")


def _share(part: int, whole: Mapping[str, int]) -> str:
    total = sum(whole.values())
    return f"{100 * part / total:.1f} %" if part and total else ""


def _layers(layers: Collection[LayerInfo], attributes: bool) -> str:
    rows = []
    for layer in layers:
        name = f"{layer.graph}/{layer.name}" if layer.graph else layer.name
        outputs = ", ".join(map(str, layer.outputs))
        flops = "" if layer.flops is None else quantity(layer.flops)
        moved = "" if layer.bytes_moved is None else size(layer.bytes_moved)
        row = [name, layer.op, ", ".join(layer.inputs), outputs, flops, moved]
        if attributes:
            row.append(", ".join(f"{k}={v}" for k, v in layer.attributes.items()))
        rows.append(row)
    headers = ["node", "operator", "inputs", "outputs", "FLOP", "moved"]
    return table(rows, headers + ["attributes"] * attributes, align="llllrr" + "l" * attributes)


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
        "cost": _cost_facts(found.cost),
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


def _cost_facts(cost: Cost) -> dict[str, Any]:
    return {
        "flops": None if cost.reason else cost.total_flops,
        "bytes_moved": None if cost.reason else cost.total_bytes,
        "peak_activation_bytes": cost.peak,
        "open": cost.open,
        "reason": cost.reason,
    }


def engine(
    path: str,
    show: Collection[str],
    shapes: Mapping[str, Sequence[int]],
    page: str | None,
    verify: bool,
) -> tuple[str, dict[str, Any]]:
    """An engine for people, and as plain JSON; `page` is where it is to be drawn."""
    from pathlib import Path

    from polytool.backends.native.engine_file import verify as check
    from polytool.engine_inspection import inspect_engine

    found = inspect_engine(path, input_shapes=shapes, statistics="stats" in show)
    text, facts = _engine_text(found, show), _engine_facts(found, show)
    if page is not None:
        from polytool.visual import save_visual

        save_visual(found.as_graph(), page)
        text += f"\n\n{page}: open it in a browser"
        facts["visual"] = page
    if verify:
        facts["sound_parts"] = sum(1 for _ in check(Path(path)))
        text += f"\n\n{facts['sound_parts']} parts checked: sound"
    return text, facts


def _engine_text(found: EngineDescription, show: Collection[str]) -> str:
    lines = [
        f"{found.path}: engine, {found.config.get('precision', '')}",
        f"{len(found.layers)} layers of {found.nodes} nodes, {quantity(found.parameters)} "
        f"parameters, {size(found.weight_bytes)} of weights",
        *(f"tactics and kernels for {name}" for name in found.devices),
        *(f"on the host under --device cuda: {n} ({why})" for n, why in found.on_host.items()),
        "",
        *_interface("inputs", found.inputs),
        *_interface("outputs", found.outputs),
        "",
        *_cost(found.cost),
        "",
        _operators(found.as_graph(), "kind", "layers"),
    ]
    if {"layers", "attrs"} & set(show):
        rows = []
        for x in found.layers:
            flops = "" if x.flops is None else quantity(x.flops)
            moved = "" if x.bytes_moved is None else size(x.bytes_moved)
            outputs, origin = ", ".join(map(str, x.outputs)), ", ".join(x.origin)
            row = [x.name, x.kind, x.tactic, outputs, flops, moved, origin]
            attributes = ", ".join(f"{k}={v}" for k, v in x.attributes.items())
            rows.append(row + [attributes] * ("attrs" in show))
        headers = ["layer", "kind", "tactic", "outputs", "FLOP", "moved", "ONNX nodes"]
        more = ["attributes"] * ("attrs" in show)
        lines += ["", table(rows, headers + more, align="llllrrl" + "l" * len(more))]
    if {"weights", "stats"} & set(show):
        lines += ["", _weights(found.weights, "stats" in show)]
    return "\n".join(lines)


def _engine_facts(found: EngineDescription, show: Collection[str]) -> dict[str, Any]:
    facts: dict[str, Any] = {
        "kind": "engine",
        "path": found.path,
        "device": found.device,
        "config": found.config,
        "inputs": [_spec(s) for s in found.inputs],
        "outputs": [_spec(s) for s in found.outputs],
        "nodes": found.nodes,
        "kinds": found.kinds,
        "parameters": found.parameters,
        "weight_bytes": found.weight_bytes,
        "cost": _cost_facts(found.cost),
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
                "inputs": x.inputs,
                "outputs": [_spec(s) for s in x.outputs],
                "flops": x.flops,
                "bytes_moved": x.bytes_moved,
            }
            | ({"attributes": x.attributes} if "attrs" in show else {})
            for x in found.layers
        ]
    if {"weights", "stats"} & set(show):
        facts["weights"] = found.weights
    return facts
