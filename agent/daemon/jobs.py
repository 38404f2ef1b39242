"""What somebody asked for once: the commands that take time, and the same asked on the device itself.

A command that moved intent (pin, rollback) is done when the release that it means serves, and failed when that is
rejected: the answer tells what runs, not what was tried.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from msgspec.structs import replace

from agent.adapters.ledger import Ledger
from agent.core.candidate import Failure
from agent.core.documents import to_tree
from agent.core.errors import EdgeError, InputError
from agent.core.intent import Command, Reply, Verb
from agent.core.records import Rejection, TrialRecord
from agent.core.release import Ref
from agent.core.slot import SlotRecord, slots_of
from agent.daemon.bench import Bench
from agent.daemon.board import Board
from agent.daemon.commands import Commands, Known
from agent.daemon.imports import Imports
from agent.daemon.intake import Intake
from agent.daemon.news import News
from agent.daemon.reconcile import Reconciler
from agent.daemon.runner_link import RunnerLink


@dataclass(eq=False)
class Jobs:
    """Does jobs and answers for them."""

    imports: Imports
    intake: Intake
    commands: Commands
    ledger: Ledger
    news: News
    runner: RunnerLink
    bench: Bench
    reconcilers: Mapping[str, Reconciler]
    report: Callable[[], Awaitable[None]]
    changed: Board[None]

    async def run(self) -> None:
        """Work until cancelled; what waits in the queue is asked for again by whoever wants it."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._watch(), name="outcomes")
            while True:
                command = await self.news.jobs.get()
                tasks.create_task(self._serve(command), name=f"command {command.verb}")

    async def do(self, verb: Verb, slot: str | None, file: str | None = None) -> dict[str, object]:
        """The result of one job; a sync may be with an exported file.

        Raises:
            EdgeError: why it could not be done.
        """
        match verb:
            case Verb.SYNC if file is not None:
                await self.imports.take(Path(file))
                return {"imported": file}
            case Verb.SYNC:
                await self.intake.poll()
                return {"synced": datetime.now(UTC).isoformat()}
            case Verb.RETRY:
                return {"reopened": await asyncio.to_thread(self._reopen, slot)}
            case Verb.BENCH:
                return {"measured": {name: to_tree(await self.bench.run(name)) for name in self._slots(slot)}}
            case Verb.REPORT:
                await self.report()
                return {}
            case _:
                raise InputError(f"{verb} is done by a signed command: `edge-fleet {verb}`")

    async def _serve(self, command: Command) -> None:
        try:
            result = await self.do(command.verb, command.slot)
            reply = Reply(id=command.id, status="done", result=result)
        except EdgeError as error:
            reply = Reply(id=command.id, status="failed", reason=str(error))
        await asyncio.to_thread(self.commands.finish, reply)

    def _slots(self, slot: str | None) -> list[str]:
        return slots_of(slot, self.ledger.all("slot", SlotRecord))

    def _reopen(self, slot: str | None) -> list[str]:
        """Forget what may be tried again: failures that are not final."""
        slots = self._slots(slot)
        trials = self.ledger.all("trial", TrialRecord)
        rejections = self.ledger.all("rejection", Rejection)
        missed = {key for key, one in trials.items() if may_reopen(one.place.ref, one.failure, slots)}
        shut = {key: one for key, one in rejections.items() if may_reopen(one.ref, one.failure, slots)}
        self.ledger.put_all([*(("trial", key, None) for key in missed), *(("rejection", key, None) for key in shut)])
        for name in slots:
            if name in self.reconcilers:
                self.reconcilers[name].retry()
        self.news.post(lambda: self.intake.desired.post(self.intake.desired.value))
        return sorted(one.ref.name for one in shut.values())

    # --- outcomes of commands that moved intent --------------------------------------------------------------------

    async def _watch(self) -> None:
        async for _ in self.changed.changes():
            for known in await asyncio.to_thread(self.commands.open):
                reply = self._outcome(known)
                if reply is not None:
                    await asyncio.to_thread(self.commands.finish, reply)

    def _outcome(self, known: Known) -> Reply | None:
        """The last word on a command that moved intent, when it can be said."""
        serving = {slot: self.runner.slot(slot).serving for slot in known.goals}
        waiting = {
            slot: release for slot, release in known.goals.items() if (at := serving[slot]) is None or at.ref != release
        }
        if not waiting:
            return replace(known.reply, status="done", result={slot: str(at) for slot, at in serving.items()})
        for slot, release in waiting.items():
            rejection = self.ledger.get("rejection", release.digest, Rejection)
            if rejection is not None:
                return replace(known.reply, status="failed", reason=rejection.failure.reason)
            record = self.ledger.get("slot", slot, SlotRecord)
            if record is None or record.desired != release:
                return replace(known.reply, status="failed", reason="another intent came before it was done")
        return None


def may_reopen(release: Ref, failure: Failure | None, slots: list[str]) -> bool:
    """Whether a failure may have passed, and is of one of these slots: a release's name begins with its task."""
    is_ours = any(release.name.startswith(f"{slot}_") for slot in slots)
    return is_ours and failure is not None and not failure.kind.is_final
