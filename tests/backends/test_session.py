"""Every backend answers as ONNX Runtime's session does, on the backend that was asked for."""

import fcntl
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from agent.backends import onnx_runtime, open_session
from agent.core.candidate import Backend, Candidate
from agent.core.errors import BackendError, InputError, Kind
from agent.core.release import Config
from tests.backends import graphs
from tests.backends.conftest import CPU

FEEDS = {"input": np.ones(graphs.SHAPE, np.float32)}


@pytest.fixture
def session(model, candidate, config):
    session = open_session(str(model), candidate, config)
    yield session
    session.close()


def test_a_session_names_its_tensors(session):
    """Names, shapes and types of inputs and outputs are the file's, in its order, on every backend."""
    assert [(one.name, list(one.shape), one.type) for one in session.get_inputs()] == [
        ("input", [1, 3, 8, 8], "tensor(float)")
    ]
    assert [(one.name, list(one.shape), one.type) for one in session.get_outputs()] == [
        ("features", [1, 4, 8, 8], "tensor(float)"),
        ("scores", [1, 4], "tensor(float)"),
    ]


def test_backends_agree(model, session, config):
    """All outputs, or those named in the order named, are what the CPU of ONNX Runtime answers."""
    reference = open_session(str(model), CPU, config).run(None, FEEDS)
    given = session.run(None, FEEDS)
    assert [np.allclose(one, other, atol=1e-5) for one, other in zip(given, reference, strict=True)] == [True, True]
    assert [one.shape for one in session.run(["scores", "features"], FEEDS)] == [(1, 4), (1, 4, 8, 8)]


def test_answers_stay_as_they_were_given(session):
    """An answer is the caller's: the next inference does not write into it."""
    first = session.run(["scores"], FEEDS)[0]
    before = first.copy()
    session.run(None, {"input": -FEEDS["input"]})
    assert np.array_equal(first, before)


def test_the_device_that_computes_is_named(session, candidate):
    """get_providers says where it runs."""
    wanted = {Backend.CPU: "CPUExecutionProvider", Backend.OPENVINO: "OpenVINO:CPU"}
    assert session.get_providers()[0] == wanted[candidate.backend]


@pytest.mark.parametrize(
    "feeds",
    [
        {},
        {"image": FEEDS["input"]},
        {"input": FEEDS["input"].astype(np.float64)},
        {"input": FEEDS["input"][:, :2]},
        {**FEEDS, "more": FEEDS["input"]},
    ],
    ids=["missing", "unknown", "dtype", "shape", "one too many"],
)
def test_feeds_that_do_not_fit_are_refused(session, feeds):
    """A wrong name, dtype or shape is the caller's error on every backend: nothing is cast or guessed."""
    with pytest.raises(InputError, match=r"input|feed"):
        session.run(None, feeds)


def test_an_unknown_output_is_refused(session):
    """An output that the model has not is the caller's error."""
    with pytest.raises(InputError, match="boxes"):
        session.run(["boxes"], FEEDS)


def test_a_model_loads_from_a_sealed_memory_file(model, candidate, config):
    """Weights that may never touch a disk are loaded by a descriptor's path, which may then be closed."""
    descriptor = os.memfd_create("model", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.write(descriptor, model.read_bytes())
    fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK)
    session = open_session(f"/proc/self/fd/{descriptor}", candidate, config)
    os.close(descriptor)
    assert session.run(["scores"], FEEDS)[0].shape == (1, 4)


@pytest.mark.parametrize("content", [b"", b"hello, this is not a model", None], ids=["empty", "text", "truncated"])
def test_what_is_no_model_is_rejected_for_ever(model, candidate, config, content):
    """A file that is no whole ONNX model is a fault of its structure, not of this device."""
    model.write_bytes(model.read_bytes()[:-10] if content is None else content)
    with pytest.raises(BackendError, match=r"not an ONNX model|truncated") as caught:
        open_session(str(model), candidate, config)
    assert caught.value.kind is Kind.STRUCTURE


