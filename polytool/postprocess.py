"""What outputs go through before they are compared: indices of the largest values, scripts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from polytool.errors import PolytoolError, RunnerError, UsageError
from polytool.patterns import check_used, lookup
from polytool.results import Iteration, Run, RunResults

Step = Callable[[Mapping[str, Any]], Mapping[str, Any]]


def postprocessed(results: RunResults, step: Step) -> RunResults:
    """The results with `step` applied to the outputs of each iteration, when they are looked at."""
    return RunResults(Run(run.name, _Mapped(run, step), run.settings) for run in results.values())


class _Mapped(Sequence[Iteration]):
    def __init__(self, run: Run, step: Step) -> None:
        self._run, self._step = run, step

    def __len__(self) -> int:
        return len(self._run)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        found = self._run[index]
        return Iteration(self._step(found), found.seconds)


def top_step(steps: Mapping[str, tuple[int, int]]) -> Step:
    """Replace outputs by the indices of their largest values.

    Args:
        steps: output name or pattern, "" for all, to (how many, along which axis).
    """
    from polytool.comparators.ranks import topk_indices

    def step(outputs: Mapping[str, Any]) -> dict[str, Any]:
        check_used(steps, outputs, "--postprocess")
        changed = dict(outputs)
        for name, value in outputs.items():
            chosen = lookup(steps, name)
            if chosen is not None and isinstance(value, np.ndarray) and value.ndim:
                changed[name] = topk_indices(value, *chosen)
        return changed

    return step


def script_step(script: str) -> Step:
    """What `my_script.py:postprocess` does; `postprocess` where only the script is named.

    Raises:
        UsageError: there is no such script or function.
    """
    function, name = load_function(script, "postprocess")

    def step(outputs: Mapping[str, Any]) -> Mapping[str, Any]:
        changed = call(function, name, dict(outputs))
        if not isinstance(changed, Mapping):
            raise UsageError(f"{name} must return a dict of arrays, not {type(changed).__name__}")
        return changed

    return step


def load_function(script: str, default: str) -> tuple[Callable[..., Any], str]:
    """A function of a user's script, and how messages call it.

    Args:
        script: `my_script.py:my_func`, or the script alone.
        default: the function where only the script is named.
    """
    from polytool.backends.registry import load_script

    name = f"{script}:{default}" if script.endswith(".py") else script
    return load_script(name), name


def call(function: Callable[..., Any], name: str, *args: Any) -> Any:
    """Call a function of a user's script.

    Raises:
        RunnerError: it failed.
    """
    try:
        return function(*args)
    except PolytoolError:
        raise
    except Exception as err:
        raise RunnerError(f"{name} failed: {type(err).__name__}: {err}") from err
