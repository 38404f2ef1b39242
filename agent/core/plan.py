"""Decide the next step for one slot.

The rule: walk the ladder of facts about the goal (stored, verified; loaded, proven, serving, confirmed) and
return the step that makes the first missing one true. Nothing here reads a clock, a file or a socket; asking
twice with the same arguments gives the same answer. A crash, a reboot, a rollback and a change of mind are the
same function called on different facts.

1. The goal is the desired release; where that is rejected, the last good one; else what is loaded and sound.
2. While nothing sound serves, the last good release comes first: it needs no network and no trial.
3. Each candidate of the goal is tried once; the fastest that passed serves, and of those as fast as measuring can tell
   the first in the config's order. Building an engine takes minutes: such candidates wait until another one serves.
4. At most three seats: serving, fall-back, trial. Under `resource` there is one; what serves well leaves for a release
   that was never tried only where its way back, too, fits into `hold_s`.
5. The fall-back through a soak is the last good seat, never an unconfirmed one while a last good one is loaded.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from agent.core.candidate import Candidate
from agent.core.messages import BUILD_S, Place
from agent.core.release import Ref

TIE = 0.03  # of the speed: two trials of one candidate in a minute differ by more


class Swap(StrEnum):
    """How a slot changes its seat."""

    AVAILABILITY = "availability"  # the new seat is loaded beside the old one
    RESOURCE = "resource"  # the old seat leaves first: for devices without room for two


@dataclass(frozen=True, slots=True)
class Desired:
    """What one slot should run."""

    release: Ref | None
    swap: Swap = Swap.AVAILABILITY
    soak_s: float = 600.0
    keep: frozenset[Ref] = frozenset()  # never deleted: pinned, and the way back of an operator's rollback
    hold_s: float = math.inf  # how long requests may wait where nothing serves


@dataclass(frozen=True, slots=True)
class Observed:
    """The facts about one slot."""

    copies: Mapping[Ref, tuple[Candidate, ...]] = field(default_factory=dict)  # stored; candidates of verified ones
    seats: Mapping[Place, bool] = field(default_factory=dict)  # loaded seats: proven or not yet
    serving: Place | None = None
    serving_since: float = 0.0
    fallback: Place | None = None
    last_good: Place | None = None
    passed: Mapping[Place, float] = field(default_factory=dict)  # valid evidence: measured FPS
    failed: frozenset[Place] = frozenset()
    rejected: frozenset[Ref] = frozenset()
    change_s: float = 0.0  # about how long nothing serves while one seat is changed, and changed back
    not_before: Mapping[Ref, float] = field(default_factory=dict)  # Later: monotonic seconds


@dataclass(frozen=True, slots=True)
class OfRelease:
    """A step with the files of a release, or on the record of it."""

    release: Ref


@dataclass(frozen=True, slots=True)
class OfPlace:
    """A step with a seat."""

    place: Place


class Fetch(OfRelease):
    """Download the sealed release."""


class Verify(OfRelease):
    """Open the sealed release once and check all of it."""


class Load(OfPlace):
    """Start a seat."""


class Trial(OfPlace):
    """Prove and benchmark a seat whose candidate has no evidence."""


class Prove(OfPlace):
    """Golden samples alone, for a seat whose candidate has evidence."""


@dataclass(frozen=True, slots=True)
class Promote(OfPlace):
    """Make a proven seat the serving one."""

    fallback: Place | None


class Confirm(OfPlace):
    """The soak is over: record the serving seat as last good."""


class Unload(OfPlace):
    """End a seat."""


@dataclass(frozen=True, slots=True)
class Refuse(OfPlace):
    """Record that to try a release under `resource` could leave requests waiting for longer than they may."""

    dark_s: float


class Delete(OfRelease):
    """Remove a release's files."""


class Reject(OfRelease):
    """Record that no candidate of a release is left; the reasons are those of its candidates."""


@dataclass(frozen=True, slots=True)
class Wait:
    """Nothing to do before a time (monotonic seconds)."""

    until: float


Step = Fetch | Verify | Load | Trial | Prove | Promote | Confirm | Unload | Refuse | Delete | Reject


def next_step(desired: Desired, seen: Observed, now: float) -> Step | Wait | None:  # noqa: PLR0911  a ladder has rungs
    """The one step to take now, or None when the slot is as it should be."""
    hopeless = next((ref for ref in sorted(seen.copies) if is_hopeless(ref, desired, seen)), None)
    if hopeless is not None:
        return Reject(hopeless)
    goal = goal_of(desired, seen, now)
    stray = next(strays(desired, seen, goal), None)
    if stray is not None or goal is None:
        return stray
    if now < (until := seen.not_before.get(goal, now)):
        return Wait(until)
    if goal not in seen.copies:
        return Fetch(goal)
    if not seen.copies[goal]:
        return Verify(goal)
    place = place_of(goal, desired, seen)
    if place not in seen.seats:
        way = next(in_the_way(desired, seen, place), Load(place))
        dark_s = BUILD_S if place.candidate.builds else seen.change_s
        is_swap = isinstance(way, Unload) and way.place == seen.serving and not may_leave(way.place, place, seen)
        return Refuse(place, dark_s) if is_swap and dark_s > desired.hold_s else way
    if place not in seen.passed:
        return Trial(place)
    if not seen.seats[place]:
        return Prove(place)
    if seen.serving != place:
        return Promote(place, fallback_for(place, seen))
    return settle(desired, seen, place, now)


