"""What a camera application gets by each way in, beside a direct ONNX Runtime loop on the same models in the same run.

1. One client asks for one frame after the other; a stream has the next one under way meanwhile. Every way has a short
   turn in each of many rounds: a neighbour that is busy hits all of them. A ratio is of medians of all frames.
2. The direct loop is what an application would write itself: a session in its own process, of as many threads as the
   seat has, and each frame copied once, as a camera brings it. It is there twice, for where its memory happens to lie
   counts, too: the ratios are to both together, and how far the second is from the first tells what a ratio can tell.
3. What NVIDIA's client and the loopback leave is told beside: the direct loop, and behind each of its frames the same
   request to a server that computes nothing. No server can give more.
4. Three models: one of YOLOv8n's size and a small detector, RetinaFace ($EDGE_ACCEPTANCE_MODELS, else graphs of their
   sizes made here), and the tiny one of this repository, beside which each microsecond is seen. `best_backend` and
   `benchmark_app` judge the trial: what it chose, and the speed it told.

`--quick`: short turns, nothing is written. MLServer is measured where it installs into .cache/mlserver.
"""

import argparse
import asyncio
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import tritonclient.grpc
import tritonclient.http
from tritonclient.utils import shared_memory

from agent.backends.hardware import gpu
from agent.backends.session import Array
from agent.core.candidate import Backend, Candidate, Evidence
from agent.core.messages import Load, Place, Trial, Tried, Unload
from agent.core.plan import TIE
from benchmarks import _mlserver, _null_server, _results
from benchmarks._releases import CUDA, TINY, noise, opened, release_of, small, yolo
from client import Client
from tests.fakes.ports import free_ports
from tests.runner.conftest import Agent, Release, Running, runner_in

MODELS = {"small": "small detector", "yolo": "YOLOv8n-sized", "tiny": "tiny detector of this repository"}
WAYS = {
    "direct": "direct loop",
    "again": "a second direct loop, which is the same / the first",
    "client": "our client",
    "stream": "our client's stream, two frames under way",
    "shm": "shared memory over HTTP",
    "shm_limit": "the direct loop, then shared memory over HTTP to a server that computes nothing",
    "grpc_shm": "shared memory over gRPC",
    "http": "binary tensors over HTTP",
    "http_limit": "the direct loop, then binary tensors over HTTP to a server that computes nothing",
    "grpc": "binary tensors over gRPC",
    "mlserver": "MLServer, the same runtime, over gRPC",
}
COLUMNS = ("model", "way in", "frames per second / direct loop's", "p50, ms", "p99, ms")
CHOICE = {
    "benchmark_app_ratio": "frames per second that a trial tells / OpenVINO's benchmark_app",
    "best_backend_ratio": "the candidate that a device would choose / the fastest measured by hand",
}
THREADS = 1  # of each seat and of the direct loop: the client needs a core, and there may be two
CANDIDATES = tuple(Candidate(backend=one, threads=THREADS) for one in (Backend.OPENVINO, Backend.CPU))  # as tried
CPU = CANDIDATES[-1]
Feeds = Mapping[str, Array]
Ask = Callable[[], object]


@dataclass(frozen=True)
class Model:
    """One model that is served and asked."""

    slot: str
    path: Path
    release: Release
    feeds: Feeds


@dataclass(frozen=True)
class Sizes:
    """How long all of it takes."""

    rounds: int
    turn_s: float
    app_s: int
    trial_runs: int
    candidate: Candidate = CPU


QUICK, FULL = Sizes(4, 0.4, 2, 10), Sizes(32, 1.0, 10, 60)


