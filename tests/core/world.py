"""A small world in which every reachable state of the planner is visited.

Three releases with two candidates each (the second is faster, and builds an engine). A move is a step that
succeeds or fails, a crash of a seat or of the runner, a gate missed in the soak, or a change of wish; in a world of
two releases also a retry and an upgrade that voids what was measured, or a withdrawal. A wish changes at any time:
every world is visited under every wish. States that differ only in the names of the
releases are one state: which release comes first by name decides only what is cleared away first, and there each may
be the first. The promises are stated here again on purpose: the checker must not
borrow the planner's own idea of the goal.
"""

from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain, product
from types import ModuleType
from typing import NamedTuple


class Candidate:
    """As the planner knows it. Compared by identity: a million states are compared a billion times."""

    def __init__(self, name: str, speed: float, *, builds: bool) -> None:
        self.name, self.speed, self.builds = name, speed, builds

    def __repr__(self) -> str:
        return self.name


class Name(str):
    """The name of a release; the checker chooses which is the first."""

    __slots__ = ()
    first = "a"

    def __lt__(self, other: str) -> bool:
        return (self != Name.first, str(self)) < (other != Name.first, str(other))


class Spot:
    """A place, made once."""

    def __init__(self, ref: str, candidate: Candidate, number: int) -> None:
        self.ref, self.candidate, self.number = ref, candidate, number

    def __lt__(self, other: "Spot") -> bool:
        return self.number < other.number if self.ref == other.ref else self.ref < other.ref

    def __repr__(self) -> str:
        return f"{self.ref} on {self.candidate}"


Ref = str
REFS = (Name("a"), Name("b"), Name("c"))
CANDIDATES = (Candidate("quick", 10.0, builds=False), Candidate("engine", 20.0, builds=True))
SPOTS = {(ref, one): Spot(ref, one, number) for number, (ref, one) in enumerate(product(REFS, CANDIDATES))}
PLACES = {ref: tuple(SPOTS[ref, one] for one in CANDIDATES) for ref in REFS}


def place_at(ref: str, candidate: Candidate) -> Spot:
    """What the planner calls Place."""
    return SPOTS[ref, candidate]


SOAK_S = 1.0
SEATS = {"availability": 3, "resource": 1}


class World(NamedTuple):
    """What the planner observes, in a form that is copied quickly; fields and defaults are those of `plan.Observed`."""

    copies: Mapping[Ref, tuple[Candidate, ...]] = {}
    seats: Mapping[Spot, bool] = {}
    serving: Spot | None = None
    serving_since: float = 0.0
    fallback: Spot | None = None
    last_good: Spot | None = None
    passed: Mapping[Spot, float] = {}
    failed: frozenset[Spot] = frozenset()
    rejected: frozenset[Ref] = frozenset()
    not_before: Mapping[Ref, float] = {}
    change_s: float = 0.0


class Broken(AssertionError):  # noqa: N818  what it says
    """A promise of the planner does not hold."""


@dataclass
class Census:
    """How much of the world was seen: a state is a world under a wish."""

    states: int = 0
    moves: int = 0


def explore(
    plan: ModuleType, swap: object, refs: tuple[Ref, ...] = REFS, limit: int | None = None, more: Iterable[str] = ()
) -> Census:
    """Visit every state reachable under one swap policy and check every promise in each.

    `more`: what happens beside steps, failures, crashes and wishes: `retry`, `upgrade`, `withdrawal`.

    Raises:
        Broken: a promise does not hold; says which and where.
    """
    Name.first = REFS[0]
    census, ends = Census(), {}
    seen, todo = {nameless(code(World()))}, deque([numbered(World())])
    while todo and (limit is None or census.states < limit):
        world, number = todo.popleft()
        came = {None: [*map(numbered, events(world, refs, more))]}  # by step; None: by itself
        for wish in wishes(number, refs):
            census.states += 1
            taken = [*steps(plan, swap, wish, world)]
            for step in taken:
                if step not in came:
                    came[step] = [*map(numbered, (succeed(plan, world, step), *fail(plan, world, step)))]
                check_step(plan, swap, wish, world, step, came[step][0][0])
            onward = came[taken[0]][0] if taken else (world, number)
            end = ends[number + WISHED[wish]] = rest_of(plan, swap, wish, *onward, ends)
            check_rest(plan, swap, wish, world, end)
        for after, number in chain(*came.values()):
            census.moves += 1
            promise(len(after.seats) <= SEATS[swap], "at most three seats, one under resource", world, after)
            if (mark := nameless(number)) not in seen:
                seen.add(mark)
                todo.append((after, number))
    return census


