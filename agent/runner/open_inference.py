"""The Open Inference Protocol v2 with binary tensors and statistics, as values: no sockets, no seats.

1. A request is read against the metadata of the release that serves now; what does not fit is refused with what
   would have.
2. Binary tensors stay where they were received: they become places in the lane's arena. Numbers in JSON are
   converted, and those in regions known by their place, for whoever puts them behind.
3. The model's name is the slot, its version is the release's date, in every document.

Sources: github.com/kserve/open-inference-protocol; Triton's extensions binary_tensor_data, system_shared_memory,
statistics, model_configuration and model_repository.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, TypeVar, get_args

import msgspec
import numpy as np
from msgspec import Meta, field
from numpy.typing import NDArray

from agent.core.errors import InputError
from agent.core.messages import Slice
from agent.core.release import Config, Dtype, Metadata, Tensor
from agent.runner.frame import frame_shape
from agent.runner.regions import Registered, Size, Span

DATATYPES = {"BOOL": "bool", "FP16": "float16", "FP32": "float32", "FP64": "float64"} | {
    name.upper(): name for name in get_args(Dtype) if "int" in name
}
NAMES = {dtype: datatype for datatype, dtype in DATATYPES.items()}
EXTENSIONS = ("binary_tensor_data", "system_shared_memory", "statistics", "model_configuration", "model_repository")
ALIGNMENT = 64
RANK = 8  # dimensions; more than any vision model has

T = TypeVar("T")


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
_REGION = msgspec.json.Decoder(Registered)


@dataclass(frozen=True, slots=True)
class Request:
    """A request whose inputs lie in an arena, or are numbers or spans of regions still to be put there."""

    document: InferDocument
    slices: Mapping[str, Slice]
    numbers: Mapping[str, NDArray[Any]]
    spans: Mapping[str, Span]
    targets: Mapping[str, Span]  # the outputs that go to regions


def read_request(body: memoryview, start: int, json_length: int) -> Request:
    """The request in `body`, which lies at `start` in the arena.

    Raises:
        InputError: it is not one; says where.
    """
    document = _read(_INFER, body[:json_length])
    slices: dict[str, Slice] = {}
    numbers: dict[str, NDArray[Any]] = {}
    spans: dict[str, Span] = {}
    end = json_length
    for tensor in document.inputs:
        if tensor.name in slices or tensor.name in numbers or tensor.name in spans:
            raise InputError(f"input {tensor.name}: it is there twice")
        dtype = _dtype(tensor)
        if (span := _span(f"input {tensor.name}", tensor.parameters)) is not None:
            _check_length(tensor, dtype, span.size)
            spans[tensor.name] = span
            continue
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
    named = {one.name: _span(f"output {one.name}", one.parameters) for one in document.outputs}
    targets = {name: span for name, span in named.items() if span is not None}
    return Request(document, slices, numbers, spans, targets)


def read_region(name: str | None, body: bytes) -> Registered:
    """The region that a request asks to register.

    Raises:
        InputError: it is none.
    """
    if name is None:
        raise InputError("a region is registered under a name: /v2/systemsharedmemory/region/NAME/register")
    return msgspec.structs.replace(_read(_REGION, body), name=name)


def _read(decoder: "msgspec.json.Decoder[T]", body: bytes | memoryview) -> T:
    try:
        return decoder.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InputError(f"the request's JSON: {error}") from error


def _span(what: str, parameters: Mapping[str, Any]) -> Span | None:
    """The place in a region that a tensor's parameters name, if any does."""
    if not any(name.startswith("shared_memory_") for name in parameters):
        return None
    try:
        return msgspec.convert(parameters, Span)
    except msgspec.ValidationError as error:
        raise InputError(f"{what}: its place in a shared memory region: {error}") from error


def _dtype(tensor: InputTensor) -> "np.dtype[Any]":
    if tensor.datatype not in DATATYPES:
        raise InputError(f"input {tensor.name}: datatype {tensor.datatype!r} is not one of {', '.join(DATATYPES)}")
    return np.dtype(DATATYPES[tensor.datatype])


def _binary_length(tensor: InputTensor, dtype: "np.dtype[Any]") -> int:
    length = tensor.parameters.get("binary_data_size")
    if not isinstance(length, int):
        raise InputError(f"input {tensor.name}: it has neither data nor binary_data_size nor a shared memory region")
    _check_length(tensor, dtype, length)
    return length


def _check_length(tensor: InputTensor, dtype: "np.dtype[Any]", length: int) -> None:
    wanted = math.prod(tensor.shape) * dtype.itemsize
    if length != wanted:
        shape = list(tensor.shape)
        raise InputError(f"input {tensor.name}: {tensor.datatype} {shape} takes {wanted} bytes, not {length}")


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
    request: Request, outputs: Sequence[tuple[Slice, memoryview]], head: Mapping[str, Any]
) -> tuple[bytes, list[memoryview]]:
    """The answer to a request: the JSON part, and the binary tensors behind it.

    `head` holds the model's name, version and parameters.
    """
    default = request.document.parameters.get("binary_data_output", False)
    binary_for = {one.name: one.parameters.get("binary_data", default) for one in request.document.outputs}
    tensors, binary = [], []
    for slice_, content in outputs:
        tensor: dict[str, Any] = {"name": slice_.name, "datatype": NAMES[slice_.dtype], "shape": slice_.shape}
        if slice_.name in request.targets:
            pass  # the client has it already, and says where
        elif binary_for.get(slice_.name, default):
            tensor["parameters"] = {"binary_data_size": slice_.size}
            binary.append(content)
        else:
            tensor["data"] = np.frombuffer(content, slice_.dtype).tolist()
        tensors.append(tensor)
    identity = {"id": request.document.id} if request.document.id else {}
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
