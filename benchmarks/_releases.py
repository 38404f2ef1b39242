"""A release of any ONNX file, for a runner alone: what a publisher would hand over, with golden samples of noise."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import yaml
from onnx import TensorProto, helper, numpy_helper

from agent.backends import open_session, read_head
from agent.backends.golden import Sample
from agent.backends.session import Array, Session
from agent.core.candidate import Backend, Candidate
from agent.core.messages import CONFIG, GOLDEN, METADATA, WEIGHTS
from agent.core.release import Config
from models.golden import save_golden
from models.loading import tensors
from tests.backends.conftest import FOLDER
from tests.runner.conftest import CPU, Release, named

ROOT = Path(__file__).parents[1]
CUDA = Candidate(backend=Backend.CUDA)
TINY = ROOT / "models" / "weights" / "defect_detection_ssd_plates_20250629.onnx"
WIDTHS, STEPS = (16, 32, 32, 64, 64, 64, 128, 128, 128, 256, 256, 256), (2, 2, 1) + 3 * (2, 1, 1)
_UNTOLD = Config(input_size=(1, 1), confidence_threshold=0.5)


def opened(path: Path, candidate: Candidate = CPU) -> Session:
    """A session on the file."""
    return open_session(str(path), candidate, _UNTOLD)


def noise(session: Session, seed: int = 0) -> dict[str, Array]:
    """An input that fits: open sizes are 1."""
    return {
        port.name: np.random.default_rng(seed).random(tuple(max(1, size) for size in port.shape), np.float32)
        for port in tensors(session.get_inputs())
    }


def release_of(path: Path, day: int, candidate: Candidate = CPU, atol: float = 5e-3) -> Release:
    """A release of 2025-07-`day` with the file's tensors and one golden sample, placed on a candidate."""
    session = opened(path)
    feeds, names = noise(session), [port.name for port in session.get_outputs()]
    golden = Sample(feeds, dict(zip(names, session.run(None, feeds), strict=True)))
    name = f"defect_detection_ssd_plates_202507{day:02}"
    metadata = {
        "name": name, "version": "1.0.0", "task": "defect_detection", "architecture": "ssd", "dataset": "plates",
        "accuracy": 0.9, "inference_time": 1.0, "model_size_mb": path.stat().st_size / 1e6,
        "inputs": described(session.get_inputs()), "outputs": described(session.get_outputs()),
        "compatibility": {"opset": read_head(str(path)).opset},
    }  # fmt: skip
    gates = {"max_latency_p95_ms": 5000.0, "parity": {one: {"atol": atol, "rtol": 1e-3} for one in names}}
    config = {"input_size": [8, 8], "confidence_threshold": 0.5, "gates": gates, "warm_up": 2}
    session.close()
    parts = {
        WEIGHTS: path.read_bytes(),
        METADATA: json.dumps(metadata).encode(),
        CONFIG: yaml.safe_dump(config).encode(),
        GOLDEN: save_golden([golden]),
    }
    return replace(named(name, parts), candidate=candidate)


def described(ports: object) -> list[dict[str, object]]:
    """Tensors as metadata writes them."""
    return [{"name": one.name, "shape": list(one.shape), "dtype": one.dtype} for one in tensors(ports)]  # type: ignore[arg-type]


def small(folder: Path) -> Path:
    """A detector of 1 GFLOP: RetinaFace of the acceptance models where they are, else one made in `folder`."""
    found = FOLDER / "retinaface_mobilenet0.25_640.onnx"
    return found if found.exists() else _drawn(folder / "retina_sized.onnx", [width // 3 for width in WIDTHS])


def yolo(folder: Path) -> Path:
    """A model of YOLOv8n's size and shape: the acceptance models' where they are, else one made in `folder`."""
    found = FOLDER / "yolov8n_shaped_random_weights.onnx"
    return found if found.exists() else _drawn(folder / "yolo_sized.onnx", WIDTHS)


def _drawn(path: Path, widths: Sequence[int]) -> Path:
    """Convolutions on a picture of 640 x 640; of all of WIDTHS they have 2 million weights and take YOLOv8n's time."""
    rng, nodes, weights, channels, tensor = np.random.default_rng(0), [], [], 3, "images"
    for place, (width, stride) in enumerate(zip(widths, STEPS, strict=True)):
        kernel = (rng.standard_normal((width, channels, 3, 3)) / (3 * channels**0.5)).astype(np.float32)
        weights.append(numpy_helper.from_array(kernel, f"w{place}"))
        nodes.append(helper.make_node("Conv", [tensor, f"w{place}"], [f"c{place}"], strides=[stride] * 2, pads=[1] * 4))
        nodes.append(helper.make_node("Relu", [f"c{place}"], [f"r{place}"]))
        channels, tensor = width, f"r{place}"
    ports = [
        helper.make_tensor_value_info("images", TensorProto.FLOAT, [1, 3, 640, 640]),
        helper.make_tensor_value_info(tensor, TensorProto.FLOAT, [1, channels, 20, 20]),
    ]
    graph = helper.make_graph(nodes, path.stem, ports[:1], ports[1:], weights)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path
