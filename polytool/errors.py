"""The exceptions of polytool. A command that ends in one exits with its `exit_code`."""

from __future__ import annotations

_LONGEST = 2000  # characters of a message; names in broken files can be of any length


class PolytoolError(Exception):
    """No answer: the message names the object, the cause and the remedy in one sentence."""

    exit_code = 2

    def __str__(self) -> str:
        text = super().__str__()
        if len(text) <= _LONGEST:
            return text
        return f"{text[: _LONGEST // 2]} [...] {text[-_LONGEST // 2 :]}"


class UsageError(PolytoolError):
    """A wrong argument: an unknown name, dtype, shape, or a combination that has no meaning."""


class ModelError(PolytoolError):
    """An unusable input: a missing, broken, truncated or hostile model, engine or data file."""


class UnsupportedError(ModelError):
    """A valid model that the chosen runner cannot run; every unsupported node is named."""


class RunnerError(PolytoolError):
    """A runner that could not be created or failed while running."""


class MissingDependencyError(PolytoolError):
    """An optional package is missing; the message names the extra that brings it."""

    def __init__(self, package: str, extra: str, purpose: str) -> None:
        super().__init__(
            f"{purpose} needs {package}, which is not installed: pip install 'polytool[{extra}]'"
        )
