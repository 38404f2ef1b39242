"""What the agent and the runner, the runner and its seats, and the runner and our client say to each other.

One message is one packet of JSON on a SOCK_SEQPACKET unix socket, tagged by its `type`; descriptors travel
beside it. The agent asks, the runner answers each `Ask` with one `Answer` of the same id, and tells every
change of facts by an unasked `Facts`. A runner accepts the protocol version of its own and of the release
before it. Times are seconds on CLOCK_MONOTONIC, which all processes of a machine share.
"""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, field

from agent.core.candidate import Candidate, Evidence, Failure, Found, Latency
from agent.core.documents import Document, OpenDocument
from agent.core.errors import InputError
from agent.core.release import Config, Ref

Count = Annotated[int, Meta(ge=0, le=2**40)]
LOAD_S = 120.0  # from a slow disk, beside those that serve
BUILD_S = 1800.0  # an engine of a large model, on the smallest Jetson, beside those that serve
Seconds = Annotated[float, Meta(ge=0, le=1e9)]  # JSON knows no infinity

PROTOCOL = 1
BODY_BYTES = 128 * 1024**2  # of a request's inputs: eight 1280 x 1280 float frames are 157 MB as text, 126 MB as bytes
MESSAGE_BYTES = 128 * 1024  # one packet; evidence of one candidate is about 2 KB, facts of eight slots 20 KB


class Place(Document, order=True):
    """A release on a candidate: what a seat holds."""

    ref: Ref
    candidate: Candidate

    def __str__(self) -> str:
        return f"{self.ref} on {self.candidate}"


WEIGHTS, METADATA, CONFIG, GOLDEN = PARTS = ("model.onnx", "metadata.json", "config.yaml", "golden.npz")


def parts_of(config: Config) -> tuple[str, ...]:
    """The files of a release: all of PARTS, and its weights in other precisions."""
    return (*PARTS, *(weights_in(precision, config) for precision in config.variants))


def weights_in(precision: str, config: Config) -> str:
    """The file of the weights that a candidate of this precision loads."""
    return f"model.{precision}.onnx" if precision in config.variants else WEIGHTS


_DASHES = str.maketrans("/:", "--")  # a part's name has neither


def engine_of(candidate: Candidate) -> str:
    """The name of what a candidate's backend built of a release for this device, as a part."""
    return f"engine.{str(candidate).translate(_DASHES)}"


class Part(Document):
    """One file of a release as it is handed over."""

    name: str
    size: int
    sha256: str


# --- the agent asks the runner ---------------------------------------------------------------------------------


class Hello(Document, tag=True):
    """First message on a connection. Answer: Welcome."""

    protocol: int = PROTOCOL


class Offer(Document, tag=True):
    """Asks for one empty memory file per part. Answer: Done, with that many descriptors, in order.

    An engine is offered alone, when its release is held; the next Load of its candidate takes it, or builds anew.
    """

    ref: Ref
    parts: tuple[Part, ...]


class Seal(Document, tag=True):
    """The parts of a release are written: seal them, check digests, parse. Answer: Done or Refused.

    Done may come before the weights' digest is known: where that is wrong, the release is forgotten, and Load refused.
    """

    ref: Ref


class OfSeat(Document):
    """An order about one seat of a slot."""

    slot: str
    place: Place


class Load(OfSeat, tag=True):
    """Start a seat and load a release that was sealed before. Answer: Loaded or Refused."""

    deadline_s: float = LOAD_S

    @classmethod
    def of(cls, slot: str, place: Place) -> "Load":
        """The order, with the time that it takes."""
        return cls(slot=slot, place=place, deadline_s=BUILD_S if place.candidate.builds else LOAD_S)


class Trial(OfSeat, tag=True):
    """Full trial of a loaded seat: tensors, golden samples, warm-up, benchmark. Answer: Tried or Refused.

    Whichever of Trial and Prove a seat passes first brings the engine that it built, if any, as a descriptor.
    """

    key: str  # the evidence key, kept in the evidence
    runs: int = 50
    deadline_s: float = 300.0


