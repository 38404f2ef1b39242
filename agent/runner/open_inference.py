"""Requests and answers of the Open Inference Protocol v2, with binary tensors, as values: no sockets, no seats.

1. A request is read against the metadata of the release that serves now; what does not fit is refused with what
   would have.
2. Binary tensors stay where they were received: they become places in the lane's arena. Numbers in JSON are
   converted, and those in regions known by their place, for whoever puts them behind.

Sources: github.com/kserve/open-inference-protocol; Triton's extensions binary_tensor_data and system_shared_memory.
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
from agent.core.messages import SeatRun, Slice
from agent.core.release import Config, Dtype, Metadata, Tensor
from agent.runner.frame import frame_shape
from agent.runner.queue import PRIORITY, Terms
from agent.runner.regions import Registered, Size, Span

DATATYPES = {"BOOL": "bool", "FP16": "float16", "FP32": "float32", "FP64": "float64"} | {
    name.upper(): name for name in get_args(Dtype) if "int" in name
}
NAMES = {dtype: datatype for datatype, dtype in DATATYPES.items()}
EXTENSIONS = ("binary_tensor_data", "system_shared_memory", "statistics", "model_configuration", "model_repository")
RANK = 8  # dimensions; more than any vision model has

T = TypeVar("T")


class InputTensor(msgspec.Struct):
    """One input of a request, as it is written."""

    name: str
    shape: Annotated[tuple[Size, ...], Meta(max_length=RANK)]
    datatype: str
    data: Any = None
    parameters: dict[str, Any] = field(default_factory=dict)


class Waiting(msgspec.Struct):
    """What a request's parameters say of its waiting. 0 is as if nothing were said."""

    priority: Size = 0
    timeout: Size = 0  # microseconds


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
    return place_request(_read(_INFER, body[:json_length]), start + json_length, len(body) - json_length)


def place_request(document: InferDocument, start: int, length: int) -> Request:
    """The request whose binary tensors lie one behind the other: `length` bytes from `start` on in the arena.

    Raises:
        InputError: they do not; says where.
    """
    slices: dict[str, Slice] = {}
    numbers: dict[str, NDArray[Any]] = {}
    spans: dict[str, Span] = {}
    end = 0
    for tensor in document.inputs:
        if tensor.name in slices or tensor.name in numbers or tensor.name in spans:
            raise InputError(f"input {tensor.name}: it is there twice")
        dtype = _dtype(tensor)
        if (span := _span(f"input {tensor.name}", tensor.parameters)) is not None:
            _check_length(tensor, dtype, span.size)
            spans[tensor.name] = span
        elif tensor.data is not None:
            numbers[tensor.name] = _numbers(tensor, dtype)
        else:
            size, place = _binary_length(tensor, dtype), start + end
            slices[tensor.name] = Slice(name=tensor.name, shape=tensor.shape, dtype=dtype.name, offset=place, size=size)
            end += size
    if end != length:
        raise InputError(f"the request's inputs take {end} bytes; {length} came")
    named = {one.name: _span(f"output {one.name}", one.parameters) for one in document.outputs}
    targets = {name: span for name, span in named.items() if span is not None}
    return Request(document, slices, numbers, spans, targets)


def read_region(name: str | None, body: bytes) -> Registered:
    """The region that a request asks to register.

    Raises:
        InputError: it is none.
    """
    return msgspec.structs.replace(_read(_REGION, body), name=name or "")


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


def read_terms(parameters: Mapping[str, Any], arrived: float) -> Terms:
    """How long a request waits, and whom it lets pass.

    Raises:
        InputError: its parameters say nonsense.
    """
    try:
        said = msgspec.convert(parameters, Waiting)
    except msgspec.ValidationError as error:
        raise InputError(f"the request's parameters: {error}") from error
    deadline = arrived + said.timeout / 1e6 if said.timeout else math.inf
    return Terms(said.priority or PRIORITY, deadline)


def _dtype(tensor: InputTensor) -> "np.dtype[Any]":
    if tensor.datatype == "BYTES":
        raise InputError(f"input {tensor.name}: no model takes BYTES: a release has tensors of numbers alone")
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
    fits = given.dtype.kind in kinds
    if dtype == np.uint64 and given.dtype.kind == "f":  # what numpy makes of integers on both sides of 2**63
        given = np.asarray(tensor.data, object)
        fits = all(isinstance(one, int) for one in given.flat)
    if given.size and not fits:
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


def check_request(run: SeatRun, metadata: Metadata, config: Config) -> SeatRun:
    """The request, when it fits the model.

    Raises:
        InputError: says what the model takes.
    """
    declared = {tensor.name: tensor for tensor in metadata.inputs}
    given = {tensor.name for tensor in run.inputs}
    if given != declared.keys():
        came = "one array without a name" if given == {""} else sorted(given)
        raise InputError(f"the model's inputs are {sorted(declared)}; the request has {came}")
    for tensor in run.inputs:
        _check_tensor(tensor, declared[tensor.name], config)
    known = {tensor.name for tensor in metadata.outputs}
    if unknown := sorted(set(run.outputs) - known):
        raise InputError(f"the model's outputs are {sorted(known)}; the request asks for {unknown}")
    return run


def _check_tensor(given: Slice, declared: Tensor, config: Config) -> None:
    if given.dtype == declared.dtype and _fits(given.shape, declared.shape):
        return
    frame = frame_shape(declared, config)
    if frame is not None and given.dtype == "uint8" and _fits(given.shape, frame):
        return
    also = f", or frames as UINT8 {list(frame)}" if frame is not None else ""
    raise InputError(
        f"input {given.name}: the model takes {NAMES[declared.dtype]} {list(declared.shape)}{also}; "
        f"the request has {NAMES[given.dtype]} {list(given.shape)}"
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
