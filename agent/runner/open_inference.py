"""The Open Inference Protocol v2 with binary tensors and statistics, as values: no sockets, no seats.

1. A request is read against the metadata of the release that serves now; what does not fit is refused with what
   would have.
2. Binary tensors stay where they were received: they become places in the lane's arena. Numbers in JSON are
   converted and put behind them.
3. The model's name is the slot, its version is the release's date, in every document.

Sources: github.com/kserve/open-inference-protocol; Triton's extensions binary_tensor_data, statistics,
model_configuration and model_repository.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, get_args

import msgspec
import numpy as np
from msgspec import Meta, field
from numpy.typing import NDArray

from agent.core.errors import InputError
from agent.core.messages import Slice
from agent.core.release import Config, Dtype, Metadata, Tensor
from agent.runner.frame import frame_shape

DATATYPES = {"BOOL": "bool", "FP16": "float16", "FP32": "float32", "FP64": "float64"} | {
    name.upper(): name for name in get_args(Dtype) if "int" in name
}
NAMES = {dtype: datatype for datatype, dtype in DATATYPES.items()}
EXTENSIONS = ("binary_tensor_data", "statistics", "model_configuration", "model_repository")
ALIGNMENT = 64
RANK = 8  # dimensions; more than any vision model has

Size = Annotated[int, Meta(ge=0, le=2**40)]


class InputTensor(msgspec.Struct):
    """One input of a request, as it is written."""

    name: str
    shape: Annotated[tuple[Size, ...], Meta(max_length=RANK)]
    datatype: str
    data: Any = None
    parameters: dict[str, Any] = field(default_factory=dict)


class OutputTensor(msgspec.Struct):
    """One output that is asked for."""

    name: str
    parameters: dict[str, Any] = field(default_factory=dict)


class InferDocument(msgspec.Struct):
    """The JSON part of a request."""

    inputs: Annotated[tuple[InputTensor, ...], Meta(max_length=64)]
    id: str = ""
    outputs: Annotated[tuple[OutputTensor, ...], Meta(max_length=64)] = ()
    parameters: dict[str, Any] = field(default_factory=dict)


_INFER = msgspec.json.Decoder(InferDocument)


@dataclass(frozen=True, slots=True)
class Request:
    """A request whose tensors lie in an arena, or are numbers still to be put there."""

    document: InferDocument
    slices: Mapping[str, Slice]
    numbers: Mapping[str, NDArray[Any]]


def read_request(body: memoryview, start: int, json_length: int) -> Request:
    """The request in `body`, which lies at `start` in the arena.

    Raises:
        InputError: it is not one; says where.
    """
    try:
        document = _INFER.decode(body[:json_length])
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise InputError(f"the request's JSON: {error}") from error
    slices: dict[str, Slice] = {}
    numbers: dict[str, NDArray[Any]] = {}
    end = json_length
    for tensor in document.inputs:
        if tensor.name in slices or tensor.name in numbers:
            raise InputError(f"input {tensor.name}: it is there twice")
        dtype = _dtype(tensor)
        if tensor.data is not None:
            numbers[tensor.name] = _numbers(tensor, dtype)
            continue
        length = _binary_length(tensor, dtype)
        slices[tensor.name] = Slice(
            name=tensor.name, shape=tensor.shape, dtype=dtype.name, offset=start + end, size=length
        )
        end += length
    if end != len(body):
        raise InputError(f"the request's inputs take {end - json_length} bytes; {len(body) - json_length} came")
    return Request(document, slices, numbers)


def _dtype(tensor: InputTensor) -> "np.dtype[Any]":
    if tensor.datatype not in DATATYPES:
        raise InputError(f"input {tensor.name}: datatype {tensor.datatype!r} is not one of {', '.join(DATATYPES)}")
    return np.dtype(DATATYPES[tensor.datatype])


def _binary_length(tensor: InputTensor, dtype: "np.dtype[Any]") -> int:
    length = tensor.parameters.get("binary_data_size")
    if "shared_memory_region" in tensor.parameters:
        raise InputError(f"input {tensor.name}: shared memory regions are not served here; send binary data")
    wanted = math.prod(tensor.shape) * dtype.itemsize
    if not isinstance(length, int):
        raise InputError(f"input {tensor.name}: it has neither data nor binary_data_size")
    if length != wanted:
        shape = list(tensor.shape)
        raise InputError(f"input {tensor.name}: {tensor.datatype} {shape} takes {wanted} bytes, not {length}")
    return length


def _numbers(tensor: InputTensor, dtype: "np.dtype[Any]") -> NDArray[Any]:
    try:
        given = np.asarray(tensor.data)
    except ValueError as error:
        raise InputError(f"input {tensor.name}: its data is not a regular array") from error
    kinds = {"b": "b", "u": "biu", "i": "biu", "f": "biuf"}[dtype.kind]
    if given.size and given.dtype.kind not in kinds:
        raise InputError(f"input {tensor.name}: its data does not hold {tensor.datatype} numbers alone")
    if given.size != math.prod(tensor.shape):
        shape = list(tensor.shape)
        raise InputError(f"input {tensor.name}: shape {shape} has {math.prod(shape)} elements; {given.size} came")
    if given.size and dtype.kind in "iu":
        limits = np.iinfo(dtype)
        if int(given.min()) < limits.min or int(given.max()) > limits.max:
            raise InputError(f"input {tensor.name}: {tensor.datatype} holds {limits.min} to {limits.max}")
    with np.errstate(over="ignore"):  # what FP16 cannot hold is Inf, and then the answer says so
        return given.reshape(tensor.shape).astype(dtype)


def check_request(request: Request, metadata: Metadata, config: Config) -> None:
    """Return when the request fits the model.

    Raises:
        InputError: says what the model takes.
    """
    declared = {tensor.name: tensor for tensor in metadata.inputs}
    given = {tensor.name for tensor in request.document.inputs}
    if given != declared.keys():
        raise InputError(f"the model's inputs are {sorted(declared)}; the request has {sorted(given)}")
    for tensor in request.document.inputs:
        _check_tensor(tensor, declared[tensor.name], config)
    outputs = {tensor.name for tensor in metadata.outputs}
    unknown = sorted({tensor.name for tensor in request.document.outputs} - outputs)
    if unknown:
        raise InputError(f"the model's outputs are {sorted(outputs)}; the request asks for {unknown}")


def _check_tensor(given: InputTensor, declared: Tensor, config: Config) -> None:
    if DATATYPES[given.datatype] == declared.dtype and _fits(given.shape, declared.shape):
        return
    frame = frame_shape(declared, config)
    if frame is not None and given.datatype == "UINT8" and _fits(given.shape, frame):
        return
    also = f", or frames as UINT8 {list(frame)}" if frame is not None else ""
    raise InputError(
        f"input {given.name}: the model takes {NAMES[declared.dtype]} {list(declared.shape)}{also}; "
        f"the request has {given.datatype} {list(given.shape)}"
    )


def _fits(given: Sequence[int], declared: Sequence[int]) -> bool:
    return len(given) == len(declared) and all(
        size in {-1, one} and one > 0 for one, size in zip(given, declared, strict=True)
    )


def write_response(
    request: InferDocument, outputs: Sequence[tuple[Slice, memoryview]], head: Mapping[str, Any]
) -> tuple[bytes, list[memoryview]]:
    """The answer to a request: the JSON part, and the binary tensors behind it.

    `head` holds the model's name, version and parameters.
    """
    default = request.parameters.get("binary_data_output", False)
    binary_for = {one.name: one.parameters.get("binary_data", default) for one in request.outputs}
    tensors, binary = [], []
    for slice_, content in outputs:
        tensor: dict[str, Any] = {"name": slice_.name, "datatype": NAMES[slice_.dtype], "shape": slice_.shape}
        if binary_for.get(slice_.name, default):
            tensor["parameters"] = {"binary_data_size": slice_.size}
            binary.append(content)
        else:
            tensor["data"] = np.frombuffer(content, slice_.dtype).tolist()
        tensors.append(tensor)
    identity = {"id": request.id} if request.id else {}
    return msgspec.json.encode({**head, **identity, "outputs": tensors}), binary


def model_document(slot: str, version: str, platform: str, metadata: Metadata) -> dict[str, Any]:
    """What a client asks first: the model's tensors."""
    return {
        "name": slot,
        "versions": [version],
        "platform": platform,
        "inputs": [_tensor_document(tensor) for tensor in metadata.inputs],
        "outputs": [_tensor_document(tensor) for tensor in metadata.outputs],
    }


