"""Random loops give the same on ONNX Runtime before and after: states, results, ends, branches."""

from __future__ import annotations

import random

import numpy as np
import onnx
import pytest

from polytool.surgeon import Report, simplify
from tests.surgeon.surgery import assert_equivalent, parse

pytestmark = pytest.mark.ort


class _Writer:
    """Text of a graph around one Loop whose body may hold an If and another Loop."""

    def __init__(self, seed: int) -> None:
        self.rng, self.count = random.Random(seed), 0

    def name(self) -> str:
        self.count += 1
        return f"v{self.count}"

    def statements(self, known: list[str], most: int) -> list[str]:
        """Some nodes; what they define joins `known`."""
        lines = []
        for _ in range(self.rng.randint(0, most)):
            a, b, new = self.rng.choice(known), self.rng.choice(known), self.name()
            kind = self.rng.random()
            if kind < 0.15:
                lines.append(self.branch(new, known))
            elif kind < 0.55:
                lines.append(f"{new} = {self.rng.choice(['Sub', 'Max', 'Add'])}({a}, {b})")
            else:
                lines.append(f"{new} = {self.rng.choice(['Tanh', 'Neg', 'Identity'])}({a})")
            known.append(new)
        return lines

    def branch(self, new: str, known: list[str]) -> str:
        one, two = self.name(), self.name()
        a, b = self.rng.choice(known), self.rng.choice(known)
        return (
            f"{new} = If(c) <then_branch = t{one} () => (float[2] {one}) {{{one} = Tanh({a})}}, "
            f"else_branch = e{two} () => (float[2] {two}) {{{two} = Neg({b})}}>"
        )

    def loop(self, known: list[str], depth: int) -> tuple[str, list[str]]:
        """A Loop over some of `known`, and the names of its results."""
        rng = self.rng
        states, scans = rng.randint(1, 4), rng.randint(0, 2)
        initial = [rng.choice(known) for _ in range(states)]
        inside = [self.name() for _ in range(states)]
        number, go_on, ends = self.name(), self.name(), self.name()
        lines = self.statements(pool := [*known, *inside], 5)
        if depth and rng.random() < 0.4:
            text, results = self.loop(pool, depth - 1)
            lines.append(text)
            pool += results[:1]
        returned = []
        for index in range(states + scans):
            new = self.name()
            unchanged = index < states and rng.random() < 0.4
            source = inside[index] if unchanged else rng.choice(pool)
            lines.append(f"{new} = Identity({source})")
            returned.append(new)
        condition = rng.choice(["same", "same", "false", "data"])
        if condition == "data":
            total = self.name()
            lines.append(f"{total} = ReduceSum<keepdims=0>({rng.choice(pool)})")
            lines.append(f"{ends} = Less({total}, limit)")
        else:
            lines.append(f"{ends} = Identity({go_on if condition == 'same' else 'off'})")
        results = [self.name() for _ in range(states + scans)]
        trips = rng.choice(["zero", "one", "two", "three", "m"])
        start = rng.choice(["", "on", "on", "off"])
        takes = ", ".join(f"float[2] {v}" for v in inside)
        gives = ", ".join(f"float[2] {v}" for v in returned)
        return (
            f"{', '.join(results)} = Loop({trips}, {start}, {', '.join(initial)}) <body = "
            f"b{number} (int64 {number}, bool {go_on}, {takes}) => (bool {ends}, {gives}) "
            f"{{{' '.join(lines)}}}>",
            results[:states],
        )

    def model(self) -> onnx.ModelProto:
        known = ["x", "k"]
        lines = self.statements(known, 3)
        text, results = self.loop(known, 1)
        read = [r for r in results if self.rng.random() < 0.6] or results[:1]
        outputs = []
        for result in read:
            outputs.append(new := self.name())
            lines_after = f"{new} = {self.rng.choice(['Neg', 'Identity'])}({result})"
            text += f" {lines_after}"
        declared = ", ".join(f"float[2] {v}" for v in outputs)
        return parse(
            f"g (float[2] x, bool c, int64 m) => ({declared}) <float[2] k = {{0.5, -1}}, "
            "bool on = {1}, bool off = {0}, float limit = {0.5}, "
            "int64 zero = {0}, int64 one = {1}, int64 two = {2}, int64 three = {3}> "
            f"{{{' '.join(lines)} {text}}}"
        )


def check(seed: int) -> Report:
    proto, report = _Writer(seed).model(), Report()
    model = simplify(proto, report=report)
    for flag, trips in ((True, 3), (False, 0)):
        feeds = {"x": np.array([0.3, -0.7], np.float32), "c": np.array(flag), "m": np.array(trips)}
        assert_equivalent(proto, model, feeds)
    return report


def test_random_loops_stay_the_same() -> None:
    done = sum((check(seed).done for seed in range(40)), Report().done)
    for what in (
        "loops with a constant number of iterations unrolled",
        "unchanged states taken out of loops",
        "unread results of If, Loop and Scan dropped",
    ):
        assert done[what] > 3, done


@pytest.mark.slow
def test_many_random_loops_stay_the_same() -> None:
    for seed in range(100, 3000):
        check(seed)
