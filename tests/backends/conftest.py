import os
from pathlib import Path

import numpy as np
import pytest

from agent.backends import open_session, read_head
from agent.backends.golden import Sample
from agent.core.candidate import Backend, Candidate
from agent.core.release import Compatibility, Config, Gates, Metadata, Tolerance
from models.loading import tensors
from tests.backends import graphs

CPU = Candidate(backend=Backend.CPU, threads=1)
OPENVINO = Candidate(backend=Backend.OPENVINO, threads=1)
FOLDER = Path(os.environ.get("EDGE_ACCEPTANCE_MODELS", Path(__file__).parents[3] / "shared" / "models"))
WIDE = Tolerance(atol=5e-3, rtol=1e-3)  # decoded boxes are in pixels


@pytest.fixture(params=[CPU, OPENVINO], ids=str)
def candidate(request):
    if request.param.backend is Backend.OPENVINO:
        pytest.importorskip("openvino", reason="the openvino extra is not installed")
    return request.param


@pytest.fixture
def config():
    return Config(input_size=(8, 8), confidence_threshold=0.5, warm_up=1)


@pytest.fixture
def model(tmp_path):
    return graphs.network(tmp_path / "model.onnx")


@pytest.fixture
def metadata(model, config):
    return describe(model, config)


@pytest.fixture
def golden(model, config):
    """Two samples and what ONNX Runtime's CPU answers."""
    session = open_session(str(model), CPU, config)
    names = [port.name for port in session.get_outputs()]
    samples = []
    for seed in range(2):
        feeds = {"input": np.random.default_rng(seed).random(graphs.SHAPE, np.float32)}
        samples.append(Sample(feeds, dict(zip(names, session.run(None, feeds), strict=True))))
    return tuple(samples)


@pytest.fixture(params=sorted(FOLDER.glob("*.onnx")) or [None], ids=lambda path: path.stem if path else "none")
def real_release(request):
    """Of a model that other people made: a path, its metadata, config, and a golden sample of noise."""
    if request.param is None:
        pytest.skip(f"no models in {FOLDER}: set EDGE_ACCEPTANCE_MODELS")
    return trusted(request.param, WIDE)


def trusted(path, tolerance):
    """Path, metadata, config and a golden sample of noise for any model, as if somebody had published it."""
    session = open_session(str(path), CPU, Config(input_size=(1, 1), confidence_threshold=0.5))
    ports = tensors(session.get_inputs())
    noise = np.random.default_rng(0)
    feeds = {
        one.name: noise.random([max(1, size) for size in one.shape], np.float32).astype(one.dtype) for one in ports
    }
    names = [port.name for port in session.get_outputs()]
    golden = (Sample(feeds, dict(zip(names, session.run(None, feeds), strict=True))),)
    gates = Gates(parity=dict.fromkeys(names, tolerance), min_fps=0.1)
    config = Config(input_size=(1, 1), confidence_threshold=0.5, gates=gates, warm_up=1)
    return str(path), describe(path, config), config, golden


def describe(path, config):
    session = open_session(str(path), CPU, config)
    return Metadata(
        name="pose_ssd_coco_20250628",
        version="20250628",
        task="pose",
        architecture="ssd",
        dataset="coco",
        accuracy=0.9,
        inference_time=1.0,
        model_size_mb=0.1,
        inputs=tensors(session.get_inputs()),
        outputs=tensors(session.get_outputs()),
        compatibility=Compatibility(opset=read_head(path).opset),
    )
