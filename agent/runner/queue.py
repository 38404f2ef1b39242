"""The queue of a slot: requests that were read, and wait for their turn at the seat that serves.

1. It is the only one, and as long as there are lanes: whoever finds none is refused at once.
2. A lower number goes first, and of equal ones who came first. Who says nothing has the number PRIORITY.
3. A request whose deadline passes while it waits is never seen by a seat.
4. A seat has DEPTH requests at most: the one that it computes, and the next, so that it never waits for us. All
   others may still be overtaken, and meet the new seat after a swap.
"""

import asyncio
import math
from bisect import insort
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import count

from agent.core.errors import TransferError

DEPTH = 2
PRIORITY = 10  # 1 is the first; there is room for what may wait behind who says nothing


class LateError(TransferError):
    """A request's own deadline passed while it waited."""


@dataclass(frozen=True, slots=True)
class Terms:
    """What a request says of its waiting."""

    priority: int = PRIORITY
    deadline: float = math.inf  # monotonic seconds


WHENEVER = Terms()


@dataclass(order=True, slots=True)
class Turn:
    """One place in the queue."""

    priority: int
    number: int
    called: asyncio.Event = field(default_factory=asyncio.Event, compare=False)


class Queue:
    """Who is next."""

    def __init__(self) -> None:
        self._turns: list[Turn] = []
        self._count = count()

    def __len__(self) -> int:
        return len(self._turns)

    @contextmanager
    def turn(self, priority: int) -> Iterator[Turn]:
        """A place; whoever leaves his calls the next."""
        turn = Turn(priority, next(self._count))
        insort(self._turns, turn)
        try:
            yield turn
        finally:
            self._turns.remove(turn)
            self.call()

    def is_next(self, turn: Turn) -> bool:
        """Whether nobody is before."""
        return self._turns[0] is turn

    def call(self) -> None:
        """Has the next one look whether it is its turn."""
        if self._turns:
            self._turns[0].called.set()

    def call_all(self) -> None:
        """Has everybody look: what they wait for is another now."""
        for turn in self._turns:
            turn.called.set()
