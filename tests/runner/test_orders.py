"""What the runner's orders do when something below them fails in a way that nobody foresaw."""

import asyncio
import os
import signal
import socket

import pytest

from agent.adapters import seat_process
from agent.adapters.channel import Channel
from agent.adapters.seat_process import find, find_backends
from agent.core.candidate import Backend, Found
from agent.core.messages import PROTOCOL, Answer, Ask, Done, Hello, Offer, Refused, Unload
from agent.runner import orders
from agent.runner.orders import Runner
from tests.runner.conftest import PATIENCE_S, release


async def no_backends():
    return tuple(Found(backend=backend, present=False, reason="none here") for backend in Backend)


async def answer_to(channel, ask):
    """The answer to an order; what is told unasked is passed over."""
    channel.send(ask)
    async with asyncio.timeout(PATIENCE_S):
        while True:
            answer, _ = await channel.receive()
            if answer.id == ask.id:
                return answer.reply


@pytest.mark.parametrize("error", [OSError(24, "Too many open files"), ValueError("odd"), AssertionError()])
async def test_an_order_that_fails_ends_nothing_else(monkeypatch, error):
    """Whatever is raised is the answer to that order; the runner obeys the next one."""
    monkeypatch.setattr(orders, "find_backends", no_backends)
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    one = release(1)

    async def fail(*_):
        raise error

    async with asyncio.TaskGroup() as tasks:
        runner = Runner(tasks, lambda: None)
        monkeypatch.setattr(runner._holdings, "offer", fail)
        attending = tasks.create_task(runner.attend(theirs, os.getuid()))
        channel = Channel(ours, Answer)
        await answer_to(channel, Ask(id=1, order=Hello(protocol=PROTOCOL)))
        refused = await answer_to(channel, Ask(id=2, order=Offer(ref=one.ref, parts=one.announced)))
        assert isinstance(refused, Refused)
        assert (refused.failure.kind, type(error).__name__ in refused.failure.reason) == ("backend", True)
        assert await answer_to(channel, Ask(id=3, order=Unload(slot="a", place=one.place))) == Done()
        channel.close()
        await attending
        for task in asyncio.all_tasks() - {asyncio.current_task()}:
            task.cancel()


@pytest.mark.parametrize("backend", [Backend.OPENVINO, Backend.TENSORRT])
async def test_a_library_that_crashes_hides_no_other(tmp_path, monkeypatch, backend):
    """One backend's native crash makes that one absent, with how it ended; those that were asked beside it are found."""
    library = tmp_path / backend
    library.mkdir()
    (library / "__init__.py").write_text(f"import os; os.kill(os.getpid(), {int(signal.SIGSEGV)})")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    found = {one.backend: one for one in await find_backends()}
    assert set(found) == set(Backend)
    assert found[Backend.CPU].present
    assert "SIGSEGV" in found[backend].reason


async def test_a_library_that_prints_spoils_no_probe(tmp_path, monkeypatch):
    """TensorRT warns on stdout, by itself and in C: what a probe says stays what it said."""
    library = tmp_path / "openvino"
    library.mkdir()
    (library / "__init__.py").write_text("import os; os.write(1, b'[TRT] [W] noise'); raise ImportError('none here')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    (found,) = await find(Backend.OPENVINO)
    assert found.reason.startswith("openvino is not on this device: none here")


async def test_a_library_that_hangs_has_a_deadline(monkeypatch):
    """A probe that does not end is ended, and its backend is absent."""
    monkeypatch.setattr(seat_process, "PROBE_S", 0.01)
    assert all("hung" in one.reason and not one.present for one in await find_backends())
