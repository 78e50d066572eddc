"""Layers of the benchmark networks with all their candidates: products, convolutions, norms ..."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F

from polytool.backends.native.kernels import attention, gemm, gemm_wide, launch, pool, rows
from polytool.backends.native.kernels.expr import Step, Tree
from polytool.backends.native.kernels.pointwise import Operand, Pointwise
from polytool.backends.native.kernels.reduce import Reduce
from polytool.backends.native.kernels.source import Plan
from polytool.backends.native.tactics import cublaslt, cudnn
from polytool.tensors import DType
from scripts.bench_gpu_tune import Choice, Device, Launches, Layer, cublas_choices, cudnn_choices

H, S = DType.FLOAT16, DType.FLOAT
ACT = {"relu": "Relu", "gelu": "Gelu"}


class Network:
    """Collects layers; every tensor is a torch tensor of its own."""

    def __init__(self, device: Device, fusions: int = 4) -> None:
        self.device = device
        self.layers: list[Layer] = []
        self.plans: list[Plan] = []
        self.fusions = fusions
        self.seen: dict[tuple[Any, ...], list[Choice]] = {}

    def tensor(self, *shape: int) -> torch.Tensor:
        """A buffer with random values, so that tuning sees real numbers."""
        return torch.randn(shape, dtype=torch.float16, device="cuda")

    def add(
        self,
        name: str,
        key: tuple[Any, ...],
        buffers: list[torch.Tensor],
        weights: tuple[int, ...],
        choices: list[Choice],
        reference: Any,
        output: int = -1,
    ) -> torch.Tensor:
        layer = Layer(name, key, buffers, weights, choices, output, reference)
        self.layers.append(layer)
        return buffers[output]

    def kernel(self, label: str, plan: Plan) -> Choice:
        self.plans.append(plan)
        return self.device.kernel(label, plan)

    def own(self, epilogue: gemm.Epilogue, problem: gemm.Problem) -> list[Choice]:
        found = gemm.candidates(H, epilogue, problem, self.device.device.multiprocessors)
        choices = [self.kernel(f"own {g.tile} k{s}", g.plan(problem, s)) for g, s in found]
        if isinstance(problem, gemm.Matrix):
            for w in gemm_wide.candidates(H, epilogue, problem):
                label = f"wide {w.columns} c{w.cluster}"
                choices.append(self.kernel(label, w.plan(problem)))
        return choices

    def gemm(
        self,
        name: str,
        a: torch.Tensor,
        w: torch.Tensor,
        bias: torch.Tensor,
        residual: torch.Tensor | None = None,
        activation: str = "none",
        out: torch.Tensor | None = None,
        problem: gemm.Matrix | None = None,
    ) -> torch.Tensor:
        """out = activation(a w^T + bias + residual)."""
        (n, k), m = w.shape, a.numel() // w.shape[1]
        plain = problem is None
        problem = problem or gemm.Matrix(m, n, k)
        out = self.tensor(m, n) if out is None else out
        buffers = [a, w, bias, *([] if residual is None else [residual]), out]
        key = ("gemm", problem, residual is not None, activation)
        if key not in self.seen:
            choices = self.own(epilogue(residual is not None, activation), problem)
            product = cublaslt.Product(
                problem.m,
                n,
                k,
                bias=True,
                addend=residual is not None,
                activation=activation if activation == "relu" else "none",
                batch=problem.batch,
                lda=problem.lda,
                ldd=problem.ldd,
                batch_a=problem.batch_a or None,
                batch_b=0 if problem.batch > 1 else None,
                batch_d=problem.batch_d or None,
            )
            library = cublas_choices(self.device, product)
            if activation == "gelu":
                after = unary("Gelu", out.numel())
                self.plans.append(after)
                library = [then(self.device, c, after) for c in library]
            choices += library
            if activation == "gelu" and plain:
                description = cudnn.Product(m, n, k, activation="gelu")
                choices += cudnn_choices(self.device, description, self.fusions)
            self.seen[key] = choices

        def reference() -> torch.Tensor:
            x = a.reshape(-1).as_strided((problem.m, k), (problem.lda, 1)) if problem.lda else a
            x = x.reshape(-1, k).float()
            y = x @ w.float().T + bias.float()
            if residual is not None:
                y = y + residual.reshape(y.shape).float()
            return activate(y, activation)

        return self.add(name, key, buffers, (1,), self.fresh(key), reference)

    def fresh(self, key: tuple[Any, ...]) -> list[Choice]:
        return [Choice(c.label, c.make) for c in self.seen[key]]

    def conv(
        self,
        name: str,
        x: torch.Tensor,
        w: torch.Tensor,
        bias: torch.Tensor,
        stride: int,
        residual: torch.Tensor | None = None,
        activation: str = "relu",
    ) -> torch.Tensor:
        """NHWC convolution, weights [out, kh, kw, in], half padding."""
        (b, h, width, c), (o, k, _, _) = x.shape, w.shape
        pad = k // 2
        problem = gemm.Convolution(
            b, h, width, c, o, (k, k), (stride, stride), (pad, pad, pad, pad)
        )
        out = self.tensor(b, *problem.output, o)
        buffers = [x, w, bias, *([] if residual is None else [residual]), out]
        key = ("conv", problem, residual is not None, activation)
        if key not in self.seen:
            matrix = problem.as_matrix()
            choices = self.own(epilogue(residual is not None, activation), matrix or problem)
            if matrix is not None:
                product = cublaslt.Product(
                    matrix.m,
                    matrix.n,
                    matrix.k,
                    bias=True,
                    addend=residual is not None,
                    activation=activation,
                )
                choices += cublas_choices(self.device, product, 8)
            description = cudnn.Convolution(
                (b, c, h, width),
                (o, c, k, k),
                (b, o, *problem.output),
                (stride, stride),
                (pad, pad, pad, pad),
                addend=residual is not None,
                activation=activation,
            )
            most = 10 if residual is None else self.fusions
            choices += cudnn_choices(self.device, description, most)
            self.seen[key] = choices

        def reference() -> torch.Tensor:
            y = (
                F.conv2d(
                    x.permute(0, 3, 1, 2).float(), w.permute(0, 3, 1, 2).float(), None, stride, pad
                ).permute(0, 2, 3, 1)
                + bias.float()
            )
            if residual is not None:
                y = y + residual.float()
            return activate(y, activation)

        return self.add(name, key, buffers, (1,), self.fresh(key), reference)

    def norm(
        self,
        name: str,
        x: torch.Tensor,
        gamma: torch.Tensor,
        beta: torch.Tensor,
        epsilon: float,
        residual: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """LayerNorm of the rows of x (+ residual, whose sum is not rounded)."""
        n, out = x.shape[-1], torch.randn_like(x)
        both = Tree((H, H), (Step.of("Add", 0, 1, dtype=H),))
        before, operands = (Tree((H,)), ("full",)) if residual is None else (both, ("full",) * 2)
        op = rows.RowOp("layernorm", before, operands, affine(), ("column", "column"))
        plan = op.plan(x.numel() // n, n, epsilon=epsilon)

        def reference() -> torch.Tensor:
            y = x.float() if residual is None else x.float() + residual.float()
            return F.layer_norm(y, (n,), gamma.float(), beta.float(), epsilon)

        key = ("norm", x.shape, residual is not None)
        buffers = [x, *([] if residual is None else [residual]), gamma, beta, out]
        return self.add(name, key, buffers, (), [self.kernel("own", plan)], reference)

    def attention(
        self,
        name: str,
        qkv: torch.Tensor,
        batch: int,
        heads: int,
        mask: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Attention of packed [batch * rows, 3 * heads * head]."""
        width = qkv.shape[1] // 3
        length, head = qkv.shape[0] // batch, width // heads
        out = self.tensor(batch * length, width)
        step = (length * 3 * width, head, 3 * width)
        layout = attention.Layout(
            batch,
            heads,
            heads,
            length,
            length,
            head**-0.5,
            step,
            step,
            step,
            (length * width, head, width),
            (length, 0, 0, 1),
        )
        q, k, v = (qkv[:, i * width : (i + 1) * width] for i in range(3))
        buffers = [q, k, v, *([] if mask is None else [mask]), out]
        choices = []
        for form in attention.FORMS:
            op = attention.Attention(H, head, None if mask is None else H, False, form, False)
            choices.append(self.kernel(f"own {form}", op.plan(layout)))
        shape = (batch, heads, length, head)
        steps = (step[0], step[1], step[2], 1)
        description = cudnn.Attention(
            shape,
            shape,
            steps,
            steps,
            steps,
            (length * width, head, width, 1),
            head**-0.5,
            mask=None if mask is None else (batch, 1, 1, length),
        )
        key = ("attention", batch, heads, length, head, mask is not None)
        if key not in self.seen:
            self.seen[key] = cudnn_choices(self.device, description, 4)
        choices += self.fresh(key)

        def reference() -> torch.Tensor:
            q, k, v = qkv.reshape(batch, length, 3, heads, head).permute(2, 0, 3, 1, 4).float()
            extra = None if mask is None else mask.reshape(batch, 1, 1, length).float()
            o = F.scaled_dot_product_attention(q, k, v, extra)
            return o.transpose(1, 2).reshape(batch * length, width)

        return self.add(name, key, buffers, (), choices, reference)

    def max_pool(self, name: str, x: torch.Tensor) -> torch.Tensor:
        """3x3, stride 2, padded by one, NHWC."""
        b, h, w, c = x.shape
        oh, ow = (h - 1) // 2 + 1, (w - 1) // 2 + 1
        out = self.tensor(b, oh, ow, c)
        window = pool.Window((3, 3), (2, 2), (1, 1, 1, 1), (1, 1))
        plan = pool.Pool("MaxPool", H, True).plan(b, c, (h, w), (oh, ow), window)

        def reference() -> torch.Tensor:
            y = F.max_pool2d(x.permute(0, 3, 1, 2).float(), 3, 2, 1)
            return y.permute(0, 2, 3, 1)

        choices = [self.kernel("own", plan)]
        return self.add(name, ("pool", x.shape), [x, out], (), choices, reference)

    def mean(self, name: str, x: torch.Tensor) -> torch.Tensor:
        """Mean over the pixels of NHWC."""
        b, h, w, c = x.shape
        out = self.tensor(b, c)
        plan = Reduce("ReduceMean", H, H).plan((b, h * w, c), (1,))
        choices = [self.kernel("own", plan)]
        reference = lambda: x.float().mean((1, 2))  # noqa: E731 - a line as data
        return self.add(name, ("mean", x.shape), [x, out], (), choices, reference)