def main() -> None:
    """Measure, print, and on a full run write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--quick", action="store_true", help="short turns; RESULTS.md stays as it is")
    parser.add_argument("--cuda", action="store_true", help="seats and direct loop on an NVIDIA GPU; the ways in alone")
    options = parser.parse_args()
    sizes = replace(QUICK if options.quick else FULL, candidate=CUDA if options.cuda else CPU)
    with tempfile.TemporaryDirectory() as folder:
        figures = asyncio.run(measured(Path(folder), sizes))
    if not options.quick:
        program, note = ("serving on a GPU", gpu()) if options.cuda else ("serving", "")
        _results.write_table(program, COLUMNS, rows(figures), note)
    _results.tell(figures)


def rows(figures: Mapping[str, float | str]) -> Iterator[tuple[float | str, ...]]:
    """The figures as a table."""
    for model, name in MODELS.items():
        for way, told in WAYS.items():
            if f"{model}_{way}_p50_ms" in figures:
                ratio = 1.0 if way == "direct" else figures.get(ratio_key(model, way), "")
                yield name, told, ratio, figures[f"{model}_{way}_p50_ms"], figures[f"{model}_{way}_p99_ms"]
    for key, told in CHOICE.items():
        if key in figures:
            yield MODELS["yolo"], told, figures[key], "", ""


def ratio_key(model: str, way: str) -> str:
    """Under which name a ratio is told."""
    return f"mlserver_{model}_ratio" if way == "mlserver" else f"{model}_{way}_ratio"


async def measured(folder: Path, sizes: Sizes) -> dict[str, float | str]:
    """All figures, with a runner that begins and ends here."""
    http, grpc = free_ports(2)
    paths = {"small": small(folder), "yolo": yolo(folder), "tiny": TINY}
    models = [model(slot, path, day, sizes.candidate) for day, (slot, path) in enumerate(paths.items(), 1)]
    async with runner_in(folder, f"127.0.0.1:{http}", "--grpc", f"127.0.0.1:{grpc}") as running:
        agent = await running.agent()
        for one in models:
            await agent.serve(one.slot, one.release)
        figures: dict[str, float | str] = {}
        for one in models:
            figures |= await asyncio.to_thread(shares, one, running, http, grpc, folder, sizes)
        for one in models:
            await agent.ask(Unload(slot=one.slot, place=one.release.place))
        return figures | ({} if sizes.candidate == CUDA else await choice(agent, models[1], folder, sizes))


def model(slot: str, path: Path, day: int, candidate: Candidate) -> Model:
    """A model for a slot, with an input of noise."""
    with closing(opened(path, CPU)) as session:
        return Model(slot, path, release_of(path, day, candidate), noise(session, 1))


def shares(one: Model, running: Running, http: int, grpc: int, folder: Path, sizes: Sizes) -> dict[str, float | str]:
    """The ratio of each way in, and its latencies."""
    with ExitStack() as stack:
        ways = {way: direct(one, sizes.candidate, stack) for way in ("direct", "again")}
        ways |= by_client(one, running, stack)
        ways |= by_triton(one, f"127.0.0.1:{http}", f"127.0.0.1:{grpc}", stack)
        ways |= {way: one_after_the_other(ways["direct"], ways[way]) for way in ways if way.endswith("_limit")}
        peer = None
        if sizes.candidate == CPU:
            peer = stack.enter_context(_mlserver.serving(one.path, one.feeds, folder / f"mlserver-{one.slot}"))
        if peer is not None:
            ways["mlserver"] = peer
        times = in_turn(ways, sizes)
    direct_s = statistics.median(times["direct"] + times["again"])
    found: dict[str, float | str] = {f"{one.slot}_direct_fps": round(1 / direct_s, 1)}
    for way, taken in times.items():
        base_s = statistics.median(times["direct"]) if way == "again" else direct_s
        p50, p99 = np.percentile(1000 * np.array(taken), (50, 99))
        found[ratio_key(one.slot, way)] = round(1000 * base_s / float(p50), 3)
        found |= {f"{one.slot}_{way}_p50_ms": round(float(p50), 2), f"{one.slot}_{way}_p99_ms": round(float(p99), 2)}
    del found[f"{one.slot}_direct_ratio"]
    return found | ({} if peer or sizes.candidate == CUDA else {f"mlserver_{one.slot}_ratio": _mlserver.why_not()})


def in_turn(ways: Mapping[str, Ask], sizes: Sizes) -> dict[str, list[float]]:
    """Seconds of each request, by way; each way is warm before the first."""
    for ask in ways.values():
        ask()
    times: dict[str, list[float]] = {way: [] for way in ways}
    for _ in range(sizes.rounds):
        for way, ask in ways.items():
            times[way] += turn(ask, sizes.turn_s)
    return times


def turn(ask: Ask, seconds: float) -> list[float]:
    """Seconds of each request of one turn."""
    ask()
    end, taken = time.perf_counter() + seconds, []
    while (began := time.perf_counter()) < end:
        ask()
        taken.append(time.perf_counter() - began)
    return taken


def direct(one: Model, candidate: Candidate, stack: ExitStack) -> Ask:
    """The application's own session."""
    session = opened(one.path, candidate)
    stack.callback(session.close)
    frames = {name: np.empty_like(array) for name, array in one.feeds.items()}

    def ask() -> None:
        for name, array in one.feeds.items():
            np.copyto(frames[name], array)
        session.run(None, frames)

    return ask


