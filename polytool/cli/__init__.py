"""The `polytool` command: a tree of files, of which only the one that is called gets imported.

`cli/run.py` is `polytool run`, `cli/inspect/model.py` is `polytool inspect model`. Such a file
defines a command of its own name (`run`, `model`; `-` in a command is `_` in the file) with
`@options.command()`. The first line of its docstring is what `polytool --help` says about it; a
package's, what it says about the group. A command returns its exit code, None being 0.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

import polytool

# In the order in which people need them; whatever is not listed follows, by name.
_ORDER = ("run", "convert", "bench", "inspect", "check", "surgeon", "debug", "data", "template")
_NOT_COMMANDS = ("options", "output", "values")


class FileGroup(click.Group):
    """A group whose commands are the files of a package."""

    def __init__(self, package: str, **attrs: Any) -> None:
        super().__init__(**attrs)
        self.package = package

    def list_commands(self, ctx: click.Context) -> list[str]:
        names = list(self._files())
        return sorted(names, key=lambda x: (_ORDER.index(x) if x in _ORDER else len(_ORDER), x))

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        path = self._files().get(cmd_name)
        if path is None:
            return None
        name = cmd_name.replace("-", "_")
        module = f"{self.package}.{name}"
        if path.name == "__init__.py":
            return FileGroup(module, name=cmd_name, help=_summary(path), no_args_is_help=True)
        command: click.Command = getattr(importlib.import_module(module), name)
        command.name = cmd_name
        return command

    def summary(self, name: str) -> str:
        """What the help of the group says about a command."""
        return _summary(self._files()[name])

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        rows = [(name, self.summary(name)) for name in self.list_commands(ctx)]
        with formatter.section("Commands"):
            formatter.write_dl(rows)

    def _files(self) -> dict[str, Path]:
        """Command name to the file that defines it."""
        folder = Path(__file__).parent.joinpath(*self.package.split(".")[2:])
        found = {}
        for entry in os.scandir(folder):
            stem = entry.name.removesuffix(".py")
            if stem.startswith(("_", ".")) or stem in _NOT_COMMANDS:
                continue
            path = Path(entry.path)
            if entry.is_dir():
                path /= "__init__.py"
            if path.suffix == ".py" and path.is_file():
                found[stem.replace("_", "-")] = path
        return found


def _summary(path: Path) -> str:
    """The first line of a file's docstring, read without importing it."""
    with path.open(encoding="utf-8") as file:
        return file.readline().strip().strip('"')


@click.version_option(polytool.__version__, prog_name="polytool")
@click.pass_context
def _settings(ctx: click.Context) -> None:
    if os.environ.get("NO_COLOR"):
        ctx.color = False


cli = FileGroup(
    "polytool.cli",
    name="polytool",
    callback=_settings,
    help="Why does my optimised engine give other numbers than my ONNX model, and what now?",
    params=getattr(_settings, "__click_params__", []),
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    no_args_is_help=True,
)


def main(args: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code.

    0: done, or everything compared and agreed. 1: the answer is no. 2: no answer (wrong use,
    unusable input, a runner failed). 3: a defect of polytool. 130: interrupted.
    """
    try:
        code = cli.main(args, prog_name="polytool", standalone_mode=False)
        sys.stdout.flush()
    except click.exceptions.Exit as err:
        return err.exit_code
    except click.ClickException as err:
        err.show()
        return 2
    except (click.Abort, KeyboardInterrupt):
        click.echo("polytool: interrupted", err=True)
        return 130
    except BrokenPipeError:  # the reader of a pipe has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except Exception as err:
        from polytool.cli.output import report_failure

        return report_failure(err)
    return code if isinstance(code, int) else 0
