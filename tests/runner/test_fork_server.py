"""Seats come from a process that is there before them, and need it no more once they are there."""

import asyncio
import os
import signal
from pathlib import Path

import psutil
import pytest

from agent.adapters import fork_server
from agent.adapters.fork_server import ForkServer
from tests.runner.conftest import PATIENCE_S, alive, eventually, release, runner_in
from tests.runner.test_models_socket import mappings


@pytest.fixture
def server():
    one = ForkServer()
    yield one
    one.close()


def server_of(running) -> int:
    """The process that forks a runner's seats."""
    (found,) = (one.pid for one in psutil.Process(running.process.pid).children() if name_of(one.pid) == "edge-seats")
    return found


def name_of(pid: int) -> str:
    return Path(f"/proc/{pid}/comm").read_text().strip()


async def test_a_seat_is_the_runners_child(agent, shared, slot):
    """It is no child of what forked it, and bears a name that `ps` shows."""
    loaded = await agent.load(slot, release(1))
    assert psutil.Process(loaded.pid).ppid() == shared.process.pid
    assert name_of(loaded.pid) == "edge-seat"


async def test_what_is_forked_holds_nothing_that_must_not_be_copied(agent, shared, slot):
    """One thread and no inference library, also after its seats have loaded some."""
    await agent.serve(slot, release(1))
    server = server_of(shared)
    assert psutil.Process(server).num_threads() == 1
    maps = mappings(server)
    assert "numpy" in maps
    assert "onnxruntime" not in maps
    assert "openvino" not in maps


async def test_a_seat_has_nothing_of_its_servers(agent, slot):
    """One channel of its own: no line to the server, and none to the seat before it."""
    for day in (1, 2):
        loaded = await agent.load(slot, release(day))
        lines = [
            link for number, link in descriptors_of(loaded.pid) if number > 2 and link.startswith(("sock", "pipe"))
        ]
        assert len(lines) == 1, lines


def descriptors_of(pid: int) -> list[tuple[int, str]]:
    return [(int(one.name), str(one.readlink())) for one in Path(f"/proc/{pid}/fd").iterdir()]


async def test_a_server_that_is_killed_takes_no_seat_along(agent, camera, shared, slot, x):
    """What serves goes on, and the next load has a new server."""
    await agent.serve(slot, release(1))
    killed = server_of(shared)
    os.kill(killed, signal.SIGKILL)
    await eventually(lambda: not alive(killed))
    assert (await camera.infer(slot, x)).status == 200
    await agent.serve(slot, release(2), fallback=release(1))
    assert (await camera.infer(slot, x)).json["model_version"] == "20250602"
    assert server_of(shared) != killed


@pytest.mark.parametrize("end", [signal.SIGTERM, signal.SIGKILL])
async def test_nothing_outlives_the_runner(tmp_path, end):
    """Server and seats end, however the runner does."""
    async with runner_in(tmp_path) as running:
        agent = await running.agent()
        loaded = await agent.load("a", release(1))
        server = server_of(running)
        running.process.send_signal(end)
        await running.process.wait()
        await eventually(lambda: not alive(server) and not alive(loaded.pid))
        await agent.client.close()


async def test_a_server_that_hangs_is_replaced(server, monkeypatch):
    """It is killed, and the seat comes from another."""
    seats = [await server.fork()]
    hung = server._process
    os.kill(hung.pid, signal.SIGSTOP)
    monkeypatch.setattr(fork_server, "PATIENCE_S", 0.5)
    asyncio.get_running_loop().call_later(0.2, monkeypatch.undo)  # the next one has its time
    seats.append(await server.fork())
    assert await hung.wait() == -signal.SIGKILL
    for _, sock in seats:
        sock.close()
    async with asyncio.timeout(PATIENCE_S):
        assert [await seat.wait() for seat, _ in seats] == [0, 0]


async def test_a_server_that_never_comes_up_is_told(server, monkeypatch):
    """Two are tried, nothing is left, and the error says where to look."""
    started, spawn_seat = [], fork_server.spawn_seat

    async def walls(*_, **more):
        started.append(await spawn_seat("--walls", **more))
        return started[-1]

    monkeypatch.setattr(fork_server, "spawn_seat", walls)
    with pytest.raises(OSError, match="look at edge-runner's log"):
        await server.fork()
    assert len([await one.wait() for one in started]) == 2


async def test_how_a_seat_ended_is_told(server):
    """A signal as a negative number, as of a child of one's own."""
    seat, sock = await server.fork()
    os.kill(seat.pid, signal.SIGSEGV)
    async with asyncio.timeout(PATIENCE_S):
        assert await seat.wait() == -signal.SIGSEGV
    sock.close()
