"""One download as the agent does it, in a process of its own: in a worker thread, beside an event loop.

    python -m benchmarks._download JSON      what `asked` says in transfer.py

Prints seconds (wall, cpu), the longest that the loop was held up (ms), and the most memory of the process (MB).
"""

import asyncio
import json
import os
import re
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

from agent.adapters import files
from agent.adapters.fetch import TargetInfo, fetch
from agent.adapters.store import StoreSettings, open_store

PROBE_S = 0.005
IDLE_S = 1.0
STATUS = Path("/proc/self/status")  # ru_maxrss counts the process that started this one, too


def child(asked: dict[str, str]) -> dict[str, float]:
    """Fetch as the agent does: in a thread, beside an event loop."""
    user, secret = asked["user"], asked["secret"]
    store = open_store(
        StoreSettings(url=asked["store"], endpoint=asked["endpoint"], access_key=user, secret_key=secret)
    )
    key, target, size = asked["key"], Path(asked["target"]), int(asked["size"])

    def verified() -> None:
        info = TargetInfo(path=key, key=key, length=size, sha256=asked["digest"], custom={})
        fetch(store, info, target, on_progress=lambda _: None, should_stop=lambda: False)

    def plain() -> None:
        with store.stream(key) as download, files.writer(target) as file:
            for piece in download.pieces:
                file.write(piece)
            os.fsync(file.fileno())

    work = {"yes": verified, "": plain, "idle": lambda: time.sleep(IDLE_S)}[asked["verify"]]
    told = asyncio.run(beside(work))
    peak = re.search(r"VmHWM:\s*(\d+) kB", STATUS.read_text(encoding="ascii"))
    return told | {"rss": int(peak[1]) / 1000 if peak else 0.0}


async def beside(work: Callable[[], None]) -> dict[str, float]:
    """Seconds of the work in a thread, and the longest that the loop was late meanwhile, in ms."""
    done, late = threading.Event(), 0.0

    async def probe() -> None:
        nonlocal late
        while not done.is_set():
            asleep = time.monotonic()
            await asyncio.sleep(PROBE_S)
            late = max(late, time.monotonic() - asleep - PROBE_S)

    probing = asyncio.create_task(probe())
    began, began_cpu = time.monotonic(), time.process_time()
    await asyncio.to_thread(work)
    wall, cpu = time.monotonic() - began, time.process_time() - began_cpu
    done.set()
    await probing
    return {"wall": wall, "cpu": cpu, "stall": late * 1000}


if __name__ == "__main__":
    print(json.dumps(child(json.loads(sys.argv[1]))))
