"""Where does my engine lose precision, and what do I do about it: `debug locate` for scripts.

location = locate("model.onnx", feeds, precision="fp16", targets=["snr>=40"])
print(location.first_broken, location.fix)
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from polytool.backends.base import Feeds, LayerOracle
from polytool.errors import UsageError

if TYPE_CHECKING:
    from polytool.backends.native.runner import NativeRunner
    from polytool.comparators.findings import Finding, Location
    from polytool.model import Model, Source

Progress = Callable[[str], None]
_EXTRA_FLOPS = 1e9
_MOST_EXTRA = 1000
_MEASURED = 48  # layers whose contribution is measured before a fix is searched


def locate(
    model: Source,
    feeds: Iterable[Feeds],
    *,
    against: str | os.PathLike[str] = "oracle",
    engine: Any = None,
    targets: Sequence[str] = (),
    fix_precision: str = "fp32",
    reproducer: str | os.PathLike[str] | None = None,
    draw: bool = False,
    progress: Progress | None = None,
    **options: Any,
) -> Location:
    """Find the layers of the native engine that lose precision.

    Args:
        model: the original model.
        feeds: one dict a sample.
        against: `oracle` (the model in float64), `onnxrt`, the path of another model whose nodes
            judge, or the path of saved results that the outputs are compared with.
        engine: a built engine, or its path, in place of one that is built from `options`.
        targets: what the outputs must reach (see `comparators.targets`); the smallest set of
            layers to keep in `fix_precision` is then searched.
        fix_precision: the precision of the layers that are kept.
        reproducer: a folder; the first broken layer is saved there as a small model with its
            inputs.
        draw: keep pictures of the errors of the outputs, for a report.
        progress: called with a line of text now and then.
        options: those of `NativeRunner`: precision, device, layer_precisions, profiles.

    Raises:
        UsageError: no samples, or a target of unknown form.
    """
    from polytool.backends.native.runner import NativeRunner
    from polytool.comparators import locate as locating
    from polytool.model import load

    source, samples = load(model), [dict(f) for f in feeds]
    oracle, reference = judge_of(source, against, samples)
    runner = NativeRunner(engine if engine is not None else source, **options)
    found = locating.locate(
        runner,
        oracle,
        samples,
        reference=reference,
        contributions=_MEASURED if targets else 3,
        everywhere=bool(targets),
        second=lambda: second_judge(source, against),
        draw=draw,
        progress=progress,
    )
    if reproducer is not None:
        from polytool.reproducers import with_reproducer

        found = with_reproducer(found, source, runner, samples, reproducer)
    if not targets:
        return found
    if engine is not None:
        raise UsageError("a fix is searched by building: give the model's options, not an engine")
    fix = _search(source, samples, oracle, found, runner, targets, fix_precision, options, progress)
    return dataclasses.replace(found, fix=fix)


def judge_of(
    model: Model, against: str | os.PathLike[str], samples: Sequence[Feeds] = ()
) -> tuple[LayerOracle, Mapping[str, Any] | None]:
    """The layer oracle that `--against` names, and the outputs to compare with, if given.

    Tensors of another model correspond by name, by structure, and by values on the first sample.
    """
    from polytool.backends.native.oracle import NativeOracle

    if against == "oracle":
        return NativeOracle(model), None
    if against == "onnxrt":
        from polytool.backends.onnxrt.oracle import OnnxrtOracle

        return OnnxrtOracle(model), None
    if Path(against).suffix == ".onnx":
        from polytool.backends.native.correspondence import oracle_of
        from polytool.model import load

        return oracle_of(model, load(os.fspath(against)), next(iter(samples), None)), None
    from polytool.results import RunResults

    runs = list(RunResults.load(against).values())
    if not runs or not len(runs[0]):
        raise UsageError(f"{os.fspath(against)!r} holds no results to compare with")
    return NativeOracle(model), dict(runs[0][0])


def second_judge(
    model: Model, against: str | os.PathLike[str]
) -> tuple[LayerOracle, tuple[str, str]] | None:
    """Another layer oracle with operators of its own, or that of the model itself where another
    model judges, and the names of both; None without one."""
    import importlib.util

    if against == "onnxrt" or Path(against).suffix == ".onnx":
        from polytool.backends.native.oracle import NativeOracle

        if against == "onnxrt":
            return NativeOracle(model), ("ONNX Runtime", "polytool")
        return NativeOracle(model), (Path(against).name, "this model")
    if importlib.util.find_spec("onnxruntime") is None:
        return None
    from polytool.backends.onnxrt.oracle import OnnxrtOracle

    return OnnxrtOracle(model), ("polytool", "ONNX Runtime")


def _search(
    model: Model,
    samples: Sequence[Feeds],
    oracle: LayerOracle,
    found: Location,
    runner: NativeRunner,
    targets: Sequence[str],
    precision: str,
    options: Mapping[str, Any],
    progress: Progress | None,
) -> dict[str, Any]:
    """The smallest set of layers in higher precision, as `Location.fix` holds it."""
    from polytool.backends.native.builder import prepared
    from polytool.backends.native.config import read_layer_precisions
    from polytool.backends.native.runner import NativeRunner
    from polytool.backends.registry import load_script
    from polytool.comparators.search import find_fix
    from polytool.comparators.targets import all_of, parse_target

    met = all_of([parse_target(t, load_script) for t in targets])
    names = [spec.name for spec in runner.outputs]
    references = [oracle.evaluate(sample, names) for sample in samples]
    given = dict(read_layer_precisions(options.get("layer_precisions")))
    layers = _candidates(found, precision)
    ready = prepared(model)
    tried = 0

    def accepts(kept: frozenset[str]) -> bool:
        nonlocal tried
        tried += 1
        if progress is not None:
            progress(f"try {tried}: {len(kept)} of {len(layers)} layers in {precision}")
        table = given | {n: precision for layer in kept for n in layers[layer].patterns}
        candidate = NativeRunner(ready, **{**options, "layer_precisions": table})
        with candidate:
            outputs = (candidate.infer(sample) for sample in samples)
            return all(met(o, r) for o, r in zip(outputs, references, strict=True))

    fix = find_fix(list(layers), accepts, extra_runs=_extra_runs(runner, samples))
    if fix.kept is None:
        reason = f"not even all {len(layers)} layers in {precision} meet {', '.join(targets)}"
        return {"layer_precisions": None, "reason": reason, "runs": fix.runs}
    nodes = [n for layer in fix.kept for n in layers[layer].patterns]
    return {
        "layer_precisions": given | dict.fromkeys(nodes, precision),
        "layers": list(fix.kept),
        "targets": list(targets),
        "verified_samples": len(samples),
        "minimal": fix.minimal,
        "runs": fix.runs,
        "cost": _cost(runner, fix.kept, samples[0]),
        "flags": flags_elsewhere(nodes, precision),
    }


def _candidates(found: Location, precision: str) -> dict[str, Finding]:
    """Layers that could be kept in `precision`, the most important first, by layer name."""
    lowered = [f for f in found.findings if f.precision not in (precision, "fp64") and f.patterns]
    first: dict[str, Finding] = {}
    for finding in sorted(lowered, key=_importance):
        first.setdefault(finding.layer, finding)
    return first


def _importance(finding: Finding) -> tuple[float, float, int]:
    if finding.own_error is None:  # NaN or Inf
        return -1e30, 0.0, finding.position
    return -(finding.contribution or 0.0), -finding.own_error, finding.position


def _extra_runs(runner: NativeRunner, samples: Sequence[Feeds]) -> int:
    """How many more sets may be tried; by FLOPs, so that it is the same on every machine."""
    flops = sum(_flops(runner, sample) for sample in samples)
    return min(_MOST_EXTRA, int(_EXTRA_FLOPS // max(1, flops)))


def _flops(runner: NativeRunner, sample: Feeds) -> int:
    import numpy as np

    from polytool.backends.native.flops import layer_flops

    shapes = {name: np.shape(value) for name, value in sample.items()}
    return int(sum(layer_flops(runner.engine.network, shapes).values()))


def _cost(runner: NativeRunner, kept: Sequence[str], sample: Feeds) -> dict[str, Any]:
    """The share of FLOPs and of layers that run in higher precision."""
    import numpy as np

    from polytool.backends.native.flops import layer_flops

    shapes = {name: np.shape(value) for name, value in sample.items()}
    flops = layer_flops(runner.engine.network, shapes)
    whole = sum(flops.values())
    chosen = sum(count for layer, count in flops.items() if layer.name in set(kept))
    return {
        "flops_share": chosen / whole if whole else None,
        "layers_share": len(kept) / max(1, len(runner.engine.network.layers)),
    }


def flags_elsewhere(nodes: Sequence[str], precision: str) -> dict[str, str]:
    """The same fix as flags of TensorRT 10's trtexec and of Polygraphy."""
    import shlex

    short = precision
    long = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}.get(precision, precision)
    trtexec = ",".join(f"{node}:{short}" for node in nodes)
    polygraphy = " ".join(shlex.quote(f"{node}:{long}") for node in nodes)
    return {
        "trtexec": f"--precisionConstraints=obey --layerPrecisions={shlex.quote(trtexec)}",
        "polygraphy": f"--precision-constraints obey --layer-precisions {polygraphy}",
    }
