"""Models that no package ships, made for tests and benchmarks; everything is seeded.

* `deep`: 1000 blocks of 20 small nodes: what per-node costs show on.
* `heavy`: 23 MatMuls of 4096 x 4096 with external weights: 1.54 GB, what copies show on.
* `transformer`: a MiniLM-like encoder as exporters write it (decomposed LayerNorm, erf GELU).
* `bert`: the same size, written as torch exports BERT: sizes taken from Shape at every Reshape,
  Constant nodes, Identity on shared weights, positions sliced from a buffer, a pooler.
* `gpt2`: as torch exports GPT-2: each linear layer a Gemm between two Reshapes, causal attention.
* `vit`: a vision transformer as torch exports it, of DeiT-tiny's size: its head reads one token.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

Nodes = list[onnx.NodeProto]


def deep(blocks: int = 1000, width: int = 16, seed: int = 0) -> onnx.ModelProto:
    """A chain of `blocks` blocks of 20 nodes each, with identities and foldable constants."""
    rng = np.random.default_rng(seed)
    graph = onnx.GraphProto(name="deep")
    graph.input.append(helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", width]))
    graph.output.append(helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", width]))
    graph.initializer.append(numpy_helper.from_array(np.float32(0.5), "half"))
    graph.initializer.append(numpy_helper.from_array(np.int64([0, -1]), "shape"))
    current = "x"
    for block in range(blocks):
        current = _block(graph, current, block, width, rng)
    graph.node.append(helper.make_node("Identity", [current], ["y"]))
    return _model(graph)


def _block(graph: onnx.GraphProto, x: str, block: int, width: int, rng: np.random.Generator) -> str:
    """Two small linear maps, a gate, constant arithmetic, no-ops: twenty nodes."""
    p = f"b{block}/"
    for name, shape in (("w1", (width, width)), ("w2", (width, width)), ("bias", (width,))):
        value = (rng.standard_normal(shape) / np.sqrt(width)).astype(np.float32)
        graph.initializer.append(numpy_helper.from_array(value, p + name))
    rows = [
        ("Mul", [p + "bias", "half"], "c0"),
        ("Add", [p + "c0", "half"], "c1"),
        ("Sqrt", [p + "c2"], "c3"),
        ("Abs", [p + "c1"], "c2"),
        ("Identity", [x], "i0"),
        ("MatMul", [p + "i0", p + "w1"], "m0"),
        ("Add", [p + "m0", p + "c3"], "a0"),
        ("Sigmoid", [p + "a0"], "s0"),
        ("Mul", [p + "a0", p + "s0"], "g0"),
        ("Reshape", [p + "g0", "shape"], "r0"),
        ("MatMul", [p + "r0", p + "w2"], "m1"),
        ("Add", [p + "m1", p + "bias"], "a1"),
        ("Tanh", [p + "a1"], "t0"),
        ("Identity", [p + "t0"], "i1"),
        ("Add", [p + "i1", x], "res"),
        ("Mul", [p + "res", "half"], "h0"),
        ("Relu", [p + "h0"], "h1"),
        ("Sub", [p + "h0", p + "h1"], "h2"),
        ("Add", [p + "h1", p + "h2"], "h3"),
        ("Identity", [p + "h3"], "out"),
    ]
    rows[2], rows[3] = rows[3], rows[2]
    for op, inputs, output in rows:
        graph.node.append(helper.make_node(op, inputs, [p + output], name=f"{p}{op}_{output}"))
    return p + "out"


def heavy(path: Path, layers: int = 23, width: int = 4096, seed: int = 0) -> Path:
    """Write a chain of MatMuls whose weights lie in one external file beside `path`."""
    rng = np.random.default_rng(seed)
    graph = onnx.GraphProto(name="heavy")
    graph.input.append(helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", width]))
    graph.output.append(helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", width]))
    path.parent.mkdir(parents=True, exist_ok=True)
    size = width * width * 4
    with open(path.with_suffix(".onnx.data"), "wb") as data:
        for layer in range(layers):
            weight = rng.standard_normal((width, width), np.float32) / np.float32(np.sqrt(width))
            data.write(weight.tobytes())
            tensor = graph.initializer.add(name=f"w{layer}", data_type=TensorProto.FLOAT)
            tensor.dims.extend([width, width])
            tensor.data_location = TensorProto.EXTERNAL
            for key, value in (
                ("location", path.with_suffix(".onnx.data").name),
                ("offset", str(layer * size)),
                ("length", str(size)),
            ):
                tensor.external_data.add(key=key, value=value)
            source = "x" if layer == 0 else f"h{layer - 1}"
            target = "y" if layer == layers - 1 else f"h{layer}"
            graph.node.append(helper.make_node("MatMul", [source, f"w{layer}"], [target]))
    path.write_bytes(_model(graph).SerializeToString())
    return path


def transformer(
    layers: int = 6, width: int = 384, heads: int = 12, vocabulary: int = 3000, seed: int = 0
) -> onnx.ModelProto:
    """Token ids and a mask to hidden states; the size of MiniLM by default."""
    rng = np.random.default_rng(seed)
    graph = onnx.GraphProto(name="transformer")
    for name in ("ids", "mask"):
        graph.input.append(helper.make_tensor_value_info(name, TensorProto.INT64, ["N", "S"]))
    graph.output.append(helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", "S", width]))
    build = _Builder(graph, rng)
    build.weight("embed", (vocabulary, width), 1.0)
    x = build("Gather", "embed", "ids")
    mask = build("Cast", build("Unsqueeze", "mask", build.ints(1, 2)), to=TensorProto.FLOAT)
    bias = build("Mul", build("Sub", build.scalar(1.0), mask), build.scalar(-10000.0))
    for layer in range(layers):
        x = _encoder(build, x, bias, f"l{layer}", width, heads)
    graph.node.append(helper.make_node("Identity", [x], ["y"]))
    return _model(graph)


def bert(
    layers: int = 6, width: int = 384, heads: int = 12, vocabulary: int = 3000, seed: int = 0
) -> onnx.ModelProto:
    """Token ids, mask and token types to hidden states and a pooled vector, as torch writes it."""
    graph = onnx.GraphProto(name="main_graph")
    for name in ("input_ids", "attention_mask", "token_type_ids"):
        info = helper.make_tensor_value_info(name, TensorProto.INT64, ["batch", "sequence"])
        graph.input.append(info)
    for name, axes in (("last_hidden_state", ["batch", "sequence", width]), ("pooled", None)):
        shape = axes or ["batch", width]
        graph.output.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, shape))
    build = _TorchBuilder(graph, np.random.default_rng(seed))
    length = build.unsqueezed(build.size("input_ids", 1))
    positions = build.constant(np.arange(512, dtype=np.int64).reshape(1, -1))
    zero, one = build.ints(0), build.ints(1)
    positions = build("Slice", positions, zero, length, one, one)
    mask = build("Unsqueeze", build("Unsqueeze", "attention_mask", build.ints(1)), build.ints(2))
    mask = build("Sub", build.scalar(1.0), build("Cast", mask, to=TensorProto.FLOAT))
    bias = build("Mul", mask, build.scalar(float(np.finfo(np.float32).min)))
    words = build("Gather", build.weight("word_embeddings", (vocabulary, width), 1.0), "input_ids")
    types = build("Gather", build.weight("type_embeddings", (2, width), 1.0), "token_type_ids")
    places = build("Gather", build.weight("position_embeddings", (512, width), 1.0), positions)
    x = build("Add", build("Add", words, types), places)
    x = build.norm(x, "embeddings", width)
    for layer in range(layers):
        x = _encoder(build, x, bias, f"encoder.{layer}", width, heads)
    graph.node.append(helper.make_node("Identity", [x], ["last_hidden_state"]))
    first = build("Gather", x, build.constant(np.int64(0)), axis=1)
    weights = build.weight("pooler.w", (width, width)), build.weight("pooler.b", (width,), 0.1)
    pooled = build("Gemm", first, *weights, transB=1)
    graph.node.append(helper.make_node("Tanh", [pooled], ["pooled"]))
    return _model(graph)


def gpt2(
    layers: int = 2,
    width: int = 32,
    heads: int = 4,
    vocabulary: int = 100,
    sizes: tuple[str | int, str | int] = ("batch", "sequence"),
    seed: int = 0,
) -> onnx.ModelProto:
    """Token ids [batch, sequence <= 64] to hidden states, as torch writes it."""
    graph = onnx.GraphProto(name="main_graph")
    graph.input.append(helper.make_tensor_value_info("ids", TensorProto.INT64, sizes))
    graph.output.append(helper.make_tensor_value_info("y", TensorProto.FLOAT, [*sizes, width]))
    build = _TorchBuilder(graph, np.random.default_rng(seed))
    length = build.size("ids", 1)
    places = build("Range", build.constant(np.int64(0)), length, build.constant(np.int64(1)))
    row, column = (
        build("Unsqueeze", places, build.ints(0)),
        build("Unsqueeze", places, build.ints(1)),
    )
    seen = build("LessOrEqual", row, column)
    mask = build("Where", seen, build.scalar(0.0), build.scalar(float(np.finfo(np.float32).min)))
    mask = build("Unsqueeze", mask, build.ints(0, 1))
    words = build("Gather", build.weight("wte", (vocabulary, width), 1.0), "ids")
    x = build("Add", words, build("Gather", build.weight("wpe", (64, width), 0.1), row))
    for layer in range(layers):
        x = _decoder(build, x, mask, f"h.{layer}", width, heads)
    x = build.layer_norm(x, "ln_f", width)
    graph.node.append(helper.make_node("Identity", [x], ["y"]))
    return _model(graph)


def vit(
    layers: int = 12,
    width: int = 192,
    heads: int = 3,
    image: int = 224,
    patch: int = 16,
    classes: int = 1000,
    seed: int = 0,
) -> onnx.ModelProto:
    """Images [batch, 3, image, image] to logits [batch, classes]."""
    graph = onnx.GraphProto(name="main_graph")
    sizes = ["batch", 3, image, image]
    graph.input.append(helper.make_tensor_value_info("x", TensorProto.FLOAT, sizes))
    graph.output.append(helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", classes]))
    build = _TorchBuilder(graph, np.random.default_rng(seed))
    kernel = build.weight("patches.w", (width, 3, patch, patch), 0.05)
    patches = build("Conv", "x", kernel, strides=[patch, patch])
    dims = build("Concat", build.unsqueezed(build.size(patches, 0)), build.ints(width, -1), axis=0)
    x = build("Transpose", build("Reshape", patches, dims), perm=[0, 2, 1])
    batch = build("Concat", build.unsqueezed(build.size(x, 0)), build.ints(1, width), axis=0)
    token = build("Expand", build.weight("token", (1, 1, width), 1.0), batch)
    x = build("Concat", token, x, axis=1)
    x = build("Add", x, build.weight("places", (1, (image // patch) ** 2 + 1, width), 0.5))
    for layer in range(layers):
        x = _vision_block(build, x, f"blocks.{layer}", width, heads)
    x = build.layer_norm(x, "norm", width)
    first = build("Gather", x, build.constant(np.int64(0)), axis=1)
    weights = build.weight("head.w", (classes, width), 0.1), build.weight("head.b", (classes,), 0.1)
    graph.node.append(helper.make_node("Gemm", [first, *weights], ["y"], transB=1))
    return _model(graph)


class _Builder:
    def __init__(self, graph: onnx.GraphProto, rng: np.random.Generator) -> None:
        self.graph, self.rng, self.count = graph, rng, 0

    def __call__(self, op: str, *inputs: str, **attrs: object) -> str:
        self.count += 1
        output = f"{op.lower()}_{self.count}"
        name = f"/{op}_{self.count}"
        self.graph.node.append(helper.make_node(op, inputs, [output], name=name, **attrs))
        return output

    def constant(self, value: np.ndarray) -> str:
        self.count += 1
        name = f"constant_{self.count}"
        self.graph.initializer.append(numpy_helper.from_array(value, name))
        return name

    def ints(self, *values: int) -> str:
        return self.constant(np.int64(values))

    def scalar(self, value: float) -> str:
        return self.constant(np.float32(value))

    def weight(self, name: str, shape: tuple[int, ...], scale: float | None = None) -> str:
        spread = shape[0] ** -0.5 if scale is None else scale
        value = (self.rng.standard_normal(shape) * spread).astype(np.float32)
        self.graph.initializer.append(numpy_helper.from_array(value, name))
        return name

    def reshape(self, x: str, *sizes: int) -> str:
        """Batch and sequence stay; `sizes` are what the rest becomes."""
        return self("Reshape", x, self.ints(0, 0, *sizes))

    def linear(self, x: str, name: str, n_in: int, n_out: int) -> str:
        product = self("MatMul", x, self.weight(f"{name}.w", (n_in, n_out)))
        return self("Add", product, self.weight(f"{name}.b", (n_out,), 0.1))

    def norm(self, x: str, name: str, width: int) -> str:
        """LayerNormalization as older exporters decompose it."""
        centred = self("Sub", x, self("ReduceMean", x, axes=[-1]))
        variance = self("ReduceMean", self("Pow", centred, self.scalar(2.0)), axes=[-1])
        deviation = self("Sqrt", self("Add", variance, self.scalar(1e-12)))
        scale = self.scale(width)
        shift = self.weight(f"{name}.shift", (width,), 0.1)
        return self("Add", self("Mul", self("Div", centred, deviation), scale), shift)

    def scale(self, width: int) -> str:
        return self.constant((1 + 0.1 * self.rng.standard_normal(width)).astype(np.float32))

    def gelu(self, x: str) -> str:
        inner = self("Erf", self("Div", x, self.scalar(float(np.sqrt(2.0)))))
        doubled = self("Mul", x, self("Add", inner, self.scalar(1.0)))
        return self("Mul", doubled, self.scalar(0.5))


class _TorchBuilder(_Builder):
    """Writes what torch's exporter writes: nothing is folded, nothing is shared but weights."""

    def constant(self, value: np.ndarray) -> str:
        return self("Constant", value=numpy_helper.from_array(value))

    def size(self, x: str, axis: int) -> str:
        return self("Gather", self("Shape", x), self.constant(np.int64(axis)), axis=0)

    def unsqueezed(self, x: str) -> str:
        return self("Unsqueeze", x, self.ints(0))

    def reshape(self, x: str, *sizes: int) -> str:
        dims = [self.unsqueezed(self.size(x, axis)) for axis in (0, 1)]
        return self("Reshape", x, self("Concat", *dims, *map(self.ints, sizes), axis=0))

    def scale(self, width: int) -> str:
        """Torch keeps one of equal weights, and names it again where the others stood."""
        if any(t.name == "norm.scale" for t in self.graph.initializer):
            return self("Identity", "norm.scale")
        value = (1 + 0.1 * self.rng.standard_normal(width)).astype(np.float32)
        self.graph.initializer.append(numpy_helper.from_array(value, "norm.scale"))
        return "norm.scale"

    def linear(self, x: str, name: str, n_in: int, n_out: int) -> str:
        product = self("MatMul", x, self.weight(f"{name}.w", (n_in, n_out)))
        return self("Add", self.weight(f"{name}.b", (n_out,), 0.1), product)

    def layer_norm(self, x: str, name: str, width: int) -> str:
        shift = self.weight(f"{name}.shift", (width,), 0.1)
        return self("LayerNormalization", x, self.scale(width), shift, axis=-1)

    def conv1d(self, x: str, name: str, n_in: int, n_out: int) -> str:
        """The linear layer of transformers' GPT-2: `addmm` on a view of all rows."""
        dims = [self.unsqueezed(self.size(x, axis)) for axis in (0, 1)]
        end = self.ints(np.iinfo(np.int64).max)
        last = self("Slice", self("Shape", x), self.ints(-1), end, self.ints(0))
        last = self.unsqueezed(self("Squeeze", last, self.ints(0)))
        rows = self("Reshape", x, self("Concat", self.ints(-1), last, axis=0))
        weights = self.weight(f"{name}.w", (n_in, n_out)), self.weight(f"{name}.b", (n_out,), 0.1)
        product = self("Gemm", rows, *weights, alpha=1.0, beta=1.0)
        return self("Reshape", product, self("Concat", *dims, self.ints(n_out), axis=0))

    def gelu_new(self, x: str) -> str:
        cube = self("Mul", self("Pow", x, self.scalar(3.0)), self.scalar(0.044715))
        inner = self("Mul", self("Add", x, cube), self.scalar(float(np.sqrt(2 / np.pi))))
        half = self("Mul", x, self.scalar(0.5))
        return self("Mul", half, self("Add", self("Tanh", inner), self.scalar(1.0)))