@pytest.mark.parametrize("backend", [Backend.CUDA, Backend.TENSORRT])
def test_an_absent_gpu_is_an_error(model, config, backend):
    """A named device that is not there is never replaced by the CPU."""
    if Path("/dev/nvidia0").exists():
        pytest.skip("this machine has an NVIDIA GPU")
    with pytest.raises(BackendError, match=backend):
        open_session(str(model), Candidate(backend=backend), config)


def test_an_error_is_told_without_its_place_in_a_library():
    """Where in ONNX Runtime's source something failed says nothing to whoever has to install what is missing."""
    said = RuntimeError("/onnxruntime_src/core/session.cc:729 void f(Options&, const Map&) Please install TensorRT.")
    assert onnx_runtime._explained(said, "") == "Please install TensorRT"


def test_a_precision_that_is_not_computed_is_an_error(model, config):
    """ONNX Runtime's CPU computes in the model's own types: asking it for fp16 is not silently ignored."""
    with pytest.raises(BackendError, match=r"optimization\.cpu\.precision") as told:
        open_session(str(model), Candidate(backend=Backend.CPU, precision="fp16"), config)
    assert told.value.kind is Kind.UNSUPPORTED


def test_a_model_exported_in_fp16_runs_in_fp16(tmp_path, config):
    """fp16 is right for a model whose weights are."""
    path = graphs.chain(tmp_path / "half.onnx", ["Add"], dtype="float16", weight=np.ones((1, 4), np.float16))
    session = open_session(str(path), Candidate(backend=Backend.CPU, precision="fp16"), config)
    assert session.run(None, {"input": np.ones((1, 4), np.float16)})[0].tolist() == [[2.0] * 4]


def test_openvino_is_told_precision_and_threads(model, config):
    """OpenVINO computes in fp32 when asked to, also on a CPU where it would choose bf16, and on so many threads."""
    pytest.importorskip("openvino", reason="the openvino extra is not installed")
    session = open_session(str(model), Candidate(backend=Backend.OPENVINO, precision="fp32", threads=1), config)
    compiled = session._request.get_compiled_model()
    assert compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name() == "f32"
    assert compiled.get_property("INFERENCE_NUM_THREADS") == 1


def test_a_precision_that_openvino_has_not_here_is_an_error(model, config):
    """What this device computes in another precision than was asked for is no candidate, and will be none later."""
    pytest.importorskip("openvino", reason="the openvino extra is not installed")
    refused = []
    for precision in ("fp16", "bf16"):
        try:
            open_session(str(model), Candidate(backend=Backend.OPENVINO, precision=precision), config).close()
        except BackendError as error:
            refused.append(error)
    if not refused:
        pytest.skip("this processor computes in both")
    assert {error.kind for error in refused} == {Kind.UNSUPPORTED}


def test_a_tensor_keeps_the_name_of_the_file(tmp_path, candidate, config):
    """Where a backend merges nodes, the output is still called what the file calls it."""
    path = graphs.chain(tmp_path / "m.onnx", ["Relu", "Identity", "Identity"])
    session = open_session(str(path), candidate, config)
    assert [one.name for one in session.get_outputs()] == ["output"]
    assert session.run(["output"], {"input": np.ones((1, 4), np.float32)})[0].tolist() == [[1.0] * 4]


def test_an_opset_that_the_runtime_has_not_is_told_before_loading(tmp_path, config):
    """The error says what the runtime supports, and is not final: an update may bring it."""
    path = graphs.network(tmp_path / "m.onnx", opset=99)
    with pytest.raises(BackendError, match=r"is of opset 99; onnxruntime .* supports up to") as caught:
        open_session(str(path), CPU, config)
    assert caught.value.kind is Kind.BACKEND


def test_threads_do_not_spin(model, config):
    """ONNX Runtime gets the candidate's threads, which wait without burning a core."""
    options = open_session(str(model), Candidate(backend=Backend.CPU, threads=2), config).get_session_options()
    assert options.intra_op_num_threads == 2
    assert options.get_session_config_entry("session.intra_op.allow_spinning") == "0"


