"""Attacks and faults on what operators may do, and on what was withdrawn."""

from datetime import timedelta

import pytest

from agent.core.documents import to_json
from agent.core.errors import TrustError
from agent.core.intent import (
    COMMAND_TYPE,
    WITHDRAWN_TYPE,
    Command,
    Move,
    Operator,
    Policy,
    Quorum,
    Verb,
    WaveAction,
    Withdrawal,
    Withdrawn,
)
from agent.core.release import Ref
from agent.trust.command import believe_command
from agent.trust.deployment import Taken, believe_deployment
from agent.trust.policy import POLICY_BYTES, believe_withdrawn, read_policy
from tests.trust.keys import MINUTE, NEW, NOW, OLD

NEWEST = Ref(name="face_detection_retinaface_widerface_20250628-2", digest="c" * 64)
OLDEST = Ref(name="face_detection_retinaface_widerface_20240101", digest="d" * 64)


@pytest.fixture
def team(desk):
    """Anna may do everything, Ben syncs and rolls out to the first line until tomorrow, Carl is in no policy."""
    anna, ben, _ = (signer.public_key.keyid for signer in desk.keys["operators"])
    desk.policy = Policy(
        operators=(
            Operator(key=anna, name="anna", verbs=("*",), groups=("*",)),
            Operator(key=ben, name="ben", verbs=("sync", "rollout"), groups=("g1", "line-*"), expires=NOW + MINUTE),
        )
    )
    return desk


def signed_by(desk, *numbers):
    return [desk.keys["operators"][number] for number in numbers]


def taken(desk, raw, last=None, now=NOW, group="g1"):
    return believe_deployment(raw, desk.targets, group, last or Taken(), now, desk.policy)


def asked(desk, group="g1", now=NOW, numbers=(0,), **changes):
    said = {
        "id": "0123456789ab", "scope": "device:cam-7", "counter": 5, "issued": now, "expires": now + 10 * MINUTE,
        "verb": Verb.SYNC, **changes,
    }  # fmt: skip
    raw = desk.sign(Command(**said), COMMAND_TYPE, "operators", signed_by(desk, *numbers))
    return believe_command(raw, desk.targets, "cam-7", group, {}, now, desk.policy)


@pytest.mark.parametrize(
    ("numbers", "about", "words"),
    [
        ([1], {"verb": Verb.PIN}, "ben may not pin"),
        ([1], {"group": "hall"}, "ben may not act on hall"),
        ([1], {"now": NOW + 2 * MINUTE}, "what ben may do ended"),
        ([2], {}, "is not in the policy"),
        ([1, 2], {"verb": Verb.PIN}, "1 missing; ben may not pin; key"),
    ],
)
def test_a_command_needs_an_operator_who_may(team, numbers, about, words):
    """TUF knows the key; the policy says what it is good for."""
    got = asked(team, numbers=numbers, **about)
    assert got.status == "rejected"
    assert words in got.reason


@pytest.mark.parametrize(
    ("numbers", "about"), [([0], {"verb": Verb.PIN, "group": "hall"}), ([1], {"group": "line-3"}), ([0, 2], {})]
)
def test_a_command_by_an_operator_who_may_is_believed(team, numbers, about):
    """A signature too many does no harm."""
    assert asked(team, numbers=numbers, **about).id == "0123456789ab"


def test_without_a_policy_every_operators_key_may_do_everything(desk):
    """A fleet that has not made one yet works."""
    desk.policy = None
    assert asked(desk, numbers=[2], verb=Verb.PIN).verb is Verb.PIN


def test_an_empty_policy_allows_nobody(desk):
    """What is not allowed is forbidden."""
    desk.policy = Policy(operators=())
    assert "is not in the policy" in asked(desk).reason


def test_a_rollout_needs_an_operator_who_may(team):
    """The operators' half of a deployment is an act like a command."""
    assert taken(team, team.pair(signers=signed_by(team, 1))).rollout.group == "g1"
    with pytest.raises(TrustError, match="rollout on group g1 needs signatures of 1 operators who may; 1 missing"):
        taken(team, team.pair(signers=signed_by(team, 2)))
    with pytest.raises(TrustError, match="ben may not act on hall"):
        taken(team, team.pair(signers=signed_by(team, 1), group="hall", wave={"group": "hall"}), group="hall")


def test_what_was_taken_stands_when_its_signers_time_is_over(team):
    """An operator who left stops no wave of the rollout that runs: the controller may still halt it."""
    last = taken(team, team.pair((5, 5), signers=signed_by(team, 1))).taken
    late = NOW + 5 * MINUTE
    halted = team.pair((5, 6), signers=signed_by(team, 1), action=WaveAction.HALT)
    assert taken(team, halted, last, late).wave.action is WaveAction.HALT
    with pytest.raises(TrustError, match="what ben may do ended"):
        taken(team, team.pair((6, 1), signers=signed_by(team, 1)), last, late)


def test_an_act_that_needs_two_is_not_done_by_one(team):
    """m of n: only signatures of those who may are counted."""
    quorum = Quorum(count=2, verbs=("rollout",), groups=("g*",))
    team.policy = Policy(operators=team.policy.operators, signatures=(quorum,))
    assert taken(team, team.pair(signers=signed_by(team, 0, 1))).rollout.counter == 1
    assert asked(team).verb is Verb.SYNC
    for signers in ([0], [0, 2], [0, 0]):
        with pytest.raises(TrustError, match=r"needs signatures of 2 operators|signs twice"):
            taken(team, team.pair(signers=signed_by(team, *signers)))


