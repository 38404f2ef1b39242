"""A device at rest, and what can be seen of it from outside."""

from datetime import datetime

import psutil

from tests.system.plant import ONE, TWO, CalmCamera, CalmRingingCamera, Camera, RingingCamera, golden

VERSIONS = {name.rsplit("_", 1)[1]: golden(name)[1] for name in (ONE, TWO)}  # both answer the same frame


def until_settled(device, release, seconds=60.0):
    """Wait until a release serves, is confirmed, and nothing is left to do; the slot's state."""

    def settled():
        slot = device.slot()
        calm = slot.get("step") == "settled" and slot["confirmed"] and len(slot["seats"]) == 1
        return slot if calm and slot["digest"] == release.digest else None

    return device.until(settled, f"{device.name} has settled on {release.name}", seconds)


def start_cameras(device):
    """Four clients that check every answer against the version that it names; one of each kind asks without a pause."""
    frame, _ = golden(ONE)
    kinds = Camera, RingingCamera, CalmCamera, CalmRingingCamera
    cameras = [kind(device.door, frame, VERSIONS) for kind in kinds]
    for camera in cameras:
        camera.start()
    return cameras


def resident(device):
    """Resident MB of agent, runner and seats, by process."""
    state = device.state()
    seats = [one["pid"] for one in device.slot()["seats"]]
    pids = {"agent": state["pid"], "runner": state["runner"]["pid"]} | {f"seat {n}": pid for n, pid in enumerate(seats)}
    return {name: round(psutil.Process(pid).memory_info().rss / 1e6, 1) for name, pid in pids.items()}


def events(device, kind):
    """The newest events of a kind that the device keeps, with their times, oldest first."""
    return [(datetime.fromisoformat(one["at"]), one) for one in device.state()["events"] if one["kind"] == kind]
