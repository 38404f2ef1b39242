"""A small world in which every reachable state of the planner is visited.

Three releases with two candidates each (the second is faster, and builds an engine). A move is a step that
succeeds or fails, a crash of a seat or of the runner, a gate missed in the soak, or a change of wish; in a world of
two releases also a retry and an upgrade that voids what was measured, or a withdrawal. States that differ only in the names of the
releases are one state. The promises are stated here again on purpose: the checker must not
borrow the planner's own idea of the goal.
"""

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import product
from types import ModuleType
from typing import NamedTuple


class Candidate:
    """As the planner knows it. Compared by identity: a million states are compared a billion times."""

    def __init__(self, name: str, speed: float, *, builds: bool) -> None:
        self.name, self.speed, self.builds = name, speed, builds

    def __repr__(self) -> str:
        return self.name


class Spot:
    """A place, made once."""

    def __init__(self, ref: str, candidate: Candidate, number: int) -> None:
        self.ref, self.candidate, self.number = ref, candidate, number

    def __lt__(self, other: "Spot") -> bool:
        return self.number < other.number

    def __repr__(self) -> str:
        return f"{self.ref} on {self.candidate}"


Ref = str
REFS = ("a", "b", "c")
CANDIDATES = (Candidate("quick", 10.0, builds=False), Candidate("engine", 20.0, builds=True))
SPOTS = {(ref, one): Spot(ref, one, number) for number, (ref, one) in enumerate(product(REFS, CANDIDATES))}
PLACES = {ref: tuple(SPOTS[ref, one] for one in CANDIDATES) for ref in REFS}


def place_at(ref: str, candidate: Candidate) -> Spot:
    """What the planner calls Place."""
    return SPOTS[ref, candidate]


SOAK_S = 1.0
LONGEST_WAY = 60  # steps from any state to rest


class Broken(AssertionError):  # noqa: N818  what it says
    """A promise of the planner does not hold."""


class Move(NamedTuple):
    """One edge: what happened, the step of the planner if it was one, and the state after it."""

    what: str
    step: object
    wish: Ref | None
    world: object


@dataclass
class Census:
    """How much of the world was seen."""

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
    census = Census()
    start = (None, plan.Observed(), "begin")
    seen, todo = {hash(key(*start[:2]))}, deque([start])
    while todo and (limit is None or census.states < limit):
        wish, world, came_by = todo.popleft()
        census.states += 1
        if came_by != "step":  # else it lies on a way to rest that was checked
            check_rest(plan, swap, wish, world)
        for move in moves(plan, swap, wish, world, refs, more):
            census.moves += 1
            check_move(plan, swap, wish, world, move)
            mark = hash(key(move.wish, move.world))
            if mark not in seen:
                seen.add(mark)
                todo.append((move.wish, move.world, move.what))
    return census


def moves(
    plan: ModuleType, swap: object, wish: Ref | None, world: object, refs: tuple[Ref, ...], more: Iterable[str]
) -> Iterator[Move]:
    """Everything that can happen now."""
    step = plan.next_step(plan.Desired(wish, swap, SOAK_S), world, 0.0)
    if step is not None:
        yield Move("step", step, wish, succeed(plan, world, step))
        yield from (Move("failure", step, wish, after) for after in fail(plan, world, step))
    yield from (Move("wish", None, other, world) for other in (None, *refs) if other != wish)
    yield from (Move("crash", None, wish, after) for after in crashes(world))
    if world.seats or world.serving:
        yield Move("restart", None, wish, replace(world, seats={}, serving=None, fallback=None))
    if "withdrawal" in more:
        yield from (Move("withdrawal", None, wish, withdraw(world, ref)) for ref in refs if ref not in world.rejected)
    if "retry" in more and (world.failed or world.rejected):
        yield Move("retry", None, wish, replace(world, failed=frozenset(), rejected=frozenset()))
    if "upgrade" in more and world.passed:  # a new driver: what was measured is void, and no seat has lived through it
        yield Move("upgrade", None, wish, replace(world, seats={}, serving=None, fallback=None, passed={}))


def succeed(plan: ModuleType, world: object, step: object) -> object:  # noqa: C901, PLR0911  one case per step
    """The world after a step that did what it says."""
    copies, seats = dict(world.copies), dict(world.seats)
    match step:
        case plan.Wait():
            return replace(world, serving_since=-SOAK_S, not_before={})
        case plan.Fetch(ref):
            copies[ref] = plan.Copy(stored=True)
        case plan.Verify(ref):
            copies[ref] = plan.Copy(stored=True, verified=True, candidates=CANDIDATES)
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
            return replace(world, seats=seats, passed={**world.passed, place: place.candidate.speed})
        case plan.Promote(place, fallback):
            return replace(world, serving=place, fallback=fallback, serving_since=0.0)
        case plan.Confirm(place):
            return replace(world, last_good=place)
        case plan.Unload(place):
            return without(world, place)
    return replace(world, copies=copies, seats=seats)


def fail(plan: ModuleType, world: object, step: object) -> Iterator[object]:
    """The worlds after a step that did not."""
    match step:
        case plan.Fetch(ref):
            yield replace(world, not_before={ref: 1.0})
            yield reject(world, ref)
        case plan.Verify(ref):
            yield reject(world, ref)
        case plan.Load(place) | plan.Trial(place) | plan.Prove(place):
            yield condemn(world, place)


def reject(world: object, ref: Ref) -> object:
    return replace(forget(world, ref), rejected=world.rejected | {ref})


