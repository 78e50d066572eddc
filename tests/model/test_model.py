"""Models on disk: what is read, what is refused, what is written."""

from __future__ import annotations

import os
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import onnx.helper as oh
import pytest
from onnx import numpy_helper

from polytool.arrays import decode, encode, to_tensor
from polytool.errors import ModelError, UsageError
from polytool.model import load
from polytool.tensors import DType

F32 = onnx.TensorProto.FLOAT
RNG = np.random.default_rng(0)


def matmul_model(rows: int = 64, *, constant: bool = False) -> onnx.ModelProto:
    """x @ w + b, with a weight of `rows` x 32 as initializer or as Constant."""
    w = RNG.standard_normal((rows, 32)).astype(np.float32)
    b = RNG.standard_normal(32).astype(np.float32)
    nodes = [oh.make_node("MatMul", ["x", "w"], ["h"]), oh.make_node("Add", ["h", "b"], ["y"])]
    weights = [numpy_helper.from_array(w, "w"), numpy_helper.from_array(b, "b")]
    if constant:
        nodes.insert(0, oh.make_node("Constant", [], ["w"], value=weights.pop(0)))
    graph = oh.make_graph(
        nodes,
        "g",
        [oh.make_tensor_value_info("x", F32, ["n", rows])],
        [oh.make_tensor_value_info("y", F32, ["n", 32])],
        weights,
    )
    return oh.make_model(graph, opset_imports=[oh.make_opsetid("", 17)], ir_version=8)


def external(proto: onnx.ModelProto, path: Path, **options: object) -> Path:
    """Save with onnx's own external data."""
    onnx.save(
        proto,
        path,
        save_as_external_data=True,
        location=options.pop("location", "w.bin"),
        size_threshold=0,
        **options,
    )
    return path


def run(source: str | bytes, x: np.ndarray) -> np.ndarray:
    ort = pytest.importorskip("onnxruntime")
    session = ort.InferenceSession(source, providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {"x": x})[0])


@pytest.mark.parametrize("constant", [False, True])
def test_large_embedded_weights_become_references_with_the_same_values(
    tmp_path: Path, constant: bool
) -> None:
    proto = matmul_model(constant=constant)
    onnx.save(proto, tmp_path / "m.onnx")
    model = load(tmp_path / "m.onnx")
    tensor = (
        model.proto.graph.node[0].attribute[0].t if constant else model.proto.graph.initializer[0]
    )
    assert tensor.data_location == tensor.EXTERNAL
    assert not tensor.raw_data
    original = proto.graph.node[0].attribute[0].t if constant else proto.graph.initializer[0]
    array = model.array(tensor)
    np.testing.assert_array_equal(array, numpy_helper.to_array(original))
    assert not array.flags.writeable
    assert not array.flags.owndata
    assert model.nbytes(tensor) == array.nbytes
    assert model.to_proto() == proto
    assert model.serialize() == proto.SerializeToString()


def test_packed_float_data_is_a_reference_and_is_written_as_raw_data(tmp_path: Path) -> None:
    proto = matmul_model()
    values = numpy_helper.to_array(proto.graph.initializer[0])
    proto.graph.initializer[0].ClearField("raw_data")
    proto.graph.initializer[0].float_data.extend(values.ravel())
    onnx.save(proto, tmp_path / "m.onnx")
    model = load(tmp_path / "m.onnx")
    assert model.proto.graph.initializer[0].data_location == onnx.TensorProto.EXTERNAL
    np.testing.assert_array_equal(model.array(model.proto.graph.initializer[0]), values)
    assert model.to_proto().graph.initializer[0].raw_data == values.tobytes()


def test_small_tensors_stay_in_the_proto(tmp_path: Path) -> None:
    onnx.save(matmul_model(), tmp_path / "m.onnx")
    small = load(tmp_path / "m.onnx").proto.graph.initializer[1]
    assert small.raw_data


@pytest.mark.parametrize("dtype", [d for d in DType if d is not DType.STRING])
def test_every_element_type_survives_encoding(dtype: DType) -> None:
    values = RNG.integers(0, 2 if dtype in (DType.UINT2, DType.INT2) else 7, (3, 5))
    if dtype.is_integer and not dtype.name.startswith("U"):
        values = values - (1 if dtype is DType.INT2 else 3)
    array = values.astype(dtype.numpy)
    tensor = to_tensor(array, "t")
    assert tensor.data_type == dtype
    assert decode(tensor).tobytes() == array.tobytes()  # NaNs too
    assert numpy_helper.to_array(tensor).astype(array.dtype).tobytes() == array.tobytes()
    assert encode(array, dtype) == tensor.raw_data


