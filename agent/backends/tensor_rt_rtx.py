"""NVIDIA TensorRT for RTX: a plug-in for ONNX Runtime's CPU wheel that needs nothing but the GPU's driver. RTX PCs.

1. It computes in the types of the file: another precision is another file.
2. It has the graph alone: with ONNX Runtime's way back to the CPU shut, what it does not take is an error.
3. Its engines stay in memory: no cache is given a path.
"""

from functools import cache
from importlib import import_module
from typing import Any

from agent.backends import onnx_runtime
from agent.backends.hardware import workspace_bytes
from agent.backends.onnx_runtime import OnnxRuntimeSession, check_precision, opened, session_options
from agent.core.candidate import Candidate
from agent.core.errors import BackendError
from agent.core.release import Config

plugin: Any = import_module("onnxruntime_ep_nv_tensorrt_rtx")

NAME = "tensorrt-rtx"
VERSION = f"{plugin.__version__} in onnxruntime {onnx_runtime.VERSION}"


def open_session(path: str, candidate: Candidate, config: Config, engine: bytes = b"") -> OnnxRuntimeSession:
    """A session on the first RTX GPU; it has no engines to keep.

    Raises:
        InputError: there is no ONNX model at `path`.
        BackendError: this device, driver or plug-in cannot run it.
    """
    del engine
    check_precision(path, candidate)
    options = session_options(candidate, config)
    options.add_provider_for_devices(_gpus()[:1], {"nv_max_workspace_size": str(workspace_bytes(config))})
    return opened(path, candidate, options, plugin.get_ep_name())


@cache
def _gpus() -> list[Any]:
    """The devices that the plug-in offers; it can be registered once in a process."""
    name, runtime = plugin.get_ep_name(), onnx_runtime.ort
    try:
        runtime.register_execution_provider_library(name, plugin.get_library_path())
    except Exception as error:  # a missing driver, another ONNX Runtime, no library beside the module
        raise BackendError(f"TensorRT for RTX {plugin.__version__} cannot be registered: {error}") from error
    found = [one for one in runtime.get_ep_devices() if one.ep_name == name]
    if not found:
        wanted = "it wants compute capability 8.6, 8.9, or 12.0 and newer, and the GPU listed in /sys/class/drm"
        raise BackendError(f"TensorRT for RTX {plugin.__version__} takes no GPU here: {wanted}")
    return found
