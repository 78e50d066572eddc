"""The engine's GPU program on a GPU in software: what it computes, copies, launches, allocates."""

import gc
import threading

import numpy as np
import onnx.parser
import pytest

from polytool import NativeRunner
from polytool.backends.native.cuda import epilogues
from polytool.backends.native.cuda.arrays import DeviceArray
from polytool.backends.native.kernels import compiler
from polytool.errors import RunnerError, UsageError

RNG = np.random.default_rng(0)
X = RNG.standard_normal((5, 24)).astype(np.float32)
PLAIN = "h = Abs(x) s = Softmax(h) y = Transpose<perm=[1,0]>(s)"


def small(text: str = PLAIN) -> onnx.ModelProto:
    head = '<ir_version: 9, opset_import: ["" : 20]>'
    return onnx.parser.parse_model(f"{head} g (float[N,24] x) => (float[24,N] y) {{ {text} }}")


def on_cpu(x: np.ndarray) -> np.ndarray:
    return NativeRunner(small(), device="cpu").infer({"x": x})["y"]


class Foreign:
    """An array of a library that nobody knows, on the device: it speaks DLPack and nothing else."""

    def __init__(self, array: DeviceArray) -> None:
        self.array = array
        self.streams: list[int | None] = []

    def __dlpack__(self, *, stream=None):
        self.streams.append(stream)
        return self.array.__dlpack__(stream=stream)

    def __dlpack_device__(self):
        return self.array.__dlpack_device__()


def uploaded(value: np.ndarray) -> DeviceArray:
    """`value` on the device, in memory of its own."""
    same = onnx.parser.parse_model(
        '<ir_version: 9, opset_import: ["" : 20]> g (float[N,M] x) => (float[N,M] y) { y = Abs(x) }'
    )
    assert (value >= 0).all()
    context = NativeRunner(same, device="cuda").engine.create_execution_context()
    return context.enqueue({"x": value})["y"]


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("cuda_graph", [True, False])
def test_it_computes_what_the_cpu_computes(software_gpu, precision, cuda_graph):
    runner = NativeRunner(small(), device="cuda", precision=precision)
    context = runner.engine.create_execution_context(cuda_graph=cuda_graph)
    cpu = NativeRunner(small(), device="cpu", precision=precision)
    before = software_gpu.count("graph")
    for shift in range(3):
        feeds = {"x": X + shift}
        gpu = context.infer(feeds)["y"]
        tolerance = 1e-3 if precision == "fp16" else 1e-6
        np.testing.assert_allclose(gpu, cpu.infer(feeds)["y"], rtol=tolerance)
    assert (software_gpu.count("graph") > before) == cuda_graph


COUNTED = ("graph", "launch", "allocate", "pin", "instantiate", "synchronize", "load", "update")


def test_known_inputs_cost_one_launch_and_no_memory(software_gpu):
    context = NativeRunner(small(), device="cuda").engine.create_execution_context()
    for given, copies in ((X, 8), (uploaded(np.abs(X)), 0)):
        for _ in range(8):  # through the program, launch by launch, captured
            context.infer({"x": given})
        names = (*COUNTED, "copy")
        before = [software_gpu.count(n) for n in names]
        for _ in range(4):
            context.infer({"x": given})
        now = [software_gpu.count(n) - b for n, b in zip(names, before, strict=True)]
        assert now == [4, 0, 0, 0, 0, 4, 0, 0, copies]


def test_new_addresses_change_the_graph_and_capture_nothing(software_gpu):
    context = NativeRunner(small(), device="cuda").engine.create_execution_context()
    inputs = [uploaded(np.abs(X) + i) for i in range(6)]
    kept = [context.infer({"x": x})["y"] for x in (*inputs, *inputs)]
    before = software_gpu.count("instantiate")
    kept += [context.infer({"x": x})["y"] for x in inputs]
    assert software_gpu.count("instantiate") == before
    for i, y in enumerate(kept):
        np.testing.assert_allclose(y.numpy(), on_cpu(np.abs(X) + i % 6), rtol=1e-6)


