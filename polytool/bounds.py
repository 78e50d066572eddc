"""Was a bound, that `surgeon sanitize` has set for a size that data decides, ever hit?"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from polytool.backends.base import Tap
from polytool.model import Source, load
from polytool.surgeon.bounding import recorded
from polytool.surgeon.clamping import Record, hit

if TYPE_CHECKING:
    from polytool.agreement import Session


@dataclass(frozen=True)
class BoundCheck:
    """What the inputs did to one bound.

    Attributes:
        record: the bound.
        hit: whether a size was cut to it; None where what was clamped could not be seen.
    """

    record: Record
    hit: bool | None

    def __str__(self) -> str:
        said = {True: "was hit", False: "was not hit", None: "could not be checked"}[self.hit]
        r = self.record
        return f"{r.tensor}, dim {r.dim}: the bound of {r.bound} {said}"

    def to_json(self) -> dict[str, Any]:
        """The same facts as plain JSON."""
        r = self.record
        return {"tensor": r.tensor, "dim": r.dim, "bound": r.bound, "hit": self.hit}


def checked(session: Session) -> Session:
    """`session` with what its inputs did to the bounds of its model, told as notes too."""
    if session.model is None or session.feeds is None:
        note = "--check-bounds has no effect: it needs an ONNX model, and inputs to run it on"
        return replace(session, notes=(*session.notes, note))
    checks = check_bounds(session.model, session.feeds)
    said = [str(c) for c in checks] or ["--check-bounds has no effect: the model has no bounds"]
    return replace(session, bounds=tuple(checks), notes=(*session.notes, *said))


def check_bounds(source: Source, feeds: Iterable[Mapping[str, Any]]) -> list[BoundCheck]:
    """Run a model unfused on the native engine and watch what its clamps cut.

    Args:
        source: a model that `bound_shapes` or `surgeon sanitize` has made.
        feeds: the inputs.

    Returns:
        One entry for each recorded bound, also for those inside of If and Loop.
    """
    from polytool.backends.native.runner import NativeRunner

    model = load(source)
    records = recorded(model)
    found: dict[Record, bool] = {}
    if not records:
        return []
    wanted = {name for r in records for name in (r.watched, r.limit) if name}
    runner = NativeRunner(model, optimize=False, device="cpu")
    with runner:
        for feed in feeds:
            values: dict[str, Any] = {}

            def note(tensor: str, value: Any, values: dict[str, Any] = values) -> None:
                name = next((n for n in wanted if tensor == n or tensor.endswith(f"/{n}")), None)
                if name is None:
                    return
                values[name] = value.copy()
                for record in records:
                    names = {record.watched, record.limit} - {""}
                    if name in names and names <= values.keys():
                        found[record] = found.get(record, False) or hit(record, values)

            def observe(tap: Tap, value: Any, note: Any = note) -> None:
                note(tap.tensor, value)

            for name, value in feed.items():
                note(name, value)
            runner.infer(feed, observe=observe)
    return [BoundCheck(r, found.get(r)) for r in records]
