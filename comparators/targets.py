"""What outputs must reach: `snr>=40`, `cosine>=0.999@logits`, `top-1`, `my_script.py:accept`."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from fnmatch import fnmatchcase
from typing import Any

import numpy as np

from polytool.errors import UsageError

Values = Mapping[str, Any]
Target = Callable[[Values, Values], bool]
"""Takes the outputs and the reference's outputs of one sample."""

_SYNTAX = re.compile(
    r"(?P<metric>snr|cosine|psnr|rel_l2|max_abs|max_rel)(?P<sign>>=|<=)(?P<value>[-+.\deE]+)"
    r"(?:@(?P<output>.+))?"
)
_TOP = re.compile(r"top-(?P<k>\d+)(?:@(?P<output>.+))?")
_HIGHER_IS_BETTER = {"snr", "cosine", "psnr"}


def parse_target(text: str, load_function: Callable[[str], Any] | None = None) -> Target:
    """The target that `text` describes.

    Args:
        text: `metric>=number[@output]` for snr, psnr (dB) and cosine, `metric<=number[@output]`
            for rel_l2, max_abs and max_rel, `top-K[@output]`: the K largest entries of the last
            axis are the same in the same order; or `script.py:function`.
        load_function: turns `script.py:function` into a function of (outputs, reference).

    Raises:
        UsageError: no target of that form.
    """
    if match := _SYNTAX.fullmatch(text):
        return _metric_target(match["metric"], match["sign"], match["value"], match["output"], text)
    if match := _TOP.fullmatch(text):
        return _top_target(int(match["k"]), match["output"])
    if ".py:" in text and load_function is not None:
        accept = load_function(text)
        return lambda outputs, reference: bool(accept(outputs, reference))
    raise UsageError(
        f"target {text!r} is none of snr>=40, cosine>=0.999, rel_l2<=1e-3, top-1 (each with "
        f"@output where wanted) or my_script.py:accept"
    )


def measure(outputs: Values, reference: Values) -> dict[str, dict[str, float]]:
    """Every metric of every float output, by output and metric."""
    return {
        name: {metric: of(outputs[name], reference[name]) for metric, of in _METRICS.items()}
        for name in _chosen(reference, None)
        if name in outputs
    }


def all_of(targets: list[Target]) -> Target:
    """Met when every one is."""
    return lambda outputs, reference: all(t(outputs, reference) for t in targets)


def _metric_target(metric: str, sign: str, number: str, output: str | None, text: str) -> Target:
    try:
        bound = float(number)
    except ValueError:
        raise UsageError(f"target {text!r}: {number!r} is not a number") from None
    if (sign == ">=") != (metric in _HIGHER_IS_BETTER):
        raise UsageError(f"target {text!r}: {metric} is better the other way round")
    measure = _METRICS[metric]

    def met(outputs: Values, reference: Values) -> bool:
        for name in _chosen(reference, output):
            value = measure(outputs[name], reference[name])
            if not (value >= bound if sign == ">=" else value <= bound):
                return False
        return True

    return met


def _top_target(k: int, output: str | None) -> Target:
    def met(outputs: Values, reference: Values) -> bool:
        return all(
            np.array_equal(_top(outputs[n], k), _top(reference[n], k))
            for n in _chosen(reference, output)
        )

    return met


def _top(value: Any, k: int) -> Any:
    array = np.asarray(value, dtype=np.float64)
    if array.ndim == 0 or np.isnan(array).any():
        return None if np.isnan(array).any() else array
    return np.argsort(-array, axis=-1, kind="stable")[..., :k]


def _chosen(reference: Values, output: str | None) -> list[str]:
    names = [n for n, v in reference.items() if isinstance(v, np.ndarray) and v.dtype.kind == "f"]
    if output is None:
        return names
    chosen = [n for n in reference if n == output or fnmatchcase(n, output)]
    if not chosen:
        raise UsageError(f"no output {output!r}; there are {', '.join(reference)}")
    return chosen


def _pair(value: Any, reference: Any) -> tuple[Any, Any]:
    a, r = np.asarray(value, np.float64), np.asarray(reference, np.float64)
    return (a, r) if a.shape == r.shape else (np.full_like(r, np.nan), r)


def _relative(value: Any, reference: Any) -> float:
    a, r = _pair(value, reference)
    same = (a == r) | (np.isnan(a) & np.isnan(r))
    error = np.where(same, 0.0, a - r)
    if not np.isfinite(error).all():
        return math.inf
    scale = float(np.linalg.norm(r[np.isfinite(r)]))
    norm = float(np.linalg.norm(error))
    return norm / scale if scale else (math.inf if norm else 0.0)


def _snr(value: Any, reference: Any) -> float:
    error = _relative(value, reference)
    return math.inf if error == 0 else -20 * math.log10(error) if error < math.inf else -math.inf


def _psnr(value: Any, reference: Any) -> float:
    a, r = _pair(value, reference)
    if not np.isfinite(a - r).all():
        return -math.inf
    error = float(np.sqrt(np.mean((a - r) ** 2))) if r.size else 0.0
    peak = float(np.abs(r).max(initial=0.0))
    return math.inf if error == 0 else 20 * math.log10(peak / error) if peak else -math.inf


def _cosine(value: Any, reference: Any) -> float:
    a, r = (v.ravel() for v in _pair(value, reference))
    if not np.isfinite(a).all():
        return -1.0
    norms = float(np.linalg.norm(a) * np.linalg.norm(r))
    return float(a @ r) / norms if norms else float(np.array_equal(a, r))


def _max_abs(value: Any, reference: Any) -> float:
    a, r = _pair(value, reference)
    error = np.abs(a - r)
    return math.inf if np.isnan(error).any() else float(error.max(initial=0.0))


def _max_rel(value: Any, reference: Any) -> float:
    a, r = _pair(value, reference)
    with np.errstate(divide="ignore", invalid="ignore"):
        error = np.where(a == r, 0.0, np.abs(a - r) / np.abs(r))
    return math.inf if np.isnan(error).any() else float(error.max(initial=0.0))


_METRICS: dict[str, Callable[[Any, Any], float]] = {
    "snr": _snr,
    "psnr": _psnr,
    "cosine": _cosine,
    "rel_l2": _relative,
    "max_abs": _max_abs,
    "max_rel": _max_rel,
}
