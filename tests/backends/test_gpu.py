"""On an NVIDIA GPU: `pytest tests/backends -k gpu`. Elsewhere every test that needs one skips, and says what is missing.

What a backend claims is not believed here either: answers are held against ONNX Runtime's CPU, and what computed them
is looked up.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from msgspec.structs import replace
from onnx import helper

from agent.backends import hardware, open_session
from agent.backends.golden import load_golden
from agent.backends.onnx_runtime import PROVIDERS, preload
from agent.backends.trial import Loaded, run_trial
from agent.core.candidate import Backend, Candidate, Found, judge
from agent.core.documents import from_json, from_tree, from_yaml
from agent.core.errors import BackendError
from agent.core.release import Config, Metadata, Tolerance
from models.check import check_release
from models.folder import open_folder
from tests.backends import graphs
from tests.backends.conftest import FOLDER, WIDE, trusted

CUDA = Candidate(backend=Backend.CUDA)
TENSORRT = Candidate(backend=Backend.TENSORRT)
TREE = open_folder().releases()
HALF = Tolerance(atol=0.02, rtol=0.02)  # fp16 has 11 bits
ANY_SPEED = {"min_fps": 0.1, "max_latency_p95_ms": 1e6, "max_memory_mb": 1e6}  # right, however slow or large


def probed(**environment):
    """What a child finds, which is how the runner asks."""
    command = [sys.executable, "-m", "agent.runner.seat", "--probe", "cuda", "tensorrt"]
    done = subprocess.run(command, check=True, capture_output=True, env={**os.environ, **environment}, timeout=280)
    return {one.backend: one for one in from_tree(tuple[Found, ...], json.loads(done.stdout), "probe")}


@pytest.fixture(scope="module")
def found():
    return probed()


@pytest.fixture(params=[CUDA, TENSORRT], ids=str)
def gpu(request, found):
    """A candidate whose backend works on this machine."""
    one = found[request.param.backend]
    if not one.present:
        pytest.skip(f"needs an NVIDIA GPU with {one.backend}: {one.reason}")
    return request.param


def proven(path, candidate, metadata, config, golden):
    """The evidence of a trial on a GPU, which must be good."""
    used_mb = hardware.gpu_memory_mb()[1]
    session = open_session(path, candidate, config)
    try:
        evidence = run_trial(Loaded(candidate, session, metadata, config, golden, 0.0, used_mb), "key", 20)
        assert judge(evidence, replace(config.gates, **ANY_SPEED)) is None
        return evidence, session.shares() if hasattr(session, "shares") else {}
    finally:
        session.close()


def test_the_gpu_of_this_machine_is_found(found):
    """Where there is a GPU and a wheel for it, CUDA is present: libraries in NVIDIA's own wheels are found too."""
    if not Path("/dev/nvidia0").exists():
        pytest.skip("needs an NVIDIA GPU: there is no /dev/nvidia0")
    if "CUDAExecutionProvider" not in __import__("onnxruntime").get_available_providers():
        pytest.skip("needs the gpu extra: this onnxruntime is built without CUDA")
    assert found[Backend.CUDA].present, found[Backend.CUDA].reason
    assert preload() == ""


def test_a_hidden_gpu_is_not_replaced(found):
    """With no GPU to be seen, every GPU backend is absent and says what to do: the CPU never answers in its place."""
    if not found[Backend.CUDA].present:
        pytest.skip(f"needs an NVIDIA GPU with cuda: {found[Backend.CUDA].reason}")
    for one in probed(CUDA_VISIBLE_DEVICES="-1").values():
        assert not one.present
        assert "Next: " in one.reason


