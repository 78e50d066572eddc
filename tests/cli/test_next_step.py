"""The command that `run` proposes after outputs differ: the same data, the same engine."""

from __future__ import annotations

import dataclasses
import inspect
import itertools
import json
import re
import shlex
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest
from onnx.parser import parse_model

from polytool import agreement
from polytool.backends.native.timing_cache import TimingCache
from polytool.cli import _locating, main
from polytool.cli.debug.locate import locate
from polytool.cli.run import run
from polytool.feeds import make_feeds, save_feeds

# Every option of `run` that decides the data or the engine, with a value that is not its default.
DECIDING = {
    "--input-shapes": "x:[2,4] z:[2,4]",
    "--seed": "7",
    "--val-range": "[0,900] z:[-3,3]",
    "--iterations": "3",
    "--load-inputs": "in.npz in2.npz",
    "--data-loader-script": "data.py:load_data",
    "--external-data-dir": ".",
    "--fp16": "",
    "--bf16": "",
    "--tf32": "",
    "--device": "cpu",
    "--layer-precisions": "op:Abs:fp32 op:Softmax:bf16",
    "--native-min-shapes": "x:[1,4] z:[1,4]",
    "--native-opt-shapes": "x:[2,4] z:[2,4]",
    "--native-max-shapes": "x:[4,4] z:[4,4]",
    "--builder-optimization-level": "1",
    "--tactic-sources": "-cudnn",
    "--pool-limit": "workspace:1M",
    "--allow-nondeterministic": "",
    "--no-cuda-graph": "",
    "--no-kernels": "",
    "--no-retune": "",
    "--load-timing-cache": "cache",
    "--load-tactics": "tactics",
    "--load-engine": "m.engine",
}
PROFILE = ("--native-min-shapes", "--native-opt-shapes", "--native-max-shapes")
# Options that say what is compared and how, what is written, or who else runs.
OTHERS = """native onnxrt oracle runner optimization-profile providers execution-providers
    provider-options graph-optimization-level save-timing-cache save-tactics save-tactic-replay
    load-tactic-replay save-engine save-inputs save-outputs save-results load-outputs load-results
    onnx-outputs onnx-exclude-outputs onnx-outputs-by-type warm-up check-bounds report json
    ignore-external-data verbose quiet log-file use-cuda-graph useCudaGraph loadInputs
    shapes minShapes optShapes maxShapes"""

JUDGING = "thresh|toler|tol$|compar|check|postproc|accuracy|validate|fail-fast|quantile|infinit"


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    text = (
        '<ir_version: 9, opset_import: ["": 18]> g (float[n,4] x, float[n,4] z) => (float[n,4] y) '
        "{ a = Abs(x) b = Mul(a, z) y = Softmax(b) }"
    )
    Path("m.onnx").write_bytes(parse_model(text).SerializeToString())
    feeds = list(make_feeds("m.onnx", shapes={"x": (2, 4)}, iterations=2))
    for name, feed in zip(("in.npz", "in2.npz"), feeds, strict=True):
        save_feeds([feed], name)
    Path("data.py").write_text(
        "import numpy as np\n"
        "def load_data():\n"
        "    return [dict.fromkeys('xz', np.full((2, 4), 5, np.float32))] * 2\n"
    )


def proposed(monkeypatch: pytest.MonkeyPatch, capfd: Any, *args: str) -> list[str]:
    """What `run` proposes; its outputs are made to differ."""
    from polytool.comparators import comparison

    monkeypatch.setattr(comparison.Comparison, "verdict", "differ")
    monkeypatch.setattr(comparison.Comparison, "exit_code", 1)
    assert main(["run", "m.onnx", *args]) == 1, capfd.readouterr().err
    out = capfd.readouterr().out
    found = re.search(r"^Which layer did it\?  polytool (.*)$", out, re.M)
    assert found is not None, out
    return shlex.split(found[1])


def names(command: click.Command) -> set[str]:
    found = [p for p in command.params if isinstance(p, click.Option)]
    return {name for p in found for name in (*p.opts, *p.secondary_opts)}


def test_every_option_of_run_is_accounted_for() -> None:
    judging = [n for n in names(run) if re.search(JUDGING, n)]
    others = {f"--{n}" for n in OTHERS.split()}
    rest = {n for n in names(run) if n.startswith("--")} - others - set(judging)
    assert rest == set(DECIDING), "is it repeated, or one of the others?"
    assert set(DECIDING) <= names(locate)


class Stop(Exception):
    """The proposed command was read; it need not run."""


@pytest.mark.parametrize("flag", [f for f in DECIDING if f not in PROFILE[1:]])
def test_what_decides_data_or_engine_is_repeated(
    flag: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    given = PROFILE if flag in PROFILE else (flag,)
    args = [w for f in given for w in (f, *DECIDING[f].split())]
    if flag in ("--load-engine", "--load-tactics", "--load-timing-cache"):
        save = ["--save-tactics", "tactics"]
        assert main(["convert", "m.onnx", "-o", "m.engine", *save]) == 0
        TimingCache().save("cache")
    requests: list[agreement.Request] = []
    perform = agreement.perform

    def kept(request: agreement.Request, *rest: Any) -> agreement.Session:
        requests.append(request)
        return perform(request, *rest)

    monkeypatch.setattr(agreement, "perform", kept)
    words = proposed(monkeypatch, capfd, "--oracle", "--native", *args, "--report", "r.html")
    assert words[:3] == ["debug", "locate", "m.onnx"]
    assert "--report" not in words
    calls: list[dict[str, Any]] = []
    signature = inspect.signature(_locating.run_locate)

    def record(*call: Any) -> None:
        calls.append(signature.bind(*call).arguments)
        raise Stop

    monkeypatch.setattr(_locating, "run_locate", record)
    main(words)
    (call,) = calls
    (request,) = requests
    wanted = {k: v for k, v in request.options["native"].items() if k != "optimization_profile"}
    assert (call["model"], call["against"]) == ("m.onnx", "oracle")
    assert (call["engine"], call["external_data_dir"]) == (
        request.engine,
        request.external_data_dir,
    )
    assert call["building"] == wanted
    feeds = call["feeds"]
    shapes = dict(feeds.input_shapes)
    assert dict(request.shapes).items() <= shapes.items()
    assert dataclasses.replace(feeds, input_shapes={}) == dataclasses.replace(
        feeds, input_shapes={}, seed=request.seed, val_range=request.ranges,
        iterations=request.iterations, load_inputs=request.files,
        data_loader_script=request.script,
    )  # fmt: skip


@pytest.mark.ort
def test_shapes_of_a_profile_are_said(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    args = [w for f in PROFILE for w in (f, *DECIDING[f].split())]
    words = proposed(monkeypatch, capfd, "--native", "--onnxrt", *args)
    shapes = [b for a, b in itertools.pairwise(words) if a == "--input-shapes"]
    assert shapes == ["x:[2,4]", "z:[2,4]"]
    assert words[words.index("--against") + 1] == "onnxrt"


def test_the_proposed_command_sees_the_same_inputs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    args = ["--input-shapes", "x:[2,4]", "--val-range", "[100,900]", "--seed", "3"]
    words = proposed(
        monkeypatch, capfd, "--oracle", "--native", "--fp16", *args, "--save-inputs", "run.npz"
    )
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    assert main([*words, "--save-inputs", "locate.npz", "--json"]) in (0, 1)
    assert json.loads(capfd.readouterr().out)["settings"]
    with np.load("run.npz") as ours, np.load("locate.npz") as theirs:
        for name in ours.files:
            assert np.array_equal(ours[name], theirs[name])
            assert ours[name].max() > 90