class Prove(OfSeat, tag=True):
    """Golden samples alone, for a candidate whose evidence is still good. Answer: Done or Refused.

    On the serving seat it is a probe, and counted as one.
    """

    deadline_s: float = 60.0


class Promote(OfSeat, tag=True):
    """The standing order of a slot: what serves from now on, and what to fall back to. Answer: Done or Refused.

    A fall-back that is not loaded any more is an order to keep nothing but `place`.
    """

    fallback: Place | None = None
    hold_s: float = 10.0  # how long requests may wait for a seat before they get 503


class Unload(OfSeat, tag=True):
    """Let a seat finish its requests and end it. Answer: Done."""


class Look(Document, tag=True):
    """Answer: Facts, with fresh counters."""


class Stop(Document, tag=True):
    """Finish what is in flight and exit. Answer: Done."""


SlotOrder = Load | Trial | Prove | Promote | Unload
Order = Hello | Offer | Seal | SlotOrder | Look | Stop


# --- the runner answers ----------------------------------------------------------------------------------------


class Welcome(Document, tag=True):
    """The runner's protocol and process, and what its probes found."""

    protocol: int
    pid: int
    found: tuple[Found, ...]


class Done(Document, tag=True):
    """It is so now."""


class Refused(Document, tag=True):
    """It could not be done, and why."""

    failure: Failure


class Loaded(Document, tag=True):
    """The seat is up."""

    pid: int
    load_s: float


class Beside(Document):
    """How fast a candidate is against the seat that served meanwhile: one golden sample on each, in turns."""

    place: Place  # which served
    ratio: Annotated[float, Meta(gt=0)]  # 2.0: the candidate does twice as many frames

    def __str__(self) -> str:
        return f"{self.ratio:.2f} times as fast as {self.place} in the same seconds"


class Tried(Document, tag=True):
    """What the trial measured."""

    evidence: Evidence
    beside: Beside | None = None  # where nothing served, or it did not to the end


class Counters(Document):
    """Of the serving seat, since it was promoted. Probes of our own are not in it."""

    requests: int = 0
    errors: int = 0  # by fault of the seat; also where the fall-back answered in its place
    not_finite: int = 0  # answers that held NaN or Inf
    busy_s: float = 0.0  # seconds the seat spent inside run(): capacity = requests / busy_s
    probes: int = 0
    probe_failures: int = 0
    offered_fps: float = 0.0  # over the last seconds
    latency_ms: Latency | None = None  # of the newest requests, as the client at the door saw them
    run_ms: Latency | None = None  # of the same, inside the seat


class SeatFacts(Document):
    """One seat."""

    place: Place
    state: str  # loading, loaded, proven, serving, warm, draining
    pid: int
    rss_mb: float = 0.0


class Incident(Document):
    """Something that the runner answered by itself: a crash, a hang, NaN; and what it did."""

    number: int  # rises by one for each incident of this runner
    at: float  # monotonic seconds
    place: Place
    failure: Failure
    action: str  # "fell back to ...", "restarting", "gave up", "no fall-back left", "serves on ..."


class SlotFacts(Document):
    """One slot of the runner."""

    serving: Place | None = None
    serving_since: float = 0.0
    fallback: Place | None = None
    seats: tuple[SeatFacts, ...] = ()
    counters: Counters = Counters()
    incidents: tuple[Incident, ...] = ()  # the newest few, oldest first


class Facts(Document, tag=True):
    """Everything the runner holds."""

    slots: Mapping[str, SlotFacts] = field(default_factory=dict)
    held: tuple[Ref, ...] = ()  # releases whose sealed memory files it keeps
    requests: int = 0  # all slots, since the start of the runner
    refused: int = 0  # 503 because of a swap or of no model
    loop_lag_ms: float = 0.0  # the longest that its event loop was held up

    def slot(self, name: str) -> SlotFacts:
        """One slot; empty where the runner has none of that name."""
        return self.slots.get(name, SlotFacts())


Reply = Welcome | Done | Refused | Loaded | Tried | Facts


class Ask(Document, tag=True):
    """An order with the number under which its answer comes."""

    id: int
    order: Order


