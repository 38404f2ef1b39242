"""Intent moves a slot's record, and nothing else does."""

import pytest

from agent.core.candidate import Backend, Candidate
from agent.core.errors import InputError
from agent.core.messages import Place
from agent.core.release import Ref
from agent.core.slot import SlotRecord, confirm, deploy, pin, roll_back, without

A, B, C = (Ref(name=name, digest=name) for name in "abc")


def on(ref):
    return Place(ref=ref, candidate=Candidate(backend=Backend.CPU))


def test_a_deployment_ends_a_rollback():
    """The operator has spoken again."""
    record = roll_back(SlotRecord(slot="s", deployed=B, good=(on(B), on(A))), "id", ())
    assert record.desired == A
    assert deploy(record, C, 1.0).desired == C


def test_a_deployment_does_not_end_a_pin():
    """Only an empty pin does; then the newest deployment counts."""
    record = deploy(pin(SlotRecord(slot="s", deployed=A), B, "id"), C, 1.0)
    assert record.desired == B
    assert pin(record, None, "id").desired == C


def test_a_rollback_during_the_soak_goes_to_the_last_good_release():
    """What is not confirmed yet is what is rolled away from."""
    assert roll_back(SlotRecord(slot="s", deployed=B, good=(on(A),)), "id", ()).desired == A


def test_a_rollback_of_what_was_rejected_goes_behind_what_runs_now():
    """The device went back by itself; the operator means the release before."""
    assert roll_back(SlotRecord(slot="s", deployed=C, good=(on(B), on(A))), "id", {C}).desired == A


def test_a_second_rollback_does_not_roll_forward():
    """What was rolled away from is no way back."""
    record = roll_back(SlotRecord(slot="s", deployed=B, good=(on(B), on(A))), "id", ())
    record = confirm(record, on(A))
    with pytest.raises(InputError, match="nothing to roll back to"):
        roll_back(record, "id", ())


def test_a_rollback_with_nothing_confirmed_is_refused():
    """It says so, and what to do."""
    with pytest.raises(InputError, match="deploy or pin"):
        roll_back(SlotRecord(slot="s", deployed=A, good=(on(A),)), "id", ())


def test_two_good_releases_are_kept():
    """The last good one and the way back from it; older ones go."""
    record = SlotRecord(slot="s", deployed=C)
    for ref in (A, B, C):
        record = confirm(record, on(ref))
    assert [place.ref for place in record.good] == [C, B]


def test_what_was_withdrawn_is_no_way_back():
    """The release before it is the last good one, and no pin holds it; what was deployed is still known."""
    record = without(SlotRecord(slot="s", deployed=C, good=(on(C), on(A))), {C})
    assert (record.last_good, record.deployed) == (on(A), C)
    pinned = pin(SlotRecord(slot="s", deployed=A, good=(on(A),)), B, "id")
    assert without(pinned, {B}) == SlotRecord(slot="s", deployed=A, good=(on(A),))
    assert without(pinned, {C}) == pinned
