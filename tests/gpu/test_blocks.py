"""Libraries and launches on a GPU: cuBLASLt, cuDNN graphs, capture, arenas, threads."""

import numpy as np
import pytest

from polytool.backends.native.kernels import driver, gemm, launch
from polytool.backends.native.kernels.expr import Step, Tree
from polytool.backends.native.kernels.pointwise import Operand, Pointwise
from polytool.backends.native.tactics import cublaslt, cudnn
from polytool.errors import RunnerError, UnsupportedError
from polytool.tensors import DType

pytestmark = pytest.mark.gpu
H, S = DType.FLOAT16, DType.FLOAT
GUARD = 256


class Memory:
    """One arena; tensors are placed with guard bytes around them."""

    def __init__(self):
        driver.device().activate()
        self.stream = driver.create_stream()
        self.size = 64 << 20
        self.base, self.used = driver.allocate(self.size), 0
        driver.fill(self.base, self.size, 0xAB, self.stream)

    def put(self, array):
        address = self.base + self.used + GUARD
        self.used += -(-(array.nbytes + 2 * GUARD) // 256) * 256
        assert self.used < self.size
        host = np.ascontiguousarray(array)
        driver.to_device(address, host.ctypes.data, host.nbytes, self.stream)
        driver.synchronize(self.stream)
        return address

    def get(self, address, shape, dtype):
        host = np.zeros(shape, dtype)
        driver.to_host(host.ctypes.data, address, host.nbytes, self.stream)
        driver.synchronize(self.stream)
        return host

    def guarded(self, address, size):
        around = self.get(address + size, GUARD, "u1")
        before = self.get(address - GUARD, GUARD, "u1")
        return (around == 0xAB).all() and (before == 0xAB).all()


@pytest.fixture
def memory():
    held = Memory()
    yield held
    driver.free(held.base)
    driver.destroy_stream(held.stream)


def error(value, reference):
    return np.linalg.norm(value.astype("f8") - reference) / np.linalg.norm(reference)


@pytest.mark.parametrize(
    ("kind", "tf32", "limit"),
    [("f2", False, 5e-4), ("f4", False, 1e-6), ("f4", True, 1e-3), ("f8", False, 1e-14)],
)
@pytest.mark.parametrize("transposed", [False, True])
def test_cublaslt_products_in_every_algorithm(memory, rng, kind, tf32, limit, transposed):
    dtype = DType.of(np.dtype(kind))
    a, b = rng.standard_normal((48, 64)).astype(kind), rng.standard_normal((64, 80)).astype(kind)
    addresses = [memory.put(a), memory.put(np.ascontiguousarray(b.T) if transposed else b)]
    out = memory.put(np.zeros((48, 80), kind))
    work = driver.allocate(cublaslt.WORKSPACE)
    product = cublaslt.Product(48, 80, 64, dtype, dtype, transposed, tf32=tf32)
    found = cublaslt.algorithms(product)
    assert found
    for algorithm in found:
        cublaslt.Launch(product, algorithm, [*addresses, out], work)(memory.stream)
        got = memory.get(out, (48, 80), kind)
        assert error(got, a.astype("f8") @ b.astype("f8")) < limit
        assert memory.guarded(out, got.nbytes)
        driver.fill(out, got.nbytes, 0xFF, memory.stream)
    driver.free(work)


@pytest.mark.parametrize("activation", ["none", "relu", "gelu_tanh"])
def test_cublaslt_bias_addend_and_activation(memory, rng, activation):
    a, w = rng.standard_normal((32, 64)).astype("f2"), rng.standard_normal((48, 64)).astype("f2")
    bias, add = rng.standard_normal(48).astype("f2"), rng.standard_normal((32, 48)).astype("f2")
    addresses = [memory.put(v) for v in (a, w, bias, add, np.zeros((32, 48), "f2"))]
    work = driver.allocate(cublaslt.WORKSPACE)
    product = cublaslt.Product(32, 48, 64, bias=True, addend=True, activation=activation)
    found = cublaslt.algorithms(product, most=4)
    x = a.astype("f8") @ w.astype("f8").T + bias + add
    tanh = 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))
    expected = {"none": x, "relu": np.maximum(x, 0), "gelu_tanh": tanh}[activation]
    for algorithm in found:
        cublaslt.Launch(product, algorithm, addresses, work)(memory.stream)
        assert error(memory.get(addresses[-1], (32, 48), "f2"), expected) < 1e-3
    assert found or activation == "gelu_tanh"
    driver.free(work)


def test_cublaslt_int8_is_exact(memory, rng):
    a, w = (rng.integers(-128, 128, s).astype("i1") for s in ((32, 64), (48, 64)))
    addresses = [memory.put(v) for v in (a, w, np.zeros((32, 48), "i4"))]
    work = driver.allocate(cublaslt.WORKSPACE)
    product = cublaslt.Product(32, 48, 64, DType.INT8, DType.INT32)
    (algorithm, *_) = cublaslt.algorithms(product)
    cublaslt.Launch(product, algorithm, addresses, work)(memory.stream)
    got = memory.get(addresses[-1], (32, 48), "i4")
    np.testing.assert_array_equal(got, a.astype("i4") @ w.T.astype("i4"))
    driver.free(work)


