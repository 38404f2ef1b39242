"""Attacks and faults on deployments."""

import json

import pytest

from agent.core.errors import TrustError
from agent.core.intent import Move, WaveAction
from agent.core.release import Ref
from agent.trust.deployment import Taken, believe_deployment
from tests.trust.keys import MINUTE, NEW, NOW, Desk


def believed(desk, raw, floor=None, group="g1", now=NOW):
    return believe_deployment(raw, desk.targets, group, floor or Taken(), now)


def test_a_good_pair_is_believed(desk):
    """Both documents come out as values."""
    got = believed(desk, desk.pair((3, 4)))
    assert got.rollout.slots["face"].goal == NEW
    assert (got.wave.counter, got.same, got.taken.reach) == (4, False, 1.0)


@pytest.mark.parametrize(
    "raw", [b"", b"null", b"{}", b'{"rollout":{},"wave":{}}', b"[" * 9000, b'{"rollout":' + b"[" * 9000]
)
def test_garbage_is_refused(desk, raw):
    """Whatever bytes come, the answer is a TrustError."""
    with pytest.raises(TrustError):
        believed(desk, raw)


def test_a_release_whose_name_breaks_the_rules_is_refused(desk):
    """Signed or not: what becomes a path and a key is a name."""
    with pytest.raises(TrustError, match=r"not in _YYYYMMDD.*sign it anew"):
        believed(desk, desk.pair(slots={"face": Move(goal=Ref(name="passwd", digest="a" * 64))}))


def test_an_oversized_deployment_is_not_parsed(desk):
    """The length limit comes first."""
    with pytest.raises(TrustError, match="at most"):
        believed(desk, b" " * (192 * 1024 + 1))


def test_an_unsigned_rollout_is_refused(desk):
    """Operators sign what may run."""
    with pytest.raises(TrustError, match="operators envelope: signed by 0"):
        believed(desk, desk.pair(signers=Desk().keys["operators"]))


def test_the_controller_cannot_sign_a_rollout(desk):
    """A stolen controller key chooses no release."""
    with pytest.raises(TrustError, match="operators envelope: signed by 0"):
        believed(desk, desk.pair(signers=desk.keys["controller"]))


def test_an_unknown_controller_is_refused(desk):
    """A wave needs the controller's key."""
    raw = desk.pair()
    desk.delegate("controller", 1, 1)
    with pytest.raises(TrustError, match="controller envelope: signed by 0"):
        believed(desk, raw)


def test_halves_cannot_change_places(desk):
    """Types keep a wave from standing where a rollout should."""
    tree = json.loads(desk.pair())
    with pytest.raises(TrustError, match="its type is"):
        believed(desk, json.dumps({"rollout": tree["wave"], "wave": tree["rollout"]}).encode())


def test_a_wave_of_another_rollout_is_refused(desk):
    """Mix and match: a wave counts for the rollout that it names by digest."""
    first, second = json.loads(desk.pair((1, 1))), json.loads(desk.pair((2, 2)))
    with pytest.raises(TrustError, match="names the rollout"):
        believed(desk, json.dumps({"rollout": second["rollout"], "wave": first["wave"]}).encode())


@pytest.mark.parametrize("changes", [{"group": "g2"}, {"wave": {"group": "g2"}}])
def test_another_groups_deployment_is_refused(desk, changes):
    """A deployment served to the wrong group changes nothing there."""
    with pytest.raises(TrustError, match="of group g1"):
        believed(desk, desk.pair(**changes))


def test_a_share_that_operators_did_not_list_is_refused(desk):
    """The controller stays inside the rollout."""
    with pytest.raises(TrustError, match="not one of the rollout's"):
        believed(desk, desk.pair(share=0.5))


@pytest.mark.parametrize("changes", [{"issued": NOW + 2000 * MINUTE}, {"wave": {"issued": NOW + 2000 * MINUTE}}])
def test_a_deployment_from_the_future_is_refused(desk, changes):
    """A day ahead is a device without a clock; more is a mistake or an attack."""
    with pytest.raises(TrustError, match="in the future"):
        believed(desk, desk.pair(**changes))


def test_a_time_without_a_zone_is_refused(desk):
    """Times that cannot be compared never reach a comparison."""
    with pytest.raises(TrustError, match="issued"):
        believed(desk, desk.pair(issued=NOW.replace(tzinfo=None)))


