"""The door: what local clients see. Open Inference Protocol v2 over HTTP/1.1, on a unix socket and loopback TCP.

1. A request's body is received into a lane's arena, and its answer is sent from there.
2. No request is lost to a swap: it waits for a seat `hold_s` at most, then it gets 503 with Retry-After.
3. Errors say who must act: 4xx the client, 500 the model, 503 nobody: try again.
4. One request's failure is its own: whatever goes wrong in a connection stays in that connection.
"""

import asyncio
import logging
import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from http import HTTPStatus
from typing import Any
from urllib.parse import unquote

import msgspec

from agent import VERSION
from agent.core.errors import BackendError, InputError, TransferError
from agent.core.messages import BODY_BYTES, SeatRan, SeatRun, Slice
from agent.runner import model_documents as documents
from agent.runner.holdings import Held
from agent.runner.http_head import CONTINUE, JSON, HttpError, RequestHead, read_head, unavailable, write_head
from agent.runner.intake import check_lengths, receive
from agent.runner.lanes import Lane
from agent.runner.metrics import CONTENT_TYPE, exposition
from agent.runner.open_inference import EXTENSIONS, Request, check_request, read_region, read_terms, write_response
from agent.runner.queue import LateError
from agent.runner.regions import Regions
from agent.runner.serving import Answered
from agent.runner.slots import Slot
from agent.runner.wire import Wire

CONNECTIONS = 256
DOCUMENT_BYTES = 16 * 1024  # of a body that is no request to infer: a region's is below 1 KB
METADATA = {"name": "edge-runner", "version": VERSION, "extensions": EXTENSIONS}

log = logging.getLogger("edge-runner")

Outputs = list[tuple[Slice, memoryview]]

_MODEL = re.compile(r"/v2/models/(?!stats$)([^/]+)(?:/versions/([^/]+))?(?:/(ready|config|stats|infer))?")
_REGION = re.compile(r"/v2/systemsharedmemory(?:/region/([^/]+))?/(status|register|unregister)")


