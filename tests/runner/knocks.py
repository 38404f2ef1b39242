"""A door for a fuzzer: one process, no sockets, a seat that answers at once; and what must hold whatever is sent.

1. The whole way is tried: head, route, body, unpacking, JSON, regions, terms, queue, answer.
2. Every answer is HTTP with a sentence for an error; nothing is blamed on the model (500), nothing reaches the end of
   a connection unanswered as an exception.
3. When the client is gone every lane is free, the queue is empty, and the registered regions are the only files left.
"""

import asyncio
import gzip
import json
import logging
import math
import random
import re
from itertools import count
from pathlib import Path

import numpy as np

from agent.adapters.fork_server import ForkServer
from agent.core.documents import from_json, from_yaml
from agent.core.messages import Promote, SeatRan, Slice
from agent.core.release import Config, Metadata
from agent.runner.bells import Bells
from agent.runner.door import Door
from agent.runner.holdings import Held, Holdings
from agent.runner.lanes import LANES
from agent.runner.regions import Regions, Registered
from agent.runner.slots import Slot
from tests.runner.conftest import SHAPE, binary, http, release

STATUSES = {100, 200, 400, 404, 405, 408, 411, 413, 431, 501, 503}
ANSWER_S = 10.0  # how long one knock may take before it counts as hung
FRAME = math.prod(SHAPE) * 4
FRAMES = "frames"  # a file with two frames, registered as "r" and open to be registered again


class Seat:
    """Answers with zeros; a request whose tensors do not lie in its lane as they should is a finding."""

    def __init__(self, one) -> None:
        self.place, self.inside, self.state, self.ready, self.has_served = one.place, 0, "proven", True, False
        self.pid, self.bells = 0, Bells()
        self.held = Held(
            ref=one.ref, parts=one.announced, descriptors=(),
            metadata=from_json(Metadata, one.parts["metadata.json"], "metadata"),
            config=from_yaml(Config, one.parts["config.yaml"], "config"),
        )  # fmt: skip

    async def run(self, lane, run, _deadline_s) -> SeatRan:
        (tensor,) = run.inputs
        assert tensor.size == math.prod(tensor.shape) * np.dtype(tensor.dtype).itemsize
        assert len(lane.request(tensor.offset, tensor.size)) == tensor.size
        assert set(run.outputs) <= {"y"}
        answer = Slice(name="y", shape=SHAPE, dtype="float32", offset=0, size=FRAME)
        lane.answer(0, FRAME)[:] = bytes(FRAME)
        return SeatRan(outputs=(answer,), busy_s=0.0, finite=True)


class Client(asyncio.Transport):
    """The other end of a connection: sends what it has, and keeps what it gets."""

    def __init__(self, wire) -> None:
        super().__init__({"socket": self})
        self.family = None
        self.got, self._wire, self._closing, self.may_send = bytearray(), wire, False, True

    def setsockopt(self, *_) -> None:
        """It is no socket."""

    def set_write_buffer_limits(self, high=None, low=None) -> None:
        """It takes everything."""

    def write(self, data) -> None:
        self.got += data

    def can_write_eof(self) -> bool:
        return False

    def pause_reading(self) -> None:
        self.may_send = False

    def resume_reading(self) -> None:
        self.may_send = True

    def is_closing(self) -> bool:
        return self._closing

    def close(self) -> None:
        if not self._closing:
            self._closing = True
            asyncio.get_running_loop().call_soon(self._wire.connection_lost, None)

    abort = close

    async def send(self, request: bytes) -> None:
        left = memoryview(request)
        while left and not self._closing:
            room = self._wire.get_buffer(-1) if self.may_send else b""
            taken = min(len(room), len(left))
            if taken:
                room[:taken] = left[:taken]
                self._wire.buffer_updated(taken)
                left = left[taken:]
            await asyncio.sleep(0)
        if not self._closing:
            self._wire.eof_received()


class Knocks:
    """The door, and what it has been asked."""

    def __init__(self, folder: Path, tasks: asyncio.AbstractEventLoop) -> None:
        one = release(1)
        (folder / FRAMES).write_bytes(bytes(2 * FRAME))
        self._folder = folder
        self._slot = Slot("a", Holdings(), ForkServer(), {}, tasks, lambda: None, count(1))
        self._slot.order = Promote(slot="a", place=one.place, hold_s=1.0)
        self._slot._serve(Seat(one))
        self._door = Door({"a": self._slot}, tasks)
        self._raised: list[str] = []
        logging.getLogger("edge-runner").addHandler(self)
        self.statuses: dict[int, int] = {}

    level = logging.ERROR

    def handle(self, record: logging.LogRecord) -> None:
        """Called for what the door logs: an exception that ended a connection."""
        self._raised.append(logging.Formatter().format(record))

    async def knock(self, request: bytes) -> None:
        """One connection that sends this and leaves.

        Raises:
            AssertionError: what must hold does not.
        """
        self._door.regions = Regions(self._folder)
        self._door.regions.register(Registered(key=FRAMES, byte_size=2 * FRAME, name="r"))
        wire = self._door.wire()
        client = Client(wire)
        wire.connection_made(client)
        async with asyncio.timeout(ANSWER_S):
            await asyncio.gather(client.send(request), *self._door._wires.values())
        assert not self._raised, self._raised.pop()
        for status in answers(bytes(client.got)):
            self.statuses[status] = self.statuses.get(status, 0) + 1
        lanes = self._slot.lanes
        assert len(lanes._free) == LANES
        assert (len(self._slot.queue), self._slot.serving.inside) == (0, 0)
        assert not self._door._wires

    def close(self) -> None:
        logging.getLogger("edge-runner").removeHandler(self)
        self._slot.lanes.close()