def _decoder(build: _TorchBuilder, x: str, mask: str, name: str, width: int, heads: int) -> str:
    size = width // heads
    joined = build.conv1d(
        build.layer_norm(x, f"{name}.ln_1", width), f"{name}.c_attn", width, 3 * width
    )
    parts = [f"{name}.{part}" for part in "qkv"]
    widths = build.ints(width, width, width)
    build.graph.node.append(helper.make_node("Split", [joined, widths], parts, axis=2))
    q, k, v = (
        build("Transpose", build.reshape(part, heads, size), perm=perm)
        for part, perm in zip(parts, ([0, 2, 1, 3], [0, 2, 3, 1], [0, 2, 1, 3]), strict=True)
    )
    scores = build("Mul", build("MatMul", q, k), build.scalar(size**-0.5))
    weights = build("Softmax", build("Add", scores, mask), axis=-1)
    mixed = build("Transpose", build("MatMul", weights, v), perm=[0, 2, 1, 3])
    attended = build.conv1d(build.reshape(mixed, width), f"{name}.c_proj", width, width)
    x = build("Add", attended, x)
    hidden = build.conv1d(
        build.layer_norm(x, f"{name}.ln_2", width), f"{name}.up", width, 4 * width
    )
    down = build.conv1d(build.gelu_new(hidden), f"{name}.down", 4 * width, width)
    return build("Add", x, down)


