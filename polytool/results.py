"""What runners computed: `RunResults`, and `run`, which fills one.

results = polytool.run("model.onnx", ["native", "onnxrt"], feeds)
results["native"][0]["logits"]      # output of the first iteration
results["native"].settings          # precision, providers, library versions
results.save("results.safetensors")
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, overload

from polytool.backends.base import Feeds, Runner
from polytool.errors import PolytoolError, RunnerError, UsageError

if TYPE_CHECKING:
    from polytool.files import StrPath
    from polytool.model import Source


class Iteration(Mapping[str, Any]):
    """The outputs of one inference, by name.

    An output is an array, a list (ONNX sequence), a dict (ONNX map) or None (empty optional).

    Attributes:
        seconds: how long the inference took, None where that is not known.
    """

    def __init__(self, outputs: Mapping[str, Any], seconds: float | None = None) -> None:
        self._outputs = outputs
        self.seconds = seconds

    def __getitem__(self, name: str) -> Any:
        return self._outputs[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._outputs)

    def __len__(self) -> int:
        return len(self._outputs)

    def __repr__(self) -> str:
        return f"Iteration({', '.join(self)})"


class Run(Sequence[Iteration]):
    """Everything that one runner computed.

    Attributes:
        name: the runner.
        settings: what of it changes numbers: precision, providers, library versions, device.
    """

    def __init__(
        self,
        name: str,
        iterations: Sequence[Iteration] = (),
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        self.name = name
        self.settings = dict(settings or {})
        self._iterations = iterations

    @overload
    def __getitem__(self, index: int) -> Iteration: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Iteration]: ...
    def __getitem__(self, index: int | slice) -> Iteration | Sequence[Iteration]:
        return self._iterations[index]

    def __len__(self) -> int:
        return len(self._iterations)

    @property
    def seconds(self) -> list[float]:
        """The inference times that are known."""
        return [i.seconds for i in self if i.seconds is not None]

    def __repr__(self) -> str:
        return f"Run({self.name!r}, {len(self)} iterations)"


class RunResults(Mapping[str, Run]):
    """The runs of one or more runners, by runner name, in the order in which they ran."""

    def __init__(self, runs: Iterable[Run] = ()) -> None:
        self._runs: dict[str, Run] = {}
        for run_ in runs:
            if run_.name in self._runs:
                raise UsageError(f"two runs are called {run_.name!r}: give one another name")
            self._runs[run_.name] = run_

    def __getitem__(self, name: str) -> Run:
        try:
            return self._runs[name]
        except KeyError:
            known = ", ".join(map(repr, self._runs)) or "none"
            raise KeyError(f"no runner {name!r} in these results; there are: {known}") from None

    def __iter__(self) -> Iterator[str]:
        return iter(self._runs)

    def __len__(self) -> int:
        return len(self._runs)

    def __contains__(self, name: object) -> bool:
        return name in self._runs

    def __repr__(self) -> str:
        return f"RunResults({', '.join(map(repr, self._runs.values()))})"

    def save(self, path: StrPath) -> None:
        """Write the results, whole or not at all.

        Args:
            path: `*.json` is written as Polygraphy 0.53 reads it; a path without an extension
                becomes a directory with one file an iteration; anything else is one file in
                polytool's own format.

        Raises:
            UsageError: an output cannot be stored, or the directory is not empty.
            ModelError: the file cannot be written.
        """
        from polytool.result_files import save_results

        save_results(self, path)

    @classmethod
    def load(cls, path: StrPath) -> RunResults:
        """Read what `save` or Polygraphy wrote; iterations are read when they are looked at.

        Raises:
            ModelError: the file is missing, damaged, or holds no results.
        """
        from polytool.result_files import load_results

        return load_results(path)

    @classmethod
    def concat(cls, several: Iterable[RunResults]) -> RunResults:
        """The iterations of several results one after the other, matched by runner name.

        The settings are those of the first result in which a runner appears.
        """
        runs: dict[str, list[Run]] = {}
        for results in several:
            for name, run_ in results.items():
                runs.setdefault(name, []).append(run_)
        return cls(Run(name, Chain(parts), parts[0].settings) for name, parts in runs.items())


class Chain(Sequence[Iteration]):
    """Several sequences of iterations as one; nothing is read before it is looked at."""

    def __init__(self, parts: Iterable[Sequence[Iteration]]) -> None:
        self._parts = list(parts)
        self._starts = [0, *itertools.accumulate(map(len, self._parts))]

    @overload
    def __getitem__(self, index: int) -> Iteration: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Iteration]: ...
    def __getitem__(self, index: int | slice) -> Iteration | Sequence[Iteration]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        at = index + len(self) if index < 0 else index
        for part, start in zip(self._parts, self._starts, strict=False):
            if start <= at < start + len(part):
                return part[at - start]
        raise IndexError(f"iteration {index} of {len(self)}")

    def __len__(self) -> int:
        return self._starts[-1]


OnIteration = Callable[[str, int, Iteration], None]
OnChange = Callable[[str, str, float | None], None]


def run(
    model: Source | None,
    runners: Iterable[Runner | str] | Runner | str,
    feeds: Feeds | Iterable[Feeds] | None = None,
    *,
    save: StrPath | None = None,
    warm_up: int = 0,
    on_iteration: OnIteration | None = None,
    on_change: OnChange | None = None,
) -> RunResults:
    """Run `model` on every runner in turn, each on all of `feeds`.

    Only one runner is active at a time. Results stay in memory unless `save` names a directory
    (a path without an extension): then each iteration is written as soon as it is there, and read
    again when it is looked at.

    Args:
        model: what runners that are given by name load; may be None if all are objects.
        runners: runners, or names such as "native" and "onnxrt".
        feeds: one dict of inputs, or any iterable of them; None makes data that suits the model.
        save: where to save the results as they come; see `RunResults.save`.
        warm_up: how often to run the first inputs before the first measured inference.
        on_iteration: called with runner name, index and outputs after each inference.
        on_change: where it is given and there are several inputs, the first are run once more at
            the end; called with runner name, name of the output, and the largest difference for
            each output that is not bit for bit the same again.

    Raises:
        UsageError: no runner is given, a name is unknown, or there is no feed.
        RunnerError: a runner failed.
    """
    from polytool.feeds import as_feeds, make_feeds
    from polytool.repetition import changes
    from polytool.result_files import ResultsDirectory, is_directory_path

    ready = _runners(model, runners)
    if feeds is None:
        if model is None:
            raise UsageError("without feeds a model is needed, to see which inputs it has")
        feeds = make_feeds(model)
    data = as_feeds(feeds)
    directory = ResultsDirectory(save) if save and is_directory_path(save) else None
    runs = []
    for index in range(len(ready)):
        name, runner = ready.pop(0)  # what nobody else holds is freed before the next one starts
        kept: list[Iteration] = []
        number, first = 0, Iteration({})
        with runner:
            for number, outputs in enumerate(_infer_all(name, runner, data, warm_up)):
                if directory is not None:
                    directory.add(index, name, number, outputs, runner.settings)
                else:
                    kept.append(outputs)
                if number == 0:
                    first = outputs
                if on_iteration is not None:
                    on_iteration(name, number, outputs)
            if on_change is not None and number > 0:
                again = next(_infer_all(name, runner, data, 0))
                for output, difference in changes(first, again):
                    on_change(name, output, difference)
            runs.append(Run(name, kept, runner.settings))
        if directory is None and not kept:
            raise UsageError("there are no input data: the feeds are empty")
    if directory is not None:
        return RunResults.load(directory.path)
    results = RunResults(runs)
    if save:
        results.save(save)
    return results


def _runners(
    model: Source | None, runners: Iterable[Runner | str] | Runner | str
) -> list[tuple[str, Runner]]:
    given = [runners] if isinstance(runners, str | Runner) else list(runners)
    if not given:
        raise UsageError("no runner was chosen: name at least one, such as 'native' or 'onnxrt'")
    ready: dict[str, Runner] = {}
    for item in given:
        if isinstance(item, str):
            if model is None:
                raise UsageError(f"runner {item!r} is given by name, so a model is needed")
            from polytool.backends.registry import runner as by_name

            item = by_name(item, model)
        name, count = item.name, 2
        while name in ready:
            name, count = f"{item.name}#{count}", count + 1
        ready[name] = item
    return list(ready.items())


def _infer_all(
    name: str, runner: Runner, data: Iterable[Feeds], warm_up: int
) -> Iterator[Iteration]:
    for number, feed in enumerate(data):
        try:
            for _ in range(warm_up if number == 0 else 0):
                runner.infer(feed)
            outputs = runner.infer(feed)
        except PolytoolError:
            raise
        except Exception as err:
            raise RunnerError(f"runner {name!r} failed in iteration {number}: {err}") from err
        yield Iteration(outputs, runner.last_inference_time())
