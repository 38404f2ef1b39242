"""The process that starts while the release that it will load is still written: used, or gone."""

import os
import signal
from pathlib import Path

import pytest
import pytest_asyncio

from agent.adapters import memory_file
from agent.adapters.packets import close_all
from agent.core.messages import Done, Load, Loaded, Offer, Refused, Seal
from tests.runner.conftest import alive, eventually, release, runner_in
from tests.runner.test_frames import held


class Children:
    """What a runner has started since the test began: seats, and nothing else once it has welcomed an agent."""

    def __init__(self, running) -> None:
        self._list = Path(f"/proc/{running.process.pid}/task/{running.process.pid}/children")
        self._before = frozenset(self._list.read_text().split())

    def __call__(self) -> set[int]:
        return {int(pid) for pid in self._list.read_text().split() if pid not in self._before}


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def shared(tmp_path_factory):
    """A runner with no other seats than those of these tests."""
    async with runner_in(tmp_path_factory.mktemp("runner")) as one:
        yield one


@pytest.fixture
def children(shared, agent):
    return Children(shared)


async def offer(agent, one) -> list[int]:
    """What came of an offer: descriptors to write to."""
    reply, descriptors = await agent.client.ask(Offer(ref=one.ref, parts=one.announced))
    assert isinstance(reply, Done), reply
    return descriptors


async def hand_over(agent, one, descriptors) -> object:
    """The answer to what was written."""
    for number, content in zip(descriptors, one.parts.values(), strict=True):
        memory_file.write(number, content)
    close_all(descriptors)
    return await agent.ask(Seal(ref=one.ref))


async def test_a_seat_has_started_before_its_model_is_written(agent, children):
    """The process that an offer starts is the one that loads, and no second one is started."""
    one = release(1)
    descriptors = await offer(agent, one)
    (spare,) = children()
    assert await hand_over(agent, one, descriptors) == Done()
    loaded = await agent.ask(Load(slot="early", place=one.place))
    assert isinstance(loaded, Loaded), loaded
    assert loaded.pid == spare
    assert children() == {spare}


async def test_offers_side_by_side_share_one_spare(agent, children):
    """Two slots that are handed releases at once have one process started ahead; the other starts as ever."""
    both = release(1), release(2)
    descriptors = [await offer(agent, one) for one in both]
    assert len(children()) == 1
    for one, numbers in zip(both, descriptors, strict=True):
        assert await hand_over(agent, one, numbers) == Done()
        assert isinstance(await agent.ask(Load(slot="both", place=one.place)), Loaded)
    assert len(children()) == 2


async def test_a_spare_that_died_while_it_waited_costs_its_start(agent, children):
    """Whatever kills it, the load takes another process and succeeds."""
    one = release(1)
    descriptors = await offer(agent, one)
    (spare,) = children()
    os.kill(spare, signal.SIGKILL)
    await eventually(lambda: not alive(spare))
    assert await hand_over(agent, one, descriptors) == Done()
    loaded = await agent.ask(Load(slot="late", place=one.place))
    assert isinstance(loaded, Loaded), loaded
    assert children() == {loaded.pid}


@pytest.mark.parametrize("what", ["offer", "seal"])
async def test_no_spare_is_left_where_nothing_will_be_loaded(agent, children, what):
    """An offer or a seal that is refused ends the process that it had started."""
    one = release(3)
    if what == "offer":
        reply = await agent.ask(Offer(ref=one.ref, parts=one.announced[:2]))
    else:
        close_all(await offer(agent, one))  # nothing was written
        assert children()
        reply = await agent.ask(Seal(ref=one.ref))
    assert isinstance(reply, Refused)
    await eventually(lambda: not children())


async def test_no_spare_waits_for_an_agent_that_has_left(agent, children):
    """The end of the agent's connection ends it."""
    close_all(await offer(agent, release(1)))
    assert children()
    await agent.client.close()
    await eventually(lambda: not children())


async def test_memory_that_is_offered_is_given_back_when_the_agent_leaves(shared, agent):
    """What an agent died over is not kept until its release is offered again; another agent's may still be written."""
    one = release(4)
    numbers = await offer(agent, one)
    assert files_of(shared, one) == len(numbers)
    passing_by = await shared.agent()
    await passing_by.client.close()
    assert await hand_over(agent, one, numbers) == Done()
    two = release(5)
    close_all(await offer(agent, two))
    await agent.client.close()
    await eventually(lambda: not files_of(shared, two))
    assert files_of(shared, one) == len(numbers)


def files_of(running, one) -> int:
    """How many memory files of a release the runner holds."""
    return held(running.process.pid, f"memfd:{one.ref.name}/")


@pytest.mark.parametrize("end", [signal.SIGTERM, signal.SIGKILL])
async def test_a_spare_ends_with_its_runner(tmp_path, end):
    """No process is left over, however the runner ends."""
    async with runner_in(tmp_path) as running:
        agent, children = await running.agent(), Children(running)
        close_all(await offer(agent, release(1)))
        (spare,) = children()
        running.process.send_signal(end)
        await running.process.wait()
        await eventually(lambda: not alive(spare))
        await agent.client.close()
