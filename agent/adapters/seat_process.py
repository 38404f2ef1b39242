"""What seats say that serve nobody: which backends work on this device, and which walls hold.

1. No library is imported here. One child asks all backends of a library; where that crashes or hangs, each is asked
   in a child of its own: it hides no other.
2. Nothing of the folder that somebody stands in is run (-P), and a child that hangs is killed.
"""

import asyncio
import os
import signal
import sys
from contextlib import suppress
from itertools import chain, starmap
from typing import Any

from agent.core.candidate import Backend, Found
from agent.core.documents import from_json
from agent.core.errors import BackendError, InputError

LIBRARIES = ((Backend.OPENVINO,), tuple(one for one in Backend if one is not Backend.OPENVINO))  # ONNX Runtime's others
PROBE_S = 120.0  # a first start of OpenVINO or CUDA, beside the others, from a slow flash disk
LAST_WORDS_S = 1.0  # how long the end of a killed process may take to be told
ENVIRONMENT = {
    "ORT_DISABLE_TELEMETRY": "1",
    "MALLOC_MMAP_THRESHOLD_": "65536",  # what a session frees goes back to the system
    "OPENBLAS_NUM_THREADS": "1",  # numpy's threads would be there before the walls are; nothing here needs them
    "OMP_WAIT_POLICY": "PASSIVE",  # waiting threads do not spin beside a camera application
    "PYTHONFAULTHANDLER": "1",
    "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",  # a model's copies are large, and new pages are half of what they cost
}
OURS = ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID", "LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES")


async def find_backends() -> tuple[Found, ...]:
    """What this device can run."""
    found = {one.backend: one for some in await asyncio.gather(*starmap(find, LIBRARIES)) for one in some}
    return tuple(found[backend] for backend in Backend)


async def find(*backends: Backend) -> tuple[Found, ...]:
    """Whether this device can run some backends; no, with the reason, where the probe itself fails."""
    try:
        return from_json(tuple[Found, ...], await ask_seat("--probe", *backends), f"the probe of {' '.join(backends)}")
    except (BackendError, InputError) as error:
        if len(backends) > 1:
            return tuple(chain.from_iterable(await asyncio.gather(*map(find, backends))))
        reason = f"{error}; look at the runner's log and the driver's"
        return tuple(Found(backend=one, present=False, reason=reason) for one in backends)


async def ask_seat(*words: str) -> bytes:
    """What a short-lived seat says, as JSON.

    Raises:
        BackendError: it could not be started, crashed or hung.
    """
    what = f"seat {' '.join(words)}"
    try:
        child = await spawn_seat(*words, stdout=asyncio.subprocess.PIPE)
    except OSError as error:
        raise BackendError(f"{what}: no process for it ({error.strerror})") from error
    try:
        async with asyncio.timeout(PROBE_S):
            output, _ = await child.communicate()
    except TimeoutError:
        raise BackendError(f"{what} hung for {PROBE_S:g} s") from None
    finally:
        if child.returncode is None:
            child.kill()
            with suppress(TimeoutError):  # one that hangs in a driver may not even die
                async with asyncio.timeout(LAST_WORDS_S):
                    await child.communicate()
    if child.returncode:
        raise BackendError(f"{what} {how_it_ended(child.returncode)}")
    return output


async def spawn_seat(*words: str, **more: Any) -> asyncio.subprocess.Process:
    """A child of our environment, less what systemd means for us alone; raises OSError."""
    environment = {name: value for name, value in os.environ.items() if name not in OURS} | ENVIRONMENT
    command = (sys.executable, "-P", "-m", "agent.runner.seat", *words)
    return await asyncio.create_subprocess_exec(*command, env=environment, stdin=asyncio.subprocess.DEVNULL, **more)


def how_it_ended(status: int) -> str:
    """A process's exit status in words."""
    if status >= 0:
        return f"left with status {status}"
    return f"was killed by {signal.Signals(-status).name}"
