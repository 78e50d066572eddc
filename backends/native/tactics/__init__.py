"""The tactics: every module here that defines subclasses of `Tactic` is found by itself."""

from __future__ import annotations

import importlib
import pkgutil
from functools import cache

from polytool.backends.native.network import Layer, Network
from polytool.backends.native.tactic_replay import TacticChoice, TacticReplay
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


def supporting(layer: Layer, mode: Mode) -> list[Tactic]:
    """The CPU tactics that can run `layer`, the best first; the last one always works."""
    return [t for t in cpu_tactics() if t.supports(layer, mode)]


def choose(layer: Layer, mode: Mode) -> Tactic:
    """The CPU tactic that runs `layer`: `layer.tactic` where that is set, else the best."""
    if layer.tactic:
        return next((t for t in cpu_tactics() if t.name == layer.tactic), None) or next(
            t for t in cpu_tactics() if t.supports(layer, mode)
        )
    return next(t for t in cpu_tactics() if t.supports(layer, mode))


def tactic_choices(network: Network, mode: Mode) -> tuple[TacticChoice, ...]:
    """The CPU tactic of every layer that has one; control flow has none."""
    return tuple(
        TacticChoice(
            layer.name,
            choose(layer, mode).name,
            candidates=tuple(t.name for t in supporting(layer, mode)),
        )
        for _, layer in network.walk()
        if layer.nodes and not any(node.bodies for node in layer.nodes)
    )


def apply_tactics(network: Network, mode: Mode, replay: TacticReplay) -> None:
    """Let every layer run by the CPU tactic that was saved for it.

    Raises:
        ModelError: the saved tactics are of another network.
    """
    layers = {layer.name: layer for _, layer in network.walk() if layer.nodes}
    replay.check_layers(layers)
    for name, layer in layers.items():
        if any(node.bodies for node in layer.nodes):
            continue
        wanted = replay.wanted(name, "", 0)
        names = [t.name for t in supporting(layer, mode)]
        if wanted not in names:
            raise replay.misfit(name, wanted, names)
        layer.tactic = wanted


def take_generic(network: Network, mode: Mode) -> None:
    """Let every layer run by the CPU tactic that always works."""
    for _, layer in network.walk():
        if layer.nodes and not any(node.bodies for node in layer.nodes):
            layer.tactic = supporting(layer, mode)[-1].name
