"""One client's connection: bytes in and out, without a copy of a body on its way.

1. Heads are read into a small buffer of the connection, bodies straight into the place that the caller names.
2. While a request is answered, at most one buffer of the next ones is read: a client that sends ahead waits.
3. A client that stops in the middle of a head, a body or an answer is cut off; one that is idle is not.
4. `drained` returns when the kernel has all of the answer: only then may the memory it lay in be used again.
"""

import asyncio
import socket
from collections.abc import Callable
from contextlib import suppress
from http import HTTPStatus
from typing import cast

from agent.runner.http_head import HEAD_BYTES, HttpError

HEAD_S = 10.0  # from a head's first byte to its last
BODY_S = 30.0  # a local client sends 100 MB in less than a second
ANSWER_S = 30.0
FAREWELL_S = 2.0  # reading on after a refusal, so that the client sees it instead of a reset
SCRATCH_BYTES = 64 * 1024

END = b"\r\n\r\n"


class Wire(asyncio.BufferedProtocol):
    """A connection, for one task that reads and writes it."""

    def __init__(self, opened: Callable[["Wire"], None], closed: Callable[["Wire"], None]) -> None:
        self._opened, self._closed = opened, closed
        self._buffer = bytearray(HEAD_BYTES)
        self._view = memoryview(self._buffer)
        self._filled = 0
        self._target: memoryview | None = None
        self._received = 0
        self._news = asyncio.Event()
        self._writable = asyncio.Event()
        self._writable.set()
        self._transport: asyncio.Transport
        self.is_over = False  # the client sends nothing more
        self.keeps_alive = False  # whether another request may come after the answer
        self.is_busy = False  # between a request's head and the end of its answer
        self.unread = 0  # bytes of the request's body that were not read yet

    async def head(self) -> bytes | None:
        """The next request's head; None when the client is done.

        Raises:
            HttpError: it is too long, or takes too long.
        """
        self.is_busy = False
        deadline = None
        while (end := self._buffer.find(END, 0, self._filled)) < 0:
            if self._filled == HEAD_BYTES:
                raise HttpError(
                    HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, f"the request's head is over {HEAD_BYTES} bytes"
                )
            if self.is_over:
                return None
            if self._filled and deadline is None:
                deadline = asyncio.get_running_loop().time() + HEAD_S
            try:
                async with asyncio.timeout_at(deadline):
                    await self._more()
            except TimeoutError:
                raise late("head", HEAD_S) from None
        self.is_busy = True
        head = bytes(self._view[: end + len(END)])
        self._consume(len(head))
        return head

    async def read_into(self, target: memoryview) -> None:
        """Fills `target` with the next bytes of the body.

        Raises:
            ConnectionError: the client left before they were all there.
            HttpError: they take too long.
        """
        ready = min(self._filled, len(target))
        target[:ready] = self._view[:ready]
        self._consume(ready)
        if ready < len(target):
            self._target, self._received = target, ready
            try:
                async with asyncio.timeout(BODY_S):
                    while self._target is not None:
                        if self.is_over:
                            raise ConnectionResetError("the client left within a request")
                        await self._more()
            except TimeoutError:
                raise late("body", BODY_S) from None
            finally:
                self._target = None
        self.unread -= len(target)

    async def discard(self) -> None:
        """Reads the rest of the body for nothing."""
        scratch = memoryview(bytearray(min(self.unread, SCRATCH_BYTES)))
        while self.unread:
            await self.read_into(scratch[: min(self.unread, SCRATCH_BYTES)])

    def write(self, *chunks: bytes | memoryview) -> None:
        """Sends the chunks one behind the other."""
        for chunk in chunks:
            self._transport.write(chunk)

    async def drained(self) -> None:
        """Return when all that was written is out, or nobody takes it any more.

        Raises:
            ConnectionError: the client does not read.
        """
        if not self._writable.is_set():
            try:
                async with asyncio.timeout(ANSWER_S):
                    await self._writable.wait()
            except TimeoutError:
                self._transport.abort()
                raise ConnectionResetError("the client does not read its answer") from None

    async def bid_farewell(self) -> None:
        """Ends the answer, then reads on for a moment."""
        with suppress(TimeoutError, OSError):
            if self._transport.can_write_eof():
                self._transport.write_eof()
            async with asyncio.timeout(FAREWELL_S):
                while not self.is_over:
                    self._consume(self._filled)
                    await self._more()

    def close(self) -> None:
        """Ends the connection once all is sent."""
        self._transport.close()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Called by the event loop."""
        self._transport = cast("asyncio.Transport", transport)
        self._transport.set_write_buffer_limits(high=0)
        sock = transport.get_extra_info("socket")
        if sock.family != socket.AF_UNIX:  # asyncio does it only for sockets that name their protocol
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._opened(self)

    def get_buffer(self, sizehint: int) -> memoryview:  # noqa: ARG002 - the room decides
        """Called by the event loop: where the next bytes go."""
        if self._target is not None:
            return self._target[self._received :]
        return self._view[self._filled :]

    def buffer_updated(self, nbytes: int) -> None:
        """Called by the event loop."""
        if self._target is None:
            self._filled += nbytes
            if self._filled == HEAD_BYTES:
                self._transport.pause_reading()
        else:
            self._received += nbytes
            if self._received < len(self._target):
                return
            self._target = None
        self._news.set()

    def eof_received(self) -> bool:
        """Called by the event loop. True: the answer to what was asked is still sent."""
        self.is_over = True
        self._news.set()
        return True

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - lost is lost
        """Called by the event loop."""
        self.is_over = True
        self._writable.set()
        self._news.set()
        self._closed(self)

    def pause_writing(self) -> None:
        """Called by the event loop."""
        self._writable.clear()

    def resume_writing(self) -> None:
        """Called by the event loop."""
        self._writable.set()

    def _consume(self, count: int) -> None:
        left = self._filled - count
        self._view[:left] = self._view[count : self._filled]
        self._filled = left
        if not self._transport.is_closing():
            self._transport.resume_reading()

    async def _more(self) -> None:
        self._news.clear()
        await self._news.wait()


def late(what: str, seconds: float) -> HttpError:
    """The refusal of a request that stopped coming."""
    return HttpError(HTTPStatus.REQUEST_TIMEOUT, f"the request's {what} did not come within {seconds:g} s")
