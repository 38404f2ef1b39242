"""What the runner keeps to whatever a seat does: one that talks nonsense, one that not even dies, one without rights."""

import asyncio
import ctypes
import socket
import subprocess
import sys
from types import SimpleNamespace

import pytest

from agent.adapters.channel import Channel
from agent.core import messages
from agent.core.errors import BackendError
from agent.core.messages import FromSeat, SeatCount, SeatCounted, SeatProve, SeatRan, SeatTurn
from agent.runner import seats
from tests.runner.conftest import release

PR_CAPBSET_DROP, CAP_SYS_NICE = 24, 23  # linux/prctl.h, linux/capability.h
ENDLESS = b'{"type":"SeatRan","outputs":[],"busy_s":1e308,"finite":true}'


@pytest.fixture
async def seat(monkeypatch):
    """A seat whose process is the test: its end of the channel, and no signal reaches it."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    monkeypatch.setattr(seats.Seat, "_signal", lambda *_: None)
    lost = []
    one = seats.Seat(release(1).place, SimpleNamespace(), lambda _, failure: lost.append(failure), gently=False)
    one._channel = Channel(ours, FromSeat)
    one._process = SimpleNamespace(pid=0, returncode=None, wait=asyncio.Event().wait)
    listening = asyncio.create_task(one.listen())
    yield one, theirs, lost
    listening.cancel()
    theirs.close()


async def test_a_seat_that_does_not_even_die_is_given_up(seat):
    """A process that hangs in a driver ignores SIGKILL: its orders fail at the deadline, and its keeper hears of it."""
    one, _, lost = seat
    async with asyncio.timeout(10):
        with pytest.raises(BackendError, match="no answer within"):
            await one.ask(SeatProve(), messages.Done, 0.1)
    assert "no answer" in lost[0].reason


@pytest.mark.parametrize(
    ("order", "kind", "answer"),
    [
        (SeatCount(), SeatCounted, messages.encode(messages.Done())),
        (SeatTurn(), SeatRan, ENDLESS),
        (SeatTurn(), SeatRan, b"\0"),
    ],
    ids=["another answer", "endless", "noise"],
)
async def test_a_seat_that_talks_nonsense_is_ended(seat, order, kind, answer):
    """Whatever a corrupt process says, it is an answer of that kind, with numbers that can be told, or its end."""
    one, theirs, lost = seat
    theirs.send(answer)
    async with asyncio.timeout(10):
        with pytest.raises(BackendError, match="nonsense"):
            await one.ask(order, kind, 5.0)
    assert "nonsense" in lost[0].reason


def test_who_may_not_undo_it_lowers_no_priority():
    """Root in a container may lack CAP_SYS_NICE: a seat would stay in idle time for ever."""
    drop = lambda: ctypes.CDLL(None).prctl(PR_CAPBSET_DROP, CAP_SYS_NICE, 0, 0, 0)  # noqa: E731
    asked = "from agent.runner.seats import may_undo; print(may_undo())"
    said = subprocess.run([sys.executable, "-c", asked], preexec_fn=drop, capture_output=True, text=True, check=True)
    assert said.stdout == "False\n"
