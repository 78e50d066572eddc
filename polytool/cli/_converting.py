"""What `convert` does between its options and its output."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import polytool.conversion
from polytool.cli import _runners, _surgeon, _tactics, options
from polytool.cli._onnx_precision import OnnxPrecision
from polytool.errors import UsageError


@dataclass(frozen=True)
class Saving:
    """Where a result goes, and its weights if it is an ONNX model."""

    path: str
    external_data: str | None
    threshold: int


@dataclass(frozen=True)
class Made:
    """What to say of a result."""

    text: str
    facts: dict[str, Any]
    notes: tuple[str, ...]


def to_engine(
    model: str,
    saving: Saving,
    builder: _runners.Builder,
    tactics: _tactics.Tactics,
    feeds: options.FeedOptions,
    external_data_dir: str | None,
) -> Made:
    """Build an engine and write it."""
    if saving.path.endswith(".onnx"):
        raise UsageError(
            f"{saving.path!r} would be an engine: call it model.engine, or write an ONNX model "
            "with --fp-to-fp16 or --fp-to-bf16"
        )
    if feeds.load_inputs or feeds.data_loader_script or feeds.input_shapes or feeds.val_range:
        raise UsageError(
            "inputs have no effect on an engine: they are for --fp-to-fp16; ranges of shapes are "
            "set with --native-min-shapes and --native-max-shapes"
        )
    if saving.external_data is not None:
        raise UsageError("--save-external-data is for ONNX models: an engine is one file")
    made = polytool.conversion.convert(
        model,
        saving.path,
        external_data_dir=external_data_dir,
        save_timing_cache=tactics.save_timing_cache,
        save_tactics=tactics.save_tactics,
        **builder.to_options(),
        **tactics.to_options(),
    )
    return Made(str(made), made.to_json(), made.notes)


def to_onnx(
    model: str,
    saving: Saving,
    builder: _runners.Builder,
    tactics: _tactics.Tactics,
    wanted: OnnxPrecision,
    feeds: options.FeedOptions,
    external_data_dir: str | None,
) -> Made:
    """Write the model in reduced precision."""
    from polytool.model import load

    if tactics != _tactics.Tactics():
        raise UsageError(
            f"options about tactics build an engine, --fp-to-{wanted.precision} "
            "writes an ONNX model"
        )
    if builder.precision != "fp32" or builder.profiles:
        flag = f"--{builder.precision}" if builder.precision != "fp32" else "--native-min-shapes"
        raise UsageError(f"{flag} builds an engine, --fp-to-{wanted.precision} an ONNX model")
    polytool.conversion.check_writable(saving.path)
    source = load(model, external_data_dir=external_data_dir)
    made = wanted.apply(
        source,
        layer_precisions=builder.layer_precisions,
        feeds=_surgeon.given_feeds(feeds, source),
    )
    _surgeon.save(made.model, saving.path, saving.external_data, saving.threshold)
    text = f"{saving.path}: {wanted.precision}\n{made.summary()}"
    return Made(text, {"output": saving.path, **made.to_json()}, made.notes)
