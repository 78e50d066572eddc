"""`polytool bench` through the real command: what it measures, prints, writes and refuses."""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest
from onnx.numpy_helper import from_array
from onnx.parser import parse_model

import polytool
from polytool.bench_text import describe
from polytool.errors import RunnerError, UsageError
from polytool.stopwatch import Stopwatch
from polytool.timings import Benchmark, Timing, Turn, percentile

MODEL = (
    '<ir_version: 9, opset_import: ["": 18]> agraph (float[batch,8] x) => (float[batch,8] y) '
    "{ a = MatMul(x, w) b = Relu(a) y = Softmax(b) }"
)
FAST = ["--duration", "0", "--iterations", "4", "--warmUp", "0"]


@pytest.fixture(autouse=True)
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.chdir(tmp_path)
    proto = parse_model(MODEL)
    proto.graph.node[0].name, proto.graph.node[2].name = "product", "last"
    weight = np.random.default_rng(0).standard_normal((8, 8)).astype(np.float32)
    proto.graph.initializer.append(from_array(weight, "w"))
    Path("m.onnx").write_bytes(proto.SerializeToString())
    return "m.onnx"


def bench(*args: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "polytool", "bench", *args]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


def refused(*args: str) -> str:
    done = bench(*args)
    assert done.returncode == 2, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
    return done.stderr.splitlines()[-1]


