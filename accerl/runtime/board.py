"""A value that others wait for: the newest weights, the list of services."""

from __future__ import annotations

import asyncio
from typing import Generic, TypeVar

Value = TypeVar("Value")


class Board(Generic[Value]):
    """Holds the newest value only, with a number that rises at each change.

    Args:
        above: numbers that others may have seen; there is nothing to be had here before the first change.
    """

    def __init__(self, value: Value, above: int = 0):
        self.value = value
        self.number = -1 if above else 0
        self._above = above
        self._changed = asyncio.Condition()

    async def post(self, value: Value) -> None:
        async with self._changed:
            self.value = value
            self.number = max(self.number, self._above) + 1
            self._changed.notify_all()

    async def newer(self, than: int, timeout_s: float) -> tuple[int, Value] | None:
        """Number and value once the number is above `than`; None if it was not in time."""
        async with self._changed:
            try:
                await asyncio.wait_for(self._changed.wait_for(lambda: self.number > than), timeout_s)
            except TimeoutError:
                return None
            return self.number, self.value
