"""The native engine is no less exact than it was, on every model in every precision.

`pytest --polytool-update -m '' tests/accuracy/test_baselines.py` records the errors anew.
"""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest

from polytool.testing import assert_accuracy
from scripts.models import MODELS, with_random_weights

BASELINES = Path(__file__).parent / "baselines"
PRECISIONS = ("fp32", "tf32", "fp16", "bf16")
QUICK = {("ppocr-cls", "fp16"), ("khmersm", "fp32"), ("lac", "bf16"), ("minimol", "tf32"),
         ("shufflenet", "fp16"), ("silero-sequence", "bf16"), ("magika", "fp32")}  # fmt: skip
# One flipped rounding of dynamic quantisation moves the outputs as much as all others together.
NEGLIGIBLE = {model.name: 0.5 for model in MODELS if model.quantized}


def sweep() -> list[object]:
    names = [model.name for model in MODELS]
    return [
        pytest.param(name, precision, marks=[] if (name, precision) in QUICK else pytest.mark.slow)
        for name in names
        for precision in PRECISIONS
    ]


@pytest.mark.parametrize(("name", "precision"), sweep())
def test_numerics_do_not_get_worse(real_model, name, precision):
    model = real_model(name)
    source = str(model.path)
    if model.package == "onnx":
        source = with_random_weights(onnx.load(model.path))
    assert_accuracy(
        source,
        model.feeds(),
        precision=precision,
        device="cpu",
        baseline=BASELINES / f"{name}.json",
        negligible=NEGLIGIBLE.get(name, 1e-7),
    )
