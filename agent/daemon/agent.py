"""The daemon: every part made once, joined by boards, run in one TaskGroup.

Intake writes the desired board, reconcilers read it and move the runner, the reporter shows what is. Nobody else
talks to anybody. Tasks are cancelled, never orphaned; the runner outlives us.
"""

import asyncio
import contextlib
import logging
import os
import random
import time
import uuid
from collections.abc import Callable, Coroutine
from datetime import UTC, datetime
from pathlib import Path

from agent import VERSION
from agent.adapters import backoff, files, folder_watch, host, service
from agent.adapters.broker import Link, Message
from agent.adapters.ledger import Ledger
from agent.adapters.outbox import Outbox
from agent.adapters.pulse import Pulse
from agent.adapters.source import Source
from agent.adapters.store import open_store
from agent.adapters.tuf_client import TufClient
from agent.core import plan
from agent.core.documents import to_json
from agent.core.errors import EdgeError, TransferError, first
from agent.core.records import Device, ReleaseRecord
from agent.core.release import Ref
from agent.core.slot import SlotRecord
from agent.daemon.bench import Bench
from agent.daemon.board import Board
from agent.daemon.commands import Commands
from agent.daemon.control import Control
from agent.daemon.copies import Copies
from agent.daemon.engines import Engines
from agent.daemon.imports import Imports
from agent.daemon.intake import Intake
from agent.daemon.jobs import Jobs
from agent.daemon.keyring import Keyring
from agent.daemon.news import News
from agent.daemon.reconcile import Reconciler
from agent.daemon.report import Reporter
from agent.daemon.runner_link import RunnerLink
from agent.daemon.settings import Settings
from agent.daemon.steps import Steps

BUILT = datetime(2026, 11, 1, tzinfo=UTC)  # of this release of the agent: no earlier time is believed
TWICE = 1.5  # availability needs the new seat beside the old one, with some room for the rest of the machine
AGAIN_S = 5.0
POLL_AGAIN_S = 2.0  # first wait for a store that failed; doubled
BEAT_S = 5.0  # without systemd nobody asks for a beat; the loop's lag is still of interest


log = logging.getLogger("edge-agent")


async def keep(name: str, part: Callable[[], Coroutine[None, None, None]]) -> None:
    """Run a part for the agent's life: what a disk, store or runner refuses ends no task of ours for good."""
    while True:
        try:
            return await part()
        except* (EdgeError, OSError) as group:
            log.error("%s: %s; begins again in %g s", name, first(group), AGAIN_S)  # noqa: TRY400  a sentence is enough
        await asyncio.sleep(AGAIN_S)