def wishes(number: int, refs: tuple[Ref, ...]) -> Iterator[Ref | None]:
    """What may be wished for: nothing, or a release; one of those that differ only by name."""
    alike = {number >> SHIFT[ref] & LINE: ref for ref in reversed(refs)}
    yield from (None, *alike.values())


def steps(plan: ModuleType, swap: object, wish: Ref | None, world: World) -> Iterator[object]:
    """What the planner does next; what is cleared away goes in the order of names, so each is the first once."""
    desired = plan.Desired(wish, swap, SOAK_S)
    step = plan.next_step(desired, world, 0.0)
    if step is not None:
        yield step
    if isinstance(step, plan.Unload | plan.Delete | plan.Reject):
        ref = step.place.ref if isinstance(step, plan.Unload) else step.release
        later = {one for one in (*world.copies, *(seat.ref for seat in world.seats)) if ref < one}
        for Name.first in sorted(later):
            yield plan.next_step(desired, world, 0.0)
        Name.first = REFS[0]


def events(world: World, refs: tuple[Ref, ...], more: Iterable[str]) -> Iterator[World]:
    """The worlds after all that happens by itself."""
    yield from crashes(world)
    if world.seats or world.serving:
        yield world._replace(seats={}, serving=None, fallback=None)  # the runner starts again
    if "withdrawal" in more:
        yield from (withdraw(world, ref) for ref in refs if ref not in world.rejected)
    if "retry" in more and (world.failed or world.rejected):
        yield world._replace(failed=frozenset(), rejected=frozenset())
    if "upgrade" in more and world.passed:  # a new driver: what was measured is void, and no seat has lived through it
        yield world._replace(seats={}, serving=None, fallback=None, passed={})


def succeed(plan: ModuleType, world: World, step: object) -> World:  # noqa: C901, PLR0911  one case per step
    """The world after a step that did what it says."""
    copies, seats = dict(world.copies), dict(world.seats)
    match step:
        case plan.Wait():
            return world._replace(serving_since=-SOAK_S, not_before={})
        case plan.Fetch(ref):
            copies[ref] = ()
        case plan.Verify(ref):
            copies[ref] = CANDIDATES
        case plan.Delete(ref):
            return forget(world, ref)
        case plan.Reject(ref):
            return reject(world, ref)
        case plan.Load(place):
            seats[place] = False
        case plan.Prove(place):
            seats[place] = True
        case plan.Trial(place):
            seats[place] = True
            return world._replace(seats=seats, passed={**world.passed, place: place.candidate.speed})
        case plan.Promote(place, fallback):
            return world._replace(serving=place, fallback=fallback, serving_since=0.0)
        case plan.Confirm(place):
            return world._replace(last_good=place)
        case plan.Unload(place):
            return without(world, place)
    return world._replace(copies=copies, seats=seats)


def fail(plan: ModuleType, world: World, step: object) -> Iterator[World]:
    """The worlds after a step that did not."""
    match step:
        case plan.Fetch(ref):
            yield world._replace(not_before={ref: 1.0})
            yield reject(world, ref)
        case plan.Verify(ref):
            yield reject(world, ref)
        case plan.Load(place) | plan.Trial(place) | plan.Prove(place):
            yield condemn(world, place)


def reject(world: World, ref: Ref) -> World:
    return forget(world, ref)._replace(rejected=world.rejected | {ref})


def withdraw(world: World, ref: Ref) -> World:
    """Seats and files are as they were; the release is out, and is no last good one any more (core/slot.py)."""
    good = world.last_good
    return world._replace(
        rejected=world.rejected | {ref},
        last_good=None if good is not None and good.ref == ref else good,
    )


