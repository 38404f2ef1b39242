import numpy as np
import pytest

from agent.backends import open_session, read_head
from agent.backends.golden import Sample
from agent.core.candidate import Backend, Candidate
from agent.core.release import Compatibility, Config, Metadata
from models.loading import tensors
from tests.backends import graphs

CPU = Candidate(backend=Backend.CPU, threads=1)
OPENVINO = Candidate(backend=Backend.OPENVINO, threads=1)


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
