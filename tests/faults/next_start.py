"""The next start of a device that was cut off: first what lies there, then what the agent makes of it.

1. A file that has its name is whole. A fact that was said to count is there; numbers never fall.
2. After the start nothing is left over of what was cut, and nothing that the ledger does not know.
"""

import asyncio
import hashlib
import json
import sqlite3
from contextlib import closing

from agent.adapters import files
from agent.adapters.ledger import Ledger
from agent.adapters.outbox import Rank
from agent.core.records import ReleaseRecord
from tests.faults.durable import DAMAGE, DELETE, LARGE, STEPS, alone, close, document_names, large, start, told


def check(world, state, said, cuts=0):
    """What is wrong with a device that was cut off after it had said `said` (empty: nothing yet).

    `cuts` is how often it was cut off before: the event that it was telling then may be lost, and its number shows it.
    """
    with alone():
        return [*_before_the_start(world, state, said), *asyncio.run(_after_the_start(world, state, said, cuts))]


def _before_the_start(world, state, said):
    ledger = state / "ledger.db"
    if ledger.exists() and ledger.stat().st_size and said.get("done", 0) < DAMAGE and (bad := Ledger.examine(ledger)):
        yield f"the ledger is damaged: {bad}"
    yield from half_files(world, state)


def half_files(world, state):
    """Files that have their name and are not whole."""
    for ref in (world.one, world.two):
        sealed = state / "models" / "weights" / f"{ref.name}.sealed"
        if sealed.exists() and hashlib.sha256(sealed.read_bytes()).hexdigest() != ref.digest:
            yield f"{sealed.name} has its name and is not whole"
        for path in documents(state, ref):
            if path.exists() and path.read_bytes() != (world.sound / path.name).read_bytes():
                yield f"{path.name} is not whole"
    path = state / "models" / "large"
    if path.exists() and path.read_bytes() != large(world):
        yield f"{path.name} is not whole"


def documents(state, ref):
    folders = ("metadata", "configs")
    return [state / "models" / one / name for one, name in zip(folders, document_names(ref.name), strict=True)]


async def _after_the_start(world, state, said, cuts):
    agent = start(world.settings(state, STEPS[min(said.get("done", 0), len(STEPS) - 1)].day))
    try:
        return [*_facts(agent, said), *_files(agent, world, said), *_outbox(agent, said, cuts)]
    finally:
        close(agent)


def _facts(agent, said):
    found, done = told(agent), said.get("done", 0)
    was_damaged = done >= DAMAGE
    falling = {"done"} | ({"stored"} if done == DELETE else set())
    falling |= {"event"} if was_damaged else set()  # not precious: what was counted since the copy is gone
    for name, number in said.items():
        if name not in falling and found.get(name, 0) < number:
            yield f"{name} fell from {number} to {found.get(name, 0)}"
    if agent.ledger.trouble and not was_damaged:
        yield f"the ledger: {agent.ledger.trouble}"
    if (a := agent.ledger.get("pair", "a", int)) != (b := agent.ledger.get("pair", "b", int)):
        yield f"half a transaction: a is {a}, b is {b}"
    if done and agent.intake.trusted is None:
        yield f"the metadata: {agent.intake.store.error}"


def _files(agent, world, said):
    state = agent.settings.state
    yield from (f"{path} is still there" for path in state.rglob(f"{files.TEMP}*"))
    for record in agent.ledger.all("release", ReleaseRecord).values():
        if not agent.copies.path(record.ref).is_file():
            yield f"{record.ref.name} is stored, and its file is gone"
        if record.verified and not all(path.exists() for path in documents(state, record.ref)):
            yield f"{record.ref.name} is verified, and its documents are gone"
    if said.get("done", 0) > LARGE and not (state / "models" / "large").exists():
        yield "the large file is gone"
    yield from left_over(agent, world)


def left_over(agent, world):
    """Files of releases that the ledger does not know and nobody wants."""
    facts = agent.ledger
    if facts.get("rejection", world.one.digest, object) and not facts.get("release", world.one.digest, object):
        paths = (agent.copies.path(world.one), *documents(agent.settings.state, world.one))
        yield from (f"{path.name} was deleted and is still there" for path in paths if path.exists())


def _outbox(agent, said, cuts):
    """Each event that was said to be told waits for the broker, once."""
    with closing(sqlite3.connect(agent.settings.state / "outbox.db")) as base:
        rows = base.execute("SELECT payload FROM outbox WHERE rank = ?", (Rank.EVENT,)).fetchall()
    numbers = [json.loads(payload)["number"] for (payload,) in rows]
    missing = set(range(1, said.get("event", 0) + 1)).difference(numbers)
    if len(missing) > cuts:
        yield f"events {sorted(missing)} are lost"
    if said.get("done", 0) < DAMAGE and len(set(numbers)) < len(numbers):
        yield f"events {sorted(numbers)} are told twice"
