"""One packet, one message: JSON and descriptors over a SOCK_SEQPACKET unix socket.

1. A message is decoded into the channel's union of types, or refused; descriptors of a refused one are closed.
2. Whoever receives descriptors owns them. They are close-on-exec; those that are sent stay the sender's.
3. Sending never waits. A peer that does not read until the socket is full is treated as gone: waiting for it
   would stop whatever else this process does.
4. Who is at the other end is asked of the kernel (SO_PEERCRED), never of the peer.
"""

import array
import asyncio
import os
import socket
import struct
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Generic, TypeVar

import msgspec

from agent.core.errors import InputError, TransferError
from agent.core.messages import MESSAGE_BYTES, encode

M = TypeVar("M")

DESCRIPTORS = 16  # per packet: a release has four parts, a lane two arenas
BUFFER_BYTES = 8 * MESSAGE_BYTES  # what may be under way before the peer counts as gone
WAITING = 8  # connections that wait to be accepted

_ANCILLARY_BYTES = socket.CMSG_SPACE(DESCRIPTORS * array.array("i").itemsize)
_CUT = int(socket.MSG_TRUNC | socket.MSG_CTRUNC)
_CREDENTIALS = struct.Struct("3i")  # pid, uid, gid

Received = tuple[M, list[int]]


class Packets(Generic[M]):
    """A socket seen as typed messages. Blocks or not as its socket does."""

    def __init__(self, sock: socket.socket, receives: Any) -> None:
        self.sock = sock
        self._decoder = msgspec.json.Decoder(receives)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, BUFFER_BYTES)

    def send(self, message: Any, descriptors: Sequence[int] = ()) -> None:
        """Hands one message and copies of the descriptors to the peer.

        Raises:
            TransferError: the peer is gone, or does not read.
            InputError: the message is too long.
        """
        packet = encode(message)
        try:
            if descriptors:
                socket.send_fds(self.sock, [packet], list(descriptors))
            else:
                self.sock.send(packet)
        except BlockingIOError as error:
            raise TransferError("the other side of the channel does not read") from error
        except OSError as error:
            raise TransferError(f"the other side of the channel is gone ({error.strerror})") from error

    def read(self) -> Received[M] | None:
        """The next message with its descriptors; None when the peer is gone.

        Raises:
            InputError: what came is not a message of this channel.
            BlockingIOError: nothing is there yet, and the socket does not block.
        """
        try:
            packet, ancillary, flags, _ = self.sock.recvmsg(MESSAGE_BYTES, _ANCILLARY_BYTES, socket.MSG_CMSG_CLOEXEC)
        except (ConnectionError, TimeoutError):
            return None
        descriptors = _descriptors(ancillary)
        if not packet:
            close_all(descriptors)
            return None
        try:
            return self._decode(packet, flags), descriptors
        except InputError:
            close_all(descriptors)
            raise

    def _decode(self, packet: bytes, flags: int) -> M:
        if flags & _CUT:
            raise InputError(f"channel: a packet is over {MESSAGE_BYTES} bytes or {DESCRIPTORS} descriptors")
        try:
            message: M = self._decoder.decode(packet)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise InputError(f"channel: {error}") from error
        return message

    def hang_up(self) -> None:
        """Ends the talk; both sides read its end, also one that is reading just now."""
        with suppress(OSError):
            self.sock.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Gives the socket back, once nobody reads it; the peer reads the end."""
        self.sock.close()


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


def close_all(descriptors: Iterable[int]) -> None:
    """Closes descriptors that nobody will use."""
    for number in descriptors:
        os.close(number)


def _descriptors(ancillary: Iterable[tuple[int, int, bytes]]) -> list[int]:
    numbers = array.array("i")
    for level, kind, content in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            numbers.frombytes(content[: len(content) - len(content) % numbers.itemsize])
    return list(numbers)
