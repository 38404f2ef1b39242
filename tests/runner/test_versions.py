"""A seat and the version of the runner that starts it, which may be older than the files that the seat is made of."""

import asyncio
import os
import socket

import pytest

from agent import VERSION
from agent.adapters.channel import Channel
from agent.adapters.seat_process import spawn_seat
from agent.core.errors import Kind
from agent.core.messages import FromSeat, Refused, SeatProve

NO_MODEL = "this seat holds no model: load one first"
OF_NEXT_PATCH = VERSION.rpartition(".")[0] + ".99"


@pytest.mark.parametrize(
    ("words", "kind", "said"),
    [
        ([VERSION], Kind.BACKEND, NO_MODEL),
        ([OF_NEXT_PATCH], Kind.BACKEND, NO_MODEL),
        (["0.0.7"], Kind.STALE, "edge-runner is still 0.0.7, and its files are"),
        ([], Kind.BACKEND, "edge-runner is still 0.1.0, and its files are"),
    ],
)
async def test_a_seat_obeys_a_runner_of_its_version_and_tells_another(words, kind, said):
    """The last number of a version changes nothing that they say to each other; any other may."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with theirs:
        number = theirs.fileno()
        seat = await spawn_seat(str(os.getpid()), str(number), *words, pass_fds=(number,))
    channel = Channel(ours, FromSeat)
    channel.send(SeatProve())
    async with asyncio.timeout(60):
        answer, _ = await channel.receive()
        channel.close()
        assert await seat.wait() == 0
    assert isinstance(answer, Refused)
    assert answer.failure.kind is kind
    assert answer.failure.reason.startswith(said)
