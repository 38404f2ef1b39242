"""A candidate beside the seat that serves: how it gives way, how they are compared, and what each may take."""

import asyncio
import io
import os
import signal
import sys
import time
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from agent.core.messages import Load, Loaded, Look, SeatRan, Trial, Tried
from agent.core.release import Config
from agent.runner.seats import RESTS
from agent.runner.slots import Slot
from tests.runner.conftest import SHAPE, altered, eventually, release, runner_in

STOPPED = "T"
LOW = (os.SCHED_OTHER, 10)


def of_turns(day, turns):
    """A release whose golden sample takes so many turns of a loop."""
    golden, x = io.BytesIO(), np.full(SHAPE, turns, np.float32)
    np.savez(golden, **{"in.x": x[None], "out.y": x[None] * np.float32(2)})
    return altered(release(day, kind="loop"), "golden.npz", golden.getvalue())


async def tried(agent, slot, one):
    assert isinstance(await agent.ask(Load(slot=slot, place=one.place)), Loaded)
    answer = await agent.ask(Trial(slot=slot, place=one.place, key="k", runs=5))
    assert isinstance(answer, Tried), answer
    return answer


def stands(pid):
    """The policy and nice value of each thread of a process."""
    threads = [int(one.name) for one in Path(f"/proc/{pid}/task").iterdir()]
    return {(os.sched_getscheduler(one), os.getpriority(os.PRIO_PROCESS, one)) for one in threads}


async def test_a_candidate_gives_way_until_it_serves(agent, slot):
    """It begins in idle time, has a small share when it is still not loaded after a while, and all of it at last."""
    if os.geteuid():
        pytest.skip("an ordinary user's seats are not lowered, since that could not be undone")
    one = release(1)
    await agent.hand_over(one)
    loading = asyncio.create_task(agent.ask(Load(slot=slot, place=one.place)))
    facts = await agent.ask(Look())
    while not (slot in facts.slots and facts.slots[slot].seats and (pid := facts.slots[slot].seats[0].pid)):
        facts = await agent.ask(Look())
    os.kill(pid, signal.SIGSTOP)
    try:
        assert stands(pid) == {(os.SCHED_IDLE, 0)}
        await eventually(lambda: stands(pid) == {LOW})
    finally:
        os.kill(pid, signal.SIGCONT)
    assert isinstance(await loading, Loaded)
    assert stands(pid) == {LOW}
    await agent.promote(slot, one)
    assert stands(pid) == {(os.SCHED_OTHER, 0)}


def state_of(pid):
    """One letter, as ps tells it."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


@asynccontextmanager
async def a_slot_that_serves(folder, x, *, is_asked):
    """An agent on a runner of its own, whose one slot clients ask, or do not."""
    async with runner_in(folder) as running:
        agent, camera = await running.agent(), await running.camera()
        await agent.serve("serves", release(1))
        if is_asked:
            assert (await camera.infer("serves", x)).status == 200
        yield agent
        camera.writer.close()
        await agent.client.close()


async def states_of(agent, slot, loading):
    """The states of a slot's seat until something is over."""
    seen, pid = set(), 0
    while not loading.done():
        facts = (await agent.ask(Look())).slots.get(slot)
        pid = pid or max((seat.pid for seat in facts.seats), default=0) if facts else 0
        if pid:
            seen.add(state_of(pid))
    return seen


@pytest.mark.parametrize("is_asked", [True, False])
async def test_a_candidate_is_stopped_for_most_of_its_load_where_clients_ask(tmp_path, x, is_asked):
    """Idle time is not all: who wakes may find both cores taken, one of them by a candidate."""
    async with a_slot_that_serves(tmp_path, x, is_asked=is_asked) as agent:
        await agent.hand_over(release(2))
        loading = asyncio.create_task(agent.ask(Load(slot="slot", place=release(2).place)))
        assert (STOPPED in await states_of(agent, "slot", loading)) == is_asked
        loaded = await loading
        assert isinstance(loaded, Loaded)
        await agent.promote("slot", release(2))
        assert state_of(loaded.pid) != STOPPED


async def test_a_seat_that_clients_wait_for_is_not_stopped(agent, camera, slot, x):
    """Its slot is dark: it is restarted as fast as the machine allows, whoever else is asked meanwhile."""
    await agent.serve(slot, release(1))
    assert (await camera.infer(slot, x)).status == 200
    os.kill((await agent.ask(Look())).slots[slot].seats[0].pid, signal.SIGKILL)
    asked = asyncio.create_task(camera.infer(slot, x))
    await agent.until(slot, lambda facts: facts.incidents)
    assert STOPPED not in await states_of(agent, slot, asked)
    assert (await asked).status == 200


