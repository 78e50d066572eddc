"""What `debug precision` does between its options and its output."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from polytool.checks import CommandCheck, sort_artifacts
from polytool.cli import _runners, options
from polytool.errors import UsageError

if TYPE_CHECKING:
    from polytool.backends.native.engine import Engine
    from polytool.precision_search import Kept, Passes

_LONG = {"float32": "fp32", "float16": "fp16"}


def run_precision(
    check: CommandCheck | None,
    model: str,
    builder: _runners.Builder,
    feeds: options.FeedOptions,
    targets: Sequence[str],
    mode: str,
    direction: str,
    precision: str,
    iter_artifact: str,
    artifacts: Sequence[str],
    art_dir: str,
    output: str | None,
) -> Kept:
    """Search, and write the layers."""
    from polytool.conversion import check_writable
    from polytool.files import replacing, write_all
    from polytool.model import load
    from polytool.precision_search import search_precision

    if output is not None:
        check_writable(output)
    if (check is None) == (not targets):
        raise UsageError("give --check COMMAND or --target, which say when an engine passes")
    if builder.layer_precisions is not None:
        raise UsageError("--layer-precisions is what this command finds: leave it out")
    source = load(model)
    if check is not None:
        passes = _by_command(check, iter_artifact, artifacts, art_dir)
    else:
        passes = _by_target(source, feeds, targets)
    made = builder.to_options()
    del made["layer_precisions"]
    made["precision"] = builder.precision if builder.precision != "fp32" else "fp16"
    found = search_precision(
        source,
        passes,
        higher=_LONG.get(precision, precision),
        mode=mode,
        reverse=direction == "reverse",
        progress=lambda text: click.echo(text, err=True),
        **made,
    )
    if output is not None and found.layers is not None:
        text = json.dumps({"layer_precisions": found.layer_precisions}, indent=2)
        with replacing(output) as file:
            write_all(file, f"{text}\n".encode())
    return found


def _by_command(
    check: CommandCheck, iter_artifact: str, artifacts: Sequence[str], folder: str
) -> Passes:
    runs = 0

    def passes(engine: Engine) -> bool:
        nonlocal runs
        engine.save(iter_artifact)
        good = not check.fails()
        sort_artifacts(artifacts, folder, good=good, iteration=runs)
        runs += 1
        return good

    return passes


def _by_target(model: Any, feeds: options.FeedOptions, targets: Sequence[str]) -> Passes:
    from polytool.backends.native.oracle import NativeOracle
    from polytool.backends.native.runner import NativeRunner
    from polytool.backends.registry import load_script
    from polytool.comparators.targets import all_of, parse_target

    met = all_of([parse_target(t, load_script) for t in targets])
    data = feeds.make(model)
    samples = list(data)
    oracle = NativeOracle(model)
    names = [o.name for o in model.proto.graph.output]
    exact = [oracle.evaluate(sample, names) for sample in samples]

    def passes(engine: Engine) -> bool:
        with NativeRunner(engine) as runner:
            return all(met(runner.infer(s), e) for s, e in zip(samples, exact, strict=True))

    return passes


def show(found: Kept, precision: str) -> str:
    """The layers in words."""
    if found.layers is None:
        return f"not even all layers in {precision} pass, after {found.runs} engines"
    if not found.layers:
        return "the engine passes as it is: no layer needs higher precision"
    minimal = ", none of which can be left out" if found.minimal else ""
    lines = [
        f"{len(found.layers)} layer(s) in {precision} pass{minimal}, after {found.runs} engines:",
        *(f"  {layer}" for layer in found.layers[:20]),
    ]
    if len(found.layers) > 20:
        lines.append(f"  ... and {len(found.layers) - 20} more (--json)")
    return "\n".join(lines)
