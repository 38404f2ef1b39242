"""All that a device writes to its disk in its life, step by step: to be cut off anywhere.

1. The parts are the agent's own, joined as the agent joins them; nothing else writes. One thread does all of it, so
   that a run makes the same system calls as the last one.
2. After each step it is said what counts from now on. What must be so after a cut: tests/faults/next_start.py.
3. Every step may be done again: the next run goes on from the first step that was not said to be done.
"""

import asyncio
import hashlib
import io
import itertools
import json
import os
import shutil
from concurrent.futures import Executor, Future
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from unittest.mock import patch

from msgspec.structs import replace

from agent.adapters import fetch, files, store
from agent.adapters.outbox import Item, Rank
from agent.core import plan
from agent.core.candidate import Backend, Candidate, Failure, Found
from agent.core.errors import Kind
from agent.core.messages import Place
from agent.core.records import Device, ReleaseRecord
from agent.core.release import Ref
from agent.core.slot import SlotRecord
from agent.daemon import news
from agent.daemon.agent import Agent
from agent.daemon.settings import Settings, read_settings
from agent.daemon.steps import Later, Success
from agent.trust.deployment import Taken
from agent.trust.floor import Floor

SLOT, GROUP = "defect_detection", "plant"  # of tests/system/plant.py, which a guest need not import
SYNC_BYTES = 64 * 1024  # a small release is synced several times, as a large one is
CHUNK_BYTES = 32 * 1024
NOISE = b"\xff\x00noise" * 700
DEVICE = Device(found=(Found(backend=Backend.CPU, present=True, version="1"),), cores=1, power_mode="")
CANDIDATE = Candidate(backend=Backend.CPU)


@dataclass(frozen=True)
class World:
    """What is around the device: a store as it was on the first day and as it is now, and its settings."""

    config: Path
    then: Path
    now: Path
    one: Ref
    two: Ref

    def settings(self, state: Path, day: int) -> Settings:
        """The device's settings with its state elsewhere."""
        read = read_settings(self.config)
        url = f"file://{self.then if day == 1 else self.now}"
        return replace(read, state_folder=str(state), store=replace(read.store, url=url))

    @property
    def sound(self) -> Path:
        """A folder with the documents of both releases, as they were published."""
        return self.now.with_name("sound")

    def save(self, path: Path) -> None:
        """For another process."""
        tree = {"config": str(self.config), "then": str(self.then), "now": str(self.now)}
        path.write_text(json.dumps(tree | {"refs": [[ref.name, ref.digest] for ref in (self.one, self.two)]}))

    @classmethod
    def load(cls, path: Path) -> "World":
        """What `save` wrote."""
        tree = json.loads(path.read_text())
        one, two = (Ref(name=name, digest=digest) for name, digest in tree["refs"])
        return cls(Path(tree["config"]), Path(tree["then"]), Path(tree["now"]), one, two)


def make_world(folder: Path, megabytes: float = 0.3) -> World:
    """Two releases, the first of them deployed on the first day, the second now; a device that is granted both."""
    from tests.system.plant import Plant
    from tests.system.weighty import Weighty

    plant = Plant(folder)
    checked = [Weighty(folder / "models", date, megabytes).checked for date in ("20250701", "20250702")]
    device = plant.device()
    one = plant.publish_checked(checked[0])
    plant.rollout(one.name)
    shutil.copytree(folder / "store", folder / "store-then")
    two = plant.publish_checked(checked[1])
    plant.rollout(two.name)
    home = shutil.move(device.folder, folder / "device")
    config = Path(home) / "agent.yaml"
    config.write_text(config.read_text().replace(str(device.folder), str(home)))
    plant.close()
    world = World(config, folder / "store-then", folder / "store", one, two)
    world.save(folder / "world.json")
    world.sound.mkdir()
    for one in checked:
        for name, content in zip(document_names(one.name), (one.metadata, one.config), strict=True):
            (world.sound / name).write_bytes(content)
    return world


def document_names(name):
    return (f"{name}_metadata.json", f"{name}_config.yaml")


# --- the steps -----------------------------------------------------------------------------------------------------


class Step:
    """One step: `day` is whose store it sees."""

    def __init__(self, day, call):
        self.day, self.call, self.name = day, call, call.__name__.replace("_", " ")


async def contact(agent, world):
    """What comes first in any life."""


