"""Arguments and options that commands share, so that a name means the same thing everywhere.

    @options.command()
    @options.model
    @options.output(help="Where the engine goes.")
    @options.json
    def convert(model: str, output: str, as_json: bool) -> int | None: ...

An option marked `several=True` takes any number of values, as in Polygraphy: `--rtol 1e-3 out:1e-2`
is the same as `--rtol 1e-3 --rtol out:1e-2`.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import click

from polytool.errors import UsageError

if TYPE_CHECKING:
    from polytool.feeds import Feeds

F = TypeVar("F", bound=Callable[..., Any])

_WORDS = "polytool.words"  # where a context keeps the words of its command line
_SUFFIXES = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}


class Decorator(Protocol):
    """What makes an argument or option of a command's function."""

    def __call__(self, function: F, /) -> F: ...


class Option(click.Option):
    """A click option that may take several values after one flag."""

    def __init__(self, *args: Any, several: bool = False, **attrs: Any) -> None:
        attrs.setdefault("multiple", several)
        super().__init__(*args, **attrs)
        self.several = several

    def make_metavar(self, ctx: click.Context) -> str:
        metavar = super().make_metavar(ctx)
        return f"{metavar}..." if self.several else metavar


class Command(click.Command):
    """A command with -v, -q and --log-file, and options that take several values."""

    def __init__(self, *args: Any, **attrs: Any) -> None:
        attrs["params"] = [*(attrs.get("params") or ()), *_verbosity()]
        super().__init__(*args, **attrs)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        words = spread(self.params, args)
        ctx.meta[_WORDS] = tuple(words)
        return super().parse_args(ctx, words)

    def invoke(self, ctx: click.Context) -> Any:
        _configure_logging(ctx.params)
        for name in ("verbose", "quiet", "log_file"):
            ctx.params.pop(name, None)
        try:
            result = super().invoke(ctx)
            sys.stdout.flush()
        except BrokenPipeError as err:  # the reader of a pipe has seen enough
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise click.exceptions.Exit(141) from err
        return result


def command() -> Callable[[Callable[..., Any]], Command]:
    """`@options.command()` instead of `@click.command()`."""
    return click.command(cls=Command)


def words_for(other: click.Command, *, without: Collection[str] = ()) -> list[str]:
    """The options of the command that runs now, as given, that another command takes as well.

    Args:
        other: that command.
        without: names of options to leave out.
    """
    context = click.get_current_context()
    own = {n: p for p in context.command.params for n in (*p.opts, *p.secondary_opts)}
    taken = {n for p in other.params for n in (*p.opts, *p.secondary_opts)} - set(without)
    found: list[str] = []
    rest = list(context.meta[_WORDS])
    while rest and rest[0] != "--":
        word = rest.pop(0)
        name, joined, _ = word.partition("=")
        param = own.get(name)
        if not isinstance(param, click.Option):
            continue
        count = 0 if joined or param.is_flag or param.count else param.nargs
        values = [rest.pop(0) for _ in range(count)]
        if name in taken:
            found += [word, *values]
    return found


def is_given(name: str) -> bool:
    """Whether the user gave that parameter of the command that runs now."""
    given = click.get_current_context().get_parameter_source(name)
    return given is click.core.ParameterSource.COMMANDLINE


def option(*names: str, **attrs: Any) -> Decorator:
    """`click.option` with `several=True` as a further choice."""
    default = attrs.get("default")
    attrs.setdefault("show_default", bool(default) or (default == 0 and default is not False))
    return click.option(*names, cls=Option, **attrs)


def spread(params: Sequence[click.Parameter], args: Sequence[str]) -> list[str]:
    """Arguments in which every option that takes several values is repeated with each.

    The values of such an option end at the next option; where positional arguments would be
    missing, the last values are those.
    """
    known = {name: p for p in params if isinstance(p, click.Option) for name in p.opts}
    off = {name: p for p in params if isinstance(p, click.Option) for name in p.secondary_opts}
    known.update(off)
    needed = sum(p.nargs for p in params if isinstance(p, click.Argument) and _needed(p, args))
    done: list[str] = []
    last: list[int] = []  # where in `done` the values stand that could be positional instead
    found = 0
    rest = list(args)
    while rest:
        arg = rest.pop(0)
        if arg == "--":
            found += len(rest)
            done += [arg, *rest]
            break
        param = known.get(arg)
        done.append(arg)
        if param is None:
            found += not _is_option(arg)
        elif isinstance(param, Option) and param.several:
            done += rest[:1]
            del rest[:1]
            last = []
            while rest and not _is_option(rest[0]):
                last.append(len(done))
                done += [arg, rest.pop(0)]
        elif not (param.is_flag or param.count):
            done += rest[: param.nargs]
            del rest[: param.nargs]
    for at in last[max(len(last) - max(needed - found, 0), 0) :]:
        done[at] = ""
    return [arg for i, arg in enumerate(done) if i not in last or arg]


