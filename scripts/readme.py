"""Run the examples of README.md, and put what they print now where they show something else.

    python scripts/readme.py          # rewrite README.md where it is out of date

The table of commands is made from the commands themselves.

A `console` block holds commands (`$ polytool ...`) and their output; numbers, times and column
widths may differ, a line `...` stands for any lines. `<!-- exit 1 -->` before a block says that its
last command ends so. `python` blocks are scripts of their own. All of it runs in one folder, from
top to bottom, where the models lie that the README names.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
README = ROOT / "README.md"
MODELS = {"model.onnx": "magika", "rec.onnx": "ppocr-rec"}
_BLOCK = re.compile(
    r"(?:<!-- exit (?P<exit>\d) -->\n)?```(?P<kind>\w+)\n(?P<text>.*?)^```", re.M | re.S
)


@dataclass(frozen=True)
class Example:
    """One command or script, as the README shows it.

    Attributes:
        kind: `console`, `python` or `bash`.
        command: what is run.
        output: what the README says that it prints; "" for scripts.
        exit: the exit code that belongs to it.
    """

    kind: str
    command: str
    output: str
    exit: int


def examples(text: str) -> Iterator[Example]:
    """All examples of a README from top to bottom."""
    for block in _BLOCK.finditer(text):
        if block["kind"] != "console":
            yield Example(block["kind"], block["text"], "", int(block["exit"] or 0))
            continue
        parts = re.split(r"^\$ ", block["text"], flags=re.M)[1:]
        for part in parts:
            lines = part.splitlines()
            command = [lines.pop(0)]
            while command[-1].endswith("\\"):
                command.append(lines.pop(0))
            code = int(block["exit"] or 0) if part is parts[-1] else 0
            yield Example("console", "\n".join(command), "\n".join(lines).rstrip(), code)


def run(example: Example, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run an example in `folder`; stdout holds what a terminal would show."""
    bin_dir = os.path.dirname(sys.executable)
    env = {**os.environ, "PATH": os.pathsep.join([bin_dir, os.environ["PATH"]])}
    shell = [sys.executable, "-c"] if example.kind == "python" else ["bash", "-c"]
    return subprocess.run(
        [*shell, example.command],
        cwd=folder,
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=300,
        check=False,
    )


def commands() -> str:
    """The table of commands: every one with the line that `--help` says about it."""
    import click

    from polytool.cli import FileGroup, cli

    rows = ["| command | what it does |", "|---|---|"]

    def add(group: FileGroup, prefix: str) -> None:
        ctx = click.Context(group)
        for name in group.list_commands(ctx):
            command = group.get_command(ctx, name)
            if isinstance(command, FileGroup):
                add(command, f"{prefix}{name} ")
            else:
                rows.append(f"| `{prefix}{name}` | {group.summary(name)} |")

    add(cli, "")
    return "\n".join(rows) + "\n"


def with_commands(text: str) -> str:
    """The README with its table of commands as it should be."""
    return re.sub(
        r"^\| command \| what it does \|\n(\|.*\n)+", lambda _: commands(), text, flags=re.M
    )


def looks_like(printed: str, shown: str) -> bool:
    """Whether the output that a README shows is that of a command, numbers aside."""
    lines = (
        r"(?:.*\n)*?" if line == "..." else re.escape(line) + "\n"
        for line in _shape(shown).splitlines()
    )
    return re.fullmatch("".join(lines), _shape(printed) + "\n") is not None


def _shape(text: str) -> str:
    """Output without what changes from run to run: numbers, widths, units of time and size."""
    text = re.sub(r"[-+]?\d+(\.\d+)?(e[-+]?\d+)?", "0", text)
    text = re.sub(r"0 ?(us|µs|ms|s|min|B|KB|MB|GB|KiB|MiB|GiB)\b", "0 U", text)
    lines = (" ".join(line.split()) for line in text.splitlines())
    return "\n".join(re.sub(r"(-+ ?)+$", "-", line) for line in lines if line)


def main() -> int:
    import shutil

    from fetch_models import fetch
    from models import get

    models = {file: get(name) for file, name in MODELS.items()}
    fetch(models.values())
    text = with_commands(README.read_text(encoding="utf-8"))
    with tempfile.TemporaryDirectory() as folder:
        for file, model in models.items():
            shutil.copy(model.path, Path(folder) / file)
        for example in examples(text):
            if example.kind == "bash":
                continue
            done = run(example, Path(folder))
            if done.returncode != example.exit:
                print(f"{example.command}\n{done.stdout}exit code {done.returncode}")
                return 1
            if example.kind == "console" and not looks_like(done.stdout, example.output):
                shown = f"$ {example.command}\n{example.output}".rstrip()
                assert shown in text, example.command
                text = text.replace(shown, f"$ {example.command}\n{done.stdout.rstrip()}", 1)
                print(f"updated: {example.command}")
    README.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
