"""An engine between agent, runner and seat: given away once it is proven, taken back, and never believed."""

import hashlib
import os
import signal
from contextlib import suppress
from itertools import count
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from agent.adapters import memory_file
from agent.adapters.packets import close_all
from agent.core.candidate import Backend, Candidate
from agent.core.messages import (
    Done,
    Load,
    Loaded,
    Offer,
    Part,
    Place,
    Promote,
    Prove,
    Refused,
    Seal,
    Trial,
    Unload,
    engine_of,
)
from agent.runner.seat import Seat
from tests.runner.conftest import altered, eventually, release

OPENVINO = Candidate(backend=Backend.OPENVINO, threads=1)
ENDINGS = ("engine (deleted)", f"{engine_of(OPENVINO)} (deleted)")  # as a seat and as the runner calls the memory file
_serial = count()

pytest.importorskip("openvino", reason="the openvino extra is not installed")


class Desk:
    """An agent with one release of its own, which it loads on OpenVINO."""

    def __init__(self, agent, slot, one):
        self.agent, self.slot, self.one = agent, slot, one
        self.place = Place(ref=one.ref, candidate=OPENVINO)

    async def load(self, engine=None):
        """Load it, with an engine or without one; the seat's process."""
        assert await self.agent.hand_over(self.one) == Done()
        if engine is not None:
            assert await self.offer(engine, engine) == Done()
        reply = await self.agent.ask(Load(slot=self.slot, place=self.place))
        assert isinstance(reply, Loaded), reply
        return reply.pid

    async def offer(self, announced, written):
        """Hand an engine over; what the runner says to it."""
        part = Part(name=engine_of(OPENVINO), size=len(announced), sha256=hashlib.sha256(announced).hexdigest())
        reply, given = await self.agent.client.ask(Offer(ref=self.one.ref, parts=(part,)))
        for number in given:
            memory_file.write(number, written)
        close_all(given)
        return reply if isinstance(reply, Refused) else await self.agent.ask(Seal(ref=self.one.ref))

    async def proven(self):
        """What comes along with a proof."""
        return await self.given_at(Prove(slot=self.slot, place=self.place))

    async def tried(self):
        """What comes along with a trial."""
        return await self.given_at(Trial(slot=self.slot, place=self.place, key="k", runs=2))

    async def given_at(self, order):
        _, given = await self.agent.client.ask(order)
        contents = [memory_file.read(one) for one in given]
        close_all(given)
        return contents

    async def engine(self):
        """The engine that a seat builds; the seat has left."""
        await self.load()
        (engine,) = await self.proven()
        await self.unload()
        return engine

    async def unload(self):
        assert await self.agent.ask(Unload(slot=self.slot, place=self.place)) == Done()

    async def serve(self):
        assert await self.agent.ask(Promote(slot=self.slot, place=self.place)) == Done()


@pytest.fixture
def desk(agent, slot):
    """Makes desks: each with a release that nobody else has."""

    def make(factor=2.0, **config):
        return Desk(agent, slot, release(3, factor, serial=next(_serial), **config))

    return make


def engines_of(running):
    """The engines that a runner holds, by their inodes."""
    found = set()
    for one in Path(f"/proc/{running.process.pid}/fd").iterdir():
        with suppress(FileNotFoundError):  # it is closed by now
            found |= {one.stat().st_ino} if str(one.readlink()).endswith(ENDINGS) else set()
    return found


def dumped_by(pid):
    """The kinds of mappings that a process's dump would hold, and the limits of its size."""
    limits = Path(f"/proc/{pid}/limits").read_text().splitlines()
    limit = next(one for one in limits if one.startswith("Max core file size"))
    return int(Path(f"/proc/{pid}/coredump_filter").read_text(), 16), limit.split()[4:6]


@pytest.mark.parametrize("order", [Desk.proven, Desk.tried])
async def test_an_engine_is_given_away_once_when_it_is_proven(desk, order):
    """The first proof brings it, whichever that is; the next one brings nothing."""
    one = desk()
    await one.load()
    assert [type(engine) for engine in await order(one)] == [bytes]
    assert await one.proven() == []


async def test_an_engine_is_taken_back(desk, camera, x):
    """A seat that was given one builds none, and answers as the model does."""
    one = desk()
    await one.load(await one.engine())
    assert await one.proven() == [], "it was built anew"
    await one.serve()
    assert np.array_equal((await camera.infer(one.slot, x)).y(), x * 2)


