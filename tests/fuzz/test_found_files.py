"""What the fuzzer found in model files, kept: a result or a clear error, in bounded memory."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from scripts.fuzz import Worker

FOUND = sorted((Path(__file__).parent / "found").iterdir())
# Where a file is refused, part of what a refusal says.
MESSAGES = {
    "attribute_named_like_a_parameter_of_the_engine": "the engine knows no attribute out_dtypes",
    "attribute_of_a_function_that_is_not_there": "but is in no function",
    "body_of_a_node_that_is_a_function": "has a body 'else_branch' with",
    "cast_1_to_no_type": "has to='circular', which is no element type",
    "cast_map_of_a_map_to_nothing": "CastMap has no cast_to 'x'",
    "cast_of_a_sequence": "takes no sequence, but its input 0",
    "cast_of_itself_before_a_mat_mul": "the graph has a cycle through node 'Cast:y'",
    "cast_to_element_type_0": "has to=0, which is no element type",
    "constant_without_value": "has no value",
    "dict_vectorizer_of_a_tensor": "takes a map, but its input 0 ('x') is a tensor",
    "dynamic_quantize_lstm_without_scales": "it lacks the scales of its weights",
    "einsum_of_lone_dots": "of more than letters, commas, ... and ->",
    "element_type_that_does_not_exist": "element type 1000000000, which ONNX does not define",
    "embedding_of_no_segments_that_has_their_scale": "and its scale one is left out",
    "expand_before_opset_8_without_outputs": "has 0 outputs, not 1",
    "external_location_of_5000_characters": "cannot be read: File name too long",
    "external_location_with_a_null_byte": "is no path",
    "fused_conv_without_outputs": "names none of its outputs",
    "function_called_like_concat_without_output": "names none of its outputs",
    "functions_nested_100_deep": "calls itself",
    "functions_that_double_24_times_down_to_an_empty_one": "expand to 8.39e+06 nodes",
    "functions_that_double_20_times": "expand to 1.05e+06 nodes",
    "gather_nd_of_negative_batch_dims": "has batch_dims=-2, which is negative",
    "if_with_more_outputs_than_its_branch": "has a body 'else_branch' with 0 outputs, not 1",
    "ifs_nested_20_deep_that_are_empty": "(If) has 0 inputs, not 1",
    "ir_version_beyond_32_bits": "IR version 1099511627776, which cannot exist",
    "layer_normalization_before_opset_17_of_no_type": "'stash_type' is no element type",
    "layer_normalization_of_axis_2_to_the_63": "has axis=9223372036854775807, which no tensor",
    "lstm_with_a_short_bias": "cannot be prepared",
    "metadata_of_bounds_that_is_empty": "does not say which bounds were set",
    "mul_of_one_input": "leaves out an input that it needs",
    "name_that_is_no_utf8": "is not UTF-8 text",
    "non_zero_of_an_optional": "takes no optional, but its input 0 ('x') is one",
    "opset_0": "imports opset 0, which cannot exist",
    "opset_beyond_32_bits": "which cannot exist",
    "optional_of_neither_input_nor_type": "has neither an input nor a type",
    "quantize_linear_without_its_first_output": "it leaves out its first output",
    "resize_of_an_axis_that_is_a_list": "the engine knows no attribute axis of it",
    "resize_to_minus_1": "Resize cannot make axes of sizes [-1]",
    "scan_with_more_body_inputs_than_it_hands_over": "has a body 'body' with 2 inputs, not 1",
    "scan_before_opset_8": "is no operator of opset 7",
    "sequence_map_of_a_tensor": "needs a sequence, and is given none",
    "sequence_of_numbers_and_text": "holds numbers or text, not both",
    "simplified_layer_normalization_of_no_type": "'stash_type' is no element type",
    "softmax_1_without_output": "names none of its outputs",
    "sparse_index_out_of_range": "cannot be made dense",
    "sparse_weight_of_4_tib": "cannot be made dense",
    "sparse_with_fewer_indices_than_values": "cannot be made dense",
    "split_into_fewer_than_its_outputs": "has num_outputs=1, but 2 outputs",
    "string_split_of_numbers": "takes text, but its input 0 ('x') holds numbers",
    "transpose_by_axes_that_are_not_there": "has perm=[0, 7], which is no order of axes",
    "upsample_without_scales_in_opset_22": "has 1 inputs, not 2",
    "weight_of_element_type_0": "element type 0, which ONNX does not define",
}


@pytest.fixture(scope="module")
def worker() -> Iterator[Worker]:
    """A process with limited memory: some of these files ask for more than there is."""
    worker = Worker()
    yield worker
    worker.close()


@pytest.mark.parametrize("path", FOUND, ids=lambda p: p.stem)
def test_a_find_stays_mended(path: Path, worker: Worker) -> None:
    answer = worker.exercise(path)
    assert "defect" not in answer, answer["traceback"]
    if path.stem in MESSAGES:
        assert any(MESSAGES[path.stem] in text for text in answer["stages"].values())


def test_every_message_belongs_to_a_file() -> None:
    assert set(MESSAGES) <= {p.stem for p in FOUND}
