"""Which layers must stay in higher precision, judged by any test of a built engine.

`debug locate --fix` measures which layers matter and tries those first; this search knows nothing
but that a test passes or fails, as Polygraphy's `debug precision`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from polytool.errors import UsageError

if TYPE_CHECKING:
    from polytool.backends.native.engine import Engine
    from polytool.model import Source

MODES = ("bisect", "linear")
Passes = Callable[["Engine"], bool]


@dataclass(frozen=True)
class Kept:
    """What the search found.

    Attributes:
        layers: the layers to keep in higher precision, in execution order; None when even all of
            them do not help.
        layer_precisions: the same as `--layer-precisions` takes it.
        runs: how many engines were tested.
        minimal: whether none of the layers can be left out.
    """

    layers: tuple[str, ...] | None
    layer_precisions: dict[str, str]
    runs: int
    minimal: bool

    def to_json(self) -> dict[str, Any]:
        """Plain JSON."""
        return {
            "layers": None if self.layers is None else list(self.layers),
            "layer_precisions": None if self.layers is None else self.layer_precisions,
            "runs": self.runs,
            "minimal": self.minimal,
        }


def search_precision(
    model: Source,
    passes: Passes,
    *,
    precision: str = "fp16",
    higher: str = "fp32",
    mode: str = "bisect",
    reverse: bool = False,
    progress: Callable[[str], None] | None = None,
    **options: Any,
) -> Kept:
    """Find layers that, in higher precision, make an engine pass.

    Args:
        model: the model.
        passes: builds nothing, tests an engine.
        precision: of all other layers.
        higher: of the layers that are kept.
        mode: `bisect` finds the shortest beginning of the network that is enough, then leaves out
            what is not needed; `linear` takes one layer after the other until the test passes.
        reverse: begin at the end of the network.
        progress: called with a line of text for each engine.
        options: those of `NativeRunner`: device, profiles.

    Raises:
        UsageError: the mode is unknown, or no layer runs in the lower precision.
    """
    from polytool.backends.native.builder import engine_from_onnx, prepared
    from polytool.backends.native.config import BuilderConfig
    from polytool.comparators.search import find_fix

    if mode not in MODES:
        raise UsageError(f"unknown mode {mode!r}; choose one of {', '.join(MODES)}")
    ready = prepared(model)

    def build(nodes: Sequence[str]) -> Engine:
        table = dict.fromkeys(nodes, higher)
        config = BuilderConfig.of(precision=precision, layer_precisions=table, **options)
        return engine_from_onnx(ready, config)

    lowered = [x for x in build(()).network.layers if x.precision == precision and x.origin]
    layers = {layer.name: layer.origin for layer in lowered}
    if not layers:
        raise UsageError(f"no layer of the engine runs in {precision}, so none can be kept higher")
    names = list(layers)[::-1] if reverse else list(layers)
    tried = 0

    def accepts(kept: frozenset[str]) -> bool:
        nonlocal tried
        tried += 1
        if progress is not None:
            progress(f"engine {tried}: {len(kept)} of {len(names)} layers in {higher}")
        return passes(build([n for layer in kept for n in layers[layer]]))

    if mode == "bisect":
        found = find_fix(names, accepts)
        kept, minimal = found.kept, found.minimal
    else:
        sizes = range(len(names) + 1)
        enough = next((size for size in sizes if accepts(frozenset(names[:size]))), None)
        kept, minimal = None if enough is None else tuple(names[:enough]), False
    ordered = None if kept is None else tuple(n for n in layers if n in kept)
    table = {n: higher for layer in ordered or () for n in layers[layer]}
    return Kept(ordered, table, tried, minimal)