def settle(desired: Desired, seen: Observed, place: Place, now: float) -> Step | Wait | None:
    """What is left to do once the right seat serves."""
    spare = next((Unload(seat) for seat in sorted(seen.seats) if seat not in {place, warm(seen)}), None)
    if spare is not None:
        return spare
    if seen.last_good != place:
        soaked_at = seen.serving_since + desired.soak_s
        return Wait(soaked_at) if now < soaked_at else Confirm(place)
    return None


def goal_of(desired: Desired, seen: Observed, now: float) -> Ref | None:
    """The release to work towards now."""
    good = seen.last_good.ref if seen.last_good is not None else None
    if desired.release is None:
        return None
    loaded = (place.ref for place in (seen.serving, seen.fallback) if place is not None and is_sound(place, seen))
    choices = (desired.release, good, *loaded)
    goal = next((ref for ref in choices if ref is not None and ref not in seen.rejected), None)
    if good is None or goal == good or is_sound(seen.serving, seen) or good in seen.rejected:
        return goal
    may_try_first = desired.swap is Swap.RESOURCE and goal is not None and is_ready(goal, seen, now)
    return goal if may_try_first else good


def is_hopeless(ref: Ref, desired: Desired, seen: Observed) -> bool:
    """Whether every candidate of a verified release is out, which nobody wrote down yet."""
    return ref not in seen.rejected and bool(seen.copies[ref]) and not open_places(ref, desired, seen)


def is_sound(place: Place | None, seen: Observed) -> bool:
    """Whether a seat is there and nothing speaks against it."""
    return place is not None and place not in seen.failed and place.ref not in seen.rejected


def is_ready(ref: Ref, seen: Observed, now: float) -> bool:
    """Whether the release could be loaded now."""
    return bool(seen.copies.get(ref)) and now >= seen.not_before.get(ref, now)


def open_places(ref: Ref, desired: Desired, seen: Observed) -> tuple[Place, ...]:
    """The places of a release that passed or were not tried; under `resource` one failure ends the trying."""
    places = tuple(Place(ref=ref, candidate=one) for one in seen.copies[ref])
    alive = tuple(place for place in places if place not in seen.failed)
    if desired.swap is Swap.RESOURCE and len(alive) < len(places):
        return tuple(place for place in alive if place in seen.passed)
    return alive


def place_of(goal: Ref, desired: Desired, seen: Observed) -> Place:
    """The candidate of the goal to work on now: one to try, or the fastest that passed."""
    places = open_places(goal, desired, seen)
    untried = [place for place in places if place not in seen.passed]
    passed = [place for place in places if place in seen.passed]
    fastest = max((seen.passed[place] for place in passed), default=0.0)
    best = next((place for place in passed if seen.passed[place] >= (1 - TIE) * fastest), None)
    if best is not None and (desired.swap is Swap.RESOURCE or not is_sound(seen.serving, seen)):
        return best
    serves_goal = seen.serving is not None and seen.serving.ref == goal
    quick = [place for place in untried if serves_goal or not place.candidate.builds]
    if quick:
        return quick[0]
    return best if best is not None else untried[0]


def in_the_way(desired: Desired, seen: Observed, place: Place) -> Iterator[Step]:
    """Seats that must go before `place` may be loaded."""
    stays = {seen.serving, warm(seen)} if desired.swap is Swap.AVAILABILITY else set()
    return (Unload(seat) for seat in sorted(seen.seats) if seat not in stays and seat != place)


def may_leave(serving: Place, place: Place, seen: Observed) -> bool:
    """Whether what serves gives way to another place however long that takes: one that is known, or itself unsound."""
    return place in seen.passed or serving.ref == place.ref or not is_sound(serving, seen)


def warm(seen: Observed) -> Place | None:
    """The seat to fall back to, while it is of use."""
    return seen.fallback if seen.last_good != seen.serving and is_sound(seen.fallback, seen) else None


def fallback_for(place: Place, seen: Observed) -> Place | None:
    """What to fall back to when `place` serves."""
    choices = (seen.last_good, seen.serving)
    return next((one for one in choices if one in seen.seats and one != place and is_sound(one, seen)), None)


def strays(desired: Desired, seen: Observed, goal: Ref | None) -> Iterator[Step]:
    """Seats, then files, of releases that serve no purpose any more; their room is needed for the goal."""
    used = {goal, desired.release} - seen.rejected if goal is not None else set()
    if goal is not None:
        used |= {place.ref for place in (seen.last_good, seen.serving, seen.fallback) if place is not None}
    yield from (Unload(place) for place in sorted(seen.seats) if place.ref not in used)
    yield from (Delete(ref) for ref in sorted(seen.copies) if ref not in used | desired.keep)