class Argument(click.Argument):
    """A click argument that may be left out where one of the options `unless` is given."""

    def __init__(self, *args: Any, unless: Sequence[str], **attrs: Any) -> None:
        super().__init__(*args, **{**attrs, "required": False})
        self.unless = tuple(unless)


def _needed(param: click.Argument, args: Sequence[str]) -> bool:
    if not isinstance(param, Argument):
        return param.required
    return not {arg.partition("=")[0] for arg in args} & set(param.unless)


def _is_option(arg: str) -> bool:
    return arg.startswith("-") and not re.match(r"-(\d|\.\d|inf)", arg) and arg != "-"


def size(*names: str, default: str | None = None, help: str) -> Decorator:
    """An option that takes bytes as `4096`, `512M`, `1.5G` (powers of 1024); an int, or None."""

    def read(ctx: click.Context, param: click.Parameter, text: str | None) -> int | None:
        try:
            return None if text is None else parse_size(text)
        except ValueError:
            raise click.BadParameter(
                f"{text!r} is no size such as 4096, 512M or 1.5G", ctx, param
            ) from None

    return option(*names, default=default, callback=read, metavar="SIZE", help=help)


def parse_size(text: str) -> int:
    """Bytes in `4096`, `512M`, `1.5GiB`.

    Raises:
        ValueError: the text has another form.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([KMGT]?)(?:i?B)?", text.strip(), re.IGNORECASE)
    if match is None:
        raise ValueError(text)
    return int(float(match[1]) * _SUFFIXES[match[2].upper()])


def named(
    convert: Callable[[str], Any], what: str, *, need_name: bool = False
) -> Callable[[click.Context, click.Parameter, Sequence[str]], dict[str, Any]]:
    """A callback for `[name:]value` options; gives a dict in which "" stands for all tensors."""

    def read(ctx: click.Context, param: click.Parameter, texts: Sequence[str]) -> dict[str, Any]:
        from polytool.patterns import parse_named

        with _BadParameter(ctx, param):
            return parse_named(texts, convert, what, need_name=need_name)

    return read


class _BadParameter:
    """polytool's UsageError as click's, which names the option."""

    def __init__(self, ctx: click.Context, param: click.Parameter) -> None:
        self.ctx, self.param = ctx, param

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, err: BaseException | None, _: object) -> None:
        if isinstance(err, UsageError):
            raise click.BadParameter(str(err), self.ctx, self.param) from err


def _read_shapes(ctx: click.Context, param: click.Parameter, texts: Sequence[str]) -> Any:
    if not texts:
        return {}
    from polytool.feed_shapes import parse_shapes

    with _BadParameter(ctx, param):
        return parse_shapes(texts)


def parse_range(text: str) -> tuple[float, float]:
    """`[lo,hi]`.

    Raises:
        ValueError: the text has another form, or hi < lo.
    """
    low, high = text.strip().removeprefix("[").removesuffix("]").split(",")
    if not float(low) <= float(high):
        raise ValueError(text)
    return float(low), float(high)


def model(function: F) -> F:
    """MODEL: the path of an ONNX model (or engine, where the command takes one)."""
    return click.argument("model", metavar="MODEL", type=click.Path(path_type=str))(function)


def output(*, required: bool = False, help: str = "Where the result goes.") -> Decorator:
    """-o/--output."""
    return option("-o", "--output", required=required, type=click.Path(), metavar="PATH", help=help)


def json(function: F) -> F:
    """--json, passed as `as_json`."""
    text = "Print one JSON object on stdout, everything else on stderr."
    return option("--json", "as_json", is_flag=True, help=text)(function)


def _writable(ctx: click.Context, param: click.Parameter, path: str | None) -> str | None:
    if path is not None:
        from polytool.reporting import check_report

        check_report(path)
    return path


def report(function: F) -> F:
    """--report: where an HTML file or PNG goes; refused at once when it cannot be written."""
    text = "Write what was found, with plots, as one self-contained page (.html), or plots (.png)."
    path = option("--report", metavar="PATH", type=click.Path(), callback=_writable, help=text)
    return path(function)


def seed(function: F) -> F:
    """--seed."""
    text = "Seed of everything random; the same seed gives the same numbers."
    return option("--seed", type=int, default=0, help=text)(function)


def shapes(*names: str, help: str) -> Decorator:
    """An option that takes `name:[1,3,224,224]` or `name:1x3x224x224`; a dict of tuples."""
    return option(
        *names, several=True, callback=_read_shapes, metavar="NAME:SHAPE", help=help, default=()
    )


input_shapes: Decorator = shapes(
    "--input-shapes",
    "--shapes",
    help="Shapes of inputs, as x:[1,3,224,224] or x:1x3x224x224; needed where the model leaves "
    "them open.",
)


def external_data_dir(function: F) -> F:
    """--external-data-dir."""
    return option(
        "--external-data-dir",
        type=click.Path(),
        metavar="DIR",
        help="Where the model's external data lies, if not beside it.",
    )(function)


def external_data(function: F) -> F:
    """--external-data-dir and --ignore-external-data."""
    ignore = option(
        "--ignore-external-data",
        is_flag=True,
        help="Do not read weights that lie outside of the model file.",
    )
    return external_data_dir(ignore(function))


def saving(function: F) -> F:
    """--save-external-data and --external-data-size-threshold."""
    for decorate in (
        size(
            "--external-data-size-threshold",
            default="1K",
            help="Weights from this size on go to the external file.",
        ),
        option(
            "--save-external-data",
            is_flag=False,
            flag_value="",
            default=None,
            metavar="[PATH]",
            help="Keep weights in a file beside the model (PATH, by default the model's name + "
            ".data); models over 2 GB always do.",
        ),
    ):
        function = decorate(function)
    return function


@dataclass(frozen=True)
class FeedOptions:
    """Where input data come from, as the user said it."""

    input_shapes: dict[str, tuple[int, ...]]
    seed: int
    val_range: dict[str, tuple[float, float]]
    load_inputs: tuple[str, ...]
    data_loader_script: str | None
    iterations: int | None = None
    save_inputs: str | None = None

    def make(self, model: Any) -> Feeds:
        """The data for a model."""
        from polytool.feeds import make_feeds

        return make_feeds(
            model,
            shapes=self.input_shapes,
            seed=self.seed,
            ranges=self.val_range,
            iterations=self.iterations or 1,
            files=self.load_inputs,
            script=self.data_loader_script,
        )


_DATA: tuple[Decorator, ...] = (
    seed,
    option(
        "--val-range",
        several=True,
        metavar="[NAME:][LO,HI]",
        callback=named(parse_range, "a range such as [0,1]"),
        help="Range of random values, as [0,1] or x:[-1,1].",
    ),
    option(
        "--load-inputs",
        "--loadInputs",
        several=True,
        metavar="PATH",
        help="Inputs from files: .npz, .npy, Polygraphy's JSON, an ONNX test_data_set, or a "
        "directory of such files, one an iteration.",
    ),
    option(
        "--data-loader-script",
        metavar="SCRIPT",
        help="Inputs from a function that yields dicts, as my_script.py:load_data.",
    ),
)


def feeds(function: F) -> F:
    """Every option about input data, passed as one `feeds: FeedOptions`."""
    further = (
        option("--iterations", type=click.IntRange(1), help="How many inputs to run.  [1]"),
        option("--save-inputs", metavar="PATH", help="Write the inputs that were used."),
    )
    return bundle(function, "feeds", FeedOptions, (input_shapes, *_DATA, *further))


def timed_feeds(function: F) -> F:
    """The same for commands that time: one input, or those that are loaded."""
    return bundle(function, "feeds", FeedOptions, (input_shapes, *_DATA))


def bundle(function: F, name: str, kind: Callable[..., Any], decorators: Sequence[Decorator]) -> F:
    """Several options, collected into one argument `name` of type `kind`."""
    import functools

    @functools.wraps(function)
    def collect(*args: Any, **kwargs: Any) -> Any:
        values = {key: kwargs.pop(key) for key in keys}
        return function(*args, **kwargs, **{name: kind(**values)})

    params: list[click.Parameter] = getattr(collect, "__click_params__", [])
    before = len(params)
    wrapped: Any = collect
    for decorate in reversed(decorators):
        wrapped = decorate(wrapped)
    # Flags may share a name: those that exclude each other, or whose order matters.
    keys = dict.fromkeys(str(param.name) for param in wrapped.__click_params__[before:])
    result: F = wrapped
    return result


def _verbosity() -> list[click.Parameter]:
    return [
        Option(["-v", "--verbose"], count=True, help="Say more; -vv says everything."),
        Option(["-q", "--quiet"], is_flag=True, help="Say nothing but the result and errors."),
        Option(["--log-file"], metavar="PATH", help="Write the whole log to PATH as well."),
    ]


def _configure_logging(params: dict[str, Any]) -> None:
    import logging

    levels = (logging.WARNING, logging.INFO, logging.DEBUG)
    level = logging.ERROR if params.get("quiet") else levels[min(params.get("verbose") or 0, 2)]
    logger = logging.getLogger("polytool")
    for handler in list(logger.handlers):
        logger.removeHandler(handler)
        handler.close()
    logger.propagate = False
    shown = logging.StreamHandler()
    shown.setLevel(level)
    shown.setFormatter(logging.Formatter("%(message)s"))
    logger.addHandler(shown)
    logger.setLevel(level)
    if path := params.get("log_file"):
        try:
            written = logging.FileHandler(path, mode="w", encoding="utf-8")
        except OSError as err:
            raise click.BadParameter(
                f"{path!r} cannot be written: {err.strerror}", param_hint="--log-file"
            ) from err
        written.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s %(message)s"))
        logger.addHandler(written)
        logger.setLevel(logging.DEBUG)
