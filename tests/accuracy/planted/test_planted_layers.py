"""Sixty planted faults: the culprit is first in the ranking, or nearly.

Every tenth case runs in the ordinary tests, all of them and the marks under `slow`.
"""

from __future__ import annotations

import pytest

from tests.accuracy.planted.cases import CALIBRATION, Case, answer

IN_MODEL = [
    Case("8-bit", "ppocr-rec", "fp16", 1),
    Case("8-bit", "khmersm", "fp16", 2),
    Case("8-bit", "made-transformer", "fp16", 3),
    Case("8-bit", "minimol", "fp16", 4),
    Case("10-bit", "ppocr-cls", "fp32", 5),
    Case("10-bit", "lac", "fp32", 6),
    Case("10-bit", "shufflenet", "fp32", 7),
    Case("11-bit", "magika", "fp32", 8),
    Case("11-bit", "made-deep", "fp32", 9),
    Case("11-bit", "ddddocr", "fp32", 10),
    Case("epsilon", "minimol", "fp32", 11),
    Case("epsilon", "khmersm", "fp32", 12),
    Case("epsilon", "shufflenet", "fp32", 13),
    Case("head", "made-transformer", "fp16", 14),
    Case("head", "made-transformer", "fp32", 15),
    Case("head", "ppocr-rec", "fp16", 16),
    Case("head", "khmersm", "fp32", 17),
    Case("padding", "ppocr-det", "fp16", 18),
    Case("padding", "squeezenet", "bf16", 19),
    Case("padding", "ddddocr", "fp32", 20),
]
IN_TACTIC = [
    Case("bf16", "ppocr-rec", "fp32", 21),
    Case("bf16", "khmersm", "fp32", 22),
    Case("bf16", "minimol", "tf32", 23),
    Case("bf16", "silero-sequence", "fp32", 24),
    Case("fp8", "made-transformer", "fp16", 25),
    Case("fp8", "ppocr-det", "fp32", 26),
    Case("fp8", "t5-encoder", "fp32", 27),
    Case("fp8", "lac", "bf16", 28),
    Case("fp16-accumulation", "ppocr-rec", "fp32", 29),
    Case("fp16-accumulation", "khmersm", "fp32", 30),
    Case("fp16-accumulation", "made-transformer", "fp32", 31),
    Case("fp16-accumulation", "magika", "tf32", 32),
    Case("tile", "squeezenet", "fp16", 33),
    Case("tile", "ddddocr", "fp16", 34),
    Case("tile", "made-deep", "bf16", 35),
    Case("tile", "ppocr-cls", "fp32", 36),
    Case("nan", "shufflenet", "fp16", 37),
    Case("nan", "magika", "fp32", 38),
    Case("nan", "made-transformer", "bf16", 39),
    Case("nan", "t5-encoder", "fp32", 40),
]
IN_MEMORY = [
    *(Case("overflow", f"made-overflow-{number}", "fp16") for number in range(6)),
    Case("stale", "ppocr-rec", "fp16", 47),
    Case("stale", "ppocr-det", "bf16", 48),
    Case("stale", "minimol", "fp32", 49),
    Case("stale", "khmersm", "fp16", 50),
    Case("stale", "made-deep", "fp16", 51),
    Case("stale", "squeezenet", "fp32", 52),
    Case("stale", "lac", "fp16", 53),
    Case("stale+tile", "made-transformer", "fp16", 54),
    Case("tile+fp8", "ppocr-rec", "fp16", 55),
    Case("nan+stale", "khmersm", "fp16", 56),
    Case("fp8+fp8", "ppocr-cls", "fp16", 57),
    Case("stale+stale", "t5-encoder", "fp32", 58),
    Case("bf16+stale", "minimol", "fp32", 59),
    Case("tile+tile", "magika", "bf16", 60),
]
CASES = [*IN_MODEL, *IN_TACTIC, *IN_MEMORY]
FIRST = 0.95  # of the cases in which the culprit must be the first


def tenth() -> list[object]:
    return [
        pytest.param(case, id=str(case), marks=[] if i % 10 == 3 else [pytest.mark.slow])
        for i, case in enumerate(CASES)
    ]


@pytest.mark.parametrize("case", tenth())
def test_the_culprit_is_among_the_first_three(case):
    found = answer(case)
    shown = [(f.layer, f.verdict, f.excess, f.reason) for f in found.found.ranking[:3]]
    assert max(found.places) < 3, f"planted in {found.what}; ranked {shown}"
    culprits = [found.found.ranking[place] for place in found.places]
    assert all(c.verdict != "expected" for c in culprits), culprits


@pytest.mark.slow
@pytest.mark.parametrize("cases", [IN_MODEL, IN_TACTIC, IN_MEMORY], ids=["model", "tactic", "type"])
def test_the_culprit_is_first_where_nothing_was_calibrated(cases):
    marked = [case for case in cases if case.model not in CALIBRATION]
    missed = [str(case) for case in marked if min(answer(case).places) > 0]
    assert len(missed) <= (1 - FIRST) * len(marked), missed


def test_there_are_sixty_cases_and_half_of_the_models_take_the_marks():
    models = {case.model for case in CASES}
    assert len(set(CASES)) == len(CASES) >= 60
    assert len(models - CALIBRATION) >= len(models) / 2
