"""What a device says over MQTT, and what it does when it is told, with a real broker in between."""

import pytest

from tests.fakes.mosquitto import Mosquitto, require
from tests.system.listener import Listener
from tests.system.plant import ONE, SLOT, TWO, Camera, Plant, golden
from tests.system.steady import until_settled

LAST = {"done", "failed", "rejected", "expired"}


@pytest.fixture(scope="module")
def fleet(tmp_path_factory):
    """A plant with a broker, and one device that serves the first release; `heard` is all that it ever said."""
    require()
    folder = tmp_path_factory.mktemp("fleet")
    broker = Mosquitto(folder)
    broker.start()
    (folder / "plant").mkdir()
    plant = Plant(folder / "plant", broker=broker)
    plant.ever = Listener(broker)
    plant.one, plant.two = plant.publish(ONE), plant.publish(TWO)
    plant.cam = plant.device(fps_s=0.5, health_s=0.5)
    yield plant
    plant.ever.close()
    plant.close()
    broker.kill()


@pytest.fixture
def line(fleet):
    """The plant with a desk that begins to listen, and whatever came before, the device serves the first release."""
    if not fleet.cam.is_alive():
        fleet.cam.close()  # the runner, too: a new agent takes none along that it did not start
        fleet.cam.start()
    fleet.rollout(ONE)
    until_settled(fleet.cam, fleet.one)
    fleet.listener = Listener(fleet.broker)
    yield fleet
    fleet.listener.close()


def outcome(plant, name):
    """The last word on a command."""
    return plant.listener.until(f"edge/v1/cam-1/cmd/{name}/res", lambda said: said["status"] in LAST)


def test_a_device_says_what_runs_by_digest(line):
    """`reported` is retained and names the digest that serves, and that it is confirmed."""
    said = line.listener.until("edge/v1/cam-1/reported", lambda said: said["slots"] and said["slots"][0]["confirmed"])
    (slot,) = said["slots"]
    assert (slot["slot"], slot["release"], slot["digest"]) == (SLOT, ONE, line.one.digest)


def test_a_device_reports_health_figures_and_events(line):
    """Readings of the machine, requests and FPS of each slot, and what changed with its evidence."""
    frame, _ = golden(ONE)
    camera = Camera(line.cam.door, frame)
    camera.start()
    health = line.listener.until("edge/v1/cam-1/tele/health")
    figures = line.listener.until(f"edge/v1/cam-1/tele/fps/{SLOT}", lambda said: said["requests"] > 0)
    camera.end()
    assert health["readings"]["memory_total_mb"] > 0
    assert figures["release"] == ONE
    assert figures["offered_fps"] > 0
    assert figures["latency_ms"]["p99"] >= figures["latency_ms"]["p50"] > 0
    kinds = {topic.rsplit("/", 1)[1] for topic, _, _ in line.ever.heard if "/evt/" in topic}
    assert {"stored", "verified", "passed", "swapped", "confirmed"} <= kinds


def test_birth_and_will_tell_who_is_there(line):
    """A device says online at birth; killed, the broker says offline for it, of the same birth."""
    born = line.listener.until("edge/v1/cam-1/state", lambda said: said["state"] == "online")
    line.cam.agent.kill()
    gone = line.listener.until("edge/v1/cam-1/state", lambda said: said["state"] == "offline")
    assert (gone["boot"], gone["birth"]) == (born["boot"], born["birth"])


def test_a_clean_stop_says_offline_at_once(line):
    """A device that leaves in order says so itself and takes its runner along."""
    line.cam.stop()
    line.listener.until("edge/v1/cam-1/state", lambda said: said["state"] == "offline")
    assert line.cam.runner() is None


def test_a_pin_holds_against_a_deployment_until_it_is_lifted(line):
    """A pinned release serves whatever is deployed; the empty pin lets the deployment in again."""
    assert outcome(line, line.command(line.cam, "pin", release=TWO))["status"] == "done"
    line.cam.until_serving(line.two, confirmed=True)
    line.rollout(ONE)
    line.cam.until(lambda: line.cam.slot()["record"]["soak_s"] == 0.3, "the deployment is known")
    assert line.cam.slot()["serving"] == TWO
    assert outcome(line, line.command(line.cam, "pin"))["status"] == "done"
    line.cam.until_serving(line.one, confirmed=True)


def test_a_rollback_goes_to_the_release_before_and_says_when_it_serves(line):
    """The reply is `done` when the older release serves; one more has nowhere to go, says so and changes nothing; the
    next deployment overrides it."""
    line.rollout(TWO)
    line.cam.until_serving(line.two, confirmed=True)
    said = outcome(line, line.command(line.cam, "rollback"))
    assert said["status"] == "done"
    assert said["result"][SLOT].startswith(ONE)
    line.cam.until_serving(line.one, confirmed=True)
    said = outcome(line, line.command(line.cam, "rollback"))
    assert said["status"] == "failed"
    assert "nothing to roll back to" in said["reason"]
    assert line.cam.slot()["serving"] == ONE
    line.rollout(TWO)
    line.cam.until_serving(line.two, confirmed=True)


def test_a_bench_measures_every_backend_beside_what_serves(line):
    """The reply holds figures of each candidate; requests go on meanwhile."""
    frame, wanted = golden(ONE)
    camera = Camera(line.cam.door, frame, {"20250628": wanted})
    camera.start()
    said = outcome(line, line.command(line.cam, "bench"))
    camera.end()
    measured = said["result"]["measured"][SLOT]
    assert all(one["release"].startswith(SLOT) for one in measured)
    assert {one["candidate"]["backend"] for one in measured} == {"openvino", "cpu"}
    assert all(one["evidence"]["fps"] > 0 for one in measured)
    assert (camera.failures, camera.wrong) == ([], [])


def test_sync_and_report_are_answered(line):
    """Both are done at once, and say so."""
    assert outcome(line, line.command(line.cam, "sync"))["status"] == "done"
    assert outcome(line, line.command(line.cam, "report"))["status"] == "done"


def test_a_retry_opens_what_was_rejected_for_speed(line):
    """A speed rejection holds until a signed retry; then the release is tried again, and rejected again."""
    bad = line.publish_hopeless()
    line.rollout(bad.name)
    line.cam.until(lambda: line.cam.slot().get("rejections"), "it is rejected for its speed")
    first = line.cam.slot()["rejections"][-1]["at"]
    said = outcome(line, line.command(line.cam, "retry"))
    assert said["result"]["reopened"] == [bad.name]
    line.cam.until(lambda: (line.cam.slot().get("rejections") or [{"at": first}])[-1]["at"] != first, "rejected again")
    assert line.cam.slot()["serving"] == ONE
