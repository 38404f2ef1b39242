"""Show what is: `state.json` for this machine, `reported`, health and figures for the fleet.

1. `reported` is retained and says what runs, by digest; it goes out on change and at each new connection.
2. Figures of an interval go through the outbox and survive a lost link; a reading of health is for now or never.
3. The file is replaced whole: a reader sees one moment.
"""

import asyncio
import logging
import os
import time
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from msgspec.structs import replace

from agent import VERSION
from agent.adapters import files, host
from agent.adapters.broker import Link, device_topic
from agent.adapters.ledger import Ledger
from agent.adapters.outbox import Outbox
from agent.adapters.pulse import Pulse
from agent.core.documents import to_json
from agent.core.messages import Counters, Facts, SlotFacts
from agent.core.records import Rejection, TrialRecord
from agent.core.slot import SlotRecord
from agent.daemon.board import Board
from agent.daemon.copies import Progress
from agent.daemon.intake import Intake
from agent.daemon.news import News
from agent.daemon.reconcile import Reconciler, SlotView
from agent.daemon.runner_link import RunnerLink
from agent.daemon.settings import Settings
from agent.daemon.state import BrokerState, RunnerState, SlotState, State, reported, summary

REFRESH_S = 1.0  # counters move while nothing else does
PROGRESS_S = 5.0  # that bytes came is no news for the fleet more often than this
QUIET_S = 0.05  # changes that come together are shown together
HEALTH_EXPIRY_S = 60.0
FIGURES_EXPIRY_S = 24 * 3600.0
REJECTIONS_SHOWN = 5

log = logging.getLogger("edge-agent")


