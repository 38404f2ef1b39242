"""Asking the seat itself: what the runner has checked goes past it, and comes back to it when a ring is not answered."""

import asyncio
import os
import signal
import socket
import threading

import numpy as np
import psutil
import pytest

from agent.adapters.channel import Channel
from agent.core.messages import FromRunner, LaneOpen, Look, Unload
from client import AsyncClient, Client
from client.lane import Lane
from tests.fakes.waiting import reached
from tests.runner.conftest import release

TIMES = 40


@pytest.fixture
def asked(monkeypatch):
    """How often the runner was asked, and how often a seat."""
    counts = {"runner": 0, "seat": 0}
    ring = Lane.ring

    def counted(lane):
        is_rung = ring(lane)
        counts["seat" if is_rung else "runner"] += 1
        return is_rung

    monkeypatch.setattr(Lane, "ring", counted)
    return counts


async def test_the_seat_is_asked_itself_once_the_runner_has_answered(shared, served, x, asked):
    """One frame in each lane goes through the runner, all others past it; each gets its own answer."""
    with Client(f"unix:{shared.door}") as client:
        answers = await asyncio.to_thread(list, client.stream(served, (x + n for n in range(TIMES))))
    for number, answer in enumerate(answers):
        np.testing.assert_array_equal(answer["y"], (x + number) * 2)
        assert (answer.version, answer.candidate, answer.is_finite) == ("20250601", "cpu/fp32/1t", True)
    assert asked == {"runner": 2, "seat": TIMES - 2}


async def test_an_event_loop_rings_too(shared, served, x, asked):
    """As many tasks as there are lanes, and more, each get their own answer."""
    async with AsyncClient(f"unix:{shared.door}") as client:
        answers = await asyncio.gather(*(client.infer(served, x + n) for n in range(TIMES)))
    for number, answer in enumerate(answers):
        np.testing.assert_array_equal(answer["y"], (x + number) * 2)
    assert asked == {"runner": 2, "seat": TIMES - 2}


async def test_another_request_is_the_runners_again(shared, agent, slot, x, asked):
    """A frame of another size, or for another slot, is checked before a seat sees it."""
    await agent.serve(slot, release(1, kind="batch"))
    await agent.serve(f"{slot}b", release(2, factor=3.0))
    with Client(f"unix:{shared.door}") as client:
        for frame in (x, x, np.concatenate([x, x]), x):
            answer = await asyncio.to_thread(client.infer, slot, frame)
            np.testing.assert_array_equal(answer["y"], frame * 2)
        assert asked == {"runner": 3, "seat": 1}
        for _ in range(3):
            for name, factor in ((slot, 2), (f"{slot}b", 3)):
                np.testing.assert_array_equal((await asyncio.to_thread(client.infer, name, x))["y"], x * factor)
        assert asked == {"runner": 4, "seat": 6}
    for name, one in ((slot, release(1, kind="batch")), (f"{slot}b", release(2, factor=3.0))):
        await agent.ask(Unload(slot=name, place=one.place))


@pytest.mark.parametrize("kind", [Client, AsyncClient])
async def test_after_a_swap_no_answer_is_of_the_old_release(shared, agent, slot, x, kind):
    """Whoever asks once the agent knows of a swap meets the new seat, though the old one is there still."""
    old, new = release(1), release(2, factor=3.0)
    await agent.serve(slot, old)
    client = kind(f"unix:{shared.door}")

    async def version():
        if kind is AsyncClient:
            return (await client.infer(slot, x)).version
        return (await asyncio.to_thread(client.infer, slot, x)).version

    await agent.load(slot, new)
    for turn in range(10):
        wanted, other = (new, old) if turn % 2 else (old, new)
        await agent.promote(slot, wanted, fallback=other)
        assert [await version() for _ in range(3)] == [wanted.ref.name.rpartition("_")[2]] * 3
    if kind is AsyncClient:
        await client.close()
    else:
        client.close()