class Door:
    """Answers clients from the slots."""

    def __init__(self, slots: Mapping[str, Slot], tasks: asyncio.TaskGroup) -> None:
        self.slots, self._tasks = slots, tasks
        self.regions = Regions()
        self._wires: dict[Wire, asyncio.Task[None]] = {}
        self._is_closing = False
        self._requests = 0
        self.refused = 0

    def wire(self) -> Wire:
        """A protocol for one connection."""
        return Wire(self._opened, self._closed)

    async def close(self, patience_s: float) -> None:
        """Return when every request inside is answered, or after `patience_s`."""
        self._is_closing = True
        for wire in self._wires:
            if not wire.is_busy:
                wire.close()
        if self._wires:
            _, late = await asyncio.wait(self._wires.values(), timeout=patience_s)
            for task in late:
                task.cancel()

    def _opened(self, wire: Wire) -> None:
        if len(self._wires) >= CONNECTIONS or self._is_closing:
            error = HttpError(HTTPStatus.SERVICE_UNAVAILABLE, f"{CONNECTIONS} connections are open; close some")
            send(wire, error.status, error.body())
            wire.close()
            return
        self._wires[wire] = self._tasks.create_task(self._serve(wire), name="client")

    def _closed(self, wire: Wire) -> None:
        self._wires.pop(wire, None)

    async def _serve(self, wire: Wire) -> None:
        try:
            while await self._one(wire):
                pass
        except ConnectionError:
            pass  # a client may leave at any time
        except Exception:
            log.exception("step=serve outcome=connection closed")
        finally:
            wire.close()

    async def _one(self, wire: Wire) -> bool:
        """Answers one request; whether another may come."""
        wire.keeps_alive = False
        try:
            head = await wire.head()
            if head is None:
                return False
            ask = read_head(head)
            wire.unread = ask.length
            # A client that waits for our word may or may not send the body of a request that was refused.
            wire.keeps_alive = ask.keeps_alive and not ask.waits_for_continue and not self._is_closing
            await self._answer(wire, ask)
        except HttpError as error:
            return await refuse(wire, error)
        except InputError as error:
            return await refuse(wire, HttpError(status_of(error), str(error)))
        await wire.drained()
        return wire.keeps_alive and not self._is_closing

    async def _answer(self, wire: Wire, ask: RequestHead) -> None:
        if "transfer-encoding" in ask.headers:
            raise HttpError(HTTPStatus.LENGTH_REQUIRED, "chunked bodies are not taken: send a Content-Length")
        model = _MODEL.fullmatch(ask.path)
        if model is not None:
            slot = self.slot(unquote(model[1]))
            if model[3] == "infer":
                allow(ask, "POST")
                await self._infer(wire, ask, slot, model[2])
                return
        given = await self._take_body(wire, ask)
        headers = JSON
        if model is not None:
            allow(ask, "GET")
            body = msgspec.json.encode(documents.model_answer(slot, model[2], model[3]))
        elif ask.path == "/metrics":
            allow(ask, "GET")
            body, headers = exposition(self.slots, self.requests, self.refused), {"Content-Type": CONTENT_TYPE}
        elif (region := _REGION.fullmatch(ask.path)) is not None:
            body = msgspec.json.encode(self._region_answer(ask, region[1] and unquote(region[1]), region[2], given))
        else:
            body = msgspec.json.encode(self._server_answer(ask))
        send(wire, HTTPStatus.OK, body, headers=headers)

    @staticmethod
    async def _take_body(wire: Wire, ask: RequestHead) -> bytes:
        if ask.length > DOCUMENT_BYTES:
            raise HttpError(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"{ask.path} takes no body of {ask.length} bytes")
        if ask.waits_for_continue:
            wire.write(CONTINUE)
        body = bytearray(ask.length)
        await wire.read_into(memoryview(body))
        return bytes(body)

    def _server_answer(self, ask: RequestHead) -> Any:
        answers: dict[str, tuple[str, Callable[[], Any]]] = {
            "/v2": ("GET", lambda: METADATA),
            "/v2/": ("GET", lambda: METADATA),
            "/v2/health/live": ("GET", lambda: {"live": True}),
            "/v2/health/ready": ("GET", self.ready),
            "/v2/models/stats": ("GET", self.statistics),
            "/v2/repository/index": ("POST", lambda: [documents.index_entry(slot) for slot in self.slots.values()]),
        }
        if ask.path not in answers:
            raise HttpError(HTTPStatus.NOT_FOUND, f"there is nothing at {ask.path}; the protocol starts at /v2")
        method, answer = answers[ask.path]
        allow(ask, method)
        return answer()

    def _region_answer(self, ask: RequestHead, name: str | None, verb: str, body: bytes) -> Any:
        allow(ask, "GET" if verb == "status" else "POST")
        match verb:
            case "status":
                return self.regions.status(name)
            case "unregister":
                return self.regions.unregister(name)
        return self.regions.register(read_region(name, body))

    async def _infer(self, wire: Wire, ask: RequestHead, slot: Slot, version: str | None) -> None:
        arrived = time.monotonic()
        json_length = check_lengths(ask)
        with self.lane(slot) as lane:
            if ask.waits_for_continue:
                wire.write(CONTINUE)
            request = await receive(wire, ask, lane, json_length, self.regions)
            answered, outputs = await self.computed(slot, lane, request, version, arrived)
            document, binary = write_response(request, outputs, documents.response_head(slot, answered))
            headers = JSON
            if binary:
                headers = {"Content-Type": "application/octet-stream"}
                headers["Inference-Header-Content-Length"] = str(len(document))
            send(wire, HTTPStatus.OK, document, *binary, headers=headers)
            await wire.drained()

    # --- what the doors of other protocols share ---------------------------------------------------------------------

    @contextmanager
    def lane(self, slot: Slot) -> Iterator[Lane]:
        """A lane of the slot's for one request, which is counted; what fails inside becomes an answer.

        Raises:
            HttpError: there is none, or the device failed.
            InputError: the request is wrong.
        """
        self._requests += 1
        try:
            lane = slot.lanes.take()
        except TransferError as error:
            self.refused += 1
            raise unavailable(f"{slot.name}: {error}", 1) from error
        try:
            yield lane
        except TransferError as error:
            self.refused += not isinstance(error, LateError)  # that one is the client's own wish
            raise unavailable(str(error), slot.hold_s) from error
        except BackendError as error:
            raise HttpError(HTTPStatus.INTERNAL_SERVER_ERROR, str(error)) from error
        finally:
            if lane.is_large:  # what seats hold of it goes, too
                slot.forget(lane)
            slot.lanes.give_back(lane)

    async def computed(
        self, slot: Slot, lane: Lane, request: Request, version: str | None, arrived: float
    ) -> tuple[Answered, Outputs]:
        """The answer to a request in a lane, with the tensors where the seat wrote them; regions have theirs.

        Raises:
            EdgeError: as `Slot.infer`; or a region does not take an output.
        """
        terms = read_terms(request.document.parameters, arrived)
        answered = await slot.infer(lane, partial(asked, request, slot, lane, version), arrived, terms)
        outputs = outputs_of(lane, answered.ran)
        for output, content in outputs:
            if output.name in request.targets:
                await self.regions.write(request.targets[output.name], content)
        return answered, outputs

    def slot(self, name: str) -> Slot:
        """The slot of a name.

        Raises:
            HttpError: there is none.
        """
        slot = self.slots.get(name)
        if slot is None:
            known = ", ".join(sorted(self.slots)) or "none yet"
            raise HttpError(HTTPStatus.NOT_FOUND, f"unknown model {name!r}; the models of this device: {known}")
        return slot

    @property
    def requests(self) -> int:
        """All that were asked since the start of the runner, by whichever way in."""
        return self._requests + sum(slot.rung for slot in self.slots.values())

    def ready(self) -> dict[str, bool]:
        """The answer when every slot that is to serve does, and one at least.

        Raises:
            HttpError: not so.
        """
        dark = sorted(slot.name for slot in self.slots.values() if slot.order is not None and slot.serving is None)
        if dark or all(slot.serving is None for slot in self.slots.values()):
            raise unavailable(f"no model serves in: {', '.join(dark) or 'any slot'}", 1)
        return {"ready": True}

    def statistics(self) -> Any:
        """Of all slots."""
        return {"model_stats": [one for slot in self.slots.values() for one in documents.stats_of(slot, None)]}


