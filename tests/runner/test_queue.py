"""One queue before the seat: who goes first, who goes home, and who is not let in."""

import asyncio
import gc
import json
import os
import resource
import signal
import time
from itertools import count

import numpy as np
import pytest

from agent.adapters.fork_server import ForkServer
from agent.core.errors import TransferError
from agent.core.messages import Look, Promote, SeatRan, SeatRun, Slice
from agent.runner import door, lanes
from agent.runner.holdings import Holdings
from agent.runner.lanes import Lanes
from agent.runner.slots import Slot
from tests.runner.conftest import SHAPE, Camera, eventually, http, release
from tests.runner.knocks import Seat as QuickSeat

PATIENT = {"max_latency_p95_ms": 6000.0}  # a seat may take 30 s before it counts as hung


class Seat(QuickSeat):
    """A seat that answers each request with its input, when the test says so."""

    def __init__(self) -> None:
        super().__init__(release(1))
        self.got: list[float] = []
        self._may = asyncio.Semaphore(0)

    async def run(self, lane, run, deadline_s):
        (tensor,) = run.inputs
        frame = bytes(lane.request(tensor.offset, tensor.size))
        self.got.append(float(np.frombuffer(frame, np.float32)[0]))
        await self._may.acquire()
        lane.answer(0, tensor.size)[:] = frame
        answer = Slice(name="y", shape=tensor.shape, dtype="float32", offset=0, size=tensor.size)
        return SeatRan(outputs=(answer,), busy_s=0.01, finite=True)

    def answer(self, requests: int) -> None:
        for _ in range(requests):
            self._may.release()


@pytest.fixture
async def asked(tmp_path):
    """A door with one slot, whose seat is the test's; asks it, and returns the answer to come."""
    async with asyncio.TaskGroup() as tasks:
        slot = Slot("a", Holdings(), ForkServer(), {}, tasks, lambda: None, count(1))
        slot.order = Promote(slot="a", place=release(1).place, hold_s=5.0)
        a_door = door.Door({"a": slot}, tasks)
        server = await asyncio.get_running_loop().create_unix_server(a_door.wire, tmp_path / "door.sock")
        cameras = []

        async def ask(value: float, **parameters) -> asyncio.Task:
            before = a_door.requests
            cameras.append(Camera(*await asyncio.open_unix_connection(tmp_path / "door.sock")))
            tensor = {"name": "x", "datatype": "FP32", "shape": SHAPE, "data": np.full(SHAPE, value).tolist()}
            body = json.dumps({"inputs": [tensor], "parameters": parameters}).encode()
            cameras[-1].writer.write(http("POST", "/v2/models/a/infer", body))
            await eventually(lambda: a_door.requests > before)
            return asyncio.create_task(cameras[-1].answer())

        ask.slot, ask.door = slot, a_door
        yield ask
        for camera in cameras:
            camera.writer.close()
        server.close()
        await a_door.close(1.0)


async def test_who_goes_first(asked):
    """Lower numbers first, then who came first; what the seat has already is not overtaken."""
    seat = Seat()
    asked.slot._serve(seat)
    inside = [await asked(1), await asked(2)]
    await eventually(lambda: seat.got == [1, 2])
    waiting = [
        await asked(3), await asked(4, priority=20), await asked(5, priority=1), await asked(6, priority=0),
        await asked(7, priority=1), await asked(8, priority=9),
    ]  # fmt: skip
    seat.answer(len(inside + waiting))
    answers = await asyncio.gather(*inside, *waiting)
    assert seat.got == [1, 2, 5, 7, 8, 3, 6, 4]
    assert [one.json["outputs"][0]["data"][0] for one in answers] == [1, 2, 3, 4, 5, 6, 7, 8]


async def test_a_request_that_is_too_late_never_reaches_the_seat(asked):
    """Its timeout passes while it waits: it is told so, and the others go on without it."""
    seat = Seat()
    asked.slot._serve(seat)
    inside = [await asked(1), await asked(2)]
    late = await asked(3, timeout=1000)
    patient = await asked(4, timeout=60_000_000)
    answer = await late
    assert (answer.status, "timeout passed" in answer.json["error"]) == (503, True)
    seat.answer(3)
    assert [one.status for one in await asyncio.gather(*inside, patient)] == [200] * 3
    assert seat.got == [1, 2, 4]
    assert (asked.door.refused, asked.slot.tally.requests) == (0, 3)
    (counted,) = asked.slot.statistics.values()
    assert (counted.answered, counted.failed, counted.late) == (3, 0, 1)


async def test_a_timeout_is_shorter_than_the_hold(asked):
    """Where no seat serves, a request waits for its own timeout or the slot's hold, whichever is over first."""
    answer = await (await asked(1, timeout=1000))
    assert (answer.status, "timeout passed" in answer.json["error"]) == (503, True)