def test_cublaslt_refuses_what_it_lacks():
    with pytest.raises(UnsupportedError, match="activation silu"):
        cublaslt.algorithms(cublaslt.Product(8, 8, 8, activation="silu"))


@pytest.mark.parametrize(
    ("groups", "addend", "activation"),
    [(1, False, "relu"), (1, True, "relu"), (1, False, "silu"), (8, False, "none"),
     (1, False, "gelu"), (1, False, "clip")],
)  # fmt: skip
def test_cudnn_convolutions(memory, rng, groups, addend, activation):
    x = rng.standard_normal((2, 9, 8, 16)).astype("f2")  # NHWC
    w = rng.standard_normal((24, 3, 3, 16 // groups)).astype("f2") * 0.2
    bias, add = rng.standard_normal(24).astype("f2"), rng.standard_normal((2, 9, 8, 24))
    held = [x, w, bias, *([add.astype("f2")] if addend else []), np.zeros((2, 9, 8, 24), "f2")]
    addresses = [memory.put(v) for v in held]
    description = cudnn.Convolution(
        (2, 16, 9, 8), (24, 16 // groups, 3, 3), (2, 24, 9, 8), pads=(1, 1, 1, 1),
        addend=addend, activation=activation,
    )  # fmt: skip
    handle = cudnn.Handle()
    graph = cudnn.Graph.of(description, handle)
    padded = np.pad(x.astype("f8"), ((0, 0), (1, 1), (1, 1), (0, 0)))
    y = np.zeros((2, 9, 8, 24))
    per_in, per_out = 16 // groups, 24 // groups
    for i in range(3):
        for j in range(3):
            for g in range(groups):
                part = padded[:, i : i + 9, j : j + 8, g * per_in : (g + 1) * per_in]
                weights = w[g * per_out : (g + 1) * per_out, i, j].astype("f8")
                y[..., g * per_out : (g + 1) * per_out] += part @ weights.T
    y += bias + (add.astype("f2") if addend else 0)
    from math import erf

    expected = {
        "none": y,
        "relu": np.maximum(y, 0),
        "silu": y / (1 + np.exp(-y)),
        "gelu": y * 0.5 * (1 + np.vectorize(erf)(y / np.sqrt(2))),
        "clip": np.clip(y, 0, 6),
    }[activation]
    ran = 0
    for plan in range(min(graph.plans, 6)):
        if graph.build(plan):
            work = driver.allocate(graph.workspace(plan))
            graph.launch(plan, addresses, work, handle)(memory.stream)
            assert error(memory.get(addresses[-1], y.shape, "f2"), expected) < 2e-3
            driver.free(work)
            ran += 1
    assert ran
    handle.close()


def test_cudnn_plan_survives_serialisation(memory, rng):
    x, w = rng.standard_normal((1, 8, 8, 16)).astype("f2"), rng.standard_normal((16, 1, 1, 16))
    bias = rng.standard_normal(16).astype("f2")
    held = [x, w.astype("f2"), bias, np.zeros((1, 8, 8, 16), "f2")]
    addresses = [memory.put(v) for v in held]
    description = cudnn.Convolution((1, 16, 8, 8), (16, 16, 1, 1), (1, 16, 8, 8), activation="relu")
    handle = cudnn.Handle()
    graph = cudnn.Graph.of(description, handle)
    plan = next(p for p in range(graph.plans) if graph.build(p))
    work = driver.allocate(graph.workspace(plan))
    graph.launch(plan, addresses, work, handle)(memory.stream)
    expected = memory.get(addresses[-1], x.shape, "u2")
    driver.fill(addresses[-1], expected.nbytes, 0xFF, memory.stream)
    stored = cudnn.Restored(graph.serialized(), handle)
    assert stored.workspace == graph.workspace(plan)
    stored.launch(addresses, work, handle)(memory.stream)
    np.testing.assert_array_equal(memory.get(addresses[-1], x.shape, "u2"), expected)
    with pytest.raises(RunnerError, match="refuses a stored plan"):
        cudnn.Restored(b"nonsense", handle)
    driver.free(work)
    handle.close()


def test_cudnn_attention_with_mask(memory, rng):
    q, k, v = rng.standard_normal((3, 2, 4, 64, 32)).astype("f2")
    mask = rng.standard_normal((2, 1, 64, 64)).astype("f2")
    addresses = [memory.put(t) for t in (q, k, v, mask, np.zeros_like(q))]
    steps = (4 * 64 * 32, 64 * 32, 32, 1)
    description = cudnn.Attention(
        q.shape, q.shape, steps, steps, steps, steps, 0.2, mask=(2, 1, 64, 64)
    )
    handle = cudnn.Handle()
    graph = cudnn.Graph.of(description, handle)
    scores = q.astype("f8") @ k.astype("f8").swapaxes(-1, -2) * 0.2 + mask
    p = np.exp(scores - scores.max(-1, keepdims=True))
    plan = next(p for p in range(graph.plans) if graph.build(p))
    work = driver.allocate(graph.workspace(plan))
    graph.launch(plan, addresses, work, handle)(memory.stream)
    got = memory.get(addresses[-1], q.shape, "f2")
    assert error(got, p / p.sum(-1, keepdims=True) @ v.astype("f8")) < 1e-3
    driver.free(work)
    handle.close()


def chain(memory, rng, length=6):
    """Dependent products, each reading what the last one wrote."""
    kind = Tree((S, H), (Step.of("Add", 0, 1, dtype=H), Step.of("Tanh", 2, dtype=H)))
    epilogue = gemm.Epilogue(kind, ("column",))
    op = gemm.Gemm(H, epilogue, gemm.Tile(64, 64, 4, 1, 6, True))
    weights = [rng.standard_normal((128, 128)).astype("f2") * 0.1 for _ in range(length)]
    bias = rng.standard_normal(128).astype("f2")
    x = rng.standard_normal((128, 128)).astype("f2")
    at = [memory.put(x), *(memory.put(np.zeros_like(x)) for _ in range(length))]
    vector, device = memory.put(bias), driver.device()
    launches = [
        run
        for i, w in enumerate(weights)
        for run in launch.prepare_plan(
            op.plan(gemm.Matrix(128, 128, 128), 2),
            device,
            [at[i], memory.put(w), vector, at[i + 1]],
        )
    ]
    value = x
    for w in weights:
        value = np.tanh(value.astype("f8") @ w.astype("f8").T + bias).astype("f2")
    return launches, at[-1], value


def test_overlapped_launches_see_complete_results(memory, rng):
    launches, out, expected = chain(memory, rng)
    for run in launches:
        run(memory.stream)
    assert error(memory.get(out, (128, 128), "f2"), expected) < 5e-3


def test_a_product_of_two_activations_waits_for_both(memory, rng):
    epilogue = gemm.Epilogue(Tree((S,), (Step.of("Cast", 0, dtype=H),)))
    tile, device = gemm.Tile(64, 64, 4, 1, 6, True), driver.device()
    op = gemm.Gemm(H, epilogue, tile, constant=False)
    x = rng.standard_normal((1024, 1024)).astype("f2") * 0.05
    at = [memory.put(x), *(memory.put(np.zeros_like(x)) for _ in range(3))]
    plan = op.plan(gemm.Matrix(1024, 1024, 1024))
    pairs = ((0, 0, 1), (1, 1, 2), (2, 2, 3))  # both operands are the last result
    for a, b, out in pairs:
        for run in launch.prepare_plan(plan, device, [at[a], at[b], at[out]]):
            run(memory.stream)
    value = x
    for _ in pairs:
        value = (value.astype("f8") @ value.astype("f8").T).astype("f2")
    assert error(memory.get(at[-1], x.shape, "f2"), value) < 1e-2


def test_a_captured_graph_gives_the_same_bits_every_time(memory, rng):
    launches, out, _ = chain(memory, rng)
    for run in launches:
        run(memory.stream)
    plain = memory.get(out, (128, 128), "u2")
    with driver.Graph.capture(memory.stream) as graph:
        for run in launches:
            run(memory.stream)
    assert graph.nodes == len(launches)
    for _ in range(50):
        driver.fill(out, plain.nbytes, 0xFF, memory.stream)
        graph.launch(memory.stream)
        np.testing.assert_array_equal(memory.get(out, (128, 128), "u2"), plain)
    graph.close()


def test_a_failed_capture_leaves_the_stream_usable(memory, rng):
    launches, out, expected = chain(memory, rng, 1)
    with pytest.raises(ZeroDivisionError), driver.Graph.capture(memory.stream):
        launches[0](memory.stream)
        raise ZeroDivisionError
    launches[0](memory.stream)
    assert error(memory.get(out, (128, 128), "f2"), expected) < 5e-3


def test_a_driver_error_names_the_call():
    driver.device().activate()
    with pytest.raises(RunnerError, match="refuses cuMemFree_v2"):
        driver.free(12345)


def test_pointwise_kernels_stay_inside_their_output(memory, rng):
    x = rng.standard_normal(1003).astype("f2")
    source, out = memory.put(x), memory.put(np.zeros_like(x))
    op = Pointwise(Tree((H,), (Step.of("Neg", 0, dtype=H),)))
    plan = op.plan((1003,), [Operand((1003,))], pattern=op.pattern((1003,), [Operand((1003,))]))
    for run in launch.prepare_plan(plan, driver.device(), [source, out]):
        run(memory.stream)
    np.testing.assert_array_equal(memory.get(out, 1003, "f2"), -x)
    assert memory.guarded(out, x.nbytes)
