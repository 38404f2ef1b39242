"""Measure every candidate of a slot's release by hand, beside what serves.

The seats of a bench stand in a slot of their own, which nobody can ask: what serves is not disturbed, and an agent
that dies here leaves a seat that the next one ends.
"""

import asyncio
import contextlib
from collections.abc import Callable
from dataclasses import dataclass, field

from msgspec.structs import replace

from agent.adapters.ledger import Ledger
from agent.adapters.packets import close_all
from agent.core.candidate import Failure, judge
from agent.core.errors import BackendError, InputError, TransferError
from agent.core.messages import Facts, Load, Place, Trial, Tried, Unload
from agent.core.records import Device, ReleaseRecord
from agent.core.release import Config, Ref
from agent.core.slot import SlotRecord
from agent.daemon.runner_link import RunnerLink
from agent.daemon.state import Measured
from agent.daemon.steps import Steps

SHADOW = "~bench"  # behind a slot's name; no task has this character
RUNS = 100


@dataclass(eq=False)
class Bench:
    """Measures on demand, one slot at a time."""

    ledger: Ledger
    steps: Steps
    runner: RunnerLink
    device: Callable[[], Device | None]
    _one: asyncio.Lock = field(default_factory=asyncio.Lock)

    async def run(self, slot: str) -> tuple[Measured, ...]:
        """Every candidate of what the slot serves, measured now, in the config's order.

        Raises:
            InputError: nothing of it is verified here.
            TransferError: the runner is not there.
        """
        device = self.device()
        if device is None:
            raise TransferError("edge-runner is not there yet; try again")
        ref, config = self._subject(slot)
        async with self._one:
            places = [Place(ref=ref, candidate=one) for one in device.candidates(config)]
            return tuple([await self._measure(slot, place, config, device) for place in places])

    async def clean(self) -> None:
        """End what the bench of an earlier life left in the runner, until cancelled."""
        async for line in self.runner.line.changes():
            facts = line.facts if line is not None else Facts()
            for slot, one in facts.slots.items():
                for seat in one.seats if slot.endswith(SHADOW) else ():
                    await self._end(slot, seat.place)

    async def _measure(self, slot: str, place: Place, config: Config, device: Device) -> Measured:
        version = "".join(one.version for one in device.found if one.backend is place.candidate.backend)
        measured = Measured(release=place.ref.name, candidate=place.candidate, version=version)
        try:
            await self.steps.hold(place.ref)
            await self.runner.ask(Load.of(slot + SHADOW, place))
            order = Trial(slot=slot + SHADOW, place=place, key=device.key(place.candidate), runs=RUNS)
            reply, engine = await self.runner.ask(order)
            close_all(engine)
        except BackendError as error:
            return replace(measured, failure=Failure.of(error))
        finally:
            await self._end(slot + SHADOW, place)
        assert isinstance(reply, Tried), reply
        return replace(measured, evidence=reply.evidence, failure=judge(reply.evidence, config.gates))

    async def _end(self, slot: str, place: Place) -> None:
        with contextlib.suppress(BackendError, TransferError):
            await self.runner.ask(Unload(slot=slot, place=place))

    def _subject(self, slot: str) -> tuple[Ref, Config]:
        record = self.ledger.get("slot", slot, SlotRecord)
        serving = self.runner.slot(slot).serving
        wanted = serving.ref if serving is not None else record.desired if record is not None else None
        release = self.ledger.get("release", wanted.digest, ReleaseRecord) if wanted is not None else None
        if release is None or release.config is None:
            raise InputError(f"slot {slot}: nothing is verified here yet; see `edge-agent status`")
        return release.ref, release.config
