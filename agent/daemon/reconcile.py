"""Bring one slot to what is desired: observe, decide, act, look again. One task per slot.

1. The planner decides; this file counts chances, backs off, watches the soak and tells what changed.
2. A change of desire stops a running fetch, or the building of an engine; what is short is finished first.
3. A backend failure has CHANCES before its place is out: a driver may hiccup, a candidate may be killed by mistake.
   So has a speed gate that was missed closely: the device may have been busy. Parity, structure, trust and what a
   runtime does not support have one.
4. During a soak the counters are judged every second; with too few requests, golden samples are run instead.
"""

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from msgspec import structs

from agent.adapters import backoff, host
from agent.adapters.ledger import Ledger
from agent.core import plan
from agent.core.candidate import Failure, may_be_busy
from agent.core.documents import Document
from agent.core.errors import Kind
from agent.core.messages import Counters, Facts, Incident, Place
from agent.core.records import Device, Rejection, ReleaseRecord, TrialRecord, observe, trial_key
from agent.core.release import Ref
from agent.core.slot import SlotRecord
from agent.core.soak import has_evidence, judge_soak, slowed
from agent.daemon.board import Board
from agent.daemon.news import News
from agent.daemon.runner_link import RunnerLink
from agent.daemon.steps import Later, Never, Outcome, Steps, Success

CHANCES: Mapping[Kind, int] = {Kind.BACKEND: 3, Kind.SPEED: 2, Kind.MEMORY: 2}
BACK_OFF_S = (0.5, 60.0)  # first and longest wait after a Later; doubled, with full jitter
LOOK_S = 1.0  # how often a soak is judged


class Noted(Document):
    """The newest incident of the runner that was taken up."""

    runner: int = 0  # pid: another runner counts anew
    number: int = 0


@dataclass(slots=True)
class SlotView:
    """What one slot is doing, for those who report."""

    step: str = "waiting for the runner"
    working_on: str = ""
    reason: str = ""
    since: float = field(default_factory=time.time)


