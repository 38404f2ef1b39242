"""ONNX Runtime: the CPU, and NVIDIA GPUs through its CUDA and TensorRT providers.

1. What was asked for is compared with what was given: ONNX Runtime falls back to the CPU with no more than a
   printed line, so both ways of falling back are shut and the providers are looked at.
2. Its telemetry is off before it is imported: later is too late (it writes an id and looks a host up).
3. Threads do not spin: beside a busy camera application spinning makes it 1.8 times slower.
4. No TensorRT engine is cached on disk: it holds the weights in clear. The timing cache holds none.
5. CUDA and cuDNN may come in NVIDIA's wheels, where no linker looks: they are loaded before the GPU is asked for.
"""

import io
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import redirect_stdout
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from agent.backends.hardware import workspace_bytes
from agent.backends.onnx_file import check_opset, read_head
from agent.backends.session import Array, Feeds
from agent.core.candidate import GPU, Backend, Candidate
from agent.core.errors import BackendError, InputError, Kind
from agent.core.release import Config

os.environ["ORT_DISABLE_TELEMETRY"] = "1"
ort: Any = import_module("onnxruntime")
native: Any = import_module("onnxruntime.capi.onnxruntime_pybind11_state")
ort.set_default_logger_severity(4)  # errors are raised, not printed

NAME = "onnxruntime"
VERSION: str = ort.__version__
PROVIDERS = {
    Backend.CPU: "CPUExecutionProvider",
    Backend.CUDA: "CUDAExecutionProvider",
    Backend.TENSORRT: "TensorrtExecutionProvider",
}
_LEVELS = {"all": "ENABLE_ALL", "extended": "ENABLE_EXTENDED", "basic": "ENABLE_BASIC", "none": "DISABLE_ALL"}
_SOURCE = re.compile(r"^\S+\.(?:cc|h|cpp):\d+ .*?\) ")  # where in its source it failed: nobody's business here
_FATAL = 4  # ONNX Runtime's log level: errors are raised, not printed


class OnnxRuntimeSession(ort.InferenceSession):  # type: ignore[misc] # the library is not typed
    """ONNX Runtime's session, with our errors and a way to give it back."""

    def run(self, output_names: Sequence[str] | None, input_feed: Feeds, run_options: Any = None) -> list[Array]:
        """As `Session.run`."""
        try:
            outputs: list[Array] = super().run(output_names, input_feed, run_options)
        except (ValueError, native.InvalidArgument) as error:
            raise InputError(f"feeds: {error}") from error
        except (RuntimeError, native.Fail, native.RuntimeException, native.EPFail, native.NotImplemented) as error:
            raise BackendError(f"the model failed while it ran: {error}") from error
        return outputs

    def shares(self) -> dict[str, int]:
        """How many parts of the graph each provider was given; empty where this onnxruntime does not tell."""
        try:
            parts = [part.ep_name for part in self.get_provider_graph_assignment_info()]
        except (AttributeError, RuntimeError, native.Fail):  # from 1.24 on, where it was asked to remember
            return {}
        return {name: parts.count(name) for name in dict.fromkeys(parts)}

    def engine(self) -> None:
        """None: what its TensorRT provider builds, it gives to nobody but a file, in clear."""

    def close(self) -> None:
        """As `Session.close`; ONNX Runtime has no call of its own for it."""
        self._sess = None


def open_session(path: str, candidate: Candidate, config: Config, engine: bytes = b"") -> OnnxRuntimeSession:
    """A session on exactly the candidate's backend; it has no engines.

    Raises:
        InputError: there is no ONNX model at `path`.
        BackendError: this device, runtime or backend cannot run it.
    """
    del engine
    if candidate.backend is not Backend.TENSORRT:
        check_precision(path, candidate)
    provider = PROVIDERS[candidate.backend]
    if provider not in ort.get_available_providers():
        raise BackendError(f"{candidate}: this onnxruntime {VERSION} is built without {provider}")
    missing = preload() if candidate.backend in GPU else ""
    providers = _providers(candidate, config)
    return opened(path, candidate, session_options(candidate, config), provider, missing, providers=providers)


def opened(
    path: str, candidate: Candidate, options: Any, provider: str, missing: str = "", **more: Any
) -> OnnxRuntimeSession:
    """A session on exactly this provider; raises as `open_session`.

    Args:
        path: of the model.
        candidate: what it is opened for.
        options: ONNX Runtime's own.
        provider: the one that must have been given.
        missing: which of its libraries are known to be missing.
        more: for ONNX Runtime's session.
    """
    head = read_head(path)
    try:
        session = OnnxRuntimeSession(path, options, enable_fallback=0, **more)
    except native.InvalidProtobuf as error:
        raise BackendError(f"{candidate}: the model cannot be read: {error}", Kind.STRUCTURE) from error
    except MemoryError as error:
        raise BackendError(f"{candidate}: too little memory to load it", Kind.MEMORY) from error
    except Exception as error:  # the library raises a dozen classes without a common base
        check_opset(head, NAME, VERSION, _supported_opset())
        reason = _explained(error, missing)
        raise BackendError(f"{candidate}: onnxruntime {VERSION} does not load it: {reason}") from error
    _check_given(session, provider, candidate)
    return session


