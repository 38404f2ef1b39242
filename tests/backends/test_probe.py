"""A probe is a real run, and says what to do about a backend that is not there."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

from agent import backends
from agent.backends import probe, probe_backend
from agent.core.candidate import Backend, Candidate


def test_a_probe_tells_about_every_backend():
    """Each backend is present with its version, or absent with a reason and the next thing to do."""
    found = {one.backend: one for one in probe()}
    assert set(found) == set(Backend)
    assert found[Backend.CPU].present
    assert found[Backend.CPU].version.startswith("onnxruntime ")
    for one in found.values():
        assert one.present or "Next: " in one.reason


def test_a_listed_provider_that_does_not_run_is_absent(monkeypatch):
    """A wheel that lists CUDA on a machine without it does not make CUDA present."""
    if Path("/dev/nvidia0").exists():
        pytest.skip("this machine has an NVIDIA GPU")
    from agent.backends import onnx_runtime

    monkeypatch.setattr(onnx_runtime.ort, "get_available_providers", lambda: ["CUDAExecutionProvider"])
    found = probe_backend(Backend.CUDA)
    assert not found.present
    assert "cuda" in found.reason


def test_a_backend_that_computes_wrong_is_absent(monkeypatch):
    """A driver or wheel that gives wrong figures is found out by the probe."""
    monkeypatch.setattr(backends, "_TINY", backends._TINY.replace(b"Relu", b"Tanh"))
    assert "computes wrong" in probe_backend(Backend.CPU).reason


@pytest.mark.parametrize("error", [RuntimeError("no such symbol"), AttributeError("version"), OSError("libfoo.so")])
def test_a_library_that_raises_anything_makes_its_backend_absent(monkeypatch, error):
    """Whatever comes out of a library is a reason, not the end of the probe."""

    def broken(backend):
        raise error

    monkeypatch.setattr(backends, "_library", broken)
    found = probe_backend(Backend.CPU)
    assert not found.present
    assert str(error) in found.reason
    assert "Next: " in found.reason


def test_a_device_of_openvino_that_does_not_compute_is_left_out(monkeypatch):
    """OpenVINO may list a GPU whose driver fails: its CPU stays, and what is wrong with the GPU is told."""
    open_vino = pytest.importorskip("agent.backends.open_vino", reason="the openvino extra is not installed")
    monkeypatch.setattr(open_vino, "devices", lambda: {"GPU": "a GPU without a driver"})
    found = probe_backend(Backend.OPENVINO)
    assert found.present
    assert (found.devices, found.reason[:5]) == ((), "GPU: ")
    assert "without a driver" not in found.version


def test_a_device_of_openvino_that_computes_is_named(monkeypatch):
    """A second device that works stands in the version, which evidence depends on."""
    open_vino = pytest.importorskip("agent.backends.open_vino", reason="the openvino extra is not installed")
    monkeypatch.setattr(open_vino, "devices", lambda: {"NPU": "a fast one"})
    opened = backends.open_session
    monkeypatch.setattr(
        backends, "open_session", lambda path, one, config: opened(path, Candidate(backend=one.backend), config)
    )
    found = probe_backend(Backend.OPENVINO)
    assert (found.devices, found.reason) == (("NPU",), "")
    assert found.version.endswith("; NPU: a fast one")


def test_a_plug_in_that_cannot_be_registered_makes_tensorrt_absent(monkeypatch, tmp_path):
    """TensorRT for RTX without its driver is absent with the reason, and the CPU works on."""
    if importlib.util.find_spec("tensorrt") is not None:
        pytest.skip("this machine has TensorRT")
    (tmp_path / "library.so").write_text("no library")
    (tmp_path / "onnxruntime_ep_nv_tensorrt_rtx.py").write_text(
        "__version__ = '0.5.0'\ndef get_ep_name(): return 'NvTensorRTRTXExecutionProvider'\n"
        f"def get_library_path(): return {str(tmp_path / 'library.so')!r}\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    try:
        found = probe_backend(Backend.TENSORRT)
    finally:
        for name in ("agent.backends.tensor_rt_rtx", "onnxruntime_ep_nv_tensorrt_rtx"):
            sys.modules.pop(name, None)
    assert not found.present
    assert "TensorRT for RTX 0.5.0 cannot be registered" in found.reason
    assert "Next: " in found.reason
    assert probe_backend(Backend.CPU).present


def test_importing_the_room_loads_no_library():
    """A process that opens no session pays for none."""
    program = "import sys, agent.backends.trial; print([m for m in ('onnxruntime', 'openvino') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
    assert done.stdout == "[]\n"
