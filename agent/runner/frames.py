"""Where clients of ours ask: a packet for a request and one for its answer; tensors lie in memory files they brought.

1. The seat computes straight from a client's memory file and into it: nobody between the two copies a frame.
2. A request goes the way of one by HTTP: through its slot's queue to whichever seat serves, and into its tally. Who
   was answered well may have a bell (bells.py), and asks the seat itself for more of the same.
3. A file is taken when nothing that its owner does to it can make a seat fault; a place in it when it lies inside.
4. Whoever says what is no message, asks in a lane that is not free, or does not read, is cut off: his own trouble.
"""

import asyncio
import logging
import math
import socket
import time
from collections.abc import Iterable, Mapping
from contextlib import nullcontext
from functools import partial
from http import HTTPStatus
from itertools import count

import numpy as np
from msgspec.structs import replace

from agent.adapters.channel import Channel
from agent.adapters.memory_file import is_arena, size
from agent.adapters.packets import close_all
from agent.core import messages
from agent.core.errors import InputError, TransferError
from agent.core.messages import BODY_BYTES, Blame, Denied, FromRunner, Infer, Inferred, LaneOpen, Slice, ToRunner
from agent.runner.door import Door, status_of
from agent.runner.holdings import Held
from agent.runner.http_head import HttpError
from agent.runner.lanes import LANES, Pair
from agent.runner.open_inference import NAMES, check_request

CLIENTS = 64
DEPTH = 4  # lanes of one client; two keep a seat busy
BLAME: Mapping[int, Blame] = {HTTPStatus.INTERNAL_SERVER_ERROR: "model", HTTPStatus.SERVICE_UNAVAILABLE: "nobody"}

log = logging.getLogger("edge-runner")


class Frames:
    """Answers our clients from the slots; counts at the door."""

    def __init__(self, door: Door, tasks: asyncio.TaskGroup) -> None:
        self._door, self._tasks = door, tasks
        self._clients: set[Client] = set()
        self.is_closing = False
        self._numbers = count(LANES)  # the slots' own lanes have those below

    async def attend(self, sock: socket.socket) -> None:
        """Serves one client until it leaves."""
        channel: Channel[ToRunner] = Channel(sock, ToRunner)
        client = Client(channel, self, self._tasks)
        try:
            self._let_in(client)
            await channel.each(client.take)
        except InputError as error:
            client.tell(Denied(lane=-1, blame="client", reason=str(error)))
        except Exception:
            log.exception("step=frames outcome=connection closed")
        finally:
            lanes = await client.close()
            self._clients.discard(client)
            for lane in lanes:
                for slot in self._door.slots.values():
                    slot.forget(lane)
                lane.close()

    async def close(self, patience_s: float) -> None:
        """Return when every request inside is answered, or after `patience_s`."""
        self.is_closing = True
        inside = [task for client in self._clients for task in client.inside.values()]
        if inside:
            await asyncio.wait(inside, timeout=patience_s)

    def lane(self, descriptors: list[int]) -> Pair:
        """A lane of two files that a client brought.

        Raises:
            InputError: they are not what a seat may map.
        """
        match descriptors:
            case [request, answer] if is_arena(request) and is_arena(answer):
                return Pair(next(self._numbers), (request, answer))
        close_all(descriptors)
        raise InputError("a lane takes two memory files (memfd) that may grow and are sealed against shrinking")

    async def answer(self, ask: Infer, lane: Pair) -> tuple[FromRunner, socket.socket | None]:
        """What comes of one request, and a bell for more of the same."""
        arrived = time.monotonic()
        try:
            slot = self._door.slot(ask.slot)
            with self._door.lane(slot):  # its arenas lie idle: it is the place in the queue that all share
                for one in ask.inputs:
                    check_slice(one, lane)
                answered = await slot.infer(lane, partial(asked, ask, lane), arrived)
            wants_bell = ask.bell and answered.ran.finite
            bell = slot.bell(answered.seat, lane, asked(ask, lane, answered.seat.held)) if wants_bell else None
        except (HttpError, InputError) as error:
            # of a runner that has just begun no name is wrong
            blame: Blame = "client" if self._door.slots else "nobody"
            return Denied(lane=ask.lane, blame=BLAME.get(status_of(error), blame), reason=str(error)), None
        place, ran = answered.seat.place, answered.ran
        inferred = Inferred(
            lane=ask.lane,
            release=place.ref.name,
            candidate=str(place.candidate),
            outputs=ran.outputs,
            finite=ran.finite,
        )
        return inferred, bell

    def _let_in(self, client: "Client") -> None:
        if len(self._clients) == CLIENTS:
            raise InputError(f"{CLIENTS} clients are connected; close some")
        self._clients.add(client)


