"""The agent's line to the runner: found or started, lost and found again.

1. The runner outlives the agent: it is started in a session of its own, and an agent that comes back finds it.
2. Nobody else starts it: under systemd it is a unit, and `runner.start: never` says so. One that answered is started
   again at once; those that end before that, after ever longer.
3. The facts on the board are the runner's own; None means that there is no line now.
"""

import asyncio
import contextlib
import os
import sys
import time
from pathlib import Path
from typing import BinaryIO

from agent.adapters import backoff, files, memory_file
from agent.adapters.packets import close_all
from agent.adapters.runner_client import RunnerClient
from agent.core.errors import BackendError, Kind, TransferError
from agent.core.messages import Facts, Look, Order, Part, Refused, Reply, SlotFacts, Stop
from agent.daemon.board import Board
from agent.daemon.settings import RunnerSettings
from agent.trust.sealing import Opener, ahead

LOG = "runner.log"
LOG_BYTES = 4096  # of its end: enough for the last line
STOP_S = 5.0
KNOCK_S = 0.1  # between two tries to reach a runner that is starting
FIRST_WAIT_S, LONGEST_WAIT_S = 0.5, 30.0  # from one start to the next, while none comes up


class RunnerLink:
    """Keeps a line to the runner."""

    def __init__(self, settings: RunnerSettings) -> None:
        self._settings = settings
        self.line: Board[RunnerClient | None] = Board(None)
        self.facts: Board[Facts | None] = Board(None)
        self.last_error = ""
        self._child: asyncio.subprocess.Process | None = None
        self._starts, self._not_before = 0, 0.0  # since a runner last answered

    async def run(self) -> None:
        """Keep the line until cancelled."""
        while True:
            try:
                line = RunnerClient(self._settings.models_socket, self.facts.post)
                await line.connect()
            except TransferError as error:
                self.last_error = await asyncio.to_thread(self._last_words) or str(error)
                await self._start_if_ours()
                await asyncio.sleep(KNOCK_S)
                continue
            self.last_error, self._starts = "", 0
            self.facts.post(line.facts)
            self.line.post(line)
            try:
                await line.lost.wait()
            finally:
                self.line.post(None)
                self.facts.post(None)
                await line.close()

    async def ask(self, order: Order) -> tuple[Reply, list[int]]:
        """The runner's answer; a refusal is raised.

        Raises:
            TransferError: there is no line, it broke, or the runner is to be restarted first.
            BackendError: the runner refused; its kind and reason are the runner's.
        """
        line = self.line.value
        if line is None:
            raise TransferError(self.last_error or "edge-runner is not there yet")
        reply, received = await line.ask(order)
        if isinstance(reply, Refused):
            if reply.failure.kind is Kind.STALE:
                raise TransferError(reply.failure.reason)
            raise BackendError(reply.failure.reason, reply.failure.kind)
        return reply, received

    async def look(self) -> Facts | None:
        """The runner's facts with fresh counters, on the board, too; None without a line."""
        try:
            reply, _ = await self.ask(Look())
        except (TransferError, BackendError):
            return None
        assert isinstance(reply, Facts), reply
        if self.line.value is not None:
            self.facts.value = reply
        return reply

    def slot(self, name: str) -> SlotFacts:
        """What the runner said last of one slot."""
        facts = self.facts.value
        return facts.slot(name) if facts is not None else SlotFacts()

    async def stop_ours(self) -> None:
        """End a runner that no unit owns; a clean stop of the agent takes it along."""
        line = self.line.value
        if self._settings.start == "auto" and line is not None:
            with contextlib.suppress(TransferError, TimeoutError):
                async with asyncio.timeout(STOP_S):
                    await line.ask(Stop())

    async def _start_if_ours(self) -> None:
        is_running = self._child is not None and self._child.returncode is None
        if self._settings.start != "auto" or is_running or time.monotonic() < self._not_before:
            return
        self._starts += 1
        self._not_before = time.monotonic() + backoff.wait_s(self._starts, FIRST_WAIT_S, LONGEST_WAIT_S)
        try:
            log = await asyncio.to_thread(open_log, Path(self._settings.folder))
        except OSError as error:
            self.last_error = f"{error.filename}: {error.strerror}; give the agent a runner.folder it may write to"
            return
        with log:
            self._child = await asyncio.create_subprocess_exec(
                *self._command(), stdin=asyncio.subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )

    def _last_words(self) -> str:
        """Why the runner that we started is gone, if it is; while the next one starts, that still holds."""
        if self._child is None or self._child.returncode == 0:
            return ""
        if self._child.returncode is None:
            return self.last_error
        content = files.read_or_none(Path(self._settings.folder) / LOG) or b""
        lines = content[-LOG_BYTES:].decode(errors="replace").strip().splitlines()
        return f"edge-runner ended: {lines[-1] if lines else 'it said nothing'}"

    def _command(self) -> list[str]:
        tcp = ["--tcp", self._settings.tcp] if self._settings.tcp else []
        if self._settings.grpc:
            tcp += ["--grpc", self._settings.grpc, "--grpc", f"unix:{Path(self._settings.folder) / 'grpc.sock'}"]
        return [
            sys.executable, "-P", "-m", "agent.runner.main", "--models", str(self._settings.models_socket),
            "--door", str(self._settings.door_socket), "--agent-uid", str(os.getuid()), *tcp,
        ]  # fmt: skip


def open_log(folder: Path) -> BinaryIO:
    """Where a runner of ours writes what it has to say; the folder is made."""
    folder.mkdir(parents=True, exist_ok=True)
    return (folder / LOG).open("ab")


def announced(opener: Opener) -> tuple[Part, ...]:
    """The parts of what is about to be opened, as the runner is told of them."""
    return tuple(Part(name=part.name, size=part.size, sha256=part.sha256) for part in opener.parts)


def pour(opener: Opener, descriptors: list[int]) -> None:
    """Write every part of what is open into its memory file, one piece while the next is opened.

    The files are closed here: a thread cannot be cancelled.

    Raises:
        TrustError: a byte is not what was sealed.
        BackendError: these are not files for these parts.
    """
    try:
        if len(descriptors) != len(opener.parts):
            raise BackendError(f"edge-runner gave {len(descriptors)} memory files for {len(opener.parts)} parts")
        offsets = [0] * len(descriptors)

        def write(piece: tuple[int, memoryview]) -> None:
            index, content = piece
            offsets[index] = memory_file.write(descriptors[index], content, offsets[index])

        for _ in ahead(write, opener.pieces()):
            pass
    finally:
        close_all(descriptors)