def withdraw(world: object, ref: Ref) -> object:
    """Seats and files are as they were; the release is out, and is no last good one any more (core/slot.py)."""
    good = world.last_good
    return replace(
        world,
        rejected=world.rejected | {ref},
        last_good=None if good is not None and good.ref == ref else good,
    )


def forget(world: object, ref: Ref) -> object:
    """The files are gone, and with them what was measured."""
    return replace(
        world,
        copies={one: copy for one, copy in world.copies.items() if one != ref},
        passed={place: fps for place, fps in world.passed.items() if place.ref != ref},
        failed=frozenset(place for place in world.failed if place.ref != ref),
    )


def condemn(world: object, place: Spot) -> object:
    """The seat is gone and its candidate is out; if it served, the runner has fallen back by itself."""
    passed = {one: fps for one, fps in world.passed.items() if one != place}
    return replace(without(world, place), failed=world.failed | {place}, passed=passed)


def without(world: object, place: Spot) -> object:
    seats = {one: proven for one, proven in world.seats.items() if one != place}
    fallback = world.fallback if world.fallback != place else None
    if world.serving != place:
        return replace(world, seats=seats, fallback=fallback)
    return replace(world, seats=seats, serving=fallback, fallback=None)


def crashes(world: object) -> Iterator[object]:
    if world.serving is not None and world.serving != world.last_good:  # a gate was missed during the soak
        passed = {one: fps for one, fps in world.passed.items() if one != world.serving}
        yield replace(world, failed=world.failed | {world.serving}, passed=passed)
    for place in world.seats:
        yield condemn(world, place) if place == world.serving else without(world, place)


def check_move(plan: ModuleType, swap: object, wish: Ref | None, world: object, move: Move) -> None:
    """The promises that hold at every single move."""
    after, step, available = move.world, move.step, swap is plan.Swap.AVAILABILITY
    promise(len(after.seats) <= (3 if available else 1), "at most three seats, one under resource", wish, world, step)
    if isinstance(step, plan.Promote):
        ref = step.place.ref
        ready = world.copies[ref].verified and step.place in world.passed and world.seats.get(step.place)
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
        promise(
            world.copies.get(step.release, plan.Copy()).stored, "only what is stored is verified", wish, world, step
        )
    if isinstance(step, plan.Load):
        promise(world.copies[step.place.ref].verified, "only what is verified is loaded", wish, world, step)
    if isinstance(step, plan.Fetch | plan.Verify):
        promise(step.release not in world.rejected, "nothing rejected is worked on", wish, world, step)
    if isinstance(step, plan.Delete) and wish is not None:
        kept = {place.ref for place in (world.serving, world.last_good) if place is not None}
        promise(step.release not in kept, "what serves and the last good one are never deleted", wish, world, step)
    was_sound = world.serving is not None and sound_place(world, world.serving)
    if available and step is not None and was_sound and wish is not None and step_is_ours(move):
        promise(after.serving is not None, "availability never goes dark in a swap", wish, world, step)
    if world.serving is None and isinstance(step, plan.Fetch) and world.last_good is not None:
        good = world.last_good.ref
        could = (
            good != step.release and may_serve(plan, swap, world, good) and world.copies.get(good, plan.Copy()).verified
        )
        promise(not could, "the last good release needs no network", wish, world, step)


def step_is_ours(move: Move) -> bool:
    return move.what == "step"


def sound_place(world: object, place: Spot) -> bool:
    return place not in world.failed and place.ref not in world.rejected


def may_serve(plan: ModuleType, swap: object, world: object, ref: Ref) -> bool:
    """Whether a release may still come to serve when every later step succeeds."""
    if ref in world.rejected:
        return False
    if not world.copies.get(ref, plan.Copy()).verified:
        return True
    out = [place for place in PLACES[ref] if place in world.failed]
    if swap is plan.Swap.RESOURCE and out:
        return any(place in world.passed for place in PLACES[ref] if place not in out)
    return len(out) < len(PLACES[ref])


def check_rest(plan: ModuleType, swap: object, wish: Ref | None, world: object) -> None:
    """When every step from here succeeds, the slot comes to rest on the right release with nothing left over."""
    good = world.last_good.ref if world.last_good else None
    loaded = [place.ref for place in (world.serving, world.fallback) if place and sound_place(world, place)]
    choices = (wish, good, *loaded) if wish is not None else ()
    desired = plan.Desired(wish, swap, SOAK_S)
    end = world
    for _ in range(LONGEST_WAY):
        step = plan.next_step(desired, end, 0.0)
        if step is None:
            break
        end = succeed(plan, end, step)
    else:
        raise Broken(f"it does not come to rest: {wish} {world}")
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


def key(wish: Ref | None, world: object) -> tuple[object, ...]:
    """The state, the same for every renaming of the releases; as small numbers, for there are many."""
    return (*sorted([line(wish, world, ref) for ref in REFS]), world.serving_since)


def line(wish: Ref | None, world: object, ref: Ref) -> int:
    """All that is so of one release."""
    copy = world.copies.get(ref)
    bits = 0 if copy is None else 1 + copy.verified
    bits = bits << 3 | (wish == ref) << 2 | (ref in world.rejected) << 1 | (ref in world.not_before)
    for place in PLACES[ref]:
        bits = bits << 2 | world.seats.get(place, 2)
        bits = bits << 2 | (place in world.passed) << 1 | (place in world.failed)
        bits = bits << 3 | (place is world.serving) << 2 | (place is world.fallback) << 1 | (place is world.last_good)
    return bits
