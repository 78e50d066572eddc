"""Run mypy --strict over the whole package.

    python scripts/typecheck.py                # everything
    python scripts/typecheck.py backends/base.py polytool/cli

setup.cfg maps backends/, surgeon/ and comparators/ below the package `polytool`, which mypy cannot
read. So this links every file to where it lies when installed, and checks those links; messages
show the files' places in the checkout.
"""

from __future__ import annotations

import configparser
import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FARM = ROOT / ".cache" / "typecheck"  # a fixed place, so that mypy's cache stays valid


def package_dirs() -> dict[str, Path]:
    """Where each folder of the checkout lies when installed: {"backends": "polytool/backends"}."""
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg", encoding="utf-8")
    lines = config["options"]["package_dir"].strip().splitlines()
    pairs = (line.split("=") for line in lines)
    return {folder.strip(): Path(*package.strip().split(".")) for package, folder in pairs}


def plant(places: dict[str, Path]) -> None:
    """Link every source file to its installed place in the farm, anew."""
    shutil.rmtree(FARM, ignore_errors=True)
    for folder, place in places.items():
        for source in (ROOT / folder).rglob("*.py*"):
            if source.suffix not in (".py", ".pyi") and source.name != "py.typed":
                continue
            link = FARM / place / source.relative_to(ROOT / folder)
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(source)


def installed(path: str, places: dict[str, Path]) -> str:
    """The place in the farm of a path of the checkout."""
    folder, *rest = Path(os.path.relpath(path, ROOT)).parts
    return str(places[folder].joinpath(*rest))


def main(args: list[str]) -> int:
    places = package_dirs()
    plant(places)
    paths = [installed(arg, places) for arg in args] or ["polytool"]
    command = [sys.executable, "-m", "mypy", "--config-file", str(ROOT / "pyproject.toml")]
    command += ["--cache-dir", str(ROOT / ".mypy_cache"), *paths]
    done = subprocess.run(command, cwd=FARM, stdout=subprocess.PIPE, text=True, check=False)
    text = done.stdout
    for folder, place in places.items():
        if folder != str(place):
            text = text.replace(f"{place}{os.sep}", f"{folder}{os.sep}")
    print(text, end="")
    return done.returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
