"""Swaps under load in figures: a thousand new seats, eight cameras, and what they notice of it.

1. Orders go straight to a runner; each swap hands the release over anew, starts a seat, proves it, promotes it, and
   ends the old one. A camera asks 30 times a second over the door's unix socket, from another process.
2. A swap's peer is the same camera in the pauses between the swaps of the same run.
3. After the swaps, candidates of another slot are tried beside the same cameras: loaded, measured, ended.
4. A failed request is counted, and so is an answer of another version than one of the two that swap.
5. MLServer, where it installs, loads its model anew ten times under the same load, as it comes: with one worker.

`--quick`: 20 swaps, nothing is written. `--cuda`: 60 swaps between seats on an NVIDIA GPU, without the peer.
"""

import argparse
import asyncio
import itertools
import multiprocessing
import os
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import psutil
from tritonclient.utils import InferenceServerException

from agent.backends.hardware import gpu, gpu_memory_mb
from agent.backends.session import Array
from agent.core.candidate import Candidate
from agent.core.messages import Done, Loaded, Look, Trial, Tried, Unload
from agent.core.messages import Load as LoadSeat
from benchmarks import _mlserver, _results
from benchmarks._releases import CUDA, TINY, noise, opened, release_of
from tests.runner.conftest import CPU, Agent, Camera, Release, Running, binary, http, runner_in

CLAIMS = {
    "swaps": "swaps, each a new process",
    "requests": "requests of eight cameras meanwhile",
    "failed": "of these failed",
    "p99_ratio": "p99 latency during swaps / between them",
    "p99_swap_ms": "p99 latency during swaps, ms",
    "p99_quiet_ms": "p99 latency between swaps, ms",
    "trial_p99_ratio": "p99 latency while a candidate of another slot is loaded and tried / without swap or trial",
    "longest_gap_ms": "longest time between two answers of one camera of 30 frames per second, ms",
    "swap_s": "one swap, from the release's first byte to the old seat's end, s (median)",
    "rss_growth": "growth of the resident memory of runner and seat from the first swaps to the last (medians of 50)",
    "fd_growth": "growth of the runner's descriptors in the same time",
    "gpu_growth_mb": "growth of the GPU's memory in use in the same time, MB",
    "mlserver_failed": "MLServer, its model loaded anew ten times: requests that failed",
    "mlserver_requests": "of so many",
    "load_before": "load average of the machine before all this began",
}
SLOT = "defect_detection"
CAMERAS = 8
FRAME_S = 1 / 30
PAUSE_S = 0.5  # between two swaps
WARM_UP = 6  # swaps until every buffer has had its size once
SEVERAL = 50  # swaps at each end of a growth
TRIALS, TRIAL_RUNS = 20, 300
OTHER_SLOT = "another"
PEER_LOADS = 10

Spans = list[tuple[float, float]]
Size = tuple[float, int, float]  # resident MB, descriptors, MB in use on the GPU
Times = list[tuple[float, float, bool]]  # began, ended, and whether it was answered well


@dataclass
class Load:
    """What the cameras saw."""

    cameras: list[Times]

    def all(self) -> Iterator[tuple[float, float, bool]]:
        return itertools.chain.from_iterable(self.cameras)

    def latencies(self, *kinds: Spans) -> list[Array]:
        """Milliseconds of the requests that touched a span of each kind, and of those that touched none."""
        times = np.array([(began, ended) for began, ended, _ in self.all()])
        ms, quiet, found = 1000 * (times[:, 1] - times[:, 0]), np.ones(len(times), bool), []
        for spans in kinds:
            touched = np.zeros(len(times), bool)
            for begin, end in spans:
                touched |= (times[:, 0] < end) & (times[:, 1] > begin)
            found.append(ms[touched])
            quiet &= ~touched
        return [*found, ms[quiet]]

    @property
    def longest_gap_ms(self) -> float:
        ends = [[ended for _, ended, _ in camera] for camera in self.cameras]
        return 1000 * max(later - earlier for camera in ends for earlier, later in itertools.pairwise(camera))


