"""Nothing that the agent or the runner does holds up its event loop, whatever a model weighs."""

import pytest

from tests.system.client import sync
from tests.system.steady import until_settled
from tests.system.weighty import Weighty

WEIGHTS_MB = 78
LIMIT_MS = 100.0


@pytest.fixture(scope="module")
def heavy(tmp_path_factory):
    """A release with a 78 MB model; both backends take it."""
    return Weighty(tmp_path_factory.mktemp("heavy"), "20250701", WEIGHTS_MB)


@pytest.mark.slow
def test_a_heavy_model_never_stalls_the_event_loop(new_plant, heavy):
    """Pulled, verified, handed over, loaded and tried on both backends: no loop waits for 100 ms."""
    worst = max(lags(new_plant(), heavy).items(), key=lambda one: one[1])
    if worst[1] >= LIMIT_MS:  # once more: another process may have had both cores
        worst = max(lags(new_plant(), heavy).items(), key=lambda one: one[1])
    assert worst[1] < LIMIT_MS, worst


def lags(plant, heavy):
    """The longest wait of each loop over the whole way of a release, by process, in ms."""
    release = plant.publish_checked(heavy.checked)
    device = plant.device().start()
    device.until(lambda: (device.state() or {"runner": {"pid": 0}})["runner"]["pid"], "the runner is there")
    idle = of(device)
    plant.rollout(release.name, soak=0.3)
    sync(device)
    slot = until_settled(device, release, 120)
    tried = {one["place"]["candidate"]["backend"] for one in slot["trials"] if one["evidence"]["fps"] > 0}
    assert tried == {"openvino", "cpu"}
    print(f"\nloop lag in ms: {idle} before, {of(device)} after")
    return of(device)


def of(device):
    state = device.state()
    return {"agent": state["loop_lag_ms"], "runner": state["runner"]["loop_lag_ms"]}