def test_kernels_read_inputs_and_write_outputs_where_they_are(software_gpu):
    context = NativeRunner(small(), device="cuda").engine.create_execution_context()
    inputs = [uploaded(np.abs(X) + i) for i in range(3)]
    for _ in range(3):
        for i, x in enumerate(inputs):
            software_gpu.launched  # noqa: B018  (forgets what ran before)
            y = context.infer({"x": x})["y"]
            ran = software_gpu.launched
            np.testing.assert_allclose(y.numpy(), on_cpu(np.abs(X) + i), rtol=1e-6)
    assert ran and "handover" not in ran


def test_tensors_that_kernels_cannot_reach_are_copied(software_gpu):
    """Unaligned ones, an input that is an output, and one that two outputs are."""
    proto = onnx.parser.parse_model(
        """<ir_version: 9, opset_import: ["" : 20]> g (float[6,4] x) =>
        (float[6,4] same, float[3,4] part, float[6,4] a, float[6,4] b)
        { same = Identity(x) s = Exp(x) part = Slice(s, zero, three) a = Abs(s) b = Identity(a) }"""
    )
    for name, value in (("zero", 0), ("three", 3)):
        proto.graph.initializer.append(onnx.numpy_helper.from_array(np.array([value]), name))
    context = NativeRunner(proto, device="cuda").engine.create_execution_context()
    values = np.abs(X[:5]).reshape(-1)[:25].reshape(1, 25)
    held = uploaded(values)
    for offset in (0, 1, 0, 1, 0):
        x = DeviceArray(held.address + 4 * offset, (6, 4), held.dtype, held)
        expected = values[0, offset : offset + 24].reshape(6, 4)
        found = {n: y.numpy() for n, y in context.infer({"x": x}).items()}
        assert np.array_equal(found["same"], expected)
        for name, rows in (("part", 3), ("a", 6), ("b", 6)):
            np.testing.assert_allclose(found[name], np.exp(expected)[:rows], rtol=1e-6)


def test_device_arrays_stay_on_the_device(software_gpu):
    x = uploaded(np.abs(X))
    context = NativeRunner(small(), device="cuda").engine.create_execution_context()
    for _ in range(3):  # the first time through the program, then by the replay
        copies = [software_gpu.count(n) for n in ("to_host", "to_device")]
        y = context.infer({"x": x})["y"]
        assert isinstance(y, DeviceArray) and y.shape == (24, 5)
        assert [software_gpu.count(n) for n in ("to_host", "to_device")] == copies
        np.testing.assert_allclose(y.numpy(), on_cpu(np.abs(X)), rtol=1e-6)


def test_outputs_on_the_device_belong_to_the_caller(software_gpu):
    context = NativeRunner(small(), device="cuda").engine.create_execution_context()
    first, second = uploaded(np.abs(X)), uploaded(np.abs(X) + np.arange(24, dtype=np.float32))
    kept = [context.infer({"x": x})["y"] for x in (first, second, first)]
    assert len({y.address for y in kept}) == 3
    assert np.array_equal(kept[0].numpy(), kept[2].numpy())
    assert not np.array_equal(kept[0].numpy(), kept[1].numpy())
    addresses = {y.address for y in kept}
    del kept
    gc.collect()
    later = [context.infer({"x": first})["y"] for _ in range(4)]
    assert addresses & {y.address for y in later}  # memory of the dead is used again
    assert len({y.address for y in later}) == 4


def test_anything_with_dlpack_goes_in(software_gpu):
    context = NativeRunner(small(), device="cuda").engine.create_execution_context()
    x = Foreign(uploaded(np.abs(X)))
    for _ in range(2):
        y = context.infer({"x": x})["y"]
        np.testing.assert_allclose(y.numpy(), on_cpu(np.abs(X)), rtol=1e-6)
    assert x.streams and all(s == context._replays.stream for s in x.streams)


def test_a_capsule_gives_back_its_array_when_it_is_consumed_or_dropped(software_gpu):
    from polytool.backends.native.cuda import dlpack

    array = uploaded(np.abs(X))
    for _ in range(3):
        found = dlpack.import_(array, 0)
        assert found is not None and (found.address, found.shape) == (array.address, (5, 24))
    del found
    gc.collect()
    assert not dlpack._exported


