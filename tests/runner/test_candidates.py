"""A candidate beside the seat that serves: how it gives way."""

import asyncio
import os
import signal
from pathlib import Path

import pytest

from agent.core.messages import Load, Loaded, Look
from tests.runner.conftest import eventually, release

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
