"""What a slow download looks like from the outside: on the device's own terminal, and to the fleet."""

import time

from tests.system.client import command
from tests.system.listener import Listener
from tests.system.plant import SLOT
from tests.system.test_s3 import PADDED, padded_release

SECONDS = 8  # of the download at least
SIZE = 4_000_000


def test_a_pull_stays_until_what_is_wanted_serves(new_plant, mosquitto, tmp_path):
    """`pull` returns when it serves; the fleet hears that bytes come every 5 seconds, not every second."""
    plant = new_plant(broker=mosquitto)
    listener = Listener(mosquitto)
    device = plant.device(store={"rate_limit_mb_s": SIZE / SECONDS / 1e6}).start()
    device.until(lambda: device.state() and device.state()["broker"]["connected"], "the device is connected")
    release = plant.publish(PADDED, padded_release(tmp_path / "models", SIZE))
    began = time.monotonic()
    plant.rollout(PADDED, broker=False)
    done = command(device, "pull")
    assert (done.returncode, done.stdout) == (0, f"{SLOT}: {PADDED} serves\n"), done.stderr
    took = time.monotonic() - began
    assert device.slot()["digest"] == release.digest
    assert not done.stderr, "no bar, where nobody would see it move"

    said = listener.said("edge/v1/cam-1/reported", lambda said: said["slots"] and 0 < said["slots"][0]["progress"] < 1)
    listener.close()
    assert 1 <= len(said) <= 2 + took // 5
