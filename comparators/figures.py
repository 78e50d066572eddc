"""The plots of a report as one PNG, for places that show pictures but no pages."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from typing import Any

from polytool.errors import MissingDependencyError

_WIDTH, _HEIGHT, _DPI = 11.0, 7.5, 110
# Told apart without colour too: by shape.
_MARKS = {
    "expected": ("o", "#0072b2"),
    "suspicious": ("^", "#b07d00"),
    "broken": ("X", "#d55e00"),
    "agree": ("o", "#0072b2"),
    "not_compared": ("^", "#b07d00"),
    "differ": ("X", "#d55e00"),
}


def to_png(data: Mapping[str, Any]) -> bytes:
    """Errors by depth above, and below them ranges (`locate`) or the worst outputs' histogram.

    Args:
        data: what a page holds; see `comparators.report.page_data`.

    Raises:
        MissingDependencyError: matplotlib is not installed.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as err:
        raise MissingDependencyError("matplotlib", "report", "a report as PNG") from err
    figure = Figure(figsize=(_WIDTH, _HEIGHT), dpi=_DPI, layout="constrained")
    FigureCanvasAgg(figure)
    above, below = figure.subplots(2, 1)
    verdict = str(data["facts"]["verdict"]).replace("_", " ")
    # A name may hold a dollar sign, which would start a formula.
    figure.suptitle(f"{data['title'][-100:]}: {verdict}", parse_math=False)
    (_locate if data["kind"] == "locate" else _run)(above, below, data)
    written = io.BytesIO()
    figure.savefig(written, format="png", metadata={"Software": None})
    return written.getvalue()


def _locate(above: Any, below: Any, data: Mapping[str, Any]) -> None:
    rows = sorted(data["facts"]["ranking"], key=lambda row: row["position"])
    _line(above, rows, "total_error", label="total error", color="#777777", linewidth=1)
    _line(above, rows, "budget", label="budget", color="#9c3f78", linestyle="--", linewidth=1)
    _points(above, rows, [row["own_error"] for row in rows], "own error, ")
    _finish(above, rows, "position in execution order", "relative L2")
    below.scatter(*_positive(rows, [row["range"]["absmax"] for row in rows]), s=8, color="#0072b2")
    largest = max((row["range"]["absmax"] or 0.0 for row in rows), default=0.0)
    for name, limit in data["limits"].items():
        if any(row["dtype"] == name for row in rows) and limit["max"] <= largest * 1e8:
            below.axhline(limit["max"], color="#9c3f78", label=f"largest {name}")
    _finish(below, rows, "position in execution order", "largest magnitude")


def _run(above: Any, below: Any, data: Mapping[str, Any]) -> None:
    outputs = [
        {**output, "position": position}
        for pair in data["facts"]["pairs"]
        for position, output in enumerate(pair["outputs"].values())
    ]
    _points(above, outputs, [output["rel_l2"] for output in outputs], "")
    _finish(above, outputs, "output", "relative L2")
    drawn = [(name, p) for pair in data["pictures"] for name, p in pair.items()]
    for name, picture in drawn[:1]:
        told = picture["histogram"]
        below.stairs(told["counts"], [*told["from"], *_end(told)], fill=True, color="#0072b2")
        below.set_title(f"absolute errors of {name[-60:]}", parse_math=False)
    below.set_xlabel("log10 |error|")
    below.set_ylabel("values")


def _end(histogram: Mapping[str, Any]) -> list[float]:
    return [histogram["from"][-1] + histogram["step"]] if histogram["from"] else [0.0]


def _points(axes: Any, rows: Sequence[Any], values: Sequence[Any], prefix: str) -> None:
    """One mark a row; what is not finite stands at the upper edge."""
    for word in dict.fromkeys(row["verdict"] for row in rows):
        mark, color = _MARKS[word]
        own = [(row, v) for row, v in zip(rows, values, strict=True) if row["verdict"] == word]
        size, label = (10 if word in ("expected", "agree") else 60), prefix + word.replace("_", " ")
        style = {"marker": mark, "color": color, "s": size, "zorder": 3}
        axes.scatter(*_positive([r for r, _ in own], [v for _, v in own]), label=label, **style)
        lost = [row["position"] for row, value in own if value is None]
        top = axes.get_xaxis_transform()
        axes.scatter(lost, [0.98] * len(lost), transform=top, clip_on=False, **style)


def _line(axes: Any, rows: Sequence[Any], key: str, **style: Any) -> None:
    axes.plot(*_positive(rows, [row[key] for row in rows]), **style)


def _positive(rows: Sequence[Any], values: Sequence[Any]) -> tuple[list[int], list[float]]:
    pairs = zip(rows, values, strict=True)
    kept = [(row["position"], value) for row, value in pairs if value is not None and value > 0]
    return [x for x, _ in kept], [y for _, y in kept]


def _finish(axes: Any, rows: Sequence[Any], xlabel: str, ylabel: str) -> None:
    places = [row["position"] for row in rows] or [0]
    margin = 0.5 + 0.01 * (max(places) - min(places))
    axes.set_xlim(min(places) - margin, max(places) + margin)
    axes.xaxis.get_major_locator().set_params(integer=True)
    if not math.isfinite(axes.dataLim.minposy):  # nothing is drawn that a log scale could be cut to
        axes.set_ylim(1e-9, 1)
    axes.set_yscale("log")
    axes.set_xlabel(xlabel)
    axes.set_ylabel(ylabel)
    axes.grid(True, alpha=0.3)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(fontsize="small", loc="upper right")
