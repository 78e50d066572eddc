"""What callers of a context and a runner may rely on."""

import threading

import ml_dtypes
import numpy as np
import onnx.parser
import pytest

from polytool import Engine, NativeRunner
from polytool.backends.native.profiler import Profiler
from polytool.errors import RunnerError, UsageError

X = np.arange(6, dtype=np.float32).reshape(2, 3)


def runner(text: str, **options) -> NativeRunner:
    proto = onnx.parser.parse_model(f'<ir_version: 9, opset_import: ["" : 20]> {text}')
    return NativeRunner(proto, **options)


PLAIN = "g (float[N,3] x) => (float[N,3] y) { a = Abs(x) y = Softmax(a) }"


@pytest.mark.parametrize(
    ("feeds", "message"),
    [
        ({"z": X}, "input 'x' is missing; 'z' is not an input.*expects x: float32\\[N, 3\\]"),
        ({}, "input 'x' is missing"),
        ({"x": X.astype(np.float64)}, "'x' is float64, but .* expects float32"),
        ({"x": X[0]}, "'x' has 1 dimensions, shape \\[3\\]"),
        ({"x": X[:, :2]}, "dimension 1 is 2, not 3"),
    ],
)
def test_inputs_that_do_not_fit_say_what_was_expected(feeds, message):
    with pytest.raises(UsageError, match=message):
        runner(PLAIN).infer(feeds)


def test_profiles_bound_the_shapes():
    small = runner(PLAIN, profiles=[{"x": ((1, 3), (2, 3), (4, 3))}])
    assert small.infer({"x": X})["y"].shape == (2, 3)
    with pytest.raises(UsageError, match="fit no optimization profile.*outside"):
        small.infer({"x": np.zeros((5, 3), np.float32)})


def test_a_profile_must_be_ordered():
    with pytest.raises(UsageError, match="min <= opt <= max"):
        runner(PLAIN, profiles=[{"x": ((3, 3), (2, 3), (4, 3))}])


def test_outputs_belong_to_the_caller():
    same = runner(
        "g (float[N,3] x) => (float[N,3] y, float[N,3] z) { y = Identity(x) z = Identity(y) }"
    )
    x = X.copy()
    first = same.infer({"x": x})
    first["y"][:] = -1
    assert np.array_equal(x, X) and np.array_equal(first["z"], X)
    constant = runner(
        "g (float[N,3] x) => (float[2] y) { y = Constant <value_floats = [1.0, 2.0]> () }"
    )
    constant.infer({"x": X})["y"][:] = 7
    assert constant.infer({"x": X})["y"].tolist() == [1, 2]


def test_a_layer_that_fails_is_named_with_its_inputs():
    bad = runner("g (float[A,B] x, float[C,D] z) => (float[P,Q] y) { y = MatMul(x, z) }")
    with pytest.raises(RunnerError, match=r"MatMul:y .*x\[2, 3\], z\[2, 3\]"):
        bad.infer({"x": X, "z": X})


def test_reduced_types_go_in_and_out_as_declared():
    half = runner("g (float16[N,3] x) => (bfloat16[N,3] y) { a = Exp(x) y = Cast <to = 16> (a) }")
    y = half.infer({"x": X.astype(np.float16)})["y"]
    assert y.dtype == ml_dtypes.bfloat16
    expected = np.exp(X).astype(np.float16).astype(ml_dtypes.bfloat16)
    assert np.array_equal(y, expected)


def test_one_engine_serves_many_threads():
    engine: Engine = runner(PLAIN).engine
    expected = NativeRunner(engine).infer({"x": X})["y"]
    wrong: list[int] = []

    def work(seed: int) -> None:
        context = engine.create_execution_context()
        same = [np.array_equal(context.infer({"x": X})["y"], expected) for _ in range(50)]
        if not all(same):
            wrong.append(seed)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_observing_shows_every_stored_tensor_in_order_and_moves_nothing():
    seen = {}
    watched = runner(PLAIN)
    plain = watched.infer({"x": X})
    observed = watched.infer({"x": X}, observe=lambda tap, a: seen.setdefault(tap.tensor, a.copy()))
    assert list(seen) == [t.tensor for t in watched.taps()] == ["a", "y"]
    assert np.array_equal(observed["y"], plain["y"]) and np.array_equal(seen["y"], plain["y"])


def test_observing_reaches_into_loops_once_an_iteration():
    loop = runner(
        """g (int64 n, bool go, float[2] x) => (float[2] y) {
            y = Loop (n, go, x) <body = b (int64 i, bool c, float[2] v) =>
                (bool again, float[2] w) { again = Identity(c) s = Softmax(v) w = Add(s, x) }>
        }"""
    )
    seen: list[str] = []
    feeds = {"n": np.array(3), "go": np.array(True), "x": np.float32([1, 2])}
    loop.infer(feeds, observe=lambda tap, _: seen.append(tap.tensor))
    assert sum(name.endswith("/s") for name in seen) == 3 and seen[-1] == "y"


def test_the_profiler_times_every_layer():
    timed = runner(PLAIN)
    timed.activate()
    assert timed.context is not None
    timed.context.profiler = profiler = Profiler()
    timed.infer({"x": X})
    assert set(profiler.spans) == set(timed.engine.network.layers)


def test_cuda_without_a_gpu_is_an_error_not_a_cpu_run():
    from polytool.backends.native.builder import choose_device

    if choose_device("auto") == "cpu":
        with pytest.raises(UsageError, match="needs an NVIDIA GPU"):
            runner(PLAIN, device="cuda")


def test_one_symbol_has_one_size():
    both = runner("g (float[N,3] x, float[N,3] z) => (float[N,3] y) { y = Add(x, z) }")
    with pytest.raises(UsageError, match="dimension 'N' of .* is 2 in 'x' but 1 in 'z'"):
        both.infer({"x": X, "z": X[:1]})
    square = runner("g (float[N,N] x) => (float[N,N] y) { y = Neg(x) }")
    with pytest.raises(UsageError, match="dimension 'N'"):
        square.infer({"x": X})