def main() -> None:
    """Measure, print, and on a full run write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--quick", action="store_true", help="20 swaps; RESULTS.md stays as it is")
    parser.add_argument("--cuda", action="store_true", help="60 swaps between seats on an NVIDIA GPU; no peer")
    options = parser.parse_args()
    figures: dict[str, float | int | str | None] = {"load_before": round(os.getloadavg()[0], 1)}
    swaps = 20 if options.quick else 60 if options.cuda else 1000
    with tempfile.TemporaryDirectory(prefix="edge-") as folder:
        figures |= asyncio.run(ours(Path(folder), swaps, CUDA if options.cuda else CPU))
        figures |= {} if options.cuda else peers(Path(folder))
    if not options.quick:
        name, note = ("swap on a GPU", gpu()) if options.cuda else ("swap", "")
        claims = {key: CLAIMS[key] for key in CLAIMS if key in figures}  # each has what the other cannot measure
        _results.write(name, claims, figures, note)
    _results.tell(figures)


async def ours(folder: Path, swaps: int, candidate: Candidate) -> dict[str, float | int]:
    """The figures of a runner of ours."""
    releases = [release_of(TINY, day, candidate) for day in (1, 2)]
    async with runner_in(folder) as running:
        agent = await running.agent()
        await agent.serve(SLOT, releases[1])
        spans, sizes, seats = [], [], set()
        with cameras_at(running.door) as cameras:
            for number in range(swaps):
                await asyncio.sleep(PAUSE_S)
                spans.append(await swap(agent, releases[number % 2], releases[(number + 1) % 2]))
                sizes.append(await size_of(agent, running))
                seats.add(agent.client.facts.slots[SLOT].seats[0].pid)
            trials = [await trial(agent, releases[number % 2]) for number in range(TRIALS)]
            load = cameras()
        await agent.ask(Unload(slot=SLOT, place=releases[(swaps - 1) % 2].place))
    assert len(seats) == swaps
    return figures_of(load, spans, trials, sizes)


def figures_of(load: Load, spans: Spans, trials: Spans, sizes: list[Size]) -> dict[str, float | int]:
    """What it comes to. One seat differs from the next by some MB: a growth is that of the median of several."""
    during, tried, quiet = (float(np.percentile(one, 99)) for one in load.latencies(spans, trials))
    several = min(SEVERAL, (len(sizes) - WARM_UP) // 2)
    first, last = (np.median(ones, axis=0) for ones in (sizes[WARM_UP:][:several], sizes[-several:]))
    return {
        "swaps": len(spans),
        "requests": sum(1 for _ in load.all()),
        "failed": sum(not good for _, _, good in load.all()),
        "p99_ratio": round(during / quiet, 2),
        "trial_p99_ratio": round(tried / quiet, 2),
        "p99_swap_ms": round(during, 1),
        "p99_quiet_ms": round(quiet, 1),
        "longest_gap_ms": round(load.longest_gap_ms, 1),
        "swap_s": round(float(np.median([end - begin for begin, end in spans])), 2),
        "rss_growth": round(float(last[0] / first[0]) - 1, 4),
        "fd_growth": round(float(last[1] / first[1]) - 1, 4),
    } | ({"gpu_growth_mb": round(float(last[2] - first[2]), 1)} if first[2] else {})


async def swap(agent: Agent, new: Release, old: Release) -> tuple[float, float]:
    """When one swap began and ended."""
    began = time.monotonic()
    await agent.serve(SLOT, new, fallback=old)
    assert await agent.ask(Unload(slot=SLOT, place=old.place)) == Done()
    return began, time.monotonic()


async def trial(agent: Agent, one: Release) -> tuple[float, float]:
    """When one trial in another slot began and ended; a pause comes before it."""
    await asyncio.sleep(PAUSE_S)
    began = time.monotonic()
    assert await agent.hand_over(one) == Done()
    assert isinstance(await agent.ask(LoadSeat(slot=OTHER_SLOT, place=one.place)), Loaded)
    tried = await agent.ask(Trial(slot=OTHER_SLOT, place=one.place, key="", runs=TRIAL_RUNS))
    assert isinstance(tried, Tried), tried
    assert await agent.ask(Unload(slot=OTHER_SLOT, place=one.place)) == Done()
    return began, time.monotonic()


async def size_of(agent: Agent, running: Running) -> Size:
    """Resident MB of runner and seat, the runner's descriptors, and what is in use on the GPU, if there is one."""
    facts = await agent.ask(Look())
    assert running.process is not None
    runner = psutil.Process(running.process.pid)
    return runner.memory_info().rss / 1e6 + facts.slots[SLOT].seats[0].rss_mb, runner.num_fds(), gpu_memory_mb()[1]