def _encoder(build: _Builder, x: str, bias: str, name: str, width: int, heads: int) -> str:
    size = width // heads

    def head(kind: str, perm: list[int]) -> str:
        value = build.linear(x, f"{name}.{kind}", width, width)
        return build("Transpose", build.reshape(value, heads, size), perm=perm)

    q, k, v = head("q", [0, 2, 1, 3]), head("k", [0, 2, 3, 1]), head("v", [0, 2, 1, 3])
    scores = build("Div", build("MatMul", q, k), build.scalar(float(np.sqrt(size))))
    weights = build("Softmax", build("Add", scores, bias), axis=-1)
    mixed = build("Transpose", build("MatMul", weights, v), perm=[0, 2, 1, 3])
    flat = build.reshape(mixed, width)
    attended = build.linear(flat, f"{name}.out", width, width)
    x = build.norm(build("Add", attended, x), f"{name}.norm1", width)
    hidden = build.gelu(build.linear(x, f"{name}.up", width, 4 * width))
    down = build.linear(hidden, f"{name}.down", 4 * width, width)
    return build.norm(build("Add", down, x), f"{name}.norm2", width)


def _vision_block(build: _TorchBuilder, x: str, name: str, width: int, heads: int) -> str:
    """Queries, keys and values from one product, and a GELU that is written out."""
    size = width // heads
    normed = build.layer_norm(x, f"{name}.norm1", width)
    joined = build.reshape(build.linear(normed, f"{name}.qkv", width, 3 * width), 3, heads, size)
    joined = build("Transpose", joined, perm=[2, 0, 3, 1, 4])
    q, k, v = (build("Gather", joined, build.constant(np.int64(i)), axis=0) for i in range(3))
    scale = build.scalar(size**-0.25)
    scores = build(
        "MatMul",
        build("Mul", q, scale),
        build("Mul", build("Transpose", k, perm=[0, 1, 3, 2]), scale),
    )
    mixed = build("MatMul", build("Softmax", scores, axis=-1), v)
    mixed = build("Transpose", mixed, perm=[0, 2, 1, 3])
    attended = build.linear(build.reshape(mixed, width), f"{name}.proj", width, width)
    x = build("Add", x, attended)
    hidden = build.linear(
        build.layer_norm(x, f"{name}.norm2", width), f"{name}.up", width, 4 * width
    )
    return build("Add", x, build.linear(build.gelu(hidden), f"{name}.down", 4 * width, width))


def _model(graph: onnx.GraphProto) -> onnx.ModelProto:
    opsets = [helper.make_opsetid("", 17)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8)
