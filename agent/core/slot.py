"""What a device remembers of one slot, and how intent moves it.

1. A deployment is the standing intent; a pin or a rollback overrides it.
2. A new deployment ends a rollback (the operator has spoken again) but not a pin, which only a pin lifts.
3. Rolling back is a new intent that names an older release: one that was confirmed here.
4. What was rolled away from is not a way back.
5. What was withdrawn is no way back either, and no pin holds it.
"""

from collections.abc import Collection, Iterable
from typing import Literal

from msgspec.structs import replace

from agent.core.documents import Document
from agent.core.errors import InputError
from agent.core.messages import Place
from agent.core.release import Ref

GOOD_KEPT = 2  # the last good release and the way back from it; each costs its size on disk


class SlotRecord(Document):
    """One slot's intent and its confirmed places, newest first."""

    slot: str
    deployed: Ref | None = None
    soak_s: float = 600.0
    override: Ref | None = None
    override_verb: Literal["", "pin", "rollback", "local"] = ""
    override_by: str = ""  # the command's id
    good: tuple[Place, ...] = ()

    @property
    def desired(self) -> Ref | None:
        """The release the slot should run."""
        return self.override or self.deployed

    @property
    def last_good(self) -> Place | None:
        """What was confirmed last."""
        return self.good[0] if self.good else None


def slots_of(slot: str | None, known: Iterable[str]) -> list[str]:
    """The slot that somebody names, or all of them, sorted; raises InputError where there is none of that name."""
    names = sorted(known)
    if slot is not None and slot not in names:
        raise InputError(f"no slot {slot!r}; this device has {', '.join(names) or 'none yet'}")
    return names if slot is None else [slot]


def deploy(record: SlotRecord, release: Ref | None, soak_s: float) -> SlotRecord:
    """The record after a new deployment."""
    record = replace(record, deployed=release, soak_s=soak_s)
    return record if record.override_verb == "pin" else lift(record)


def pin(record: SlotRecord, release: Ref | None, by: str) -> SlotRecord:
    """The record after a pin; None lifts it."""
    if release is None:
        return lift(record)
    return replace(record, override=release, override_verb="pin", override_by=by)


def lift(record: SlotRecord) -> SlotRecord:
    """The record without an override."""
    return replace(record, override=None, override_verb="", override_by="")


def without(record: SlotRecord, gone: Collection[Ref]) -> SlotRecord:
    """The record after releases were withdrawn; what is deployed stays written down, and is not chosen."""
    record = lift(record) if record.override in gone else record
    return replace(record, good=tuple(place for place in record.good if place.ref not in gone))


def roll_back(record: SlotRecord, by: str, rejected: Collection[Ref]) -> SlotRecord:
    """The record after an operator's rollback: to the newest confirmed release before the one that was meant to run.

    Where that one was rejected the device went back by itself: the operator means the one before what runs now.

    Raises:
        InputError: no such release was confirmed on this device.
    """
    left = {record.desired}
    if record.desired in rejected and record.last_good is not None:
        left.add(record.last_good.ref)
    older = next((place.ref for place in record.good if place.ref not in left), None)
    if older is None:
        raise InputError(
            f"slot {record.slot}: there is nothing to roll back to, since no release other than "
            f"{' and '.join(sorted(str(ref) for ref in left))} was confirmed on this device; "
            "deploy or pin the release you want"
        )
    return replace(record, override=older, override_verb="rollback", override_by=by)


def confirm(record: SlotRecord, place: Place) -> SlotRecord:
    """The record after a soak that ended well."""
    refs = [one.ref for one in record.good]
    others = [one for one in record.good if one.ref != place.ref]
    if record.override_verb == "rollback" and place.ref == record.override and place.ref in refs:
        others = others[refs.index(place.ref) :]
    return replace(record, good=(place, *others)[:GOOD_KEPT])
