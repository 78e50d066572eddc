"""Calling one operator as the executor does."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from polytool.backends.native.ops.registry import find

Call = Callable[..., Any]


@pytest.fixture
def call() -> Call:
    """`call("Add", a, b)`: the newest form of an operator on arrays, attributes as keywords."""

    def run(name: str, *inputs: Any, version: int = 28, domain: str = "", **attrs: Any) -> Any:
        operator = find(domain, name, version)
        assert operator is not None
        with np.errstate(all="ignore"):
            return operator.function(np, *inputs, **attrs)

    return run
