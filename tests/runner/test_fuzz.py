"""A few seconds of `make fuzz`, always the same ones, and what it found."""

import asyncio

import pytest

from agent.runner import intake
from tests.runner import fuzz
from tests.runner.conftest import http
from tests.runner.knocks import Knocks, recorded


@pytest.fixture
async def knocks(tmp_path):
    one = Knocks(tmp_path, asyncio.get_running_loop())
    yield one
    one.close()


async def test_broken_requests_are_answered_and_leave_nothing():
    """Two thousand of a fixed seed: each answered as HTTP, nothing raised, every lane back; most are refused."""
    tried, statuses = await fuzz.by_chance(20250601, range(2000))
    assert tried == 2000
    assert statuses[400] > statuses[200] > 100


async def test_recorded_requests_are_served(knocks):
    """What the fuzzer breaks is right before it breaks it."""
    for request in recorded():
        await knocks.knock(request)
    assert knocks.statuses.keys() == {100, 200}


async def test_the_fuzzer_notices(knocks, monkeypatch):
    """An exception that ends a connection, and a lane that does not come back, are findings."""
    request = recorded()[0]
    with monkeypatch.context() as patch:
        patch.setattr(intake, "read_request", lambda *_: {}["x"])
        with pytest.raises(AssertionError, match="KeyError"):
            await knocks.knock(request)
    await knocks.knock(request)
    knocks._slot.lanes.take()
    with pytest.raises(AssertionError):
        await knocks.knock(request)


@pytest.mark.parametrize(
    "request_bytes",
    [http("POST", "/v2/models/a/infer", b'{"inputs":' + b"[" * 100_000)],
    ids=["JSON that is deeper than any parser follows"],
)
async def test_what_it_found(knocks, request_bytes):
    """Each is answered with 400."""
    await knocks.knock(request_bytes)
    assert knocks.statuses == {400: 1}
