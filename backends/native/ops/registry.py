"""Where operators register themselves; `find` gives the form of an operator at an opset version.

An operator is a plain function whose signature is the ONNX signature, in any module of this
package; nothing else has to be touched:

    @op("Softmax", since=13)
    def softmax(xp, x, *, axis=-1): ...

* `xp` is NumPy or CuPy. Inputs are arrays (lists for sequences, None for an absent or empty
  optional), attributes are keyword-only with ONNX's defaults: ints, floats, strings, lists of
  those, arrays for tensor attributes. One array is returned, or a tuple where there are several
  outputs.
* `since` is the first opset version that has this form. Older forms are raised to it by
  `@upgrade("Clip", since=6)` (again: the first version that has the *old* form), one after the
  other; older semantics that cannot be raised keep an `@op` of their own with their `since`.
* The executor upcasts and rounds, the operator does not: float16 and bfloat16 tensors arrive as
  float32 (everything as float64 in the fp64 oracle), and what is returned is rounded to the
  output's declared type. So a result must follow its inputs' type, never force float32.
* `exact=True`: only moves, selects or compares values; takes every element type as stored.
* `host=(1,)`: the inputs whose *values* decide output shapes; they live on the host.
* A keyword `n_outputs` in the signature receives how many outputs the node asks for.
* A keyword `out_dtypes` receives the tuple of the outputs' `DType`, `in_dtypes` that of the inputs.

Beside it, where the generic rule does not do: `@shape` (output shapes), `@dtypes` (output types),
`@flops` (multiply-adds count two), `@limits` (forms that are left out).
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, lru_cache
from typing import Any

import numpy as np

from polytool.errors import RunnerError
from polytool.tensors import DType
from polytool.validation import ELEMENT_TYPES

Array = Any
Function = Callable[..., Any]


@dataclass(frozen=True)
class Operator:
    """One form of an operator, from opset `since` on."""

    name: str
    domain: str
    since: int
    function: Function
    exact: bool = False
    pointwise: bool = False
    random: bool = False
    host: tuple[int, ...] = ()

    @property
    def wants(self) -> frozenset[str]:
        """The names of the keyword parameters: attributes, `n_outputs`, `out_dtypes` ..."""
        return _keywords(self.function)

    @property
    def attributes(self) -> frozenset[str]:
        """The names of those that a model gives."""
        return self.wants - _FILLED_IN

    def misfit(self, inputs: Sequence[Any], attributes: Mapping[str, Any]) -> str | None:
        """Why it cannot be called with these inputs (None is absent) and attributes, or None."""
        given = tuple(x is not None for x in inputs)
        kinds = frozenset((k, _kind(v)) for k, v in attributes.items() if k in self.attributes)
        if why := _misfit(self.function, given, kinds):
            return why
        for name in self.attributes & attributes.keys() & ELEMENT_TYPES.keys():
            if attributes[name] not in ELEMENT_TYPES[name]:
                return f"its attribute {name!r} is no element type"
        return None


@dataclass
class Node:
    """An ONNX node while the parser raises it to its newest form.

    `inputs` holds tensor names, None for an absent input, or an array for a constant that an
    upgrade put in.
    """

    op: str
    domain: str
    version: int
    inputs: list[str | np.ndarray | None]
    outputs: list[str]
    attrs: dict[str, Any] = field(default_factory=dict)
    name: str = ""

    def raised(self, **changes: Any) -> Node:
        """A copy with `inputs`, `attrs`, `op` ... replaced."""
        return replace(self, **changes)

    def without(self, *attrs: str) -> dict[str, Any]:
        """The attributes but for the named ones."""
        return {k: v for k, v in self.attrs.items() if k not in attrs}

    def fresh(self, suffix: str) -> str:
        """A new tensor name for an interior value of an expansion."""
        return f"{next(o for o in self.outputs if o)}/{suffix}"


Upgrade = Callable[[Node], "Node | list[Node]"]


@dataclass(frozen=True)
class Arg:
    """An input as a shape or FLOP function sees it; `value` is set when it is known on the host."""

    shape: tuple[int, ...]
    dtype: DType | None = None
    value: Any = None


def entries(vector: Array) -> list[int]:
    """The numbers of a vector of sizes, axes or counts.

    Raises:
        RunnerError: it is no vector; a size times a list would be a list of that length.
    """
    if vector.ndim != 1:
        raise RunnerError(f"{list(vector.shape)} is the shape of no vector")
    found: list[int] = vector.tolist()
    return found


_operators: dict[tuple[str, str], dict[int, Operator]] = {}
_upgrades: dict[tuple[str, str], dict[int, Upgrade]] = {}
_shapes: dict[tuple[str, str], Function] = {}
_dtypes: dict[tuple[str, str], Function] = {}
_flops: dict[tuple[str, str], Function] = {}
_limits: dict[tuple[str, str], Function] = {}


def op(
    name: str,
    *,
    since: int,
    domain: str = "",
    exact: bool = False,
    pointwise: bool = False,
    random: bool = False,
    host: Sequence[int] = (),
) -> Callable[[Function], Function]:
    """Register the decorated function as operator `name` from opset `since` on."""

    def register(function: Function) -> Function:
        forms = _operators.setdefault((domain, name), {})
        if since in forms:
            raise ValueError(f"operator {domain}:{name} since {since} is registered twice")
        forms[since] = Operator(
            name, domain, since, function, exact, pointwise, random, tuple(host)
        )
        return function

    return register


def upgrade(name: str, *, since: int, domain: str = "") -> Callable[[Upgrade], Upgrade]:
    """Register a rewrite of the form that `name` has from opset `since` on to the next form."""

    def register(function: Upgrade) -> Upgrade:
        _upgrades.setdefault((domain, name), {})[since] = function
        return function

    return register


def _side(
    table: dict[tuple[str, str], Function],
) -> Callable[..., Callable[[Function], Function]]:
    def decorate(*names: str, domain: str = "") -> Callable[[Function], Function]:
        def register(function: Function) -> Function:
            for name in names:
                table[domain, name] = function
            return function

        return register

    return decorate


shape = _side(_shapes)
"""`@shape("Conv")`: like the operator, but takes `Arg`s and returns one shape (tuple of ints) per
output: a tuple for one output, a list of tuples for several, None where data decides."""

dtypes = _side(_dtypes)
"""`@dtypes("Cast")`: takes the list of input DTypes (None for absent) and the attributes as
keywords, returns the list of output DTypes. Only where the ONNX schema's type variables do not
say it (an attribute decides)."""

limits = _side(_limits)
"""`@limits("CDist")`: takes a list that says which inputs are given, and the attributes as
keywords; returns why such a node cannot run, or None. For forms of an operator that are left out
although the model is valid: they are refused when an engine is built, all at once."""

flops = _side(_flops)
"""`@flops("Conv")`: takes `Arg`s for the inputs, then attributes as keywords, and `outputs`, the
list of output shapes; returns a number. A multiply-add counts two."""


@lru_cache(maxsize=1)
def load_all() -> None:
    """Import every module of this package, so that all operators are registered."""
    package = importlib.import_module("polytool.backends.native.ops")
    for module in pkgutil.iter_modules(package.__path__):
        importlib.import_module(f"polytool.backends.native.ops.{module.name}")


def _normal(domain: str) -> str:
    return "" if domain == "ai.onnx" else domain


def find(domain: str, name: str, version: int) -> Operator | None:
    """The operator's form at opset `version`, ignoring upgrades; None if there is none."""
    load_all()
    forms = _operators.get((_normal(domain), name), {})
    since = max((s for s in forms if s <= version), default=None)
    return None if since is None else forms[since]


