"""A lane: a pair of arenas, shared with a seat, that carries one request and its answer.

1. A slot has LANES of them: that many requests are inside at once, waiting or being computed; the next one is
   refused. So is one for which the others leave no memory.
2. The client's bytes are received into the request arena, and sent from the answer arena: no copy in between.
3. A lane is free again when the seat has answered (or is dead) and the client has all of the answer, not before. Nor
   while a thread copies into it or out of it, though nobody waits for the request any more.
4. Arenas grow with the requests. The first KEPT lanes, which are taken first, keep up to KEPT_BYTES for the next
   one; what others grew by is given back with their request.
"""

from collections.abc import Callable

from agent.adapters.arena import Arena
from agent.adapters.memory_file import arena, grow
from agent.adapters.packets import close_all
from agent.core.errors import TransferError

LANES = 64  # four times the cameras of a large device; each lane holds one frame
FIRST_BYTES = 64 * 1024
KEPT = 16  # cameras on one device that send at the same time
KEPT_BYTES = 16 * 1024**2  # a 1280 x 1280 float frame is 19.7 MB, a 640 x 640 one 4.9 MB
ALL_BYTES = 1024**3  # of all requests in a slot; the largest request alone is an eighth of it


class Pair:
    """The two arenas of a lane, as a seat is told of them: for the request, and for the answer."""

    def __init__(self, number: int, descriptors: tuple[int, int]) -> None:
        self.number, self.descriptors = number, descriptors

    def close(self) -> None:
        """Gives the descriptors back; the memory goes with the last view of it."""
        close_all(self.descriptors)


class Lane(Pair):
    """A pair that is mapped here."""

    def __init__(self, number: int, reserve: Callable[[int], None]) -> None:
        made: list[int] = []
        try:
            for way in ("request", "answer"):
                made.append(arena(f"{way}-{number}", FIRST_BYTES))  # noqa: PERF401  those made are closed where one is not
            self._request, self._answer = map(Arena, made)
        except OSError as error:
            close_all(made)
            raise TransferError(f"no memory file for another request now ({error.strerror})") from error
        super().__init__(number, (made[0], made[1]))
        self._reserve = reserve

    def request(self, start: int, length: int) -> memoryview:
        """A place for a request's bytes.

        Raises:
            TransferError: there is no memory for it.
        """
        if (more := start + length - len(self._request)) > 0:
            self._reserve(more)
            grow(self.descriptors[0], start + length)
        return self._request.view(start, length)

    def answer(self, start: int, length: int) -> memoryview:
        """What the seat wrote there; cut short where it wrote less than it said."""
        return self._answer.view(start, length)

    @property
    def is_large(self) -> bool:
        """Whether it holds more memory than a lane may keep."""
        most = KEPT_BYTES if self.number < KEPT else 2 * FIRST_BYTES
        return len(self._request) + len(self._answer) > most

    def close(self) -> None:
        """As `Pair.close`."""
        self._reserve(FIRST_BYTES - len(self._request))
        super().close()


class Lanes:
    """The lanes of one slot."""

    def __init__(self) -> None:
        self._free: dict[int, Lane | None] = dict.fromkeys(range(LANES))  # made when they are first taken
        self._left = ALL_BYTES

    def take(self) -> Lane:
        """A lane of one's own, until it is given back.

        Raises:
            TransferError: as many requests are inside as may be, or the system has no room for another.
        """
        if not self._free:
            raise TransferError(f"the queue is full: {LANES} requests wait or are being answered")
        number = min(self._free)
        lane = self._free[number] or Lane(number, self._reserve)
        del self._free[number]
        return lane

    def give_back(self, lane: Lane) -> None:
        """Lets the next request have it."""
        if lane.is_large:
            lane.close()
        self._free[lane.number] = None if lane.is_large else lane

    def _reserve(self, more: int) -> None:
        if more > self._left:
            raise TransferError(f"the requests that wait take all of the {ALL_BYTES} bytes that there are for them")
        self._left -= more

    def close(self) -> None:
        """Gives back the lanes that are free."""
        while self._free:
            if (lane := self._free.popitem()[1]) is not None:
                lane.close()
