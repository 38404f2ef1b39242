"""Releases as heavy as a test wants them: one matrix, nothing that compression could spare."""

import io
import json

import numpy as np
import onnx
import yaml
from onnx import helper, numpy_helper

from models.check import check_release
from tests.system.plant import SLOT

SHAPE = (1, 3, 16, 16)
FEATURES = 3 * 16 * 16


class Weighty:
    """One release: `checked` is to be published, `frame` to be asked, `answer` what it says to that."""

    def __init__(self, folder, date, megabytes, backends=("openvino", "cpu")):
        self.name = f"{SLOT}_ssd_plates_{date}"
        self.version = date
        for room in ("weights", "metadata", "configs", "golden"):
            (folder / room).mkdir(parents=True, exist_ok=True)
        outputs = round(megabytes * 1e6 / 4 / FEATURES)
        weights = np.random.default_rng(int(date)).normal(size=(FEATURES, outputs)).astype(np.float32)
        save_model(folder / "weights" / f"{self.name}.onnx", weights)
        (folder / "metadata" / f"{self.name}_metadata.json").write_text(json.dumps(metadata(self.name, outputs)))
        (folder / "configs" / f"{self.name}_config.yaml").write_text(yaml.safe_dump(CONFIG | {"backends": [*backends]}))
        self.frame = np.random.default_rng(7).uniform(size=SHAPE).astype(np.float32)
        np.savez(folder / "golden" / f"{self.name}_golden.npz", **{"in.input": self.frame})
        self.checked = check_release(folder, self.name)
        with np.load(io.BytesIO(self.checked.golden)) as golden:
            self.answer = {"scores": golden["out.scores"].reshape(1, -1)}


CONFIG = {"input_size": list(SHAPE[2:]), "confidence_threshold": 0.5, "warm_up": 2}


def metadata(name, outputs):
    return {
        "name": name, "version": name.rsplit("_", 1)[1], "task": SLOT, "architecture": "ssd", "dataset": "plates",
        "accuracy": 0.9, "inference_time": 1.0, "model_size_mb": outputs * FEATURES * 4e-6,
        "inputs": [{"name": "input", "shape": list(SHAPE), "dtype": "float32"}],
        "outputs": [{"name": "scores", "shape": [1, outputs], "dtype": "float32"}],
        "compatibility": {"opset": 17, "memory_mb": 3 * outputs * FEATURES * 4e-6},
    }  # fmt: skip


def save_model(path, weights):
    nodes = [helper.make_node("Flatten", ["input"], ["flat"]), helper.make_node("MatMul", ["flat", "w"], ["scores"])]
    floats = onnx.TensorProto.FLOAT
    graph = helper.make_graph(
        nodes, "weighty",
        [helper.make_tensor_value_info("input", floats, SHAPE)],
        [helper.make_tensor_value_info("scores", floats, (1, weights.shape[1]))],
        [numpy_helper.from_array(weights, "w")],
    )  # fmt: skip
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