def raise_node(node: Node) -> list[Node]:
    """Raise `node` to the newest form it can take, through every upgrade that applies.

    The result may be several nodes when an old form is written as newer operators.
    """
    load_all()
    key = (_normal(node.domain), node.op)
    upgrades, forms = _upgrades.get(key, {}), _operators.get(key, {})
    steps = sorted({*upgrades, *forms})
    while True:
        current = max((s for s in steps if s <= node.version), default=None)
        if current is None or current in forms:
            return [node]
        later = [s for s in steps if s > current]
        raised = upgrades[current](node)
        if isinstance(raised, list):
            return [n for r in raised for n in raise_node(r)]
        if raised.op != node.op or raised.domain != node.domain:
            return raise_node(raised)
        node = replace(raised, version=later[0]) if later else raised
        if not later:
            return [node]


def shape_function(domain: str, name: str) -> Function | None:
    """The `@shape` function of an operator."""
    load_all()
    return _shapes.get((_normal(domain), name))


def dtypes_function(domain: str, name: str) -> Function | None:
    """The `@dtypes` function of an operator."""
    load_all()
    return _dtypes.get((_normal(domain), name))


def limits_function(domain: str, name: str) -> Function | None:
    """The `@limits` function of an operator."""
    load_all()
    return _limits.get((_normal(domain), name))


