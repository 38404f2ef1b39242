"""Do one step of the planner. Each returns what came of it: Success, Later (back off) or Never (with its failure).

Whatever a step leaves behind when it is cut off is a state that the planner knows: a part file that the next fetch
takes up, a seat that is loaded, a ledger without the fact. Blocking work goes to a thread at the call.
"""

import asyncio
import threading
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime

from msgspec.structs import replace

from agent.adapters.fetch import Mismatch, NoRoom
from agent.adapters.ledger import Ledger
from agent.adapters.packets import close_all
from agent.core import messages, plan
from agent.core.candidate import Failure, judge
from agent.core.errors import BackendError, InputError, Kind, TransferError, TrustError
from agent.core.messages import Place
from agent.core.records import Device, Rejection, TrialRecord, trial_key
from agent.core.release import Ref
from agent.core.slot import SlotRecord, confirm
from agent.daemon.copies import Copies
from agent.daemon.engines import Engines
from agent.daemon.runner_link import RunnerLink, announced, pour


@dataclass(frozen=True, slots=True)
class Success:
    """The fact is so now."""

    reason: str = ""


@dataclass(frozen=True, slots=True)
class Later:
    """Not now; the reason is shown, and it is tried again."""

    reason: str
    lacks_room: bool = False


@dataclass(frozen=True, slots=True)
class Never:
    """Not with these bytes, or not on this candidate."""

    failure: Failure


Outcome = Success | Later | Never


