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
from agent.core.messages import Denied, FromRunner, LaneOpen
from client.answer import Answer, ClientError, UnavailableError, error_of
from client.lane import DEPTH, DOOR, STRANGER, TIMEOUT_S, BrokenError, Frame, Lane, frames_path


class AsyncClient:
    """Asks the runner of this device; connects when it first asks."""

    def __init__(self, address: str = DOOR, *, timeout_s: float = TIMEOUT_S) -> None:
        self._path, self._timeout_s = frames_path(address), timeout_s
        self._lock = asyncio.Lock()
        self._line: AsyncLine | None = None

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

    async def close(self) -> None:
        """Ends the connection."""
        if self._line is not None:
            await self._line.close()
            self._line = None

    async def _connected(self) -> "AsyncLine":
        async with self._lock:
            if self._line is None or self._line.is_lost:
                self._line = AsyncLine(await connect(self._path, FromRunner), self._path)
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
        self._listening = asyncio.create_task(self._listen(), name="frames")

    async def infer(self, slot: str, frame: Frame) -> Answer:
        """The answer to one frame.

        Raises:
            BrokenError: the connection ended first.
            ClientError: the frame is none, or the runner refused.
        """
        lane = await self._free.get()
        if self.is_lost:
            self._free.put_nowait(lane)  # whoever waits next is to know it, too
            raise BrokenError(self._path)
        answer: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        try:
            request = lane.write(slot, frame)
        except ClientError:
            self._free.put_nowait(lane)
            raise
        self._waiting[lane.number] = answer
        with suppress(TransferError):  # gone: whoever listens reads its end
            self._channel.send(request)
        return await answer

    async def close(self) -> None:
        """Ends it."""
        self._listening.cancel()
        await asyncio.wait([self._listening])

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
        close_all(descriptors)
        if isinstance(said, Denied) and said.lane < 0:
            raise error_of(said)
        lane, answer = self._lanes[said.lane], self._waiting.pop(said.lane)
        if not answer.done():
            if isinstance(said, Denied):
                answer.set_exception(error_of(said))
            else:
                answer.set_result(lane.read(said))
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
