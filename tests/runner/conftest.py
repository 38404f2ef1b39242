"""A real runner with real seats, an agent that hands models over, and clients at the door."""

import asyncio
import hashlib
import io
import json
import signal
import sys
import time
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path

import numpy as np
import onnx
import pytest
import pytest_asyncio
import yaml
from onnx import TensorProto, helper

from agent.adapters import memory_file
from agent.adapters.packets import close_all
from agent.adapters.runner_client import RunnerClient
from agent.core.candidate import Backend, Candidate
from agent.core.errors import TransferError
from agent.core.messages import Done, Facts, Load, Loaded, Look, Offer, Part, Place, Promote, Prove, Seal, Unload
from agent.core.release import Ref
from tests.fakes.descriptors import held
from tests.fakes.ports import free_ports
from tests.fakes.waiting import PATIENCE

SHAPE = (1, 3, 8, 8)
CPU = Candidate(backend=Backend.CPU, threads=1)
PATIENCE_S = 30.0 * PATIENCE


def network(factor: float, kind: str) -> bytes:
    """y = x * factor; `root` takes the root of x first (NaN below 0), `loop` turns as often as the largest x says."""
    constant = helper.make_tensor("factor", TensorProto.FLOAT, [], [factor])
    nodes, inside = [], "x"
    if kind == "root":
        nodes, inside = [helper.make_node("Sqrt", ["x"], ["root"])], "root"
    if kind == "loop":
        nodes, inside = loop(), "turned"
    nodes.append(helper.make_node("Mul", [inside, "factor"], ["y"]))
    shape = (-1, *SHAPE[1:]) if kind == "batch" else SHAPE
    ports = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n" if n < 0 else n for n in shape]) for name in "xy"
    ]
    graph = helper.make_graph(nodes, kind, ports[:1], ports[1:], [constant])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8).SerializeToString()


def loop() -> list[onnx.NodeProto]:
    body = helper.make_graph(
        [helper.make_node("Identity", ["go"], ["goes"]), helper.make_node("Abs", ["v"], ["w"])],
        "body",
        [
            helper.make_tensor_value_info("i", TensorProto.INT64, []),
            helper.make_tensor_value_info("go", TensorProto.BOOL, []),
            helper.make_tensor_value_info("v", TensorProto.FLOAT, SHAPE),
        ],
        [
            helper.make_tensor_value_info("goes", TensorProto.BOOL, []),
            helper.make_tensor_value_info("w", TensorProto.FLOAT, SHAPE),
        ],
    )
    yes = helper.make_tensor("yes", TensorProto.BOOL, [], [True])
    return [
        helper.make_node("Constant", [], ["yes"], value=yes),
        helper.make_node("ReduceMax", ["x"], ["largest"], keepdims=0),
        helper.make_node("Cast", ["largest"], ["turns"], to=TensorProto.INT64),
        helper.make_node("Loop", ["turns", "yes", "x"], ["turned"], body=body),
    ]


@dataclass(frozen=True)
class Release:
    """A release's parts as bytes."""

    ref: Ref
    parts: dict[str, bytes]
    candidate: Candidate = CPU

    @property
    def place(self) -> Place:
        return Place(ref=self.ref, candidate=self.candidate)

    @property
    def announced(self) -> tuple[Part, ...]:
        return tuple(
            Part(name=name, size=len(content), sha256=hashlib.sha256(content).hexdigest())
            for name, content in self.parts.items()
        )


def release(day: int, factor: float = 2.0, kind: str = "plain", **config: object) -> Release:
    """A release of 2025-06-`day` whose outputs are `factor` times its inputs."""
    name = f"defect_detection_ssd_plates_202506{day:02}"
    shape = [-1, *SHAPE[1:]] if kind == "batch" else list(SHAPE)
    tensor = {"shape": shape, "dtype": "float32"}
    metadata = {
        "name": name, "version": "1.0.0", "task": "defect_detection", "architecture": "ssd", "dataset": "plates",
        "accuracy": 0.9, "inference_time": 1.0, "model_size_mb": 0.1,
        "inputs": [{"name": "x", **tensor}], "outputs": [{"name": "y", **tensor}], "compatibility": {"opset": 13},
    }  # fmt: skip
    gates = {"max_latency_p95_ms": 200.0}
    document = {"input_size": [8, 8], "confidence_threshold": 0.5, "gates": gates, "warm_up": 1, **config}
    x = np.zeros(SHAPE, np.float32) if kind == "loop" else np.random.default_rng(1).random(SHAPE, np.float32)
    golden = io.BytesIO()
    y = np.sqrt(x) * np.float32(factor) if kind == "root" else x * np.float32(factor)
    np.savez(golden, **{"in.x": x[None], "out.y": y[None]})
    parts = {
        "model.onnx": network(factor, kind),
        "metadata.json": json.dumps(metadata).encode(),
        "config.yaml": yaml.safe_dump(document).encode(),
        "golden.npz": golden.getvalue(),
    }
    return named(name, parts)