def _tensor_document(tensor: Tensor) -> dict[str, Any]:
    return {"name": tensor.name, "datatype": NAMES[tensor.dtype], "shape": tensor.shape}


def config_document(slot: str, platform: str, metadata: Metadata) -> dict[str, Any]:
    """The model's configuration as Triton writes it; the batch stands in the shapes (max_batch_size 0)."""
    return {
        "name": slot,
        "platform": platform,
        "backend": "edge-runner",
        "max_batch_size": 0,
        "input": [_config_tensor(tensor) for tensor in metadata.inputs],
        "output": [_config_tensor(tensor) for tensor in metadata.outputs],
    }


def _config_tensor(tensor: Tensor) -> dict[str, Any]:
    return {"name": tensor.name, "data_type": f"TYPE_{NAMES[tensor.dtype]}", "dims": tensor.shape}


def stats_document(slot: str, version: str, counts: tuple[int, int], seconds: tuple[float, float], last: float) -> Any:
    """Counts as Triton's statistics: (answered, failed), (clients' waiting, seat's work), Unix time of the last."""
    answered, failed = counts
    waiting, work = (round(one * 1e9) for one in seconds)

    def entry(count: int, nanoseconds: int) -> dict[str, int]:
        return {"count": count, "ns": nanoseconds}

    inference = {
        "success": entry(answered, waiting),
        "fail": entry(failed, 0),
        "queue": entry(answered, max(0, waiting - work)),
        "compute_input": entry(answered, 0),
        "compute_infer": entry(answered, work),
        "compute_output": entry(answered, 0),
        "cache_hit": entry(0, 0),
        "cache_miss": entry(0, 0),
    }
    model = {
        "name": slot,
        "version": version,
        "last_inference": round(last * 1000),
        "inference_count": answered,
        "execution_count": answered,
        "inference_stats": inference,
        "batch_stats": [],
    }
    return {"model_stats": [model]}