def flops_function(domain: str, name: str) -> Function | None:
    """The `@flops` function of an operator."""
    load_all()
    return _flops.get((_normal(domain), name))


def all_operators() -> list[Operator]:
    """Every registered form, sorted by domain, name and version."""
    load_all()
    forms = (f for family in _operators.values() for f in family.values())
    return sorted(forms, key=lambda f: (f.domain, f.name, f.since))


@cache
def _keywords(function: Function) -> frozenset[str]:
    parameters = inspect.signature(function).parameters.values()
    return frozenset(p.name for p in parameters if p.kind is p.KEYWORD_ONLY)


_Kind = tuple[type, frozenset[type]]
_ELEMENTS: dict[str, tuple[type, ...]] = {"int": (int,), "float": (float, int), "str": (str,)}
_LISTS = {"Ints": "int", "Floats": "float", "Strings": "str"}
_LISTS |= {f"Sequence[{name}]": name for name in _ELEMENTS}
_FILLED_IN = frozenset({"n_outputs", "out_dtypes", "in_dtypes"})  # by the executor


@cache
def _misfit(
    function: Function, given: tuple[bool, ...], attributes: frozenset[tuple[str, _Kind]]
) -> str | None:
    names = {name for name, _ in attributes} | (_keywords(function) & _FILLED_IN)
    signature = inspect.signature(function)
    try:
        signature.bind(None, *given, **dict.fromkeys(names))
    except TypeError as err:
        return str(err)
    formals = [p for p in signature.parameters.values() if p.kind is p.POSITIONAL_OR_KEYWORD][1:]
    for formal, is_given in zip(formals, given, strict=False):
        if not is_given and "None" not in str(formal.annotation):
            return f"its input {formal.name!r} is left out"
    rest = next((p for p in signature.parameters.values() if p.kind is p.VAR_POSITIONAL), None)
    if rest is not None and "None" not in str(rest.annotation) and not all(given[len(formals) :]):
        return f"one of its inputs {rest.name!r} is left out"
    for name, kind in attributes:
        annotation = str(signature.parameters[name].annotation).removesuffix(" | None")
        if not _fits(kind, annotation):
            return f"its attribute {name!r} is no {annotation}"
    return None


def _kind(value: Any) -> _Kind:
    """The type of an attribute, and the types of its elements if it is a list."""
    return type(value), frozenset(map(type, value) if isinstance(value, (list, tuple)) else ())


def _fits(kind: _Kind, annotation: str) -> bool:
    outer, inner = kind
    if annotation == "Array":
        return issubclass(outer, np.ndarray)
    if annotation in _LISTS:
        return issubclass(outer, (list, tuple)) and inner <= {*_ELEMENTS[_LISTS[annotation]]}
    return outer in _ELEMENTS.get(annotation, (outer,))
