"""What the ledger holds of releases, and how facts become the planner's view of one slot.

A candidate's speed is its ratio to what served beside it, times the speed of that: two candidates that were tried in
different minutes are compared as if it had been the same one. Gates are of the FPS that were measured.

Evidence counts while its key holds. A failure of a final kind holds for ever; any other while the evidence key of
its candidate holds. What serves now keeps its evidence whatever changed: it is not tried again while it works.
"""

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from msgspec import field

from agent.core.candidate import Candidate, Evidence, Failure, Found, candidates_for
from agent.core.documents import Document
from agent.core.messages import Beside, Place, SlotFacts
from agent.core.plan import Observed
from agent.core.release import Config, Metadata, Ref
from agent.core.slot import SlotRecord


class ReleaseRecord(Document):
    """One release's files on this device."""

    ref: Ref
    stored: bool = True  # always: it stands in the records of devices
    verified: bool = False
    size: int = 0  # bytes, sealed
    listing: Mapping[str, Any] = field(default_factory=dict)  # the signed summary, for opening without a network
    metadata: Metadata | None = None
    config: Config | None = None


class TrialRecord(Document):
    """What is known of one place: evidence, and why it failed if it did."""

    place: Place
    key: str
    evidence: Evidence | None = None
    failure: Failure | None = None
    beside: Beside | None = None
    scaled_fps: float = 0.0  # where something served beside it: what candidates of other minutes are compared with

    @property
    def speed(self) -> float:
        """FPS to compare by; 0 where none were measured."""
        return self.scaled_fps or (self.evidence.fps if self.evidence is not None else 0.0)


def trial_key(place: Place) -> str:
    """Under which the ledger keeps the trial of a place."""
    return f"{place.ref.digest}:{place.candidate}"


class Rejection(Document):
    """A release that is not tried again, and why."""

    ref: Ref
    failure: Failure
    key: str = ""  # the device's state under which a failure that is not final holds
    at: datetime | None = None


@dataclass(frozen=True, slots=True)
class Device:
    """What counts for every slot of this device."""

    found: tuple[Found, ...]
    cores: int  # for each slot
    power_mode: str
    agent: str = ""  # version

    def key(self, candidate: Candidate) -> str:
        """The evidence key of a candidate: a digest of everything here whose change voids evidence for it."""
        versions = "".join(one.version for one in self.found if one.backend is candidate.backend)
        return hashlib.sha256(f"{candidate}\0{versions}\0{self.power_mode}".encode()).hexdigest()[:16]

    def candidates(self, config: Config | None) -> tuple[Candidate, ...]:
        """The candidates of a release here; none while its config is not known."""
        return candidates_for(config, self.found, self.cores) if config is not None else ()

    @property
    def state(self) -> str:
        """A digest of everything here that may change what runs: backends, drivers, power mode, cores, the agent."""
        found = sorted((str(one.backend), one.present, one.version) for one in self.found)
        return hashlib.sha256(repr((found, self.power_mode, self.agent, self.cores)).encode()).hexdigest()[:16]


def observe(
    record: SlotRecord,
    releases: Iterable[ReleaseRecord],
    trials: Iterable[TrialRecord],
    rejections: Iterable[Rejection],
    facts: SlotFacts,
    device: Device,
    not_before: Mapping[Ref, float],
) -> Observed:
    """The planner's view of one slot."""
    valid = [one for one in trials if one.key == device.key(one.place.candidate) or one.place == facts.serving]
    return Observed(
        copies={one.ref: device.candidates(one.config) for one in releases if concerns(record, one)},
        seats={seat.place: seat.state in PROVEN for seat in facts.seats if seat.state in LOADED},
        serving=facts.serving,
        serving_since=facts.serving_since,
        fallback=facts.fallback,
        last_good=record.last_good,
        passed={one.place: one.speed for one in valid if one.evidence is not None and one.failure is None},
        failed=frozenset(one.place for one in valid if one.failure is not None),
        rejected=frozenset(one.ref for one in rejections if one.failure.kind.is_final or one.key == device.state),
        change_s=next((change_s(one) for one in valid if one.place == facts.serving), 0.0),
        not_before=not_before,
    )


def change_s(trial: TrialRecord) -> float:
    """About how long nothing serves while this seat leaves, another is tried alone, and this one comes back."""
    return 2 * trial.evidence.load_s + min(TRIAL_S, TRIAL_RUNS / trial.speed) if trial.evidence and trial.speed else 0.0


TRIAL_RUNS, TRIAL_S = 60, 6.0  # with its warm-up, and after how long it ends with fewer (backends/benchmark.py)
LOADED = frozenset({"loaded", "proven", "serving", "warm"})
PROVEN = frozenset({"proven", "serving", "warm"})


def concerns(record: SlotRecord, release: ReleaseRecord) -> bool:
    """Whether a release on this device belongs to this slot."""
    if release.metadata is not None:
        return release.metadata.task == record.slot
    named = {record.deployed, record.override, *(place.ref for place in record.good)}
    return release.ref in named or str(release.listing.get("task", "")) == record.slot
