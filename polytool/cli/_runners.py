"""Options that choose runners and say how engines are built; shared by the commands that run."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import click

from polytool.cli import options
from polytool.errors import UsageError

F = TypeVar("F", bound=Callable[..., Any])
Shapes = dict[str, tuple[int, ...]]


@dataclass(frozen=True)
class Builder:
    """How the native engine is built, as the user said it."""

    precision: str = "fp32"
    device: str = "auto"
    layer_precisions: Mapping[str, str] | None = None
    profiles: tuple[dict[str, tuple[Any, Any, Any]], ...] = ()

    def to_options(self) -> dict[str, Any]:
        """Keyword arguments of `NativeRunner` and `BuilderConfig.of`."""
        return {
            "precision": self.precision,
            "device": self.device,
            "layer_precisions": self.layer_precisions,
            "profiles": list(self.profiles) or None,
        }


@dataclass(frozen=True)
class Onnxrt:
    """How ONNX Runtime runs, as the user said it."""

    providers: tuple[str, ...] = ()
    provider_options: dict[str, dict[str, str]] = field(default_factory=dict)
    graph_optimization_level: str | None = None

    def to_options(self) -> dict[str, Any]:
        """Keyword arguments of `OnnxrtRunner`."""
        return {
            "providers": list(self.providers) or None,
            "provider_options": self.provider_options,
            "graph_optimization_level": self.graph_optimization_level,
        }


def chosen(function: F) -> F:
    """--native, --onnxrt, --oracle and --runner, passed as `runners` in the order given."""
    decorators = (
        options.option(
            "--native",
            "runners",
            flag_value="native",
            multiple=True,
            help="Run on polytool's own engine.",
        ),
        options.option(
            "--onnxrt", "runners", flag_value="onnxrt", multiple=True, help="Run on ONNX Runtime."
        ),
        options.option(
            "--oracle",
            "runners",
            flag_value="oracle",
            multiple=True,
            help="Run unfused in float64; the others are compared with it.",
        ),
        options.option(
            "--runner",
            "runners",
            several=True,
            metavar="NAME|SCRIPT",
            help="Run on an installed backend, or on what a function in a script makes of MODEL, "
            "as my_script.py:make_runner.",
        ),
    )
    for decorate in reversed(decorators):
        function = decorate(function)
    return function


def layer_precisions(function: F) -> F:
    """--layer-precisions, passed as a mapping from pattern to precision, or None."""
    return options.option(
        "--layer-precisions",
        several=True,
        metavar="JSON|PATTERN:PRECISION",
        callback=_read_layer_precisions,
        help="Precisions by node, as op:Softmax:fp32, /encoder/*:fp32, or a file that holds "
        '{"layer_precisions": {"op:Softmax": "fp32"}}; the last pattern that fits wins.',
    )(function)


def _read_layer_precisions(
    ctx: click.Context, param: click.Parameter, texts: Sequence[str]
) -> dict[str, str] | None:
    """Files and single patterns together, in the order given."""
    if not texts:
        return None
    from polytool.backends.native.config import read_layer_precisions
    from polytool.backends.native.numerics import PRECISIONS

    table: dict[str, str] = {}
    for text in texts:
        pattern, _, precision = text.rpartition(":")
        if pattern and precision in PRECISIONS:
            table[pattern] = precision
        elif text.endswith(".json") or not pattern or os.path.exists(text):
            table.update(read_layer_precisions(text))
        else:
            raise click.BadParameter(
                f"{text!r} is no file, and {precision!r} no precision: choose one of "
                f"{', '.join(PRECISIONS)}",
                ctx,
                param,
            )
    return table


def builder(function: F) -> F:
    """Precision, device and profiles of the native engine, passed as one `builder: Builder`."""
    precisions = [
        options.option(
            f"--{name}", "precisions", flag_value=name, multiple=True, help=f"Compute in {what}."
        )
        for name, what in (
            ("fp16", "float16 where the model says float32; native engine only"),
            ("bf16", "bfloat16 where the model says float32; native engine only"),
            ("tf32", "TF32 where the model says float32; native engine only"),
        )
    ]
    shapes = [
        options.option(
            f"--native-{end}-shapes",
            f"--{end}Shapes",
            f"{end}_shapes",
            several=True,
            metavar="NAME:SHAPE",
            help=f"{what} shapes of an optimization profile; an input named again starts the "
            "next profile.",
        )
        for end, what in (("min", "Smallest"), ("opt", "Usual"), ("max", "Largest"))
    ]
    return options.bundle(
        function,
        "builder",
        _read_builder,
        (
            *precisions,
            options.option(
                "--device",
                type=click.Choice(["auto", "cpu", "cuda"]),
                default="auto",
                help="Where the native engine runs; auto takes a GPU where there is one.",
            ),
            layer_precisions,
            *shapes,
        ),
    )


optimization_profile: options.Decorator = options.option(
    "--optimization-profile",
    type=click.IntRange(0),
    metavar="N",
    help="Profile of the native engine that shapes must fit and whose usual shapes are run, from 0 "
    "on.  [any; the first]",
)


@dataclass(frozen=True)
class Files:
    """Engines and results that are loaded or saved, and which outputs, as the user said it."""

    load_engine: str | None
    save_engine: str | None
    onnx_outputs: tuple[str, ...]
    onnx_exclude_outputs: tuple[str, ...]
    onnx_outputs_by_type: tuple[str, ...]
    load_outputs: tuple[str, ...]
    save_outputs: str | None
    warm_up: int


def files(function: F) -> F:
    """Engines, chosen outputs and saved results, passed as one `files: Files`."""
    return options.bundle(
        function,
        "files",
        Files,
        (
            options.option(
                "--load-engine",
                type=click.Path(),
                metavar="PATH",
                help="Let the native runner load this engine instead of building one.",
            ),
            options.option(
                "--save-engine",
                type=click.Path(),
                metavar="PATH",
                help="Save the engine of the native runner.",
            ),
            options.option(
                "--onnx-outputs",
                several=True,
                metavar="NAME",
                help="Tensors to show in place of the outputs: names, patterns, or mark all.",
            ),
            options.option(
                "--onnx-exclude-outputs",
                several=True,
                metavar="NAME",
                help="Tensors not to show: names or patterns.",
            ),
            options.option(
                "--onnx-outputs-by-type",
                several=True,
                metavar="OP",
                help="Show what nodes of these types make, as Conv.",
            ),
            options.option(
                "--load-outputs",
                "--load-results",
                several=True,
                metavar="PATH",
                help="Compare with saved outputs too: what --save-outputs or Polygraphy wrote.",
            ),
            options.option(
                "--save-outputs",
                "--save-results",
                type=click.Path(),
                metavar="PATH",
                help="Save the outputs: .json as Polygraphy reads them; without an extension a "
                "directory with a file an iteration; else one file.",
            ),
            options.option(
                "--warm-up",
                type=click.IntRange(0),
                default=0,
                help="Runs before the first one that counts.",
            ),
        ),
    )


def onnxrt(function: F) -> F:
    """Providers and optimization level of ONNX Runtime, passed as one `onnxrt: Onnxrt`."""
    return options.bundle(
        function,
        "onnxrt",
        _read_onnxrt,
        (
            options.option(
                "--providers",
                "--execution-providers",
                several=True,
                metavar="NAME",
                help="Execution providers of ONNX Runtime in order of priority, as cuda or cpu.  "
                "[cpu]",
            ),
            options.option(
                "--provider-options",
                several=True,
                metavar="NAME:KEY=VALUE",
                help="Options of a provider, as cuda:use_tf32=0.",
            ),
            options.option(
                "--graph-optimization-level",
                metavar="LEVEL",
                help="What ONNX Runtime may rewrite: disable, basic, extended, layout or all.  "
                "[all]",
            ),
        ),
    )


def _read_builder(
    precisions: Sequence[str],
    device: str,
    layer_precisions: Mapping[str, str] | None,
    min_shapes: Sequence[str],
    opt_shapes: Sequence[str],
    max_shapes: Sequence[str],
) -> Builder:
    if len(set(precisions)) > 1:
        flags = " and ".join(f"--{p}" for p in dict.fromkeys(precisions))
        raise click.UsageError(
            f"{flags} exclude each other: give one, and single layers another precision with "
            "--layer-precisions"
        )
    return Builder(
        precision=precisions[0] if precisions else "fp32",
        device=device,
        layer_precisions=layer_precisions,
        profiles=tuple(_profiles(min_shapes, opt_shapes, max_shapes)),
    )


def _profiles(*texts: Sequence[str]) -> list[dict[str, tuple[Any, Any, Any]]]:
    low, opt, high = (_groups(t) for t in texts)
    count = max(map(len, (low, opt, high)))
    for end, groups in (("min", low), ("max", high)):
        if len(groups) != count:
            raise click.UsageError(
                f"a profile needs --native-min-shapes and --native-max-shapes: the {end} shapes "
                f"of {'a profile' if count == 1 else 'some profiles'} are missing"
            )
    profiles = []
    for index in range(count):
        usual = opt[index] if index < len(opt) else {}
        names = dict.fromkeys([*low[index], *usual, *high[index]])
        missing = [n for n in names if n not in low[index] or n not in high[index]]
        if missing:
            raise click.UsageError(
                f"the profile of input {missing[0]!r} lacks its smallest or largest shape: give "
                "both --native-min-shapes and --native-max-shapes"
            )
        profiles.append(
            {n: (low[index][n], usual.get(n, high[index][n]), high[index][n]) for n in names}
        )
    return profiles


def _groups(texts: Sequence[str]) -> list[Shapes]:
    """Shapes by input, split where an input is named again."""
    from polytool.feed_shapes import parse_shapes

    groups: list[Shapes] = []
    for text in texts:
        try:
            shapes = parse_shapes([text])
        except UsageError as err:
            raise click.UsageError(str(err)) from err
        for name, sizes in shapes.items():
            if not groups or name in groups[-1]:
                groups.append({})
            groups[-1][name] = sizes
    return groups


def _read_onnxrt(
    providers: Sequence[str], provider_options: Sequence[str], graph_optimization_level: str | None
) -> Onnxrt:
    table: dict[str, dict[str, str]] = {}
    for text in provider_options:
        name, colon, setting = text.partition(":")
        key, equals, value = setting.partition("=")
        if not (colon and equals and name and key):
            raise click.UsageError(
                f"--provider-options {text!r} has another form than cuda:use_tf32=0"
            )
        table.setdefault(name, {})[key] = value
    return Onnxrt(tuple(providers), table, graph_optimization_level)
