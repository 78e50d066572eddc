"""What passes conformance on the CPU passes on a GPU, in float32 and in float16.

In processes of their own: a case that ends its GPU context must not end the tests.
"""

import json
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

pytestmark = pytest.mark.gpu
# random numbers are compared by shape alone, and Gradient differentiates the graph
_NOT_COMPARABLE = ("bernoulli", "gradient")

LISTED = Path(__file__).parents[1] / "conformance" / "expected_failures.toml"
ONLY_HERE = tomllib.loads(LISTED.read_text(encoding="utf-8"))["cuda"]


def conformance(*arguments: str) -> dict:
    command = [sys.executable, "scripts/conformance.py", "--json", *arguments]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode in (0, 1), done.stderr
    found = json.loads(done.stdout)
    for name in [n for n in found["failed"] if any(k in n for k in _NOT_COMPARABLE)]:
        del found["failed"][name]
    return found


def test_what_passes_on_the_cpu_passes_on_the_gpu():
    gpu = conformance("--device", "cuda", "--jobs", "8")
    names = "|".join(f"^{name}$" for name in gpu["failed"])
    cpu = conformance("--device", "cpu", "--filter", names) if names else {"failed": {}}
    more = {k: v for k, v in gpu["failed"].items() if k not in cpu["failed"]}
    assert set(more) == set(ONLY_HERE), more
    assert len(gpu["on_host"]) <= 60


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_reduced_precision_computes_what_its_emulation_computes(precision):
    found = conformance(
        *("--device", "cuda", "--precision", precision, "--against-cpu", "--every", "3"),
        *("--kind", "node", "--jobs", "8"),
    )
    assert len(found["failed"]) <= 5, found["failed"]  # decisions on the edge of a rounding