async def test_a_seat_that_dies_at_a_ring_costs_no_frame(shared, agent, slot, x):
    """Its fall-back answers what was rung for."""
    old, new = release(1), release(2, factor=3.0)
    await agent.serve(slot, old)
    loaded = await agent.serve(slot, new, fallback=old)
    stop, versions = threading.Event(), []

    def watch():
        with Client(f"unix:{shared.door}") as client:
            while not stop.is_set():
                versions.append(client.infer(slot, x).version)

    watching = asyncio.create_task(asyncio.to_thread(watch))
    await reached(lambda: len(versions) > TIMES)
    os.kill(loaded.pid, signal.SIGKILL)
    await reached(lambda: versions[-1] == "20250601")
    stop.set()
    await watching


async def test_a_seat_that_hangs_at_a_ring_is_noticed(shared, agent, slot, x):
    """The next count has a deadline, though no order was given to the seat."""
    old, new = release(1), release(2, factor=3.0)
    await agent.serve(slot, old)
    loaded = await agent.serve(slot, new, fallback=old)
    with Client(f"unix:{shared.door}") as client:
        for _ in range(3):
            await asyncio.to_thread(client.infer, slot, x)
        os.kill(loaded.pid, signal.SIGSTOP)
        assert (await asyncio.to_thread(client.infer, slot, x)).version == "20250601"
    facts = await agent.until(slot, lambda facts: facts.incidents)
    assert "no answer within 3 s" in facts.incidents[-1].failure.reason


async def test_a_bad_answer_is_the_runners_to_judge(shared, agent, slot, x):
    """NaN out of a number ends the bell: the runner asks the fall-back, and after three in a row leaves the seat."""
    old, new = release(1, kind="root"), release(2, kind="root", factor=3.0)
    await agent.serve(slot, old)
    await agent.serve(slot, new)
    with Client(f"unix:{shared.door}") as client:
        for number in range(8):
            frame = -x if number % 2 else x
            answer = await asyncio.to_thread(client.infer, slot, frame)
            assert (answer.is_finite, answer.version) == (number % 2 == 0, "20250602")
    assert (await agent.until_counted(slot, 8)).not_finite == 4


class Ringer:
    """A client without manners: it holds a bell and rings as it likes."""

    def __init__(self, shared):
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        sock.connect(str(shared.door.with_name("frames.sock")))
        self.channel, self.lane, self.bell = Channel(sock, FromRunner), Lane(0), None
        self.channel.send(LaneOpen(lane=0), self.lane.descriptors)

    async def ask(self, slot, x):
        self.channel.send(self.lane.write(slot, x))
        received = await self.channel.receive()
        (number,) = received[1]
        self.bell = socket.socket(fileno=number)

    def ring_for_ever(self):
        while True:
            self.bell.send(b"any" * 100)

    def close(self):
        self.channel.close()
        self.lane.close()
        if self.bell is not None:
            self.bell.close()


async def test_who_rings_and_never_reads_loses_the_bell(shared, served, x):
    """Others are answered between any two of his rings; his bell ends when his answers find no room."""
    ringer = Ringer(shared)
    await ringer.ask(served, x)
    ringing = asyncio.create_task(asyncio.to_thread(ringer.ring_for_ever))
    with Client(f"unix:{shared.door}") as client:
        for number in range(TIMES):
            answer = await asyncio.to_thread(client.infer, served, x + number)
            np.testing.assert_array_equal(answer["y"], (x + number) * 2)
    with pytest.raises(ConnectionError):
        await ringing
    ringer.close()


async def test_nothing_of_a_bell_is_left(shared, agent, served, x):
    """Who leaves takes his bells along, in the runner and in the seat."""
    processes = [
        psutil.Process(shared.process.pid),
        psutil.Process((await agent.ask(Look())).slots[served].seats[0].pid),
    ]
    with Client(f"unix:{shared.door}") as client:
        await asyncio.to_thread(client.infer, served, x)
    before = [one.num_fds() for one in processes]
    for _ in range(5):
        with Client(f"unix:{shared.door}") as client:
            for _ in range(3):
                await asyncio.to_thread(client.infer, served, x)
    await reached(lambda: all(one.num_fds() <= was for one, was in zip(processes, before, strict=True)))
