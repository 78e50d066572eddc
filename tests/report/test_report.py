"""`--report`: one self-contained HTML file that holds every fact, whatever names a model has."""

from __future__ import annotations

import importlib.util
import io
import json
import sys
from html.parser import HTMLParser

import numpy as np
import onnx
import pytest
from onnx.parser import parse_model
from PIL import Image

from polytool.cli import main
from polytool.comparators import pictures as pictured
from polytool.comparators.compare import compare
from polytool.comparators.findings import BROKEN, EXPECTED, Finding, Location, Range
from polytool.comparators.report import render
from polytool.errors import UsageError
from polytool.model import load
from polytool.reporting import neighbours, save_report

HOSTILE = "a</script><b>&amp;{{facts}}<!--\u2028'\"\\"
VOID = {"meta", "link", "br", "input", "img", "hr"}

OVERFLOW = """<ir_version: 9, opset_import: ["": 18]>
agraph (float[4] x) => (float[4] y, float[4] b)
<float big = {60000.0}, float small = {0.0001}>
{ a = Neg(x)  b = Mul(a, big)  c = Mul(b, big)  d = Mul(c, small)  y = Mul(d, small) }"""


class Page(HTMLParser):
    """The page's elements; fails on an end tag that closes no open element."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: dict[str, str] = {}
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open and self.open.pop() == tag, f"</{tag}> closes nothing"

    def handle_data(self, data):
        tag, attrs = self.tags[-1] if self.tags else ("", {})
        key = attrs.get("id") or tag
        self.texts[key] = self.texts.get(key, "") + data

    @property
    def data(self):
        return json.loads(self.texts["facts"])


def row(position: int, verdict: str = EXPECTED, *tensors: str, **more) -> Finding:
    facts = {
        "layer": f"layer{position}",
        "nodes": (f"node{position}",),
        "tensors": tensors,
        "own_error": 1e-4,
        "total_error": 2e-4,
        "inherited_error": 1e-4,
        "budget": 3e-4,
        "excess": 0.3,
        "condition": 1.0,
        "verdict": verdict,
        "reason": "rounding",
        "iteration": "0",
        "position": position,
        "dtype": "float16",
        "precision": "fp16",
        "range": Range(1.0, 65504.0, 0.0, 0, 0),
    }
    return Finding(**{**facts, **more})


def located(*rows: Finding) -> Location:
    verdict = BROKEN if any(r.verdict == BROKEN for r in rows) else EXPECTED
    return Location(verdict, rows, {"y": 1e-3}, ("t: no oracle",), {"precision": "fp16"})


def check_self_contained(text: str, page: Page) -> None:
    assert not page.open, f"never closed: {page.open}"
    links = [a for _, attrs in page.tags for a in attrs if a in ("src", "href", "srcset", "data")]
    assert not links
    assert not {tag for tag, _ in page.tags} & {"link", "img", "iframe", "object", "base"}
    outside = text.replace(page.texts["facts"], "")
    assert "http://" not in outside and "https://" not in outside
    assert "@import" not in outside and "url(" not in outside
    assert "fetch(" not in outside and "XMLHttpRequest" not in outside


def test_page_is_well_formed_and_loads_nothing() -> None:
    text = render("locate", located(row(0), row(1, BROKEN)).to_json(), title="m.onnx")
    page = Page(text)
    check_self_contained(text, page)
    policies = [a.get("content") for t, a in page.tags if "http-equiv" in a]
    assert policies == ["default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'"]


def test_every_fact_is_in_the_page() -> None:
    facts = located(row(0), row(1, BROKEN, excess=None, own_error=None), row(2)).to_json()
    assert Page(render("locate", facts, title="m")).data["facts"] == facts


def test_static_page_names_the_culprit_and_why() -> None:
    found = located(row(0), row(1, BROKEN, reason="overflow <fp16>"), row(2, BROKEN))
    text = render("locate", found.to_json(), title="m")
    assert '<span id="answer">First broken layer: node1: overflow &lt;fp16&gt;</span>' in text


def test_hostile_names_end_no_element_and_come_back_unchanged() -> None:
    found = located(row(0, BROKEN, HOSTILE, layer=HOSTILE, nodes=(HOSTILE,), reason=HOSTILE))
    text = render("locate", found.to_json(), title=HOSTILE)
    page = Page(text)
    check_self_contained(text, page)
    assert "b" not in {tag for tag, _ in page.tags}
    assert [tag for tag, _ in page.tags].count("script") == 2
    assert page.texts["h1"].strip() == HOSTILE == page.data["title"]
    assert page.data["facts"] == found.to_json()


def test_unknown_kind_is_refused() -> None:
    with pytest.raises(UsageError, match="there is no report of 'bench': choose one of run"):
        render("bench", {}, title="m")


def test_limits_are_those_of_the_types() -> None:
    limits = Page(render("locate", located(row(0)).to_json(), title="m")).data["limits"]
    for name in ("float16", "float32"):
        info = np.finfo(name)
        assert limits[name] == {"max": float(info.max), "min": float(info.tiny)}


def test_edges_pass_through_what_is_not_stored_and_into_bodies() -> None:
    model = parse_model("""<ir_version: 9, opset_import: ["": 18]>
    agraph (float[4] x, bool q) => (float[4] y) <float one = {1.0}>
    { k = Neg(one)  a = Abs(x)  b = Neg(a)  c = Add(b, k)  d = Mul(a, c)
      y = If(q) <then_branch = t () => (float[4] t0) { t0 = Neg(d) },
                 else_branch = e () => (float[4] e0) { e0 = Abs(c) }> }""")
    rows = [row(i, EXPECTED, t) for i, t in enumerate(("a", "c", "d", "y"))]
    found = neighbours(load(model), located(*rows))
    assert found["edges"] == {"0": [], "1": [0], "2": [0, 1], "3": [1, 2]}
    assert found["operators"]["1"] == ["Neg", "Add"]


def test_edges_do_not_need_sorted_nodes() -> None:
    model = parse_model("""<ir_version: 9, opset_import: ["": 18]>
    agraph (float[4] x) => (float[4] c) { a = Abs(x)  b = Neg(a)  c = Add(b, a) }""")
    nodes = list(model.graph.node)
    del model.graph.node[:]
    model.graph.node.extend(reversed(nodes))
    rows = [row(i, EXPECTED, t) for i, t in enumerate("abc")]
    assert neighbours(load(model), located(*rows))["edges"] == {"0": [], "1": [0], "2": [0, 1]}


def test_picture_counts_every_element_once() -> None:
    rng = np.random.default_rng(0)
    b = rng.standard_normal((3, 70, 200)).astype(np.float32)
    a = b + rng.choice([0, 1e-3, 2.0], b.shape).astype(np.float32)
    a[0, 0, :5] = np.nan
    b[1, 1, 1] = a[1, 1, 1] = np.inf
    drawn = pictured.draw(a, b)
    assert drawn["shape"] == [3, 70, 200] and drawn["view"] == [210, 200]
    assert drawn["one_sided"] == 5
    assert drawn["equal"] == np.count_nonzero(a == b)
    assert sum(drawn["histogram"]["counts"]) + drawn["equal"] + 5 == a.size


def test_histogram_bins_hold_what_they_say() -> None:
    errors = np.array([0.0, 0.02, 0.05, 0.2, 20.0])
    drawn = pictured.draw(errors, np.zeros(5))["histogram"]
    filled = {low: n for low, n in zip(drawn["from"], drawn["counts"], strict=True) if n}
    assert filled == {-2.0: 1, -1.5: 1, -1.0: 1, 1.0: 1}


def test_cells_are_the_largest_errors_of_their_blocks() -> None:
    a = np.zeros((100, 300))
    a[99, 299], a[0, 0], a[50, 150] = 3.0, 2.0, np.inf
    cells = pictured.draw(a, np.zeros_like(a))["map"]
    assert (len(cells), len(cells[0])) == (48, 96)
    assert cells[0][0] == 2.0 and cells[-1][-1] == 3.0 and cells[24][48] is None
    assert sum(cell == 0 for line in cells for cell in line) == 48 * 96 - 3


@pytest.mark.parametrize(
    ("a", "b"),
    [
        (np.array(3, np.int64), np.array(1, np.int64)),
        (np.array([True, False]), np.array([True, True])),
        (np.array([1 + 2j]), np.array([1 - 1j])),
    ],
    ids=["scalar", "bool", "complex"],
)
def test_pictures_of_other_types(a: np.ndarray, b: np.ndarray) -> None:
    cells = pictured.draw(a, b)["map"]
    assert max(map(max, cells)) == np.max(np.abs(a.astype(complex) - b))


def test_outputs_without_distance_have_no_picture() -> None:
    one = {"s": np.array(["a"], object), "e": np.zeros((0, 3)), "x": np.ones(2), "n": np.ones(2)}
    other = {**one, "s": np.array(["b"], object), "n": np.ones(3)}
    found = compare([one], [other])
    assert list(pictured.pictures({"a": [one], "b": [other]}, found)[0]) == ["x"]


def test_report_of_a_comparison_draws_the_worst_iteration(tmp_path) -> None:
    a = [{"y": np.zeros(3)}, {"y": np.array([0.0, 5.0, 0.0])}]
    b = [{"y": np.zeros(3)}, {"y": np.zeros(3)}]
    found = compare(a, b)
    save_report(tmp_path / "r.html", found, model="m.onnx", results={"a": a, "b": b})
    data = Page((tmp_path / "r.html").read_text(encoding="utf-8")).data
    assert data["facts"] == found.to_json()
    assert data["pictures"][0]["y"]["map"] == [[0.0, 5.0, 0.0]]


@pytest.fixture
def model(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    onnx.save(parse_model(OVERFLOW), "m.onnx")


def test_locate_writes_a_report_with_the_facts_of_json(model, capfd, tmp_path) -> None:
    args = ["debug", "locate", "m.onnx", "--fp16", "--val-range", "[1,2]"]
    assert main([*args, "--json", "--report", "out.html"]) == 1
    facts = json.loads(capfd.readouterr().out)
    text = (tmp_path / "out.html").read_text(encoding="utf-8")
    page = Page(text)
    check_self_contained(text, page)
    assert page.data["facts"] == facts
    assert facts["first_broken"]["reason"] in page.texts["answer"]
    assert set(page.data["edges"]) == {str(r["position"]) for r in facts["ranking"]}


@pytest.mark.ort
def test_run_writes_a_report_with_the_facts_of_json(model, capfd, tmp_path) -> None:
    args = ["run", "m.onnx", "--native", "--onnxrt", "--json", "--report", "out.html"]
    assert main([*args, "--postprocess", "y:top-2"]) == 0
    facts = json.loads(capfd.readouterr().out)
    data = Page((tmp_path / "out.html").read_text(encoding="utf-8")).data
    assert data["facts"] == facts
    assert data["pictures"][0]["y"]["shape"] == [2]  # what was compared, not what was returned


def test_one_run_alone_has_a_report(model, capfd, tmp_path) -> None:
    assert main(["run", "m.onnx", "--native", "--json", "--report", "out.html"]) == 0
    facts = json.loads(capfd.readouterr().out)
    data = Page((tmp_path / "out.html").read_text(encoding="utf-8")).data
    assert (data["facts"], data["title"]) == (facts, "m.onnx")


@pytest.mark.parametrize("command", ["debug locate", "run"])
def test_png_shows_the_plots(model, capfd, tmp_path, command: str) -> None:
    args = ["--native", "--fp16", "--val-range", "[1,2]", "--report", "out.png"]
    args += ["--oracle"] if command == "run" else []
    assert main([*command.split(), "m.onnx", *args]) == 1
    content = (tmp_path / "out.png").read_bytes()
    assert content.startswith(b"\x89PNG\r\n")
    with Image.open(io.BytesIO(content)) as image:
        pixels = np.asarray(image.convert("RGB")).astype(int)
    left = pixels[:, : pixels.shape[1] // 2]  # the legend stands at the right
    vermilion = np.all(np.abs(left - (0xD5, 0x5E, 0x00)) < 8, axis=-1)
    assert np.count_nonzero(vermilion) > 20, "the mark of what is broken is missing"


def test_png_without_matplotlib_says_what_to_install(model, capfd, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "matplotlib" else found(name)
    )
    assert main(["run", "m.onnx", "--native", "--report", "out.png"]) == 2
    assert "pip install 'polytool[report]'" in capfd.readouterr().err


def test_report_that_cannot_be_written_is_refused_before_the_work(model, capfd) -> None:
    assert main(["run", "m.onnx", "--native", "--report", "no/such/out.html"]) == 2
    assert "'no/such/out.html' cannot be written: there is no directory" in capfd.readouterr().err
