"""A TCP proxy on the loopback that does to a connection what networks do. It runs in a thread of its own.

Knobs, to be turned at any time: `cut_after` bytes towards the client (of all connections), then a reset ·
`corrupt_at`: one bit of that byte · `rate` in bytes per second and connection · `blackhole`: keep connections, forward
nothing · `refuse`: reset new connections · `end_after`: as cut_after, but a clean end.
"""

import asyncio
import contextlib
import fcntl
import socket
import struct
import termios
import threading

from tests.fakes.waiting import PATIENCE

STEP = 65536


class FaultProxy:
    """Forwards `port` of the loopback to `upstream_port`."""

    def __init__(self, upstream_port):
        self.upstream_port = upstream_port
        self.cut_after = self.end_after = self.corrupt_at = self.rate = None
        self.blackhole = self.refuse = False
        self.down = 0
        self.connections = 0
        self.writers = set()
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self.loop.run_forever, name="fault proxy", daemon=True)
        self.thread.start()
        self.server = self._wait(asyncio.start_server(self._serve, "127.0.0.1", 0, limit=STEP))
        self.port = self.server.sockets[0].getsockname()[1]
        self.endpoint = f"http://127.0.0.1:{self.port}"

    def reset_all(self):
        """Resets every connection."""
        self._wait(self._reset_all())

    def close(self):
        """Ends it and its connections."""
        self._wait(self._close())
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join(5 * PATIENCE)
        self.loop.close()

    def _wait(self, coroutine):
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result(5 * PATIENCE)

    async def _close(self):
        self.server.close()
        await self._reset_all()
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)

    async def _reset_all(self):
        for writer in list(self.writers):
            _reset(writer)

    async def _serve(self, reader, writer):
        self.connections += 1
        if self.refuse:
            _reset(writer)
            return
        try:
            up_reader, up_writer = await asyncio.open_connection("127.0.0.1", self.upstream_port, limit=STEP)
        except OSError:
            _reset(writer)
            return
        pair = {writer, up_writer}
        self.writers |= pair
        try:
            await asyncio.gather(self._pump(reader, up_writer, down=False), self._pump(up_reader, writer, down=True))
        except (ConnectionError, asyncio.CancelledError):  # asyncio's own callback fails on a cancelled one
            pass
        finally:
            self.writers -= pair
            for one in pair:
                one.transport.abort()

    async def _pump(self, reader, writer, *, down):
        while piece := await reader.read(STEP):
            while self.blackhole:  # noqa: ASYNC110  a knob that any thread turns
                await asyncio.sleep(0.01)
            if down:
                piece, ends = self._spoil(piece)
                self.down += len(piece)
            writer.write(piece)
            await writer.drain()
            if down and ends:
                await _arrived(writer)  # a reset takes along what is still under way
                if ends == "cut_after":
                    _reset(writer)
                raise ConnectionResetError
            if self.rate:
                await asyncio.sleep(len(piece) / self.rate)
        with contextlib.suppress(OSError):
            writer.write_eof()

    def _spoil(self, piece):
        """The piece as the client gets it, and how the connection ends after it, if it does."""
        at = None if self.corrupt_at is None else self.corrupt_at - self.down
        if at is not None and 0 <= at < len(piece):
            piece = piece[:at] + bytes([piece[at] ^ 1]) + piece[at + 1 :]
            self.corrupt_at = None
        for knob in ("cut_after", "end_after"):
            limit = getattr(self, knob)
            if limit is not None and self.down + len(piece) >= limit:
                setattr(self, knob, None)
                return piece[: limit - self.down], knob
        return piece, None


async def _arrived(writer):
    """Returns when what was written is in the client's own buffer, or the client is gone."""
    sock, transport = writer.get_extra_info("socket"), writer.transport
    under_way = bytearray(4)
    while not transport.is_closing():
        fcntl.ioctl(sock.fileno(), termios.TIOCOUTQ, under_way)
        if not (transport.get_write_buffer_size() or any(under_way)):
            return
        await asyncio.sleep(0.001)


def _reset(writer):
    with contextlib.suppress(OSError):
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()
