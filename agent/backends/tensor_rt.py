"""NVIDIA TensorRT by its own module: Jetsons, whose ONNX Runtime wheels have no kernels for their GPU.

1. The engine lives in memory alone: `build_serialized_network` gives bytes, `deserialize_cuda_engine` takes them.
   An engine holds the weights; on disk it would be the model in clear. Whoever keeps one seals it.
2. The timing cache holds no weights: it is kept in the service's cache folder, where it has one, and makes the
   next build several times shorter.
3. An input of an open size needs a range: `profiles:` in the config, or else batch_size and input_size fix it.

Needs TensorRT 10 or newer and the CUDA runtime's shared library; nothing of this is imported on other machines.
"""

import ctypes
import os
from collections.abc import Sequence
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from agent.backends.hardware import workspace_bytes
from agent.backends.onnx_file import read_head
from agent.backends.session import TYPES, Array, Port, Ports
from agent.core.candidate import Candidate
from agent.core.errors import BackendError, InputError, Kind
from agent.core.release import Config

trt: Any = import_module("tensorrt")

NAME = "tensorrt"
VERSION: str = trt.__version__
_CUDART = ("libcudart.so", "libcudart.so.13", "libcudart.so.12")
_TO_DEVICE, _TO_HOST = 1, 2  # cudaMemcpyKind
_FLAGS = {"fp16": "FP16", "bf16": "BF16", "int8": "INT8"}
_IMAGE_RANK = 4  # [batch, channels, height, width]


class TensorRtSession(Ports):
    """An engine that answers as ONNX Runtime's session does; one inference at a time."""

    def __init__(self, engine: Any) -> None:
        names = [engine.get_tensor_name(place) for place in range(engine.num_io_tensors)]
        inputs = [_port(engine, name) for name in names if _is_input(engine, name)]
        super().__init__(inputs, [_port(engine, name) for name in names if not _is_input(engine, name)])
        self._cuda = _Cuda()
        self._engine = engine
        self._context = engine.create_execution_context()
        if self._context is None:
            raise BackendError("tensorrt: too little GPU memory to run the engine", Kind.MEMORY)
        self._stream = self._cuda.stream()
        self._buffers: dict[str, tuple[int, int]] = {}  # name: address on the device, bytes

    def _computed(self, feeds: Sequence[Array]) -> Sequence[Array]:
        for port, given in zip(self._inputs, feeds, strict=True):
            self._feed(port.name, given)
        outputs = [self._place(port) for port in self._outputs]
        if not self._context.execute_async_v3(self._stream):
            raise BackendError("the model failed while it ran: TensorRT says why in its log")
        self._cuda.do("cudaStreamSynchronize", self._stream)
        for port, output in zip(self._outputs, outputs, strict=True):
            self._cuda.copy(output.ctypes.data, self._buffers[port.name][0], output.nbytes, _TO_HOST)
        return outputs

    def get_providers(self) -> list[str]:
        """`TensorRT` alone: nothing of an engine runs elsewhere."""
        return ["TensorRT"]

    def engine(self) -> memoryview:
        """As `Session.engine`."""
        return memoryview(self._engine.serialize())

    def close(self) -> None:
        """As `Session.close`."""
        with self._lock:
            for address, _ in self._buffers.values():
                self._cuda.do("cudaFree", address)
            self._buffers.clear()
            self._context = self._engine = None
            if self._stream:
                self._cuda.do("cudaStreamDestroy", self._stream)
            self._stream = 0

    def _feed(self, name: str, given: Array) -> None:
        if not self._context.set_input_shape(name, given.shape):
            raise InputError(f"input {name}: {list(given.shape)} is outside the range that the engine was built for")
        self._cuda.copy(self._bind(name, given.nbytes), given.ctypes.data, given.nbytes, _TO_DEVICE)

    def _place(self, port: Port) -> Array:
        shape = tuple(self._context.get_tensor_shape(port.name))
        if any(size < 0 for size in shape):
            raise BackendError(f"output {port.name}: its size depends on the image; TensorRT is not for this model")
        output = np.empty(shape, trt.nptype(self._engine.get_tensor_dtype(port.name)))
        self._bind(port.name, output.nbytes)
        return output

    def _bind(self, name: str, size: int) -> int:
        """The address of at least `size` bytes on the device for one tensor."""
        address, held = self._buffers.get(name, (0, 0))
        if held < size:
            if self._buffers.pop(name, None):  # nobody has it, should there be no room for another
                self._cuda.do("cudaFree", address)
            address = self._cuda.allocate(size)
            self._buffers[name] = address, size
        self._context.set_tensor_address(name, address)
        return address


def open_session(path: str, candidate: Candidate, config: Config, engine: bytes = b"") -> TensorRtSession:
    """A session in exactly the candidate's precision; to build its engine takes minutes, to take one back a second.

    Raises:
        InputError: there is no ONNX model at `path`.
        BackendError: this device or TensorRT cannot run it.
    """
    read_head(path)
    log = trt.Logger(trt.Logger.WARNING)
    trt.init_libnvinfer_plugins(log, "")
    taken = trt.Runtime(log).deserialize_cuda_engine(engine or _build(log, path, candidate, config))
    if taken is None:
        raise BackendError(f"{candidate}: TensorRT {VERSION} does not take back its own engine: its log says why")
    return TensorRtSession(taken)