@pytest.mark.parametrize("counters", [(4, 9), (5, 4), (1, 1), (5, 5)])
def test_an_older_pair_is_a_replay(desk, counters):
    """The counters of rollout and wave only rise, in this order."""
    floor = believed(desk, desk.pair((5, 5))).taken
    kept = json.loads(desk.pair((5, 5)))["rollout"]
    raw = desk.pair(counters, share=0.1)
    if counters[0] == 5:
        raw = json.dumps({"rollout": kept, "wave": json.loads(raw)["wave"]}).encode()
    with pytest.raises(TrustError, match="not newer"):
        believed(desk, raw, floor)


@pytest.mark.parametrize("counters", [(6, 1), (5, 6)])
def test_a_newer_pair_is_taken(desk, counters):
    """A new rollout begins its waves anew."""
    floor = believed(desk, desk.pair((5, 5))).taken
    assert not believed(desk, desk.pair(counters), floor).same


def test_the_same_pair_again_is_no_replay(desk):
    """A retained message comes at every connection."""
    raw = desk.pair((5, 5))
    assert believed(desk, raw, believed(desk, raw).taken).same


def test_two_rollouts_under_one_counter_are_refused(desk):
    """Nobody shows one half of a fleet another rollout under the same number."""
    floor = believed(desk, desk.pair((5, 5))).taken
    with pytest.raises(TrustError, match="another rollout with this counter"):
        believed(desk, desk.pair((5, 6), salt="other"), floor)


def test_a_rollout_does_not_widen_after_its_expiry(desk):
    """A forgotten rollout cannot be widened a year later."""
    expires = NOW + MINUTE
    floor = believed(desk, desk.pair((5, 5), share=0.1, expires=expires)).taken
    late = {"issued": NOW + 2 * MINUTE}
    with pytest.raises(TrustError, match="expired"):
        believed(desk, desk.pair((5, 6), expires=expires, wave=late), floor)
    with pytest.raises(TrustError, match="expired"):
        believed(desk, desk.pair((5, 6), expires=expires, wave=late))


@pytest.mark.parametrize("action", [WaveAction.PAUSE, WaveAction.HALT, WaveAction.REVERT])
@pytest.mark.parametrize("late_comer", [True, False])
def test_stopping_never_expires(desk, action, late_comer):
    """Whatever narrows is always allowed."""
    expires = NOW + MINUTE
    floor = None if late_comer else believed(desk, desk.pair((5, 5), share=0.1, expires=expires)).taken
    raw = desk.pair((5, 6), share=0.1, action=action, expires=expires, wave={"issued": NOW + 2 * MINUTE})
    assert believed(desk, raw, floor, now=NOW + 9 * MINUTE).wave.action is action


def test_a_late_device_takes_what_was_widened_in_time(desk):
    """What stands after the expiry still stands for a device that was away."""
    raw = desk.pair((5, 6), expires=NOW + MINUTE)
    assert believed(desk, raw, now=NOW + 9000 * MINUTE).taken.reach == 1.0


def test_a_burnt_counter_is_void_once_its_key_is_revoked(desk):
    """A thief who used up the counter leaves a device that can be commanded again."""
    floor = believed(desk, desk.pair((2**53, 2**53))).taken
    desk.revoke("operators", 0)
    assert believed(desk, desk.pair((6, 1)), floor).rollout.counter == 6


def test_a_burnt_wave_counter_is_void_once_the_controller_is_replaced(desk):
    """Only the controller's half begins anew; the rollout's counter stands."""
    floor = believed(desk, desk.pair((5, 2**53))).taken
    desk.delegate("controller", 1, 1)
    assert believed(desk, desk.pair((5, 1)), floor).wave.counter == 1
    with pytest.raises(TrustError, match="not newer"):
        believed(desk, desk.pair((4, 1)), floor)


def test_adding_a_key_opens_no_door_to_old_pairs(desk):
    """A routine change of keys does not let an attacker replay last month's deployment."""
    old = desk.pair((4, 4))
    floor = believed(desk, desk.pair((5, 5))).taken
    desk.add_key("operators")
    with pytest.raises(TrustError, match="not newer"):
        believed(desk, old, floor)
