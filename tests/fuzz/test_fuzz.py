"""The fuzzer itself, for a short while: no find, and it finds what is planted."""

from __future__ import annotations

import random
import subprocess
import sys
from pathlib import Path

import onnx
import pytest

from scripts.fuzz_graphs import MUTATIONS, Corpus, Mutation
from scripts.fuzz_mutations import mutated_bytes, mutated_model
from scripts.fuzz_nodes import random_nodes
from scripts.fuzz_worker import Defect, exercise

ROOT = Path(__file__).parent.parent.parent


def fuzz(*options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "scripts/fuzz.py", *options]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    "count", [pytest.param(60), pytest.param(3000, marks=pytest.mark.slow)], ids=str
)
def test_mutated_files_give_results_or_clear_errors(count: int) -> None:
    done = fuzz("--count", str(count), "--seconds", "3000", "--seed", "1000")
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{count} files" in done.stdout and "0 distinct finds" in done.stdout


def test_a_mutation_depends_on_its_seed_alone() -> None:
    model = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["": 17]> g (float[3] x) => (float[3] y) { y = Relu(x) }'
    )
    corpus = Corpus([(model, {})])
    first, again = (
        [mutated_model(random.Random(f"0/{i}"), corpus) for i in range(50)] for _ in range(2)
    )
    assert first == again
    assert len(set(first)) > 40
    assert model.graph.node[0].op_type == "Relu"  # the corpus stays as it is


@pytest.mark.parametrize("mutate", [m for _, m in MUTATIONS], ids=lambda m: m.__name__)
def test_every_mutation_changes_a_model(mutate: Mutation) -> None:
    model = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["": 17]> g (float[3,3] x) => (float[3,3] y) '
        "<float[3] w = {1,2,3}> { z = Add(x, w) y = Softmax<axis=1>(z) }"
    )
    corpus = Corpus([(model, {})])
    made = set()
    for seed in range(30):
        copy = onnx.ModelProto()
        copy.CopyFrom(model)
        mutate(random.Random(seed), copy, corpus)
        made.add(copy.SerializeToString(deterministic=True))
    assert made - {model.SerializeToString(deterministic=True)}


def test_random_nodes_are_sound_protobuf_of_many_operators() -> None:
    made = [random_nodes(random.Random(f"0/{i}")) for i in range(300)]
    assert made == [random_nodes(random.Random(f"0/{i}")) for i in range(300)]
    nodes = [n for content in made for n in onnx.load_from_string(content).graph.node]
    assert len({n.op_type for n in nodes}) > 100


def test_bytes_are_mutated() -> None:
    content = bytes(range(256))
    changed = {mutated_bytes(random.Random(i), content, lambda: content) for i in range(50)}
    assert len(changed) > 40


def test_memory_before_the_run_is_watched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import polytool.inspection

    def greedy(*_: object, **__: object) -> None:
        bytearray(700 << 20)

    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    monkeypatch.setattr(polytool.inspection, "inspect_model", greedy)
    with pytest.raises(Defect, match=r"inspect: took \d+ MiB"):
        exercise(tmp_path / "none.onnx")
