"""A lane: a pair of arenas, shared with a seat, that carries one request and its answer.

1. A slot has LANES of them: that many requests are inside at once, the next ones wait at the door. This is the
   only queue.
2. The client's bytes are received into the request arena, and sent from the answer arena: no copy in between.
3. A lane is free again when the seat has answered (or is dead) and the client has all of the answer, not before.
4. Arenas grow with the requests. One that grew past KEPT_BYTES is given back with its request.
"""

import asyncio
from collections import deque

from agent.adapters.channel import close_all
from agent.adapters.memory_file import arena, grow, map_shared, size

LANES = 16  # cameras on one device that send at the same time; each lane holds one frame
FIRST_BYTES = 64 * 1024
KEPT_BYTES = 16 * 1024**2  # a 1280 x 1280 float frame is 19.7 MB, a 640 x 640 one 4.9 MB


class Pair:
    """The two arenas of a lane, as a seat is told of them: for the request, and for the answer."""

    def __init__(self, number: int, descriptors: tuple[int, int]) -> None:
        self.number, self.descriptors = number, descriptors

    def close(self) -> None:
        """Gives the descriptors back; the memory goes with the last view of it."""
        close_all(self.descriptors)


class Lane(Pair):
    """A pair that is mapped here; the mappings follow its growth."""

    def __init__(self, number: int) -> None:
        super().__init__(number, (arena(f"request-{number}", FIRST_BYTES), arena(f"answer-{number}", FIRST_BYTES)))
        self._request, self._answer = (map_shared(one) for one in self.descriptors)

    def request(self, start: int, length: int) -> memoryview:
        """A place for a request's bytes."""
        if start + length > len(self._request):
            grow(self.descriptors[0], start + length)
            self._request = map_shared(self.descriptors[0])
        return memoryview(self._request)[start : start + length]

    def answer(self, start: int, length: int) -> memoryview:
        """What the seat wrote there; cut short where it wrote less than it said."""
        if start + length > len(self._answer):
            self._answer = map_shared(self.descriptors[1])
        return memoryview(self._answer)[start : start + length]

    @property
    def is_large(self) -> bool:
        """Whether it holds more memory than a lane may keep."""
        return sum(size(one) for one in self.descriptors) > KEPT_BYTES


class Lanes:
    """The lanes of one slot."""

    def __init__(self, count: int = LANES) -> None:
        self._unused = list(range(count))
        self._free: list[Lane] = []  # last in, first out: its pages are there already
        self._waiting: deque[asyncio.Future[Lane]] = deque()

    async def take(self, patience_s: float) -> Lane:
        """A lane of one's own, until it is given back.

        Raises:
            TimeoutError: none came free in time.
        """
        if self._free:
            return self._free.pop()
        if self._unused:
            return Lane(self._unused.pop())
        turn: asyncio.Future[Lane] = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        try:
            async with asyncio.timeout(patience_s):
                return await turn
        except BaseException:
            if turn.done() and not turn.cancelled():
                self.give_back(turn.result())
            raise

    def give_back(self, lane: Lane) -> None:
        """Lets the next request have it."""
        if lane.is_large:
            lane.close()
            lane = Lane(lane.number)
        while self._waiting:
            turn = self._waiting.popleft()
            if not turn.done():
                turn.set_result(lane)
                return
        self._free.append(lane)

    def close(self) -> None:
        """Gives back the lanes that are free."""
        while self._free:
            self._free.pop().close()
