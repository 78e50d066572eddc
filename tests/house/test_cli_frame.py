"""The frame that every command stands on: discovery, exit codes, shared options."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from pathlib import Path
from typing import Any

import click
import pytest

from polytool import cli
from polytool.cli import FileGroup, options, output
from polytool.errors import PolytoolError, UsageError

HEAVY = ("numpy", "onnx", "ml_dtypes", "onnxruntime", "tabulate", "json", "logging", "subprocess")


def commands() -> list[tuple[str, FileGroup, str]]:
    """Every command: (full name, its group, its name there)."""
    found = []
    pending: list[tuple[str, FileGroup]] = [("polytool", cli.cli)]
    while pending:
        prefix, group = pending.pop()
        ctx = click.Context(group)
        for name in group.list_commands(ctx):
            command = group.get_command(ctx, name)
            if isinstance(command, FileGroup):
                pending.append((f"{prefix} {name}", command))
            else:
                found.append((f"{prefix} {name}", group, name))
    return sorted(found, key=lambda x: x[0])


@pytest.fixture
def fails(monkeypatch: pytest.MonkeyPatch) -> Any:
    """`fails(error)` makes `polytool env` raise `error`."""

    def install(error: BaseException) -> None:
        def broken() -> None:
            raise error

        monkeypatch.setattr("polytool.environment.environment", broken)

    return install


@pytest.fixture(autouse=True)
def _quiet_logger() -> Any:
    yield
    logging.getLogger("polytool").handlers.clear()


@pytest.mark.parametrize(("full", "group", "name"), commands(), ids=[c[0] for c in commands()])
def test_every_command_has_help_with_an_example(full: str, group: FileGroup, name: str) -> None:
    ctx = click.Context(group)
    command = group.get_command(ctx, name)
    assert isinstance(command, options.Command), "decorate it with @options.command()"
    summary = group.summary(name)
    assert summary.endswith(".")
    assert len(summary) <= 90
    with click.Context(command, info_name=full) as ctx:
        text = " ".join(command.get_help(ctx).split())
    assert f"{full} " in text.split("Usage:")[1].split("]", 1)[1], "show an example in the help"
    undescribed = [
        p.name for p in command.params if isinstance(p, click.Option) and not (p.help or p.hidden)
    ]
    assert not undescribed


def test_help_imports_nothing_heavy() -> None:
    code = "import sys; from polytool.cli import main; main(['--help']); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    help_text, modules = done.stdout.rsplit("\n", 2)[:2]
    assert "Commands:" in help_text
    loaded = set(modules.split())
    assert loaded.isdisjoint(HEAVY)
    assert {m for m in loaded if m.startswith("polytool")} == {"polytool", "polytool.cli"}


def test_module_and_script_are_the_same_command() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "polytool", "--version"], capture_output=True, text=True, check=True
    )
    assert done.stdout.startswith("polytool, version ")


def test_env_prints_one_json_object(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["env", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["versions"]["onnx"]
    assert {"native", "onnxrt", "oracle"} <= set(found["runners"])


def test_known_error_is_one_sentence_and_exit_code_2(
    fails: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    fails(PolytoolError("the model is upside down: turn it"))
    assert cli.main(["env"]) == 2
    out, err = capsys.readouterr()
    assert (out, err) == ("", "polytool: the model is upside down: turn it\n")


def test_verbose_shows_the_traceback(fails: Any, capsys: pytest.CaptureFixture[str]) -> None:
    fails(PolytoolError("the model is upside down: turn it"))
    assert cli.main(["env", "-v"]) == 2
    assert "Traceback" in capsys.readouterr().err


def test_defect_is_exit_code_3_and_says_what_to_report(
    fails: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    fails(ZeroDivisionError("division by zero"))
    assert cli.main(["env"]) == 3
    err = capsys.readouterr().err
    assert "Traceback" in err
    assert "defect of polytool (ZeroDivisionError)" in err
    assert "onnx " in err


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (KeyboardInterrupt(), 130, "interrupted"),
        (MemoryError(), 2, "not enough memory"),
        (
            PermissionError(13, "Permission denied", "/some/file"),
            2,
            "/some/file: Permission denied",
        ),
    ],
)
def test_other_ends(
    error: BaseException, code: int, said: str, fails: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    fails(error)
    assert cli.main(["env"]) == code
    err = capsys.readouterr().err
    assert said in err
    assert "Traceback" not in err


@pytest.mark.parametrize("args", [["no-such-command"], ["env", "--no-such-option"], ["env", "x"]])
def test_wrong_use_is_exit_code_2(args: list[str]) -> None:
    assert cli.main(args) == 2


def test_closed_pipe_is_quiet() -> None:
    code = "import sys; from polytool.cli import main; sys.exit(main(['env', '--json']))"
    command = f'{sys.executable} -c "{code}" | true; exit ${{PIPESTATUS[0]}}'
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
    assert done.stderr == ""
    assert done.returncode == 141


def test_log_file_gets_everything_while_quiet(tmp_path: Path, capsys: Any) -> None:
    path = tmp_path / "log"
    options._configure_logging({"quiet": True, "log_file": str(path)})
    output.note("chose zeros for 'h'")
    logging.getLogger("polytool.x").debug("detail")
    logging.getLogger("polytool").handlers[1].flush()
    assert capsys.readouterr().err == ""
    assert [line.split(" ", 4)[4] for line in path.read_text().splitlines()] == [
        "chose zeros for 'h'",
        "detail",
    ]


@options.command()
@options.model
@options.option("--rtol", several=True)
@options.option("--fp16", is_flag=True)
@options.feeds
def probe(**values: Any) -> None:
    """For the tests below.

    \b
    Example: polytool probe m.onnx
    """
    seen.append(values)


seen: list[dict[str, Any]] = []


def parse(*args: str) -> dict[str, Any]:
    probe.main(list(args), standalone_mode=False)
    return seen.pop()


@pytest.mark.parametrize(
    "args",
    [
        ("m.onnx", "--rtol", "1e-3", "a:1e-2", "--fp16"),
        ("m.onnx", "--rtol", "1e-3", "--rtol", "a:1e-2", "--fp16"),
        ("--fp16", "--rtol", "1e-3", "a:1e-2", "m.onnx"),
        ("--rtol", "1e-3", "a:1e-2", "--fp16", "m.onnx"),
        ("--rtol=1e-3", "m.onnx", "--rtol", "a:1e-2", "--fp16", "-v"),
        ("--fp16", "--rtol", "1e-3", "a:1e-2", "--", "m.onnx"),
    ],
)
def test_options_take_several_values(args: tuple[str, ...]) -> None:
    values = parse(*args)
    assert values["model"] == "m.onnx"
    assert values["rtol"] == ("1e-3", "a:1e-2")
    assert values["fp16"] is True


def test_feed_options_come_as_one_object() -> None:
    args = ["--input-shapes", "a:0:[1,3]", "b:2x4", "c:[]", "--val-range", "[0,1]", "a:0:[-1,2]"]
    feeds = parse("m.onnx", *args)["feeds"]
    assert feeds.input_shapes == {"a:0": (1, 3), "b": (2, 4), "c": ()}
    assert feeds.val_range == {"": (0.0, 1.0), "a:0": (-1.0, 2.0)}
    assert (feeds.seed, feeds.iterations, feeds.load_inputs) == (0, None, ())


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["--input-shapes", "x:[1,a]"], "--input-shapes"),
        (["--input-shapes", "[1,2]"], "names no tensor"),
        (["--input-shapes", "x:1x2", "x:1x3"], "second value"),
        (["--val-range", "[2,1]"], "range such as [0,1]"),
    ],
)
def test_bad_values_name_the_option(args: list[str], said: str) -> None:
    with pytest.raises(click.BadParameter) as caught:
        parse("m.onnx", *args)
    assert said in caught.value.format_message()


@pytest.mark.parametrize(
    ("text", "size"), [("4096", 4096), ("2K", 2048), ("1.5G", 3 << 29), ("1GiB", 1 << 30)]
)
def test_sizes(text: str, size: int) -> None:
    assert options.parse_size(text) == size


@pytest.mark.parametrize("text", ["", "1X", "-1", "G", "1 2"])
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(ValueError):
        options.parse_size(text)


def test_json_has_no_nan_and_knows_arrays() -> None:
    import numpy as np

    value = {"a": np.float32(0.5), "b": [np.nan, np.int64(3)], "c": np.ones(2, bool), 4: Path("x")}
    assert output.to_json(value) == {"a": 0.5, "b": [None, 3], "c": [True, True], "4": "x"}


def test_a_usage_error_of_the_library_is_no_answer(fails: Any) -> None:
    fails(UsageError("no"))
    assert cli.main(["env"]) == 2
