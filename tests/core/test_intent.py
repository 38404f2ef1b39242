"""What a believed deployment means for one device."""

from datetime import UTC, datetime

import pytest

from agent.core.intent import Move, Rollout, Wave, WaveAction, in_wave, wanted
from agent.core.release import Ref

NOW = datetime(2026, 11, 1, tzinfo=UTC)
A, B = (Ref(name=name, digest=name) for name in "ab")


def meant(action, *, share=1.0, start=A, standing=None, confirmed=()):
    rollout = Rollout(group="g", counter=1, issued=NOW, slots={"s": Move(goal=B, start=start)}, salt="x")
    wave = Wave(group="g", counter=1, issued=NOW, rollout="", share=share, action=action)
    return wanted(rollout, wave, "cam-1", {"s": standing} if standing else {}, confirmed)["s"]


@pytest.mark.parametrize(
    ("action", "before", "confirmed", "after"),
    [
        (WaveAction.RUN, A, (), B),
        (WaveAction.PAUSE, A, (), A),
        (WaveAction.PAUSE, B, (), B),
        (WaveAction.HALT, A, (), A),
        (WaveAction.HALT, B, (), A),
        (WaveAction.HALT, B, (B,), B),
        (WaveAction.REVERT, B, (B,), A),
    ],
)
def test_each_action_moves_just_whom_it_should(action, before, confirmed, after):
    """Run moves on, pause leaves, halt takes back what is not confirmed, revert takes back all."""
    assert meant(action, standing=before, confirmed=confirmed) == after


def test_a_device_outside_the_wave_stays():
    """A share of nothing reaches nobody."""
    assert meant(WaveAction.RUN, share=0.0, standing=A) == A


@pytest.mark.parametrize("action", [WaveAction.HALT, WaveAction.REVERT, WaveAction.PAUSE])
def test_what_has_no_start_is_not_made_dark(action):
    """The first release of a slot has nothing before it; taking it back leaves it."""
    assert meant(action, start=None, standing=B) == B


def test_a_wider_wave_holds_all_devices_of_a_narrower_one():
    """Widening never moves a device back."""
    devices = [f"cam-{number}" for number in range(1000)]
    narrow = {one for one in devices if in_wave(one, "salt", 0.1)}
    wide = {one for one in devices if in_wave(one, "salt", 0.3)}
    assert narrow < wide
    assert 50 < len(narrow) < 150
