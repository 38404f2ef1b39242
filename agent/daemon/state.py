"""The observed board: everything the device says of itself, in one value.

It is written to `state.json` for `edge-agent status` and `why`, and published as `reported`. Success is what runs, by
digest, confirmed after its soak; never an event that says so.
"""

from collections.abc import Mapping
from datetime import datetime

from msgspec import field

from agent.core.candidate import Candidate, Evidence, Failure, Found, Latency
from agent.core.documents import Document
from agent.core.messages import Counters, SeatFacts
from agent.core.records import Rejection, TrialRecord
from agent.core.slot import SlotRecord
from agent.daemon.news import Event


class StoreState(Document):
    """How the last contact to the store went."""

    last_sync: datetime | None = None
    expires: datetime | None = None  # of the timestamp: until then withheld intent may stay unseen
    error: str = ""
    expiring: tuple[str, ...] = ()  # a sentence for each role of the repository that somebody must sign anew


class Measured(Document):
    """One candidate's figures, and the gate it misses, if any."""

    release: str  # its name
    candidate: Candidate
    version: str = ""  # of its backend: runtime, driver and device
    evidence: Evidence | None = None
    failure: Failure | None = None

    @property
    def latency(self) -> Latency | None:
        """Of one inference, where it came so far."""
        return self.evidence.latency_ms if self.evidence is not None else None


class SlotState(Document, kw_only=True):
    """One slot."""

    slot: str
    step: str
    working_on: str = ""
    reason: str = ""
    since: datetime
    record: SlotRecord
    serving: str = ""  # release name
    digest: str = ""  # of what serves
    candidate: str = ""
    serving_since: datetime | None = None
    confirmed: bool = False
    fallback: str = ""
    seats: tuple[SeatFacts, ...] = ()
    counters: Counters = Counters()
    fetched: int = 0
    fetch_size: int = 0
    trials: tuple[TrialRecord, ...] = ()
    rejections: tuple[Rejection, ...] = ()


class BrokerState(Document):
    """The link to the broker."""

    configured: bool
    connected: bool = False
    error: str = ""
    waiting: int = 0  # rows in the outbox
    dropped: int = 0


class RunnerState(Document):
    """The runner."""

    connected: bool
    pid: int = 0
    error: str = ""
    found: tuple[Found, ...] = ()
    loop_lag_ms: float = 0.0  # the longest that its event loop was held up since its start


class State(Document, kw_only=True):
    """The device."""

    device: str
    group: str
    agent: str  # version
    pid: int
    at: datetime
    boot: str
    slots: Mapping[str, SlotState] = field(default_factory=dict)
    store: StoreState = StoreState()
    broker: BrokerState
    runner: RunnerState
    ledger: str = ""  # trouble at opening
    refused: str = ""  # the newest intent that was not believed
    clock_synchronised: bool = False
    disk_free_mb: float = 0.0
    loop_lag_ms: float = 0.0  # the longest that the agent's event loop was held up since its start
    events: tuple[Event, ...] = ()


class Reported(Document):
    """What `edge/v1/{device}/reported` holds of one slot."""

    slot: str
    release: str
    digest: str
    candidate: str
    confirmed: bool
    desired: str
    step: str
    reason: str
    progress: float  # of a fetch, 0 to 1


def reported(state: State) -> dict[str, object]:
    """The payload of `reported`."""
    return {
        "device": state.device,
        "boot": state.boot,
        "at": state.at,
        "agent": state.agent,
        "slots": [summary(slot) for slot in state.slots.values()],
    }


def summary(slot: SlotState) -> Reported:
    """One slot, as the fleet sees it."""
    desired = slot.record.desired
    return Reported(
        slot=slot.slot,
        release=slot.serving,
        digest=slot.digest,
        candidate=slot.candidate,
        confirmed=slot.confirmed,
        desired=desired.name if desired is not None else "",
        step=slot.step,
        reason=slot.reason,
        progress=slot.fetched / slot.fetch_size if slot.fetch_size else 0.0,
    )
