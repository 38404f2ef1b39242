"""What a seat makes of an order to load, in this process: which runner sends it may be older than the seat."""

import pytest

from agent.adapters import memory_file
from agent.adapters.packets import close_all
from agent.core.documents import from_yaml
from agent.core.messages import CONFIG, SeatLoad
from agent.core.release import Config
from agent.runner.seat import load, prove
from tests.runner.conftest import release


@pytest.mark.parametrize("is_told", [True, False], ids=["told", "not told"])
def test_a_seat_takes_the_config_that_it_is_told_and_else_reads_it(is_told):
    """A runner that was started before an update sends none: its seats, which are new, load all the same."""
    one = release(1)
    numbers = []
    for part in one.announced:
        numbers.append(memory_file.reserve(part.name, part.size))
        memory_file.write(numbers[-1], one.parts[part.name])
    config = from_yaml(Config, one.parts[CONFIG], CONFIG)
    model = load(SeatLoad(place=one.place, parts=one.announced, config=config if is_told else None), numbers)
    close_all(numbers)
    assert model.config == config
    prove(model)
    model.session.close()
