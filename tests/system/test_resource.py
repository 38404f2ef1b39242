"""A device without room for two seats: the old one leaves first, requests wait, and the way back is short."""

from tests.system.client import sync
from tests.system.plant import ONE, SLOT, TWO, CalmCamera, golden

RESOURCE = {"slots": {SLOT: {"swap": "resource", "hold_s": 20.0}}}


def test_requests_wait_while_the_one_seat_is_changed(plant):
    """Under `resource` no request fails as long as the change takes less than `hold_s`, and there is never a second seat."""
    one, two = plant.publish(ONE), plant.publish(TWO)
    device = plant.device(**RESOURCE).start()
    plant.rollout(ONE)
    device.until_serving(one, confirmed=True)
    frame, wanted = golden(ONE)
    camera = CalmCamera(device.door, frame, {"20250628": wanted})
    camera.start()
    plant.rollout(TWO)
    sync(device)
    seats = []
    device.until(lambda: seats.append(len(device.seats())) or device.slot()["serving"] == two.name, "the second serves")
    device.until_serving(two, confirmed=True)
    camera.end()
    assert (camera.failures, camera.wrong) == ([], [])
    assert set(camera.versions) == {"20250628", "20250629"}
    assert max(seats) == 1


def test_the_old_release_comes_back_when_the_new_one_misses(plant):
    """A release that misses its gates under `resource` is rejected, and the last good one is loaded again."""
    one, bad = plant.publish(ONE), plant.publish_hopeless()
    device = plant.device(**RESOURCE).start()
    plant.rollout(ONE)
    device.until_serving(one, confirmed=True)
    plant.rollout(bad.name)
    sync(device)
    device.until(lambda: device.slot().get("rejections"), "it is rejected for its speed")
    device.until_serving(one, confirmed=True)


def test_a_change_that_would_take_longer_than_requests_may_wait_is_refused(plant):
    """Nothing is unloaded for it: the refusal tells both times, and what serves goes on."""
    one, two = plant.publish(ONE), plant.publish(TWO)
    device = plant.device(slots={SLOT: {"swap": "resource", "hold_s": 0.01}}).start()
    plant.rollout(ONE)
    device.until_serving(one, confirmed=True)
    plant.rollout(TWO)
    sync(device)
    device.until(lambda: device.slot().get("rejections"), "it is refused")
    (refused,) = device.slot()["rejections"]
    assert device.slot()["serving"] == one.name
    assert "hold_s is 0.01: raise it" in str(refused)
    assert two.name in str(refused)
