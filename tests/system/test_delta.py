"""The next release of a model comes by delta, through a real desk, agent and runner."""

import numpy as np
import onnx
from onnx import numpy_helper

from fleet.publish import newest_publics, publish
from models.check import check_release
from tests.faults.standing import told
from tests.system.client import sync
from tests.system.plant import GROUP, Camera, now
from tests.system.weighty import Weighty, save_model

MEGABYTES = 4


def test_a_device_that_runs_a_release_takes_the_next_one_by_delta(plant, tmp_path):
    """Trained on a little: two thirds of the bytes come, the file is the signed one, and no request fails meanwhile."""
    first, second = (Weighty(tmp_path / "models", date, MEGABYTES) for date in ("20250701", "20250702"))
    weights = numpy_helper.to_array(onnx.load(tmp_path / "models/weights" / f"{first.name}.onnx").graph.initializer[0])
    moved = weights + 0.001 * np.random.default_rng(1).normal(size=weights.shape)
    save_model(tmp_path / "models/weights" / f"{second.name}.onnx", moved.astype(np.float32))
    old = plant.publish_checked(first.checked)
    new = publish(
        plant.repository, check_release(tmp_path / "models", second.name), newest_publics(plant.keyring, [GROUP]),
        bases=[first.checked], now=now(),
    )  # fmt: skip
    device = plant.device().with_one_backend().start()
    plant.rollout(old.name)
    device.until_serving(old, confirmed=True)
    camera = Camera(device.door, first.frame, {first.version: first.answer})
    camera.start()
    plant.rollout(new.name)
    sync(device)
    device.until_serving(new, confirmed=True)
    camera.end()
    assert (camera.failures, camera.wrong) == ([], [])
    assert f"by delta from {old.name}: " in told(device)["why"]
    sealed = device.models / "weights" / f"{new.name}.sealed"
    assert plant.repository.find(f"releases/{new.name}.sealed").length == sealed.stat().st_size
    assert sorted(path.name for path in sealed.parent.iterdir()) == [f"{old.name}.sealed", f"{new.name}.sealed"]
