"""The client for threads: it asks and waits.

1. One thread asks at a time on a client, others wait for it; a stream has a connection of its own.
2. A connection that breaks (the runner was started again) is made anew, once, and what had no answer is asked again.
3. A connection on which something is still under way when its caller is done (a timeout, Ctrl-C) is not used again.
"""

import socket
import struct
import threading
from collections import deque
from collections.abc import Generator, Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from agent.adapters.packets import M, Packets, Received, close_all, nobody_answers
from agent.core.errors import InputError, TransferError
from agent.core.messages import Denied, FromRunner, LaneOpen, SeatRan
from client.answer import Answer, RequestError, UnavailableError, error_of
from client.lane import (
    CLOSED,
    DEPTH,
    DOOR,
    STRANGER,
    TIMEOUT_S,
    BrokenError,
    Frame,
    Lane,
    bells_in,
    frames_path,
    short_of,
)


class Client:
    """Asks the runner of this device; connects when it first asks."""

    def __init__(self, address: str = DOOR, *, timeout_s: float = TIMEOUT_S) -> None:
        self._address, self._path, self._timeout_s = address, frames_path(address), timeout_s
        self._lock = threading.Lock()
        self._line: Line | None = None
        self._is_closed = False

    def infer(self, slot: str, frame: Frame) -> Answer:
        """The slot's model on one frame: an array for a model of one input, or arrays by the inputs' names.

        A picture may be uint8 [height, width, 3] RGB: the release says how to normalise it.

        Raises:
            RequestError: it does not fit the model.
            ModelError: the model failed on it.
            UnavailableError: nothing answers now.
        """
        with self._lock:
            try:
                return next(self._answers(slot, [frame]))
            finally:
                if self._line is not None and self._line.under_way:
                    self._hang_up()

    def stream(self, slot: str, frames: Iterable[Frame]) -> Generator[Answer, None, None]:
        """The answers to frames, in order; while the model computes one, the next is on its way to it.

        Raises:
            ClientError: as `infer`; it ends the stream.
        """
        with Client(self._address, timeout_s=self._timeout_s) as other:
            yield from other._answers(slot, frames)

    def close(self) -> None:
        """Ends the connection; nothing is asked any more."""
        with self._lock:
            self._is_closed = True
            self._hang_up()

    def _answers(self, slot: str, frames: Iterable[Frame]) -> Iterator[Answer]:
        waiting: deque[tuple[int, Frame]] = deque()
        for number, frame in enumerate(frames):
            if len(waiting) == DEPTH:
                yield self._first(slot, waiting)
            self._ask(number % DEPTH, slot, frame)
            waiting.append((number % DEPTH, frame))
        while waiting:
            yield self._first(slot, waiting)

    def _first(self, slot: str, waiting: deque[tuple[int, Frame]]) -> Answer:
        """The answer to what waits longest."""
        assert self._line is not None
        number = waiting[0][0]
        try:
            answer = self._line.answer(number)
        except BrokenError:
            self._hang_up()
            for lane, frame in waiting:
                self._ask(lane, slot, frame)
            try:
                answer = self._line.answer(number)
            except BrokenError as error:
                raise UnavailableError(str(error)) from error
        waiting.popleft()
        return answer

    def _ask(self, number: int, slot: str, frame: Frame) -> None:
        if self._is_closed:
            raise RequestError(CLOSED)
        try:
            if self._line is None:
                self._line = Line(self._path, self._timeout_s)
            self._line.ask(number, slot, frame)
        except OSError as error:
            raise short_of(self._path, error) from error

    def _hang_up(self) -> None:
        if self._line is not None:
            self._line.close()
            self._line = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class Line:
    """One connection with its lanes; good for one life of the runner."""

    def __init__(self, path: Path, timeout_s: float) -> None:
        self._path, self._timeout_s = path, timeout_s
        self._packets: Packets[FromRunner] = Packets(connect(path, timeout_s), FromRunner)
        self._lanes = [Lane(number) for number in range(DEPTH)]
        self._answers: dict[int, Answer | Denied] = {}
        self.under_way: set[int] = set()
        for lane in self._lanes:
            with suppress(TransferError):
                self._packets.send(LaneOpen(lane=lane.number), lane.descriptors)

    def ask(self, number: int, slot: str, frame: Frame) -> None:
        """Sends a frame by a lane that is free. That nobody is there is told when the answer is wanted.

        Raises:
            RequestError: the frame is none.
        """
        self._lanes[number].write(slot, frame)
        self.under_way.add(number)
        if not self._lanes[number].ring():
            self._lanes[number].ask(self._packets)

    def answer(self, number: int) -> Answer:
        """The answer in a lane.

        Raises:
            BrokenError: the connection ended first.
            ClientError: the runner refused, or did not answer in time.
        """
        if (bell := self._lanes[number].rung) is not None:
            if (ran := self._received(bell.seat)) is not None:
                close_all(ran[1])
                self.under_way.discard(number)
                return self._lanes[number].read(ran[0])
            self._lanes[number].drop(bell)
            self._lanes[number].ask(self._packets)
        while number not in self._answers:
            self._take(*self._read())
        answer = self._answers.pop(number)
        if isinstance(answer, Denied):
            raise error_of(answer)
        return answer

    def close(self) -> None:
        """Ends it."""
        self._packets.close()
        for lane in self._lanes:
            lane.close()

    def _take(self, said: FromRunner, descriptors: list[int]) -> None:
        bells = bells_in(said, descriptors)
        if said.lane >= DEPTH:
            raise UnavailableError(f"{self._path}: {STRANGER}: lane {said.lane}")
        if isinstance(said, Denied) and said.lane < 0:
            raise error_of(said)
        self.under_way.discard(said.lane)
        if isinstance(said, Denied):
            self._answers[said.lane] = said
            return
        self._answers[said.lane] = self._lanes[said.lane].read(said)
        for bell in bells:
            seat: Packets[SeatRan] = Packets(patient(bell, self._timeout_s), SeatRan)
            self._lanes[said.lane].hang(said, seat, seat.close)

    def _read(self) -> Received[FromRunner]:
        if (received := self._received(self._packets)) is None:
            raise BrokenError(self._path)
        return received

    def _received(self, packets: Packets[M]) -> Received[M] | None:
        try:
            return packets.read()
        except BlockingIOError as error:
            raise UnavailableError(f"{self._path}: no answer within {self._timeout_s:g} s") from error
        except InputError as error:
            raise UnavailableError(f"{self._path}: {STRANGER}: {error}") from error


def connect(path: Path, timeout_s: float) -> socket.socket:
    """A connection whose calls wait for `timeout_s` at most.

    Raises:
        UnavailableError: nobody listens there.
    """
    sock = patient(socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET), timeout_s)
    try:
        sock.connect(str(path))
    except OSError as error:
        sock.close()
        raise UnavailableError(nobody_answers(path, error)) from error
    return sock


def patient(sock: socket.socket, timeout_s: float) -> socket.socket:
    """The socket, whose calls wait for `timeout_s` at most."""
    wait = struct.pack("ll", int(timeout_s), int(timeout_s % 1 * 1e6))  # not settimeout(): it polls before each read
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, wait)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, wait)
    return sock
