"""What somebody asked for once: the commands that take time, and the same asked on the device itself.

A command that moved intent (pin, rollback) is done when the release that it means serves, and failed when that is
rejected: the answer tells what runs, not what was tried.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from datetime import UTC, datetime

from msgspec.structs import replace

from agent.adapters.ledger import Ledger
from agent.core.candidate import Failure
from agent.core.documents import to_tree
from agent.core.errors import EdgeError, InputError
from agent.core.intent import Command, Reply, Verb
from agent.core.records import Rejection, TrialRecord
from agent.core.release import Ref
from agent.core.slot import SlotRecord
from agent.daemon.bench import Bench
from agent.daemon.board import Board
from agent.daemon.commands import Commands, Known
from agent.daemon.intake import Intake
from agent.daemon.news import News
from agent.daemon.reconcile import Reconciler
from agent.daemon.runner_link import RunnerLink


class Jobs:
    """Does jobs and answers for them."""

    def __init__(  # noqa: PLR0913, PLR0917  each is one neighbour
        self,
        intake: Intake,
        commands: Commands,
        ledger: Ledger,
        news: News,
        runner: RunnerLink,
        bench: Bench,
        reconcilers: Mapping[str, Reconciler],
        report: Callable[[], Awaitable[None]],
        changed: Board[int],
    ) -> None:
        self._intake = intake
        self._commands = commands
        self._ledger = ledger
        self._news = news
        self._runner = runner
        self._bench = bench
        self._reconcilers = reconcilers
        self._report = report
        self._changed = changed

    async def run(self) -> None:
        """Work until cancelled; what waits in the queue is asked for again by whoever wants it."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._watch(), name="outcomes")
            while True:
                command = await self._news.jobs.get()
                tasks.create_task(self._serve(command), name=f"command {command.verb}")

    async def do(self, verb: Verb, slot: str | None) -> dict[str, object]:
        """The result of one job.

        Raises:
            EdgeError: why it could not be done.
        """
        match verb:
            case Verb.SYNC:
                await self._intake.poll()
                return {"synced": datetime.now(UTC).isoformat()}
            case Verb.RETRY:
                return {"reopened": await asyncio.to_thread(self._reopen, slot)}
            case Verb.BENCH:
                return {"measured": {name: to_tree(await self._bench.run(name)) for name in self._slots(slot)}}
            case Verb.REPORT:
                await self._report()
                return {}
            case _:
                raise InputError(f"{verb} is done by a signed command: `edge-fleet {verb}`")

    async def _serve(self, command: Command) -> None:
        try:
            result = await self.do(command.verb, command.slot)
            reply = Reply(id=command.id, status="done", result=result)
        except EdgeError as error:
            reply = Reply(id=command.id, status="failed", reason=str(error))
        await asyncio.to_thread(self._commands.finish, command.id, reply)

    def _slots(self, slot: str | None) -> list[str]:
        known = sorted(self._ledger.all("slot", SlotRecord))
        if slot is not None and slot not in known:
            raise InputError(f"no slot {slot!r}; this device has {', '.join(known) or 'none yet'}")
        return [slot] if slot is not None else known

    def _reopen(self, slot: str | None) -> list[str]:
        """Forget what may be tried again: failures that are not final."""
        slots = self._slots(slot)
        trials = self._ledger.all("trial", TrialRecord)
        rejections = self._ledger.all("rejection", Rejection)
        missed = {key for key, one in trials.items() if may_reopen(one.place.ref, one.failure, slots)}
        shut = {key: one for key, one in rejections.items() if may_reopen(one.ref, one.failure, slots)}
        self._ledger.put_all([*(("trial", key, None) for key in missed), *(("rejection", key, None) for key in shut)])
        for name in slots:
            if name in self._reconcilers:
                self._reconcilers[name].retry()
        self._news.post(lambda: self._intake.desired.post(self._intake.desired.value))
        return sorted(one.ref.name for one in shut.values())

    # --- outcomes of commands that moved intent --------------------------------------------------------------------

    async def _watch(self) -> None:
        async for _ in self._changed.changes():
            for known in await asyncio.to_thread(self._commands.open):
                reply = self._outcome(known)
                if reply is not None:
                    await asyncio.to_thread(self._commands.finish, known.reply.id, reply)

    def _outcome(self, known: Known) -> Reply | None:
        """The last word on a command that moved intent, when it can be said."""
        facts = self._runner.facts.value
        serving = {slot: one.serving for slot, one in facts.slots.items()} if facts is not None else {}
        waiting = {
            slot: release
            for slot, release in known.goals.items()
            if (at := serving.get(slot)) is None or at.ref != release
        }
        if not waiting:
            return replace(known.reply, status="done", result={slot: str(serving[slot]) for slot in known.goals})
        for slot, release in waiting.items():
            rejection = self._ledger.get("rejection", release.digest, Rejection)
            if rejection is not None:
                return replace(known.reply, status="failed", reason=rejection.failure.reason)
            record = self._ledger.get("slot", slot, SlotRecord)
            if record is None or record.desired != release:
                return replace(known.reply, status="failed", reason="another intent came before it was done")
        return None


def may_reopen(release: Ref, failure: Failure | None, slots: list[str]) -> bool:
    """Whether a failure may have passed, and is of one of these slots: a release's name begins with its task."""
    is_ours = any(release.name.startswith(f"{slot}_") for slot in slots)
    return is_ours and failure is not None and not failure.kind.is_final