def by_client(one: Model, running: Running, stack: ExitStack) -> dict[str, Ask]:
    """Our client, through memory files."""
    client = stack.enter_context(Client(f"unix:{running.door}"))
    stream = stack.enter_context(closing(client.stream(one.slot, itertools.repeat(one.feeds))))
    return {"client": lambda: client.infer(one.slot, one.feeds), "stream": lambda: next(stream)}


def by_triton(one: Model, http_at: str, grpc_at: str, stack: ExitStack) -> dict[str, Ask]:
    """NVIDIA's client, over HTTP and gRPC, with and without shared memory."""
    outputs = output_sizes(one)
    null_at, bare_at = (
        stack.enter_context(_null_server.started(port, answer))
        for port, answer in zip(free_ports(2), (outputs, {}), strict=True)
    )
    http, grpc = tritonclient.http, tritonclient.grpc
    return {
        name: way(library, stack.enter_context(closing(library.InferenceServerClient(at))), one, outputs, stack)
        for name, way, library, at in (
            ("http", plain, http, http_at),
            ("http_limit", plain, http, null_at),
            ("shm", shared, http, http_at),
            ("shm_limit", shared, http, bare_at),
            ("grpc", plain, grpc, grpc_at),
            ("grpc_shm", shared, grpc, grpc_at),
        )
    }


def plain(library: Any, client: Any, one: Model, outputs: Mapping[str, int], _: ExitStack) -> Ask:
    """Tensors as bytes in the request and in the answer."""
    inputs = [library.InferInput(key, array.shape, "FP32") for key, array in one.feeds.items()]
    asked = [library.InferRequestedOutput(key) for key in outputs]

    def ask() -> None:
        for tensor, array in zip(inputs, one.feeds.values(), strict=True):
            tensor.set_data_from_numpy(array)
        answer = client.infer(one.slot, inputs, outputs=asked)
        answer.as_numpy(asked[0].name())

    return ask


