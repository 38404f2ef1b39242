"""What is offered and never loaded."""

from agent.adapters.packets import close_all
from agent.core.messages import Done
from tests.fakes.descriptors import held
from tests.runner.conftest import eventually, release


async def test_memory_that_is_offered_is_given_back_when_the_agent_leaves(shared, agent):
    """What an agent died over is not kept until its release is offered again; another agent's may still be written."""
    one = release(4)
    numbers = await agent.offer(one)
    assert files_of(shared, one) == len(numbers)
    passing_by = await shared.agent()
    await passing_by.client.close()
    assert await agent.write(one, numbers) == Done()
    two = release(5)
    close_all(await agent.offer(two))
    await agent.client.close()
    await eventually(lambda: not files_of(shared, two))
    assert files_of(shared, one) == len(numbers)


def files_of(running, one) -> int:
    """How many memory files of a release the runner holds."""
    return held(running.process.pid, f"memfd:{one.ref.name}/")
