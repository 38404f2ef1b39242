"""Deployments as the desk makes them and a device takes them."""

import pytest

from agent.core.errors import InputError, TrustError
from agent.core.intent import Command, Verb, WaveAction, wanted
from agent.trust.command import believe_command
from agent.trust.deployment import Taken, believe_deployment
from fleet.deploy import current, deploy, next_counter, sign_command, steer
from fleet.repository import listed_bytes
from tests.fleet.desk import MINUTE, NEW, NOW, OLD, OTHER

DEVICES = [f"cam-{number}" for number in range(200)]


@pytest.fixture
def desk(desk):
    for name in (OLD, NEW, OTHER):
        desk.publish(name)
    return desk


def believed(desk, pair, floor=None):
    return believe_deployment(pair, desk.device().targets, "g1", floor or Taken(), NOW)


def running(got, device="cam-7", confirmed=()):
    return {slot: ref.name for slot, ref in wanted(got.rollout, got.wave, device, {}, confirmed).items() if ref}


def moved(desk, slot="face", release=NEW, share=1.0, minutes=0):
    return deploy(desk.repository, desk.keyring, "g1", slot, release, share, now=NOW + minutes * MINUTE)


def test_a_device_takes_what_was_deployed(desk):
    """Over MQTT and from the store, byte for byte the same."""
    pair = moved(desk)
    assert running(believed(desk, pair)) == {"face": NEW}
    assert desk.device().read("deployments/g1.json", 1 << 20) == pair


def test_only_a_published_release_is_deployed(desk):
    """A typing mistake is answered before anything is signed."""
    with pytest.raises(InputError, match="not published here"):
        moved(desk, release="face_detection_retinaface_widerface_20990101")


@pytest.mark.parametrize("share", [0, -1, 1.5])
def test_a_share_is_a_part_of_the_group(desk, share):
    """Nothing is deployed to nobody, or to more than all."""
    with pytest.raises(InputError, match="share"):
        moved(desk, share=share)


def test_counters_rise_even_when_the_clock_falls(desk):
    """A desk with a wrong clock still makes a newer deployment."""
    first = believed(desk, moved(desk, release=OLD))
    second = believed(desk, moved(desk, minutes=-900), first.taken)
    assert (second.taken.rollout, second.same) == (first.taken.rollout + 1, False)
    assert next_counter(0, NOW) == int(NOW.timestamp() * 1000)


def test_moving_one_slot_leaves_the_others(desk):
    """A deployment holds every slot of the group."""
    moved(desk, "fire", OTHER)
    got = believed(desk, moved(desk, share=0.1))
    assert got.rollout.slots["fire"].start == got.rollout.slots["fire"].goal
    assert all(running(got, device)["fire"] == OTHER for device in DEVICES)
    assert 5 < sum("face" in running(got, device) for device in DEVICES) < 40


def test_a_slot_that_is_half_way_stops_other_slots(desk):
    """Nothing can be written that leaves all devices as they are, so the desk says what to do first."""
    moved(desk, share=0.1)
    with pytest.raises(InputError, match="widen it to 1 or revert it"):
        moved(desk, "fire", OTHER)


def test_a_slot_that_is_half_way_may_be_moved_on(desk):
    """A new release for the same slot falls back to the one before the trial."""
    moved(desk, release=OLD)
    moved(desk, release=NEW, share=0.1)
    got = believed(desk, moved(desk, release=NEW, share=1.0))
    assert got.rollout.slots["face"].start.name == OLD


def test_a_rollout_widens_and_reverts(desk):
    """The controller's waves go as far as operators allowed, and back."""
    moved(desk, release=OLD)
    narrow = believed(desk, moved(desk, share=0.1))
    wide = believed(desk, steer(desk.repository, desk.keyring, "g1", WaveAction.RUN, 1.0, now=NOW), narrow.taken)
    assert {running(wide, device)["face"] for device in DEVICES} == {NEW}
    back = believed(desk, steer(desk.repository, desk.keyring, "g1", WaveAction.REVERT, now=NOW), wide.taken)
    assert {running(back, device)["face"] for device in DEVICES} == {OLD}


def test_a_halt_reaches_as_far_as_the_wave_before(desk):
    """Halting changes nothing on a device that has confirmed the goal."""
    narrow = believed(desk, moved(desk, share=0.1))
    halted = believed(desk, steer(desk.repository, desk.keyring, "g1", WaveAction.HALT, now=NOW), narrow.taken)
    goals = {move.goal for move in narrow.rollout.slots.values()}
    after = [running(halted, device, goals) for device in DEVICES]
    assert after == [running(narrow, device) for device in DEVICES]


def test_after_a_revert_the_next_rollout_begins_from_the_old_release(desk):
    """What was reverted is not what the group stands at."""
    moved(desk, release=OLD)
    moved(desk)
    steer(desk.repository, desk.keyring, "g1", WaveAction.REVERT, now=NOW)
    assert believed(desk, moved(desk, "fire", OTHER)).rollout.slots["face"].goal.name == OLD


def test_a_wave_the_rollout_does_not_list_is_refused(desk):
    """The desk says so before a device would."""
    moved(desk, share=0.1)
    with pytest.raises(InputError, match="choose one of them"):
        steer(desk.repository, desk.keyring, "g1", WaveAction.RUN, 0.5, now=NOW)


def test_a_wave_needs_a_rollout(desk):
    """Nothing stands, nothing is steered."""
    with pytest.raises(InputError, match="nothing is deployed"):
        steer(desk.repository, desk.keyring, "g1", WaveAction.HALT, now=NOW)


def test_a_planted_deployment_is_not_built_upon(desk):
    """Whoever stole the online role cannot have operators sign what he planted."""
    desk.repository.add(listed_bytes("deployments/g1.json", b"{}"), b"{}")
    desk.repository.publish(NOW)
    with pytest.raises(TrustError):
        moved(desk)
    assert current(desk.repository, "g2", NOW) is None


def test_a_signed_command_is_believed_once(desk):
    """By the device it names, until it expires."""
    raw = sign_command(
        desk.keyring, "device:cam-7", Verb.PIN, command_id="0123456789ab", now=NOW, slot="face", release=OLD
    )
    targets = desk.device().targets
    got = believe_command(raw, targets, "cam-7", "g1", {}, NOW)
    assert isinstance(got, Command)
    assert (got.verb, got.release) == (Verb.PIN, OLD)
    assert believe_command(raw, targets, "cam-8", "g1", {}, NOW).status == "rejected"
    assert believe_command(raw, targets, "cam-7", "g1", {}, NOW + 16 * MINUTE).status == "expired"
