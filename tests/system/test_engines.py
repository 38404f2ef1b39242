"""An engine on a whole device: built once, sealed on its disk, taken at every start after, and never in clear."""

from contextlib import closing
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from agent.adapters.ledger import Ledger
from agent.core.records import TrialRecord
from agent.daemon.engines import bound
from agent.daemon.keyring import Keyring, pieces
from agent.trust.sealing import Opener
from tests.system.plant import GROUP, UnixConnection, infer
from tests.system.steady import events, until_settled
from tests.system.weighty import Weighty

KEPT = "step=engine outcome=kept"

pytest.importorskip("openvino", reason="the openvino extra is not installed")


def weights_of(release):
    """Words of the weights: one from each tenth row, as they lie in the model."""
    model = onnx.load_from_string(release.checked.weights)
    (tensor,) = model.graph.initializer
    return [row.tobytes()[:16] for row in numpy_helper.to_array(tensor)[::10]]


def engine_of(device):
    """What the device's one engine is under its seal, with the key that only the device has."""
    (path,) = (device.models / "engines").iterdir()
    with closing(Ledger(Path(device.tree["state_folder"]) / "ledger.db")) as ledger:
        (trial,) = ledger.all("trial", TrialRecord).values()
        keyring = Keyring(Path(device.tree["device_key"]), device.name, GROUP, ledger)
        known = SimpleNamespace(key=lambda candidate: trial.key)
        opener = Opener(keyring.engine_key(), bound(trial.place, known), pieces(path), None)
        return b"".join(piece for _, piece in opener.pieces())


def start(device, release):
    """Start all of it again; what is told of the load."""
    device.start()
    device.until(lambda: device.state()["pid"] == device.agent.pid, "its own state")
    until_settled(device, release)
    return events(device, "loaded")[-1][1]["reason"]


def test_an_engine_is_built_once_and_lies_nowhere_in_clear(plant, tmp_path):
    """Sealed when the candidate has passed, and taken at the next start; no file of the device holds a weight."""
    heavy = Weighty(tmp_path / "models", "20250701", 2.0, backends=["openvino"])
    release = plant.publish_checked(heavy.checked)
    device = plant.device().start()
    plant.rollout(release.name)
    until_settled(device, release)
    assert device.log.read_text().count(KEPT) == 1
    device.stop()
    assert start(device, release) == "its engine was kept here"
    answer = infer(UnixConnection(device.door), heavy.frame)
    assert np.allclose(answer.outputs["scores"], heavy.answer["scores"], atol=1e-3)

    assert device.log.read_text().count(KEPT) == 1, "it was taken, and not built anew"

    device.stop()
    words = weights_of(heavy)
    assert any(word in engine_of(device) for word in words), "an engine holds the weights as they are"
    for path in device.folder.rglob("*"):
        found = path.read_bytes() if path.is_file() else b""
        assert not any(word in found for word in words), path
