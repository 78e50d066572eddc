"""Options that write an ONNX model in reduced precision; `convert` and `sanitize` share them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click

from polytool.cli import options
from polytool.cli.options import F
from polytool.cli.output import note
from polytool.errors import UsageError

if TYPE_CHECKING:
    from polytool.model import Model
    from polytool.precision_conversion import Reduced
    from polytool.surgeon.sanitizing import Sanitized


@dataclass(frozen=True)
class OnnxPrecision:
    """What the user asked for; `precision` is None where an ONNX model is to stay as it is."""

    precision: str | None
    keep_io_types: bool
    check_ranges: bool | None

    def apply(
        self,
        model: Model,
        *,
        layer_precisions: Mapping[str, str] | None = None,
        feeds: Iterable[Mapping[str, Any]] | None = None,
        simplify: bool = True,
    ) -> Reduced:
        """The model in that precision."""
        from polytool.precision_conversion import convert_precision

        assert self.precision is not None
        return convert_precision(
            model,
            self.precision,
            layer_precisions=layer_precisions,
            keep_io_types=self.keep_io_types,
            feeds=feeds,
            measure=self.check_ranges,
            simplify=simplify,
        )

    def after(
        self, cleaned: Sanitized, layer_precisions: Mapping[str, str] | None
    ) -> tuple[Model, str, dict[str, Any]]:
        """The sanitized model in that precision, what was done to it, and the same as JSON."""
        if self.precision is None:
            if layer_precisions is not None:
                raise UsageError("--layer-precisions has no effect without --fp-to-fp16")
            return cleaned.model, cleaned.summary(), cleaned.to_json()
        made = self.apply(cleaned.model, layer_precisions=layer_precisions, simplify=False)
        for text in made.notes:
            note(text)
        facts = {**cleaned.to_json(), "fp": made.to_json()}
        return made.model, f"{cleaned.summary()}\n{self.precision}:\n{made.summary()}", facts


def onnx_precision(function: F) -> F:
    """--fp-to-fp16 and its kin, passed as one `onnx_precision: OnnxPrecision`."""
    kinds = [
        options.option(
            f"--fp-to-{name}",
            "onnx_precisions",
            flag_value=name,
            multiple=True,
            help=f"Write an ONNX model that computes in {what}, with Casts where types change.",
        )
        for name, what in (("fp16", "float16"), ("bf16", "bfloat16"))
    ]
    return options.bundle(
        function,
        "onnx_precision",
        _read,
        (
            *kinds,
            options.option(
                "--keep-io-types/--no-keep-io-types",
                default=True,
                help="With --fp-to-*: leave the model's inputs and outputs in float32.",
            ),
            options.option(
                "--check-ranges/--no-check-ranges",
                default=None,
                help="With --fp-to-fp16: run the model, and leave in float32 what passes the range "
                "of float16.  [default: on given inputs; on made ones below 200 MB of weights]",
            ),
        ),
    )


def _read(
    onnx_precisions: tuple[str, ...], keep_io_types: bool, check_ranges: bool | None
) -> OnnxPrecision:
    chosen = tuple(dict.fromkeys(onnx_precisions))
    if len(chosen) > 1:
        raise click.UsageError(
            "--fp-to-fp16 and --fp-to-bf16 exclude each other: give one, and single layers another "
            "precision with --layer-precisions"
        )
    if not chosen and (not keep_io_types or check_ranges is not None):
        flag = "--no-keep-io-types" if not keep_io_types else "--check-ranges"
        raise click.UsageError(f"{flag} has no effect without --fp-to-fp16 or --fp-to-bf16")
    return OnnxPrecision(chosen[0] if chosen else None, keep_io_types, check_ranges)