@pytest.mark.parametrize("backend", [Backend.CUDA, Backend.TENSORRT])
def test_every_way_back_to_the_cpu_is_shut(backend, config):
    """A GPU session may place no node on the CPU, unless the signed config says so."""
    from agent.backends.onnx_runtime import session_options

    key = "session.disable_cpu_ep_fallback"
    assert session_options(Candidate(backend=backend), config).get_session_config_entry(key) == "1"
    allowing = Config(input_size=(8, 8), confidence_threshold=0.5, optimization={str(backend): {"cpu_nodes": "allow"}})
    with pytest.raises(RuntimeError, match="not"):
        session_options(Candidate(backend=backend), allowing).get_session_config_entry(key)


def test_another_provider_than_asked_for_is_an_error(model, config):
    """A session that was given the CPU in place of the GPU is closed and refused."""
    from agent.backends.onnx_runtime import _check_given

    session = open_session(str(model), CPU, config)
    with pytest.raises(BackendError, match="CUDAExecutionProvider was asked for, CPUExecutionProvider was given"):
        _check_given(session, "CUDAExecutionProvider", Candidate(backend=Backend.CUDA))


def test_a_graph_that_went_to_another_provider_is_an_error():
    """TensorRT that took no node, and left all of them to CUDA, is not served as TensorRT."""
    from agent.backends.onnx_runtime import _check_given

    class Given:
        closed = False

        def get_providers(self):
            return ["TensorrtExecutionProvider", "CUDAExecutionProvider"]

        def shares(self):
            return {"CUDAExecutionProvider": 7}

        def close(self):
            self.closed = True

    session = Given()
    with pytest.raises(BackendError, match="TensorrtExecutionProvider was asked for, CUDAExecutionProvider was given"):
        _check_given(session, "TensorrtExecutionProvider", Candidate(backend=Backend.TENSORRT))
    assert session.closed


def test_a_session_knows_what_computes_it(model, config, monkeypatch):
    """The parts of the graph are counted by the provider that was given them."""
    from agent.backends import onnx_runtime

    def remembering(candidate, config, options=onnx_runtime.session_options):
        made = options(candidate, config)
        made.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
        return made

    assert open_session(str(model), CPU, config).shares() == {}
    monkeypatch.setattr(onnx_runtime, "session_options", remembering)
    assert open_session(str(model), CPU, config).shares().keys() == {"CPUExecutionProvider"}


def test_cuda_in_nvidia_s_wheels_is_found_and_nothing_is_printed(tmp_path, monkeypatch, capsys):
    """Each folder of libraries is looked into before the linker's own; what is missing at last is told, not printed."""
    from agent.backends import onnx_runtime

    (tmp_path / "nvidia" / "cudnn" / "lib").mkdir(parents=True)
    monkeypatch.syspath_prepend(tmp_path)
    asked = []

    def preload_dlls(directory):
        asked.append(directory)
        print(f"Failed to load libcublas.so.13 from {directory}")

    monkeypatch.setattr(onnx_runtime.ort, "preload_dlls", preload_dlls)
    assert onnx_runtime.preload.__wrapped__() == "Failed to load libcublas.so.13 from None"
    assert str(tmp_path / "nvidia" / "cudnn" / "lib") in asked
    assert asked[-1] is None
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(("free_mb", "wanted_mb"), [(4096, 512), (600, 300)])
def test_a_build_takes_no_more_than_the_device_can_spare(monkeypatch, free_mb, wanted_mb):
    """TensorRT's workspace is the config's, or half of the GPU's free memory where that is less."""
    from agent.backends import hardware

    monkeypatch.setattr(hardware, "gpu_memory_mb", lambda: (float(free_mb), 100.0))
    config = Config(input_size=(8, 8), confidence_threshold=0.5, optimization={"tensorrt": {"workspace_mb": 512}})
    assert hardware.workspace_bytes(config) == wanted_mb << 20


