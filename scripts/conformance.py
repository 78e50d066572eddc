"""Run the ONNX conformance suite on any runner.

    python scripts/conformance.py                                # the native engine, all cases
    python scripts/conformance.py --runner onnxrt --kind node --filter '^test_cast'
    python scripts/conformance.py --runner reference --json
    python scripts/conformance.py --device cuda --jobs 8 --save results.jsonl
    python scripts/conformance.py --device cuda --precision fp16 --against-cpu

The suite is `onnx.backend.test` of the installed onnx package: node cases are generated in memory,
the others lie in the package. Prints passes by kind and each failing case with its reason; exits
with 1 if one fails. `reference` is onnx's own ReferenceEvaluator.
"""

from __future__ import annotations

import argparse
import json
import logging
import multiprocessing.connection
import re
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

import polytool
from polytool.backends.base import Feeds, Outputs, Runner

_PATIENCE = 60  # seconds for a case
KINDS = ("node", "simple", "pytorch-operator", "pytorch-converted", "real")
DataSet = tuple[Sequence[Any], Sequence[Any]]
MakeRunner = Callable[[onnx.ModelProto], Runner]


@dataclass(frozen=True)
class Case:
    """One conformance case.

    Attributes:
        load: reads model and data sets; each data set is a list of inputs and one of outputs.
    """

    name: str
    kind: str
    rtol: float
    atol: float
    load: Callable[[], tuple[onnx.ModelProto, list[DataSet]]]


@dataclass(frozen=True)
class Result:
    """What a case did: `reason` is None where it passed.

    Attributes:
        on_host: layers that left the GPU, and why.
    """

    name: str
    kind: str
    reason: str | None
    on_host: dict[str, str] = field(default_factory=dict)


def cases(kinds: Iterable[str] = KINDS) -> list[Case]:
    """All cases of these kinds, by kind and name."""
    return [case for kind in kinds for case in _cases(kind)]


@cache
def _cases(kind: str) -> tuple[Case, ...]:
    from onnx.backend.test.loader import load_model_tests

    with warnings.catch_warnings():  # generating the data overflows on purpose
        warnings.simplefilter("ignore")
        tests = load_model_tests(kind=kind)
    return tuple(_case(kind, test) for test in sorted(tests, key=lambda t: t.name))


def _case(kind: str, test: Any) -> Case:
    if test.model is not None:
        data = [tuple([_value(v) for v in values] for values in pair) for pair in test.data_sets]
        return Case(test.name, kind, test.rtol, test.atol, lambda: (test.model, data))
    if test.model_dir is not None:
        folder = Path(test.model_dir)
        return Case(test.name, kind, test.rtol, test.atol, lambda: _from_folder(folder))
    package = Path(onnx.__file__).parent.parent
    return Case(test.name, kind, test.rtol, test.atol, lambda: _light(package / test.url))


def _value(value: Any) -> Any:
    if isinstance(value, onnx.TensorProto):
        return numpy_helper.to_array(value)
    if isinstance(value, onnx.SequenceProto):
        return numpy_helper.to_list(value)
    if isinstance(value, onnx.OptionalProto):
        return numpy_helper.to_optional(value)
    return value


def _from_folder(folder: Path) -> tuple[onnx.ModelProto, list[DataSet]]:
    model = onnx.load(folder / "model.onnx")

    def read(data_set: Path, prefix: str, infos: Sequence[onnx.ValueInfoProto]) -> list[Any]:
        files = sorted(data_set.glob(f"{prefix}_*.pb"), key=lambda p: int(p.stem.split("_")[-1]))
        return [_parse(f.read_bytes(), info.type) for f, info in zip(files, infos, strict=False)]

    sets = [
        (read(s, "input", model.graph.input), read(s, "output", model.graph.output))
        for s in sorted(folder.glob("test_data_set_*"))
    ]
    return model, sets


