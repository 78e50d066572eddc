"""How `inspect data` shows saved inputs and outputs."""

from __future__ import annotations

import statistics as stats
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from polytool.cli.output import table
from polytool.tensors import format_shape

if TYPE_CHECKING:
    from polytool.results import Iteration, Run
    from polytool.saved_data import SavedData

    Runs = Sequence[tuple[Run, Sequence[tuple[int, Iteration]]]]

_BINS = 10
_BAR = 40
_HEADERS = ("tensor", "type", "min", "max", "mean", "std", "zeros", "NaN or Inf")


@dataclass(frozen=True)
class Layout:
    """What is shown beside the statistics, and how wide."""

    values: bool = False
    histogram: bool = False
    items: int = 3
    width: int = 75

    def text(self, path: str, saved: SavedData, runs: Runs) -> str:
        """For people."""
        parts = [f"{path}: {saved.kind}"]
        for run, iterations in runs:
            parts.append(_headline(run))
            for index, iteration in iterations:
                if len(iterations) > 1:
                    parts.append(f"iteration {index}")
                rows = [row for n, v in iteration.items() for row in _rows(n, self._measure(v))]
                parts.append(table(rows, _HEADERS, align="llrrrrrr"))
                parts += [t for name, value in iteration.items() for t in self._more(name, value)]
        return "\n\n".join(parts)

    def facts(self, path: str, saved: SavedData, runs: Runs) -> dict[str, Any]:
        """For programs."""
        return {
            "path": path,
            "kind": saved.kind,
            "runs": [
                {
                    "name": run.name,
                    "settings": run.settings,
                    "iterations": len(run),
                    "seconds": run.seconds,
                    "tensors": [{n: self._facts(v) for n, v in i.items()} for _, i in iterations],
                }
                for run, iterations in runs
            ],
        }

    def _measure(self, value: Any) -> dict[str, Any]:
        from polytool.saved_data import statistics

        return statistics(value, _BINS if self.histogram else 0)

    def _facts(self, value: Any) -> dict[str, Any]:
        found = self._measure(value)
        return found | {"values": _plain(value)} if self.values else found

    def _more(self, name: str, value: Any) -> Iterator[str]:
        if self.histogram and "histogram" in (found := self._measure(value)):
            yield f"{name}\n{_histogram(*found['histogram'])}"
        if self.values:
            yield f"{name}\n{self._values(value)}"

    def _values(self, value: Any) -> str:
        import numpy as np

        if isinstance(value, list | tuple):
            return "\n".join(f"[{i}]\n{self._values(v)}" for i, v in enumerate(value))
        if not isinstance(value, np.ndarray):
            return str(value)
        return np.array2string(
            value,
            edgeitems=value.size + 1 if self.items < 0 else self.items,
            threshold=value.size + 1 if self.items < 0 else 6 * max(self.items, 1),
            max_line_width=1 << 30 if self.width < 0 else self.width,
        )


def _headline(run: Run) -> str:
    count = f"{len(run)} iteration{'' if len(run) == 1 else 's'}"
    line = f"{run.name}: {count}" if run.name else count
    if run.seconds:
        line += f", median {1000 * stats.median(run.seconds):.3g} ms"
    precision = run.settings.get("precision")
    return f"{line}, {precision}" if precision else line


def _rows(name: str, found: Mapping[str, Any]) -> Iterator[tuple[str, ...]]:
    items = found.get("items")
    if items is not None:
        pairs = items.items() if isinstance(items, Mapping) else enumerate(items)
        if not items:
            yield (name, "empty", *[""] * 6)
        for key, item in pairs:
            yield from _rows(f"{name}[{key}]", item)
        return
    if found["dtype"] is None:
        yield (name, "absent", *[""] * 6)
        return
    kind = f"{found['dtype']}{format_shape(tuple(found['shape']))}"
    if "distinct" in found:
        yield (name, kind, f"{found['distinct']} distinct", *[""] * 5)
        return
    numbers = [_number(found.get(key)) for key in ("min", "max", "mean", "std")]
    yield (name, kind, *numbers, str(found["zeros"]), str(found["nan"] + found["inf"]))


def _number(value: Any) -> str:
    if value is None:
        return ""
    return str(value) if isinstance(value, int) else f"{value:.4g}"


def _histogram(counts: Sequence[int], edges: Sequence[float]) -> str:
    most = max(counts)
    rows = [
        (f"{low:.4g}", f"{high:.4g}", str(n), "#" * round(_BAR * n / most))
        for n, low, high in zip(counts, edges, edges[1:], strict=False)
    ]
    return table(rows, ("from", "to", "count", ""), align="rrrl")


def _plain(value: Any) -> Any:
    """Values in terms of JSON; complex numbers as [real, imaginary]."""
    import numpy as np

    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    if not isinstance(value, np.ndarray):
        return value
    if value.dtype.kind == "c":
        return np.stack([value.real, value.imag], -1).tolist()
    return (value.astype(np.float64) if value.dtype.kind == "V" else value).tolist()
