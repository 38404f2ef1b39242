"""OpenVINO: Intel and other CPUs, and Intel GPUs and NPUs.

1. The precision is always told: left alone, OpenVINO computes in bf16 on recent CPUs, and scores move.
2. A device is named, never chosen by OpenVINO: AUTO and HETERO would move parts of a graph to the CPU unseen.
3. No cache folder: what OpenVINO writes there holds the weights in clear, also where it is told to encrypt. An engine
   (a compiled model, exported) is bytes in memory that whoever keeps them seals.
4. Its Python package reports its own import to a statistics service through `openvino_telemetry`: that module is
   made to look absent before the import.
"""

import sys
from collections.abc import Sequence
from importlib import import_module
from typing import Any

from agent.backends.onnx_file import OnnxHead, read_head
from agent.backends.session import TYPES, Array, Port, Ports
from agent.core.candidate import Candidate
from agent.core.errors import BackendError, Kind
from agent.core.release import Config

sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type] # None makes its import fail
ov: Any = import_module("openvino")

NAME = "openvino"
VERSION: str = ov.__version__.split("-")[0]
_PRECISIONS = {"fp32": "f32", "fp16": "f16", "bf16": "bf16", "int8": "f32"}  # int8 is in the model; the rest of it f32


class OpenVinoSession(Ports):
    """A compiled model that answers as ONNX Runtime's session does; one inference at a time."""

    def __init__(self, model: Any, head: OnnxHead) -> None:
        inputs = [_port(port, head.inputs) for port in model.inputs]
        super().__init__(inputs, [_port(port, head.outputs) for port in model.outputs])
        self._model, self._request = model, model.create_infer_request()
        self._providers = [f"OpenVINO:{device}" for device in model.get_property("EXECUTION_DEVICES")]

    def _computed(self, feeds: Sequence[Array]) -> Sequence[Array]:
        try:
            results = self._request.infer(dict(enumerate(feeds)), share_inputs=True)
        except RuntimeError as error:
            raise BackendError(f"the model failed while it ran: {error}") from error
        return [results[place] for place in range(len(self._outputs))]

    def get_providers(self) -> list[str]:
        """The devices that compute, as `OpenVINO:CPU`."""
        return self._providers

    def engine(self) -> memoryview:
        """As `Session.engine`."""
        exported: memoryview = self._model.export_model().getbuffer()
        return exported

    def close(self) -> None:
        """As `Session.close`."""
        self._model = self._request = None


def open_session(path: str, candidate: Candidate, config: Config, engine: bytes = b"") -> OpenVinoSession:
    """A session in exactly the candidate's precision; an engine spares it the compilation.

    Raises:
        InputError: there is no ONNX model at `path`.
        BackendError: this device or runtime cannot run it.
    """
    head = read_head(path)
    device, core, options = candidate.device or "CPU", ov.Core(), _options(candidate, config)
    try:
        if engine:
            model = core.import_model(engine, device, options)
        else:
            model = core.compile_model(core.read_model(path), device, options)
    except MemoryError as error:
        raise BackendError(f"{candidate}: too little memory to load it", Kind.MEMORY) from error
    except RuntimeError as error:  # the one class that it raises, whatever happened
        raise BackendError(f"{candidate}: openvino {VERSION} does not load it on {device}: {_last(error)}") from error
    _check_given(model, candidate, device)
    return OpenVinoSession(model, head)


def devices() -> dict[str, str]:
    """What it could compute on beside the CPU, by its own name, and what that is."""
    core = ov.Core()
    return {name: str(core.get_property(name, "FULL_DEVICE_NAME")) for name in core.available_devices if name != "CPU"}


def _options(candidate: Candidate, config: Config) -> dict[str, str | int]:
    options: dict[str, str | int] = {
        "PERFORMANCE_HINT": str(config.options(candidate.backend).get("performance_hint", "LATENCY")),
        "INFERENCE_PRECISION_HINT": _PRECISIONS[candidate.precision],
    }
    return options | ({"INFERENCE_NUM_THREADS": candidate.threads} if candidate.threads else {})


def _check_given(model: Any, candidate: Candidate, device: str) -> None:
    wanted = _PRECISIONS[candidate.precision]
    given = model.get_property("INFERENCE_PRECISION_HINT").get_type_name()
    if given != wanted:
        reason = f"{candidate}: {wanted} was asked for, {device} computes in {given}: leave this one out"
        raise BackendError(reason, Kind.UNSUPPORTED)
    if not any(name.startswith(device) for name in model.get_property("EXECUTION_DEVICES")):
        raise BackendError(f"{candidate}: {device} was asked for, {model.get_property('EXECUTION_DEVICES')} was given")


def _port(port: Any, declared: Sequence[str]) -> Port:
    """A port under the name that the file declares: where nodes were merged it has several."""
    name = next((name for name in declared if name in port.names), None) or port.get_any_name()
    shape = port.get_partial_shape()
    sizes = () if shape.rank.is_dynamic else tuple(None if one.is_dynamic else one.get_length() for one in shape)
    dtype = port.get_element_type().to_dtype().name
    return Port(name, sizes, TYPES.get(dtype, dtype))


def _last(error: Exception) -> str:
    """The last line that says something: the ones above it are places in OpenVINO's source."""
    return [line.strip() for line in str(error).splitlines() if line.strip()][-1]
