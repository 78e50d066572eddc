"""`pytest --polytool-update`: record golden results and baselines of error, not compare."""

from __future__ import annotations

import os
from typing import Any


def pytest_addoption(parser: Any) -> None:
    """Add the option; called by pytest."""
    parser.getgroup("polytool").addoption(
        "--polytool-update",
        action="store_true",
        help="Record what polytool.testing compares with: golden results and baselines of error.",
    )


def pytest_configure(config: Any) -> None:
    """Tell `polytool.testing`, in worker processes too; called by pytest."""
    if config.getoption("--polytool-update"):
        from polytool.testing import UPDATE

        os.environ[UPDATE] = "1"