def test_an_unknown_level_of_optimisation_is_told(model):
    """A typing mistake in the config does not become a default."""
    config = Config(input_size=(8, 8), confidence_threshold=0.5, optimization={"cpu": {"graph_optimization": "al"}})
    with pytest.raises(BackendError, match="'al' in the release's config: one of all, extended, basic, none"):
        open_session(str(model), CPU, config)


def test_the_tensorrt_provider_keeps_no_engine_in_clear(monkeypatch, tmp_path):
    """An engine holds the weights: only the timing cache, which does not, may be kept in a folder."""
    from agent.backends.onnx_runtime import tensorrt_options

    monkeypatch.setenv("CACHE_DIRECTORY", str(tmp_path))
    config = Config(input_size=(8, 8), confidence_threshold=0.5, optimization={"tensorrt": {"workspace_mb": 512}})
    options = tensorrt_options(Candidate(backend=Backend.TENSORRT, precision="fp16"), config)
    assert options["trt_engine_cache_enable"] == "0"
    assert options["trt_timing_cache_path"] == str(tmp_path)
    assert (options["trt_fp16_enable"], options["trt_max_workspace_size"]) == ("1", str(512 << 20))


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16", "int8"])
def test_the_tensorrt_provider_computes_in_what_the_candidate_says(precision):
    """Each precision but fp32 is allowed by an option of its own, and by no other's."""
    from agent.backends.onnx_runtime import tensorrt_options

    config = Config(input_size=(8, 8), confidence_threshold=0.5)
    options = tensorrt_options(Candidate(backend=Backend.TENSORRT, precision=precision), config)
    allowed = {one for one in ("fp16", "bf16", "int8") if options[f"trt_{one}_enable"] == "1"}
    assert allowed == {precision} - {"fp32"}


@pytest.mark.parametrize("module", ["onnx_runtime", "open_vino"])
def test_loading_a_library_tells_nobody(tmp_path, module):
    """Neither library leaves an identity in the home folder or loads its reporting when it is imported."""
    if module == "open_vino":
        pytest.importorskip("openvino", reason="the openvino extra is not installed")
    program = (
        f"import os, sys; os.environ.pop('ORT_DISABLE_TELEMETRY', None); import agent.backends.{module} as library\n"
        "assert sys.modules.get('openvino_telemetry') is None\n"
        "assert os.environ['ORT_DISABLE_TELEMETRY'] == '1' or library.NAME == 'openvino'\n"
    ).replace("os.environ['ORT_DISABLE_TELEMETRY']", "os.environ.get('ORT_DISABLE_TELEMETRY')")
    subprocess.run([sys.executable, "-c", program], check=True, env={**os.environ, "HOME": str(tmp_path)})
    assert list(tmp_path.rglob("*")) == []


def test_an_engine_gives_the_same_session_again(model, candidate, config):
    """Where a backend has engines, one that was given away opens as what it was built of: names, answers, precision."""
    session = open_session(str(model), candidate, config)
    engine = session.engine()
    assert (engine is None) == (candidate.backend is Backend.CPU)
    again = open_session(str(model), candidate, config, bytes(engine or b""))
    assert all(map(np.array_equal, again.run(None, FEEDS), session.run(None, FEEDS)))
    for ports in ("get_inputs", "get_outputs"):
        assert [(one.name, list(one.shape), one.type) for one in getattr(again, ports)()] == [
            (one.name, list(one.shape), one.type) for one in getattr(session, ports)()
        ]
    assert again.get_providers() == session.get_providers()


def test_what_is_no_engine_is_refused(model, config):
    """OpenVINO's error is a failure of the backend, as any other at a load."""
    pytest.importorskip("openvino", reason="the openvino extra is not installed")
    candidate = Candidate(backend=Backend.OPENVINO, threads=1)
    with pytest.raises(BackendError, match="does not load it"):
        open_session(str(model), candidate, config, bytes(4096))