def test_the_higher_number_counts(team):
    """A policy cannot lower the threshold of the role."""
    team.targets.delegations.roles["operators"].threshold = 2
    team.policy = Policy(operators=team.policy.operators, signatures=(Quorum(count=1),))
    with pytest.raises(TrustError, match="signed by 1 of the 2"):
        taken(team, team.pair(signers=signed_by(team, 0)))
    with pytest.raises(TrustError, match="needs signatures of 2 operators who may"):
        taken(team, team.pair(signers=signed_by(team, 0, 2)))


@pytest.mark.parametrize("raw", [b"", b"[]", b'{"operators": [{"key": "x"}]}', b" " * (POLICY_BYTES + 1)])
def test_a_policy_that_cannot_be_read_is_no_policy(raw):
    """Garbage is never "everybody may"."""
    with pytest.raises(TrustError, match=r"policy/operators\.json"):
        read_policy(raw)


# --- an older release ------------------------------------------------------------------------------------------------


@pytest.fixture
def running(desk):
    """A device that took a rollout from OLD to NEW."""
    desk.policy = None
    desk.last = taken(desk, desk.pair((5, 5))).taken
    return desk


def slots(goal, start=None):
    return {"face": Move(goal=goal, start=start)}


@pytest.mark.parametrize("move", [slots(NEWEST, NEW), slots(OLD, NEW), slots(NEW, OLD), {"other": Move(goal=OLDEST)}])
def test_forward_and_the_way_back_need_no_more(running, move):
    """A newer release, the last rollout's own start, and a slot that is new here."""
    assert taken(running, running.pair((6, 1), slots=move), running.last).rollout.slots == move


@pytest.mark.parametrize("move", [slots(OLDEST, NEW), slots(NEWEST, OLDEST)])
def test_further_back_needs_the_critical_keys(running, move):
    """Neither as a goal nor as a start: devices outside the wave would run it."""
    with pytest.raises(
        TrustError, match=r"20240101 is older than .*20250628.*operators-critical envelope: signed by 0"
    ):
        taken(running, running.pair((6, 1), slots=move), running.last)
    both = running.keys["operators"][:1] + running.keys["operators-critical"][:1]
    with pytest.raises(TrustError, match="signed by 1 of the 2 keys of operators-critical"):
        taken(running, running.pair((6, 1), slots=move, signers=both), running.last)
    enough = running.keys["operators"][:1] + running.keys["operators-critical"][:2]
    assert taken(running, running.pair((6, 1), slots=move, signers=enough), running.last).rollout.counter == 6


def test_a_slot_that_was_left_out_is_not_forgotten(running):
    """Two rollouts, one without the slot and one that brings it back, are no way around the critical keys."""
    last = taken(running, running.pair((6, 1), slots={}), running.last).taken
    with pytest.raises(TrustError, match="older than"):
        taken(running, running.pair((7, 1), slots=slots(OLDEST)), last)


def test_critical_keys_alone_command_nothing(running):
    """They come on top of an operator's signature."""
    with pytest.raises(TrustError, match="keys of operators that it needs"):
        taken(running, running.pair((6, 1), signers=running.keys["operators-critical"]), running.last)


def test_what_was_reverted_is_not_what_stood(running):
    """After a revert the group stands at the start: a fix that is newer than that is a step forward."""
    last = taken(running, running.pair((5, 6), action=WaveAction.REVERT), running.last).taken
    between = Ref(name="face_detection_retinaface_widerface_20250301", digest="e" * 64)
    assert taken(running, running.pair((6, 1), slots=slots(between, OLD)), last).taken.slots == slots(between, OLD)
    with pytest.raises(TrustError, match="older than"):
        taken(running, running.pair((6, 1), slots=slots(between, OLD)), running.last)


def test_a_revoked_signer_leaves_what_stood(running):
    """A counter is void with its key; what the device runs is not forgotten."""
    running.revoke("operators", 0)
    with pytest.raises(TrustError, match="older than"):
        taken(running, running.pair((6, 1), slots=slots(OLDEST, NEW)), running.last)


# --- withdrawn --------------------------------------------------------------------------------------------------------


def withdrawn(desk, signers):
    one = Withdrawal(release=NEW, reason="sees ghosts", at=NOW - timedelta(hours=1))
    return desk.sign(Withdrawn(counter=1, releases=(one,)), WITHDRAWN_TYPE, "", signers)


def test_a_withdrawal_is_signed_by_the_critical_keys(desk):
    """Whoever lists it online cannot make one."""
    got = believe_withdrawn(withdrawn(desk, desk.keys["operators-critical"][:2]), desk.targets)
    assert [one.release for one in got.releases] == [NEW]
    for signers in (desk.keys["operators-critical"][:1], desk.keys["operators"], desk.keys["controller"], []):
        with pytest.raises(TrustError, match="of the 2 keys of operators-critical"):
            believe_withdrawn(withdrawn(desk, signers), desk.targets)


def test_another_document_is_no_withdrawal(desk):
    """The type is signed along."""
    raw = desk.sign(Policy(operators=()), COMMAND_TYPE, "", desk.keys["operators-critical"])
    with pytest.raises(TrustError, match="its type is"):
        believe_withdrawn(raw, desk.targets)
    raw = desk.sign(Policy(operators=()), WITHDRAWN_TYPE, "", desk.keys["operators-critical"])
    with pytest.raises(TrustError, match=r"policy/withdrawn\.json"):
        believe_withdrawn(raw, desk.targets)
    assert to_json(Withdrawn(counter=1, releases=())) == b'{"counter":1,"releases":[]}'