@pytest.mark.ort
def test_runners_side_by_side_with_every_file() -> None:
    files = ["--exportProfile", "p.json", "--exportTimes", "t.json", "--export-timeline", "l.json"]
    done = bench("--onnx=m.onnx", "--native", "--onnxrt", *FAST, *files, "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    native, onnxrt = found["runners"]
    assert (native["name"], onnxrt["name"]) == ("native", "onnxrt")
    for runner in found["runners"]:
        latency = runner["latency"]
        assert 0 < latency["min"] <= latency["median"] <= latency["p99"] <= latency["max"]
        assert runner["iterations"] >= 4
        assert runner["memory"]["host_peak"] > runner["memory"]["host_model"]
        assert runner["build_seconds"] > 0 and runner["first_seconds"] > 0
    (ratio,) = found["ratios"]
    assert (ratio["runner"], ratio["reference"]) == ("onnxrt", "native")
    assert ratio["low"] <= ratio["ratio"] <= ratio["high"]
    assert found["inputs"] == {"x": "float32[1, 8]"}
    _check_times(json.loads(Path("t.json").read_text()), found)
    _check_profile(json.loads(Path("p.json").read_text()), native)
    _check_timeline(json.loads(Path("l.json").read_text()), found)


def _check_times(rows: list[dict[str, Any]], found: dict[str, Any]) -> None:
    for runner in found["runners"]:
        own = [r for r in rows if r["runner"] == runner["name"]]
        assert len(own) == runner["iterations"]
        assert min(r["latencyMs"] for r in own) == pytest.approx(1e3 * runner["latency"]["min"])
    spans = sorted((r["startMs"], r["endMs"]) for r in rows)
    assert all(end <= start for (_, end), (start, _) in itertools.pairwise(spans))


def _check_profile(rows: list[dict[str, Any]], native: dict[str, Any]) -> None:
    heads = [r for r in rows if "count" in r]
    assert [r["runner"] for r in heads] == ["native", "onnxrt"]
    for head in heads:
        layers = [r for r in rows if r["runner"] == head["runner"] and "name" in r]
        assert sum(r["percentage"] for r in layers) == pytest.approx(100)
        assert {"product", "last"} <= {n for r in layers for n in r["nodes"]}
    assert [layer["layer"] for layer in native["profile"]] == [
        r["name"] for r in rows if r["runner"] == "native" and "name" in r
    ]


def _check_timeline(timeline: dict[str, Any], found: dict[str, Any]) -> None:
    events = timeline["traceEvents"]
    names = {e["pid"]: e["args"]["name"] for e in events if e["name"] == "process_name"}
    assert list(names.values()) == ["native", "onnxrt"]
    spans = [e for e in events if e["ph"] == "X"]
    assert all(e["ts"] >= 0 and e["dur"] > 0 for e in spans)
    for process, runner in zip(names, found["runners"], strict=True):
        inferences = [e for e in spans if e["pid"] == process and "inference" in e["name"]]
        layers = [e for e in spans if e["pid"] == process and "inference" not in e["name"]]
        assert len(inferences) == runner["iterations"]
        assert any(e["args"]["nodes"] for e in layers)
        assert min(e["ts"] for e in layers) > max(e["ts"] for e in inferences)


def test_one_runner_with_layers_as_text() -> None:
    done = bench("m.onnx", *FAST, "--dumpProfile", "--batch", "3", "--percentile=50,99.9")
    assert done.returncode == 0, done.stderr
    assert "float32[3, 8]" in done.stderr
    assert done.stdout.startswith("native  ")
    assert "p50" in done.stdout and "p99.9" in done.stdout and "items/s" in done.stdout
    assert "last" in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 110


def test_a_batch_may_be_said_twice() -> None:
    done = bench("m.onnx", *FAST, "--batch", "4", "--input-shapes", "x:[4,8]", "--json")
    (runner,) = json.loads(done.stdout)["runners"]
    assert runner["items_per_second"] == pytest.approx(4 * runner["throughput"])


def test_an_engine_is_saved_and_loaded_by_trtexecs_names() -> None:
    assert bench("--onnx=m.onnx", "--saveEngine=m.engine", "--fp16", *FAST).returncode == 0
    done = bench("--loadEngine=m.engine", "--shapes=x:2x8", *FAST, "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["runners"][0]["settings"]["precision"] == "fp16"
    assert found["inputs"] == {"x": "float32[2, 8]"}


def test_runners_take_turns_and_never_run_at_the_same_time(tmp_path: Path) -> None:
    for name, seconds in (("slow", 0.02), ("fast", 0.002)):
        Path(f"{name}.py").write_text(
            "import time\n"
            "def make_runner(model):\n"
            "    def infer(feeds):\n"
            "        start = time.perf_counter()\n"
            f"        time.sleep({seconds})\n"
            f"        with open('log', 'a') as log:\n"
            f"            print('{name}', start, time.perf_counter(), file=log)\n"
            "        print('noise on stdout')\n"
            "        return {'y': feeds['x']}\n"
            "    return infer\n"
        )
    scripts = ["slow.py:make_runner", "fast.py:make_runner"]
    done = bench("m.onnx", "--runner", *scripts, *FAST, "--json")
    assert done.returncode == 0, done.stderr
    slow, fast = json.loads(done.stdout)["runners"]
    assert slow["latency"]["min"] >= 0.02 and fast["latency"]["min"] >= 0.002
    rows = [line.split() for line in Path("log").read_text().splitlines()]
    assert all(float(a[2]) <= float(b[1]) for a, b in itertools.pairwise(rows))
    changes = sum(a[0] != b[0] for a, b in itertools.pairwise(rows))
    assert changes >= 5, "one ran to its end before the other began"


@pytest.mark.parametrize(
    ("args", "parts"),
    [
        (["none.onnx"], ["none.onnx", "does not exist"]),
        (["m.onnx", "--onnx", "m.onnx"], ["both name the model"]),
        ([], ["Missing argument 'MODEL'"]),
        (["m.onnx", "--export-timeline", "none/t.json"], ["none/t.json", "cannot be written"]),
        (["m.onnx", "--batch", "2", "--input-shapes", "x:[1,8]"], ["--batch 2 has no effect"]),
        (["m.onnx", "--percentile", "101"], ["101 is no percentile"]),
        (["m.onnx", "--runner", "bad.py:make_runner"], ["bad.py:make_runner failed", "no luck"]),
        (["m.onnx", "--runner", "dies.py:make_runner"], ["that times dies.py", "exit code 7"]),
        (["m.onnx", "--runner", "ok.py:make_runner", "--streams", "2"], ["several inferences"]),
        (["m.onnx", "--runner", "ok.py:make_runner", "--dumpProfile"], ["how long its layers"]),
    ],
    ids=str,
)
def test_what_cannot_be_timed_is_refused_in_a_sentence(args: list[str], parts: list[str]) -> None:
    Path("bad.py").write_text("def make_runner(model):\n    raise ValueError('no luck')\n")
    Path("dies.py").write_text("import os\ndef make_runner(model):\n    os._exit(7)\n")
    Path("ok.py").write_text("def make_runner(model):\n    return lambda feeds: {'y': 1}\n")
    sentence = refused(*args, *FAST)
    assert all(part in sentence for part in parts), sentence


def test_an_option_without_effect_is_named() -> None:
    done = bench("m.onnx", *FAST, "--noDataTransfers")
    assert done.returncode == 0
    assert "--noDataTransfers has no effect on native" in done.stderr


def test_streams_run_on_contexts_of_their_own() -> None:
    x = {"x": np.ones((1, 8), np.float32)}
    with polytool.NativeRunner("m.onnx") as runner:
        watch = Stopwatch(runner, [x], streams=3)
        turn = watch.turn(0.0, 9)
        watch.close()
    assert {i.stream for i in turn.inferences} == {0, 1, 2}
    assert len(turn) == len(list(turn.inferences)) == 9


def test_a_failure_in_a_stream_is_raised() -> None:
    with polytool.NativeRunner("m.onnx") as runner:
        watch = Stopwatch(runner, [{"x": np.ones((1, 7), np.float32)}], streams=2)
        with pytest.raises(UsageError, match="dimension 1"):
            watch.turn(0.0, 4)
        watch.close()


def test_percentiles_are_values_that_were_measured() -> None:
    values = [float(v) for v in range(1, 11)]
    assert [percentile(values, p) for p in (10, 50, 90, 91, 100)] == [1, 5, 9, 10, 10]


def test_ratios_are_medians_over_turns() -> None:
    def turns(*medians: float) -> tuple[Turn, ...]:
        return tuple(Turn(((0.0,),), ((m,),), m) for m in medians)

    found = Benchmark(
        (Timing("a", turns(1.0, 2.0, 4.0)), Timing("b", turns(2.0, 3.0, 40.0))),
        inputs={},
        other_load=2.0,
    )
    (ratio,) = found.ratios
    assert (ratio.ratio, ratio.low, ratio.high) == (2.0, 1.5, 10.0)
    text = describe(found)
    assert text.splitlines()[0].endswith("2.00 x as fast as b")
    assert "2.0 processors busy" in text
    assert str(found) == click.unstyle(text)


def test_a_killed_process_is_no_defect() -> None:
    from polytool.agreement import Request
    from polytool.bench_worker import Worker

    worker = Worker(Request("m.onnx", ["native"]), streams=1, batch=None, resident=False)
    message = "killed by signal 9: there may not be enough memory"
    with pytest.raises(RunnerError, match=message), worker:
        worker._process.kill()
        worker.call("load")


@pytest.mark.skipif(sys.platform == "win32", reason="signals are POSIX's")
def test_an_interrupt_ends_all_processes() -> None:
    command = [sys.executable, "-m", "polytool", "bench", "m.onnx", "--native", "--duration", "60"]
    pid = "import os\nopen('pid', 'w').write(str(os.getpid()))\n"
    Path("slow.py").write_text(pid + "def make_runner(model):\n    return lambda feeds: {'y': 1}\n")
    bench = subprocess.Popen(
        [*command, "--runner", "slow.py:make_runner"],
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell may ignore it
    )
    for _ in range(300):
        if Path("pid").exists() and Path("pid").read_text():
            break
        time.sleep(0.1)
    bench.send_signal(signal.SIGINT)
    _, err = bench.communicate(timeout=30)
    assert bench.returncode == 130, err
    assert "interrupted" in err and "Traceback" not in err
    with pytest.raises(ProcessLookupError):
        os.kill(int(Path("pid").read_text()), 0)
