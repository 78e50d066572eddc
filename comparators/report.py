"""A report that one can look at: plain facts in, one self-contained HTML file out.

The page holds the facts unchanged, as JSON, and draws them with the script in `templates`; it loads
nothing, so that it can be mailed, archived and opened without a network.
"""

from __future__ import annotations

import html
import json
from collections.abc import Mapping
from importlib import resources
from typing import Any

from polytool.comparators.budget import LIMITS
from polytool.errors import UsageError

KINDS = ("run", "locate")
_SCRIPTS = ("page.js", "plots.js", "table.js", "run.js", "locate.js", "start.js")


def render(
    kind: str,
    facts: Mapping[str, Any],
    *,
    title: str,
    drawing: Mapping[str, Any] | None = None,
) -> str:
    """The page.

    Args: see `page_data`.

    Raises:
        UsageError: there is no such kind of report.
    """
    data = page_data(kind, facts, title=title, drawing=drawing)
    parts = {
        "title": html.escape(title),
        "command": html.escape("polytool run" if kind == "run" else "polytool debug locate"),
        "verdict": html.escape(str(facts["verdict"]).replace("_", " ")),
        "answer": html.escape(_answer(kind, facts)),
        "style": _template("report.css"),
        "facts": as_script(data),
        "script": "\n".join(map(_template, _SCRIPTS)),
    }
    page = _template("report.html")
    pieces = page.split("{{")
    filled = [pieces[0]]
    for piece in pieces[1:]:  # in one pass: what is filled in is never looked at again
        name, rest = piece.split("}}", 1)
        filled += [parts[name], rest]
    return "".join(filled)


def page_data(
    kind: str,
    facts: Mapping[str, Any],
    *,
    title: str,
    drawing: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """All that a page holds.

    Args:
        kind: whose facts they are: `run` or `locate`.
        facts: what the command prints with --json.
        title: what was looked at, such as the path of the model.
        drawing: what is shown beyond the facts: `pictures` (see `comparators.pictures`) for `run`;
            `edges` (for each position, the positions that feed it) and `operators` for `locate`.

    Raises:
        UsageError: there is no such kind of report.
    """
    if kind not in KINDS:
        raise UsageError(f"there is no report of {kind!r}: choose one of {', '.join(KINDS)}")
    limits = {t.label: {"max": most, "min": least} for t, (most, least) in LIMITS.items()}
    return {"kind": kind, "title": title, "facts": facts, "limits": limits, **(drawing or {})}


def as_script(value: Any) -> str:
    """JSON that cannot end the script element it stands in, whatever strings it holds."""
    text = json.dumps(value, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _answer(kind: str, facts: Mapping[str, Any]) -> str:
    """The answer in a sentence, for those who see no more than the static page."""
    if kind == "locate":
        first = facts["first_broken"]
        if first is None:
            return f"Layers judged: {len(facts['ranking'])}; none is broken."
        names = ", ".join(first["nodes"] or first["tensors"])
        return f"First broken layer: {names}: {first['reason']}"
    outputs = [(n, o) for pair in facts["pairs"] for n, o in pair["outputs"].items()]
    wrong = [name for name, output in outputs if output["verdict"] != "agree"]
    if not wrong:
        return f"Compared: {len(outputs)}; all agree." if outputs else "One run alone."
    more = f" and {len(wrong) - 5} more" if len(wrong) > 5 else ""
    return f"{len(wrong)} of {len(outputs)} outputs do not agree: {', '.join(wrong[:5])}{more}."


def _template(name: str) -> str:
    folder = resources.files("polytool.comparators") / "templates"
    return (folder / name).read_text(encoding="utf-8")
