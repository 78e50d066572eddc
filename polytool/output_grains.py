"""How coarsely an operator computes a model's outputs, where that is coarser than its values.

A Sigmoid of -16 is 1e-7; implementations compute it as a fraction of 1 and are off by as much. So
an output made by Sigmoid cannot be told apart below 2^-22, however small its values are.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnx

    from polytool.model import Source

GRAIN = 2.0**-22  # onnxruntime's Sigmoid is off by up to 1.7e-7
# Operators that hand on values of their first input (all inputs for Concat, Mul, Max, Min).
_MOVES = {
    "Identity", "Reshape", "Transpose", "Squeeze", "Unsqueeze", "Flatten", "Slice", "Gather",
    "Split", "Clip", "ReduceMax", "MaxPool", "TopK",
}  # fmt: skip
_MIXES = {"Concat", "Mul", "Max", "Min"}


def output_grains(model: Source) -> dict[str, float]:
    """By output name, the absolute error that its operator may have; only those that have one."""
    from polytool.model import load

    graph = load(model).proto.graph
    makers = {name: node for node in graph.node for name in node.output if name}
    return {o.name: GRAIN for o in graph.output if _is_fraction(o.name, makers)}


def _is_fraction(name: str, makers: dict[str, onnx.NodeProto]) -> bool:
    """Whether a tensor holds values of Sigmoids, or products of such."""
    pending, seen, found = [name], {name}, False
    while pending:
        node = makers.get(pending.pop())
        if node is None:
            return False
        if node.op_type == "Sigmoid":
            found = True
            continue
        if node.op_type not in _MOVES | _MIXES:
            return False
        for source in node.input[: None if node.op_type in _MIXES else 1]:
            if source not in seen:
                seen.add(source)
                pending.append(source)
    return found
