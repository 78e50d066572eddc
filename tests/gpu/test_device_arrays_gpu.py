"""Arrays of torch and CuPy on a GPU go in and come out there, in the order of their streams."""

import threading

import numpy as np
import onnx.numpy_helper
import onnx.parser
import pytest

from polytool import BuilderConfig, Engine, NativeRunner, engine_from_onnx
from polytool.backends.native.cuda import timing
from polytool.backends.native.kernels import compiler, driver
from polytool.backends.native.timing_cache import TimingCache
from polytool.errors import UsageError
from scripts import made_models

pytestmark = pytest.mark.gpu
RNG = np.random.default_rng(0)


def model(rows: object = "N") -> onnx.ModelProto:
    proto = onnx.parser.parse_model(
        f"""<ir_version: 9, opset_import: ["" : 20]>
        g (float[{rows},256] x) => (float[{rows},256] y) {{
            a = MatMul(x, w) b = Relu(a) c = MatMul(b, w) y = Softmax(c) }}"""
    )
    values = RNG.standard_normal((256, 256)).astype(np.float32) / 16
    proto.graph.initializer.append(onnx.numpy_helper.from_array(values, "w"))
    return proto


MODEL = model()
X = RNG.standard_normal((64, 256)).astype(np.float32)


@pytest.fixture(scope="module")
def engine() -> Engine:
    return engine_from_onnx(MODEL, BuilderConfig(precision="fp16", device="cuda"))


@pytest.fixture
def torch():
    return pytest.importorskip("torch")


def test_torch_in_gives_torch_out_without_the_host(engine, torch):
    context = engine.create_execution_context()
    expected = context.infer({"x": X})["y"]
    x = torch.from_numpy(X).cuda()
    results = [context.infer({"x": x})["y"] for _ in range(6)]
    for y in results:
        assert y.device == x.device and y.dtype == torch.float32
        assert np.array_equal(y.cpu().numpy(), expected)
    assert len({y.data_ptr() for y in results}) == 6


def test_strided_torch_tensors_and_views(engine, torch):
    context = engine.create_execution_context()
    x = torch.from_numpy(np.ascontiguousarray(X.T)).cuda().T
    whole = torch.zeros((65, 256), device="cuda")
    whole[1:] = torch.from_numpy(X)
    odd = torch.zeros(64 * 256 + 1, device="cuda")[1:].view(64, 256)  # 4 bytes off alignment
    odd.copy_(torch.from_numpy(X))
    expected = context.infer({"x": X})["y"]
    for given in (x, whole[1:], odd, x, odd, whole[1:]):
        assert np.array_equal(context.infer({"x": given})["y"].cpu().numpy(), expected)


def test_work_that_is_pending_on_the_callers_stream_is_waited_for(engine, torch):
    context = engine.create_execution_context()
    expected = context.infer({"x": X})["y"]
    x, source = torch.zeros((64, 256), device="cuda"), torch.from_numpy(X).cuda()
    context.infer({"x": x})
    side = torch.cuda.Stream()
    torch.cuda.synchronize()
    for _ in range(5):
        with torch.cuda.stream(side):
            x.zero_()
            torch.cuda._sleep(20_000_000)  # ten milliseconds
            x.copy_(source)
            y = context.infer({"x": x})["y"]
        assert np.array_equal(y.cpu().numpy(), expected)


def test_enqueued_results_are_there_for_the_callers_stream(engine, torch):
    context = engine.create_execution_context()
    expected = context.infer({"x": X})["y"]
    x = torch.from_numpy(X).cuda()
    context.infer({"x": x})
    total = torch.zeros((64, 256), device="cuda", dtype=torch.float64)
    for _ in range(50):
        total += context.enqueue({"x": x})["y"]  # torch's stream waits, the host does not
    np.testing.assert_allclose(total.cpu().numpy(), expected.astype(np.float64) * 50, rtol=1e-12)


def test_cupy_and_dlpack(engine):
    cupy = pytest.importorskip("cupy")
    context = engine.create_execution_context()
    expected = context.infer({"x": X})["y"]
    x = cupy.asarray(X)

    class Foreign:
        def __dlpack__(self, *, stream=None):
            return x.__dlpack__(stream=stream)

        def __dlpack_device__(self):
            return x.__dlpack_device__()

    for _ in range(4):
        y = context.infer({"x": x})["y"]
        assert isinstance(y, cupy.ndarray) and np.array_equal(y.get(), expected)
        own = context.infer({"x": Foreign()})["y"]
        assert np.array_equal(own.numpy(), expected)
        assert np.array_equal(cupy.from_dlpack(own).get(), expected)
        assert np.array_equal(cupy.asarray(own).get(), expected)


