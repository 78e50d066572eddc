"""No layer of a sound engine is blamed, but for what float64 confirms."""

from __future__ import annotations

import onnx
import pytest

from polytool import NativeRunner
from polytool.backends.native.oracle import NativeOracle
from polytool.comparators.findings import Finding
from polytool.comparators.locate import locate
from scripts.models import MODELS, with_random_weights
from tests.accuracy.planted.cases import sound

PRECISIONS = ("fp32", "tf32", "fp16", "bf16")
QUICK = {("khmersm", "bf16"), ("lac", "fp16"), ("ppocr-cls", "tf32"), ("silero", "fp16"),
         ("squeezenet", "fp32"), ("t5-encoder", "fp16"), ("made-transformer", "bf16")}  # fmt: skip
NAMES = (*(model.name for model in MODELS), "made-transformer", "made-deep")


def confirmed(finding: Finding) -> bool:
    """Whether the exact values leave the range of the stored type."""
    headroom, below = finding.range.headroom, finding.range.subnormal
    over = finding.reason.startswith("overflow") and headroom is not None and headroom < 1
    return over or (finding.reason.startswith("underflow") and below > 0)


def sweep() -> list[object]:
    return [
        pytest.param(name, precision, marks=[] if (name, precision) in QUICK else pytest.mark.slow)
        for name in NAMES
        for precision in PRECISIONS
    ]


@pytest.mark.parametrize(("name", "precision"), sweep())
def test_no_layer_is_blamed_that_is_sound(real_model, name, precision):
    if name.startswith("made"):
        source, feeds = sound(name)
    else:
        model = real_model(name)
        source, feeds = str(model.path), model.feeds()
        if model.package == "onnx":
            source = with_random_weights(onnx.load(model.path))
    runner = NativeRunner(source, precision=precision, device="cpu")
    found = locate(runner, NativeOracle(source), [feeds], contributions=0)
    blamed = [f for f in found.findings if f.verdict != "expected" and not confirmed(f)]
    assert not blamed, [(f.layer, f.excess, f.reason) for f in blamed]
    assert found.verdict != "race" and found.findings