@pytest.mark.parametrize("name", TREE)
def test_a_release_of_the_tree_passes_its_trial_on_the_gpu(gpu, name, tmp_path):
    """What was published is in parity within its own tolerance, on the GPU alone, and leaves evidence of it."""
    checked = check_release(None, name)
    metadata, config = from_json(Metadata, checked.metadata, name), from_yaml(Config, checked.config, name)
    path = tmp_path / "model.onnx"
    path.write_bytes(checked.weights)
    evidence, shares = proven(str(path), gpu, metadata, config, load_golden(checked.golden, metadata))
    assert evidence.providers[0] == PROVIDERS[gpu.backend] or evidence.providers == ("TensorRT",)
    assert "CPUExecutionProvider" not in shares
    assert {one.output for one in evidence.deviations} == {one.name for one in metadata.outputs}
    assert evidence.fps > 0
    assert evidence.memory_mb > 10


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.onnx")), ids=lambda path: path.stem)
def test_a_real_model_is_in_parity_on_the_gpu(gpu, path, record_property):
    """Models as people export them; one with nodes that no GPU has says so, and runs where the config allows it."""
    _, metadata, config, golden = trusted(path, WIDE)
    try:
        _, shares = proven(str(path), gpu, metadata, config, golden)
    except BackendError as error:
        if "cpu_nodes: allow" not in str(error):
            raise
        config = replace(config, optimization={str(gpu.backend): {"cpu_nodes": "allow"}})
        _, shares = proven(str(path), gpu, metadata, config, golden)
    record_property("shares", str(shares))
    assert not shares or PROVIDERS[gpu.backend] in shares


@pytest.mark.parametrize("batch", [1, 4])
def test_a_detector_of_full_size_is_in_parity_on_the_gpu(gpu, tmp_path, batch):
    """Eight GFLOP an image, alone and in a batch; its memory on the GPU is in the evidence where the driver tells."""
    path, metadata, config, golden = trusted(graphs.detector(tmp_path / "m.onnx", batch), WIDE)
    evidence, _ = proven(path, gpu, metadata, config, golden)
    if hardware.gpu_memory_mb()[1]:
        assert evidence.conditions["gpu_mb"] > 10


def test_a_model_in_fp16_is_near_its_fp32_on_the_gpu(gpu, tmp_path):
    """The same weights in half precision are within what eleven bits allow."""
    _, _, config, golden = trusted(graphs.detector(tmp_path / "full.onnx"), WIDE)
    half = str(graphs.detector(tmp_path / "half.onnx", dtype="float16"))
    session = open_session(half, replace(gpu, precision="fp16"), config)
    given = session.run(None, {"input": golden[0].feeds["input"].astype(np.float16)})[0].astype(np.float32)
    np.testing.assert_allclose(given, golden[0].outputs["output"], atol=HALF.atol, rtol=HALF.rtol)
    session.close()


def test_a_node_that_the_gpu_has_not_is_told(gpu, tmp_path, config):
    """A node without a kernel there is an error, not a silent detour; the config may allow it, and the answer is right."""
    path = tmp_path / "det.onnx"
    nodes = [helper.make_node("Relu", ["input"], ["some"]), helper.make_node("Det", ["some"], ["output"])]
    graphs.save(path, nodes, [graphs.tensor("input", (1, 2, 2))], [graphs.tensor("output", (1,))])
    with pytest.raises(BackendError, match=r"cpu_nodes: allow|does not read the model"):
        open_session(str(path), gpu, config)
    if gpu == CUDA:
        allowing = replace(config, optimization={"cuda": {"cpu_nodes": "allow"}})
        session = open_session(str(path), gpu, allowing)
        assert session.run(None, {"input": np.array([[[2, 1], [-3, 4]]], np.float32)})[0].tolist() == [8.0]
        assert set(session.shares()) == {"CUDAExecutionProvider", "CPUExecutionProvider"}


def test_a_precision_that_cuda_has_not_is_told(gpu, model, config):
    """CUDA computes in the model's own types: fp16 of an fp32 model is an error there."""
    if gpu != CUDA:
        pytest.skip("TensorRT converts")
    with pytest.raises(BackendError, match=r"optimization\.cuda\.precision"):
        open_session(str(model), replace(gpu, precision="fp16"), config)


def test_a_closed_session_gives_the_gpu_its_memory_back(gpu, tmp_path):
    """Ten sessions one after another take no more of the GPU than one."""
    if not hardware.gpu_memory_mb()[1]:
        pytest.skip("needs a driver that tells the GPU's memory")
    path, _, config, golden = trusted(graphs.detector(tmp_path / "m.onnx"), WIDE)
    used_mb = []
    for _ in range(3 if gpu == TENSORRT else 10):
        session = open_session(path, gpu, config)
        session.run(None, golden[0].feeds)
        session.close()
        used_mb.append(hardware.gpu_memory_mb()[1])
    assert used_mb[-1] < used_mb[0] + 50, used_mb
