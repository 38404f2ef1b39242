"""Packets for an event loop, and the sockets that they travel on.

1. Sending never waits. A peer that does not read until the socket is full is treated as gone: waiting for it
   would stop whatever else this process does.
2. Who is at the other end is asked of the kernel (SO_PEERCRED), never of the peer.
"""

import asyncio
import socket
import struct
from pathlib import Path
from typing import Any

from agent.adapters.packets import M, Packets, Received, close_all
from agent.core.errors import InputError, TransferError

__all__ = ["Channel", "Packets", "close_all", "connect", "frames_beside", "listen", "peer_uid"]

WAITING = 8  # connections that wait to be accepted

_CREDENTIALS = struct.Struct("3i")  # pid, uid, gid


class Channel(Packets[M]):
    """A channel for an event loop. One reader at a time."""

    def __init__(self, sock: socket.socket, receives: Any) -> None:
        sock.settimeout(0)
        super().__init__(sock, receives)
        self._next: asyncio.Future[Received[M] | None] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None  # the one that watches the socket: until nobody waits

    async def receive(self) -> Received[M] | None:
        """As `read`, and waits until something is there."""
        try:
            return self.read()
        except BlockingIOError:
            loop = asyncio.get_running_loop()
            self._next = loop.create_future()
            if self._loop is None:
                self._loop = loop
                loop.add_reader(self.sock.fileno(), self._take)
            return await self._next

    def close(self) -> None:
        """As `Packets.close`."""
        self._unwatch()
        super().close()

    def _take(self) -> None:
        """Called by the event loop when something is there."""
        if self._next is None or self._next.done():
            self._unwatch()  # nobody waits: what comes stays where it is
            return
        try:
            self._next.set_result(self.read())
        except BlockingIOError:
            pass
        except InputError as error:
            self._next.set_exception(error)

    def _unwatch(self) -> None:
        if self._loop is not None:
            self._loop.remove_reader(self.sock.fileno())
            self._loop = None


def listen(path: Path, kind: socket.SocketKind = socket.SOCK_SEQPACKET, mode: int = 0o666) -> socket.socket:
    """A listening socket at `path`, in place of one that a dead process left there.

    Where anybody may connect, `peer_uid` says whom to answer.
    """
    path.unlink(missing_ok=True)
    sock = socket.socket(socket.AF_UNIX, kind)
    sock.bind(str(path))
    path.chmod(mode)
    sock.listen(WAITING)
    return sock


async def connect(path: Path, receives: Any) -> Channel[Any]:
    """A channel to whoever listens at `path`.

    Raises:
        TransferError: nobody does.
    """
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    sock.settimeout(0)
    try:
        await asyncio.get_running_loop().sock_connect(sock, str(path))
    except OSError as error:
        sock.close()
        raise TransferError(f"{path}: nobody answers ({error.strerror}); is edge-runner up?") from error
    return Channel(sock, receives)


def frames_beside(door: Path) -> Path:
    """Where clients of ours ask the runner that answers at `door`."""
    return door.with_name("frames.sock")


def peer_uid(sock: socket.socket) -> int:
    """The user id of the process that connected, as the kernel recorded it."""
    credentials = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    return int(_CREDENTIALS.unpack(credentials)[1])