@contextmanager
def cameras_at(door: Path) -> Iterator[Callable[[], Load]]:
    """Cameras in a process of their own; what is given ends them, and is what they saw."""
    ours, theirs = multiprocessing.get_context("spawn").Pipe()
    process = multiprocessing.get_context("spawn").Process(target=film, args=(door, theirs))
    process.start()
    ours.recv()  # each has been answered once

    def end() -> Load:
        ours.send("end")
        return Load(ours.recv())

    try:
        yield end
    finally:
        process.kill()
        process.join()


def film(door: Path, line: Connection) -> None:
    """The cameras' process."""
    line.send(asyncio.run(filmed(door, line)))


async def filmed(door: Path, line: Connection) -> list[Times]:
    """What each camera saw until somebody says that it is enough."""
    [(name, picture)] = noise(opened(TINY)).items()
    body, headers = binary(picture, name=name)
    frame = http("POST", f"/v2/models/{SLOT}/infer", body, **headers)
    ended, begun = asyncio.Event(), asyncio.Barrier(CAMERAS + 1)

    async def watch(offset: int) -> Times:
        camera, seen = Camera(*await asyncio.open_unix_connection(str(door))), []
        await ask(camera, frame)
        await begun.wait()
        await asyncio.sleep(offset * FRAME_S / CAMERAS)
        while not ended.is_set():
            seen.append(await ask(camera, frame))
            await asyncio.sleep(max(0.0, seen[-1][0] + FRAME_S - time.monotonic()))
        return seen

    async with asyncio.TaskGroup() as tasks:
        cameras = [tasks.create_task(watch(number)) for number in range(CAMERAS)]
        await begun.wait()
        line.send("begun")
        await asyncio.to_thread(line.recv)
        ended.set()
    return [camera.result() for camera in cameras]


async def ask(camera: Camera, frame: bytes) -> tuple[float, float, bool]:
    """One request."""
    began = time.monotonic()
    camera.writer.write(frame)
    answer = await camera.answer()
    ended = time.monotonic()
    return began, ended, answer.status == 200 and answer.json["model_version"] in {"20250701", "20250702"}


def peers(folder: Path) -> dict[str, int | str | None]:
    """How many requests MLServer fails while its model is loaded anew; null and the reason where it is not here."""
    if reason := _mlserver.why_not():
        return {"mlserver_failed": None, "mlserver_requests": reason}
    with _mlserver.started(TINY, folder / "mlserver", 1, workers=1) as address:
        ended = threading.Event()
        with ThreadPoolExecutor(CAMERAS) as threads:
            cameras = [threads.submit(press, address, ended) for _ in range(CAMERAS)]
            with _mlserver.connected(address) as client:
                for _ in range(PEER_LOADS):
                    ended.wait(PAUSE_S)
                    client.load_model(_mlserver.NAME)
                ended.wait(PAUSE_S)
            ended.set()
    asked = [good for camera in cameras for good in camera.result()]
    return {"mlserver_failed": asked.count(False), "mlserver_requests": len(asked)}


def press(address: str, ended: threading.Event) -> list[bool]:
    """A camera of MLServer's: whether each of its requests was answered."""
    seen = []
    with _mlserver.connected(address) as client:
        send = _mlserver.asking(client, noise(opened(TINY)))
        while not ended.wait(FRAME_S):
            try:
                send()
            except InferenceServerException:
                seen.append(False)
            else:
                seen.append(True)
    return seen


if __name__ == "__main__":
    main()
