"""A seat and the version of the runner that it is forked for, which may be older than the files it is made of."""

import asyncio

import pytest

from agent import VERSION
from agent.adapters import fork_server
from agent.adapters.channel import Channel
from agent.core.errors import Kind
from agent.core.messages import FromSeat, Refused, SeatProve
from tests.runner.conftest import PATIENCE_S

NO_MODEL = "this seat holds no model: load one first"
OF_NEXT_PATCH = VERSION.rpartition(".")[0] + ".99"


@pytest.mark.parametrize(
    ("version", "kind", "said"),
    [
        (VERSION, Kind.BACKEND, NO_MODEL),
        (OF_NEXT_PATCH, Kind.BACKEND, NO_MODEL),
        ("0.0.7", Kind.STALE, "edge-runner is still 0.0.7, and its files are"),
    ],
)
async def test_a_seat_obeys_a_runner_of_its_version_and_tells_another(monkeypatch, version, kind, said):
    """The last number of a version changes nothing that they say to each other; any other may."""
    monkeypatch.setattr(fork_server, "VERSION", version)
    server = fork_server.ForkServer()
    seat, sock = await server.fork()
    channel = Channel(sock, FromSeat)
    channel.send(SeatProve())
    async with asyncio.timeout(PATIENCE_S):
        answer, _ = await channel.receive()
        channel.close()
        assert await seat.wait() == 0
    server.close()
    assert isinstance(answer, Refused)
    assert answer.failure.kind is kind
    assert answer.failure.reason.startswith(said)