@dataclass(eq=False)
class Reporter:
    """Makes the observed board and shows it."""

    settings: Settings
    boot: str
    ledger: Ledger
    outbox: Outbox
    news: News
    intake: Intake
    runner: RunnerLink
    reconcilers: Mapping[str, Reconciler]
    link: Link | None
    progress: Mapping[str, Progress]  # of the fetches that run now, by slot
    changed: Board[None]
    pulse: Pulse

    def __post_init__(self) -> None:
        self._said: object = None
        self._said_at = 0.0
        self._before: dict[str, tuple[float, float, Counters]] = {}  # at, of the promotion at, counters

    async def run(self) -> None:
        """Show until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._show(), name="show")
            tasks.create_task(self._every(self.settings.health_s, self._health), name="health")
            tasks.create_task(self._every(self.settings.fps_s, self._figures), name="figures")

    async def now(self) -> None:
        """Report at once, changed or not."""
        self._said = None
        await self._publish(await self.state())

    async def state(self) -> State:
        """The device as it is."""
        facts = await self.runner.look() or Facts()
        return await asyncio.to_thread(self._gather, facts)

    async def _show(self) -> None:
        while True:
            state = await self.state()
            await asyncio.to_thread(self._write, state)
            await self._publish(state)
            with suppress(TimeoutError):
                async with asyncio.timeout(REFRESH_S):
                    await self.changed.turned()
                await asyncio.sleep(QUIET_S)

    async def _every(self, interval: float, show: Callable[[State], Awaitable[None]]) -> None:
        while True:
            await asyncio.sleep(interval)
            await show(await self.state())

    def _write(self, state: State) -> None:
        """Not synced: it lies in memory and is made anew each second."""
        path = self.settings.run / "state.json"
        temp = path.with_name(f"{files.TEMP}state")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            temp.write_bytes(to_json(state))
            temp.replace(path)
        except OSError as error:
            log.warning("%s cannot be written (%s): `edge-agent status` will be out of date", path, error.strerror)

    async def _publish(self, state: State) -> None:
        link = self.link
        if link is None or not link.connected:
            return
        still = [replace(summary(slot), progress=0.0) for slot in state.slots.values()]
        said, now = (link.connections, {**reported(state), "at": None, "slots": still}), time.monotonic()
        moves = any(slot.fetched for slot in state.slots.values()) and now - self._said_at >= PROGRESS_S
        if said == self._said and not moves:
            return
        topic = device_topic(self.settings.device, "reported")
        if await link.publish(topic, to_json(reported(state)), 1, retain=True, expiry_s=None):
            self._said, self._said_at = said, now

    async def _health(self, state: State) -> None:
        if self.link is None:
            return
        readings = await asyncio.to_thread(host.readings, self.settings.state)
        health = {
            "at": state.at,
            "boot": self.boot,
            "readings": readings,
            "store": state.store,
            "ledger": state.ledger,
            "waiting": state.broker.waiting,
            "dropped": state.broker.dropped,
        }
        topic = device_topic(self.settings.device, "tele", "health")
        await self.link.publish(topic, to_json(health), 0, retain=False, expiry_s=HEALTH_EXPIRY_S)

    async def _figures(self, state: State) -> None:
        """Requests, FPS and latency of each slot since the last time."""
        for slot in state.slots.values():
            now, counters, since = time.monotonic(), slot.counters, self.runner.slot(slot.slot).serving_since
            nothing = (now - self.settings.fps_s, since, Counters())
            then, counted_since, before = self._before.get(slot.slot, nothing)
            before = before if counted_since == since else Counters()  # a promotion counts from zero
            self._before[slot.slot] = (now, since, counters)
            requests, busy = counters.requests - before.requests, counters.busy_s - before.busy_s
            figures = {
                "at": state.at,
                "boot": self.boot,
                "release": slot.serving,
                "candidate": slot.candidate,
                "seconds": round(now - then, 3),
                "requests": requests,
                "errors": counters.errors - before.errors,
                "offered_fps": round(requests / (now - then), 3),
                "capacity_fps": round(requests / busy, 3) if busy > 0 else None,
                "latency_ms": counters.latency_ms,
            }
            self.news.figures(f"tele/fps/{slot.slot}", to_json(figures), FIGURES_EXPIRY_S)

    # --- gathering -----------------------------------------------------------------------------------------------

    def _gather(self, facts: Facts) -> State:
        records = self.ledger.all("slot", SlotRecord)
        trials = self.ledger.all("trial", TrialRecord).values()
        rejections = self.ledger.all("rejection", Rejection).values()
        link, line = self.link, self.runner.line.value
        look = host.readings(self.settings.state)
        return State(
            device=self.settings.device,
            group=self.settings.group,
            agent=VERSION,
            pid=os.getpid(),
            at=datetime.now(UTC),
            boot=self.boot,
            slots={slot: self._slot(record, facts.slot(slot), trials, rejections) for slot, record in records.items()},
            store=self.intake.store,
            broker=BrokerState(
                configured=link is not None,
                connected=link is not None and link.connected,
                error=link.last_error if link is not None else "",
                waiting=self.outbox.waiting,
                dropped=sum(self.outbox.dropped.values()),
            ),
            runner=RunnerState(
                connected=line is not None,
                pid=line.welcome.pid if line is not None else 0,
                error=self.runner.last_error,
                found=line.welcome.found if line is not None else (),
                loop_lag_ms=facts.loop_lag_ms,
            ),
            ledger=self.ledger.trouble,
            refused=self.intake.refused,
            clock_synchronised=look.clock_synchronised,
            disk_free_mb=look.disk_free_mb,
            loop_lag_ms=self.pulse.lag_ms,
            events=self.news.recent(),
        )

    def _slot(
        self, record: SlotRecord, held: SlotFacts, trials: Iterable[TrialRecord], rejections: Collection[Rejection]
    ) -> SlotState:
        reconciler = self.reconcilers.get(record.slot)
        view = reconciler.view if reconciler is not None else SlotView(step="")
        progress = self.progress.get(record.slot, Progress())
        place = held.serving
        refs = {record.desired, place.ref if place else None, *(good.ref for good in record.good)}
        newest = sorted(rejections, key=lambda one: str(one.at))[-REJECTIONS_SHOWN:]
        return SlotState(
            slot=record.slot,
            step=view.step,
            working_on=view.working_on,
            reason=view.reason or refusal(record, rejections),
            since=datetime.fromtimestamp(view.since, UTC),
            record=record,
            serving=place.ref.name if place else "",
            digest=place.ref.digest if place else "",
            candidate=str(place.candidate) if place else "",
            serving_since=wall_time(held.serving_since) if place else None,
            confirmed=place is not None and place == record.last_good,
            fallback=str(held.fallback or ""),
            seats=held.seats,
            counters=held.counters,
            fetched=progress.done,
            fetch_size=progress.total,
            trials=tuple(one for one in trials if one.place.ref in refs or one.failure is not None),
            rejections=tuple(newest),
        )


def wall_time(monotonic: float) -> datetime:
    """When it was, by the wall clock of now."""
    return datetime.now(UTC) - timedelta(seconds=time.monotonic() - monotonic)


def refusal(record: SlotRecord, rejections: Iterable[Rejection]) -> str:
    """Why the wanted release is not what serves, where it was rejected; empty where it was not."""
    said = next((one for one in rejections if one.ref == record.desired), None)
    if said is None:
        return ""
    advice = "deploy another release" if said.failure.kind.is_final else "`edge-agent retry` tries it again"
    return f"{said.ref.name} is wanted and was rejected ({said.failure.kind}): {said.failure.reason}; {advice}"