@pytest.mark.parametrize("is_asked", [True, False])
async def test_a_trial_rests_between_its_runs_where_clients_ask(tmp_path, x, is_asked):
    """For three times as long as each took."""
    one, runs = of_turns(2, 4000), 100
    async with a_slot_that_serves(tmp_path, x, is_asked=is_asked) as agent:
        await agent.hand_over(one)
        assert isinstance(await agent.ask(Load(slot="slot", place=one.place)), Loaded)
        began = time.monotonic()
        evidence = (await agent.ask(Trial(slot="slot", place=one.place, key="k", runs=runs))).evidence
        runs_s = runs * evidence.latency_ms.mean / 1000
        assert (time.monotonic() - began > 4 * runs_s) == is_asked


@pytest.mark.parametrize(("serves", "candidate"), [(3000, 30000), (30000, 3000)])
async def test_a_candidate_is_compared_with_what_serves(agent, slot, serves, candidate):
    """Its golden samples and those of the serving seat take turns; clients' figures know nothing of that."""
    old, new = of_turns(1, serves), of_turns(2, candidate)
    await agent.serve(slot, old)
    await agent.hand_over(new)
    beside = (await tried(agent, slot, new)).beside
    assert beside.place == old.place
    assert (beside.ratio > 2) == (candidate < serves)
    assert (beside.ratio < 0.5) == (candidate > serves)
    counters = (await agent.ask(Look())).slots[slot].counters
    assert (counters.requests, counters.busy_s) == (0, 0)


async def test_a_batch_is_compared_by_its_frames(agent, slot):
    """Of two models that take as long, the one that does four frames at a time is four times as fast."""
    old, new = of_turns(1, 20000), of_turns(2, 20000)
    batch = altered(new, "config.yaml", new.parts["config.yaml"] + b"batch_size: 4\n")
    await agent.serve(slot, old)
    await agent.hand_over(batch)
    ratios = [(await tried(agent, slot, batch)).beside.ratio for _ in range(3)]  # on a machine with other work, too
    assert any(ratio == pytest.approx(4, rel=0.4) for ratio in ratios), ratios


@pytest.mark.parametrize(("rests", "ratio"), [(0.0, 0.5), (RESTS, 10.0)])
async def test_turns_count_by_their_median_and_beside_clients_by_the_quickest(rests, ratio):
    """Of a candidate that is quick once, and of one that has to give way in all its turns but one."""
    candidate, serving = Turning([0.0001, *[0.002] * 30]), Turning([0.001] * 31)
    beside = await Slot._beside(SimpleNamespace(serving=serving), candidate, rests, 10.0)
    assert (beside.place, beside.ratio) == (serving.place, pytest.approx(ratio))


class Turning:
    """A seat whose turns take so long, one after the other."""

    place, held = release(1).place, SimpleNamespace(config=Config(input_size=(8, 8), confidence_threshold=0.5))

    def __init__(self, seconds):
        self.seconds = iter(seconds)

    async def ask(self, _turn, _kind, _limit_s):
        return SeatRan(outputs=(), busy_s=next(self.seconds), finite=True)


async def test_a_serving_seat_that_hangs_says_nothing_against_a_candidate(agent, slot):
    """The trial counts as one beside which nothing served; what hangs is restarted as ever."""
    old, new = release(1), release(2)
    await agent.hand_over(old)
    assert (await tried(agent, slot, old)).beside is None
    await agent.promote(slot, old)
    await agent.hand_over(new)
    os.kill((await agent.ask(Look())).slots[slot].seats[0].pid, signal.SIGSTOP)
    answer = await tried(agent, slot, new)
    assert (answer.evidence.is_proof, answer.beside) == (True, None)
    await agent.until(slot, lambda facts: facts.serving == old.place)


async def test_a_serving_seat_that_grows_for_ever_is_ended(tmp_path, x):
    """Twice the memory of its gate is a leak: the fall-back serves, no request is lost, and the reason is told."""
    faults, failing = tmp_path / "faults", Path(__file__).parents[1] / "fakes" / "failing_seats"
    faults.mkdir()
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(failing), *sys.path]),
        "SEAT_FAULTS": str(faults),
    }
    old, new = release(1), release(2, gates={"max_memory_mb": 200.0})
    async with runner_in(tmp_path, env=environment) as running:
        agent, camera = await running.agent(), await running.camera()
        await agent.serve("slot", old)
        await agent.serve("slot", new, fallback=old)
        (faults / new.ref.name).write_text("grow")
        told = asyncio.create_task(agent.until("slot", lambda facts: facts.incidents))
        answers = [await camera.infer("slot", x) for _ in range(8)]
        (incident,) = (await told).incidents
        answers.append(await camera.infer("slot", x))
        assert {answer.status for answer in answers} == {200}
        assert (incident.failure.kind, incident.action) == ("memory", f"fell back to {old.place}")
        assert "of 400 MB; its gate is 200 MB: killed" in incident.failure.reason
        camera.writer.close()
        await agent.client.close()
