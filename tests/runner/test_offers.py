"""What is offered and never loaded."""

from agent.adapters import memory_file
from agent.adapters.packets import close_all
from agent.core.messages import Done, Offer, Seal
from tests.fakes.descriptors import held
from tests.runner.conftest import eventually, release


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