def test_many_tensors_of_any_size_go_in_and_out(software_gpu):
    sizes = [1, 3, 4, 5, 16, 33, 1000, 4096, 5001, 2]  # more than one launch moves
    names = [f"x{i}" for i in range(len(sizes))]
    inputs = ", ".join(f"uint8[{n}] {x}" for n, x in zip(sizes, names, strict=True))
    outputs = ", ".join(f"uint8[{n}] y{x}" for n, x in zip(sizes, names, strict=True))
    body = " ".join(f"y{x} = BitwiseNot({x})" for x in names)
    proto = onnx.parser.parse_model(
        f'<ir_version: 9, opset_import: ["" : 20]> g ({inputs}) => ({outputs}) {{ {body} }}'
    )
    context = NativeRunner(proto, device="cuda").engine.create_execution_context()
    for _ in range(4):
        feeds = {x: RNG.integers(0, 256, n, np.uint8) for n, x in zip(sizes, names, strict=True)}
        for results in (context.infer(feeds), context.enqueue(feeds)):
            context.synchronize()
            for x, value in feeds.items():
                y = results[f"y{x}"]
                assert np.array_equal(y if isinstance(y, np.ndarray) else y.numpy(), ~value)


def test_many_inferences_may_be_under_way(software_gpu):
    x = [uploaded(np.abs(X) + i) for i in range(3)]
    context = NativeRunner(small(), device="cuda").engine.create_execution_context()
    results = [context.enqueue({"x": x[i % 3]})["y"] for i in range(150)]
    context.synchronize()
    for i in (0, 1, 2, 64, 65, 149):
        np.testing.assert_allclose(results[i].numpy(), on_cpu(np.abs(X) + i % 3), rtol=1e-6)


def test_enqueued_work_is_there_after_synchronize(software_gpu):
    context = NativeRunner(small(), device="cuda").engine.create_execution_context()
    outputs = [context.enqueue({"x": x})["y"] for x in (X, X + 1)]
    context.synchronize()
    for y, x in zip(outputs, (X, X + 1), strict=True):
        np.testing.assert_allclose(y.numpy(), on_cpu(x), rtol=1e-6)


def test_nothing_is_enqueued_on_the_cpu():
    context = NativeRunner(small(), device="cpu").engine.create_execution_context()
    with pytest.raises(UsageError, match="runs on the CPU"):
        context.enqueue({"x": X})


def test_the_arena_is_that_of_the_largest_shape_and_small_shapes_share_it(software_gpu):
    context = NativeRunner(small(), device="cuda").engine.create_execution_context()
    shapes = [3, 50, 3, 20, 50]
    for rows in shapes * 2:
        x = RNG.standard_normal((rows, 24)).astype(np.float32)
        np.testing.assert_allclose(context.infer({"x": x})["y"], on_cpu(x), rtol=1e-6)
    before = software_gpu.in_use
    for rows in shapes:
        x = RNG.standard_normal((rows, 24)).astype(np.float32)
        np.testing.assert_allclose(context.infer({"x": x})["y"], on_cpu(x), rtol=1e-6)
    assert software_gpu.in_use == before


def test_closing_a_context_frees_its_memory(software_gpu):
    engine = NativeRunner(small(), device="cuda").engine
    engine.create_execution_context().infer({"x": X})  # uploads what all contexts share
    before = software_gpu.in_use
    context = engine.create_execution_context()
    context.infer({"x": X})
    assert software_gpu.in_use > before
    context.close()
    assert software_gpu.in_use == before


def test_contexts_run_in_threads(software_gpu):
    engine = NativeRunner(small(), device="cuda").engine
    expected, results = on_cpu(X), []

    def work() -> None:
        context = engine.create_execution_context()
        results.extend(context.infer({"x": X})["y"] for _ in range(20))
        context.close()

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 60 and all(np.allclose(y, expected, rtol=1e-6) for y in results)


def test_a_context_made_in_one_thread_runs_in_another(software_gpu):
    context = NativeRunner(small(), device="cuda").engine.create_execution_context()
    results: list[np.ndarray] = []

    def once(work) -> None:
        thread = threading.Thread(target=work)  # which has no current device yet
        thread.start()
        thread.join()

    once(lambda: results.append(context.infer({"x": X})["y"]))
    for _ in range(3):
        once(lambda: results.append(context.infer({"x": X})["y"]))
    there = []
    once(lambda: there.append(context.resident({"x": X})))
    for _ in range(3):
        once(lambda: results.append(context.infer(there[0])["y"].numpy()))
    once(lambda: results.append(context.enqueue(there[0])["y"].numpy()))
    assert len(results) == 8
    for y in results:
        np.testing.assert_allclose(y, on_cpu(X), rtol=1e-6)
    once(lambda: context.phases({"x": X}))
    once(there.clear)
    once(context.close)


