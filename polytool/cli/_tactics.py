"""Options that say how tactics are chosen; shared by the commands that build engines."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import click

from polytool.cli import options

F = TypeVar("F", bound=Callable[..., Any])


@dataclass(frozen=True)
class Tactics:
    """How the native engine chooses tactics, as the user said it.

    Attributes:
        save_timing_cache, save_tactics: where `polytool.tactic_files.save_decisions` writes.
    """

    builder_optimization_level: int = 3
    tactic_sources: tuple[str, ...] | None = None
    workspace_limit: int | None = None
    allow_nondeterministic: bool = False
    cuda_graph: bool = True
    load_timing_cache: str | None = None
    save_timing_cache: str | None = None
    load_tactics: str | None = None
    save_tactics: str | None = None

    def to_options(self) -> dict[str, Any]:
        """Keyword arguments of `NativeRunner` and `BuilderConfig.of`."""
        return {
            "builder_optimization_level": self.builder_optimization_level,
            "tactic_sources": self.tactic_sources,
            "workspace_limit": self.workspace_limit,
            "allow_nondeterministic": self.allow_nondeterministic,
            "cuda_graph": self.cuda_graph,
            "timing_cache": self.load_timing_cache,
            "tactics": self.load_tactics,
        }

    @property
    def decides(self) -> bool:
        """Whether anything was said that a loaded engine has decided already."""
        return self != Tactics(
            cuda_graph=self.cuda_graph,
            save_timing_cache=self.save_timing_cache,
            save_tactics=self.save_tactics,
        )


_DECIDING = (
    options.option(
        "--builder-optimization-level",
        type=click.IntRange(0, 5),
        default=3,
        help="How many tactics of each layer are timed on a GPU: 0 none, 3 and above all; "
        "on the CPU 0 takes generic tactics.",
    ),
    options.option(
        "--tactic-sources",
        several=True,
        metavar="[+-]NAME",
        help="Where tactics may come from: nvrtc, cublas_lt, cudnn; -NAME leaves one out.  [all]",
    ),
    options.option(
        "--pool-limit",
        several=True,
        metavar="NAME:SIZE",
        help="The most memory that a tactic may use besides its tensors, as workspace:1G.",
    ),
    options.option(
        "--allow-nondeterministic",
        is_flag=True,
        help="Allow tactics that give slightly different numbers each time.",
    ),
    options.option(
        "--use-cuda-graph/--no-cuda-graph",
        "--useCudaGraph",
        "cuda_graph",
        default=True,
        show_default=False,
        help="Launch known shapes on a GPU as one CUDA graph.  [on]",
    ),
    options.option(
        "--load-timing-cache", type=click.Path(), metavar="FILE", help="Times of earlier builds."
    ),
    options.option(
        "--load-tactics",
        "--load-tactic-replay",
        type=click.Path(),
        metavar="FILE",
        help="Decide as an earlier build did.",
    ),
)
_SAVING = (
    options.option(
        "--save-timing-cache",
        type=click.Path(),
        metavar="FILE",
        help="Keep the times of this build; those in FILE stay.",
    ),
    options.option(
        "--save-tactics",
        "--save-tactic-replay",
        type=click.Path(),
        metavar="FILE",
        help="Save the chosen tactics, for --load-tactics and inspect tactics.",
    ),
)


def deciding(function: F) -> F:
    """The options without those that save, passed as one `tactics: Tactics`."""
    return options.bundle(function, "tactics", _read, _DECIDING)


def tactics(function: F) -> F:
    """The options, passed as one `tactics: Tactics`."""
    return options.bundle(function, "tactics", _read, (*_DECIDING, *_SAVING))


def loading(function: F) -> F:
    """--no-kernels and --no-retune, passed as one `loading`: keyword arguments of Engine.load."""
    return options.bundle(
        function,
        "loading",
        dict,
        (
            options.option(
                "--no-kernels",
                "kernels",
                flag_value=False,
                default=True,
                help="Compile the kernels of a loaded engine here, instead of trusting its own.",
            ),
            options.option(
                "--no-retune",
                "retune",
                flag_value=False,
                default=True,
                help="Refuse an engine that was built for another GPU, instead of choosing tactics "
                "again.",
            ),
        ),
    )


def _read(tactic_sources: Sequence[str], pool_limit: Sequence[str], **given: Any) -> Tactics:
    return Tactics(
        tactic_sources=_sources(tactic_sources), workspace_limit=_limit(pool_limit), **given
    )


def _sources(texts: Sequence[str]) -> tuple[str, ...] | None:
    """`cudnn nvrtc` is a choice; `-cudnn` and `+cudnn` change the usual one."""
    from polytool.backends.native.config import TACTIC_SOURCES

    names = [part for text in texts for part in text.lower().split(",") if part]
    if not names:
        return None
    signed = [n for n in names if n[0] in "+-"]
    if signed and len(signed) < len(names):
        raise click.UsageError(
            "--tactic-sources takes names, or names with + or -, not both at once"
        )
    for name in names:
        if name.lstrip("+-") not in TACTIC_SOURCES:
            raise click.UsageError(
                f"--tactic-sources: {name!r} is none of {', '.join(TACTIC_SOURCES)}"
            )
    if not signed:
        return tuple(s for s in TACTIC_SOURCES if s in names)
    without = {n[1:] for n in names if n[0] == "-"}
    return tuple(s for s in TACTIC_SOURCES if s not in without)


def _limit(texts: Sequence[str]) -> int | None:
    limit = None
    for text in texts:
        name, _, size = text.rpartition(":")
        try:
            limit = options.parse_size(size)
        except ValueError:
            raise click.UsageError(
                f"--pool-limit {text!r} has another form than workspace:1G"
            ) from None
        if name.lower() != "workspace":
            raise click.UsageError(f"--pool-limit: there is a pool workspace, not {name!r}")
    return limit
