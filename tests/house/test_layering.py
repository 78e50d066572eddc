"""What may import what, how long a file may be, and that a name means one module."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
FOLDERS = {
    "polytool": "polytool",
    "backends": "polytool.backends",
    "surgeon": "polytool.surgeon",
    "comparators": "polytool.comparators",
}
MAX_LINES = 500

# The layers, each with the modules or packages that make it up (the longest prefix decides) and the
# layers that it may import besides itself.
LAYERS: dict[str, tuple[set[str], set[str]]] = {
    "core": (
        {
            "polytool.arrays",
            "polytool.collection",
            "polytool.errors",
            "polytool.files",
            "polytool.model",
            "polytool.npy",
            "polytool.patterns",
            "polytool.saving",
            "polytool.tensors",
            "polytool.text",
            "polytool.validation",
            "polytool.wire",
        },
        set(),
    ),
    "base": ({"polytool.backends.base"}, {"core"}),
    "operators": (
        {
            "polytool.backends.native.inference",
            "polytool.backends.native.inference_apart",
            "polytool.backends.native.inference_traps",
            "polytool.backends.native.network",
            "polytool.backends.native.ops",
            "polytool.backends.native.protos",
            "polytool.backends.native.types",
        },
        {"core", "base"},
    ),
    "surgeon": ({"polytool.surgeon"}, {"core", "base", "operators"}),
    "registry": ({"polytool.backends"}, {"core", "base"}),
    "onnxrt": ({"polytool.backends.onnxrt"}, {"core", "base", "operators", "registry", "surgeon"}),
    "native": ({"polytool.backends.native"}, {"core", "base", "operators", "registry", "surgeon"}),
    "data": (
        {
            "polytool.feed_files",
            "polytool.feed_meaning",
            "polytool.feed_shapes",
            "polytool.feed_values",
            "polytool.feeds",
            "polytool.polygraphy_json",
            "polytool.repetition",
            "polytool.result_files",
            "polytool.results",
            "polytool.selection",
            "polytool.value_store",
        },
        {"core", "base", "operators", "registry"},
    ),
    # What surgeon offers to users beyond the rewrites that the native engine takes from it.
    "verified surgery": (
        {
            "polytool.surgeon.lint_run",
            "polytool.surgeon.linting",
            "polytool.surgeon.sanitizing",
            "polytool.surgeon.verify",
        },
        {"core", "base", "operators", "surgeon", "data"},
    ),
    "comparators": ({"polytool.comparators"}, {"core", "base", "data"}),
    "front": ({"polytool"}, {"*"}),  # what a command calls, where it is no backend's business
    "command line": ({"polytool.cli", "polytool.__main__"}, {"*"}),
}


@cache
def modules() -> dict[str, Path]:
    """Module name to file, as installed."""
    found = {}
    for folder, package in FOLDERS.items():
        for path in sorted((ROOT / folder).rglob("*.py")):
            parts = path.relative_to(ROOT / folder).with_suffix("").parts
            name = ".".join((package, *parts)).removesuffix(".__init__")
            found[name] = path
    return found


def layer(module: str) -> str:
    if module == "polytool":  # the version; the public names are imported lazily
        return "core"
    prefixes = [(p, name) for name, (prefixes, _) in LAYERS.items() for p in prefixes]
    fitting = [(p, name) for p, name in prefixes if f"{module}.".startswith(f"{p}.")]
    return max(fitting, key=lambda x: len(x[0]))[1]


def imports(path: Path) -> Iterator[tuple[int, str]]:
    """Modules of polytool that a file imports, wherever in it; not those only for annotations."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    typing_only = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if id(node) in typing_only:
            continue
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: relative import"
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                yield node.lineno, full if full in modules() else str(node.module)


@pytest.mark.parametrize("module", modules())
def test_imports_point_one_way(module: str) -> None:
    own = layer(module)
    allowed = {own, *LAYERS[own][1]}
    wrong = [
        f"{modules()[module].relative_to(ROOT)}:{line} imports {name}"
        for line, name in imports(modules()[module])
        if name.split(".")[0] == "polytool"
        and (not allowed & {layer(name), "*"} or (layer(name) == "command line" != own))
    ]
    assert not wrong, f"the layer {own} may import only from {sorted(allowed)}"


@pytest.mark.parametrize("module", modules())
def test_no_second_copy_of_a_package(module: str) -> None:
    bare = [
        f"line {line}: {name}"
        for line, name in imports(modules()[module])
        if name.split(".")[0] in FOLDERS.keys() - {"polytool"}
    ]
    assert not bare, "import polytool.backends, polytool.surgeon, polytool.comparators"


def python_files() -> list[Path]:
    folders = [*FOLDERS, "tests", "scripts", "docs"]
    return [path for folder in folders for path in sorted((ROOT / folder).rglob("*.py"))]


@pytest.mark.parametrize("path", python_files(), ids=lambda p: str(p.relative_to(ROOT)))
def test_files_stay_short(path: Path) -> None:
    lines = path.read_text(encoding="utf-8").count("\n")
    assert lines <= MAX_LINES, f"{path.relative_to(ROOT)} has {lines} lines: split it"


def test_commands_stay_short() -> None:
    shared = {"options.py", "output.py", "values.py", "__init__.py"}
    cli = [p for p in (ROOT / "polytool" / "cli").rglob("[a-z]*.py") if p.name not in shared]
    long = {p.name: n for p in cli if (n := p.read_text(encoding="utf-8").count("\n")) > 200}
    assert not long, "a command parses, calls one library function and prints"


def test_folders_under_tests_are_no_packages() -> None:
    assert not list((ROOT / "tests").rglob("__init__.py"))
    names = [path.name for path in (ROOT / "tests").rglob("test_*.py")]
    assert sorted(names) == sorted(set(names)), "two test files of one name"