class Agent:
    """One device."""

    def __init__(self, settings: Settings) -> None:
        """Makes the parts; nothing is contacted yet.

        Raises:
            InputError: a setting, key or root is wrong; says which.
            TransferError: the disk refuses.
        """
        self.settings = settings
        self.boot = uuid.uuid4().hex[:12]
        self.stopping = asyncio.Event()
        self.pulse = Pulse()
        state = settings.state
        self.ledger = Ledger(state / "ledger.db")
        self.outbox = Outbox(state / "outbox.db")
        self.news = News(settings.device, self.ledger, self.outbox)
        keyring = Keyring(Path(settings.device_key), settings.device, settings.group, self.ledger)
        store = settings.store
        root = files.read_needed(Path(settings.root), "`edge-provision device enrol` writes the pinned root")
        source = Source(open_store(store), store.rate_limit_mb_s, store.links, self.ledger)
        self.tuf = TufClient(state / "tuf", source, root, lambda chain: self.intake.check(chain))  # noqa: PLW0108  made below
        self.intake = Intake(
            settings.device, settings.group, self.tuf, self.ledger, keyring, self.news, BUILT, store.poll_s
        )
        self.commands = Commands(self.intake, self.ledger, self.news)
        self.runner = RunnerLink(settings.runner)
        engines = Engines(state / "models" / "engines", keyring, self.runner)
        self.copies = Copies(
            state / "models", source, self.ledger, keyring, engines, lambda: self.intake.trusted, settings.quota_mb
        )
        self.steps = Steps(
            self.copies, engines, self.ledger, self.runner, lambda slot: settings.slot(slot).hold_s, self.intake.moving
        )
        self.changed: Board[None] = Board(None)  # it turns when something that is shown has changed
        self.reconcilers: dict[str, Reconciler] = {}
        self.link = self._make_link()
        self.reporter = Reporter(
            settings, self.boot, self.ledger, self.outbox, self.news, self.intake, self.runner, self.reconcilers,
            self.link, self.copies.progress, self.changed, self.pulse,
        )  # fmt: skip
        self.bench = Bench(self.ledger, self.steps, self.runner, self.device)
        self.imports = Imports(
            settings.import_folder, source, self.intake, self.ledger, self.news, self.reconcilers, self.changed
        )
        self.jobs = Jobs(
            self.imports, self.intake, self.commands, self.ledger, self.news, self.runner, self.bench,
            self.reconcilers, self.reporter.now, self.changed,
        )  # fmt: skip
        self.control = Control(settings.run / "control.sock", self.jobs)

    async def run(self) -> None:
        """Serve until `stopping` is set."""
        self._begin()
        try:
            async with asyncio.TaskGroup() as tasks:
                parts: dict[str, Callable[[], Coroutine[None, None, None]]] = {
                    "runner": self.runner.run,
                    "benches": self.bench.clean,
                    "poll": self._poll,
                    "slots": lambda: self._keep_slots(tasks),
                    "imports": self.imports.run,
                    "jobs": self.jobs.run,
                    "report": self.reporter.run,
                    "control": self.control.run,
                    "beat": self._beat,
                    "pulse": self.pulse.run,
                }
                if self.link is not None:
                    parts["broker"] = self.link.run
                self._running = [tasks.create_task(keep(name, part), name=name) for name, part in parts.items()]
                await self.stopping.wait()
                service.notify("STOPPING=1")
                await self.runner.stop_ours()
                for task in self._running:
                    task.cancel()
        finally:
            self.news.close()
            self.ledger.close()
            self.outbox.close()

    def device(self) -> Device | None:
        """What counts for every slot, once the runner has said what it found."""
        line = self.runner.line.value
        if line is None or not any(one.present for one in line.welcome.found):
            return None
        slots = sum(record.desired is not None for record in self.intake.desired.value.values())
        cores = max(1, len(os.sched_getaffinity(0)) // max(1, slots))  # each model its share: decision 0086
        return Device(found=line.welcome.found, cores=cores, power_mode=self._power_mode, agent=VERSION)

    def swap(self, record: SlotRecord) -> plan.Swap:
        """The swap policy of a slot: as set, or by need against free memory, decided once for each wish.

        The swap itself takes memory: asked again in the middle of it, the answer would be another.
        """
        slot, wish = record.slot, record.desired
        wanted = self.settings.slot(slot).swap
        if wanted != "auto":
            return plan.Swap(wanted)
        if slot not in self._swaps or self._swaps[slot][0] != wish:
            self._swaps[slot] = (wish, self._roomy_swap(wish))
        return self._swaps[slot][1]

    def _roomy_swap(self, wish: Ref | None) -> plan.Swap:
        release = self.ledger.get("release", wish.digest, ReleaseRecord) if wish is not None else None
        need = release.metadata.compatibility.memory_mb if release is not None and release.metadata is not None else 0.0
        room = host.readings(self.settings.state).memory_available_mb
        return plan.Swap.AVAILABILITY if room > TWICE * need else plan.Swap.RESOURCE

    def _begin(self) -> None:
        self._swaps: dict[str, tuple[object, plan.Swap]] = {}
        self._power_mode = host.readings(self.settings.state).power_mode
        with contextlib.suppress(OSError, EdgeError):  # tidying; a disk that refuses shows elsewhere
            files.remove_temps(self.settings.state)
            self.copies.free_of_strays()
        self.intake.load()
        self.commands.resume()
        if self.ledger.trouble:
            self.news.tell("ledger", reason=self.ledger.trouble)
        self.news.tell("started", reason=f"agent {VERSION}, boot {self.boot}")

    async def _poll(self) -> None:
        """Ask the store now and then, when somebody wants it, and when a folder says that it has news."""
        store, failures = self.settings.store, 0
        with folder_watch.watched(store.url, lambda: self.news.post(self.intake.poll_now.set)):
            while True:
                self.intake.poll_now.clear()
                try:
                    await self.intake.poll()
                except EdgeError as error:
                    failures += 1
                    if failures == 1:
                        await asyncio.to_thread(self.news.tell, "store", outcome="failed", reason=str(error))
                else:
                    failures = 0
                self.changed.post(None)
                spread_s = store.poll_s * random.uniform(0.8, 1.0)  # noqa: S311  fleets must not poll in step
                wait_s = backoff.wait_s(failures, POLL_AGAIN_S, store.poll_s) if failures else spread_s
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(wait_s):
                        await self.intake.poll_now.wait()

    async def _keep_slots(self, tasks: asyncio.TaskGroup) -> None:
        """One task for each slot that is or was ever wanted; what a change of mind left half fetched is removed."""
        async for records in self.intake.desired.changes():
            await asyncio.to_thread(self.copies.free_of_strays)
            for slot in records:
                if slot not in self.reconcilers:
                    reconciler = Reconciler(
                        slot, self.intake.desired, self.swap, self.ledger, self.steps, self.runner, self.news,
                        self.device, self.changed,
                    )  # fmt: skip
                    self.reconcilers[slot] = reconciler
                    self._running.append(tasks.create_task(keep(slot, reconciler.run), name=f"slot {slot}"))
            self.changed.post(None)

    async def _beat(self) -> None:
        """Tell systemd that we are up, and that the loop turns."""
        service.notify("READY=1")
        interval = service.watchdog_interval() or BEAT_S
        while True:
            serving = [f"{name}: {reconciler.view.step}" for name, reconciler in self.reconcilers.items()]
            service.notify(f"WATCHDOG=1\nSTATUS={'; '.join(serving) or 'no slot is deployed yet'}")
            await asyncio.sleep(interval)

    def _make_link(self) -> Link | None:
        if self.settings.broker is None:
            return None
        births = (self.ledger.get("count", "birth", int) or 0) + 1
        with contextlib.suppress(TransferError):  # a disk that refuses is told, at the broker too
            self.ledger.put("count", "birth", births)
        about = {"boot": self.boot, "birth": births, "agent": VERSION, "hardware": host.hardware()}
        return Link(
            self.settings.broker, self.settings.device, [self.settings.group], self.outbox,
            birth=lambda: to_json({"state": "online", "at": time.time(), **about}),
            will=to_json({"state": "offline", **about}),
            receive=self._receive,
        )  # fmt: skip

    async def _receive(self, message: Message) -> None:
        """One message from the broker; returns when what it changed is on the disk.

        Raises:
            TransferError: the disk refuses; the message comes again.
        """
        try:
            if message.topic.endswith("/req"):
                await asyncio.to_thread(self.commands.take, message)
            elif message.topic.endswith("/deployment"):
                await asyncio.to_thread(self.intake.take, message)
            elif message.topic.endswith("/state"):
                self._meet(message)
        except TransferError:
            raise
        except Exception as error:  # the top of a message's way: whatever it is, it must not come again for ever
            log.exception("message on %s", message.topic)
            self.intake.refuse("message", f"{message.topic}: {type(error).__name__}: {error}")

    def _meet(self, message: Message) -> None:
        """Whoever has said our `state`: since our first connection, nobody but us may have."""
        if self.link is not None and self.link.connections > 1 and self.boot.encode() not in message.payload:
            self.link.met_twin = True
            name = self.settings.device
            self.intake.refuse(
                "state", f"another agent is at the broker as {name}: find it, and enrol it anew as another"
            )
