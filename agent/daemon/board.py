"""A board shows the latest value to any number of readers; it never queues."""

import asyncio
from collections.abc import AsyncIterator, Coroutine
from typing import Generic, TypeVar

T = TypeVar("T")


class Board(Generic[T]):
    """The latest value, and a turn that wakes whoever waits for the next one."""

    def __init__(self, value: T) -> None:
        self.value = value  # the latest; assigning it wakes nobody: a fresher reading of what is known, no news
        self._turned = asyncio.Event()

    def post(self, value: T) -> None:
        """Replace the value and wake every reader."""
        self.value = value
        self._turned.set()
        self._turned = asyncio.Event()

    def turned(self) -> Coroutine[None, None, bool]:
        """Until the next value is posted; the one next to this call, whenever it is awaited."""
        return self._turned.wait()

    async def changes(self) -> AsyncIterator[T]:
        """The current value, then each later one; a slow reader skips to the newest."""
        while True:
            value, turned = self.value, self._turned
            yield value
            await turned.wait()
