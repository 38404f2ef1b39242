"""A folder tells of what came into it, once it is whole."""

import asyncio

from agent.adapters import folder_watch
from agent.adapters.folder_watch import arrivals
from fleet.stores import open_store
from tests.fakes.waiting import reached

LOOK_S = 0.02


async def test_a_publication_is_noticed(tmp_path):
    """Each new timestamp is told once, also in a folder that was not there yet; what is written beside it is not."""
    store, told = open_store(f"file://{tmp_path}"), []

    async def listen():
        async for path in arrivals(tmp_path / "metadata", "timestamp.json", LOOK_S):
            told.append(path.name)  # noqa: PERF401  it never ends

    task = asyncio.create_task(listen())
    for number in (1, 2, 3):
        store.write(f"metadata/{number}.snapshot.json", b"{}")
        store.write("metadata/timestamp.json", b" " * number)
        await reached(lambda wanted=number: told == ["timestamp.json"] * wanted)
    task.cancel()


async def test_a_copy_that_is_under_way_is_not_told(tmp_path, monkeypatch):
    """What another look finds changed is not whole yet."""
    copy, looked, growth = tmp_path / "site.zip", folder_watch._marks, [b"three", b"pieces", b"come"]

    def look(*place):
        if growth:
            with copy.open("ab") as file:
                file.write(growth.pop(0))
        return looked(*place)

    monkeypatch.setattr(folder_watch, "_marks", look)
    told = await anext(arrivals(tmp_path, "*.zip", 0))
    assert told.read_bytes() == b"threepiecescome"