@cache
def preload() -> str:
    """Load CUDA and cuDNN where NVIDIA's wheels lie; says what is still missing then."""
    said = ""
    for folder in [*map(str, _wheel_folders()), None]:
        with redirect_stdout(io.StringIO()) as told:  # it prints what it does not find, and a probe's output is JSON
            ort.preload_dlls(directory=folder)
        said = told.getvalue()
    return "; ".join(said.splitlines())


def _wheel_folders() -> Iterator[Path]:
    nvidia = find_spec("nvidia")
    for place in nvidia.submodule_search_locations or () if nvidia is not None else ():
        yield from sorted(Path(place).glob("*/lib"))


def _supported_opset() -> int:
    """The highest version of the standard operators that this runtime knows; it takes 20 ms to tell."""
    return max(int(schema.since_version) for schema in native.get_all_operator_schema() if not schema.domain)


def session_options(candidate: Candidate, config: Config) -> Any:
    """ONNX Runtime's options for a candidate: its threads, and for a GPU no way back to the CPU."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = candidate.threads
    options.inter_op_num_threads = 1
    options.log_severity_level = _FATAL
    options.graph_optimization_level = _level(config.options(candidate.backend).get("graph_optimization", "all"))
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if candidate.backend in GPU:
        options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    if candidate.backend in GPU and config.options(candidate.backend).get("cpu_nodes") != "allow":
        options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    return options


def _level(wanted: str) -> Any:
    if wanted not in _LEVELS:
        raise BackendError(f"graph_optimization {wanted!r} in the release's config: one of {', '.join(_LEVELS)}")
    return getattr(ort.GraphOptimizationLevel, f"ORT_{_LEVELS[wanted]}")


def _providers(candidate: Candidate, config: Config) -> list[str | tuple[str, dict[str, str]]]:
    cuda = (PROVIDERS[Backend.CUDA], {"use_tf32": "0", "arena_extend_strategy": "kSameAsRequested"})
    if candidate.backend is Backend.CUDA:
        return [cuda]
    if candidate.backend is Backend.TENSORRT:
        return [(PROVIDERS[Backend.TENSORRT], tensorrt_options(candidate, config)), cuda]
    return [PROVIDERS[candidate.backend]]


def tensorrt_options(candidate: Candidate, config: Config) -> dict[str, str]:
    """The TensorRT provider's options; the timing cache lies in the service's cache folder, where it has one."""
    folder = os.environ.get("CACHE_DIRECTORY", "")  # set by systemd's CacheDirectory=
    options = {
        "trt_fp16_enable": str(int(candidate.precision == "fp16")),
        "trt_bf16_enable": str(int(candidate.precision == "bf16")),
        "trt_int8_enable": str(int(candidate.precision == "int8")),  # of weights that are quantised in the file
        "trt_max_workspace_size": str(workspace_bytes(config)),
        "trt_engine_cache_enable": "0",
        "trt_timing_cache_enable": str(int(bool(folder))),
    }
    return options | ({"trt_timing_cache_path": folder} if folder else {})


def check_precision(path: str, candidate: Candidate) -> None:
    """Return when the candidate computes in the types that the model was exported with: ONNX Runtime has no others.

    Raises:
        InputError: there is no ONNX model at `path`.
        BackendError: it does not; says what to do.
    """
    precisions = read_head(path).precisions
    if candidate.precision not in {"fp32", "int8", *precisions}:
        raise BackendError(
            f"{candidate}: the model's weights are {'/'.join(sorted(precisions)) or 'none'} and are not computed in "
            f"{candidate.precision} there: set optimization.{candidate.backend}.precision to fp32 in its config",
            Kind.UNSUPPORTED,
        )


def _check_given(session: OnnxRuntimeSession, provider: str, candidate: Candidate) -> None:
    given = session.get_providers()[0]
    shares = session.shares() if given == provider else {}
    if given != provider or (shares and provider not in shares):
        session.close()
        given = given if given != provider else ", ".join(shares)
        raise BackendError(f"{candidate}: {provider} was asked for, {given} was given: its driver or libraries fail")


def _explained(error: Exception, missing: str) -> str:
    text = _SOURCE.sub("", str(error).strip()).rstrip(".")
    if "fallback to CPU EP has been explicitly disabled" not in text:
        return text
    if missing:
        return f"the GPU's libraries do not load: {missing}"
    return (
        "parts of it have no kernel on the GPU, or the GPU's driver does not answer. Where some nodes on the CPU are "
        "wanted, the release's config says so: cpu_nodes: allow"
    )
