"""The main job over a real S3 server, with a device that may only read."""

import json
import os

import numpy as np
import onnx
import pytest

from agent.adapters.fetch import SYNC_BYTES
from models.folder import open_folder
from tests.fakes.seaweed import ADMIN, BUCKET, EDGE, Seaweed
from tests.system.client import command
from tests.system.plant import MODELS, ONE

PADDED = ONE.replace("20250628", "20250701")
PADDING_BYTES = 8_000_000  # of random weights, so that no compression makes them fewer
CUT_BYTES = 3_000_000
REBOOT_BYTES = (
    int(os.environ.get("REBOOT_MB", "64")) * 1_000_000
)  # of 64 MB a chunk is a quarter: what is fetched anew shows
ASIDE_BYTES = 500_000  # all that is fetched beside the release: metadata, grant, deployment


@pytest.fixture
def plant(new_plant, seaweed, request):
    """A plant whose desk may write to the bucket."""
    keys = {"access_key": ADMIN[0], "secret_key": ADMIN[1]}
    return new_plant(url=f"s3://{BUCKET}/{request.node.name}", settings={"endpoint": seaweed.endpoint, **keys})


def edge_device(plant, secret=EDGE[1], **store):
    """A device with the credentials of the edge."""
    return (
        plant.device(store={"access_key": EDGE[0], "secret_key": secret, "poll_s": 1.0, **store})
        .with_one_backend()
        .start()
    )


def test_a_device_that_may_only_read_pulls_and_serves(plant):
    """What was published to S3 is pulled with credentials that cannot write, and serves."""
    release = plant.publish(ONE)
    plant.rollout(ONE)
    device = edge_device(plant)
    device.until_serving(release, confirmed=True)
    assert device.slot()["digest"] == release.digest
    assert device.state()["store"].get("error", "") == ""


def test_a_wrong_secret_is_told_in_plain_words(plant):
    """Status says what is wrong, where, and what to do; the agent lives on."""
    plant.publish(ONE)
    plant.rollout(ONE)
    device = edge_device(plant, secret="not-the-secret")
    device.until(lambda: (device.state() or {"store": {}})["store"].get("error"), "the store's error is told")
    status = " ".join(command(device, "status").stdout.split())
    assert f"s3://{BUCKET}/" in status
    assert "the secret key is wrong: correct it in agent.yaml" in status
    assert device.is_alive()


def test_a_download_that_is_cut_goes_on_where_it_stopped(plant, seaweed, new_proxy, tmp_path):
    """A connection reset in the middle of a release costs the rest of it once more, not the whole."""
    release = plant.publish(PADDED, padded_release(tmp_path / "models", PADDING_BYTES))
    plant.rollout(PADDED)
    proxy = new_proxy(seaweed.port)
    proxy.cut_after = CUT_BYTES
    device = edge_device(plant, endpoint=proxy.endpoint)
    device.until_serving(release, confirmed=True)
    assert proxy.cut_after is None, "it was cut"
    size = sum(path.stat().st_size for path in device.models.rglob("*.sealed"))
    assert size > PADDING_BYTES
    assert size < proxy.down < size + ASIDE_BYTES


def test_a_reboot_in_the_middle_costs_a_chunk_at_most(new_plant, new_proxy, tmp_path):
    """Cut at 60 %, the agent killed, the server started anew: the second life fetches the other 40 % and a chunk."""
    (tmp_path / "server").mkdir()
    server = Seaweed(tmp_path / "server")
    server.start()
    try:
        keys = {"endpoint": server.endpoint, "access_key": ADMIN[0], "secret_key": ADMIN[1]}
        plant = new_plant(url=f"s3://{BUCKET}/reboot", settings=keys)
        release = plant.publish(PADDED, padded_release(tmp_path / "models", REBOOT_BYTES))
        plant.rollout(PADDED)
        proxy = new_proxy(server.port)
        proxy.cut_after = int(0.6 * REBOOT_BYTES)
        device = edge_device(plant, endpoint=proxy.endpoint)
        device.until(lambda: proxy.cut_after is None, "60 % were sent")
        proxy.refuse = True
        proxy.reset_all()
        device.until(lambda: kept(device) > 0.6 * REBOOT_BYTES - SYNC_BYTES / 2, "what came is kept")
        device.agent.kill()
        device.agent.wait()
        server.stop()
        server.start()
        before, proxy.refuse = proxy.down, False
        device.start()
        device.until_serving(release, confirmed=True)
        size = sum(path.stat().st_size for path in device.models.rglob("*.sealed"))
        assert size > REBOOT_BYTES
        assert proxy.down - before < 0.4 * size + SYNC_BYTES + ASIDE_BYTES
    finally:
        server.stop()


def kept(device):
    """Bytes of an unfinished download that are certainly on the disk."""
    return sum(json.loads(path.read_bytes())["synced"] for path in device.models.rglob("*.part.json"))


def padded_release(folder, size):
    """A models folder with a release of our own that weighs `size` bytes more."""
    ours = open_folder(MODELS)
    for room in ("weights", "metadata", "configs", "golden"):
        (folder / room).mkdir(parents=True)
    model = onnx.load(ours.weights(ONE))
    ballast = np.random.default_rng(0).integers(0, 256, size, np.uint8)
    model.graph.initializer.append(onnx.numpy_helper.from_array(ballast, "ballast"))
    onnx.save(model, folder / "weights" / f"{PADDED}.onnx")
    metadata = ours.metadata(ONE)[1] | {"name": PADDED, "version": "20250701"}
    (folder / "metadata" / f"{PADDED}_metadata.json").write_text(json.dumps(metadata))
    (folder / "configs" / f"{PADDED}_config.yaml").write_bytes(ours.config(ONE)[0].read_bytes())
    frame = (MODELS / "golden" / f"{ONE}_golden.npz").read_bytes()
    (folder / "golden" / f"{PADDED}_golden.npz").write_bytes(frame)
    return folder
