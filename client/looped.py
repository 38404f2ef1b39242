"""The client for event loops: as many tasks as you like ask, two frames are under way at a time.

1. A connection that breaks (the runner was started again) is made anew, once, and what had no answer is asked again.
2. A lane is free when its answer has come, also when nobody waits for it any more.
"""

import asyncio
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from agent.adapters.channel import Channel, connect
from agent.adapters.packets import close_all
from agent.core.errors import InputError, TransferError
from agent.core.messages import Denied, FromRunner, Inferred, LaneOpen, SeatRan
from client.answer import Answer, ClientError, RequestError, UnavailableError, error_of
from client.lane import (
    CLOSED,
    DEPTH,
    DOOR,
    STRANGER,
    TIMEOUT_S,
    Bell,
    BrokenError,
    Frame,
    Lane,
    bells_in,
    frames_path,
    short_of,
)


class AsyncClient:
    """Asks the runner of this device; connects when it first asks."""

    def __init__(self, address: str = DOOR, *, timeout_s: float = TIMEOUT_S) -> None:
        self._path, self._timeout_s = frames_path(address), timeout_s
        self._lock = asyncio.Lock()
        self._line: AsyncLine | None = None
        self._is_closed = False

    async def infer(self, slot: str, frame: Frame) -> Answer:
        """As `Client.infer`."""
        try:
            async with asyncio.timeout(self._timeout_s):
                try:
                    return await (await self._connected()).infer(slot, frame)
                except BrokenError:
                    return await (await self._connected()).infer(slot, frame)
        except TimeoutError as error:
            raise UnavailableError(f"{self._path}: no answer within {self._timeout_s:g} s") from error
        except (BrokenError, TransferError) as error:
            raise UnavailableError(str(error)) from error
        except OSError as error:
            raise short_of(self._path, error) from error

    async def close(self) -> None:
        """Ends the connection; nothing is asked any more, and what is under way raises RequestError."""
        self._is_closed = True
        async with self._lock:  # a connection that is made just now is closed, too
            if self._line is not None:
                await self._line.close()
                self._line = None

    async def _connected(self) -> "AsyncLine":
        async with self._lock:
            if self._line is None or self._line.is_lost:
                if self._is_closed:
                    raise RequestError(CLOSED)
                self._line = AsyncLine(connect(self._path, FromRunner), self._path)
            return self._line

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()


class AsyncLine:
    """One connection with its lanes; good for one life of the runner."""

    def __init__(self, channel: Channel[FromRunner], path: Path) -> None:
        self._channel, self._path = channel, path
        self._lanes = [Lane(number) for number in range(DEPTH)]
        self._free: asyncio.Queue[Lane] = asyncio.Queue()
        self._waiting: dict[int, asyncio.Future[Answer]] = {}
        self.is_lost = False
        for lane in self._lanes:
            with suppress(TransferError):
                channel.send(LaneOpen(lane=lane.number), lane.descriptors)
            self._free.put_nowait(lane)
        self._hearing: set[asyncio.Task[None]] = set()  # one for each bell
        self._listening = asyncio.create_task(self._listen(), name="frames")

    async def infer(self, slot: str, frame: Frame) -> Answer:
        """The answer to one frame.

        Raises:
            BrokenError: the connection ended first.
            ClientError: the frame is none, the runner refused, or what answers is none.
        """
        lane = await self._free.get()
        if self.is_lost:
            self._free.put_nowait(lane)  # whoever waits next is to know it, too
            raise BrokenError(self._path)
        answer: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        try:
            lane.write(slot, frame)
            if not lane.ring():
                lane.ask(self._channel)
        except (ClientError, OSError):
            self._free.put_nowait(lane)
            raise
        self._waiting[lane.number] = answer
        return await answer

    async def close(self) -> None:
        """Ends it."""
        self._listening.cancel()
        await asyncio.wait([self._listening, *self._hearing])

    async def _listen(self) -> None:
        error: Exception = BrokenError(self._path)
        try:
            await self._channel.each(self._take)
        except ClientError as reason:
            error = reason
        except (InputError, LookupError) as reason:
            error = UnavailableError(f"{self._path}: {STRANGER}: {reason}")
        finally:
            self._end(error)

    def _take(self, said: FromRunner, descriptors: list[int]) -> None:
        bells = bells_in(said, descriptors)
        if isinstance(said, Denied) and said.lane < 0:
            raise error_of(said)
        lane = self._lanes[said.lane]
        if isinstance(said, Inferred):
            for bell in bells:
                seat: Channel[SeatRan] = Channel(bell, SeatRan)
                hung = lane.hang(said, seat, seat.hang_up)
                task = asyncio.create_task(self._hear(lane, hung, seat), name="bell")
                self._hearing.add(task)
                task.add_done_callback(self._hearing.discard)
        self._answered(lane, said)

    async def _hear(self, lane: Lane, bell: Bell, seat: "Channel[SeatRan]") -> None:
        """The answers to rings, until the bell ends."""

        def take(said: SeatRan, descriptors: list[int]) -> None:
            close_all(descriptors)
            self._answered(lane, said)

        try:
            with suppress(InputError, LookupError):  # nonsense: the runner is asked
                await seat.each(take)
            was_rung = lane.rung is bell
            lane.drop(bell)
            if was_rung:
                lane.ask(self._channel)
        finally:
            seat.close()

    def _answered(self, lane: Lane, said: FromRunner | SeatRan) -> None:
        answer = self._waiting.pop(lane.number)
        try:
            if isinstance(said, Denied):
                raise error_of(said)
            result = lane.read(said)
        except ClientError as error:
            if not answer.done():
                answer.set_exception(error)
        else:
            if not answer.done():
                answer.set_result(result)
        self._free.put_nowait(lane)

    def _end(self, error: Exception) -> None:
        self.is_lost = True
        self._channel.close()
        for answer in self._waiting.values():
            if not answer.done():
                answer.set_exception(error)
        self._waiting.clear()
        for lane in self._lanes:
            lane.close()
        self._free.put_nowait(self._lanes[0])  # wakes whoever waits for one
