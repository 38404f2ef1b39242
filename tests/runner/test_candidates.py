"""A candidate beside the seat that serves, and what it may take when it serves itself."""

import asyncio
import os
import signal
import sys
from pathlib import Path

import pytest

from agent.core.messages import Load, Loaded, Look
from tests.runner.conftest import eventually, release, runner_in

LOW = (os.SCHED_OTHER, 10)


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
