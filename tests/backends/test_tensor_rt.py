"""TensorRT by its own module, against a stand-in: its calls and the device's memory. Not a proof of the real one."""

import importlib
import sys

import numpy as np
import pytest

from agent.backends import open_session, probe_backend
from agent.core.candidate import Backend, Candidate
from agent.core.errors import BackendError, InputError, Kind
from agent.core.release import Config
from tests.backends import graphs
from tests.fakes import tensorrt as fake

HALF = Candidate(backend=Backend.TENSORRT, precision="fp16")
IMAGE = np.array([[-1, 2, -3, 4]], np.float32)


@pytest.fixture
def cuda(monkeypatch):
    """The stand-in is what `import tensorrt` finds."""
    if importlib.util.find_spec("tensorrt") is not None:
        pytest.skip("this machine has TensorRT")
    fake.__spec__.name = "tensorrt"
    monkeypatch.setitem(sys.modules, "tensorrt", fake)
    monkeypatch.delitem(sys.modules, "agent.backends.tensor_rt", raising=False)
    library, cudart = importlib.import_module("agent.backends.tensor_rt"), fake.Cudart()
    monkeypatch.setattr(library, "_load_cudart", lambda: cudart)
    yield cudart
    sys.modules.pop("agent.backends.tensor_rt", None)


def relu(tmp_path, shape=(1, 4)):
    return str(graphs.chain(tmp_path / "relu.onnx", ["Relu"], shape=shape))


def config(**options):
    return Config(input_size=(8, 8), confidence_threshold=0.5, optimization={"tensorrt": options})


def test_an_engine_answers_as_onnx_runtimes_session_does(cuda, tmp_path):
    """run, get_inputs, get_outputs and get_providers; and close gives the device's memory and its stream back."""
    session = open_session(relu(tmp_path), HALF, config())
    assert session.run(None, {"input": IMAGE})[0].tolist() == [[0, 2, 0, 4]]
    assert session.run(["output"], {"input": -IMAGE})[0].tolist() == [[1, 0, 3, 0]]
    assert [(one.name, one.shape, one.type) for one in session.get_inputs()] == [("input", (1, 4), "tensor(float)")]
    assert [one.name for one in session.get_outputs()] == ["output"]
    assert session.get_providers() == ["TensorRT"]
    assert (len(cuda.blocks), len(cuda.streams)) == (2, 1)
    session.close()
    session.close()
    assert (cuda.blocks, cuda.streams) == ({}, set())


def test_the_precision_and_workspace_that_were_asked_for_are_set(cuda, tmp_path):
    """fp16 is a flag of the builder, and TF32 is never left on."""
    open_session(relu(tmp_path), HALF, config(workspace_mb=64))
    assert fake.built[-1].flags == {fake.BuilderFlag.FP16}
    assert fake.built[-1].cleared == {fake.BuilderFlag.TF32}
    assert fake.built[-1].limits == {fake.MemoryPoolType.WORKSPACE: 64 << 20}


def test_a_precision_that_this_tensorrt_has_not_is_an_error(cuda, tmp_path, monkeypatch):
    """TensorRT 11 has no fp16 flag: the engine would silently be another one."""
    monkeypatch.setattr(fake, "BuilderFlag", type("Flags", (), {"TF32": 1}))
    with pytest.raises(BackendError, match="computes in the model's types") as told:
        open_session(relu(tmp_path), HALF, config())
    assert told.value.kind is Kind.UNSUPPORTED


def test_open_sizes_are_those_of_the_config(cuda, tmp_path):
    """An image of open size is built for the config's batch and size, and refuses others."""
    session = open_session(relu(tmp_path, ("n", 3, "h", "w")), HALF, config())
    assert session.run(None, {"input": np.ones((1, 3, 8, 8), np.float32)})[0].shape == (1, 3, 8, 8)
    with pytest.raises(InputError, match="outside the range"):
        session.run(None, {"input": np.ones((2, 3, 8, 8), np.float32)})


