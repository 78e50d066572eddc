"""Input data: seeded and sensible for what an input means, or from files, scripts and arrays.

feeds = make_feeds("model.onnx", shapes={"x": (1, 3, 224, 224)}, seed=0, iterations=4)
print(*feeds.notes, sep="\\n")       # what was chosen for each input, and why
for feed in feeds:                   # the same data however often it is iterated
    runner.infer(feed)
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from polytool.backends.base import Feeds as Feed
from polytool.errors import RunnerError, UsageError
from polytool.feed_values import Plan, plan_inputs
from polytool.tensors import TensorSpec

if TYPE_CHECKING:
    from polytool.files import StrPath
    from polytool.model import Source


class Feeds:
    """Input data, one dict an iteration; gives the same data whenever it is iterated.

    Attributes:
        notes: one line an input that says which data were chosen and why, or what was changed.
    """

    def __init__(
        self,
        make: Callable[[], Iterator[dict[str, Any]]],
        notes: Sequence[str] = (),
        count: int | None = None,
    ) -> None:
        self._make, self._count = make, count
        self.notes = tuple(notes)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return self._make()

    @property
    def count(self) -> int | None:
        """The number of iterations, where it is known before all are read."""
        return self._count


def as_feeds(data: Any) -> Iterable[Feed]:
    """`data` as something that can be iterated again and again: one dict, or any iterable of them.

    A generator is read to its end at once and kept in memory, so that all runners get the same.

    Raises:
        UsageError: `data` is no dict and nothing that yields dicts.
    """
    if isinstance(data, Mapping):
        return [data]
    if isinstance(data, Feeds):
        return data
    if isinstance(data, str | bytes) or not isinstance(data, Iterable):
        raise UsageError(
            f"inputs are a dict of arrays, or an iterable of them, not {type(data).__name__}"
        )
    items = list(data) if iter(data) is data or isinstance(data, list | tuple) else data
    if isinstance(items, list):
        for index, item in enumerate(items):
            _check_feed(item, f"iteration {index} of the inputs")
    return items


def make_feeds(
    model: Source | None = None,
    *,
    inputs: Sequence[TensorSpec] | None = None,
    shapes: Mapping[str, Sequence[int]] | None = None,
    seed: int = 0,
    ranges: Mapping[str, tuple[float, float]] | None = None,
    iterations: int = 1,
    files: Sequence[StrPath] = (),
    script: str | None = None,
) -> Feeds:
    """Input data for a model.

    Args:
        model: an ONNX model, whose use of an input tells what its values mean; may be None when
            `inputs` is given, and then names alone tell.
        inputs: what the runner expects, where that is not what the model declares.
        shapes: shapes by input name or pattern; needed where a dynamic dimension is not a batch.
        seed: of the random data; an iteration depends on seed, its number and the input's name.
        ranges: lowest and highest value (both included) by input name or pattern, "" for every
            input whose meaning does not decide it. Floats are uniform in [0, 1) by default.
        iterations: how many iterations of made data.
        files: read the data from these files and directories instead; see `load_feeds`.
        script: take the data from `my_script.py:my_func` instead, a function that returns or
            yields dicts of arrays; `load_data` where only the script is named.

    Raises:
        UsageError: a shape is missing, or data fit no input.
        ModelError: a file cannot be read.
    """
    from polytool.model import load

    opened = None if model is None else load(model)
    if inputs is None:
        if opened is None:
            raise UsageError("feeds need a model, or the inputs that they are for")
        inputs = input_specs(opened)
    if files and script:
        raise UsageError("--load-inputs and --data-loader-script both say where inputs come from")
    if files or script:
        unused = [n for n, v in (("shapes", shapes), ("ranges", ranges)) if v]
        if unused:
            raise UsageError(
                f"{' and '.join(unused)} are for made data, but the inputs are loaded: drop one"
            )
        return load_feeds(files, inputs) if files else script_feeds(str(script), inputs)
    if iterations < 1:
        raise UsageError(f"{iterations} iterations: at least one is needed")
    plan = plan_inputs(opened, inputs, shapes or {}, ranges or {})
    return Feeds(lambda: _draw_all(plan, seed, iterations), plan.notes, iterations)


def _draw_all(plan: Plan, seed: int, iterations: int) -> Iterator[dict[str, Any]]:
    return (plan.draw(seed, index) for index in range(iterations))


def input_specs(model: Source) -> tuple[TensorSpec, ...]:
    """The inputs that must be fed: those of the graph without the initializers among them."""
    from polytool.backends.native.protos import read_type
    from polytool.model import load

    graph = load(model).proto.graph
    known = {t.name for t in graph.initializer} | {t.values.name for t in graph.sparse_initializer}
    return tuple(
        TensorSpec(value.name, *read_type(value.type))
        for value in graph.input
        if value.name not in known
    )


def load_feeds(paths: Sequence[StrPath], inputs: Sequence[TensorSpec]) -> Feeds:
    """Data from files, one path after the other, read when they are iterated.

    A path is a `.npz` (one iteration), a `.npy` named like an input, JSON of Polygraphy, a file
    that `save_feeds` wrote, an ONNX `test_data_set_*` directory, or a directory of any of these.

    Raises:
        ModelError: a file is missing, damaged, or holds no inputs.
        UsageError: a file's inputs are not the model's.
    """
    from polytool.feed_files import iterate_files

    return _fitted(lambda: iterate_files(paths, inputs), inputs)


def script_feeds(script: str, inputs: Sequence[TensorSpec]) -> Feeds:
    """Data from a function in a script; it is called once, and what it gives is kept in memory.

    Raises:
        UsageError: there is no such script or function, or it gives no dicts of arrays.
        RunnerError: it fails.
    """
    from polytool.backends.registry import load_script

    name = script if not script.endswith(".py") else f"{script}:load_data"
    function = load_script(name)
    try:
        made = function()
        items = [made] if isinstance(made, Mapping) else list(made)
    except Exception as err:
        raise RunnerError(f"{name} failed: {type(err).__name__}: {err}") from err
    for index, item in enumerate(items):
        _check_feed(item, f"iteration {index} of {name}")
    return _fitted(lambda: iter(items), inputs, len(items))


def _check_feed(item: Any, who: str) -> None:
    if not isinstance(item, Mapping) or not all(isinstance(k, str) for k in item):
        raise UsageError(f"{who} is no dict of arrays by input name, but {type(item).__name__}")


def _fitted(
    make: Callable[[], Iterator[Mapping[str, Any]]],
    inputs: Sequence[TensorSpec],
    count: int | None = None,
) -> Feeds:
    from polytool.feed_files import fit

    first = next(make(), None)
    if first is None:
        raise UsageError("the inputs that were loaded hold no iteration")
    notes: list[str] = []
    fit(first, inputs, notes)
    return Feeds(lambda: (fit(feed, inputs) for feed in make()), notes, count)


def save_feeds(feeds: Iterable[Feed], path: StrPath) -> None:
    """Write input data for `load_feeds`, whole or not at all.

    Args:
        feeds: the data.
        path: `*.json` is written as Polygraphy reads it, `*.npz` holds one iteration; a path
            without an extension becomes a directory with one file an iteration; anything else is
            one file in polytool's own format.
    """
    from polytool.feed_files import save

    save(feeds, path)
