"""A stand-in for NVIDIA's `tensorrt` module and the CUDA runtime: builds "engines" that compute relu on the host.

It has the names, arguments and failures of the real one that agent/backends/tensor_rt.py uses, and no more.
Addresses on its device are addresses in this process.
"""

import ctypes
from enum import Enum
from types import SimpleNamespace

import numpy as np
import onnx

BuilderFlag = Enum("BuilderFlag", ["FP16", "BF16", "INT8", "TF32"])
MemoryPoolType = Enum("MemoryPoolType", ["WORKSPACE"])
TensorIOMode = Enum("TensorIOMode", ["INPUT", "OUTPUT"])
__version__ = "10.16.0"
built = []  # the settings of each engine, in order


class Logger:
    WARNING = 2

    def __init__(self, level):
        self.level = level


def init_libnvinfer_plugins(log, namespace):
    return True


def nptype(dtype):
    return dtype


class Builder:
    def __init__(self, log):
        pass

    def create_network(self, flags):
        return Network()

    def create_builder_config(self):
        return Settings()

    def create_optimization_profile(self):
        return Profile()

    def build_serialized_network(self, network, settings):
        built.append(settings)
        shape = settings.profiles[0].shapes["input"] if settings.profiles else (network.shape,) * 3
        return repr((network.shape, shape)).encode()


class Network:
    shape = ()
    num_inputs = 1

    def get_input(self, place):
        return SimpleNamespace(name="input", shape=self.shape)


class OnnxParser:
    num_errors = 1

    def __init__(self, network, log):
        self.network = network

    def parse(self, content):
        model = onnx.load_from_string(content)
        dims = model.graph.input[0].type.tensor_type.shape.dim
        self.network.shape = tuple(dim.dim_value or -1 for dim in dims)
        return all(node.op_type == "Relu" for node in model.graph.node)

    def get_error(self, place):
        return "no such operator"


class Profile:
    def __init__(self):
        self.shapes = {}

    def set_shape(self, name, low, best, high):
        self.shapes[name] = tuple(low), tuple(best), tuple(high)


class Settings:
    def __init__(self):
        self.flags, self.cleared, self.limits, self.profiles, self.cache = set(), set(), {}, [], None

    def set_memory_pool_limit(self, pool, size):
        self.limits[pool] = size

    def set_flag(self, flag):
        self.flags.add(flag)

    def clear_flag(self, flag):
        self.cleared.add(flag)

    def add_optimization_profile(self, profile):
        self.profiles.append(profile)

    def create_timing_cache(self, content):
        return SimpleNamespace(content=content, serialize=lambda: content + b"timed;")

    def set_timing_cache(self, cache, ignore_mismatch):
        self.cache = cache

    def get_timing_cache(self):
        return self.cache


class Runtime:
    def __init__(self, log):
        pass

    def deserialize_cuda_engine(self, content):
        try:
            shape, span = eval(content)
        except SyntaxError:
            return None
        return Engine(shape, span)


class Engine:
    num_io_tensors = 2

    def __init__(self, shape, span):
        self.shape, self.span = shape, span

    def serialize(self):
        return repr((self.shape, self.span)).encode()

    def get_tensor_name(self, place):
        return ("input", "output")[place]

    def get_tensor_mode(self, name):
        return TensorIOMode.INPUT if name == "input" else TensorIOMode.OUTPUT

    def get_tensor_shape(self, name):
        return self.shape

    def get_tensor_dtype(self, name):
        return np.float32

    def create_execution_context(self):
        return Context(self)


class Context:
    def __init__(self, engine):
        self.engine, self.shape, self.addresses = engine, (), {}

    def set_input_shape(self, name, shape):
        low, _, high = self.engine.span
        self.shape = tuple(shape)
        return all(a <= b <= c for a, b, c in zip(low, shape, high, strict=True))

    def get_tensor_shape(self, name):
        return self.shape

    def set_tensor_address(self, name, address):
        self.addresses[name] = address

    def execute_async_v3(self, stream):
        source, target = (self.at(self.addresses[name]) for name in ("input", "output"))
        np.maximum(source, 0, out=target)
        return True

    def at(self, address):
        count = int(np.prod(self.shape))
        return np.ctypeslib.as_array((ctypes.c_float * count).from_address(address))


class Cudart:
    """The CUDA runtime, with host memory."""

    def __init__(self, room=1 << 20):
        self.blocks, self.streams, self.room = {}, set(), room
        self.cudaGetErrorString = lambda status: b"out of memory"

    def cudaMalloc(self, pointer, size):  # noqa: N802
        if size.value > self.room:
            return 2
        block = ctypes.create_string_buffer(size.value)
        self.blocks[ctypes.addressof(block)] = block
        pointer._obj.value = ctypes.addressof(block)
        return 0

    def cudaFree(self, pointer):  # noqa: N802
        del self.blocks[pointer.value]
        return 0

    def cudaMemcpy(self, target, source, size, kind):  # noqa: N802
        ctypes.memmove(target, source, size.value)
        return 0

    def cudaStreamCreate(self, pointer):  # noqa: N802
        pointer._obj.value = len(self.streams) + 1
        self.streams.add(pointer._obj.value)
        return 0

    def cudaStreamSynchronize(self, stream):  # noqa: N802
        return 0 if stream.value in self.streams else 400

    def cudaStreamDestroy(self, stream):  # noqa: N802
        self.streams.remove(stream.value)
        return 0
