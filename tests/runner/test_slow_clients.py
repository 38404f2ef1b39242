"""Clients that stop in the middle, and too many of them: a door without seats is enough."""

import asyncio
from itertools import count

import pytest

from agent.adapters.fork_server import ForkServer
from agent.core.messages import Place, Promote
from agent.runner import door, wire
from agent.runner.holdings import Holdings
from agent.runner.lanes import LANES
from agent.runner.slots import Slot
from tests.runner.conftest import CPU, Camera, http, release


@pytest.fixture
async def knock(tmp_path):
    """Opens connections to a door with one slot, whose model never comes."""
    async with asyncio.TaskGroup() as tasks:
        slot = Slot("a", Holdings(), ForkServer(), {}, tasks, lambda: None, count(1))
        slot.order = Promote(slot="a", place=Place(ref=release(1).ref, candidate=CPU), hold_s=0.05)
        a_door = door.Door({"a": slot}, tasks)
        server = await asyncio.get_running_loop().create_unix_server(a_door.wire, tmp_path / "door.sock")

        async def knock() -> Camera:
            return Camera(*await asyncio.open_unix_connection(tmp_path / "door.sock"))

        knock.lanes = slot.lanes
        yield knock
        server.close()
        await a_door.close(1.0)


async def test_a_head_that_does_not_end_is_cut_off(knock, monkeypatch):
    """408 after the limit, however many bytes trickle in."""
    monkeypatch.setattr(wire, "HEAD_S", 0.05)
    camera = await knock()
    camera.writer.write(b"GET /v2 HTTP/1.1\r\nHost")
    assert (await camera.answer()).status == 408
    camera.writer.close()


async def test_a_body_that_does_not_end_is_cut_off(knock, monkeypatch):
    """408 after the limit; the lane is free again, and is the only one that was ever needed."""
    monkeypatch.setattr(wire, "BODY_S", 0.05)
    for _ in range(5):
        camera = await knock()
        camera.writer.write(http("POST", "/v2/models/a/infer", b"{", Content_Length="100"))
        assert (await camera.answer()).status == 408
        camera.writer.close()
    assert [number for number, lane in knock.lanes._free.items() if lane is not None] == [0]
    assert len(knock.lanes._free) == LANES


async def test_more_connections_than_are_taken(knock, monkeypatch):
    """One too many gets 503 and is closed; when another leaves there is room again."""
    monkeypatch.setattr(door, "CONNECTIONS", 1)
    first = await knock()
    assert (await first.ask("GET", "/v2/health/live")).status == 200
    second = await knock()
    assert (await second.answer()).status == 503
    assert await second.reader.read() == b""
    first.writer.close()
    await first.writer.wait_closed()
    third = await knock()
    assert (await third.ask("GET", "/v2/health/live")).status == 200
    third.writer.close()


async def test_all_lanes_are_taken(knock, monkeypatch):
    """One request more than there are lanes is told at once how many are inside, and to come again."""
    monkeypatch.setattr(wire, "BODY_S", 60.0)
    cameras = [await knock() for _ in range(LANES + 1)]
    for camera in cameras:
        camera.writer.write(http("POST", "/v2/models/a/infer", b"{", Content_Length="100"))
        await camera.writer.drain()
    answer = await cameras[-1].answer()
    assert (answer.status, answer.headers["retry-after"]) == (503, "1")
    assert answer.json["error"] == "a: the queue is full: 64 requests wait or are being answered"
    for camera in cameras:
        camera.writer.close()


async def test_a_client_that_does_not_read_its_answer(knock, monkeypatch):
    """It is cut off; nobody else waits for it."""
    monkeypatch.setattr(wire, "ANSWER_S", 0.05)
    camera = await knock()
    camera.writer.transport.pause_reading()
    for _ in range(20_000):
        camera.writer.write(http("GET", "/v2/models/" + "x" * 500))
    other = await knock()
    assert (await other.ask("GET", "/v2/health/live")).status == 200
    with pytest.raises(ConnectionError):
        await camera.writer.drain()
    other.writer.close()
