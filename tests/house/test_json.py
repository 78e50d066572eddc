"""docs/json.md describes what `--json` prints: every command, every field."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import click
import pytest

from polytool import cli
from scripts.models import RealModel

DOC = (Path(__file__).resolve().parents[2] / "docs" / "json.md").read_text(encoding="utf-8")

# One real call of each command, in an order in which each finds what it needs.
CALLS = {
    "run": "model.onnx --native --onnxrt --input-shapes bytes:[1,2048] --save-outputs out.json "
    "--save-accuracy-results accuracy.json --save-inputs in.json",
    "check accuracy": "accuracy.json",
    "check lint": "model.onnx",
    "convert": "model.onnx -o model.engine --fp16",
    "bench": "model.onnx --input-shapes bytes:[1,2048] --duration 0 --iterations 2",
    "debug locate": "model.onnx --fp16 --input-shapes bytes:[1,2048]",
    "debug reduce": "model.onnx -o small.onnx --native --fp16 --onnxrt "
    "--input-shapes bytes:[1,2048]",
    "debug precision": "model.onnx --fp16 --input-shapes bytes:[1,2048] --target snr>=20",
    "debug build": "model.onnx --check true",
    "debug repeat": "--check true",
    "inspect model": "model.onnx",
    "inspect data": "out.json",
    "inspect sparsity": "model.onnx",
    "inspect capability": "model.onnx",
    "inspect tactics": "model.engine",
    "inspect diff-tactics": "model.engine model.engine",
    "surgeon sanitize": "model.onnx -o clean.onnx",
    "surgeon extract": "model.onnx -o part.onnx",
    "surgeon insert": "model.onnx -o more.onnx --op Relu "
    "--inputs jax2tf_get_logits_/pjit_get_logits_/Exp:0 --outputs target_label",
    "surgeon prune": "model.onnx -o pruned.onnx",
    "surgeon weight-strip": "model.onnx -o stripped.onnx",
    "surgeon weight-reconstruct": "stripped.onnx -o whole.onnx",
    "template onnx-gs": "model.onnx -o surgery.py",
    "data merge": "in.json -o merged.json",
    "data concat": "in.json in.json -o both.json",
    "data to-input": "in.json -o other.json",
    "env": "",
}


def documented() -> dict[str, set[str]]:
    """The top-level fields of each command: the first table of its section."""
    found = {}
    for section in re.split(r"^## ", DOC, flags=re.M)[1:]:
        name, text = section.split("\n", 1)
        table = text.strip().split("\n\n")[0]
        cells = [row.split("|")[1] for row in table.splitlines()[2:]]
        found[name] = {field for cell in cells for field in re.findall(r"`([^`]+)`", cell)}
    return found


def with_json(group: cli.FileGroup = cli.cli, prefix: str = "") -> Iterator[str]:
    """The names of all commands that have --json."""
    ctx = click.Context(group)
    for name in group.list_commands(ctx):
        command = group.get_command(ctx, name)
        if isinstance(command, cli.FileGroup):
            yield from with_json(command, f"{prefix}{name} ")
        elif command is not None and any("--json" in p.opts for p in command.params):
            yield f"{prefix}{name}"


def test_every_command_with_json_is_documented_and_called_here() -> None:
    assert sorted(documented()) == sorted(with_json()) == sorted(CALLS)


@pytest.mark.ort
def test_fields_are_those_documented(
    tmp_path: Path,
    real_model: Callable[[str], RealModel],
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    shutil.copy(real_model("magika").path, tmp_path / "model.onnx")
    monkeypatch.chdir(tmp_path)
    fields = documented()
    for name, args in CALLS.items():
        code = cli.main([*name.split(), *args.split(), "--json"])
        out, err = capfd.readouterr()
        assert code in (0, 1), f"polytool {name} {args}\n{err}"
        assert set(json.loads(out)) == fields[name], f"polytool {name} {args} --json"
