"""Runners by name: what is built in, what other packages bring, what a script returns."""

from __future__ import annotations

import difflib
import importlib
import os
import runpy
from collections.abc import Callable, Mapping
from typing import Any

from polytool.backends.base import Runner
from polytool.backends.callables import as_runner
from polytool.errors import PolytoolError, RunnerError, UsageError

GROUP = "polytool.backends"

# Name -> where the class is and the options that the name stands for.
_BUILT_IN: Mapping[str, tuple[str, str, Mapping[str, Any]]] = {
    "native": ("polytool.backends.native.runner", "NativeRunner", {}),
    "onnxrt": ("polytool.backends.onnxrt.runner", "OnnxrtRunner", {}),
    "oracle": (
        "polytool.backends.native.runner",
        "NativeRunner",
        {"precision": "fp64", "optimize": False, "device": "cpu", "name": "oracle"},
    ),
}


def available() -> tuple[str, ...]:
    """Every name that `runner` takes: the built-in ones, then those of installed packages."""
    return (*_BUILT_IN, *sorted(set(_entry_points()) - set(_BUILT_IN)))


def runner(name: str, model: Any, /, **options: Any) -> Runner:
    """Make a runner of the backend `name` for `model`.

    Args:
        name: `native`, `onnxrt`, `oracle`, a name from the entry points in the group
            `polytool.backends`, or `my_script.py:make_runner`.
        model: what the backend takes; every one takes a path.
        options: passed on to the backend.

    Raises:
        UsageError: the name is unknown.
        RunnerError: what another package or the script made is no runner.
    """
    if name in _BUILT_IN:
        module, attribute, preset = _BUILT_IN[name]
        made: Runner = getattr(importlib.import_module(module), attribute)(
            model, **{**preset, **options}
        )
        return made
    points = _entry_points()
    if name in points:
        try:
            factory = points[name].load()
        except Exception as err:
            raise RunnerError(
                f"the backend {name!r} of package {points[name].dist.name} cannot be loaded: "
                f"{type(err).__name__}: {err}"
            ) from err
        return as_runner(factory(model, **options), name, model)
    if is_script(name):
        return script_runner(name, model, **options)
    close = difflib.get_close_matches(name, available(), n=1)
    hint = f", did you mean {close[0]!r}?" if close else ":"
    raise UsageError(
        f"there is no backend {name!r}{hint} known are {', '.join(available())}, "
        "and scripts as my_script.py:make_runner"
    )


def _entry_points() -> dict[str, Any]:
    from importlib.metadata import entry_points

    return {point.name: point for point in entry_points(group=GROUP)}


def is_script(text: str) -> bool:
    """Whether `text` names a function in a script, as `my_script.py:my_func` does."""
    path, _, function = text.rpartition(":")
    return path.endswith(".py") and function.isidentifier()


def load_script(text: str) -> Callable[..., Any]:
    """The function that `my_script.py:my_func` names.

    Raises:
        UsageError: the text has another form, or there is no such file or function.
        RunnerError: the script fails while it is read.
    """
    path, _, function = text.rpartition(":")
    if not is_script(text):
        raise UsageError(f"{text!r} names no function of a script: write my_script.py:my_func")
    if not os.path.isfile(path):
        raise UsageError(f"the script {path!r} does not exist")
    try:
        names = runpy.run_path(path, run_name="polytool_script")
    except PolytoolError:
        raise
    except Exception as err:
        raise RunnerError(
            f"the script {path!r} failed while it was read: {type(err).__name__}: {err}"
        ) from err
    found = names.get(function)
    if not callable(found):
        functions = sorted(n for n, v in names.items() if callable(v) and not n.startswith("_"))
        raise UsageError(
            f"the script {path!r} defines no function {function!r}"
            + (f"; it has {', '.join(functions)}" if functions else "")
        )
    return found  # type: ignore[no-any-return]  # callable() narrows to object


def script_runner(text: str, model: Any, /, **options: Any) -> Runner:
    """The runner that a script's function returns for `model`.

    Args:
        text: `my_script.py:make_runner`. The function takes the model's path and returns a
            Runner, or anything callable from a dict of inputs to a dict of outputs.
        model: what the function gets.
        options: `name` names the runner; the others are passed on to the function.
    """
    function = load_script(text)
    name = options.pop("name", None) or os.path.basename(text.rpartition(":")[0])[: -len(".py")]
    try:
        made = function(model, **options)
    except PolytoolError:
        raise
    except Exception as err:
        raise RunnerError(f"{text} failed: {type(err).__name__}: {err}") from err
    return as_runner(made, name, model)