def status_of(error: HttpError | InputError) -> int:
    """The status of a refusal: its own, or that of a client's mistake."""
    if isinstance(error, HttpError):
        return error.status
    return HTTPStatus.NOT_FOUND if isinstance(error, documents.OtherVersionError) else HTTPStatus.BAD_REQUEST


async def refuse(wire: Wire, error: HttpError) -> bool:
    """Answers with an error; whether another request may come."""
    wire.keeps_alive &= wire.unread <= BODY_BYTES and error.status != HTTPStatus.REQUEST_TIMEOUT
    send(wire, error.status, error.body(), headers=JSON | dict(error.headers))
    await wire.drained()
    try:
        await (wire.discard() if wire.keeps_alive else wire.bid_farewell())
    except HttpError:
        return False  # it has its answer, and still does not send its body
    return wire.keeps_alive


def send(wire: Wire, status: int, body: bytes, *binary: memoryview, headers: Mapping[str, str] = JSON) -> None:
    """Writes an answer: the body, and the binary tensors behind it."""
    length = len(body) + sum(len(one) for one in binary)
    wire.write(write_head(status, length, headers, keeps_alive=wire.keeps_alive) + body, *binary)


def allow(ask: RequestHead, method: str) -> None:
    """Return when the request uses `method`.

    Raises:
        HttpError: it uses another.
    """
    if ask.method != method:
        raise HttpError(HTTPStatus.METHOD_NOT_ALLOWED, f"{ask.path} takes {method} alone", {"Allow": method})


def asked(request: Request, slot: Slot, lane: Lane, version: str | None, held: Held) -> SeatRun:
    """The request in a lane as an order to a seat with this release.

    Raises:
        InputError: it is for another version, or does not fit the release.
    """
    documents.check_version(slot, held.ref.name, version)
    outputs = tuple(one.name for one in request.document.outputs)
    run = SeatRun(lane=lane.number, inputs=tuple(request.slices.values()), outputs=outputs)
    return check_request(run, held.metadata, held.config)


def outputs_of(lane: Lane, ran: SeatRan) -> Outputs:
    """The answer's tensors where the seat wrote them.

    Raises:
        BackendError: the seat says they lie where nothing is.
    """
    outputs = [(one, lane.answer(one.offset, one.size)) for one in ran.outputs]
    wrong = next((one.name for one, content in outputs if len(content) != one.size), None)
    if wrong is not None:
        raise BackendError(f"output {wrong}: the seat did not write all of it")
    return outputs
