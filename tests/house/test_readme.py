"""What the README shows is what happens: every example in it runs, and looks as printed."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from scripts import readme
from scripts.models import RealModel

ROOT = readme.ROOT
TEXT = readme.README.read_text(encoding="utf-8")


def test_newcomers_commands_exist() -> None:
    shell = "".join(e.command for e in readme.examples(TEXT) if e.kind == "bash")
    named = re.findall(r"^bash (\S+)", shell, re.M)
    assert named[:2] == ["scripts/quickstart.sh", "scripts/test.sh"]
    for script in named:
        assert subprocess.run(["bash", "-n", str(ROOT / script)], check=False).returncode == 0


@pytest.mark.ort
def test_examples_run_and_look_as_printed(
    tmp_path: Path, real_model: Callable[[str], RealModel]
) -> None:
    for file, name in readme.MODELS.items():
        shutil.copy(real_model(name).path, tmp_path / file)
    ran = 0
    for example in readme.examples(TEXT):
        if example.kind not in ("console", "python"):
            continue
        ran += 1
        done = readme.run(example, tmp_path)
        assert done.returncode == example.exit, f"{example.command}\n{done.stdout}"
        if example.kind == "console":
            assert readme.looks_like(done.stdout, example.output), (
                f"README.md shows another output of\n$ {example.command}\n{done.stdout}"
                "if the new one is right, run: python scripts/readme.py"
            )
    assert ran >= 5


@pytest.mark.parametrize(
    ("shown", "same"),
    [
        ("a  1.5 ms\n---  ---", True),
        ("a 2 s\n-----", True),
        ("...", True),
        ("a 1 ms", False),
        ("b 1 ms\n---", False),
    ],
)
def test_only_numbers_and_widths_may_differ(shown: str, same: bool) -> None:
    assert readme.looks_like("a  17 ms\n---- ----\n", shown) is same


def test_every_command_is_listed() -> None:
    assert readme.with_commands(TEXT) == TEXT, "run: python scripts/readme.py"
    assert readme.commands() in TEXT


@pytest.mark.slow
def test_quickstart_works_in_a_fresh_clone(tmp_path: Path) -> None:
    clone = tmp_path / "clone"
    subprocess.run(["git", "clone", "--quiet", str(ROOT), str(clone)], check=True)
    env = {k: v for k, v in os.environ.items() if k not in ("VENV", "VIRTUAL_ENV")}
    done = subprocess.run(
        ["bash", "scripts/quickstart.sh"],
        cwd=clone,
        env=env,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"^agree ", done.stdout, re.M)