def answers(got: bytes):
    """The statuses of the answers that a client got."""
    while got:
        head, end, got = got.partition(b"\r\n\r\n")
        first = re.match(rb"HTTP/1\.1 (\d{3}) [ -~]+(\r\n|$)", head)
        assert end, head
        assert first, head
        status = int(first[1])
        assert status in STATUSES, head
        length = re.search(rb"\r\nContent-Length: (\d+)", head)
        body, got = (got[: int(length[1])], got[int(length[1]) :]) if length else (b"", got)
        assert status == 100 or len(body) == int(length[1])
        assert status < 400 or json.loads(body)["error"]
        yield status


# --- what is sent ----------------------------------------------------------------------------------------------


def placed(name: str = "r", size: int = FRAME, offset: int = 0) -> dict:
    return {"shared_memory_region": name, "shared_memory_byte_size": size, "shared_memory_offset": offset}


def recorded() -> list[bytes]:
    """Requests of each kind, as clients send them."""
    frame = np.ones(SHAPE, np.float32)
    tensor = {"name": "x", "datatype": "FP32", "shape": SHAPE}
    numbers = {"inputs": [{**tensor, "data": frame.tolist()}], "parameters": {"priority": 1, "timeout": 1000000}}
    region = {
        "id": "1",
        "inputs": [{**tensor, "parameters": placed()}],
        "outputs": [{"name": "y", "parameters": placed(offset=FRAME)}],
    }
    body, headers = binary(frame)
    pixels, more = binary(np.ones((1, 8, 8, 3), np.uint8), datatype="UINT8")
    infer = "/v2/models/a/infer"
    bodies = [json.dumps(one).encode() for one in (numbers, region)]
    register = json.dumps({"key": FRAMES, "offset": 0, "byte_size": FRAME}).encode()
    paths = ("/v2", "/v2/health/ready", "/v2/models/a/config", "/v2/models/a/versions/20250601/stats", "/metrics")
    return [
        http("POST", infer, body, **headers),
        http("POST", infer, body, Expect="100-continue", **headers),
        http("POST", infer, pixels, **more),
        *(http("POST", infer, one) for one in bodies),
        *(http("POST", infer, gzip.compress(one), Content_Encoding="gzip") for one in bodies),
        http("POST", "/v2/systemsharedmemory/region/s/register", register),
        http("GET", "/v2/systemsharedmemory/region/r/status"),
        http("POST", "/v2/systemsharedmemory/unregister"),
        http("POST", "/v2/repository/index", b"{}"),
        b"".join(http("GET", path) for path in paths),
        http("GET", "/v2/models/a") + http("POST", infer, body, Connection="close", **headers),
    ]


WORDS = [
    b"0", b"-1", b"1", b"2", b"767", b"768", b"769", b"1536", b"65536", b"134217728", b"134217729", b"1099511627776",
    b"9223372036854775808", b"1e400", b"-0.0", b"null", b"true", b"[]", b"{}", b'""', b'"\\ud800"', b"NaN", b"[" * 3000,
    b'{"a":' * 3000, b"chunked", b"gzip", b"deflate", b"close", b"keep-alive", b"100-continue", b"HTTP/1.0", b"\r\n",
    b"\r\n\r\n", b"\0", b"\xff", b"../", b"%2e%2e%2f", b"%00", b"FP16", b"FP64", b"BOOL", b"BYTES", b"UINT8", b"INT64",
    b"Transfer-Encoding: chunked\r\n", b"Content-Length: 5\r\n", b"Inference-Header-Content-Length: 7\r\n",
    b'"shared_memory_region":"r",', b'"shared_memory_byte_size":768,', b'"shared_memory_offset":769,',
    b'"binary_data_size":768,', b'"binary_data":true,', b'"priority":3,', b'"timeout":1,', b'"outputs":[{"name":"y"}],',
]  # fmt: skip


def mutated(chance: random.Random, request: bytes, others: list[bytes]) -> bytes:
    """A request with one to four breaks; often with a Content-Length that is right again."""
    for _ in range(chance.randint(1, 4)):
        at, to = sorted(chance.randint(0, len(request)) for _ in range(2))
        to = min(to, at + chance.choice((1, 4, 40, 4000)))
        match chance.randrange(7):
            case 0:
                request = request[:at] + chance.randbytes(1) + request[at + 1 :]
            case 1:
                request = request[:at] + request[to:]
            case 2:
                request = request[:to] + request[at:to] + request[to:]
            case 3:
                request = request[:at] + chance.choice(WORDS) + request[at:]
            case 4:
                other = chance.choice(others)
                request = request[:at] + other[chance.randint(0, len(other)) :]
            case _:  # a number or word by another
                found = list(re.finditer(rb"\d+|\"\w*\"|[\w-]+", request))
                if found:
                    one = chance.choice(found)
                    request = request[: one.start()] + chance.choice(WORDS) + request[one.end() :]
    return repaired(request) if chance.random() < 0.7 else request


def repaired(request: bytes) -> bytes:
    """The request with the length that its body has, so that what is behind the head is read at all."""
    head, end, body = request.partition(b"\r\n\r\n")
    return re.sub(rb"(?<=\r\nContent-Length: )\d+", str(len(body)).encode(), head, count=1) + end + body