@pytest.mark.parametrize("dtype", list(DType))
def test_every_element_type_is_read_from_its_typed_field(dtype: DType) -> None:
    values: list[object] = ["a", "b", "", "é"] if dtype is DType.STRING else [1, 0, 1, 1]
    if dtype is DType.FLOAT8E8M0:
        values = [1, 2, 1, 1]  # it has no zero
    tensor = oh.make_tensor("t", int(dtype), [4], values)
    array = decode(tensor)
    assert array.dtype == dtype.numpy
    assert [str(v) if dtype is DType.STRING else v for v in array.tolist()] == values


def test_subbyte_elements_keep_their_sign() -> None:
    array = np.array([-8, 7, -1], ml_dtypes.int4)
    np.testing.assert_array_equal(decode(to_tensor(array)), array)


def test_strings_that_are_not_utf8_survive() -> None:
    tensor = onnx.TensorProto(data_type=8, dims=[1], string_data=[b"\xff\xfe"])
    assert to_tensor(decode(tensor)).string_data == tensor.string_data


def test_external_weights_are_mapped(tmp_path: Path) -> None:
    proto = matmul_model()
    want = numpy_helper.to_array(proto.graph.initializer[0])
    model = load(external(proto, tmp_path / "m.onnx"))
    array = model.array(model.proto.graph.initializer[0])
    np.testing.assert_array_equal(array, want)
    assert not array.flags.owndata


def test_external_data_dir_says_where_the_data_is(tmp_path: Path) -> None:
    external(matmul_model(), tmp_path / "m.onnx")
    (tmp_path / "d").mkdir()
    os.rename(tmp_path / "w.bin", tmp_path / "d" / "w.bin")
    with pytest.raises(ModelError, match=r"w\.bin.*does not exist"):
        load(tmp_path / "m.onnx")
    model = load(tmp_path / "m.onnx", external_data_dir=tmp_path / "d")
    assert model.array(model.proto.graph.initializer[0]).shape == (64, 32)
    assert isinstance(model.session_source(), bytes)


def test_ignored_external_data_has_no_values_and_is_kept_on_saving(tmp_path: Path) -> None:
    external(matmul_model(), tmp_path / "m.onnx")
    os.rename(tmp_path / "w.bin", tmp_path / "elsewhere")
    model = load(tmp_path / "m.onnx", ignore_external_data=True)
    with pytest.raises(ModelError, match="'w' has no value, because external data is ignored"):
        model.array(model.proto.graph.initializer[0])
    model.save(tmp_path / "out.onnx")
    os.rename(tmp_path / "elsewhere", tmp_path / "w.bin")
    assert load(tmp_path / "out.onnx").array(model.proto.graph.initializer[0]).shape == (64, 32)