@dataclass(eq=False)
class Reconciler:
    """Keeps one slot."""

    slot: str
    desired: Board[Mapping[str, SlotRecord]]
    swap: Callable[[SlotRecord], plan.Swap]
    ledger: Ledger
    steps: Steps
    runner: RunnerLink
    news: News
    device: Callable[[], Device | None]
    changed: Board[None]

    def __post_init__(self) -> None:
        self.view = SlotView()
        self._not_before: dict[Ref, float] = {}
        self.tries: Counter[Ref] = Counter()  # how often a release could not be had or handled, since it last could
        self._misses: Counter[Place] = Counter()
        self._probed: set[Place] = set()  # in this soak, for want of requests
        self._lacks_room: Ref | None = None  # a release that was refused for that: the way back makes room for it
        self._told_hot: set[Place] = set()
        self._judged_out: set[Place] = set()  # missed a gate in this soak; the planner moves away from it

    async def run(self) -> None:
        """Keep the slot until cancelled."""
        while True:
            device = self.device()
            facts = self.runner.facts.value
            if device is None or facts is None:
                self._show("waiting for the runner", reason=self.runner.last_error)
                await self._news_or(LOOK_S)
                continue
            await self._note_incidents(facts.slot(self.slot).incidents, device)
            facts = self.runner.facts.value or facts
            record = self._record()
            seen = self._observe(record, facts, device)
            makes_room = record.desired is not None and record.desired == self._lacks_room
            keep = frozenset(place.ref for place in record.good if not makes_room)
            hold_s = self.steps.hold_s(self.slot)
            desired = plan.Desired(record.desired, self.swap(record), record.soak_s, keep, hold_s)
            step = plan.next_step(desired, seen, time.monotonic())
            if await self._misses_a_gate(seen.serving, record, device):
                continue
            if step is None or isinstance(step, plan.Wait):
                await self._rest(step, record, seen)
            else:
                await self._take(step, device, record.desired)

    def retry(self) -> None:
        """Forget every back-off and chance that was used up; the ledger's failures are the caller's."""
        self._not_before.clear()
        self.tries.clear()
        self._misses.clear()

    # --- one step ----------------------------------------------------------------------------------------------

    async def _take(self, step: plan.Step, device: Device, wished: Ref | None) -> None:
        name, subject = type(step).__name__.lower(), subject_of(step)
        self._show(name, subject)
        if isinstance(step, plan.Confirm) and not await self._has_evidence(step.place, device):
            return
        outcome = await self._do(step, device, wished)
        if outcome is None:
            return
        await self._learn(step, outcome, device)
        if not isinstance(step, plan.Unload | plan.Prove) or not isinstance(outcome, Success):
            self._tell(step, name, outcome)
        if isinstance(step, plan.Promote) and isinstance(outcome, Success):
            self._probed.discard(step.place)
            self._judged_out.discard(step.place)
            self._told_hot.discard(step.place)

    async def _do(self, step: plan.Step, device: Device, wished: Ref | None) -> Outcome | None:
        """What came of the step; None when desire moved away from one that takes long."""
        is_build = isinstance(step, plan.Load) and step.place.candidate.builds
        work = asyncio.create_task(self.steps.act(self.slot, step, device), name=f"{self.slot} {step}")
        try:
            while (is_build or isinstance(step, plan.Fetch)) and not work.done():
                if self._record().desired != wished:
                    work.cancel()
                    await asyncio.wait({work})  # what it has recorded by then is seen in the next pass
                    if isinstance(step, plan.Load):
                        await self.steps.act(self.slot, plan.Unload(step.place), device)
                    return None
                await self._news_or(None, work)
            outcome = await work
        finally:
            work.cancel()
        await self.runner.look()  # the answer to a step may come before the facts that it made
        return outcome

    async def _learn(self, step: plan.Step, outcome: Outcome, device: Device) -> None:
        """Turn an outcome into facts."""
        ref = ref_of(step)
        if isinstance(step, plan.Fetch):
            self._lacks_room = ref if isinstance(outcome, Later) and outcome.lacks_room else None
        if isinstance(outcome, Success):
            self.tries.pop(ref, None)
            if isinstance(step, plan.Confirm):  # chances are counted between two confirmations, not over months
                self._misses.pop(step.place, None)
        elif isinstance(outcome, Never) and isinstance(step, plan.Load | plan.Trial | plan.Prove | plan.Promote):
            await self._miss(step.place, outcome.failure, device)
        elif isinstance(outcome, Never) and isinstance(step, plan.Fetch | plan.Verify | plan.Refuse):
            await asyncio.to_thread(self.steps.record_rejection, ref, outcome.failure, device)
        else:
            self._back_off(ref)

    def _back_off(self, ref: Ref) -> None:
        self.tries[ref] += 1
        self._not_before[ref] = time.monotonic() + backoff.wait_s(self.tries[ref], *BACK_OFF_S)

    async def _miss(self, place: Place, failure: Failure, device: Device) -> None:
        """A candidate missed; after its last chance that is a fact. A retried trial is no fact before that."""
        self._misses[place] += 1
        if self._misses[place] < self._chances(place, failure):
            await asyncio.to_thread(self.ledger.remove, "trial", trial_key(place))
            self._back_off(place.ref)
        else:
            await asyncio.to_thread(self._condemn, place, failure, device)

    def _chances(self, place: Place, failure: Failure) -> int:
        trial = self.ledger.get("trial", trial_key(place), TrialRecord)
        release = self.ledger.get("release", place.ref.digest, ReleaseRecord)
        if failure.kind is Kind.SPEED and trial is not None and trial.evidence is not None:
            gates = release.config.gates if release is not None and release.config is not None else None
            return CHANCES[Kind.SPEED] if gates is not None and may_be_busy(trial.evidence, gates) else 1
        return CHANCES.get(failure.kind, 1)

    def _condemn(self, place: Place, failure: Failure, device: Device) -> None:
        """Record that a candidate is out, beside what was measured of it."""
        known = self.ledger.get("trial", trial_key(place), TrialRecord) or TrialRecord(place=place, key="")
        self.steps.record_trial(structs.replace(known, key=device.key(place.candidate), failure=failure))

    # --- the soak ----------------------------------------------------------------------------------------------

    async def _rest(self, step: plan.Wait | None, record: SlotRecord, seen: plan.Observed) -> None:
        """Wait for news, or for a time; a soak is looked at again soon."""
        soaking = seen.serving is not None and seen.serving != record.last_good
        if step is None:
            self._show("settled")
            await self._news_or(None)
        else:
            self._show("soak" if soaking else "wait", str(seen.serving or ""), self.view.reason)
            await self._news_or(min(LOOK_S if soaking else step.until, max(0.01, step.until - time.monotonic())))

    async def _misses_a_gate(self, place: Place | None, record: SlotRecord, device: Device) -> bool:
        """Whether the seat in its soak has missed a gate, which is written down then. Asked in every pass."""
        if place is None or place == record.last_good or place in self._judged_out:
            return False
        counters = await self._counters()
        release = self.ledger.get("release", place.ref.digest, ReleaseRecord)
        if counters is None or release is None or release.config is None:
            return False
        failure = judge_soak(counters, release.config)
        if failure is not None:
            self._judged_out.add(place)
            await self._miss_soak(place, failure, device)
        elif place not in self._told_hot:
            await self._tell_heat(place, counters)
        return failure is not None

    async def _tell_heat(self, place: Place, counters: Counters) -> None:
        """Tells, once in a soak, that heat holds the device back and what that costs. No gate is missed by it."""
        trial = self.ledger.get("trial", trial_key(place), TrialRecord)
        if trial is None or trial.evidence is None or not (slow := slowed(counters, trial.evidence)):
            return
        now, then = await asyncio.to_thread(host.readings, self.steps.copies.folder), trial.evidence.conditions
        if now.throttled or now.throttle_count > float(then.get("throttled", now.throttle_count)):
            self._told_hot.add(place)
            self._tell_of("throttled", place, step="soak", reason=f"{slow}; heat has held this device back since")

    async def _miss_soak(self, place: Place, failure: Failure, device: Device) -> None:
        await asyncio.to_thread(self._condemn, place, failure, device)
        self._tell_of("rejected", place, step="soak", reason=failure.reason)

    async def _has_evidence(self, place: Place, device: Device) -> bool:
        """Whether the soak rests on requests or probes; one probe is made where it does not."""
        counters = await self._counters()
        if counters is None or has_evidence(counters) or place in self._probed:
            return counters is not None
        outcome = await self.steps.act(self.slot, plan.Prove(place), device)
        if isinstance(outcome, Success):
            self._probed.add(place)
        elif isinstance(outcome, Never):
            await self._miss_soak(place, outcome.failure, device)
        else:
            self._back_off(place.ref)
            self._tell(plan.Prove(place), "prove", outcome)
        return isinstance(outcome, Success)

    async def _counters(self) -> Counters | None:
        facts = await self.runner.look()
        return facts.slot(self.slot).counters if facts is not None else None

    async def _note_incidents(self, incidents: tuple[Incident, ...], device: Device) -> None:
        """What the runner answered by itself: adopted, and counted against what was not confirmed yet."""
        line = self.runner.line.value
        pid = line.welcome.pid if line is not None else 0
        seen = self.ledger.get("incident", self.slot, Noted) or Noted()
        fresh = [one for one in incidents if pid != seen.runner or one.number > seen.number]
        if not fresh:
            return
        noted = Noted(runner=pid, number=fresh[-1].number)
        await asyncio.to_thread(self.ledger.put, "incident", self.slot, noted)
        record = self._record()
        for incident in fresh:
            self._tell_of("incident", incident.place, outcome=incident.action, reason=incident.failure.reason)
            if incident.action.startswith("serves on"):  # slow, and nothing better is there: its soak is judged here
                continue
            is_its_fault = incident.failure.kind is not Kind.STALE
            if is_its_fault and (incident.place != record.last_good or incident.action.startswith("gave up")):
                await self._miss(incident.place, incident.failure, device)

    # --- facts -------------------------------------------------------------------------------------------------

    def _record(self) -> SlotRecord:
        return self.ledger.get("slot", self.slot, SlotRecord) or SlotRecord(slot=self.slot)

    def _observe(self, record: SlotRecord, facts: Facts, device: Device) -> plan.Observed:
        return observe(
            record,
            self.ledger.all("release", ReleaseRecord).values(),
            self.ledger.all("trial", TrialRecord).values(),
            self.ledger.all("rejection", Rejection).values(),
            facts.slot(self.slot),
            device,
            self._not_before,
        )

    async def _news_or(self, seconds: float | None, *work: asyncio.Task[Outcome]) -> None:
        """Until desire or the runner's facts change, or work is done, or for a time in seconds."""
        turns = {asyncio.create_task(self.desired.turned()), asyncio.create_task(self.runner.facts.turned())}
        try:
            await asyncio.wait({*turns, *work}, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for turn in turns:
                turn.cancel()

    # --- telling -----------------------------------------------------------------------------------------------

    def _show(self, step: str, working_on: str = "", reason: str = "") -> None:
        view = self.view
        if (view.step, view.working_on, view.reason) != (step, working_on, reason):
            view.step, view.working_on, view.reason, view.since = step, working_on, reason, time.time()
            self.changed.post(None)

    def _tell(self, step: plan.Step, name: str, outcome: Outcome) -> None:
        place = getattr(step, "place", None)
        said = {"slot": self.slot, "release": ref_of(step).name, "candidate": str(place.candidate) if place else ""}
        match outcome:
            case Success(reason):
                self.news.tell(EVENTS.get(name, name), **said, step=name, outcome="done", reason=reason)
            case Later(reason):
                self._show(name, subject_of(step), reason)
                if self.tries[ref_of(step)] == 1:
                    self.news.tell("later", **said, step=name, reason=reason)
            case Never(failure):
                self._show(name, subject_of(step), failure.reason)
                self.news.tell("rejected", **said, step=name, outcome=str(failure.kind), reason=failure.reason)
        self.changed.post(None)

    def _tell_of(self, kind: str, place: Place, **said: str) -> None:
        self.news.tell(kind, slot=self.slot, release=place.ref.name, candidate=str(place.candidate), **said)


EVENTS = {"promote": "swapped", "confirm": "confirmed", "fetch": "stored", "verify": "verified", "trial": "passed",
          "reject": "rejected", "delete": "deleted", "load": "loaded"}  # fmt: skip


def ref_of(step: plan.Step) -> Ref:
    """The release a step is about."""
    return step.release if isinstance(step, plan.OfRelease) else step.place.ref


def subject_of(step: plan.Step) -> str:
    """What a step works on, for people."""
    return str(getattr(step, "place", None) or ref_of(step))
