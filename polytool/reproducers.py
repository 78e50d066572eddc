"""One layer alone: a small model of it, with the values that the engine had there."""

from __future__ import annotations

import dataclasses
import os
import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from polytool.backends.base import Feeds, Observable, Tap
from polytool.errors import UsageError

if TYPE_CHECKING:
    from polytool.comparators.findings import Finding, Location
    from polytool.model import Model, Source
    from polytool.tensors import DType, Shape

_REDUCED = ("fp16", "bf16", "tf32")


def with_reproducer(
    found: Location,
    model: Source,
    runner: Observable,
    samples: Sequence[Feeds],
    folder: str | os.PathLike[str],
) -> Location:
    """Save the first broken layer, or else the most suspicious one, and say where.

    Args:
        found: what `locate` found of `runner` on `samples`.
        model: the original model.
        folder: where `<layer>.onnx` and `<layer>.inputs.npz` go; made if need be.

    Returns:
        `found` with the path in that layer's `reproducer`, or with the reason in `not_checked` why
        it could not be cut out; as it is when every layer is as exact as its type allows.
    """
    culprit = found.first_broken or (found.ranking[0] if found.ranking else None)
    if culprit is None or culprit.verdict == "expected":
        return found
    try:
        path = save_layer(found, culprit, model, runner, samples, Path(folder))
    except UsageError as err:
        reason = f"{culprit.layer}: cannot be cut out of the model: {err}"
        return dataclasses.replace(found, not_checked=(*found.not_checked, reason))
    rows = tuple(
        dataclasses.replace(f, reproducer=str(path)) if f is culprit else f for f in found.findings
    )
    return dataclasses.replace(found, findings=rows)


def save_layer(
    found: Location,
    culprit: Finding,
    model: Source,
    runner: Observable,
    samples: Sequence[Feeds],
    folder: Path,
) -> Path:
    """Cut a layer out of the model and write it with its inputs; the path of the model.

    Of a layer inside an If, Loop or Scan the whole of that is cut out.

    Raises:
        UsageError: the layer's tensors are none of the model's own.
    """
    from polytool.feeds import input_specs, save_feeds
    from polytool.model import load
    from polytool.surgeon.extraction import Port, extract

    source = load(model)
    sample, inside, _ = culprit.iteration.partition(".")
    whole = _around(found, culprit) if inside else culprit
    types = _types(source)
    ports = [Port(name, dtype=types.get(name)) for name in whole.inputs]
    cut = extract(source, ports, [Port(name) for name in whole.tensors])
    shapes = {spec.name: spec.shape for spec in input_specs(cut)}
    values = _values(runner, samples[int(sample)], whole.inputs, shapes)
    feeds = {name: _as_declared(value, types.get(name)) for name, value in values.items()}
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / (re.sub(r"[^\w.-]+", "_", whole.layer).strip("_.")[:80] + ".onnx")
    cut.save(path)
    save_feeds([feeds], inputs_of(path))
    return path


def inputs_of(path: str | os.PathLike[str]) -> Path:
    """Where the inputs of a saved layer lie."""
    return Path(path).with_suffix(".inputs.npz")


def command(finding: Finding) -> str:
    """What judges the saved layer alone."""
    path = str(finding.reproducer)
    words = ["polytool", "debug", "locate", path, "--load-inputs", str(inputs_of(path))]
    if finding.precision in _REDUCED:
        words.append(f"--{finding.precision}")
    return shlex.join(words)


def _around(found: Location, culprit: Finding) -> Finding:
    """The layer of the main graph whose bodies hold `culprit`: the first one after it."""
    later = (f for f in found.findings if f.position > culprit.position)
    around = next((f for f in later if "." not in f.iteration), None)
    if around is None:
        raise UsageError("no layer of the main graph around it was seen")
    return around


def _types(model: Model) -> dict[str, DType]:
    """The element type of every tensor of the main graph, as the model has it."""
    from polytool.backends.native.parser import parse

    network = parse(model)
    made = [t for layer in network.layers for t in layer.outputs]
    return {t.name: t.dtype for t in (*network.inputs, *made) if t.dtype is not None}


def _values(
    runner: Observable,
    sample: Feeds,
    wanted: Sequence[str],
    shapes: Mapping[str, Shape | None],
) -> Mapping[str, Any]:
    """What the runner has in these tensors; the one row of them that it has stands for all."""
    from polytool.comparators.rows import repeated

    values = {name: value for name, value in sample.items() if name in wanted}

    def keep(tap: Tap, value: Any) -> None:
        if tap.tensor in wanted:
            value = repeated(value, tap.rows, shapes.get(tap.tensor))
            values[tap.tensor] = np.array(value) if isinstance(value, np.ndarray) else value

    with runner:
        runner.infer(sample, observe=keep)
    return {name: values[name] for name in wanted}


def _as_declared(value: Any, dtype: DType | None) -> Any:
    """Values on the grid of a reduced type, in the type that the model declares: exact."""
    if not isinstance(value, np.ndarray) or dtype is None or not dtype.is_float:
        return value
    return value.astype(dtype.numpy)
