"""A lane: two memory files of ours, one that a frame is written into and one that the seat writes its answer into.

1. The files may grow and never shrink; the runner takes no others.
2. A lane carries one request at a time. What is read from it is copied: the next answer overwrites it.
3. A connection has lanes of its own: after one that broke, a seat may still write into the old ones.
4. The runner answers a request and may give a bell with it: what asks the same of the same model again then goes to
   its seat alone. A bell that ends says nothing: the request is the runner's again.
"""

import os
import socket
import stat
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from agent.adapters.arena import Arena
from agent.adapters.channel import frames_beside
from agent.adapters.memory_file import arena, map_for_reading
from agent.adapters.packets import Packets, close_all
from agent.core.errors import InputError, TransferError
from agent.core.messages import BODY_BYTES, FromRunner, Infer, Inferred, SeatRan
from client.answer import Answer, RequestError, UnavailableError

CLOSED = "the client is closed: make a new one"
DEPTH = 2  # requests of one client that are inside at once: a seat computes one while the other is on its way
DOOR = "unix:/run/edge-runner/door.sock"
FIRST_BYTES = 64 * 1024
FRAME_RANK = 3  # height, width, channels
STRANGER = "whoever answers there is no edge-runner of ours"
TIMEOUT_S = 60.0  # a slot's hold and a run's deadline, with room

Frame = ArrayLike | Mapping[str, ArrayLike]


class BrokenError(Exception):
    """The connection ended before the answer."""

    def __init__(self, path: Path) -> None:
        super().__init__(f"{path}: edge-runner ended the connection; is it up?")


def frames_path(address: str) -> Path:
    """Where frames go, for the address of a door.

    Raises:
        RequestError: it is not the address of a unix socket.
    """
    kind, _, path = str(address).partition(":")
    if kind != "unix" or not path:
        raise RequestError(f"address {address!r}: give the door's unix socket, for example {DOOR!r}")
    return frames_beside(Path(path))


@dataclass(frozen=True)
class Bell:
    """Where to ring for one request, who answers, and how to let go of it."""

    seat: Packets[SeatRan]
    request: Infer
    inferred: Inferred
    let_go: Callable[[], None]


class Lane:
    """A pair of memory files, mapped, and the bells for what was asked in it."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.request: Infer | None = None  # the newest
        self.rung: Bell | None = None  # whose seat is at it
        self._bells: dict[str, Bell] = {}  # by slot
        self.descriptors: tuple[int, ...] = ()
        for name in ("frame", "answer"):
            self.descriptors += (arena(name, FIRST_BYTES),)
        self._request, self._answer = Arena(self.descriptors[0]), Arena(self.descriptors[1], map_for_reading)

    def write(self, slot: str, frame: Frame) -> Infer:
        """The request for a frame, whose tensors lie in the lane.

        Raises:
            RequestError: the slot is none, or the frame holds something other than numbers, or too many.
        """
        arrays = tensors(frame)
        if type(slot) is not str:
            raise RequestError(f"slot {slot!r}: name a model of this device, for example 'face_detection'")
        if (size := sum(one.nbytes for one in arrays.values())) > BODY_BYTES:
            raise RequestError(f"the frame has {size} bytes, and a request {BODY_BYTES} at most: ask with fewer images")
        self.request = Infer(slot=slot, lane=self.number, inputs=self._request.put(arrays), bell=True)
        return self.request

    def ask(self, runner: Packets[FromRunner]) -> None:
        """Asks the runner for the newest request. That nobody is there is told when the answer is wanted.

        Raises:
            RequestError: it is too long, or says what is no text.
        """
        try:
            with suppress(TransferError):
                runner.send(self.request)
        except (InputError, ValueError) as error:
            raise RequestError(f"the request cannot be sent: {error}; give fewer inputs, or shorter names") from error

    def ring(self) -> bool:
        """Asks the seat for the newest request, where there is a bell for it."""
        assert self.request is not None
        bell = self._bells.get(self.request.slot)
        if bell is None or bell.request != self.request:
            return False
        try:
            bell.seat.send(None)
        except TransferError:
            self.drop(bell)
            return False
        self.rung = bell
        return True

    def hang(self, inferred: Inferred, seat: Packets[SeatRan], let_go: Callable[[], None]) -> Bell:
        """The bell that came with the answer to the newest request."""
        assert self.request is not None
        if (old := self._bells.get(self.request.slot)) is not None:
            self.drop(old)
        bell = self._bells[self.request.slot] = Bell(seat, self.request, inferred, let_go)
        return bell

    def drop(self, bell: Bell) -> None:
        """Forgets a bell that has ended."""
        bell.let_go()
        if self.rung is bell:
            self.rung = None
        if self._bells.get(bell.request.slot) is bell:
            del self._bells[bell.request.slot]

    def read(self, said: Inferred | SeatRan) -> Answer:
        """The answer, copied out of the lane.

        Raises:
            UnavailableError: there is none where it says.
        """
        bell, self.rung = self.rung, None
        try:
            outputs = {one.name: self._answer.tensor(one).copy() for one in said.outputs}
        except (ArithmeticError, TypeError, ValueError) as error:
            raise UnavailableError(f"{STRANGER}: {error}") from error
        if isinstance(said, Inferred):
            return Answer(outputs, said.release, said.candidate, said.finite)
        assert bell is not None
        return Answer(outputs, bell.inferred.release, bell.inferred.candidate, said.finite)

    def close(self) -> None:
        """Gives the files back, and ends the bells."""
        close_all(self.descriptors)
        self.descriptors = ()
        for bell in list(self._bells.values()):
            self.drop(bell)

    def __del__(self) -> None:
        self.close()  # a client that nobody closed


def short_of(path: Path, error: OSError) -> UnavailableError:
    """What a process that has no descriptor or memory left is told."""
    return UnavailableError(f"{path}: {error.strerror or error}; close what you do not need")


def bells_in(said: FromRunner, descriptors: list[int]) -> list[socket.socket]:
    """The bells that came with an answer; whatever else came is closed."""
    if isinstance(said, Inferred) and all(stat.S_ISSOCK(os.fstat(one).st_mode) for one in descriptors):
        return [socket.socket(fileno=one) for one in descriptors]
    close_all(descriptors)
    return []


def tensors(frame: Frame) -> dict[str, NDArray[Any]]:
    """A frame as tensors by name; the name "" is the model's only input.

    Raises:
        RequestError: one is no array, or holds something other than numbers.
    """
    if isinstance(frame, Mapping):
        arrays = {name: array_of(one, f"input {name}") for name, one in frame.items()}
    else:
        array = array_of(frame, "input frame")
        is_picture = array.dtype == np.uint8 and array.ndim == FRAME_RANK
        arrays = {"": array[np.newaxis] if is_picture else array}
    wrong = next((name for name, one in arrays.items() if one.dtype.kind not in "biuf"), None)
    if wrong is not None:
        raise RequestError(f"input {wrong or 'frame'}: it holds {arrays[wrong].dtype}; give numbers")
    return arrays


def array_of(one: ArrayLike, what: str) -> NDArray[Any]:
    """What numpy makes of it.

    Raises:
        RequestError: nothing, as of rows of several lengths.
    """
    try:
        return np.asarray(one)
    except (TypeError, ValueError) as error:
        raise RequestError(f"{what}: numpy makes no array of it: {error}") from error
