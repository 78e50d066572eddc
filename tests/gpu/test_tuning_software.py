"""Which candidates an engine takes, on a GPU in software (what times it has mean nothing)."""

import numpy as np
import onnx.numpy_helper
import onnx.parser
import pytest

from polytool import BuilderConfig, engine_from_onnx
from polytool.backends.native.cuda import timing
from polytool.backends.native.cuda.stretch import Stretch
from polytool.backends.native.tactic_replay import TacticReplay
from polytool.backends.native.timing_cache import TimingCache
from polytool.errors import ModelError, UsageError

RNG = np.random.default_rng(0)


def model(rows: object = 32, columns: int = 64) -> onnx.ModelProto:
    proto = onnx.parser.parse_model(
        f"""<ir_version: 9, opset_import: ["" : 20]>
        g (float[{rows},64] x) => (float[{rows},{columns}] y) {{
            a = MatMul(x, w) b = Relu(a) y = MatMul(b, v)
        }}"""
    )
    for name, shape in (("w", (64, 64)), ("v", (64, columns))):
        values = RNG.standard_normal(shape).astype(np.float32)
        proto.graph.initializer.append(onnx.numpy_helper.from_array(values, name))
    return proto


def build(proto: onnx.ModelProto | None = None, **options):
    config = BuilderConfig.of(precision="fp16", device="cuda", **options)
    return engine_from_onnx(proto or model(), config)


@pytest.fixture(autouse=True)
def quick(software_gpu):
    software_gpu.kernels = False
    return software_gpu


def test_a_warm_cache_times_nothing_and_decides_alike(tmp_path, quick):
    cold = TimingCache()
    first = build(timing_cache=cold).tactics()
    assert cold.timed > 4 and len(first.choices) == 2
    cold.save(tmp_path / "t.cache")
    compiled = len(quick.compiled)
    warm = TimingCache.load(tmp_path / "t.cache")
    assert build(timing_cache=warm).tactics().choices == first.choices
    assert warm.timed == 0
    assert len(quick.compiled) - compiled <= 2  # nothing but the winners


def test_nothing_is_launched_on_inputs_that_are_not_there(quick, monkeypatch):
    """Garbage as indices would read anywhere."""
    events: list[str] = []

    def note(name):
        original = getattr(Stretch, name)

        def noted(self, *args):
            events.append(name)
            return original(self, *args)

        monkeypatch.setattr(Stretch, name, noted)

    for name in ("_place", "_fill", "_choose"):
        note(name)
    build()
    assert events[:6] == ["_place", "_fill", "_choose"] * 2


def test_the_build_tunes_and_the_first_inference_does_not(monkeypatch, quick):
    engine = build()
    compiled = len(quick.compiled)
    monkeypatch.setattr(timing._Bench, "time_all", None)
    engine.create_execution_context().infer({"x": np.ones((32, 64), np.float32)})
    engine.create_execution_context().infer({"x": np.ones((32, 64), np.float32)})
    assert len(quick.compiled) == compiled


def test_shapes_inside_a_profile_take_the_tactics_of_its_usual_shape(monkeypatch):
    engine = build(model("N"), profiles=[{"x": ((1, 64), (32, 64), (48, 64))}])
    usual = {c.layer: c.tactic for c in engine.tactics().choices if "m=32" in c.signature}
    assert len(usual) == 2
    monkeypatch.setattr(timing._Bench, "time_all", None)
    context = engine.create_execution_context()
    for rows in (1, 17, 32, 48):
        assert context.infer({"x": np.ones((rows, 64), np.float32)})["y"].shape == (rows, 64)
    with pytest.raises(UsageError, match="fit no optimization profile"):
        context.infer({"x": np.ones((49, 64), np.float32)})
    for choice in engine.tactics().choices:
        assert usual[choice.layer] == choice.tactic or usual[choice.layer] not in choice.candidates


def test_a_chosen_profile_counts_for_the_first_context_too():
    engine = build(model("N"), profiles=[{"x": ((1, 64),) * 3}, {"x": ((9, 64),) * 3}])
    context = engine.create_execution_context(optimization_profile=1)
    assert context.infer({"x": np.ones((9, 64), np.float32)})["y"].shape == (9, 64)
    with pytest.raises(UsageError, match="profile"):
        context.infer({"x": np.ones((1, 64), np.float32)})


def test_the_largest_shape_of_a_profile_makes_the_arena():
    engine = build(model("N"), profiles=[{"x": ((1, 64), (32, 64), (480, 64))}])
    context = engine.create_execution_context()
    context.infer({"x": np.ones((32, 64), np.float32)})
    (arena,) = {s._memory for s in context._program.stretches}
    before = arena.address, arena.size
    for rows in (480, 100, 480, 1):
        context.infer({"x": np.ones((rows, 64), np.float32)})
    assert (arena.address, arena.size) == before


def test_level_0_times_nothing_and_higher_levels_time_more():
    counts = []
    for level in (0, 1, 3):
        cache = TimingCache()
        build(timing_cache=cache, builder_optimization_level=level)
        counts.append(cache.timed)
    assert counts[0] == 0 < counts[1] < counts[2]
    with pytest.raises(UsageError, match="level 6 is not one of 0 to 5"):
        build(builder_optimization_level=6)


def test_saved_tactics_are_repeated(tmp_path):
    engine = build()
    other = [(c, next(n for n in c.candidates if n != c.tactic)) for c in engine.tactics().choices]
    rows = [{**c.to_json(), "tactic": name} for c, name in other]
    changed = engine.tactics().to_json() | {"tactics": rows}
    (tmp_path / "t.json").write_text(__import__("json").dumps(changed))
    cache = TimingCache()
    again = build(tactics=tmp_path / "t.json", timing_cache=cache).tactics()
    assert [c.tactic for c in again.choices] == [name for _, name in other]
    assert cache.timed == 0
    again.save(tmp_path / "again.json")
    assert TacticReplay.load(tmp_path / "again.json").choices == again.choices


def test_tactics_of_another_model_or_version_are_refused(tmp_path):
    saved = build().tactics()
    with pytest.raises(ModelError, match="holds no tactic for layer"):
        build(tactics=TacticReplay(saved.choices[:1]))
    strange = [c.__class__(c.layer, "gemm 1x1", c.signature) for c in saved.choices]
    with pytest.raises(ModelError, match="wants tactic 'gemm 1x1' for layer .*, which has gemm"):
        build(tactics=TacticReplay(tuple(strange)))


def test_sources_and_workspace_leave_out_candidates():
    cache = TimingCache()
    engine = build(tactic_sources=["cublas_lt"], timing_cache=cache)
    assert cache.timed == 0  # nothing is left but the one that always stays
    assert len(engine.tactics().choices) == 2
    with pytest.raises(UsageError, match="unknown tactic source 'cutlass'"):
        build(tactic_sources=["cutlass"])