def forget(world: World, ref: Ref) -> World:
    """The files are gone, and with them what was measured."""
    return world._replace(
        copies={one: copy for one, copy in world.copies.items() if one != ref},
        passed={place: fps for place, fps in world.passed.items() if place.ref != ref},
        failed=frozenset(place for place in world.failed if place.ref != ref),
    )


def condemn(world: World, place: Spot) -> World:
    """The seat is gone and its candidate is out; if it served, the runner has fallen back by itself."""
    passed = {one: fps for one, fps in world.passed.items() if one != place}
    return without(world, place)._replace(failed=world.failed | {place}, passed=passed)


def without(world: World, place: Spot) -> World:
    seats = {one: proven for one, proven in world.seats.items() if one != place}
    fallback = world.fallback if world.fallback != place else None
    if world.serving != place:
        return world._replace(seats=seats, fallback=fallback)
    return world._replace(seats=seats, serving=fallback, fallback=None)


def crashes(world: World) -> Iterator[World]:
    if world.serving is not None and world.serving != world.last_good:  # a gate was missed during the soak
        passed = {one: fps for one, fps in world.passed.items() if one != world.serving}
        yield world._replace(failed=world.failed | {world.serving}, passed=passed)
    for place in world.seats:
        yield condemn(world, place) if place == world.serving else without(world, place)


def check_step(plan: ModuleType, swap: object, wish: Ref | None, world: World, step: object, after: World) -> None:
    """The promises that hold at every single step; `after` it succeeded."""
    if isinstance(step, plan.Promote):
        ref = step.place.ref
        ready = world.copies[ref] and step.place in world.passed and world.seats.get(step.place)
        promise(ready and ref not in world.rejected, "only what was verified and passed serves", wish, world, step)
        good = world.last_good
        keep = (
            good in world.seats and good != step.place and good not in world.failed and good.ref not in world.rejected
        )
        promise(not keep or step.fallback == good, "the last good seat stays warm", wish, world, step)
        promise(step.fallback is None or step.fallback in world.seats, "a fall-back is loaded", wish, world, step)
        promise(step.fallback not in world.failed, "a fall-back is sound", wish, world, step)
    worked_on = getattr(step, "place", None)
    if worked_on is not None and not isinstance(step, plan.Unload):
        sound = worked_on not in world.failed and worked_on.ref not in world.rejected
        promise(sound, "nothing rejected is worked on", wish, world, step)
    if isinstance(step, plan.Verify):
        promise(step.release in world.copies, "only what is stored is verified", wish, world, step)
    if isinstance(step, plan.Load):
        promise(world.copies[step.place.ref], "only what is verified is loaded", wish, world, step)
    if isinstance(step, plan.Fetch | plan.Verify):
        promise(step.release not in world.rejected, "nothing rejected is worked on", wish, world, step)
    if isinstance(step, plan.Delete) and wish is not None:
        kept = {place.ref for place in (world.serving, world.last_good) if place is not None}
        promise(step.release not in kept, "what serves and the last good one are never deleted", wish, world, step)
    was_sound = world.serving is not None and sound_place(world, world.serving)
    if swap is plan.Swap.AVAILABILITY and was_sound and wish is not None:
        promise(after.serving is not None, "availability never goes dark in a swap", wish, world, step)
    if world.serving is None and isinstance(step, plan.Fetch) and world.last_good is not None:
        good = world.last_good.ref
        could = good != step.release and may_serve(plan, swap, world, good) and world.copies.get(good)
        promise(not could, "the last good release needs no network", wish, world, step)


def sound_place(world: World, place: Spot) -> bool:
    return place not in world.failed and place.ref not in world.rejected


def may_serve(plan: ModuleType, swap: object, world: World, ref: Ref) -> bool:
    """Whether a release may still come to serve when every later step succeeds."""
    if ref in world.rejected:
        return False
    if not world.copies.get(ref):
        return True
    out = [place for place in PLACES[ref] if place in world.failed]
    if swap is plan.Swap.RESOURCE and out:
        return any(place in world.passed for place in PLACES[ref] if place not in out)
    return len(out) < len(PLACES[ref])


