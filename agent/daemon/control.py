"""The local control socket: the daemon's ear for `edge-agent` commands on the same machine.

One line of JSON is a question, one line the answer. Only the agent's own user and root are heard (SO_PEERCRED; the
socket's mode is the second lock). It can ask for work and for facts; it cannot name a release.
"""

import asyncio
import contextlib
import os
import socket
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from msgspec import field

from agent.adapters.channel import listen, peer_uid
from agent.core.documents import Document, from_json, to_json
from agent.core.errors import EdgeError, InputError, TransferError
from agent.core.intent import Verb

if TYPE_CHECKING:  # whoever asks a question need not load all that could answer it
    from agent.daemon.jobs import Jobs

LINE_BYTES = 1024 * 1024
QUESTION_S = 10.0  # to write one line


class Question(Document):
    """What is asked."""

    verb: Verb
    slot: str | None = None
    file: str | None = None  # to sync with, instead of the store


class Said(Document):
    """What came of it."""

    error: str = ""
    result: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Control:
    """Serves the socket."""

    path: Path
    jobs: "Jobs"

    async def run(self) -> None:
        """Serve until cancelled."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        door = listen(self.path, socket.SOCK_STREAM, 0o600)
        async with await asyncio.start_unix_server(self._serve, sock=door, limit=LINE_BYTES) as server:
            await server.serve_forever()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            # of a caller that left, is silent, or talks too long
            with contextlib.suppress(OSError, TimeoutError, ValueError):
                async with asyncio.timeout(QUESTION_S):
                    line = await reader.readline()
                writer.write(to_json(await self._answer(line, writer)) + b"\n")
                await writer.drain()
        finally:
            writer.close()

    async def _answer(self, line: bytes, writer: asyncio.StreamWriter) -> Said:
        if peer_uid(writer.get_extra_info("socket")) not in {0, os.getuid()}:
            return Said(error="only root and the agent's own user may ask; use sudo")
        try:
            question = from_json(Question, line, "question")
            return Said(result=await self.jobs.do(question.verb, question.slot, question.file))
        except EdgeError as error:
            return Said(error=str(error))


def ask(
    path: Path, question: Question, timeout_s: float, meanwhile: Callable[[socket.socket], object] = lambda _: None
) -> dict[str, Any]:
    """The daemon's answer, for commands; `meanwhile` may watch while it is being found.

    Raises:
        TransferError: no daemon listens there.
        InputError: what the daemon says is wrong.
    """
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(timeout_s)
        try:
            sock.connect(str(path))
            sock.sendall(to_json(question) + b"\n")
            meanwhile(sock)
            with sock.makefile("rb") as stream:
                line = stream.readline()
        except OSError as error:
            raise TransferError(
                f"{path}: the agent does not answer ({error}); is it running? `edge-agent run --config ...`"
            ) from error
    if not line:
        raise TransferError(f"{path}: the agent ended before it answered; look at its log")
    said = from_json(Said, line, str(path))
    if said.error:
        raise InputError(said.error)
    return said.result
