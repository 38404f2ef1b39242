"""A folder says when something came into it: nobody waits for the next poll.

It is looked at. That costs a call of the system, and works on a network share, and in a folder that is made or mounted
later. A file counts when two looks find it the same: whoever writes it has ended.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path

Mark = tuple[Path, int, int]  # a file, when it was written, and its size


async def arrivals(folder: Path, pattern: str, look_s: float) -> AsyncIterator[Path]:
    """The files with such a name, whole: those that are there, and each that comes or changes."""
    before, told = set[Mark](), set[Mark]()
    while True:
        now = await asyncio.to_thread(_marks, folder, pattern)
        for mark in sorted((now & before) - told):
            yield mark[0]
        before, told = now, now & (before | told)
        await asyncio.sleep(look_s)


def _marks(folder: Path, pattern: str) -> set[Mark]:
    found = set()
    with suppress(OSError):  # it goes, or the disk refuses: the next look will tell
        for path in folder.glob(pattern):
            status = path.lstat()
            found.add((path, status.st_mtime_ns, status.st_size))
    return found
