"""Seats that crash, hang, answer NaN or become slow, in their trial, in their soak and later, while cameras ask.

In its soak a seat fails while the agent stands still: the first answer to it is the runner's own, by the standing order.
"""

import json
import os
import shutil
import tempfile
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from tests.fakes import mosquitto
from tests.fakes.waiting import until
from tests.faults.standing import Standing, told
from tests.system.plant import ONE, ROOT, SLOT, CalmCamera, CalmRingingCamera, UnixConnection, golden

FAILING = Path(__file__).parents[1] / "fakes" / "failing_seats"
KINDS = {  # what is done to the model's run: what is told of it. No four restarts in a minute: the runner would give up
    "segfault": "the seat was killed by SIGSEGV",
    "nan": "NaN",
    "abort": "the seat was killed by SIGABRT",
    "slow": "ms",
    "out of memory": "the seat was killed by SIGKILL",
    "hang": "no answer within 3 s: killed",
}
GATES = {"max_latency_p95_ms": 100, "min_fps": 2}  # `slow` is slower
LONG_S = 600.0  # a soak that does not end by itself
ANSWERS = 40  # of each camera, before and after

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("seats")]  # one device for all of them


class Shaky(Standing):
    """A standing device whose seats do what the test tells them."""

    def __init__(self, folder):
        self.seen = ""  # incidents up to then are known
        self.faults = Path(tempfile.mkdtemp(prefix="edge-faults-", dir="/dev/shm"))  # the walls of a seat leave that
        super().__init__(folder)
        frame, wanted = golden(ONE)
        kinds = CalmCamera, CalmRingingCamera, CalmRingingCamera
        self.cameras = [kind(self.device.door, frame, {"20250628": wanted}) for kind in kinds]
        for camera in self.cameras:
            camera.start()
        self.cameras.append(self.camera)

    def new_device(self):
        device = super().new_device()
        device.program = "tests.faults.impatient"
        device.environment |= {
            "PYTHONPATH": os.pathsep.join([str(FAILING), str(ROOT)]),
            "SEAT_FAULTS": str(self.faults),
        }
        return device

    def close(self):
        for camera in self.cameras:
            camera.end()
        super().close()
        shutil.rmtree(self.faults)

    def fail(self, release, kind):
        """From now on each run of the release's model fails in this way."""
        (self.faults / release.name).write_text(kind)

    def mend(self, release):
        (self.faults / release.name).unlink(missing_ok=True)

    def new_release(self, date):
        sound = self.unsound(date)
        config = yaml.safe_load(sound.config) | {"warm_up": 1}
        config["gates"] |= GATES
        return self.plant.publish_checked(replace(sound, config=yaml.safe_dump(config).encode()))

    def begin_soak(self, release):
        """Deploy it, and return when it serves, unconfirmed, with the good one warm beside it."""
        self.pair = self.plant.rollout(release.name, soak=LONG_S)
        self.device.until(lambda: self.device.slot().get("step") == "soak", f"{release} serves")

    def serving(self):
        """The version that the runner itself names at the door."""
        connection = UnixConnection(self.device.door)
        connection.request("GET", f"/v2/models/{SLOT}")
        return json.loads(connection.getresponse().read()).get("versions", [""])[0]

    def incident(self, release):
        """The newest thing that the runner did by itself about a release, once the agent has told it."""

        def found():
            return [
                one
                for one in self.device.state()["events"]
                if one["kind"] == "incident" and one["release"] == release.name and one["at"] > self.seen
            ]

        self.device.until(found, f"an incident of {release.name}", 30)
        return found()[-1]

    def newest_event(self):
        """When the newest of all events was."""
        return max(one["at"] for one in self.device.state()["events"])

    def until_answered(self):
        """Each camera has had more answers."""
        wanted = [camera.answers + ANSWERS for camera in self.cameras]
        until(lambda: all(camera.answers >= count for camera, count in zip(self.cameras, wanted, strict=True)), 30)

    @property
    def failures(self):
        return [failure for camera in self.cameras for failure in camera.failures]


@pytest.fixture(scope="module")
def shaky(tmp_path_factory):
    """A device that serves and has confirmed the good release to four cameras."""
    mosquitto.require()
    one = Shaky(tmp_path_factory.mktemp("shaky"))
    yield one
    one.close()


@pytest.fixture(scope="module", params=KINDS)
def kind(request):
    """What fails; all three moments of it, then the next."""
    return request.param


def test_a_seat_that_fails_in_its_trial_never_serves(shaky, happened, kind):
    """After its chances the release is rejected, with what its seat did; the cameras are answered all the time."""
    release = shaky.new_release(f"202402{list(KINDS).index(kind) + 1:02}")
    shaky.fail(release, kind)
    with shaky.unharmed(but={"deployment"}):
        shaky.deploy(release.name)
        failure = shaky.rejection(release)
        shaky.until_told(failure["reason"])
    assert KINDS[kind] in failure["reason"] or (kind, failure["kind"]) in {("nan", "parity"), ("slow", "speed")}
    assert shaky.failures == []
    assert release.name.rpartition("_")[2] not in {one for camera in shaky.cameras for one in camera.versions}
    happened(kind, "trial", "refused it", shaky.failures, failure["reason"])


def test_a_seat_that_fails_in_its_soak_is_left_by_the_standing_order(shaky, happened, kind):
    """While the agent stands still the runner falls back; awake, the agent rejects the release after its chances."""
    release = shaky.new_release(f"202403{list(KINDS).index(kind) + 1:02}")
    with shaky.unharmed(but={"deployment"}):
        shaky.begin_soak(release)
        with shaky.asleep():
            shaky.fail(release, kind)
            until(lambda: shaky.serving() == "20250628", 30, "the runner fell back")
            shaky.until_answered()
        did = shaky.incident(release)
        failure = shaky.rejection(release)
        shaky.until_told(failure["reason"])
    assert KINDS[kind] in did["reason"]
    assert did["outcome"].startswith(f"fell back to {ONE}")
    assert failure["kind"] == {"nan": "parity", "slow": "speed"}.get(kind, "backend")
    assert shaky.failures == []
    happened(kind, "soak, agent stopped", did["outcome"], shaky.failures, failure["reason"])


def test_a_confirmed_seat_that_fails_alone_is_started_again_or_told_of(shaky, happened, kind):
    """No other seat is warm: after a crash or a hang requests wait for the new seat; NaN and slowness are told."""
    alive = kind in {"nan", "slow"}
    shaky.seen = shaky.newest_event()
    shaky.fail(shaky.good, kind if alive else f"once {kind}")
    did = shaky.incident(shaky.good)
    shaky.mend(shaky.good)
    shaky.until_answered()
    assert KINDS[kind] in did["reason"]
    assert did["outcome"] == ("serves on, for want of a fall-back" if alive else "restarting")
    assert shaky.failures == []
    assert {version for camera in shaky.cameras for version in camera.wrong} <= (
        {"20250628"} if kind == "nan" else set()
    )
    for camera in shaky.cameras:
        camera.wrong.clear()
    assert did["reason"] in told(shaky.device)["why"]
    happened(kind, "serving, confirmed", did["outcome"], shaky.failures, did["reason"])
