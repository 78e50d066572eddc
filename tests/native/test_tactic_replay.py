"""Tactics of the CPU engine: listed, saved, repeated, compared; what has no effect is said."""

import numpy as np
import onnx.parser
import pytest

from polytool import BuilderConfig, NativeRunner, engine_from_onnx
from polytool.backends.native.tactic_replay import TacticChoice, TacticReplay, differing
from polytool.errors import ModelError

PROTO = onnx.parser.parse_model(
    """<ir_version: 9, opset_import: ["" : 20]>
    g (float[3,8] x) => (float[3,8] y) { a = Exp(x) b = Softmax(a) y = Add(b, x) }"""
)
X = np.random.default_rng(0).standard_normal((3, 8)).astype(np.float32)


def build(**options):
    return engine_from_onnx(PROTO, BuilderConfig.of(device="cpu", **options))


def test_level_0_takes_the_generic_tactics_and_gives_the_same_numbers():
    usual, generic = build(), build(builder_optimization_level=0)
    assert usual.tactics() != generic.tactics()
    assert all(c.tactic == c.candidates[-1] for c in generic.tactics().choices)
    assert all(c.tactic == c.candidates[0] for c in usual.tactics().choices)
    a, b = (NativeRunner(e).infer({"x": X})["y"] for e in (usual, generic))
    np.testing.assert_allclose(a, b, rtol=1e-6)


def test_saved_tactics_are_repeated_and_stored_with_the_engine(tmp_path):
    generic = build(builder_optimization_level=0)
    generic.tactics().save(tmp_path / "t.json")
    again = build(tactics=tmp_path / "t.json")
    assert again.tactics().choices == generic.tactics().choices
    again.save(tmp_path / "m.engine")
    loaded = NativeRunner(str(tmp_path / "m.engine"), device="cpu").engine
    assert loaded.tactics().choices == generic.tactics().choices


def test_tactics_of_another_model_are_refused():
    saved = build().tactics()
    other = TacticReplay((*saved.choices, TacticChoice("Conv:z", "numpy.conv")), source="'t.json'")
    with pytest.raises(ModelError, match="'t.json' holds tactics for layer 'Conv:z'"):
        build(tactics=other)
    with pytest.raises(ModelError, match="holds no tactic for layer"):
        build(tactics=TacticReplay(saved.choices[1:]))
    wrong = TacticReplay(tuple(TacticChoice(c.layer, "nothing") for c in saved.choices))
    with pytest.raises(ModelError, match="wants tactic 'nothing' for layer .*, which has numpy"):
        build(tactics=wrong)


@pytest.mark.parametrize("content", ["", "[]", '{"format": "x"}', '{"tactics": 3}'])
def test_other_files_are_refused(tmp_path, content):
    (tmp_path / "t.json").write_text(content)
    with pytest.raises(ModelError, match=r"t\.json' holds no tactics"):
        TacticReplay.load(tmp_path / "t.json")


def test_what_only_bad_engines_have():
    a, b = TacticChoice("l", "fast"), TacticChoice("l", "slow")
    same = TacticChoice("m", "fast")
    good, bad = TacticReplay((a, same)), TacticReplay((b, same))
    assert differing([good], [bad]) == (("l", "slow"),)
    assert differing([good, bad], [bad]) == () == differing([], [bad])


def test_options_without_an_effect_on_the_cpu_are_named():
    notes = build(tactic_sources=["nvrtc"], workspace_limit=5).notes
    assert len(notes) == 2 and all("has no effect" in n for n in notes)