@dataclass(eq=False)
class Steps:
    """Does the planner's steps for every slot."""

    copies: Copies
    engines: Engines
    ledger: Ledger
    runner: RunnerLink
    hold_s: Callable[[str], float]
    moving: threading.Lock  # whoever moves a slot's record holds it
    _handing_over: asyncio.Lock = field(default_factory=asyncio.Lock)

    async def act(self, slot: str, step: plan.Step, device: Device) -> Outcome:
        """What came of one step."""
        try:
            said = await self._do(slot, step, device)
        except (Mismatch, TransferError) as error:  # a mismatch is one of the bytes that came, not of the release
            return Later(str(error), isinstance(error, NoRoom))
        except (TrustError, BackendError, InputError) as error:
            return Never(Failure.of(error))
        return Success(said if isinstance(said, str) else "")

    def _do(self, slot: str, step: plan.Step, device: Device) -> Awaitable[object]:  # noqa: C901, PLR0911  one line per step
        match step:
            case plan.Fetch(release):
                return self.copies.fetch(slot, release)
            case plan.Verify(release):
                return self._verify(slot, release, device)
            case plan.Load(place):
                return self._load(slot, place, device)
            case plan.Trial(place):
                return self._try(slot, place, device)
            case plan.Prove(place):
                return self._prove(slot, place, device)
            case plan.Promote(place, fallback):
                hold_s = self.hold_s(slot)
                return self.runner.ask(messages.Promote(slot=slot, place=place, fallback=fallback, hold_s=hold_s))
            case plan.Confirm(place):
                return asyncio.to_thread(self._confirm, slot, place)
            case plan.Unload(place):
                return self.runner.ask(messages.Unload(slot=slot, place=place))
            case plan.Refuse(place, dark_s):
                times = f"{dark_s:.1f} s without a model, and hold_s is {self.hold_s(slot):g}"
                cure = "raise it or set `swap: availability` in agent.yaml, then `edge-agent retry`"
                raise BackendError(f"{place}: to try it alone, and the way back, may take {times}: {cure}", Kind.MEMORY)
            case plan.Delete(release):
                return asyncio.to_thread(self.copies.delete, release)
            case plan.Reject(release):
                return asyncio.to_thread(self._reject, release, device)

    async def _verify(self, slot: str, ref: Ref, device: Device) -> None:
        config = await asyncio.to_thread(self.copies.verify, slot, ref)
        if not device.candidates(config):
            raise BackendError(
                f"{ref.name} runs on {', '.join(config.backends)}; this device has none of them: "
                "see `edge-agent doctor`"
            )

    # --- seats -------------------------------------------------------------------------------------------------

    async def _load(self, slot: str, place: Place, device: Device) -> str:
        """Load a place, with its engine where one is kept; what was done, in words."""
        await self.hold(place.ref)
        return await self.engines.load(messages.Load.of(slot, place), device)

    async def _prove(self, slot: str, place: Place, device: Device) -> None:
        """Have a loaded seat compute its golden samples; what it built is kept."""
        _, engine = await self.runner.ask(messages.Prove(slot=slot, place=place))
        await asyncio.to_thread(self.engines.keep, place, device, engine, self.copies.room())

    async def hold(self, ref: Ref) -> None:
        """Make the runner hold a release that is verified here: opened into memory files that it made."""
        async with self._handing_over:  # a bench and a swap may want the same release
            facts = self.runner.facts.value
            if facts is not None and ref in facts.held:
                return
            opener = await asyncio.to_thread(self.copies.open, ref)
            _, received = await self.runner.ask(messages.Offer(ref=ref, parts=announced(opener)))
            await asyncio.to_thread(self.copies.blaming, ref, lambda: pour(opener, received))
            await self.runner.ask(messages.Seal(ref=ref))
            await self.runner.look()

    async def _try(self, slot: str, place: Place, device: Device) -> None:
        key, release = device.key(place.candidate), self.copies.release(place.ref)
        assert release.config is not None
        reply, engine = await self.runner.ask(messages.Trial(slot=slot, place=place, key=key))
        assert isinstance(reply, messages.Tried), reply
        failure = judge(reply.evidence, release.config.gates)
        if failure is not None and not failure.kind.is_final and self._is_last_good(slot, place.ref):
            failure = None  # it was good enough to be confirmed; slow is better than dark
        moved = reply.evidence.conditions.get("moved") if failure is not None and failure.kind is Kind.SPEED else None
        if failure is None or moved:
            await asyncio.to_thread(self.engines.keep, place, device, engine, self.copies.room())
        else:
            close_all(engine)
        if failure is not None and moved:
            raise TransferError(f"{place}: {failure.reason}; but {moved} changed meanwhile, so it is measured again")
        trial = TrialRecord(place=place, key=key, evidence=reply.evidence, failure=failure, beside=reply.beside)
        await asyncio.to_thread(self.record_trial, trial)
        if failure is not None:
            raise BackendError(failure.reason, failure.kind)

    def _confirm(self, slot: str, place: Place) -> None:
        with self.moving:  # a deployment that comes between the reading and the writing would be lost
            record = self.ledger.get("slot", slot, SlotRecord) or SlotRecord(slot=slot)
            self.ledger.put_all([("slot", slot, confirm(record, place))], precious=True)

    # --- records -----------------------------------------------------------------------------------------------

    def record_trial(self, trial: TrialRecord) -> None:
        """What is known of a place now; its speed in the minute of what served beside it, where that is known."""
        if trial.beside and (served := self.ledger.get("trial", trial_key(trial.beside.place), TrialRecord)):
            trial = replace(trial, scaled_fps=trial.beside.ratio * served.speed)
        self.ledger.put("trial", trial_key(trial.place), trial)

    def record_rejection(self, ref: Ref, failure: Failure, device: Device) -> Rejection:
        """A release that is not tried again while this holds. What was withdrawn meanwhile stays so."""
        known = self.ledger.get("rejection", ref.digest, Rejection)
        if known is not None and known.failure.kind is Kind.WITHDRAWN:
            return known
        key = "" if failure.kind.is_final else device.state
        rejection = Rejection(ref=ref, failure=failure, key=key, at=datetime.now(UTC))
        self.ledger.put_all([("rejection", ref.digest, rejection)], precious=True)
        return rejection

    def _reject(self, ref: Ref, device: Device) -> str:
        """No candidate is left: the reasons are theirs; it is final only when all of them are."""
        trials = self.ledger.all("trial", TrialRecord).values()
        failures = [(one.place.candidate, one.failure) for one in trials if one.place.ref == ref and one.failure]
        kinds = (failure.kind for _, failure in failures)
        kind = min(kinds, key=lambda one: one.is_final, default=Kind.BACKEND)
        reason = "; ".join(f"{candidate}: {failure.reason}" for candidate, failure in failures)
        failure = Failure(kind=kind, reason=reason or "no backend of this device can run it")
        return self.record_rejection(ref, failure, device).failure.reason

    def _is_last_good(self, slot: str, ref: Ref) -> bool:
        record = self.ledger.get("slot", slot, SlotRecord)
        return record is not None and record.last_good is not None and record.last_good.ref == ref