def _parse(content: bytes, type_: onnx.TypeProto) -> Any:
    if type_.HasField("sequence_type"):
        return numpy_helper.to_list(onnx.SequenceProto.FromString(content))
    if type_.HasField("optional_type"):
        return numpy_helper.to_optional(onnx.OptionalProto.FromString(content))
    return numpy_helper.to_array(onnx.TensorProto.FromString(content))


def _light(path: Path) -> tuple[onnx.ModelProto, list[DataSet]]:
    """A CNN with its weights as functions of shapes; one ramp as input, its output stored."""
    model = onnx.load(path)
    weights = {i.name for i in model.graph.initializer}
    inputs = []
    for info in model.graph.input:
        if info.name not in weights:
            dims = [max(1, d.dim_value) for d in info.type.tensor_type.shape.dim]
            size = int(np.prod(dims))
            inputs.append((np.arange(size).reshape(dims) / size).astype(np.float32))
    outputs = []
    for i in range(len(model.graph.output)):
        stored = path.with_name(f"{path.stem}_output_{i}.pb").read_bytes()
        outputs.append(numpy_helper.to_array(onnx.TensorProto.FromString(stored)))
    return model, [(inputs, outputs)]


def against_cpu(case: Case, precision: str) -> Case:
    """The same model and inputs; what is expected is what the native engine's CPU gives."""

    def load() -> tuple[onnx.ModelProto, list[DataSet]]:
        model, sets = case.load()
        weights = {i.name for i in model.graph.initializer}
        names = [i.name for i in model.graph.input if i.name not in weights]
        found: list[DataSet] = []
        with polytool.NativeRunner(model, device="cpu", precision=precision) as runner:
            for inputs, _ in sets:
                got = runner.infer(dict(zip(names, inputs, strict=False)))
                found.append((inputs, [got[o.name] for o in model.graph.output]))
        return model, found

    tolerance = {"fp16": 2e-2, "bf16": 1e-1}.get(precision, 1e-3)
    return Case(case.name, case.kind, tolerance, tolerance, load)


class Reference(Runner):
    """onnx's reference evaluator as a runner."""

    name = "reference"

    def __init__(self, model: onnx.ModelProto) -> None:
        from onnx.reference import ReferenceEvaluator

        self._evaluator = ReferenceEvaluator(model)

    def infer(self, feeds: Feeds) -> Outputs:
        return dict(
            zip(self._evaluator.output_names, self._evaluator.run(None, dict(feeds)), strict=True)
        )

    def last_inference_time(self) -> float:
        return 0.0


def maker(name: str, options: dict[str, Any]) -> MakeRunner:
    """How to make the runner called `name` for a model."""
    if name == "reference":
        return Reference
    if name == "onnxrt" and "device" in options:
        options = {"providers": [options["device"]]}
    return lambda model: polytool.runner(name, model, **options)


def run(case: Case, make: MakeRunner) -> Result:
    """Run every data set of one case."""
    on_host: dict[str, str] = {}
    try:
        model, data_sets = case.load()
        initializers = {i.name for i in model.graph.initializer}
        names = [i.name for i in model.graph.input if i.name not in initializers]
        with make(model) as runner:
            for inputs, expected in data_sets:
                given = names if len(names) == len(inputs) else [i.name for i in model.graph.input]
                got = runner.infer(dict(zip(given, inputs, strict=False)))
                for name, want in zip((o.name for o in model.graph.output), expected, strict=True):
                    compare(name, got[name], want, case.rtol, case.atol)
                if isinstance(runner, polytool.NativeRunner) and runner.context is not None:
                    on_host |= runner.context.on_host
    except Exception as err:
        text = str(err).strip().splitlines()
        reason = f"{type(err).__name__}: {text[0] if text else ''}"
        return Result(case.name, case.kind, reason, on_host)
    return Result(case.name, case.kind, None, on_host)