BROKEN = {
    "empty": (b"", "is empty"),
    "text": (b"ir_version: 8\n", "is a text file"),
    "lfs": (b"version https://git-lfs.github.com/spec/v1\noid", "Git LFS pointer"),
    "noise": (bytes(range(1, 200)), "not an ONNX model"),
    "engine": (b'\x10\0\0\0\0\0\0\0{"__metadata__":{}}', "safetensors file or an engine"),
    "graphless": (onnx.ModelProto(ir_version=8).SerializeToString(), "not an ONNX model"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_files_that_are_no_model_are_refused(tmp_path: Path, case: str) -> None:
    content, message = BROKEN[case]
    (tmp_path / "m.onnx").write_bytes(content)
    with pytest.raises(ModelError, match=message):
        load(tmp_path / "m.onnx")


def test_every_truncation_is_refused_or_still_a_model(tmp_path: Path) -> None:
    content = matmul_model().SerializeToString()
    for cut in range(1, len(content), 97):
        (tmp_path / "m.onnx").write_bytes(content[:cut])
        with pytest.raises(ModelError):
            load(tmp_path / "m.onnx")


def test_missing_files_and_directories_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="does not exist"):
        load(tmp_path / "none.onnx")
    with pytest.raises(ModelError, match="is a directory"):
        load(tmp_path)
    with pytest.raises(UsageError, match="not int"):
        load(3)  # type: ignore[arg-type]  # the point of the test


def test_a_tensor_that_claims_more_than_the_file_holds_is_refused(tmp_path: Path) -> None:
    proto = matmul_model()
    proto.graph.initializer[0].dims[0] = 1 << 40
    onnx.save(proto, tmp_path / "m.onnx")
    with pytest.raises(ModelError, match=r"'w' has 8192 bytes .* takes 140737488355328"):
        load(tmp_path / "m.onnx")
    small = onnx.TensorProto(name="s", data_type=F32, dims=[1 << 40])
    with pytest.raises(ModelError, match="'s' holds 0 values"):
        decode(small)


def test_a_field_that_claims_more_than_the_file_holds_is_refused() -> None:
    with pytest.raises(ModelError, match="damaged or cut short"):
        load(b"\x08\x08\x3a\xff\xff\xff\xff\x0f\x0a")


def test_external_data_that_is_too_short_is_refused(tmp_path: Path) -> None:
    external(matmul_model(), tmp_path / "m.onnx")
    os.truncate(tmp_path / "w.bin", 5000)
    with pytest.raises(ModelError, match=r"'w' claims bytes 0 to 8192 .*which has 5000"):
        load(tmp_path / "m.onnx")


@pytest.mark.parametrize("location", ["../w.bin", "/etc/hostname", "link", "sub/../../w.bin", "."])
def test_external_data_outside_of_the_directory_is_refused(tmp_path: Path, location: str) -> None:
    (tmp_path / "d").mkdir()
    external(matmul_model(), tmp_path / "d" / "m.onnx")
    os.rename(tmp_path / "d" / "w.bin", tmp_path / "w.bin")
    os.symlink(tmp_path / "w.bin", tmp_path / "d" / "link")
    proto = onnx.load(tmp_path / "d" / "m.onnx", load_external_data=False)
    for tensor in proto.graph.initializer:
        tensor.external_data[0].value = location
    (tmp_path / "d" / "m.onnx").write_bytes(proto.SerializeToString())
    with pytest.raises(ModelError, match="lies outside"):
        load(tmp_path / "d" / "m.onnx")


def test_a_proto_with_external_data_needs_the_directory(tmp_path: Path) -> None:
    external(matmul_model(), tmp_path / "m.onnx")
    proto = onnx.load(tmp_path / "m.onnx", load_external_data=False)
    with pytest.raises(ModelError, match="name the directory with external_data_dir"):
        load(proto)
    model = load(proto, external_data_dir=tmp_path)
    assert model.array(proto.graph.initializer[0]).shape == (64, 32)


def test_functions_that_call_each_other_are_refused() -> None:
    proto = matmul_model()
    opset = [oh.make_opsetid("", 17), oh.make_opsetid("f", 1)]
    for name, other in (("A", "B"), ("B", "A")):
        node = oh.make_node(other, ["x"], ["y"], domain="f")
        proto.functions.append(oh.make_function("f", name, ["x"], ["y"], [node], opset))
    with pytest.raises(ModelError, match="in a circle: A, B"):
        load(proto)


@pytest.mark.parametrize("source_external", [False, True])
@pytest.mark.parametrize("target", [False, True, "weights/w.bin", None])
@pytest.mark.ort
def test_saving_keeps_the_values(
    tmp_path: Path, source_external: bool, target: bool | str | None
) -> None:
    proto = matmul_model()
    x = RNG.standard_normal((2, 64)).astype(np.float32)
    want = run(proto.SerializeToString(), x)
    path = tmp_path / "m.onnx"
    (tmp_path / "weights").mkdir()
    if source_external:
        external(proto, path)
    else:
        onnx.save(proto, path)
    out = tmp_path / "out.onnx"
    load(path).save(out, external_data=target)
    np.testing.assert_array_equal(run(str(out), x), want)
    onnx.checker.check_model(str(out), full_check=True)
    is_external = source_external if target is None else bool(target)
    assert (tmp_path / "out.onnx.data").exists() == (is_external and target != "weights/w.bin")
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize("source_external", [False, True])
@pytest.mark.parametrize("target", [False, True, None])
def test_saving_over_the_source_works(
    tmp_path: Path, source_external: bool, target: bool | None
) -> None:
    proto = matmul_model()
    want = numpy_helper.to_array(proto.graph.initializer[0])
    path = tmp_path / "m.onnx"
    external(proto, path) if source_external else onnx.save(proto, path)
    model = load(path)
    for _ in range(2):
        model.save(path, external_data=target)
    again = load(path)
    np.testing.assert_array_equal(again.array(again.proto.graph.initializer[0]), want)
    if source_external and target is None:
        assert sorted(os.listdir(tmp_path)) == ["m.onnx", "w.bin"]


def test_saving_again_leaves_no_stale_data(tmp_path: Path) -> None:
    model = load(matmul_model())
    out = tmp_path / "out.onnx"
    model.save(out, external_data=True)
    size = (tmp_path / "out.onnx.data").stat().st_size
    model.save(out, external_data=True)
    assert (tmp_path / "out.onnx.data").stat().st_size == size
    model.save(out, external_data=False)
    assert os.listdir(tmp_path) == ["out.onnx"]


def test_a_data_file_that_the_old_model_did_not_use_is_left_alone(tmp_path: Path) -> None:
    model = load(matmul_model())
    model.save(tmp_path / "out.onnx")
    (tmp_path / "out.onnx.data").write_text("somebody else's")
    model.save(tmp_path / "out.onnx")
    assert (tmp_path / "out.onnx.data").exists()


def test_another_models_data_is_not_overwritten(tmp_path: Path) -> None:
    external(matmul_model(), tmp_path / "m.onnx", location="out.onnx.data")
    model = load(tmp_path / "m.onnx")
    with pytest.raises(UsageError, match="which the source model uses"):
        model.save(tmp_path / "out.onnx")
    with pytest.raises(UsageError, match="in the directory of the model"):
        model.save(tmp_path / "out.onnx", external_data="../w")


def test_a_failed_save_leaves_what_was_there(tmp_path: Path) -> None:
    path = external(matmul_model(), tmp_path / "m.onnx")
    model = load(path)
    before = path.read_bytes()
    os.truncate(tmp_path / "w.bin", 100)
    with pytest.raises(ModelError, match="became shorter"):
        model.save(path, external_data=False)
    assert path.read_bytes() == before
    with pytest.raises(ModelError, match="cannot be written"):
        load(matmul_model()).save(tmp_path / "no" / "m.onnx")
    assert sorted(os.listdir(tmp_path)) == ["m.onnx", "w.bin"]


def test_saving_is_reproducible(tmp_path: Path) -> None:
    onnx.save(matmul_model(), tmp_path / "m.onnx")
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        load(tmp_path / "m.onnx").save(tmp_path / name / "o.onnx", external_data=True)
    for file in ("o.onnx", "o.onnx.data"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


def test_equal_references_are_stored_once(tmp_path: Path) -> None:
    onnx.save(matmul_model(), tmp_path / "m.onnx")
    model = load(tmp_path / "m.onnx")
    proto = onnx.ModelProto()
    proto.CopyFrom(model.proto)
    twin = proto.graph.initializer.add()
    twin.CopyFrom(proto.graph.initializer[0])
    twin.name = "twin"
    model.derive(proto).save(tmp_path / "o.onnx", external_data=True)
    assert (tmp_path / "o.onnx.data").stat().st_size == 64 * 32 * 4


@pytest.mark.ort
def test_the_session_source_is_the_file_only_while_it_is_this_model(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    onnx.save(matmul_model(), path)
    model = load(path)
    assert model.session_source() == str(path)
    x = np.ones((1, 64), np.float32)
    derived = model.derive(model.proto)
    assert isinstance(derived.session_source(), bytes)
    np.testing.assert_array_equal(run(derived.session_source(), x), run(str(path), x))
    os.unlink(path)
    onnx.save(matmul_model(32), path)
    assert isinstance(model.session_source(), bytes)


def test_large_new_tensors_leave_memory(tmp_path: Path) -> None:
    model = load(matmul_model())
    array = RNG.standard_normal((1 << 19, 4)).astype(np.float32)
    proto = onnx.ModelProto()
    proto.CopyFrom(model.proto)
    proto.graph.initializer.append(model.store(array, "big"))
    proto.graph.initializer.append(model.store(array[:2], "small"))
    changed = model.derive(proto)
    assert len(proto.SerializeToString()) < 100_000
    changed.save(tmp_path / "o.onnx")
    again = load(tmp_path / "o.onnx")
    np.testing.assert_array_equal(again.array(again.proto.graph.initializer[2]), array)
    np.testing.assert_array_equal(again.array(again.proto.graph.initializer[3]), array[:2])


def test_opsets_call_the_standard_domain_by_one_name() -> None:
    proto = matmul_model()
    proto.opset_import[0].domain = "ai.onnx"
    proto.opset_import.add(domain="com.microsoft", version=1)
    assert load(proto).opsets == {"": 17, "com.microsoft": 1}
