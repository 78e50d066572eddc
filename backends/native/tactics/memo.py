"""What was worked out for a shape, so that the next run with it need not."""

from __future__ import annotations

from typing import Generic, TypeVar

Key = TypeVar("Key")
Value = TypeVar("Value")
# A model whose shapes never repeat must not fill the memory.
_LIMIT = 64


class Memo(dict[Key, Value], Generic[Key, Value]):
    """A dictionary that starts over when it is full; safe for several threads."""

    def keep(self, key: Key, value: Value) -> Value:
        """Remember `value` and return it."""
        if len(self) >= _LIMIT:
            self.clear()
        self[key] = value
        return value