def compare(name: str, got: Any, want: Any, rtol: float, atol: float) -> None:
    """Check one output as the suite does, only stricter: a missing element is a difference.

    Raises:
        AssertionError: they differ; the message says where and how far.
    """
    if want is None or got is None:
        assert got is want, f"output {name!r} is {_shown(got)} instead of {_shown(want)}"
        return
    if isinstance(want, (list, tuple)):
        assert isinstance(got, (list, tuple)), f"output {name!r} is no sequence"
        assert len(got) == len(want), f"output {name!r} has {len(got)} elements, not {len(want)}"
        for i, (g, w) in enumerate(zip(got, want, strict=True)):
            compare(f"{name}[{i}]", g, w, rtol, atol)
        return
    if isinstance(want, dict):
        assert got == want, f"output {name!r} is {got} instead of {want}"
        return
    got, want = np.asarray(got), np.asarray(want)
    assert got.shape == want.shape, f"output {name!r} has shape {got.shape}, not {want.shape}"
    if want.dtype.kind in "OUS":
        wrong = np.argwhere(got.astype(str) != want.astype(str))
        assert not len(wrong), f"output {name!r} differs in {len(wrong)} strings: {got.tolist()!r}"
        return
    assert got.dtype == want.dtype, f"output {name!r} is {got.dtype}, not {want.dtype}"
    if want.dtype.name == "bfloat16":
        rtol = max(rtol, 2**-6)
    _close(name, got, want, rtol, atol)


def _close(name: str, got: Any, want: Any, rtol: float, atol: float) -> None:
    if want.dtype.kind not in "fciub" or want.dtype.name.startswith(("float8", "float4")):
        got, want = got.astype(np.float32), want.astype(np.float32)
    with np.errstate(all="ignore"):
        wrong = ~np.isclose(got, want, rtol=rtol, atol=atol, equal_nan=True)
    if wrong.any():
        place = tuple(int(i) for i in np.argwhere(wrong)[0])
        raise AssertionError(
            f"output {name!r} differs in {int(wrong.sum())} of {want.size} elements, "
            f"first at {place}: {got[place]} instead of {want[place]}"
        )


def _shown(value: Any) -> str:
    return "nothing" if value is None else type(value).__name__


def run_all(chosen: Sequence[Case], make: MakeRunner) -> Iterator[Result]:
    """The result of each case, with a line of progress where a person watches."""
    for i, case in enumerate(chosen):
        if sys.stderr.isatty():
            print(f"\r{i + 1}/{len(chosen)} {case.name:<70.70}", end="", file=sys.stderr)
        yield run(case, make)
    if sys.stderr.isatty():
        print("\r" + " " * 90 + "\r", end="", file=sys.stderr)


def run_apart(chosen: Sequence[Case], make: MakeRunner, jobs: int) -> Iterator[Result]:
    """The same in forked processes, so that a case that ends its process, or its GPU context,
    ends nothing else. Results come as they are ready."""
    fork, todo = multiprocessing.get_context("fork"), list(chosen)[::-1]
    workers: dict[Any, tuple[Any, Case, float]] = {}  # pipe -> process, its case, its start

    def work(pipe: Any) -> None:
        for index in iter(pipe.recv, None):
            pipe.send(run(chosen[index], make))

    def hand_out(pipe: Any = None, process: Any = None) -> None:
        if not todo:
            if pipe is not None:
                pipe.send(None)
            return
        case = todo.pop()
        if pipe is None:
            pipe, end = fork.Pipe()
            process = fork.Process(target=work, args=(end,), daemon=True)
            process.start()
            end.close()
        pipe.send(chosen.index(case))
        workers[pipe] = process, case, time.monotonic()

    for _ in range(jobs):
        hand_out()
    while workers:
        for pipe in multiprocessing.connection.wait(list(workers), timeout=1):
            process, case, _ = workers.pop(pipe)
            try:
                result = pipe.recv()
            except EOFError:
                result = Result(case.name, case.kind, "the process died")
            ended = result.reason is not None and "CUDA driver" in result.reason
            if ended or not process.is_alive():
                process.kill()
                hand_out()
            else:
                hand_out(pipe, process)
            yield result
        for pipe, (process, case, start) in list(workers.items()):
            if time.monotonic() - start > _PATIENCE:
                workers.pop(pipe)
                process.kill()
                hand_out()
                yield Result(case.name, case.kind, f"no answer in {_PATIENCE} s")