async def test_whoever_waits_meets_the_next_seat(asked):
    """What only waited behind a seat is answered by its successor at once, also while the old one is stuck."""
    stuck, fresh = Seat(), Seat()
    asked.slot._serve(stuck)
    inside = [await asked(1), await asked(2)]
    waiting = [await asked(3), await asked(4)]
    fresh.answer(2)
    asked.slot._serve(fresh)
    assert [one.status for one in await asyncio.gather(*waiting)] == [200] * 2
    assert (stuck.got, fresh.got) == ([1, 2], [3, 4])
    stuck.answer(2)
    assert [one.status for one in await asyncio.gather(*inside)] == [200] * 2


async def test_a_long_wait_for_a_busy_seat_uses_no_hold_up(asked):
    """The hold is for the time without a seat alone: it begins when the seat leaves, not when the request came."""
    old, fresh = Seat(), Seat()
    asked.slot._serve(old)
    asked.slot._step_down(old)
    frame = Slice(name="x", shape=SHAPE, dtype="float32", offset=0, size=768)
    came = time.monotonic() - 100 * asked.slot.hold_s
    lane = asked.slot.lanes.take()
    run = SeatRun(lane=lane.number, inputs=(frame,))
    answer = asyncio.create_task(asked.slot.infer(lane, lambda _: run, came))
    for _ in range(10):
        await asyncio.sleep(0)
    fresh.answer(1)
    asked.slot._serve(fresh)
    assert (await answer).seat is fresh


@pytest.mark.parametrize("parameters", [{"priority": -1}, {"priority": "high"}, {"timeout": 0.5}, {"timeout": 10**400}])
async def test_terms_that_are_none(asked, parameters):
    """400 and which parameter it is; no seat sees the request."""
    seat = Seat()
    asked.slot._serve(seat)
    answer = await (await asked(1, **parameters))
    assert (answer.status, next(iter(parameters)) in answer.json["error"]) == (400, True)
    assert seat.got == []


async def test_what_waits_is_answered_by_the_next_release(shared, agent, slot, x):
    """With real seats: one stands still with two requests inside; those behind them are the new release's at once."""
    old, new = release(1, gates=PATIENT), release(2, factor=3.0)
    loaded = await agent.serve(slot, old)
    os.kill(loaded.pid, signal.SIGSTOP)
    before = (await agent.ask(Look())).requests
    cameras = [await shared.camera() for _ in range(8)]
    answers = [asyncio.create_task(camera.infer(slot, x)) for camera in cameras]
    while (await agent.ask(Look())).requests < before + len(cameras):
        pass
    await agent.serve(slot, new, fallback=old)
    await eventually(lambda: sum(one.done() for one in answers) >= 6)
    done, stuck = ([one for one in answers if one.done() is is_done] for is_done in (True, False))
    assert (len(done), {(await one).json["model_version"] for one in done}) == (6, {"20250602"})
    os.kill(loaded.pid, signal.SIGCONT)
    assert {(await one).json["model_version"] for one in stuck} == {"20250601"}
    for camera in cameras:
        camera.writer.close()


def test_lanes_take_no_more_memory_than_there_is(monkeypatch):
    """What the waiting requests hold is bounded, and given back with a lane that grew large."""
    monkeypatch.setattr(lanes, "ALL_BYTES", 20 * 1024**2)
    those = Lanes()
    one, two = those.take(), those.take()
    one.request(0, 16 * 1024**2)
    with pytest.raises(TransferError, match="all of the 20971520 bytes"):
        two.request(0, 16 * 1024**2)
    those.give_back(one)
    two.request(0, 16 * 1024**2)
    those.give_back(two)
    those.close()


def test_the_first_lanes_keep_their_memory(monkeypatch):
    """A lane that is used often has its pages; what a crowd needed once is given back."""
    monkeypatch.setattr(lanes, "KEPT", 1)
    those = Lanes()
    one, two = those.take(), those.take()
    for lane in (one, two):
        lane.request(0, 1024**2)
        those.give_back(lane)
    assert those.take() is one
    assert those.take() is not two
    those.give_back(one)
    those.close()


def test_lanes_that_could_not_be_made_are_not_lost():
    """Where no descriptor is left requests are refused; when there are some again, as many are let in as before."""
    those, (soft, hard) = Lanes(), resource.getrlimit(resource.RLIMIT_NOFILE)
    gc.collect()  # what earlier tests left would make room in the middle
    spare = os.dup(0)
    os.close(spare)
    resource.setrlimit(resource.RLIMIT_NOFILE, (spare + 1, hard))  # one is left; a lane takes two
    try:
        for _ in range(lanes.LANES + 1):
            with pytest.raises(TransferError, match="no memory file for another request"):
                those.take()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    left = os.dup(0)
    os.close(left)
    assert left == spare, "what was made of them is closed"
    for lane in [those.take() for _ in range(lanes.LANES)]:
        those.give_back(lane)
    those.close()
