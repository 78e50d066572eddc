"""Accuracy-regression tests for your own models.

    from polytool.testing import assert_accuracy

    def test_half_precision_is_good_enough():
        assert_accuracy("model.onnx", feeds, precision="fp16", target="snr>=40")

What is right is the model in float64, ONNX Runtime, or golden results that `pytest
--polytool-update` records. A failure says which layer did it.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from polytool.backends.base import Feeds, LayerOracle, Observable, Runner
from polytool.errors import UsageError

if TYPE_CHECKING:
    from polytool.comparators.golden import Golden
    from polytool.model import Model, Source

UPDATE = "POLYTOOL_UPDATE"
"""The environment variable that `pytest --polytool-update` sets: record instead of comparing."""

_WORSE = 2.0
_RECORDED = 3  # significant digits of a baseline
_NEGLIGIBLE = 1e-7  # errors below the rounding of float32 outputs are as good as each other


def assert_accuracy(
    model: Source,
    feeds: Feeds | Iterable[Feeds] | None = None,
    *,
    runner: str | Runner = "native",
    reference: str | os.PathLike[str] = "oracle",
    target: str | Sequence[str] | None = None,
    baseline: str | os.PathLike[str] | None = None,
    worse: float = _WORSE,
    negligible: float = _NEGLIGIBLE,
    shapes: Mapping[str, Sequence[int]] | None = None,
    seed: int = 0,
    **options: Any,
) -> None:
    """Fail unless a runner is as exact as it must be, and say which layer is to blame.

    Args:
        model: the original model.
        feeds: inputs, one dict or several; seeded ones by default.
        runner: what is tested: the name of a runner, or a runner.
        reference: `oracle` (the model in float64), `onnxrt`, another model `*.onnx`, or a file of
            golden results: outputs, and a sketch of what each layer stores. The file is written
            by `pytest --polytool-update`.
        target: what every output must reach, as `snr>=40`, `cosine>=0.999@logits`, `top-1`; by
            default `snr>=40`, or `rel_l2<=1e-3` against golden results, unless there is a baseline.
        baseline: a JSON file of errors, one an output, written by `pytest --polytool-update`: none
            may be `worse` times as large.
        worse: how many times as large an error as that of the baseline is allowed.
        negligible: errors up to this are never worse than the baseline; raise it for models that
            quantise inside, where one flipped rounding moves the outputs as much as all others.
        shapes: of the inputs that are made when there are no feeds.
        seed: of those.
        options: of the runner, such as `precision="fp16"`.

    Raises:
        AssertionError: an output, or a layer against golden results, misses what it must reach.
        UsageError: there is nothing to compare.
    """
    from polytool.model import load

    source = load(model)
    samples = _samples(source, feeds, shapes, seed)
    tested = _runner(source, runner, options)
    if _is_golden(reference):
        faults, golden = _against_golden(tested, samples, Path(reference), _targets(target, True))
        if golden is None:
            return
        judge: LayerOracle = _oracle(source, "oracle")
    else:
        judge = _oracle(source, reference)
        targets = _targets(target, False) if target is not None or baseline is None else []
        faults = _against_oracle(tested, judge, samples, targets, baseline, (worse, negligible))
    if faults:
        told = _diagnosis(tested, judge, samples)
        raise AssertionError("\n".join([_title(source, tested, reference), *faults, "", told]))


def _samples(
    model: Model,
    feeds: Feeds | Iterable[Feeds] | None,
    shapes: Mapping[str, Sequence[int]] | None,
    seed: int,
) -> list[dict[str, Any]]:
    from polytool.feeds import as_feeds, make_feeds

    if feeds is None:
        given = {name: tuple(shape) for name, shape in (shapes or {}).items()}
        return [dict(f) for f in make_feeds(model, shapes=given or None, seed=seed)]
    samples = [dict(f) for f in as_feeds(feeds)]
    if not samples:
        raise UsageError("assert_accuracy needs at least one sample of inputs")
    return samples


def _runner(model: Model, runner: str | Runner, options: Mapping[str, Any]) -> Runner:
    import polytool

    if not isinstance(runner, str):
        if options:
            raise UsageError(f"{', '.join(options)} cannot be set on a runner that is already made")
        return runner
    made: Runner = polytool.runner(runner, model, **options)
    return made


def _is_golden(reference: str | os.PathLike[str]) -> bool:
    return reference not in ("oracle", "onnxrt") and Path(reference).suffix != ".onnx"


def _targets(target: str | Sequence[str] | None, golden: bool) -> list[str]:
    if target is None:
        return ["rel_l2<=1e-3" if golden else "snr>=40"]
    return [target] if isinstance(target, str) else list(target)


def _oracle(model: Model, reference: str | os.PathLike[str]) -> LayerOracle:
    from polytool.debugging import judge_of

    return judge_of(model, reference)[0]


def updating() -> bool:
    """Whether results are to be recorded instead of compared."""
    return os.environ.get(UPDATE) == "1"


def _against_oracle(
    runner: Runner,
    oracle: LayerOracle,
    samples: Sequence[Feeds],
    targets: Sequence[str],
    baseline: str | os.PathLike[str] | None,
    allowed: tuple[float, float],
) -> list[str]:
    names = [spec.name for spec in runner.outputs]
    worst: dict[str, float] = {}
    faults = []
    with runner:
        for number, sample in enumerate(samples):
            outputs, exact = runner.infer(sample), oracle.evaluate(sample, names)
            faults += _missed(outputs, exact, targets, number)
            for name, error in _errors(outputs, exact).items():
                worst[name] = max(worst.get(name, 0.0), error)
    if baseline is not None:
        faults += _against_baseline(runner, worst, Path(baseline), *allowed)
    return faults


def _missed(
    outputs: Mapping[str, Any], right: Mapping[str, Any], targets: Sequence[str], number: int
) -> list[str]:
    from polytool.backends.registry import load_script
    from polytool.comparators.targets import measure, parse_target

    missed = [t for t in targets if not parse_target(t, load_script)(outputs, right)]
    if not missed:
        return []
    lines = [f"sample {number} misses {', '.join(missed)}:"]
    for name, values in measure(outputs, right).items():
        told = ", ".join(f"{metric} {value:.4g}" for metric, value in values.items())
        lines.append(f"  {name}: {told}")
    return lines


def _errors(outputs: Mapping[str, Any], exact: Mapping[str, Any]) -> dict[str, float]:
    """Relative L2 of every float output; infinite where NaN or Inf differ."""
    from polytool.comparators.targets import measure

    return {name: values["rel_l2"] for name, values in measure(outputs, exact).items()}


def _against_baseline(
    runner: Runner, errors: Mapping[str, float], path: Path, worse: float, negligible: float
) -> list[str]:
    key = f"{runner.name} {runner.settings.get('precision', '')}".strip()
    stored = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    if updating():
        stored[key] = {name: _rounded(error) for name, error in sorted(errors.items())}
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(dict(sorted(stored.items())), indent=1) + "\n", encoding="utf-8")
        return []
    if key not in stored:
        return [f"{path} has no baseline of {key!r}: record it with pytest --polytool-update"]
    faults = []
    for name, error in errors.items():
        was = stored[key].get(name, 0.0)
        was = math.inf if was is None else was
        if error > max(worse * was, negligible):
            faults.append(
                f"{name}: relative L2 error {error:.3g}, the baseline has {was:.3g}; up to "
                f"{worse:g} times that is allowed"
            )
    return faults


def _rounded(error: float) -> float | None:
    return float(f"{error:.{_RECORDED}g}") if math.isfinite(error) else None


def _against_golden(
    runner: Runner, samples: Sequence[Feeds], path: Path, targets: Sequence[str]
) -> tuple[list[str], Golden | None]:
    """What differs from the golden results; None for them when they were recorded just now."""
    from polytool.comparators.golden import Golden, record

    with runner:
        now = record(runner, samples)
    if updating():
        path.parent.mkdir(parents=True, exist_ok=True)
        now.save(path)
        return [], None
    if not path.exists():
        raise AssertionError(
            f"there are no golden results at {path}: record them with pytest --polytool-update"
        )
    golden = Golden.load(path)
    if len(golden.outputs) != len(samples):
        raise UsageError(
            f"{path} holds {len(golden.outputs)} samples, the test has {len(samples)}: record it "
            f"again with pytest --polytool-update"
        )
    faults = []
    for number, (got, right) in enumerate(zip(now.outputs, golden.outputs, strict=True)):
        faults += _missed(got, right, targets, number)
    faults += now.moved_layers(golden)
    if faults:
        faults += [f"  {text}" for text in now.other_settings(golden)]
    return faults, golden


def _title(model: Model, runner: Runner, reference: str | os.PathLike[str]) -> str:
    precision = runner.settings.get("precision")
    how = f"{runner.name} ({precision})" if precision else runner.name
    what = "golden results" if _is_golden(reference) else "reference"
    return f"{model.name} on {how} is not what it must be against the {what} {reference}:"


def _diagnosis(runner: Runner, oracle: LayerOracle, samples: Sequence[Feeds]) -> str:
    """The answer of `locate`, where the runner can be observed."""
    import click

    from polytool.comparators.locate import locate
    from polytool.diagnosis import show

    if not isinstance(runner, Observable):
        return f"{runner.name} shows no layers, so that none can be blamed"
    return click.unstyle(show(locate(runner, oracle, samples)))
