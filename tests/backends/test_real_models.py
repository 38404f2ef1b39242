"""Detectors and embedders as people export them, where there are some: EDGE_ACCEPTANCE_MODELS names their folder."""

import os
from pathlib import Path

import numpy as np
import pytest

from agent.backends import open_session
from agent.backends.golden import Sample
from agent.backends.trial import Loaded, run_trial
from agent.core.candidate import Backend, Candidate, judge
from agent.core.errors import Kind
from agent.core.release import Config, Gates, Tolerance
from models.loading import tensors
from tests.backends.conftest import CPU, describe

FOLDER = Path(os.environ.get("EDGE_ACCEPTANCE_MODELS", Path(__file__).parents[3] / "shared" / "models"))
MODELS = sorted(FOLDER.glob("*.onnx"))
WIDE = Tolerance(atol=5e-3, rtol=1e-3)  # decoded boxes are in pixels


@pytest.fixture(params=MODELS or [None], ids=lambda path: path.stem if path else "none")
def release(request):
    """A path, its metadata, config, and a golden sample of noise."""
    if request.param is None:
        pytest.skip(f"no models in {FOLDER}: set EDGE_ACCEPTANCE_MODELS")
    path = request.param
    session = open_session(str(path), CPU, Config(input_size=(1, 1), confidence_threshold=0.5))
    shapes = {port.name: tuple(max(1, size) for size in port.shape) for port in tensors(session.get_inputs())}
    feeds = {name: np.random.default_rng(0).random(shape, np.float32) for name, shape in shapes.items()}
    names = [port.name for port in session.get_outputs()]
    golden = (Sample(feeds, dict(zip(names, session.run(None, feeds), strict=True))),)
    gates = Gates(parity=dict.fromkeys(names, WIDE), min_fps=0.1)
    config = Config(input_size=(1, 1), confidence_threshold=0.5, gates=gates, warm_up=1)
    return str(path), describe(path, config), config, golden


@pytest.mark.parametrize("backend", [Backend.CPU, Backend.OPENVINO])
def test_a_real_model_passes_its_trial(release, backend):
    """Each backend in fp32 is in parity on a real model, and leaves evidence."""
    if backend is Backend.OPENVINO:
        pytest.importorskip("openvino", reason="the openvino extra is not installed")
    path, metadata, config, golden = release
    candidate = Candidate(backend=backend, threads=1)
    loaded = Loaded(candidate, open_session(path, candidate, config), metadata, config, golden, 0.0)
    evidence = run_trial(loaded, "key", 3)
    assert judge(evidence, config.gates) is None
    assert evidence.fps > 0


def test_a_lower_precision_is_noticed(release):
    """What OpenVINO would choose by itself on recent CPUs, bf16, is out of parity on a real model."""
    pytest.importorskip("openvino", reason="the openvino extra is not installed")
    if "avx512_bf16" not in Path("/proc/cpuinfo").read_text(encoding="utf-8"):
        pytest.skip("this CPU does not compute in bf16")
    path, metadata, config, golden = release
    if "random_weights" in path:
        pytest.skip("random weights answer nearly the same to anything")
    candidate = Candidate(backend=Backend.OPENVINO, precision="bf16")
    loaded = Loaded(candidate, open_session(path, candidate, config), metadata, config, golden, 0.0)
    evidence = run_trial(loaded, "key", 3)
    failure = judge(evidence, config.gates)
    assert failure is not None
    assert failure.kind is Kind.PARITY
