"""Sessions of onnxruntime: providers by partial name, options, and errors in one sentence."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from polytool.backends.native.protos import sort_nodes
from polytool.backends.onnxrt.source import Source
from polytool.errors import (
    MissingDependencyError,
    ModelError,
    PolytoolError,
    RunnerError,
    UnsupportedError,
    UsageError,
)

Provider = tuple[str, dict[str, str]]

_LEVELS = {
    "disable": "ORT_DISABLE_ALL",
    "basic": "ORT_ENABLE_BASIC",
    "extended": "ORT_ENABLE_EXTENDED",
    "layout": "ORT_ENABLE_LAYOUT",
    "all": "ORT_ENABLE_ALL",
}
_SUFFIX = "executionprovider"


def onnxruntime() -> Any:
    """The package.

    Raises:
        MissingDependencyError: it is not installed.
    """
    try:
        import onnxruntime as package
    except ImportError as err:
        raise MissingDependencyError("onnxruntime", "cpu", "running ONNX Runtime") from err
    return package


@dataclass(frozen=True)
class SessionConfig:
    """How sessions are made.

    Attributes:
        providers: full names with their options, in order of priority.
        level: `disable`, `basic`, `extended`, `layout` or `all`.
        libraries: paths of custom-operator libraries.
        threads: threads within an operator; 0 leaves the number to onnxruntime.
        entries: session configuration entries, by onnxruntime's own keys.
    """

    providers: tuple[Provider, ...]
    level: str = "all"
    libraries: tuple[str, ...] = ()
    threads: int = 0
    entries: Mapping[str, str] = field(default_factory=dict)


def level_name(text: str | None) -> str:
    """`basic` for `basic`, `enable_basic` and `ORT_ENABLE_BASIC`; `all` for None.

    Raises:
        UsageError: there is no such level.
    """
    if text is None:
        return "all"
    plain = text.lower().removeprefix("ort_").removeprefix("enable_")
    plain = "disable" if plain in ("disable_all", "disabled", "none") else plain
    if plain not in _LEVELS:
        raise UsageError(f"there is no optimization level {text!r}: known are {', '.join(_LEVELS)}")
    return plain


def find_providers(
    names: Sequence[str] | None, options: Mapping[str, Mapping[str, Any]] | None
) -> tuple[Provider, ...]:
    """Full provider names and their options.

    Args:
        names: whole or partial names in any case; None is the CPU.
        options: partial name to options.

    Raises:
        UsageError: a name fits no provider of this onnxruntime, or several; or options are given
            for a provider that is not used.
    """
    have = list(onnxruntime().get_available_providers())
    full = list(dict.fromkeys(_find(name, have) for name in names or ["cpu"]))
    table: dict[str, dict[str, str]] = {}
    for name, values in (options or {}).items():
        provider = _find(name, have)
        if provider not in full:
            raise UsageError(f"options are given for {provider}, which is not among the providers")
        table.setdefault(provider, {}).update({str(k): str(v) for k, v in values.items()})
    return tuple((provider, table.get(provider, {})) for provider in full)


def _find(name: str, have: Sequence[str]) -> str:
    wanted = name.lower().removesuffix(_SUFFIX)
    stems = {provider.lower().removesuffix(_SUFFIX): provider for provider in have}
    if wanted in stems:
        return stems[wanted]
    fits = [provider for stem, provider in stems.items() if wanted and wanted in stem]
    if len(fits) == 1:
        return fits[0]
    if fits:
        raise UsageError(f"provider {name!r} could be any of {', '.join(fits)}: name one")
    remedy = ""
    if wanted in ("cuda", "tensorrt", "gpu"):
        remedy = "; the GPU build brings it: pip install 'polytool[cuda]' in place of [cpu]"
    raise UsageError(
        f"this onnxruntime has no execution provider {name!r}: it has {', '.join(have)}{remedy}"
    )


def open_session(
    source: Source,
    config: SessionConfig,
    *,
    who: str = "the model",
    level: str | None = None,
    arena: bool = True,
    save_optimized: str | None = None,
    profile: str | None = None,
    entries: Mapping[str, str] | None = None,
) -> Any:
    """Make an InferenceSession.

    Args:
        source: the model.
        config: how.
        who: what messages call the model.
        level: in place of the config's.
        arena: whether freed CPU memory is kept for the next run.
        save_optimized: where to write the model as onnxruntime rewrote it.
        profile: start of the path where onnxruntime writes how long its nodes take.
        entries: further configuration entries, by onnxruntime's own keys.

    Raises:
        UnsupportedError: onnxruntime lacks operators; all of them are named.
        ModelError: onnxruntime finds the model invalid.
        RunnerError: a provider or a library does not load.
    """
    ort = onnxruntime()
    options = ort.SessionOptions()
    options.log_severity_level = 4  # what goes wrong is raised
    options.graph_optimization_level = getattr(
        ort.GraphOptimizationLevel, _LEVELS[level or config.level]
    )
    options.intra_op_num_threads = config.threads
    options.enable_cpu_mem_arena = arena
    if save_optimized is not None:
        options.optimized_model_filepath = save_optimized
    if profile is not None:
        options.enable_profiling = True
        options.profile_file_prefix = profile
    # Threads that spin after a run slow down whatever else runs in this process.
    defaults = {
        "session.intra_op.allow_spinning": "0",
        "session.inter_op.allow_spinning": "0",
    }
    for key, value in {**defaults, **source.entries, **config.entries, **(entries or {})}.items():
        options.add_session_config_entry(key, value)
    for library in config.libraries:
        _register(options, library)
    try:
        session = ort.InferenceSession(
            source.proto.SerializeToString(),
            options,
            providers=[name for name, _ in config.providers],
            provider_options=[dict(values) for _, values in config.providers],
        )
    except Exception as err:
        raise explain(err, source, who) from err
    _check_providers(session, config)
    return session


def _register(options: Any, library: str) -> None:
    try:
        options.register_custom_ops_library(library)
    except Exception as err:
        raise RunnerError(
            f"the custom-operator library {library!r} cannot be loaded: {clean(err)}"
        ) from err


def _check_providers(session: Any, config: SessionConfig) -> None:
    """onnxruntime falls back to the CPU without an error; a run elsewhere than asked is one."""
    missing = [name for name, _ in config.providers if name not in session.get_providers()]
    if missing:
        raise RunnerError(
            f"{', '.join(missing)} did not start, and onnxruntime would run on "
            f"{', '.join(session.get_providers())} instead: check the driver and libraries it "
            "needs, or leave the provider out"
        )


# What to take out of onnxruntime's messages, and what to put in its place.
_CLEANING = [
    (r"^\[ONNXRuntimeError\] : \d+ : \w+ : ", ""),
    (r"Exception during \w+: |Load model from .*? failed:", ""),
    # A C++ location: /path/file.cc:12 type Class::function(arguments) [with ...]
    (r"/\S+\.(?:cc|h|cu|cuh):\d+ [^()]*\([^()]*\)(?: \[[^\]]*\])?(?: const)? ", ""),
    (r"\b\w+\.(?:cc|h|cu|cuh):\d+ \w+ ", ""),
    (r"\bonnxruntime::[\w:]+\([^()]*\) ", ""),
    (r"This is an invalid model\. |^Fatal error: |^Error: ", ""),
    (r'In Node, \("(\w[^"]*)", (\w+), .*?\) : .*?, Error ', r"\2 node '\1': "),
    (r'In Node, \("", (\w+), .*?\) : .*? -> \("([^"]*)".*?, Error ', r"\1 node that makes '\2': "),
    (r"Non-zero status code returned while running (\w+) node\. Name:'(.+?)'", r"\1 node '\2':"),
    (r"Non-zero status code returned while running (\w+) node\. Name:''", r"a \1 node:"),
    (r" Status Message: ", " "),
    (
        r"ONNX Runtime only \*guarantees\*.*? Opset (\d+) is .*? for domain (\S+) is till opset",
        r"it has opset \1 of \2, newer than any that this onnxruntime knows, which ends at",
    ),
]


def clean(err: BaseException) -> str:
    """onnxruntime's message without codes, C++ locations and line breaks."""
    text = " ".join(str(err).split())
    for pattern, replacement in _CLEANING:
        text = re.sub(pattern, replacement, text)
    return text.strip(" .:") or type(err).__name__


def explain(err: Exception, source: Source, who: str) -> PolytoolError:
    """The error to raise in place of what a session said while it was made."""
    if isinstance(err, PolytoolError):
        return err
    kind, text = type(err).__name__, clean(err)
    if "not acyclic" in text:
        sort_nodes(list(source.proto.graph.node), who)  # names the culprit
    lacking = _lacking(source, kernels=kind == "NotImplemented")
    if lacking:
        return UnsupportedError(
            f"onnxruntime {onnxruntime().__version__} cannot run {who}, "
            f"because it lacks {'; '.join(lacking)}"
        )
    if kind in ("InvalidGraph", "InvalidProtobuf", "Fail", "NotImplemented", "InvalidArgument"):
        return ModelError(f"onnxruntime does not load {who}: {text}")
    return RunnerError(f"onnxruntime failed to load {who}: {text}")


def _lacking(source: Source, *, kernels: bool) -> list[str]:
    from polytool.backends.onnxrt.unsupported import lacking

    return lacking(source.proto, kernels=kernels)
