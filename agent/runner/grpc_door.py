"""The door for gRPC: the Open Inference Protocol's service, and what Triton's clients ask beside it.

1. It is another way through the same door: slots, lanes, regions, figures and reasons are those of HTTP.
2. A message is in memory whole before anybody looks at it: messages are smaller than HTTP's bodies, and few at once.
3. Tensors are taken as raw contents, as typed contents or from regions; answers are raw, or in regions.
4. A client that gives up, or whose deadline passes, is waited for no more: its place in the queue goes to the next.
"""

import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from http import HTTPStatus
from pathlib import Path
from typing import Any

import grpc
import msgspec
from google.protobuf import json_format
from google.protobuf.message import DecodeError

from agent.core.errors import InputError
from agent.runner.door import CONNECTIONS, METADATA, Door, Outputs, status_of
from agent.runner.grpc_messages import SERVICE, message
from agent.runner.http_head import HttpError
from agent.runner.intake import put
from agent.runner.lanes import Lane
from agent.runner.model_documents import OtherVersionError, index_entry, model_answer, response_head
from agent.runner.open_inference import NAMES, InferDocument, Request, place_request
from agent.runner.queue import LateError
from agent.runner.regions import Registered
from agent.runner.serving import Answered
from agent.runner.slots import Slot

MESSAGE_BYTES = 32 * 1024**2  # six 640 x 640 float frames
CALLS = 32  # at once; with their messages they take a gigabyte at most
OPTIONS = (
    ("grpc.max_receive_message_length", MESSAGE_BYTES),
    ("grpc.max_send_message_length", -1),  # an answer is as long as the model makes it
    ("grpc.max_allowed_incoming_connections", CONNECTIONS),
    ("grpc.so_reuseport", 0),  # a port that is taken is an error, not a port for two
)
CODES = {
    HTTPStatus.BAD_REQUEST: grpc.StatusCode.INVALID_ARGUMENT,
    HTTPStatus.NOT_FOUND: grpc.StatusCode.NOT_FOUND,
    HTTPStatus.INTERNAL_SERVER_ERROR: grpc.StatusCode.INTERNAL,
    HTTPStatus.SERVICE_UNAVAILABLE: grpc.StatusCode.UNAVAILABLE,
}


async def open_grpc(door: Door, addresses: Sequence[str]) -> grpc.aio.Server:
    """A server on each of the addresses, `host:port` or `unix:path`.

    Raises:
        InputError: one is taken, or is none.
    """
    server = grpc.aio.server(options=OPTIONS, maximum_concurrent_rpcs=CALLS)
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, Service(door).handlers()),))
    for address in addresses:
        try:
            server.add_insecure_port(address)
        except RuntimeError as error:
            raise InputError(
                f"--grpc {address}: it is taken, or no address; free it, or set another runner.grpc in agent.yaml"
            ) from error
    await server.start()
    for address in addresses:
        share(address)
    return server


def share(address: str) -> None:
    """Lets this user and group connect, where the address is a path."""
    kind, _, path = address.partition(":")
    if kind == "unix":
        Path(path).chmod(0o660)


class Service:
    """The service's methods."""

    def __init__(self, door: Door) -> None:
        self._door = door

    def handlers(self) -> dict[str, grpc.RpcMethodHandler]:
        """What answers each method."""
        documents: dict[str, tuple[str, str, Callable[[Any], Any]]] = {
            "ServerLive": ("Empty", "ServerLiveResponse", lambda _: {"live": True}),
            "ServerReady": ("Empty", "ServerReadyResponse", lambda _: {"ready": holds(self._door.ready)}),
            "ModelReady": ("Named", "ModelReadyResponse", lambda ask: {"ready": holds(lambda: self._model(ask))}),
            "ServerMetadata": ("Empty", "ServerMetadataResponse", lambda _: METADATA),
            "ModelMetadata": ("Named", "ModelMetadataResponse", self._model),
            "ModelConfig": ("Named", "ModelConfigResponse", lambda ask: {"config": self._model(ask, "config")}),
            "ModelStatistics": ("Named", "ModelStatisticsResponse", self._statistics),
            "RepositoryIndex": ("RepositoryIndexRequest", "RepositoryIndexResponse", self._index),
            "SystemSharedMemoryStatus": ("Named", "SystemSharedMemoryStatusResponse", self._status),
            "SystemSharedMemoryRegister": ("Region", "Empty", self._register),
            "SystemSharedMemoryUnregister": ("Named", "Empty", self._unregister),
        }
        handlers = {
            name: unary(told(answer, response), asks, response) for name, (asks, response, answer) in documents.items()
        }
        handlers["ModelInfer"] = unary(self._infer, "ModelInferRequest", "ModelInferResponse")
        handlers["ModelStreamInfer"] = grpc.stream_stream_rpc_method_handler(
            self._stream, response_serializer=message("ModelStreamInferResponse").SerializeToString
        )
        return handlers

    def _model(self, ask: Any, what: str | None = None) -> Any:
        return model_answer(self._door.slot(ask.name), ask.version or None, what)

    def _statistics(self, ask: Any) -> Any:
        if ask.name:
            return self._model(ask, "stats")
        return self._door.statistics()

    def _index(self, ask: Any) -> Any:
        slots = (slot for slot in self._door.slots.values() if slot.serving is not None or not ask.ready)
        return {"models": [index_entry(slot) for slot in slots]}

    def _status(self, ask: Any) -> Any:
        return {"regions": [{"key": one.name, "value": one} for one in self._door.regions.status(ask.name or None)]}

    def _register(self, ask: Any) -> Any:
        region = Registered(name=ask.name, key=ask.key, offset=ask.offset, byte_size=ask.byte_size)
        return self._door.regions.register(region)

    def _unregister(self, ask: Any) -> Any:
        return self._door.regions.unregister(ask.name or None)

    async def _infer(self, ask: Any) -> Any:
        arrived = time.monotonic()
        slot = self._door.slot(ask.model_name)
        with self._door.lane(slot) as lane:
            request = await self._received(ask, lane)
            answered, outputs = await self._door.computed(slot, lane, request, ask.model_version or None, arrived)
            return response_of(request, slot, answered, outputs)

    async def _stream(self, asks: AsyncIterator[bytes], context: object) -> AsyncIterator[Any]:
        del context
        kind = message("ModelStreamInferResponse")
        async for ask in asks:
            try:
                yield kind(infer_response=await self._infer(read("ModelInferRequest", ask)))
            except (HttpError, InputError) as error:
                yield kind(error_message=str(error))

    async def _received(self, ask: Any, lane: Lane) -> Request:
        content = b"".join(ask.raw_input_contents)
        request = place_request(document_of(ask), 0, len(content))
        lane.request(0, len(content))[:] = content
        return await put(request, lane, len(content), self._door.regions)


