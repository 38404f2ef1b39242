"""NVIDIA's client, unmodified, at a device's door: what was written for Triton works here, and through a swap."""

import numpy as np
import pytest
import tritonclient.http as triton
from tritonclient.utils import InferenceServerException

from tests.fakes.ports import free_ports
from tests.system.client import sync
from tests.system.plant import ONE, SLOT, TWO, golden

SHAPES = {"input": [1, 3, 160, 160], "boxes": [1, 2200, 4], "scores": [1, 2200, 3]}
TOLERANCE = {"boxes": 0.25, "scores": 0.003}  # the release's own parity
LABEL = {ONE: "20250628", TWO: "20250629"}


@pytest.fixture
def device(plant):
    """A device with a door on the loopback's TCP, which serves the first version."""
    for name in (ONE, TWO):
        plant.publish(name)
    (port,) = free_ports(1)
    device = plant.device(runner={"tcp": f"127.0.0.1:{port}"}).start()
    plant.rollout(ONE)
    sync_when_up(device)
    device.until_serving(ONE, confirmed=True)
    return device


@pytest.fixture
def client(device):
    """One client for the whole test, as a camera application has it."""
    client = triton.InferenceServerClient(device.tree["runner"]["tcp"])
    yield client
    client.close()


def test_a_client_for_triton_works_across_a_rollout(plant, device, client):
    """Health, metadata, configuration, statistics and binary tensors, of one version and then of the other."""
    assert_serves(client, ONE)
    plant.rollout(TWO)
    sync(device)
    device.until_serving(TWO, confirmed=True)
    assert_serves(client, TWO)
    with pytest.raises(InferenceServerException, match="serves version 20250629"):
        client.infer(SLOT, [given(ONE)], model_version=LABEL[ONE])


def sync_when_up(device):
    device.until(lambda: device.state() is not None, "the agent is up")
    sync(device)


def assert_serves(client, release):
    """All that a client may ask fits the release, and the answers are its golden ones."""
    label = LABEL[release]
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready(SLOT)
    assert client.is_model_ready(SLOT, label)
    assert not client.is_model_ready(SLOT, "20250101")
    assert_told(client, label)
    before = statistics(client, label)
    for version in ("", label):
        assert_golden(client.infer(SLOT, [given(release)], model_version=version), release)
    after = statistics(client, label)
    assert after["inference_count"] == before["inference_count"] + 2
    assert after["inference_stats"]["success"]["ns"] > before["inference_stats"]["success"]["ns"]


def assert_told(client, label):
    """Metadata and configuration name the version and its tensors."""
    metadata = client.get_model_metadata(SLOT)
    assert (metadata["name"], metadata["versions"]) == (SLOT, [label])
    told = {one["name"]: one["shape"] for one in metadata["inputs"] + metadata["outputs"]}
    assert told == SHAPES
    config = client.get_model_config(SLOT)
    assert {one["name"]: one["dims"] for one in config["input"] + config["output"]} == SHAPES


def assert_golden(result, release):
    """The answer is of this release: by the version it names, and by every number."""
    response = result.get_response()
    assert (response["model_name"], response["model_version"]) == (SLOT, LABEL[release])
    _, wanted = golden(release)
    for name, tolerance in TOLERANCE.items():
        np.testing.assert_allclose(result.as_numpy(name), wanted[name], atol=tolerance, rtol=1e-3)


def given(release):
    """The golden input as a binary tensor."""
    frame, _ = golden(release)
    tensor = triton.InferInput("input", list(frame.shape), "FP32")
    tensor.set_data_from_numpy(frame, binary_data=True)
    return tensor


def statistics(client, label):
    (one,) = client.get_inference_statistics(SLOT, label)["model_stats"]
    return one