class Answer(Document, tag=True):
    """A reply; id 0 is unasked (Facts that changed)."""

    id: int
    reply: Reply


# --- the runner and a seat ------------------------------------------------------------------------------------
# Descriptors: SeatLoad brings one per part, and an engine behind them where there is one; LaneOpen two (request and
# answer arena); SeatBell one; the first Tried or Done of a seat that proves its model the engine that it built.


class SeatLoad(Document, tag=True):
    """Load the model. Answer: Loaded or Refused."""

    place: Place
    parts: tuple[Part, ...]
    config: Config | None = None  # None: from a runner that was there before this version; it lies in its part


class SeatTrial(Document, tag=True):
    """Answer: Tried or Refused."""

    key: str
    runs: int
    rests: float = 0.0  # after each run, so many times its length: for the seats that answer clients meanwhile


class SeatProve(Document, tag=True):
    """Answer: Done or Refused."""


class SeatTurn(Document, tag=True):
    """Run the first golden sample once. Answer: SeatRan without outputs, or Refused."""


class LaneOpen(OpenDocument, tag=True):
    """A pair of shared arenas for one request at a time; without descriptors, the lane's end. No answer."""

    lane: int


class Slice(OpenDocument):
    """A tensor inside an arena."""

    name: str
    shape: tuple[Count, ...]
    dtype: str  # as numpy names it
    offset: Count
    size: Count  # bytes


class SeatRun(Document, tag=True):
    """Run on the tensors in a lane. Answer: SeatRan or Refused."""

    lane: int
    inputs: tuple[Slice, ...]
    outputs: tuple[str, ...] = ()  # empty: all


class SeatRan(OpenDocument, tag=True):
    """The outputs lie in the lane's answer arena."""

    outputs: tuple[Slice, ...]
    busy_s: Seconds
    finite: bool


class SeatBell(Document, tag=True):
    """A socket on which a client rings to have this run again: each ring gets a SeatRan, or its end. No answer."""

    run: SeatRun


class SeatCount(Document, tag=True):
    """Answer: SeatCounted."""


class SeatCounted(Document, tag=True):
    """What the bells were rung for since the last count: when each run began, and its seconds inside."""

    runs: tuple[tuple[Seconds, Seconds], ...]


# --- the runner and a client of ours ----------------------------------------------------------------------------
# A client opens lanes of its own with LaneOpen, whose two memory files it made; a lane carries one request at a time.
# An Inferred may bring a bell as a descriptor: any packet on it asks the seat for the same again. SeatRan answers it.
# A client comes with its application, and may be older or newer than the runner: a field that one of them does not know
# is left alone. A new one therefore has a default, and changes nothing where it is not read.

Blame = Literal["client", "model", "nobody"]


class Infer(OpenDocument, tag=True):
    """Run a slot's model on the tensors in a lane. Answer: Inferred or Denied, for the same lane."""

    slot: str
    lane: int
    inputs: tuple[Slice, ...]  # a single one without a name is the model's only input
    outputs: tuple[str, ...] = ()  # empty: all
    bell: bool = False  # whether the client would take one


class Inferred(OpenDocument, tag=True):
    """The outputs lie in the lane's answer file."""

    lane: int
    release: str
    candidate: str
    outputs: tuple[Slice, ...]
    finite: bool


class Denied(OpenDocument, tag=True):
    """There is no answer, and who must act. Lane -1: what came was no message, and the connection ends."""

    lane: int
    blame: Blame
    reason: str


ToRunner = LaneOpen | Infer
FromRunner = Inferred | Denied

ToSeat = SeatLoad | SeatTrial | SeatProve | SeatTurn | LaneOpen | SeatRun | SeatBell | SeatCount
FromSeat = Loaded | Done | Tried | SeatRan | SeatCounted | Refused


def encode(message: Any) -> bytes:
    """One packet.

    Raises:
        InputError: it is longer than MESSAGE_BYTES.
    """
    packet = msgspec.json.encode(message)
    if len(packet) > MESSAGE_BYTES:
        raise InputError(f"{type(message).__name__}: message of {len(packet)} bytes; at most {MESSAGE_BYTES}")
    return packet
