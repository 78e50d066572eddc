"""Anything callable as a runner: a function from inputs to outputs, or a PyTorch module."""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable, Mapping
from typing import Any

from polytool.backends.base import Feeds, Outputs, Runner
from polytool.errors import PolytoolError, RunnerError
from polytool.tensors import TensorSpec, as_numpy


def as_runner(thing: Any, name: str, model: Any = None) -> Runner:
    """`thing` where it is a Runner, else a runner around the callable that it is.

    Raises:
        RunnerError: it is neither.
    """
    if isinstance(thing, Runner):
        if not getattr(thing, "name", ""):
            thing.name = name
        return thing
    if callable(thing):
        return CallableRunner(thing, name, model)
    raise RunnerError(
        f"{name} gave a {type(thing).__name__}; it must give a polytool Runner, "
        "or a callable that takes a dict of inputs and returns a dict of outputs"
    )


class CallableRunner(Runner):
    """Runs a callable that takes a dict of arrays and returns a dict of arrays.

    A PyTorch module (anything with `state_dict`) gets tensors on its own device instead, by the
    names of its `forward` where they are the inputs' names, else in the inputs' order, and runs
    without gradients.

    Args:
        function: the callable. Instead of a dict it may return one array or a tuple of them, which
            are then taken for the outputs of `model` in their order.
        name: how results call it.
        model: the ONNX model that the callable stands for, if there is one: it says the names.
    """

    def __init__(self, function: Callable[..., Any], name: str, model: Any = None) -> None:
        self.name = name
        self._function = function
        self._model = model
        self._seconds = 0.0
        self.inputs: tuple[TensorSpec, ...] = _specs(function, "inputs")
        self.outputs: tuple[TensorSpec, ...] = _specs(function, "outputs")

    def infer(self, feeds: Feeds) -> Outputs:
        """Call the function.

        Raises:
            RunnerError: it failed, or returned something other than the outputs.
        """
        torch_module = hasattr(self._function, "state_dict")
        call = self._call_module if torch_module else self._function
        start = time.perf_counter()
        try:
            outputs = call(dict(feeds))
        except PolytoolError:
            raise
        except Exception as err:
            raise RunnerError(f"{self.name} failed: {type(err).__name__}: {err}") from err
        self._seconds = time.perf_counter() - start
        return {k: _on_host(v) for k, v in self._named(outputs).items()}

    @property
    def settings(self) -> dict[str, Any]:
        """Those that the callable has, else what a PyTorch module computes with."""
        own = getattr(self._function, "settings", None)
        if isinstance(own, Mapping):
            return dict(own)
        return _torch_settings(self._function) if hasattr(self._function, "state_dict") else {}

    def last_inference_time(self) -> float:
        """Seconds of the last call."""
        return self._seconds

    def _call_module(self, feeds: dict[str, Any]) -> Any:
        import torch  # only who brings a module has it

        module: Any = self._function
        device = next((p.device for p in module.parameters()), None)
        tensors = {k: torch.as_tensor(v, device=device) for k, v in feeds.items()}
        by_name = set(feeds) <= set(inspect.signature(module.forward).parameters)
        with torch.no_grad():
            return module(**tensors) if by_name else module(*tensors.values())

    def _named(self, outputs: Any) -> dict[str, Any]:
        if isinstance(outputs, Mapping):
            if not all(isinstance(k, str) for k in outputs):
                raise RunnerError(f"{self.name} returned a dict whose keys are not output names")
            return dict(outputs)
        values = list(outputs) if isinstance(outputs, (tuple, list)) else [outputs]
        names = self._output_names()
        if len(names) == len(values):
            return dict(zip(names, values, strict=True))
        raise RunnerError(
            f"{self.name} returned {len(values)} outputs without names"
            + (f" where the model has {len(names)}" if names else "")
            + "; return a dict from output name to array"
        )

    def _output_names(self) -> list[str]:
        if self.outputs:
            return [spec.name for spec in self.outputs]
        if self._model is None:
            return []
        from polytool.model import load

        return [o.name for o in load(self._model).proto.graph.output]


def _torch_settings(module: Any) -> dict[str, Any]:
    import torch  # only who brings a module has it

    device = next((p.device for p in module.parameters()), torch.device("cpu"))
    settings = {"backend": "torch", "version": torch.__version__, "device": device.type}
    if device.type == "cuda":
        settings["tf32"] = torch.backends.cuda.matmul.allow_tf32
    return settings


def _on_host(value: Any) -> Any:
    """NumPy arrays for everything but sequences and absent optionals, which keep their form."""
    if value is None:
        return None
    if isinstance(value, (list, tuple)):
        return [_on_host(v) for v in value]
    return as_numpy(value)


def _specs(function: Any, attribute: str) -> tuple[TensorSpec, ...]:
    found = getattr(function, attribute, ())
    if isinstance(found, (tuple, list)) and all(isinstance(s, TensorSpec) for s in found):
        return tuple(found)
    return ()
