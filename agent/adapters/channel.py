"""Packets for an event loop, and the sockets that they travel on.

1. Sending never waits. A peer that does not read until the socket is full is treated as gone: waiting for it
   would stop whatever else this process does.
2. Who is at the other end is asked of the kernel (SO_PEERCRED), never of the peer.
"""

import asyncio
import errno
import socket
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

from agent.adapters.packets import M, Packets, Received, nobody_answers
from agent.core.errors import InputError, TransferError

WAITING = 128  # connections that wait to be accepted: every application of a device may start at once
PROBE_S = 1.0  # how long a live peer may take to be noticed
PORTS = 65536

Take = Callable[[M, list[int]], None]

_CREDENTIALS = struct.Struct("3i")  # pid, uid, gid


class Channel(Packets[M]):
    """A channel for an event loop. One reader at a time."""

    def __init__(self, sock: socket.socket, receives: Any) -> None:
        sock.settimeout(0)
        super().__init__(sock, receives)

    async def receive(self) -> Received[M] | None:
        """As `read`, and waits until something is there."""
        try:
            return self.read()
        except BlockingIOError:
            return await self._watch(None)

    async def each(self, take: "Take[M]") -> None:
        """Hands every message with its descriptors to `take`, as soon as it is there, until the peer is gone.

        Raises:
            InputError: what came is not a message of this channel; or whatever `take` raises.
        """
        await self._watch(take)

    async def _watch(self, take: "Take[M] | None") -> Received[M] | None:
        """The first message that nobody takes; None when the peer is gone."""
        loop, number = asyncio.get_running_loop(), self.sock.fileno()
        over: asyncio.Future[Received[M] | None] = loop.create_future()
        loop.add_reader(number, self._ready, take, over)
        try:
            return await over
        finally:
            loop.remove_reader(number)

    def _ready(self, take: "Take[M] | None", over: "asyncio.Future[Received[M] | None]") -> None:
        """Called by the event loop when something is there; what comes after the end stays where it is."""
        if over.done():
            return
        try:
            received = self.read()
            if take is not None and received is not None:
                take(*received)
            else:
                over.set_result(received)
        except BlockingIOError:
            pass
        except Exception as error:  # noqa: BLE001 - it is raised where somebody waits
            over.set_exception(error)


def listen(path: Path, kind: socket.SocketKind = socket.SOCK_SEQPACKET, mode: int = 0o666) -> socket.socket:
    """A listening socket at `path`, in place of one that a dead process left there.

    Where anybody may connect, `peer_uid` says whom to answer.

    Raises:
        InputError: another file lies there, somebody listens there, or no socket can be made there.
    """
    sock = socket.socket(socket.AF_UNIX, kind)
    try:
        _make_way(path, kind)
        sock.bind(str(path))
    except OSError as error:
        sock.close()
        raise InputError(f"{path}: no socket can be made there ({error.strerror or error})") from error
    path.chmod(mode)
    sock.listen(WAITING)
    return sock


def _make_way(path: Path, kind: socket.SocketKind) -> None:
    with socket.socket(socket.AF_UNIX, kind) as probe:
        probe.settimeout(PROBE_S)
        try:
            probe.connect(str(path))
        except FileNotFoundError:
            return
        except ConnectionRefusedError:
            if not path.is_socket():
                raise OSError(errno.EEXIST, "another file lies there: remove it, or name another path") from None
            path.unlink(missing_ok=True)
            return
    raise OSError(errno.EADDRINUSE, "another process listens there: end it, or name another path")


def connect(path: Path, receives: Any) -> Channel[Any]:
    """A channel to whoever listens at `path`; at once, since a local socket has no way to go.

    Raises:
        TransferError: nobody does, or too many wait there.
    """
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    sock.settimeout(0)
    try:
        sock.connect(str(path))
    except OSError as error:
        sock.close()
        raise TransferError(nobody_answers(path, error)) from error
    return Channel(sock, receives)


def frames_beside(door: Path) -> Path:
    """Where clients of ours ask the runner that answers at `door`."""
    return door.with_name("frames.sock")


def loopback(option: str, address: str) -> tuple[str, int]:
    """Host and port of an address on this machine alone; of localhost, which may be two, the one of IPv4.

    Raises:
        InputError: it is another.
    """
    host, _, port = address.rpartition(":")
    if host not in {"127.0.0.1", "localhost", "[::1]"} or not port.isdecimal() or not 0 < int(port) < PORTS:
        raise InputError(f"{option} {address}: give a loopback address and a port, as 127.0.0.1:PORT")
    return host.replace("localhost", "127.0.0.1"), int(port)


def grpc_address(option: str, address: str) -> str:
    """An address as gRPC takes it: `unix:PATH`, or host and port; raises as `loopback`."""
    return address if address.startswith("unix:") else "{}:{}".format(*loopback(option, address))


def peer_uid(sock: socket.socket) -> int:
    """The user id of the process that connected, as the kernel recorded it."""
    credentials = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    return int(_CREDENTIALS.unpack(credentials)[1])