async def half_a_fetch(agent, world):
    """The connection ends in the middle."""
    stream = store.FileStore.stream

    def half(self, key, start=0, etag=None):
        whole = stream(self, key, start, etag)
        pieces = itertools.islice(whole.pieces, whole.size // 2 // CHUNK_BYTES)
        return store.Download(whole.etag, whole.size, whole.start, pieces, whole.close, whole.where)

    with patch.object(store.FileStore, "stream", half):
        outcome = await agent.steps.act(SLOT, plan.Fetch(world.one), DEVICE)
    assert isinstance(outcome, Later | Success), outcome  # whole already, where the run before was cut after it


async def _act(agent, step):
    outcome = await agent.steps.act(SLOT, step, DEVICE)
    assert isinstance(outcome, Success), outcome


def doing(make):
    """The step of the planner as a step of ours."""

    async def call(agent, world):
        await _act(agent, make(world))

    call.__name__ = make.__name__
    return call


@doing
def the_other_half(world):
    return plan.Fetch(world.one)


@doing
def verify_one(world):
    return plan.Verify(world.one)


@doing
def confirm_one(world):
    return plan.Confirm(Place(ref=world.one, candidate=CANDIDATE))


async def pairs_of_facts(agent, world):
    """Two facts with one number, up to a multiple of three, which is precious."""
    number = agent.ledger.get("pair", "a", int) or 0
    for one in range(number + 1, number // 3 * 3 + 4):
        agent.ledger.put_all([("pair", "a", one), ("pair", "b", one)], precious=one % 3 == 0)


async def words_for_the_fleet(agent, world):
    """An event that stays, replies that the broker takes, telemetry."""
    agent.news.tell("later", reason="a word")
    now = datetime.now(UTC).timestamp()
    agent.outbox.put([Item(topic="edge/v1/cam-1/cmd/1/res", payload=b"{}" * 300, rank=Rank.REPLY)] * 3, now)
    agent.outbox.put([Item(topic="edge/v1/cam-1/tele/health", payload=b"{}", rank=Rank.TELEMETRY)], now)
    agent.outbox.done([row.id for row in agent.outbox.head(100, now) if row.topic.endswith(("res", "health"))])


@doing
def fetch_two(world):
    return plan.Fetch(world.two)


@doing
def verify_two(world):
    return plan.Verify(world.two)


@doing
def confirm_two(world):
    return plan.Confirm(Place(ref=world.two, candidate=CANDIDATE))


async def reject_one(agent, world):
    agent.steps.record_rejection(world.one, Failure(kind=Kind.PARITY, reason="it drifts"), DEVICE)


@doing
def delete_one(world):
    return plan.Delete(world.one)


async def replace_a_large_file(agent, world):
    files.write_durably(agent.settings.state / "models" / "large", io.BytesIO(large(world)))


async def damage_the_ledger(agent, world):
    """As a bad disk does it: the file's beginning is noise. The next start has its copy."""
    close(agent)
    number = os.open(agent.ledger.path, os.O_WRONLY)
    os.pwrite(number, NOISE, 0)
    os.fsync(number)
    os.close(number)


STEPS = (
    Step(1, contact),
    Step(1, half_a_fetch),
    Step(1, the_other_half),
    Step(1, verify_one),
    Step(1, confirm_one),
    Step(1, pairs_of_facts),
    Step(2, contact),
    Step(2, words_for_the_fleet),
    Step(2, fetch_two),
    Step(2, verify_two),
    Step(2, confirm_two),
    Step(2, reject_one),
    Step(2, delete_one),
    Step(2, replace_a_large_file),
    Step(2, pairs_of_facts),
    Step(2, damage_the_ledger),
    Step(3, pairs_of_facts),
)
DELETE, LARGE, DAMAGE = (
    next(number for number, step in enumerate(STEPS) if step.call is call)
    for call in (delete_one, replace_a_large_file, damage_the_ledger)
)


def large(world):
    """Content for a file that takes several writes."""
    return hashlib.sha256(world.two.digest.encode()).digest() * 40_000


def in_place(path, content, mode=0o640):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.read())


BROKEN = {  # what must be found out, or the search is of no use
    "": {"write_durably": files.write_durably},
    "files are written in place": {"write_durably": in_place},
    "folders are not synced": {"sync_folder": lambda folder: None},
}


def work(world, state, begin, say, broken=""):
    """Does the steps from number `begin` on; `say` is told what counts after each."""
    with alone(), patch.multiple(files, **BROKEN[broken]):
        asyncio.run(_work(world, state, begin, say))


async def _work(world, state, begin, say):
    agent, day = None, 0
    for number, step in enumerate(STEPS[begin:], begin):
        if step.day != day:
            if agent is not None:
                close(agent)
            agent, day = start(world.settings(state, step.day)), step.day
            await agent.intake.poll()  # as after every start
        await step.call(agent, world)
        if number != DAMAGE:
            say({"done": number + 1, **told(agent)})
        else:
            say({"done": number + 1})
    if agent is not None:
        close(agent)


def start(settings):
    """A start of the agent, up to where it would contact its runner."""
    agent = Agent(settings)
    agent._begin()
    return agent


def close(agent):
    agent.ledger.close()
    agent.outbox.close()


def told(agent):
    """What counts from now on: numbers that never fall again."""
    floor = agent.ledger.get("trust", "floor", Floor) or Floor()
    taken = agent.ledger.get("deployment", GROUP, Taken) or Taken()
    counters = {f"floor of {role}": floor.roles[role].version for role in floor.roles}
    return {
        **counters,
        "rollout": taken.rollout,
        "pair": agent.ledger.get("pair", "a", int) or 0,
        "event": agent.ledger.get("count", "event", int) or 0,
        "stored": len(agent.ledger.all("release", ReleaseRecord)),
        "good": len((agent.ledger.get("slot", SLOT, SlotRecord) or SlotRecord(slot=SLOT)).good),
    }


@contextmanager
def alone():
    """One thread, and a disk whose reserve is none: this one is small."""

    async def inline(call, *arguments):
        return call(*arguments)

    with (
        patch.object(asyncio, "to_thread", inline),
        patch.object(news, "ThreadPoolExecutor", Alone),
        patch.object(fetch, "RESERVE_BYTES", 0),
        patch.object(fetch, "SYNC_BYTES", SYNC_BYTES),
        patch.object(store, "CHUNK_BYTES", CHUNK_BYTES),
    ):
        yield


class Alone(Executor):
    """Runs what it is given at once."""

    def __init__(self, *_):
        pass

    def submit(self, call, *arguments):
        done = Future()
        done.set_result(call(*arguments))
        return done
