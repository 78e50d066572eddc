"""The optimisers' update steps of ai.onnx.preview.training."""

from __future__ import annotations

from typing import Any

from polytool.backends.native.cuda.elements import compute
from polytool.backends.native.cuda.recorder import Recorder, given, lowering
from polytool.backends.native.network import Layer

_DOMAIN = "ai.onnx.preview.training"
_STEPS = {
    "Adagrad": """
        const R_x rate = widen(r[0]) / (1 + (R_x)t[0] * (R_x)decay_factor);
        const R_x total = widen(h[unit]) + gradient * gradient;
        new_x[unit] = narrow<T_x>(widen(x[unit]) - rate * gradient / (sqrt(total) + (R_x)epsilon));
        new_h[unit] = narrow<T_x>(total);""",
    "Adam": """
        double rate = (double)widen(r[0]);
        if (t[0] > 0) rate *= sqrt(1 - pow(beta, (double)t[0])) / (1 - pow(alpha, (double)t[0]));
        const double first = alpha * widen(v[unit]) + (1 - alpha) * gradient;
        const double second = beta * widen(h[unit]) + (1 - beta) * gradient * gradient;
        const double moved = widen(x[unit]) - rate * first / (sqrt(second) + epsilon);
        new_x[unit] = narrow<T_x>((1 - norm_coefficient_post) * moved);
        new_v[unit] = narrow<T_x>(first);
        new_h[unit] = narrow<T_x>(second);""",
    "Momentum": """
        const R_x velocity = (R_x)alpha * widen(v[unit]) + (R_x)(t[0] > 0 ? beta : 1.0) * gradient;
        const R_x direction = NESTEROV ? gradient + (R_x)alpha * velocity : velocity;
        new_x[unit] = narrow<T_x>(widen(x[unit]) - widen(r[0]) * direction);
        new_v[unit] = narrow<T_x>(velocity);""",
}
_STATES = {"Adagrad": ("x", "h"), "Adam": ("x", "v", "h"), "Momentum": ("x", "v")}
_DEFAULTS = {
    "decay_factor": 0.0,
    "epsilon": 0.0,
    "norm_coefficient": 0.0,
    "norm_coefficient_post": 0.0,
    "alpha": 0.9,
    "beta": 0.999,
}


@lowering("Adagrad", "Adam", "Momentum", domain=_DOMAIN)
def update(rec: Recorder, layer: Layer) -> None:
    """A thread a parameter; tensors come as x1 x2 ..., g1 g2 ..., then their states."""
    node = layer.nodes[0]
    states = _STATES[node.op]
    kinds = (states[0], "g", *states[1:])
    count = (len(node.inputs) - 2) // len(kinds)
    defaults = _DEFAULTS | ({"epsilon": 1e-6} if node.op == "Adam" else {})
    scalars: dict[str, Any] = {k: float(node.attrs.get(k, v)) for k, v in defaults.items()}
    nesterov = int(str(node.attrs.get("mode", "")) == "nesterov")
    gradient = "const R_x gradient = (R_x)norm_coefficient * widen(x[unit]) + widen(g[unit]);"
    for i in range(count):
        views = {"r": rec.view(given(node, 0)), "t": rec.view(given(node, 1))}
        views |= {k: rec.view(given(node, 2 + j * count + i)) for j, k in enumerate(kinds)}
        outputs = {}
        for j, name in enumerate(states):
            tensor = node.outputs[j * count + i]
            assert tensor is not None
            outputs[f"new_{name}"] = rec.output(tensor)
        compute(
            rec, node.op, views["x"].shape, views, outputs, gradient + _STEPS[node.op],
            defines={"NESTEROV": nesterov}, **scalars,
        )  # fmt: skip
