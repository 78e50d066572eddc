"""Fixtures for every area: the real models, fetched when a test first asks for one."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from scripts.models import RealModel, get

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def root() -> Path:
    """The checkout."""
    return ROOT


@pytest.fixture(scope="session")
def real_model() -> Callable[[str], RealModel]:
    """`real_model("ppocr-rec")`: that model of scripts/models.py, its files in place.

    A model that is not to be had fails the test: nothing is skipped in silence.
    """
    fetch_models = load_script("fetch_models")
    sound: set[str] = set()

    def fetched(name: str) -> RealModel:
        model = get(name)
        if name not in sound:
            try:
                fetch_models.fetch([model])
            except fetch_models.FetchError as err:
                pytest.fail(str(err), pytrace=False)
            sound.add(name)
        return model

    return fetched


def load_script(name: str) -> ModuleType:
    """`scripts/<name>.py` as a module."""
    spec = importlib.util.spec_from_file_location(f"script_{name}", ROOT / "scripts" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