def test_a_tensor_of_a_wrong_type_or_shape_is_refused(engine, torch):
    context = engine.create_execution_context()
    context.infer({"x": torch.zeros((64, 256), device="cuda")})
    with pytest.raises(UsageError, match="float16"):
        context.infer({"x": torch.zeros((64, 256), device="cuda", dtype=torch.float16)})
    with pytest.raises(UsageError, match="dimension 1 is 255, not 256"):
        context.infer({"x": torch.zeros((64, 255), device="cuda")})


def test_contexts_with_inputs_of_their_own_run_in_threads(engine, torch):
    inputs = [X + i for i in range(4)]
    first = engine.create_execution_context()
    expected = [first.infer({"x": x})["y"] for x in inputs]
    right: list[bool] = []

    def work(index: int) -> None:
        context = engine.create_execution_context()
        x = torch.from_numpy(inputs[index]).cuda()
        for turn in range(100):
            given = x if turn % 2 else inputs[index]
            y = context.infer({"x": given})["y"]
            right.append(np.array_equal(y.cpu().numpy() if turn % 2 else y, expected[index]))
        context.close()

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(right) == 400 and all(right)


def test_captured_and_launched_one_by_one_give_the_same_bits(engine):
    captured = engine.create_execution_context(cuda_graph=True)
    plain = engine.create_execution_context(cuda_graph=False)
    for rows in (64, 3, 64):
        x = RNG.standard_normal((rows, 256)).astype(np.float32)
        results = [c.infer({"x": x})["y"] for c in (captured, plain) for _ in range(3)]
        assert all(np.array_equal(y, results[0]) for y in results)


def test_engines_and_contexts_come_and_go(torch):
    """Outputs outlive their context; memory comes back."""
    transformer = made_models.transformer(layers=2, width=64, heads=4, vocabulary=500)
    kept, free = [], []
    for batch in (8, 1, 8, 1):
        feeds = {
            "ids": torch.randint(0, 500, (batch, 16), device="cuda"),
            "mask": torch.ones((batch, 16), dtype=torch.int64, device="cuda"),
        }
        runner = NativeRunner(transformer, precision="fp16", device="cuda")
        kept += [runner.infer(feeds)["y"] for _ in range(20)]
        runner.deactivate()
        del runner
        free.append(driver.memory()[0])
    assert all(bool(torch.isfinite(y).all()) for y in kept)
    assert free[1] - free[3] < 64 << 20


def test_a_loaded_engine_neither_compiles_nor_times(tmp_path, monkeypatch):
    built = engine_from_onnx(model(64), BuilderConfig(precision="fp16", device="cuda"))
    expected = NativeRunner(built).infer({"x": X})["y"]
    built.save(tmp_path / "m.engine")
    monkeypatch.setattr(compiler, "_cubins", {})
    monkeypatch.setattr(compiler, "_compile", None)
    monkeypatch.setattr(timing._Bench, "time_all", None)
    loaded = Engine.load(tmp_path / "m.engine", device="cuda", retune=False)
    assert loaded.notes == ()
    assert np.array_equal(NativeRunner(loaded).infer({"x": X})["y"], expected)


def test_a_warm_cache_times_nothing(tmp_path):
    def build(cache: TimingCache) -> Engine:
        config = BuilderConfig(precision="fp16", device="cuda", timing_cache=cache)
        return engine_from_onnx(model(64), config)

    cold = TimingCache()
    first = build(cold)
    cold.save(tmp_path / "t.cache")
    warm = TimingCache.load(tmp_path / "t.cache")
    second = build(warm)
    assert cold.timed > 0 and warm.timed == 0
    assert first.tactics().choices == second.tactics().choices


def test_any_shape_within_a_profile_runs_and_none_outside():
    profile = {"x": ((1, 256), (64, 256), (200, 256))}
    config = BuilderConfig.of(precision="fp16", device="cuda", profiles=[profile])
    context = engine_from_onnx(MODEL, config).create_execution_context()
    cpu = NativeRunner(MODEL, precision="fp16", device="cpu")
    for rows in (200, 1, 64, 77, 129):
        x = RNG.standard_normal((rows, 256)).astype(np.float32)
        expected = cpu.infer({"x": x})["y"]
        np.testing.assert_allclose(context.infer({"x": x})["y"], expected, rtol=2e-2, atol=2e-4)
    with pytest.raises(UsageError, match="fit no optimization profile"):
        context.infer({"x": np.zeros((201, 256), np.float32)})