def rest_of(
    plan: ModuleType, swap: object, wish: Ref | None, world: World, number: int, ends: dict[int, World]
) -> World:
    """Where the slot comes to rest when every step from here succeeds; `ends`: what is known of it by state."""
    desired, way = plan.Desired(wish, swap, SOAK_S), []
    while (state := number + WISHED[wish]) not in ends:
        promise(state not in way, "it comes to rest", wish, world)
        way.append(state)
        step = plan.next_step(desired, world, 0.0)
        if step is None:
            ends[state] = world
        else:
            world, number = numbered(succeed(plan, world, step))
    ends.update(dict.fromkeys(way, ends[state]))
    return ends[state]


def check_rest(plan: ModuleType, swap: object, wish: Ref | None, world: World, end: World) -> None:
    """The slot comes to rest on the right release with nothing left over."""
    good = world.last_good.ref if world.last_good else None
    loaded = [place.ref for place in (world.serving, world.fallback) if place and sound_place(world, place)]
    choices = (wish, good, *loaded) if wish is not None else ()
    # A release whose files were removed may turn out to have no candidate left only when it is verified again.
    want = next((ref for ref in choices if ref and may_serve(plan, swap, end, ref)), None)
    serving = end.serving.ref if end.serving else None
    promise(serving == want, "it rests on the right release", wish, world, end)
    promise(set(end.seats) == ({end.serving} if want else set()), "no seat is left over", wish, world, end)
    promise(set(end.copies) == ({want} if want else set()), "no file is left over", wish, world, end)
    if want is not None:
        promise(end.last_good == end.serving, "what serves at rest is confirmed", wish, world, end)
        tried = [place for place in PLACES[want] if place in end.passed and place not in end.failed]
        promise(tried, "what serves at rest has passed", wish, world, end)
        out = [place for place in PLACES[want] if place in end.failed]
        all_tried = swap is plan.Swap.RESOURCE or len(tried) + len(out) == len(PLACES[want])
        promise(all_tried, "every candidate is tried", wish, world, end)
        fastest = max(end.passed[place] for place in tried)
        promise(end.passed[end.serving] == fastest, "the fastest that passed serves", wish, world, end)


def promise(holds: object, what: str, *where: object) -> None:
    if not holds:
        raise Broken(f"{what}: {where}")


# --- states as numbers ---------------------------------------------------------------------------------------------
# A line of bits for each release: what is there of it, and seven bits for each of its places.

PLACE_BITS = 7
LINE_BITS = 6 + PLACE_BITS * len(CANDIDATES)
LINE = (1 << LINE_BITS) - 1
SHIFT = {ref: LINE_BITS * number for number, ref in enumerate(REFS)}
STORED, _, REJECTED, LATER, WISHED, _ = ({ref: 1 << bit + SHIFT[ref] for ref in REFS} for bit in range(6))
LOADED, _, PASSED, FAILED, SERVING, FALLBACK, LAST_GOOD = (
    {spot: 1 << SHIFT[ref] + 6 + PLACE_BITS * number + bit for ref in REFS for number, spot in enumerate(PLACES[ref])}
    for bit in range(PLACE_BITS)
)
WISHED[None] = 0
SOAKED = 1 << LINE_BITS * len(REFS)


def code(world: World) -> int:
    """All that is so, as one number."""
    number = sum(map(REJECTED.__getitem__, world.rejected)) + sum(map(FAILED.__getitem__, world.failed))
    number += sum(map(PASSED.__getitem__, world.passed)) + sum(map(LATER.__getitem__, world.not_before))
    for ref, copy in world.copies.items():
        number += STORED[ref] << bool(copy)
    for spot, proven in world.seats.items():
        number += LOADED[spot] << proven
    for spots, spot in ((SERVING, world.serving), (FALLBACK, world.fallback), (LAST_GOOD, world.last_good)):
        if spot is not None:
            number += spots[spot]
    return number + SOAKED * (world.serving_since != 0.0)


def numbered(world: World) -> tuple[World, int]:
    return world, code(world)


def nameless(number: int) -> tuple[int, ...]:
    """The same for every renaming of the releases."""
    return (*sorted(number >> shift & LINE for shift in SHIFT.values()), number & SOAKED)