def test_a_range_of_sizes_comes_from_the_config(cuda, tmp_path):
    """profiles: gives a range, and buffers grow with what is fed."""
    spans = {"input": {"min": [1, 4], "opt": [2, 4], "max": [8, 4]}}
    session = open_session(relu(tmp_path, ("n", 4)), HALF, config(profiles=spans))
    for batch in (1, 8, 2):
        assert session.run(None, {"input": np.repeat(IMAGE, batch, 0)})[0].shape == (batch, 4)
    assert len(cuda.blocks) == 2


def test_a_size_that_nobody_tells_is_an_error(cuda, tmp_path):
    """An open size that is neither batch nor image has to be in the config."""
    with pytest.raises(BackendError, match="profiles"):
        open_session(relu(tmp_path, (1, "n")), HALF, config())


def test_the_timing_cache_alone_is_kept(cuda, tmp_path, monkeypatch):
    """The cache folder holds timings, which the next build reads; never an engine."""
    monkeypatch.setenv("CACHE_DIRECTORY", str(tmp_path / "cache"))
    (tmp_path / "cache").mkdir()
    for _ in range(2):
        open_session(relu(tmp_path), HALF, config())
    assert [path.read_bytes() for path in (tmp_path / "cache").iterdir()] == [b"timed;timed;"]


def test_an_engine_is_taken_back_and_not_built_again(cuda, tmp_path):
    """What the session gave away answers as it did; nothing is built for it."""
    engine = bytes(open_session(relu(tmp_path), HALF, config()).engine())
    built = len(fake.built)
    session = open_session(relu(tmp_path), HALF, config(), engine)
    assert session.run(None, {"input": IMAGE})[0].tolist() == [[0, 2, 0, 4]]
    assert len(fake.built) == built


def test_an_engine_that_tensorrt_refuses_is_an_error(cuda, tmp_path):
    """One of another version or GPU is None to TensorRT; the caller is told."""
    with pytest.raises(BackendError, match="does not take back its own engine"):
        open_session(relu(tmp_path), HALF, config(), b"of another version (")


def test_an_operator_that_tensorrt_has_not_is_told(cuda, tmp_path):
    """The parser's reasons are in the error."""
    path = str(graphs.chain(tmp_path / "m.onnx", ["Sigmoid"]))
    with pytest.raises(BackendError, match="no such operator"):
        open_session(path, HALF, config())


def test_too_little_memory_on_the_device_is_told(cuda, tmp_path):
    """CUDA's error is a MEMORY failure with CUDA's words."""
    session = open_session(relu(tmp_path, (1, 1 << 20)), HALF, config())
    with pytest.raises(BackendError, match="out of memory") as caught:
        session.run(None, {"input": np.ones((1, 1 << 20), np.float32)})
    assert caught.value.kind is Kind.MEMORY


def test_a_probe_uses_it(cuda, tmp_path):
    """Where the module is there, it is what TensorRT is probed with; the stand-in cannot multiply, and is absent."""
    found = probe_backend(Backend.TENSORRT)
    assert not found.present
    assert "TensorRT 10.16.0 does not read the model" in found.reason


def test_a_full_disk_costs_no_engine(cuda, tmp_path, monkeypatch):
    """The cache of timings cannot be written: what took minutes to build is used all the same."""
    monkeypatch.setenv("CACHE_DIRECTORY", str(tmp_path / "gone"))
    session = open_session(relu(tmp_path), HALF, config())
    assert session.run(None, {"input": IMAGE})[0].tolist() == [[0, 2, 0, 4]]


def test_memory_that_was_given_back_is_bound_no_more(cuda, tmp_path, monkeypatch):
    """There is no room for a larger frame: a smaller one gets memory of its own, and all is freed once."""
    session = open_session(
        relu(tmp_path, ("n", 4)), HALF, config(profiles={"input": {"min": (1, 4), "opt": (2, 4), "max": (8, 4)}})
    )
    session.run(None, {"input": IMAGE})
    allocate = session._cuda.allocate

    def full(size):
        raise BackendError("CUDA: out of memory", Kind.MEMORY)

    monkeypatch.setattr(session._cuda, "allocate", full)
    with pytest.raises(BackendError, match="out of memory"):
        session.run(None, {"input": np.repeat(IMAGE, 8, axis=0)})
    monkeypatch.setattr(session._cuda, "allocate", allocate)
    assert session.run(None, {"input": IMAGE})[0].tolist() == [[0, 2, 0, 4]]
    session.close()
