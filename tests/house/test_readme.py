"""What the README shows is what happens: every example in it runs, and looks as printed.

A `console` block holds commands (`$ polytool ...`) and their output; numbers, times and column
widths may differ, a line `...` stands for any lines. `<!-- exit 1 -->` before a block says that its
last command ends so. `python` blocks run as one script. All of it in one folder, from top to
bottom, where `model.onnx` is PP-OCRv4's recogniser.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from scripts.models import RealModel

ROOT = Path(__file__).resolve().parent.parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCK = re.compile(
    r"(?:<!-- exit (?P<exit>\d) -->\n)?```(?P<kind>\w+)\n(?P<text>.*?)^```", re.M | re.S
)


def blocks(kind: str) -> list[tuple[str, int]]:
    """The blocks of one kind and their exit codes."""
    found = [m for m in BLOCK.finditer(README) if m["kind"] == kind]
    return [(m["text"], int(m["exit"] or 0)) for m in found]


def commands(block: str) -> Iterator[tuple[str, str]]:
    """The commands of a console block, each with the output below it."""
    for part in re.split(r"^\$ ", block, flags=re.M)[1:]:
        lines = part.splitlines()
        command = [lines.pop(0)]
        while command[-1].endswith("\\"):
            command.append(lines.pop(0))
        yield "\n".join(command), "\n".join(lines)


def shape(text: str) -> str:
    """Output without what may change from run to run: numbers, widths, units of time and size."""
    text = re.sub(r"[-+]?\d+(\.\d+)?(e[-+]?\d+)?", "0", text)
    text = re.sub(r"0 ?(us|µs|ms|s|min|B|KB|MB|GB|KiB|MiB|GiB)\b", "0 U", text)
    lines = (" ".join(line.split()) for line in text.splitlines())
    return "\n".join(re.sub(r"(-+ ?)+$", "-", line) for line in lines if line)


def as_pattern(text: str) -> str:
    lines = [r"(?:.*\n)*?" if x == "..." else re.escape(x) + "\n" for x in shape(text).splitlines()]
    return "".join(lines)


@pytest.fixture(scope="module")
def folder(
    tmp_path_factory: pytest.TempPathFactory, real_model: Callable[[str], RealModel]
) -> Path:
    folder = tmp_path_factory.mktemp("readme")
    shutil.copy(real_model("ppocr-rec").path, folder / "model.onnx")
    return folder


def run(command: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    bin_dir = os.path.dirname(sys.executable)
    env = {**os.environ, "PATH": os.pathsep.join([bin_dir, os.environ["PATH"]])}
    return subprocess.run(
        command, cwd=folder, env=env, capture_output=True, text=True, timeout=300, check=False
    )


def test_newcomers_commands_exist() -> None:
    named = re.findall(r"^bash (\S+)", "".join(text for text, _ in blocks("bash")), re.M)
    assert named[:2] == ["scripts/quickstart.sh", "scripts/test.sh"]
    for script in named:
        assert subprocess.run(["bash", "-n", str(ROOT / script)], check=False).returncode == 0


@pytest.mark.ort
def test_examples_run_and_look_as_printed(folder: Path) -> None:
    for text, code in blocks("console"):
        for command, expected in commands(text):
            done = run(["bash", "-c", command], folder)
            assert done.returncode in (0, code), f"$ {command}\n{done.stdout}{done.stderr}"
            printed = shape(done.stdout + done.stderr) + "\n"
            assert re.fullmatch(as_pattern(expected), printed), (
                f"README.md shows another output of\n$ {command}\n{done.stdout}{done.stderr}"
            )
        assert done.returncode == code
    for text, _ in blocks("python"):
        done = run([sys.executable, "-c", text], folder)
        assert done.returncode == 0, f"{text}\n{done.stderr}"


def test_every_command_is_listed() -> None:
    from click import Context

    from polytool import cli

    for name in cli.cli.list_commands(Context(cli.cli)):
        assert f"`{name}" in README, f"the table of commands in README.md lacks {name!r}"


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
    assert "agree" in done.stdout
