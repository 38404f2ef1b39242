"""A probe is a real run, and says what to do about a backend that is not there."""

import subprocess
import sys
from pathlib import Path

import pytest

from agent import backends
from agent.backends import probe, probe_backend
from agent.core.candidate import Backend


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


def test_importing_the_room_loads_no_library():
    """A process that opens no session pays for none."""
    program = "import sys, agent.backends.trial; print([m for m in ('onnxruntime', 'openvino') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
    assert done.stdout == "[]\n"
