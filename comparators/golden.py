"""Golden results: the outputs of a run, and a sketch of what each layer stored.

A sketch is a count sketch (Charikar, Chen and Farach-Colton, 2002): every element is added, with a
random sign, to one of 256 sums. The distance of two sketches is that of the tensors to within a
tenth, so that layers can be compared without storing them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from polytool.backends.base import Feeds, Observable, Runner, Tap
from polytool.comparators.budget import operand_roundoff, unit_roundoff
from polytool.comparators.judge import relative_l2
from polytool.comparators.settings import differing_settings
from polytool.errors import ModelError

if TYPE_CHECKING:
    from polytool.files import StrPath

_SUMS = 256
_ALLOWED = 128.0  # units of roundoff by which a layer may move between machines
_LAYERS = "layers"
_SHOWN = 5


@dataclass
class Golden:
    """What a runner gave for each sample.

    Attributes:
        name: of the runner.
        outputs: by name, one dict a sample.
        layers: sketches by tensor, one dict a sample, in execution order.
        roundoff: of each layer: the larger of that of its operands and its result.
        settings: of the runner.
    """

    name: str
    outputs: list[dict[str, Any]]
    layers: list[dict[str, Any]]
    settings: dict[str, Any] = field(default_factory=dict)
    roundoff: dict[str, float] = field(default_factory=dict)

    def save(self, path: StrPath) -> None:
        """Write one file that `RunResults.load` reads."""
        from polytool.results import Iteration, Run, RunResults

        runs = [
            Run(self.name, [Iteration(o) for o in self.outputs], self.settings),
            Run(_LAYERS, [Iteration(o) for o in self.layers]),
        ]
        RunResults(runs).save(path)

    @classmethod
    def load(cls, path: StrPath) -> Golden:
        """The inverse of `save`; results without layers are read too.

        Raises:
            ModelError: the file holds no results.
        """
        from polytool.results import RunResults

        results = RunResults.load(path)
        names = [name for name in results if name != _LAYERS]
        if not names:
            raise ModelError(f"{path} holds no results: record it with pytest --polytool-update")
        run = results[names[0]]
        layers = [dict(i) for i in results[_LAYERS]] if _LAYERS in results else []
        return cls(names[0], [dict(i) for i in run], layers, run.settings)

    def moved_layers(self, golden: Golden) -> list[str]:
        """The layers that differ from `golden` by more than rounding, the first ones in words."""
        moved = []
        for tensor, roundoff in self.roundoff.items():
            samples = zip(self.layers, golden.layers, strict=False)
            pairs = [(n[tensor], w[tensor]) for n, w in samples if tensor in n and tensor in w]
            errors = [relative_l2(now, was) for now, was in pairs]
            worst = max((float("inf") if e is None else e for e in errors), default=0.0)
            if worst > _ALLOWED * roundoff:
                moved.append(f"{tensor} by {worst:.2g}")
        if not moved:
            return []
        more = f" and {len(moved) - _SHOWN} more" if len(moved) > _SHOWN else ""
        return [f"layers that moved, in execution order: {', '.join(moved[:_SHOWN])}{more}"]

    def other_settings(self, golden: Golden) -> list[str]:
        """The settings in which the two runs differ, in words."""
        return differing_settings(self.settings, golden.settings)


def record(runner: Runner, samples: Sequence[Feeds]) -> Golden:
    """Run every sample, observing where the runner allows that."""
    golden = Golden(runner.name, [], [], dict(runner.settings))
    for sample in samples:
        layers: dict[str, Any] = {}
        if not isinstance(runner, Observable):
            golden.outputs.append(runner.infer(sample))
            continue

        def see(tap: Tap, value: Any, layers: dict[str, Any] = layers) -> None:
            dtype = tap.spec.dtype
            if tap.depth or dtype is None or not dtype.is_float or not tap.nodes:
                return
            name = f"{tap.tensor} at {list(tap.rows)}" if tap.rows else tap.tensor
            layers[name] = sketch(value)
            unit = max(unit_roundoff(dtype), operand_roundoff(tap.precision))
            golden.roundoff[name] = unit

        golden.outputs.append(runner.infer(sample, observe=see))
        golden.layers.append(layers)
    return golden


def sketch(value: Any) -> np.ndarray[Any, Any]:
    """256 sums of the elements with seeded random signs; NaN where any of them is not finite."""
    flat = np.asarray(value).astype(np.float64).reshape(-1)
    rng = np.random.default_rng(flat.size)
    signs = rng.integers(0, 2, flat.size) * 2 - 1
    return np.bincount(rng.integers(0, _SUMS, flat.size), signs * flat, _SUMS)
