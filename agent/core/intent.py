"""What operators and the controller want: deployments and commands, as values.

A deployment is two signed documents. The **rollout**, by operators, says which release each slot of a group
moves to, in which shares, until when. The **wave**, by the controller, names the rollout by digest and says how far
it goes now. The rollout holds every slot of the group: the newest one alone says all. A command is for one
device or group, once, and expires within minutes. Nothing here names bytes to run: only releases that TUF lists.
The policy says whose signature counts for what; a withdrawal takes a release back for ever.

The counter of a scope only rises. A device takes a pair only if (rollout.counter, wave.counter) is greater than
the last pair it took.
"""

import hashlib
from collections.abc import Collection, Mapping
from datetime import datetime
from enum import StrEnum
from types import MappingProxyType
from typing import Annotated, Any, Literal

from msgspec import Meta, field

from agent.core.documents import END, Document
from agent.core.release import Ref, Share

SlotName = Annotated[str, Meta(pattern=r"^[a-z0-9][a-z0-9_-]{0,63}" + END)]  # a level of a topic, a model's name
Counter = Annotated[int, Meta(ge=1, le=2**53)]
Moment = Annotated[datetime, Meta(tz=True)]  # a time without its zone cannot be compared

ROLLOUT_TYPE = "application/vnd.edge-model-agent.rollout+json"
WAVE_TYPE = "application/vnd.edge-model-agent.wave+json"
COMMAND_TYPE = "application/vnd.edge-model-agent.command+json"
GRANT_TYPE = "application/vnd.edge-model-agent.grant+json"
WITHDRAWN_TYPE = "application/vnd.edge-model-agent.withdrawn+json"

Pattern = Annotated[str, Meta(min_length=1, max_length=64)]  # of words: `*`, `?` and `[...]` as a shell has them


class Move(Document):
    """One slot's release before and after the rollout."""

    goal: Ref
    start: Ref | None = None


class Rollout(Document):
    """Signed by operators."""

    group: str
    counter: Counter
    issued: Moment
    slots: Mapping[SlotName, Move]
    shares: tuple[Share, ...] = (1.0,)
    expires: Moment | None = None  # stops widening then; what stands, stands
    salt: str = ""
    soak_s: Annotated[float, Meta(ge=0)] = 600.0


class WaveAction(StrEnum):
    """What the wave does."""

    RUN = "run"
    PAUSE = "pause"
    HALT = "halt"
    REVERT = "revert"


class Wave(Document):
    """Signed by the controller."""

    group: str
    counter: Counter
    issued: Moment
    rollout: str  # SHA-256 of the rollout's payload
    share: Share
    action: WaveAction = WaveAction.RUN


class Verb(StrEnum):
    """What a command can ask for."""

    SYNC = "sync"
    PIN = "pin"
    ROLLBACK = "rollback"
    RETRY = "retry"
    BENCH = "bench"
    REPORT = "report"


class Command(Document):
    """Signed by an operator; for one device or one group."""

    id: Annotated[str, Meta(min_length=8, max_length=64, pattern=r"^[A-Za-z0-9-]+" + END)]
    scope: Annotated[str, Meta(pattern=r"^(device|group):[A-Za-z0-9._-]{1,64}" + END)]
    counter: Counter
    issued: Moment
    expires: Moment
    verb: Verb
    slot: str | None = None  # None: every slot
    release: str | None = None  # pin: the name; None lifts the pin


class Operator(Document):
    """One operators' key, and what it may sign."""

    key: Annotated[str, Meta(min_length=1)]  # its TUF id
    name: Annotated[str, Meta(min_length=1, max_length=64)]
    verbs: tuple[Pattern, ...]  # `rollout`, and those of commands
    groups: tuple[Pattern, ...]
    expires: Moment | None = None


class Quorum(Document):
    """How many operators must sign an act."""

    count: Annotated[int, Meta(ge=1)]
    verbs: tuple[Pattern, ...] = ("*",)
    groups: tuple[Pattern, ...] = ("*",)


class Policy(Document):
    """Who may do what: the TUF target that the owners of `targets` list."""

    operators: tuple[Operator, ...]
    signatures: tuple[Quorum, ...] = ()


class Withdrawal(Document):
    """One release that is never chosen again."""

    release: Ref
    reason: Annotated[str, Meta(min_length=1, max_length=200)]
    at: Moment


class Withdrawn(Document):
    """Signed by operators-critical; every release that was ever withdrawn."""

    counter: Counter
    releases: tuple[Withdrawal, ...]


class Reply(Document):
    """The answer to a command; `done`, `failed`, `rejected` and `expired` are last words."""

    id: str
    status: Literal["accepted", "progress", "done", "failed", "rejected", "expired"]
    reason: str = ""
    result: Mapping[str, Any] = field(default_factory=dict)


def in_wave(device: str, salt: str, share: float) -> bool:
    """Whether a device is among the first `share` (0 to 1) of a group.

    The same for ever for one salt, and a wider share holds all devices of a narrower one.
    """
    point = int.from_bytes(hashlib.sha256(f"{salt}\0{device}".encode()).digest()[:8], "big") / 2**64
    return point < share


def wanted(
    rollout: Rollout,
    wave: Wave,
    device: str,
    standing: Mapping[str, Ref | None] = MappingProxyType({}),
    confirmed: Collection[Ref] = (),
) -> Mapping[str, Ref | None]:
    """The release each slot of this device should run under a pair that was believed.

    Run moves the devices that the wave reaches. Pause leaves every device as it is. Halt takes back a goal that is not
    confirmed yet; revert takes back any. What has no start stays as it stands: dark is no way back.

    Args:
        rollout: which slot moves from where to where.
        wave: how far.
        device: its name, which decides whether the wave reaches it.
        standing: what each slot was to run before.
        confirmed: the releases that were confirmed here.
    """
    reached = in_wave(device, rollout.salt, wave.share)

    def meant(slot: str, move: Move) -> Ref | None:
        before = standing.get(slot)
        match wave.action:
            case WaveAction.RUN if reached:
                return move.goal
            case WaveAction.HALT if reached and move.goal in confirmed:
                return move.goal
            case WaveAction.PAUSE:
                return before or move.start
        return move.start or before

    return {slot: meant(slot, move) for slot, move in rollout.slots.items()}