def named(name: str, parts: dict[str, bytes]) -> Release:
    return Release(Ref(name=name, digest=hashlib.sha256(b"".join(parts.values())).hexdigest()), parts)


def altered(one: Release, part: str, content: bytes) -> Release:
    """The release with another content of one part, as its publisher would sign it."""
    return named(one.ref.name, one.parts | {part: content})


@dataclass
class Agent:
    """What the real agent does with a runner, without deciding anything."""

    client: RunnerClient
    news: asyncio.Event = field(default_factory=asyncio.Event)

    async def ask(self, order):
        reply, descriptors = await self.client.ask(order)
        close_all(descriptors)
        return reply

    async def hand_over(self, one: Release):
        return await self.write(one, await self.offer(one))

    async def offer(self, one: Release) -> list[int]:
        reply, descriptors = await self.client.ask(Offer(ref=one.ref, parts=one.announced))
        assert isinstance(reply, Done), reply
        return descriptors

    async def write(self, one: Release, descriptors: list[int]):
        for number, content in zip(descriptors, one.parts.values(), strict=True):
            memory_file.write(number, content)
        close_all(descriptors)
        return await self.ask(Seal(ref=one.ref))

    async def load(self, slot: str, one: Release) -> Loaded:
        assert await self.hand_over(one) == Done()
        loaded = await self.ask(Load(slot=slot, place=one.place))
        assert isinstance(loaded, Loaded), loaded
        assert await self.ask(Prove(slot=slot, place=one.place)) == Done()
        return loaded

    async def serve(self, slot: str, one: Release, fallback: Release | None = None, hold_s: float = 10.0) -> Loaded:
        loaded = await self.load(slot, one)
        await self.promote(slot, one, fallback, hold_s)
        return loaded

    async def promote(self, slot: str, one: Release, fallback: Release | None = None, hold_s: float = 10.0) -> None:
        order = Promote(slot=slot, place=one.place, fallback=fallback and fallback.place, hold_s=hold_s)
        assert await self.ask(order) == Done()

    async def until_counted(self, slot: str, requests: int):
        """The slot's counters as soon as so many requests are in them."""
        async with asyncio.timeout(PATIENCE_S):
            while (counters := (await self.ask(Look())).slots[slot].counters).requests != requests:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        return counters

    async def until_asked(self) -> None:
        """Return when a request has reached the runner."""
        async with asyncio.timeout(PATIENCE_S):
            while (await self.ask(Look())).requests == 0:  # noqa: ASYNC110
                await asyncio.sleep(0.001)

    def told(self, facts: Facts) -> None:
        self.news.set()

    async def until(self, slot: str, true):
        """The slot's facts as soon as `true` of them."""
        async with asyncio.timeout(PATIENCE_S):
            while slot not in self.client.facts.slots or not true(self.client.facts.slots[slot]):
                self.news.clear()
                await self.news.wait()
        return self.client.facts.slots[slot]


@dataclass
class Running:
    """A runner's process and its sockets."""

    folder: Path
    process: asyncio.subprocess.Process | None = None
    tcp: str = ""
    python: str = sys.executable

    @property
    def models(self) -> Path:
        return self.folder / "models.sock"

    @property
    def door(self) -> Path:
        return self.folder / "door.sock"

    def command(self) -> list[str]:
        tcp = ["--tcp", self.tcp] if self.tcp else []
        return [self.python, "-m", "agent.runner.main", "--models", str(self.models), "--door", str(self.door), *tcp]

    async def agent(self) -> Agent:
        """An agent on a line of its own, as soon as the runner listens."""
        deadline = time.monotonic() + PATIENCE_S
        while True:
            agent = Agent(client=None)  # type: ignore[arg-type]
            agent.client = RunnerClient(self.models, agent.told)
            try:
                await agent.client.connect()
            except TransferError:
                assert time.monotonic() < deadline
                await asyncio.sleep(0.02)
                continue
            return agent

    async def camera(self) -> "Camera":
        return Camera(*await asyncio.open_unix_connection(str(self.door)))