def _build(log: Any, path: str, candidate: Candidate, config: Config) -> Any:
    builder = trt.Builder(log)
    network = builder.create_network(0)
    parser = trt.OnnxParser(network, log)
    if not parser.parse(Path(path).read_bytes()):
        reasons = "; ".join(str(parser.get_error(place)) for place in range(parser.num_errors))
        raise BackendError(f"{candidate}: TensorRT {VERSION} does not read the model: {reasons}")
    settings = _settings(builder, network, candidate, config)
    cache = _timing_cache()
    known = cache.read_bytes() if cache is not None and cache.is_file() else b""
    times = settings.create_timing_cache(known) or settings.create_timing_cache(b"")
    settings.set_timing_cache(times, ignore_mismatch=False)
    engine = builder.build_serialized_network(network, settings)
    if engine is None:
        raise BackendError(f"{candidate}: TensorRT {VERSION} builds no engine: too little memory, or its log says why")
    _keep(settings, cache)
    return engine


def _settings(builder: Any, network: Any, candidate: Candidate, config: Config) -> Any:
    settings = builder.create_builder_config()
    settings.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, workspace_bytes(config))
    settings.clear_flag(trt.BuilderFlag.TF32)
    if candidate.precision in _FLAGS:
        flag = getattr(trt.BuilderFlag, _FLAGS[candidate.precision], None)
        if flag is None:  # gone from TensorRT 11
            reason = f"{candidate}: TensorRT {VERSION} computes in the model's types: export it in them"
            raise BackendError(reason, Kind.UNSUPPORTED)
        settings.set_flag(flag)
    inputs = [network.get_input(place) for place in range(network.num_inputs)]
    if any(-1 in tuple(tensor.shape) for tensor in inputs):
        settings.add_optimization_profile(_profile(builder, inputs, config))
    return settings


def _profile(builder: Any, inputs: Sequence[Any], config: Config) -> Any:
    profile = builder.create_optimization_profile()
    ranges = config.options("tensorrt").get("profiles", {})
    for tensor in inputs:
        given = ranges.get(tensor.name)
        if given is not None:
            profile.set_shape(tensor.name, given["min"], given["opt"], given["max"])
        elif -1 in tuple(tensor.shape):
            shape = fixed_shape(tensor.name, tuple(tensor.shape), config)
            profile.set_shape(tensor.name, shape, shape, shape)
    return profile


def fixed_shape(name: str, shape: tuple[int, ...], config: Config) -> tuple[int, ...]:
    """A shape whose open sizes are the config's batch, and its height and width for an image.

    Raises:
        BackendError: another size is open.
    """
    sizes = list(shape)
    if sizes[0] < 0:
        sizes[0] = config.batch_size
    if len(sizes) == _IMAGE_RANK:
        places = (2, 3) if config.preprocessing.layout == "NCHW" else (1, 2)
        for place, size in zip(places, config.input_size, strict=True):
            sizes[place] = size if sizes[place] < 0 else sizes[place]
    if min(sizes) < 0:
        raise BackendError(f"input {name}: {list(shape)} is open: give its range in optimization.tensorrt.profiles")
    return tuple(sizes)


def _timing_cache() -> Path | None:
    folder = os.environ.get("CACHE_DIRECTORY")  # set by systemd's CacheDirectory=
    return Path(folder) / f"tensorrt-{VERSION}.timing" if folder else None


def _keep(settings: Any, cache: Path | None) -> None:
    if cache is not None:
        part = cache.with_suffix(f".{os.getpid()}.part")
        with suppress(OSError):  # a full disk costs the next build minutes, not this one's engine
            part.write_bytes(settings.get_timing_cache().serialize())
            part.replace(cache)  # TensorRT refuses a torn cache and starts anew: no need to sync


def _is_input(engine: Any, name: str) -> bool:
    return bool(engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT)


def _port(engine: Any, name: str) -> Port:
    shape = tuple(None if size < 0 else int(size) for size in engine.get_tensor_shape(name))
    dtype = np.dtype(trt.nptype(engine.get_tensor_dtype(name))).name
    return Port(name, shape, TYPES.get(dtype, dtype))


class _Cuda:
    """The six calls of the CUDA runtime that a session needs."""

    def __init__(self) -> None:
        self._library = _load_cudart()

    def allocate(self, size: int) -> int:
        address = ctypes.c_void_p()
        self._check(self._library.cudaMalloc(ctypes.byref(address), ctypes.c_size_t(max(size, 1))), Kind.MEMORY)
        return address.value or 0

    def copy(self, to: int, source: int, size: int, kind: int) -> None:
        self._check(self._library.cudaMemcpy(ctypes.c_void_p(to), ctypes.c_void_p(source), ctypes.c_size_t(size), kind))

    def stream(self) -> int:
        stream = ctypes.c_void_p()
        self._check(self._library.cudaStreamCreate(ctypes.byref(stream)))
        return stream.value or 0

    def do(self, call: str, pointer: int) -> None:
        """A call that is told where, and no more."""
        self._check(getattr(self._library, call)(ctypes.c_void_p(pointer)))

    def _check(self, status: int, kind: Kind = Kind.BACKEND) -> None:
        if status:
            self._library.cudaGetErrorString.restype = ctypes.c_char_p
            raise BackendError(f"CUDA: {self._library.cudaGetErrorString(status).decode()}", kind)


def _load_cudart() -> ctypes.CDLL:
    for name in _CUDART:
        try:
            return ctypes.CDLL(name)
        except OSError:
            continue
    raise BackendError(f"none of {', '.join(_CUDART)} loads: install the CUDA runtime of this TensorRT")