def saved(results: Iterable[Result], path: Path | None) -> list[Result]:
    """All results, each written to `path` when it is there."""
    if path is None:
        return list(results)
    kept = []
    with path.open("w") as file:
        for result in results:
            kept.append(result)
            file.write(json.dumps(asdict(result)) + "\n")
            file.flush()
    return kept


def fallbacks(results: Sequence[Result]) -> str:
    """Which cases needed the host, by reason."""
    reasons: dict[str, list[str]] = {}
    for result in results:
        for reason in set(result.on_host.values()):
            reasons.setdefault(reason, []).append(result.name)
    count = sum(bool(r.on_host) for r in results)
    lines = [f"{count} cases by host fallback"]
    for reason, names in sorted(reasons.items(), key=lambda item: -len(item[1])):
        lines.append(f"  {len(names)} x {reason}: {', '.join(sorted(names))}")
    return "\n".join(lines)


def report(results: Sequence[Result], seconds: float) -> str:
    """Passes by kind, then the failures."""
    lines = []
    for kind in (*KINDS, None):
        of_kind = [r for r in results if kind is None or r.kind == kind]
        if of_kind:
            passed = sum(r.reason is None for r in of_kind)
            lines.append(f"{kind or 'total':<18} {passed:>5} of {len(of_kind):>5} pass")
    lines += [f"  {r.name} ({r.kind}): {r.reason}" for r in results if r.reason is not None]
    return "\n".join([*lines, f"{seconds:.1f} s"])


def main(argv: Sequence[str] | None = None) -> int:
    """Parse the command line, run, print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--runner", default="native", help="native, onnxrt, reference, ...")
    parser.add_argument("--filter", default="", help="regular expression that names must contain")
    parser.add_argument("--kind", action="append", choices=KINDS, help="default: all")
    parser.add_argument("--device", help="cpu or cuda")
    parser.add_argument("--precision", help="of the native engine")
    parser.add_argument("--no-optimize", action="store_true", help="run nodes one by one")
    parser.add_argument("--against-cpu", action="store_true", help="compare with the CPU engine")
    parser.add_argument("--every", type=int, default=1, help="only each so-manieth case")
    parser.add_argument("--jobs", type=int, help="run in so many processes")
    parser.add_argument("--save", type=Path, help="write a JSON line a case, as it is done")
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    args = parser.parse_args(argv)
    options = {k: v for k in ("device", "precision") if (v := getattr(args, k)) is not None}
    if args.no_optimize:
        options["optimize"] = False
    pattern = re.compile(args.filter)
    chosen = [c for c in cases(args.kind or KINDS) if pattern.search(c.name)][:: args.every]
    if args.against_cpu:
        chosen = [against_cpu(c, args.precision or "fp32") for c in chosen]
    start = time.perf_counter()
    logging.getLogger("polytool").setLevel(logging.ERROR)  # what runs on the host is listed below
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        make = maker(args.runner, options)
        done = run_apart(chosen, make, args.jobs) if args.jobs else run_all(chosen, make)
        results = saved(done, args.save)
    seconds = time.perf_counter() - start
    if args.json:
        failed = {r.name: r.reason for r in results if r.reason is not None}
        on_host = {r.name: r.on_host for r in results if r.on_host}
        summary = {"cases": len(results), "failed": failed, "on_host": on_host}
        print(json.dumps({**summary, "seconds": round(seconds, 1)}))
    else:
        print(report(results, seconds))
        if args.device == "cuda" and args.runner == "native":
            print(fallbacks(results))
    return 1 if any(r.reason is not None for r in results) else 0


if __name__ == "__main__":
    sys.exit(main())
