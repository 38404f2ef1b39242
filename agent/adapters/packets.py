"""One packet, one message: JSON and descriptors over a SOCK_SEQPACKET unix socket.

1. A message is decoded into the channel's union of types, or refused; descriptors of a refused one are closed.
2. Whoever receives descriptors owns them. They are close-on-exec; those that are sent stay the sender's.
3. This is all that a seat needs: it waits in `read`, and starts the sooner for having no event loop.
"""

import array
import os
import socket
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

_ANCILLARY_BYTES = socket.CMSG_SPACE(DESCRIPTORS * array.array("i").itemsize)
_CUT = int(socket.MSG_TRUNC | socket.MSG_CTRUNC)

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
            if flags & _CUT:
                raise InputError(  # noqa: TRY301  as what is no message
                    f"a packet is over {MESSAGE_BYTES} bytes or {DESCRIPTORS} descriptors"
                )
            return self._decoder.decode(packet), descriptors
        except (InputError, msgspec.DecodeError, UnicodeDecodeError) as error:
            close_all(descriptors)
            raise InputError(f"channel: {error}") from error

    def hang_up(self) -> None:
        """Ends the talk; both sides read its end, also one that is reading just now."""
        with suppress(OSError):
            self.sock.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Gives the socket back, once nobody reads it; the peer reads the end."""
        self.sock.close()


def nobody_answers(path: Path, error: OSError) -> str:
    """Why there is no talking to whoever should listen at `path`."""
    cure = "join the group of that socket" if isinstance(error, PermissionError) else "is edge-runner up?"
    return f"{path}: nobody answers ({error.strerror or error}); {cure}"


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
