"""The planner keeps its promises in every state it can reach, and the check notices when it does not."""

import inspect
import sys
import types
from dataclasses import fields

import pytest

from agent.core import plan
from tests.core.world import REFS, Broken, World, explore, place_at

MUTANT_STATES = 60_000  # every mutant below is caught well before this

MUTANTS = {
    "skip the fetch": ("return Fetch(goal)", "return Verify(goal)"),
    "skip the verification": (
        "    if not seen.copies[goal]:\n        return Verify(goal)\n    place = place_of(goal, desired, seen)",
        (
            "    place = place_of(goal, desired, seen) if seen.copies[goal] else next(iter(seen.seats), None)\n"
            "    if place is None:\n        return Verify(goal)"
        ),
    ),
    "promote without a trial": ("    if place not in seen.passed:\n        return Trial(place)\n", ""),
    "promote a seat that was not proven": ("    if not seen.seats[place]:\n        return Prove(place)\n", ""),
    "never make room": ("way = next(in_the_way(desired, seen, place), Load(place))", "way = Load(place)"),
    "two seats under resource": ("if desired.swap is Swap.AVAILABILITY else set()", "if True else set()"),
    "go dark under availability": ("{seen.serving, warm(seen)} if desired.swap", "{warm(seen)} if desired.swap"),
    "ignore a rejection": ("ref is not None and ref not in seen.rejected", "ref is not None"),
    "delete what serves": (
        "used |= {place.ref for place in (seen.last_good, seen.serving, seen.fallback) if place is not None}",
        "pass",
    ),
    "never confirm": ("Wait(soaked_at) if now < soaked_at else Confirm(place)", "Wait(soaked_at)"),
    "no last good release": (
        "choices = (desired.release, good, *loaded)",
        "choices = (desired.release, *loaded)",
    ),
    "go dark without a last good release": (
        "choices = (desired.release, good, *loaded)",
        "choices = (desired.release, good)",
    ),
    "the goal first, though it needs the network": ("return goal if may_try_first else good", "return goal"),
    "leave seats behind": (
        "    yield from (Unload(place) for place in sorted(seen.seats) if place.ref not in used)\n",
        "",
    ),
    "leave files behind": ("yield from (Delete(ref)", "yield from (Delete(ref) for ref in () if ref) or (Delete(ref)"),
    "keep an unconfirmed fall-back": (
        "choices = (seen.last_good, seen.serving)",
        "choices = (seen.serving, seen.last_good)",
    ),
    "fall back to a failed seat": ("one != place and is_sound(one, seen)", "one != place"),
    "the slowest serves": ("fastest = max(", "fastest = min("),
    "never try the second candidate": (
        "    if quick:\n        return quick[0]\n",
        "    if quick and best is None:\n        return quick[0]\n",
    ),
    "try the same failure for ever": (
        "alive = tuple(place for place in places if place not in seen.failed)",
        "alive = places",
    ),
}


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("refs", "more"),
    [(REFS, ()), (REFS[:2], ("retry", "upgrade")), (REFS[:2], ("withdrawal",))],
    ids=["three releases", "two, with retries and upgrades", "two, with withdrawals"],
)
@pytest.mark.parametrize("swap", plan.Swap)
def test_every_reachable_state_keeps_every_promise(swap, refs, more, monkeypatch):
    """Whatever fails, crashes or is wished, the slot serves only what passed and comes to rest on the right release."""
    monkeypatch.setattr(plan, "Place", place_at)
    census = explore(plan, swap, refs, more=more)
    assert census.states > 1_000


def test_the_world_is_told_as_the_planner_observes_it():
    """A fact that the planner learns to observe has a place in the small world, and is absent there at first."""
    nothing = plan.Observed()
    assert World()._asdict() == {fact.name: getattr(nothing, fact.name) for fact in fields(nothing)}


@pytest.mark.parametrize("mutant", MUTANTS)
def test_a_broken_planner_is_noticed(mutant, monkeypatch):
    """Each deliberate breakage of the planner breaks a promise somewhere in the small world."""
    before, after = MUTANTS[mutant]
    source = inspect.getsource(plan)
    assert source.count(before) == 1
    broken = types.ModuleType("broken_plan")
    monkeypatch.setitem(sys.modules, "broken_plan", broken)
    exec(compile(source.replace(before, after), "broken_plan", "exec"), broken.__dict__)
    broken.Place = place_at
    with pytest.raises((Broken, KeyError, IndexError, StopIteration)):
        explore_all(broken)


def explore_all(broken):
    for swap in reversed(broken.Swap):  # the small one first
        explore(broken, swap, limit=MUTANT_STATES)
