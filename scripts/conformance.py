"""Run the ONNX conformance suite on any runner.

    python scripts/conformance.py                                # the native engine, all cases
    python scripts/conformance.py --runner onnxrt --kind node --filter '^test_cast'
    python scripts/conformance.py --runner reference --json
    python scripts/conformance.py --device cuda --precision fp32

The suite is `onnx.backend.test` of the installed onnx package: node cases are generated in memory,
the others lie in the package. Prints passes by kind and each failing case with its reason; exits
with 1 if one fails. `reference` is onnx's own ReferenceEvaluator.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

import polytool
from polytool.backends.base import Feeds, Outputs, Runner

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
    """What a case did: `reason` is None where it passed."""

    name: str
    kind: str
    reason: str | None


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
    except Exception as err:
        text = str(err).strip().splitlines()
        return Result(case.name, case.kind, f"{type(err).__name__}: {text[0] if text else ''}")
    return Result(case.name, case.kind, None)


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
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    args = parser.parse_args(argv)
    options = {k: v for k in ("device", "precision") if (v := getattr(args, k)) is not None}
    if args.no_optimize:
        options["optimize"] = False
    pattern = re.compile(args.filter)
    chosen = [c for c in cases(args.kind or KINDS) if pattern.search(c.name)]
    start = time.perf_counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        results = list(run_all(chosen, maker(args.runner, options)))
    seconds = time.perf_counter() - start
    if args.json:
        failed = {r.name: r.reason for r in results if r.reason is not None}
        print(json.dumps({"cases": len(results), "failed": failed, "seconds": round(seconds, 1)}))
    else:
        print(report(results, seconds))
    return 1 if any(r.reason is not None for r in results) else 0


if __name__ == "__main__":
    sys.exit(main())