@pytest.mark.parametrize(
    ("feeds", "message"),
    [
        ({"x": X.astype(np.float64)}, "float64"),
        ({"x": X[:, :3]}, "dimension 1 is 3, not 24"),
        ({"z": X}, "is not an input"),
    ],
)
def test_wrong_inputs_are_refused_after_right_ones(software_gpu, feeds, message):
    context = NativeRunner(small(), device="cuda").engine.create_execution_context()
    context.infer({"x": X})
    with pytest.raises(UsageError, match=message):
        context.infer(feeds)


@pytest.mark.parametrize(
    ("kernel", "stride", "pads", "channels", "size"),
    [
        ((7, 7), (2, 2), (3, 3, 3, 3), 3, (18, 20)),  # pairs of pixels
        ((3, 3), (2, 2), (0, 0, 1, 1), 3, (15, 17)),
        ((3, 4), (1, 2), (1, 0, 0, 2), 4, (9, 11)),
        ((8, 8), (8, 8), (0, 0, 0, 0), 3, (17, 26)),  # patches
        ((3, 3), (1, 1), (1, 1, 1, 1), 3, (6, 7)),  # padded channels
    ],
    ids=str,
)
def test_convolutions_of_few_channels(
    software_gpu, monkeypatch, kernel, stride, pads, channels, size
):
    every = epilogues.candidates
    monkeypatch.setattr(epilogues, "candidates", lambda *a, **k: every(*a, **k)[-1:])
    text = f"""<ir_version: 9, opset_import: ["" : 20]>
        g (float[2,{channels},{size[0]},{size[1]}] x) => (float[a,b,c,d] y) {{
            h = Conv<kernel_shape = {list(kernel)}, strides = {list(stride)}, pads = {list(pads)}>
                (x, w, v)
            y = Relu(h)
        }}"""
    model = onnx.parser.parse_model(text)
    weights = RNG.standard_normal((16, channels, *kernel)).astype(np.float32) / 8
    bias = RNG.standard_normal(16).astype(np.float32)
    model.graph.initializer.extend(
        [onnx.numpy_helper.from_array(weights, "w"), onnx.numpy_helper.from_array(bias, "v")]
    )
    feeds = {"x": RNG.standard_normal((2, channels, *size)).astype(np.float32)}
    exact = NativeRunner(model, device="cpu").infer(feeds)["y"]
    gpu = NativeRunner(model, device="cuda", precision="fp16").infer(feeds)["y"]
    assert np.linalg.norm(gpu - exact) < 1e-3 * np.linalg.norm(exact)


def test_candidates_that_a_gpu_does_not_have_are_left_out(software_gpu, monkeypatch):
    proto = onnx.parser.parse_model(
        '<ir_version: 9, opset_import: ["" : 20]> g (float[64,64] x) => (float[64,64] y)'
        " { y = MatMul(x, w) }"
    )
    weight = RNG.standard_normal((64, 64)).astype(np.float32)
    proto.graph.initializer.append(onnx.numpy_helper.from_array(weight, "w"))
    compile_ = compiler._compile
    refused, wanted = [], "wgmma.mma_async"

    def older(kernel, options):
        if wanted in kernel.source:
            refused.append(kernel)
            raise RunnerError(f"NVRTC refuses kernel {kernel.name}: not here")
        return compile_(kernel, options)

    monkeypatch.setattr(compiler, "_compile", older)
    x = RNG.standard_normal((64, 64)).astype(np.float32)
    y = NativeRunner(proto, device="cuda", precision="fp16").infer({"x": x})["y"]
    assert refused
    np.testing.assert_allclose(y, x @ weight, atol=0.1)
    wanted = "KERNEL gemm"
    monkeypatch.setattr(compiler, "_cubins", {})
    with pytest.raises(RunnerError, match="refuses kernel gemm_tile: not here"):
        NativeRunner(proto, device="cuda", precision="fp16").infer({"x": x})