def shared(library: Any, client: Any, one: Model, outputs: Mapping[str, int], stack: ExitStack) -> Ask:
    """Tensors in a region of shared memory, which this side writes and reads."""
    sizes = {**{key: array.nbytes for key, array in one.feeds.items()}, **outputs}
    name = f"bench_{one.slot}_{id(client)}"
    region = shared_memory.create_shared_memory_region(name, f"/{name}", sum(sizes.values()))
    stack.callback(shared_memory.destroy_shared_memory_region, region)
    client.register_system_shared_memory(name, f"/{name}", sum(sizes.values()))
    stack.callback(client.unregister_system_shared_memory, name)
    places, end = {}, 0
    for key, size in sizes.items():
        places[key], end = end, end + size
    inputs = [library.InferInput(key, array.shape, "FP32") for key, array in one.feeds.items()]
    asked = [library.InferRequestedOutput(key) for key in outputs]
    for tensor in (*inputs, *asked):
        tensor.set_shared_memory(name, sizes[tensor.name()], places[tensor.name()])

    def ask() -> None:
        for key, array in one.feeds.items():
            shared_memory.set_shared_memory_region(region, [array], places[key])
        client.infer(one.slot, inputs, outputs=asked)
        for key, size in outputs.items():
            shared_memory.get_contents_as_numpy(region, np.float32, (size // 4,), places[key]).copy()

    return ask


def one_after_the_other(first: Ask, second: Ask) -> Ask:
    """Both, as one request."""

    def ask() -> None:
        first()
        second()

    return ask


def output_sizes(one: Model) -> dict[str, int]:
    """Bytes of each output."""
    with closing(opened(one.path, CPU)) as session:
        names = [port.name for port in session.get_outputs()]
        return {name: array.nbytes for name, array in zip(names, session.run(names, one.feeds), strict=True)}


async def choice(agent: Agent, one: Model, folder: Path, sizes: Sizes) -> dict[str, float | str]:
    """What a device chose against what a loop measures by hand, and what a trial told against benchmark_app.

    As on a device: the first candidate that passes serves, and the next one is compared with it in turns.
    """
    first, second = CANDIDATES
    alone = await tried(agent, one, first, sizes)
    served = replace(one.release, candidate=first)
    await agent.serve(one.slot, served)
    beside = await tried(agent, one, second, sizes, one.slot)
    await agent.ask(Unload(slot=one.slot, place=served.place))
    app = await asyncio.to_thread(benchmark_app, one.path, folder, sizes)
    again = await tried(agent, one, first, sizes)
    assert parity(alone.evidence), alone
    assert beside.beside is not None, beside
    speeds = {first: 1.0} | ({second: beside.beside.ratio} if parity(beside.evidence) else {})
    chosen = next(one for one, speed in speeds.items() if speed >= (1 - TIE) * max(speeds.values()))
    seconds = await asyncio.to_thread(hand_made, one, sizes)
    by_hand = [min(1.0, seconds[other] / seconds[chosen]) for other in speeds if other != chosen]
    told = statistics.mean((alone.evidence.fps, again.evidence.fps))
    return {
        "benchmark_app_ratio": round(told / app, 3),
        "best_backend_ratio": round(min(by_hand, default=1.0), 3),
        "chosen": str(chosen),
    }


async def tried(agent: Agent, one: Model, candidate: Candidate, sizes: Sizes, slot: str = "trial") -> Tried:
    """What a trial in a seat of its own, which then leaves, told."""
    place = Place(ref=one.release.ref, candidate=candidate)
    await agent.hand_over(one.release)
    await agent.ask(Load(slot=slot, place=place))
    answer = await agent.ask(Trial(slot=slot, place=place, key="bench", runs=sizes.trial_runs))
    assert isinstance(answer, Tried), answer
    await agent.ask(Unload(slot=slot, place=place))
    return answer


def parity(evidence: Evidence) -> bool:
    """Whether nothing failed and every output is where its golden sample says."""
    return evidence.failure is None and all(one.within for one in evidence.deviations)


def hand_made(one: Model, sizes: Sizes) -> dict[Candidate, float]:
    """Seconds of a frame of each candidate in a plain loop."""
    with ExitStack() as stack:
        ways: dict[str, Ask] = {}
        for candidate in CANDIDATES:
            session = opened(one.path, candidate)
            stack.callback(session.close)
            ways[str(candidate)] = lambda session=session: session.run(None, one.feeds)  # type: ignore[misc]
        times = in_turn(ways, sizes)
    return {one: statistics.median(times[str(one)]) for one in CANDIDATES}


def benchmark_app(path: Path, folder: Path, sizes: Sizes) -> float:
    """Frames per second of OpenVINO's own program, one request at a time."""
    options = ["-d", "CPU", "-api", "sync", "-hint", "none", "-nstreams", "1", "-nthreads", str(THREADS)]
    options += ["-infer_precision", "f32", "-t", str(sizes.app_s)]
    options += ["-report_type", "no_counters", "-json_stats", "-report_folder", str(folder)]
    program = Path(sys.executable).with_name("benchmark_app")
    said = subprocess.run([str(program), "-m", str(path), *options], check=True, capture_output=True, text=True)
    report = folder / "benchmark_report.json"
    if report.exists():
        return float(json.loads(report.read_text(encoding="utf-8"))["execution_results"]["throughput"])
    line = next(line for line in said.stdout.splitlines() if "Throughput:" in line)
    return float(line.split("Throughput:")[1].split()[0])


if __name__ == "__main__":
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"
    main()