@dataclass
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self):
        length = self.headers.get("inference-header-content-length")
        return json.loads(self.body[: int(length)] if length else self.body)

    def y(self) -> np.ndarray:
        output = self.json["outputs"][0]
        raw = self.body[int(self.headers["inference-header-content-length"]) :]
        return np.frombuffer(raw, np.float32).reshape(output["shape"])


@dataclass
class Camera:
    """A client with one connection that it keeps."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    async def answer(self) -> Answer:
        async with asyncio.timeout(PATIENCE_S):
            head = (await self.reader.readuntil(b"\r\n\r\n")).decode()
            status, *lines = head.split("\r\n")
            headers = {
                name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines if line)
            }
            return Answer(
                int(status.split()[1]), headers, await self.reader.readexactly(int(headers["content-length"]))
            )

    async def ask(self, method: str, path: str, body: bytes = b"", **headers: str) -> Answer:
        self.writer.write(http(method, path, body, **headers))
        return await self.answer()

    async def infer(self, slot: str, x: np.ndarray, **headers: str) -> Answer:
        body, more = binary(x, **headers)
        return await self.ask("POST", f"/v2/models/{slot}/infer", body, **more)


def http(method: str, path: str, body: bytes = b"", **headers: str) -> bytes:
    lines = [
        f"{method} {path} HTTP/1.1",
        "Host: device",
        *(f"{name.replace('_', '-')}: {value}" for name, value in headers.items()),
    ]
    if "Content_Length" not in headers and (body or method == "POST"):
        lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def binary(x: np.ndarray, datatype: str = "FP32", name: str = "x", **headers: str) -> tuple[bytes, dict[str, str]]:
    """A request with one binary tensor, and its headers."""
    tensor = {"name": name, "datatype": datatype, "shape": x.shape, "parameters": {"binary_data_size": x.nbytes}}
    head = json.dumps({"inputs": [tensor], "parameters": {"binary_data_output": True}}).encode()
    return head + x.tobytes(), {"Inference_Header_Content_Length": str(len(head)), **headers}


@asynccontextmanager
async def runner_in(folder: Path, tcp: str = "", *words: str, python: str = sys.executable, **who: object):
    running = Running(folder, tcp=tcp, python=python)
    running.process = await asyncio.create_subprocess_exec(*running.command(), *words, **who)
    try:
        await (await running.agent()).client.close()
        yield running
    finally:
        if running.process.returncode is None:
            running.process.send_signal(signal.SIGTERM)
            async with asyncio.timeout(PATIENCE_S):
                await running.process.wait()


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def shared(tmp_path_factory):
    """One runner for all tests that do not hurt it: its probe of the backends takes seconds."""
    async with runner_in(tmp_path_factory.mktemp("runner"), f"127.0.0.1:{free_ports(1)[0]}") as running:
        yield running


@pytest_asyncio.fixture
async def agent(shared):
    one = await shared.agent()
    yield one
    await one.client.close()


@pytest_asyncio.fixture
async def camera(shared):
    one = await shared.camera()
    yield one
    one.writer.close()


_numbers = count()


@pytest_asyncio.fixture
async def slot(shared):
    """A slot of one's own; its seats leave with the test, for seventy of them would starve what comes after."""
    name = f"slot_{next(_numbers)}"
    yield name
    agent = await shared.agent()
    for seat in (await agent.ask(Look())).slot(name).seats:  # what is told unasked may not have come yet
        await agent.ask(Unload(slot=name, place=seat.place))
    await agent.client.close()


@pytest.fixture
def x() -> np.ndarray:
    return np.random.default_rng(7).random(SHAPE, np.float32)


def descriptors_of(running: Running) -> int:
    """How many the runner has open."""
    return held(running.process.pid, "")


async def eventually(true) -> None:
    """Return as soon as `true()`: for what other processes do, which tell nobody."""
    async with asyncio.timeout(PATIENCE_S):
        while not true():  # noqa: ASYNC110
            await asyncio.sleep(0.005)


def alive(pid: int) -> bool:
    """Whether it still does something; the end of one whose parent died is nobody's but an adopter's to take."""
    try:
        return "State:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False


@pytest.fixture
async def served(agent, slot):
    """A slot that serves twice what it is given."""
    await agent.serve(slot, release(1))
    return slot