def told(answer: Callable[[Any], Any], response: str) -> Callable[[Any], Awaitable[Any]]:
    """A method that answers with a document, as the message that it stands for."""
    kind = message(response)

    async def call(ask: Any) -> Any:
        return json_format.Parse(msgspec.json.encode(answer(ask) or {}), kind())

    return call


def unary(call: Callable[[Any], Awaitable[Any]], asks: str, response: str) -> grpc.RpcMethodHandler:
    """A method of one request and one answer; what goes wrong becomes a status."""

    async def handle(ask: bytes, context: Any) -> Any:
        try:
            return await call(read(asks, ask))
        except (HttpError, InputError) as error:
            return await context.abort(code_of(error), str(error))

    return grpc.unary_unary_rpc_method_handler(handle, response_serializer=message(response).SerializeToString)


def read(asks: str, content: bytes) -> Any:
    """A request as a message. gRPC's own reading would make a fault of ours of one that is none.

    Raises:
        InputError: it is none.
    """
    try:
        return message(asks).FromString(content)
    except DecodeError as error:
        raise InputError(f"this is no {asks}: {error}") from error


def code_of(error: HttpError | InputError) -> Any:
    """The status of what went wrong."""
    if isinstance(error.__cause__, LateError):
        return grpc.StatusCode.DEADLINE_EXCEEDED
    return CODES[HTTPStatus(status_of(error))]


def holds(check: Callable[[], object]) -> bool:
    """Whether a check passes."""
    try:
        check()
    except (HttpError, OtherVersionError):
        return False
    return True


def document_of(ask: Any) -> InferDocument:
    """A request as HTTP would have it.

    Raises:
        InputError: it is none.
    """
    raw = iter(ask.raw_input_contents)
    tree = {
        "inputs": [_input(tensor, raw) for tensor in ask.inputs],
        "outputs": [{"name": one.name, "parameters": _parameters(one.parameters)} for one in ask.outputs],
        "id": ask.id,
        "parameters": _parameters(ask.parameters),
    }
    try:
        return msgspec.convert(tree, InferDocument)
    except msgspec.ValidationError as error:
        raise InputError(f"the request: {error}") from error


def _input(tensor: Any, raw: Iterator[bytes]) -> dict[str, Any]:
    parameters = _parameters(tensor.parameters)
    typed = [list(values) for _, values in tensor.contents.ListFields()]
    if not typed and "shared_memory_region" not in parameters:
        content = next(raw, None)
        if content is not None:
            parameters["binary_data_size"] = len(content)
    return {
        "name": tensor.name,
        "shape": list(tensor.shape),
        "datatype": tensor.datatype,
        "parameters": parameters,
        "data": typed[0] if typed else None,
    }


def _parameters(given: Any) -> dict[str, Any]:
    return {one.key: getattr(one.value, one.value.WhichOneof("choice") or "string_param") for one in given}


def response_of(request: Request, slot: Slot, answered: Answered, outputs: Outputs) -> Any:
    """The answer as a message, whose tensors are copies: the lane goes to the next request before it is sent."""
    head = response_head(slot, answered)
    answer = message("ModelInferResponse")(
        model_name=head["model_name"], model_version=head["model_version"], id=request.document.id
    )
    for key, value in head["parameters"].items():
        kind = "bool_param" if isinstance(value, bool) else "string_param"
        setattr(answer.parameters.add(key=key).value, kind, value)
    for one, content in outputs:
        answer.outputs.add(name=one.name, datatype=NAMES[one.dtype], shape=one.shape)
        answer.raw_output_contents.append(b"" if one.name in request.targets else bytes(content))
    return answer
