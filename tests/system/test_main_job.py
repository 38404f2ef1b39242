"""The main job, end to end, with real processes, a real broker and a real store."""

from tests.system.client import sync
from tests.system.plant import ONE, TWO, CalmCamera, golden


def test_a_release_goes_all_the_way_and_back(new_plant, mosquitto):
    """Published, pulled, proven, served; swapped by a message, rolled back by a command, while a camera asks."""
    plant = new_plant(broker=mosquitto)
    one, two = plant.publish(ONE), plant.publish(TWO)
    device = plant.device().start()
    plant.rollout(ONE)
    device.until_serving(one, confirmed=True)
    frame, wanted = golden(ONE)
    camera = CalmCamera(device.door, frame, {"20250628": wanted})
    camera.start()
    plant.rollout(TWO)
    device.until_serving(two, confirmed=True)
    plant.command(device, "rollback")
    device.until_serving(one, confirmed=True)
    camera.end()
    assert (camera.failures, camera.wrong) == ([], [])
    assert set(camera.versions) == {"20250628", "20250629"}


def test_a_release_that_is_too_slow_is_refused_by_measurement(plant):
    """It misses its speed gate on every backend; the good one goes on, and the reason is told."""
    good, bad = plant.publish(ONE), plant.publish_hopeless()
    device = plant.device().start()
    plant.rollout(ONE)
    device.until_serving(good, confirmed=True)
    plant.rollout(bad.name)
    sync(device)
    device.until(lambda: device.slot().get("rejections"), "it is rejected")
    (rejection,) = device.slot()["rejections"]
    assert rejection["ref"]["digest"] == bad.digest
    assert rejection["failure"]["kind"] == "speed"
    assert "FPS" in rejection["failure"]["reason"]
    assert device.slot()["serving"] == ONE
