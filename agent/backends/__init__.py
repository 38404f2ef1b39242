"""Runs models: one Session over ONNX Runtime, OpenVINO and TensorRT.

1. Inference libraries are imported when a session of theirs is opened, never with this package.
2. A backend is present when it has just computed a small model right, not when its library says so: wheels list
   providers that were compiled in, on machines that have no such device.
3. Present or not, a probe says what to do next.
"""

import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing, contextmanager
from importlib import import_module
from importlib.util import find_spec
from typing import Protocol, cast

import numpy as np

from agent.backends.hardware import board, gpu
from agent.backends.onnx_file import check_compatibility, read_head
from agent.backends.session import Session
from agent.core.candidate import GPU, Backend, Candidate, Found
from agent.core.errors import BackendError, EdgeError, InputError, Kind
from agent.core.release import Compatibility, Config

_NEXT = {  # what to do about an absent backend
    Backend.TENSORRT: "on a Jetson install JetPack's python3-libnvinfer, on an RTX PC the rtx extra; elsewhere the gpu "
    "extra and TensorRT 10",
    Backend.CUDA: "install NVIDIA's driver and the gpu extra, which brings CUDA and cuDNN, instead of cpu; on a Jetson "
    "use TensorRT",
    Backend.OPENVINO: "install the openvino extra",
    Backend.CPU: "install the cpu extra",
}
# y = relu(x @ x), x float32 [2, 2], opset 13, IR 8; written with onnx.helper.
_TINY = bytes.fromhex(
    "080812003a4e0a110a01780a017812016d22064d61744d756c0a0c0a016d120179220452656c751201675a130a0178120e0a"
    "0c080112080a0208020a02080262130a0179120e0a0c080112080a0208020a02080242040a00100d"
)
_CONFIG = Config(input_size=(2, 2), confidence_threshold=0.0)
_INPUT = np.array([[1, 2], [-3, 4]], np.float32)


def open_session(path: str, candidate: Candidate, config: Config, engine: bytes = b"") -> Session:
    """A session on exactly the candidate's backend; `path` may be `/proc/self/fd/N` of a sealed memory file.

    Args:
        path: where the ONNX model lies.
        candidate: what to compute with.
        config: the release's.
        engine: what `Session.engine` gave for the same three, on a backend that has engines; empty: build one.

    Raises:
        BackendError: STRUCTURE, when there is no ONNX model at `path`; else this device cannot run it; says why.
    """
    try:
        return _library(candidate.backend).open_session(path, candidate, config, engine)
    except InputError as error:
        raise BackendError(str(error), Kind.STRUCTURE) from error


def check_model(path: str, compatibility: Compatibility, backend: Backend) -> None:
    """Return when the backend's runtime can be expected to load the model; costs no loading.

    Raises:
        BackendError: STRUCTURE, when the file is no model or not the declared one; BACKEND, when the runtime is older
            than declared.
    """
    try:
        head = read_head(path)
    except InputError as error:
        raise BackendError(str(error), Kind.STRUCTURE) from error
    library = _library(backend)
    check_compatibility(head, compatibility, library.NAME, library.VERSION)


def probe(backends: Iterable[Backend] = Backend) -> tuple[Found, ...]:
    """For each backend whether it works on this device, or why not and what to do. Loads libraries: use a child."""
    return tuple(probe_backend(backend) for backend in backends)


def probe_backend(backend: Backend) -> Found:
    """What real runs of a small model on one backend found out, on each device that it names."""
    try:
        library = _library(backend)
        others = library.devices() if backend is Backend.OPENVINO else {}
        reasons = {device: _trouble(backend, device) for device in ("", *others)}
    except Exception as error:  # noqa: BLE001 - as in _trouble
        return Found(backend=backend, present=False, reason=f"{_told(backend, error)}. Next: {_NEXT[backend]}")
    told = "; ".join(f"{device}: {reason}" if device else reason for device, reason in reasons.items() if reason)
    works = [device for device, reason in reasons.items() if not reason]
    if not works:
        return Found(backend=backend, present=False, reason=f"{told}. Next: {_NEXT[backend]}")
    hardware = [gpu() if backend in GPU else board(), *(f"{one}: {others[one]}" for one in works if one)]
    version = "; ".join([f"{library.NAME} {library.VERSION}", *hardware])
    return Found(backend=backend, present=True, version=version, reason=told, devices=tuple(filter(None, works)))


def _trouble(backend: Backend, device: str) -> str:
    """Why a small model does not run on one device of a backend; nothing where it does."""
    candidate = Candidate(backend=backend, device=device, precision="fp16" if device else "fp32")  # all an NPU has
    try:
        with _tiny_model() as path, closing(open_session(path, candidate, _CONFIG)) as session:
            output = session.run(None, {"x": _INPUT})[0]
    except Exception as error:  # noqa: BLE001 - the boundary to libraries that raise anything
        return _told(backend, error)
    is_right = np.allclose(output, np.maximum(_INPUT @ _INPUT, 0), atol=1e-3)
    return "" if is_right else f"it computes wrong on {device or board()}"


def _told(backend: Backend, error: Exception) -> str:
    is_ours = isinstance(error, EdgeError)
    return str(error) if is_ours else f"{backend} failed on a small model ({type(error).__name__}: {error})"


@contextmanager
def _tiny_model() -> Iterator[str]:
    descriptor = os.memfd_create("probe", os.MFD_CLOEXEC)
    try:
        os.write(descriptor, _TINY)
        yield f"/proc/self/fd/{descriptor}"
    finally:
        os.close(descriptor)


class _Library(Protocol):
    """What each module around an inference library offers."""

    NAME: str
    VERSION: str

    def open_session(self, path: str, candidate: Candidate, config: Config, engine: bytes) -> Session:
        """A session on exactly the candidate's backend."""

    def devices(self) -> Mapping[str, str]:
        """What else OpenVINO, which is asked alone, could compute on than the CPU, and what that is."""


def _library(backend: Backend) -> _Library:
    """Imports it: of the three ways to TensorRT the first that is installed."""
    name = "open_vino" if backend is Backend.OPENVINO else "onnx_runtime"
    if backend is Backend.TENSORRT:
        ways = {"tensorrt": "tensor_rt", "onnxruntime_ep_nv_tensorrt_rtx": "tensor_rt_rtx"}
        name = next((module for package, module in ways.items() if find_spec(package) is not None), name)
    try:
        return cast("_Library", import_module(f"agent.backends.{name}"))
    except ImportError as error:
        raise BackendError(f"{backend} is not on this device: {error}") from error
