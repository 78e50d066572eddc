"""Random small ONNX graphs, as a hypothesis strategy.

A graph grows node by node from a pool of tensors whose types and shapes are known. Values are
halves of small integers, so that what only moves, selects or adds them is exact; operators that
decide (Round, ArgMax, comparisons, casts to integers) are only put on exact tensors, else a
rounding error would flip them.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from hypothesis import strategies as st

from tests.property.growing import BOOL, FLOAT, NUMPY, Growing, Skip, draw_shape
from tests.property.random_blocks import BLOCKS
from tests.property.random_nodes import DECIDING, MAKERS


@st.composite
def graphs(
    draw: Any, most: int = 12, decide: bool = True
) -> tuple[onnx.ModelProto, dict[str, Any]]:
    """A valid model and its feeds; without `decide`, roundings only ever make small errors."""
    makers = [m for m in MAKERS + BLOCKS if decide or m not in DECIDING]
    g = Growing(draw, np.random.default_rng(draw(st.integers(0, 2**32 - 1))))
    g.input(FLOAT, draw_shape(draw))
    for kind in draw(
        st.lists(st.sampled_from([FLOAT, BOOL, *NUMPY] if decide else [FLOAT]), max_size=2)
    ):
        g.input(kind, draw_shape(draw))
    for make in draw(st.lists(st.sampled_from(makers), min_size=1, max_size=most)):
        try:
            make(g)
        except Skip:
            continue
    if not g.nodes:
        g.add("Identity", [g.pool[0]], [(g.pool[0].kind, g.pool[0].shape)])
    return g.model(symbolic=draw(st.booleans())), g.feeds
