"""A whole desk on a folder: keys, a repository, and a tiny release."""

from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

import numpy as np
from securesystemslib.signer import CryptoSigner

from agent.adapters.tuf_client import TufClient
from agent.core.documents import to_json
from fleet.publish import newest_publics, publish
from fleet.repository import Repository
from fleet.stores import DeskFolder
from provisioning.keys import PRIVATE, init_group, init_keys, write_new

NOW = datetime(2026, 11, 1, 12, 0, tzinfo=UTC)
MINUTE = timedelta(minutes=1)
NEW = "face_detection_retinaface_widerface_20250628"
OLD = "face_detection_retinaface_widerface_20250101"
OTHER = "fire_detection_yolov8_dfire_20250401"
TENSOR = {"name": "x", "shape": [1, 4], "dtype": "float32"}
WEIGHTS = np.random.default_rng(5).normal(size=20_000).astype(np.float32).tobytes()


@dataclass(frozen=True)
class Checked:
    """What `models.check` gives for a release that passed."""

    name: str
    metadata: bytes
    config: bytes = b"input_size: [4, 4]\nconfidence_threshold: 0.5\n"
    weights: object = WEIGHTS
    golden: bytes = b"golden"
    notes: tuple = ("its name is nice",)
    variants: dict = field(default_factory=dict)


def checked(name=NEW, **changes):
    task = "_".join(name.split("_")[:2])
    metadata = {
        "name": name, "version": "1.0", "task": task, "architecture": "retinaface", "dataset": "widerface", "accuracy": 0.9,
        "inference_time": 5.0, "model_size_mb": 0.1, "inputs": [TENSOR], "outputs": [TENSOR],
        "compatibility": {"opset": 17, "memory_mb": 12.5},
    }  # fmt: skip
    return Checked(name=name, metadata=to_json(metadata), **changes)


class Desk:
    """Everything of one operator who holds all keys."""

    def __init__(self, folder, operators=1):
        self.folder = folder
        self.store = DeskFolder(folder / "store")
        self.store.root.mkdir()
        self.keyring = init_keys(folder / "keys")
        for number in range(2, operators + 1):
            path = self.keyring.folder / f"roles/operators-{number}.pem"
            write_new(path, CryptoSigner.generate_ed25519().private_bytes, PRIVATE)
        init_group(self.keyring, "g1")
        self.repository = Repository.start(self.store, self.keyring, NOW)

    def load(self):
        return Repository.load(self.store, self.keyring)

    def publish(self, name=NEW, repository=None, **changes):
        publics = newest_publics(self.keyring, self.keyring.groups())
        return publish(repository or self.repository, checked(name, **changes), publics, now=NOW)

    def device(self, name="cam-7", now=NOW):
        """What a device believes of the store."""
        folder = self.folder / "devices" / name
        folder.mkdir(parents=True, exist_ok=True)
        return TufClient(folder, self.store, self.keyring.root(), check=lambda _: None).refresh(now)
