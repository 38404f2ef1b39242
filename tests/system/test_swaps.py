"""A hundred swaps in a row: nothing is lost, nothing is mixed up, nothing is left over."""

import time
from datetime import datetime
from statistics import median

import pytest

from tests.fakes.waiting import until
from tests.system.plant import ONE, TWO
from tests.system.steady import events, resident, start_cameras, until_settled

SWAPS = 100
WARM_UP = 6  # swaps until every buffer of agent and runner has had its size once
SOAK_S = 0.2
GROWTH = 1.05


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_hundred_swaps_under_load_lose_nothing_and_leave_nothing(new_plant, mosquitto):
    """Each swap is a new, proven and soaked process; no request fails, each answer is right, memory stays."""
    plant = new_plant(broker=mosquitto)
    device, releases = device_with_evidence(plant)
    cameras = start_cameras(device)
    seats, seconds, memory = [seat_of(device)], [], []
    for number in range(SWAPS):
        release = releases[number % 2]
        began = time.monotonic()
        plant.rollout(release.name, soak=SOAK_S)
        until_settled(device, release)
        seconds.append(time.monotonic() - began)
        seats.append(seat_of(device))
        memory.append(resident(device))
        assert soak_of(device, release) >= SOAK_S
    for camera in cameras:
        camera.end()
    tell(cameras, seconds, memory)
    assert len(set(seats)) == SWAPS + 1, "each swap starts a process of its own"
    assert [camera.failures for camera in cameras] == [[]] * len(cameras)
    assert [camera.wrong for camera in cameras] == [[]] * len(cameras)
    assert all(set(camera.versions) == {"20250628", "20250629"} for camera in cameras)
    for before, after in zip(memory[WARM_UP : WARM_UP + 2], memory[-2:], strict=True):  # of the same release each
        assert sum(after.values()) < GROWTH * sum(before.values()), (before, after)


def device_with_evidence(plant):
    """A device that has tried and confirmed both releases, and both of them; the second serves."""
    releases = plant.publish(ONE), plant.publish(TWO)
    device = plant.device().start()
    for release in releases:
        plant.rollout(release.name, soak=SOAK_S)
        until_settled(device, release)
    return device, releases


def seat_of(device):
    (seat,) = device.slot()["seats"]
    return seat["pid"]


def soak_of(device, release):
    """Seconds from when what serves began to serve, by the runner's clock, to its confirmation."""
    until(
        lambda: events(device, "confirmed")[-1][1]["release"] == release.name, what="the event, written after the fact"
    )
    confirmed, _ = events(device, "confirmed")[-1]
    return (confirmed - datetime.fromisoformat(device.slot()["serving_since"])).total_seconds()


def tell(cameras, seconds, memory):
    """The figures, for whoever runs this with -s."""
    answers = sum(camera.answers for camera in cameras)
    gap = max(camera.longest_gap for camera in cameras)
    print(f"\n{SWAPS} swaps, median {median(seconds):.2f} s, longest {max(seconds):.2f} s; {answers} answers, ", end="")
    print(f"longest gap {gap:.2f} s")
    print(f"resident MB: {memory[WARM_UP]} after {WARM_UP + 1}, {memory[-1]} after {SWAPS}")
