"""A wheel, built from a clean copy and installed into a fresh environment, is complete."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

PLACES = {
    "polytool": "polytool",
    "backends": "polytool/backends",
    "surgeon": "polytool/surgeon",
    "comparators": "polytool/comparators",
}
OPTIONAL = ("cupy", "cudnn", "nvmath", "onnxruntime", "jinja2", "matplotlib", "PIL", "torch")
IMPORT_ALL = """
import importlib, pkgutil, sys, polytool
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in sys.argv[1:]:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Absent())
skip = ("polytool.__main__",)
names = [m.name for m in pkgutil.walk_packages(polytool.__path__, "polytool.")]
for name in names:
    if name not in skip:
        importlib.import_module(name)
print(polytool.__file__, *names)
"""


def sources(root: Path) -> list[str]:
    """Files of the checkout that belong to the package, tracked or about to be."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "--", *PLACES]
    listed = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True).stdout
    return sorted({name for name in listed.splitlines() if (root / name).is_file()})


@pytest.fixture(scope="module")
def wheel(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    clean = tmp_path_factory.mktemp("clean")
    for name in [*sources(root), "setup.cfg", "pyproject.toml", "README.md", "LICENSE"]:
        (clean / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(root / name, clean / name)
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    out = tmp_path_factory.mktemp("wheel")
    subprocess.run([*command, "--wheel-dir", str(out), str(clean)], check=True)
    (path,) = out.glob("polytool-*.whl")
    return path


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of an environment with the wheel, and nothing else of this checkout."""
    folder = tmp_path_factory.mktemp("environment")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    bin_dir = folder / ("Scripts" if os.name == "nt" else "bin")
    python = bin_dir / f"python{'.exe' if os.name == 'nt' else ''}"
    pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet", "--no-deps"]
    subprocess.run([*pip, str(wheel)], check=True)
    (site,) = folder.rglob("site-packages")
    # The dependencies are those of the environment that runs the tests; a path in a .pth file does
    # not bring that environment's own .pth files, hence no editable polytool.
    (site / "dependencies.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
    return python


def test_wheel_has_every_file_of_the_checkout(root: Path, wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        packed = {name for name in archive.namelist() if ".dist-info/" not in name}
    expected = set()
    for name in sources(root):
        folder, rest = name.split("/", 1)
        expected.add(f"{PLACES[folder]}/{rest}")
    assert packed == expected
    assert "polytool/py.typed" in packed


def test_every_module_imports_without_the_extras(installed: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        [str(installed), "-c", IMPORT_ALL, *OPTIONAL],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    where, *names = done.stdout.split()
    assert Path(where).is_relative_to(installed.parent.parent)
    assert {"polytool.backends.base", "polytool.surgeon", "polytool.comparators"} <= set(names)


def test_installed_command_runs(installed: Path, tmp_path: Path) -> None:
    command = installed.with_name("polytool")
    done = subprocess.run(
        [str(command), "env", "--json"], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert "native" in json.loads(done.stdout)["runners"]


def test_uninstalled_checkout_imports(root: Path) -> None:
    code = "import polytool.backends.base, polytool.surgeon, polytool.comparators; print(1)"
    site = sysconfig.get_paths()["purelib"]
    path = os.pathsep.join([str(root), site])
    command = [sys.executable, "-S", "-c", code]
    done = subprocess.run(
        command, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, check=False
    )
    assert done.stdout == "1\n", done.stderr
