"""Bells: how a client of ours asks the seat itself for what it asked the runner before, and was answered well.

1. A bell stands for one request, which the runner has checked: the same places in the same lane, computed once more.
   A ring says nothing but "now", so nothing that a client says reaches a seat.
2. A bell answers well or it ends. After a failure, NaN, or the seat's death the client asks the runner, who judges.
3. Only a seat that serves has bells. When it steps down they take no new ring; one that is inside is answered.
4. What was rung for is counted like any request, a moment later. The count has a run's deadline: a seat that hangs
   at a ring misses it.
"""

import socket
from contextlib import suppress

BELLS = 128  # of one seat: two for each client there may be
COUNT_S = 0.5  # between two counts


class Bells:
    """The runner's hold on the bells of one seat: it keeps one end of each, to end it by."""

    def __init__(self) -> None:
        self._ends: dict[int, socket.socket] = {}  # by lane
        self.are_counted = False  # somebody comes for the count

    def __len__(self) -> int:
        return len(self._ends)

    def hang(self, lane: int) -> tuple[socket.socket, socket.socket] | None:
        """The ends for the seat (ours to keep) and for the client; None where there is no room for more."""
        self.drop(lane)
        if len(self) == BELLS:
            return None
        try:
            seats, clients = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        except OSError:
            return None
        self._ends[lane] = seats
        return seats, clients

    def drop(self, lane: int) -> None:
        """Lets a bell take no new ring. What is inside is answered; then the client reads the end."""
        if (end := self._ends.pop(lane, None)) is not None:
            with suppress(OSError):
                end.shutdown(socket.SHUT_RD)
            end.close()

    def drop_all(self) -> None:
        """As `drop`, of each."""
        for lane in list(self._ends):
            self.drop(lane)