def activate(y: torch.Tensor, activation: str) -> torch.Tensor:
    return {"none": lambda v: v, "relu": F.relu, "gelu": F.gelu}[activation](y)


def epilogue(residual: bool, activation: str) -> gemm.Epilogue:
    """acc + bias (+ residual), then the activation."""
    inputs, steps = [S, H, *([H] if residual else [])], []
    steps.append(Step.of("Add", 0, 1, dtype=H))
    last = len(inputs)
    if residual:
        steps.append(Step.of("Add", last, 2, dtype=H))
        last += 1
    if activation != "none":
        steps.append(Step.of(ACT[activation], last, dtype=H))
    operands = ("column", "full") if residual else ("column",)
    return gemm.Epilogue(Tree(tuple(inputs), tuple(steps)), operands)


def affine() -> Tree:
    return Tree((S, H, H), (Step.of("Mul", 0, 1, dtype=H), Step.of("Add", 3, 2, dtype=H)))


def unary(op: str, count: int) -> Plan:
    work = Pointwise(Tree((H,), (Step.of(op, 0, dtype=H),)))
    return work.plan(
        (count,), [Operand((count,))], pattern=work.pattern((count,), [Operand((count,))])
    )


def then(device: Device, choice: Choice, after: Plan) -> Choice:
    """A choice followed by an in-place kernel on its output."""

    def make(addresses: Any) -> Launches:
        last = launch.prepare_plan(after, device.device, [addresses[-1], addresses[-1]])
        return [*choice.make(addresses), *last]

    return Choice(f"{choice.label}+gelu", make)
