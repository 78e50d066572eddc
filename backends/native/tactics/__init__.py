"""The tactics: every module here that defines subclasses of `Tactic` is found by itself."""

from __future__ import annotations

import importlib
import pkgutil
from functools import cache

from polytool.backends.native.network import Layer
from polytool.backends.native.tactics.base import Mode, Tactic


@cache
def cpu_tactics() -> tuple[Tactic, ...]:
    """One instance of every CPU tactic, the most specialised first."""
    for module in pkgutil.iter_modules(__path__):
        if module.name.startswith("numpy_"):
            importlib.import_module(f"{__name__}.{module.name}")
    found = [cls() for c in Tactic.__subclasses__() for cls in _leaves(c) if cls.device == "cpu"]
    return tuple(sorted(found, key=lambda t: (-t.priority, t.name)))


def _leaves(cls: type[Tactic]) -> list[type[Tactic]]:
    """The classes without subclasses, which are the ones that are complete."""
    return [leaf for c in cls.__subclasses__() for leaf in _leaves(c)] or [cls]


def choose(layer: Layer, mode: Mode) -> Tactic:
    """The CPU tactic that runs `layer`: `layer.tactic` where that is set, else the best."""
    supporting = (t for t in cpu_tactics() if t.supports(layer, mode))
    if layer.tactic:
        return next((t for t in cpu_tactics() if t.name == layer.tactic), None) or next(supporting)
    return next(supporting)