@pytest.mark.parametrize("bad", ["garbage", "cut", "of another model"])
async def test_an_engine_that_is_of_no_use_is_built_anew(desk, camera, x, bad):
    """What no library reads, what is torn, and what computes something else: the model serves, by a new engine."""
    one = desk()
    good = await one.engine()
    bad = {"garbage": b"\0" * 4096, "cut": good[: len(good) // 2], "of another model": await desk(3.0).engine()}[bad]
    await one.load(bad)
    (built,) = await one.proven()
    assert built != bad
    await one.serve()
    assert np.array_equal((await camera.infer(one.slot, x)).y(), x * 2)


async def test_a_model_that_is_wrong_gives_no_engine_away(desk):
    """Where the golden samples are missed there is nothing to keep."""
    one = desk(3.0)
    one = Desk(one.agent, one.slot, altered(one.one, "golden.npz", release(3).parts["golden.npz"]))
    await one.load()
    assert (await one.proven(), await one.tried()) == ([], [])


async def test_the_runners_own_restart_takes_the_engine(shared, desk):
    """A serving seat that is killed comes back by the engine that was built before."""
    before, one = engines_of(shared), desk()
    pid = await one.load()
    assert await one.proven()
    held = engines_of(shared) - before
    assert len(held) == 1
    await one.serve()
    os.kill(pid, signal.SIGKILL)
    await one.agent.until(one.slot, lambda facts: facts.serving and facts.seats[0].pid not in {0, pid})
    assert engines_of(shared) - before == held, "another one was built"


async def test_engines_are_forgotten_with_their_seats(shared, desk):
    """What no seat has takes no memory, whoever made it."""
    before, one = engines_of(shared), desk()
    engine = await one.engine()
    await one.load(engine)
    assert len(engines_of(shared) - before) == 1
    await one.unload()
    await eventually(lambda: engines_of(shared) <= before)


async def test_an_engine_that_a_seat_failed_with_is_not_tried_again(shared, desk):
    """A seat that hangs or dies at its load leaves none behind: the next one builds."""
    before, one = engines_of(shared), desk()
    engine = await one.engine()
    assert await one.agent.hand_over(one.one) == Done()
    assert await one.offer(engine, engine) == Done()
    hurried = Load(slot=one.slot, place=one.place, deadline_s=0.01)
    assert isinstance(await one.agent.ask(hurried), Refused)
    await eventually(lambda: engines_of(shared) <= before)
    await one.load()
    assert await one.proven()


@pytest.mark.parametrize(("limit_mb", "engines"), [(1.0, 0), (1e6, 1)], ids=["tight", "roomy"])
def test_no_engine_is_worth_a_memory_gate(limit_mb, engines):
    """To export one takes memory: a candidate that is near its gate is left alone."""
    one = Seat(SimpleNamespace(sock=0))
    gates = SimpleNamespace(max_memory_mb=limit_mb)
    session = SimpleNamespace(engine=lambda: memoryview(b"engine"))
    one._model, one._export_mb = SimpleNamespace(config=SimpleNamespace(gates=gates), session=session), 0.1
    given = one._engine(Done())
    assert [memory_file.read(number) for number in given] == [b"engine"] * engines
    close_all(given)


async def test_an_engine_is_of_a_release_that_is_held(desk):
    """An engine of a release that the runner does not hold is refused at its offer."""
    assert isinstance(await desk().offer(b"engine", b"engine"), Refused)


async def test_an_engine_that_was_not_written_whole_is_refused(shared, desk):
    """What was announced is not what is there: no seat gets it, and it takes no memory."""
    before, one = engines_of(shared), desk()
    await one.agent.hand_over(one.one)
    assert isinstance(await one.offer(b"engine", b"eng"), Refused)
    await eventually(lambda: engines_of(shared) <= before)
    await one.load()
    assert await one.proven()


async def test_nothing_of_a_seat_or_runner_is_dumped(shared, desk):
    """Neither a file nor a pipe gets weights: the limit is zero, and no kind of mapping is chosen."""
    for pid in (shared.process.pid, await desk().load()):
        assert dumped_by(pid) == (0, ["0", "0"])


async def test_a_bench_leaves_what_serves_its_engine(shared, desk):
    """Two slots may have a seat at one place: a restart of the one needs the engine when the other has left."""
    before, one = engines_of(shared), desk()
    await one.load()
    assert await one.proven()
    await one.agent.ask(Promote(slot=one.slot, place=one.place))
    bench = f"{one.slot}~bench"
    assert isinstance(await one.agent.ask(Load(slot=bench, place=one.place)), Loaded)
    assert isinstance(await one.agent.ask(Load(slot=bench, place=one.place, deadline_s=0.01)), Loaded)
    assert await one.agent.ask(Unload(slot=bench, place=one.place)) == Done()
    assert len(engines_of(shared) - before) == 1
    await one.agent.ask(Unload(slot=one.slot, place=one.place))
    await eventually(lambda: engines_of(shared) <= before)
