"""A request's body on its way into a lane: received there, unpacked, and joined by what lies elsewhere.

1. Binary tensors are received where the seat reads them. What was JSON or lies in a region is put behind them.
2. Whatever a body claims or unpacks to, a request takes BODY_BYTES of a lane at most.
"""

import asyncio
import zlib
from dataclasses import replace
from http import HTTPStatus

import numpy as np

from agent.adapters.arena import ALIGNMENT
from agent.core.errors import InputError
from agent.core.messages import BODY_BYTES, Slice
from agent.runner.http_head import HttpError, RequestHead
from agent.runner.lanes import Lane
from agent.runner.open_inference import DATATYPES, Request, read_request
from agent.runner.regions import Regions
from agent.runner.wire import Wire

JSON_BYTES = 16 * 1024**2  # reading 16 MB of numbers holds up every other client for 0.2 s
JSON_LENGTH = "inference-header-content-length"
GZIP_OR_ZLIB = 47  # zlib's window bits: 15, and 32 to tell the two apart


def check_lengths(ask: RequestHead) -> int:
    """How many bytes of the body are JSON.

    Raises:
        HttpError: the body has no length, is too long, or shorter than its JSON part; or that has no length.
    """
    if "content-length" not in ask.headers:
        raise HttpError(HTTPStatus.LENGTH_REQUIRED, "a request to infer has a body: send a Content-Length")
    if ask.length > BODY_BYTES:
        raise HttpError(
            HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"a body of {ask.length} bytes; at most {BODY_BYTES} are taken"
        )
    said = ask.headers.get(JSON_LENGTH, str(ask.length))  # a body is JSON where nothing else is said
    if not (said.isascii() and said.isdigit() and len(said) < 16):  # noqa: PLR2004 - beyond any length
        raise HttpError(HTTPStatus.BAD_REQUEST, f"header {JSON_LENGTH}: {said!r} is not a number of bytes")
    json_length = int(said)
    if json_length > JSON_BYTES:
        reason = f"{json_length} bytes of JSON; at most {JSON_BYTES} are taken: send tensors as binary data"
        raise HttpError(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, reason)
    if json_length > ask.length and "content-encoding" not in ask.headers:
        raise HttpError(HTTPStatus.BAD_REQUEST, f"{JSON_LENGTH} is {json_length}; the body has {ask.length} bytes")
    return json_length


async def receive(wire: Wire, ask: RequestHead, lane: Lane, json_length: int, regions: Regions) -> Request:
    """The request, with all its tensors in the lane.

    Raises:
        InputError: it is none.
    """
    start = -json_length % ALIGNMENT  # so that the first binary tensor is aligned
    body = lane.request(start, ask.length)
    await wire.read_into(body)
    if "content-encoding" in ask.headers:
        body = await asyncio.to_thread(inflate, body)
        json_length = min(json_length, len(body)) if JSON_LENGTH in ask.headers else len(body)
        if json_length > JSON_BYTES:
            raise InputError(
                f"the request's body unpacks to {json_length} bytes of JSON; at most {JSON_BYTES} are taken"
            )
        start = -json_length % ALIGNMENT
        lane.request(start, len(body))[:] = body
    return await put(read_request(memoryview(body), start, json_length), lane, start + len(body), regions)


def inflate(body: memoryview) -> memoryview:
    """What a gzip or zlib body unpacks to.

    Raises:
        InputError: it is neither, or unpacks to too much.
    """
    unpacker = zlib.decompressobj(GZIP_OR_ZLIB)
    try:
        content = unpacker.decompress(body, BODY_BYTES)
    except zlib.error as error:
        raise InputError(f"the request's body is neither gzip nor deflate: {error}") from error
    if not unpacker.eof:
        raise InputError(f"the request's body is cut short, or unpacks to more than {BODY_BYTES} bytes")
    return memoryview(content)


async def put(request: Request, lane: Lane, end: int, regions: Regions) -> Request:
    """The request with its tensors that were JSON, or lie in regions, in the lane too, from `end` on.

    Raises:
        InputError: a region does not hold what it should.
    """
    for target in request.targets.values():
        regions.check(target)
    slices: dict[str, Slice] = {}
    for tensor in request.document.inputs:
        name, dtype, span = tensor.name, DATATYPES[tensor.datatype], request.spans.get(tensor.name)
        if name in request.slices:
            slices[name] = request.slices[name]
            continue
        size = request.numbers[name].nbytes if span is None else span.size
        offset = end + -end % ALIGNMENT
        end = offset + size
        if end > BODY_BYTES:
            raise InputError(f"the request's inputs take {end} bytes; at most {BODY_BYTES} are taken")
        room = lane.request(offset, size)
        if span is not None:
            await regions.read(span, room)
        else:
            room[:] = np.ascontiguousarray(request.numbers[name]).reshape(-1).view(np.uint8).data
        slices[name] = Slice(name=name, shape=tensor.shape, dtype=dtype, offset=offset, size=size)
    return replace(request, slices=slices)