class Client:
    """One connection, its lanes, and the requests inside."""

    def __init__(self, channel: Channel[ToRunner], frames: Frames, tasks: asyncio.TaskGroup) -> None:
        self._channel, self._frames, self._tasks = channel, frames, tasks
        self._lanes: dict[int, Pair] = {}
        self.inside: dict[int, asyncio.Task[None]] = {}

    def tell(self, answer: FromRunner, bell: socket.socket | None = None) -> None:
        """Sends it, or ends the connection of a client that does not take it."""
        try:
            with bell or nullcontext():
                self._channel.send(answer, [bell.fileno()] if bell else ())
        except (TransferError, InputError):
            self._channel.hang_up()

    async def close(self) -> Iterable[Pair]:
        """Ends the connection and what waits; the lanes, to be closed, once no seat is at them."""
        self._channel.close()
        inside = list(self.inside.values())
        for task in inside:
            task.cancel()
        if inside:
            await asyncio.wait(inside)
        return self._lanes.values()

    def take(self, message: ToRunner, descriptors: list[int]) -> None:
        """One message of the client's.

        Raises:
            InputError: it does not keep to the rules.
        """
        if isinstance(message, LaneOpen):
            self._open(message.lane, descriptors)
            return
        close_all(descriptors)
        lane = self._lanes.get(message.lane)
        if lane is None or message.lane in self.inside:
            raise InputError(f"lane {message.lane} is not open, or its last request has no answer yet")
        if not self._frames.is_closing:  # else the connection ends soon, and the client asks whoever comes next
            self.inside[message.lane] = self._tasks.create_task(self._one(message, lane), name="frame")

    def _open(self, number: int, descriptors: list[int]) -> None:
        if number in self._lanes or len(self._lanes) == DEPTH:
            close_all(descriptors)
            raise InputError(f"lane {number} is open already, or {DEPTH} are: that many a client may have")
        self._lanes[number] = self._frames.lane(descriptors)

    async def _one(self, ask: Infer, lane: Pair) -> None:
        try:
            answer, bell = await self._frames.answer(ask, lane)
        except Exception:
            log.exception("step=frame outcome=connection closed")
            self._channel.hang_up()
        else:
            self.tell(answer, bell)
        finally:
            del self.inside[ask.lane]


def check_slice(one: Slice, lane: Pair) -> None:
    """Return when a tensor is what it says and lies inside the lane's file, which never shrinks.

    Raises:
        InputError: it does not.
    """
    what = f"input {one.name}" if one.name else "the input"
    if one.dtype not in NAMES:
        raise InputError(f"{what}: dtype {one.dtype!r} is not one of {', '.join(NAMES)}")
    wanted, end = math.prod(one.shape) * np.dtype(one.dtype).itemsize, one.offset + one.size
    if one.size != wanted or end > min(size(lane.descriptors[0]), BODY_BYTES):
        raise InputError(
            f"{what}: {one.dtype} {list(one.shape)} takes {wanted} bytes; said are {one.size}, up to "
            f"{end} in a file of {size(lane.descriptors[0])} bytes, of which {BODY_BYTES} may be used"
        )


def asked(ask: Infer, lane: Pair, held: Held) -> messages.SeatRun:
    """The request in a lane as an order to a seat with this release.

    Raises:
        InputError: it does not fit the release.
    """
    inputs = ask.inputs
    if len(inputs) == len(held.metadata.inputs) == 1 and not inputs[0].name:
        inputs = (replace(inputs[0], name=held.metadata.inputs[0].name),)
    run = messages.SeatRun(lane=lane.number, inputs=inputs, outputs=ask.outputs)
    return check_request(run, held.metadata, held.config)
