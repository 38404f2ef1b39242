"""Two models on one device: all cores for each, a share, or cores of its own; and what a trial costs what serves.

1. Each model runs in a process of its own, as a seat does, one inference after another. Bursts of all ways are
   interleaved in an order that changes; a figure is the median of its bursts.
2. Other processes of the machine move FPS and p99 most; the CPU time of an inference moves least.
3. A candidate's priority is that of agent/runner/seats.py.

`--quick`: short bursts, RESULTS.md stays as it is.
"""

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from agent.backends import open_session
from agent.core.candidate import Backend, Candidate
from agent.core.release import Config
from benchmarks import _results
from models.folder import open_folder
from tests.backends import graphs

SMALL = "defect_detection_ssd_plates_20250628"
CORES = sorted(os.sched_getaffinity(0))
HALF = max(1, len(CORES) // 2)
LOW_PRIORITY = 10
WHAT = {"fps": "FPS", "p99_ms": "p99, ms", "cpu_ms": "CPU time of an inference, ms"}
SHARED = {  # what each of the two models gets
    "all": ({"threads": len(CORES)}, {"threads": len(CORES)}),
    "share": ({"threads": HALF}, {"threads": HALF}),
    "own": ({"threads": HALF, "cores": CORES[:HALF]}, {"threads": HALF, "cores": CORES[-HALF:]}),
}
BESIDE = {  # the candidate beside a model that serves on all cores
    "nobody": None,
    "equal": {"threads": len(CORES)},
    "low": {"threads": len(CORES), "nice": LOW_PRIORITY},
    "low_own": {"threads": HALF, "nice": LOW_PRIORITY, "cores": CORES[-HALF:]},
}

Burst = tuple[float, float, float]  # as WHAT


def main() -> None:
    """The program."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--quick", action="store_true", help="short bursts; RESULTS.md stays as it is")
    parser.add_argument("--seat", help="one model in this process, as JSON; a burst for each line of seconds")
    options = parser.parse_args()
    if options.seat is not None:
        serve(json.loads(options.seat))
        return
    rounds, seconds = (3, 0.4) if options.quick else (8, 1.0)
    load, found = os.getloadavg()[0], {}
    with tempfile.TemporaryDirectory() as folder:
        paths = str(open_folder().weights(SMALL)), str(graphs.detector(Path(folder) / "large.onnx", size=320))
        for backend in backends():
            for ways in (two_models(backend, paths), a_trial(backend, paths)):
                found |= {(backend, *names): row for names, row in medians(measured(ways, rounds, seconds)).items()}
    if not options.quick:
        rows = [(*names, *row.values()) for names, row in found.items()]
        _results.write_table("threads", ("backend", "way", "model", *WHAT.values()), rows, f"load {load:.1f} before")
    told = {".".join((*names, key)): value for names, row in found.items() for key, value in row.items()}
    _results.tell({"load_before": round(load, 1)} | told)


def medians(found: dict[tuple[str, str], list[Burst]]) -> dict[tuple[str, str], dict[str, float]]:
    """One figure of each kind for each model in each way."""
    return {
        names: {
            key: float(f"{statistics.median(kind):.3g}")
            for key, kind in zip(WHAT, zip(*bursts, strict=True), strict=True)
        }
        for names, bursts in found.items()
    }


def backends() -> list[Backend]:
    """Those that compute on the processor here."""
    return [Backend.CPU, *([Backend.OPENVINO] if find_spec("openvino") else [])]


def two_models(backend: Backend, paths: Sequence[str]) -> dict[str, dict[str, dict[str, Any]]]:
    """For each way, the two seats."""
    return {
        way: {
            name: {"path": path, "backend": backend, **given}
            for name, path, given in zip(("small", "large"), paths, both, strict=True)
        }
        for way, both in SHARED.items()
    }


def a_trial(backend: Backend, paths: Sequence[str]) -> dict[str, dict[str, dict[str, Any]]]:
    """For each way, the seat that serves and the candidate, where there is one."""
    serving = {"path": paths[0], "backend": backend, "threads": len(CORES)}
    return {
        way: {"serving": serving, **({"trial": {"path": paths[1], "backend": backend, **given}} if given else {})}
        for way, given in BESIDE.items()
    }


def measured(
    ways: dict[str, dict[str, dict[str, Any]]], rounds: int, seconds: float
) -> dict[tuple[str, str], list[Burst]]:
    """The bursts of each model in each way."""
    found: dict[tuple[str, str], list[Burst]] = {}
    with ExitStack() as stack:
        seats = {
            way: {name: stack.enter_context(seat(one)) for name, one in both.items()} for way, both in ways.items()
        }
        chance = random.Random(0)
        for _ in range(rounds):
            for way in chance.sample(list(seats), len(seats)):
                for one in seats[way].values():
                    one.stdin.write(f"{seconds}\n")
                    one.stdin.flush()
                for name, one in seats[way].items():
                    found.setdefault((way, name), []).append(tuple(json.loads(one.stdout.readline())))
    return found


@contextmanager
def seat(what: dict[str, Any]) -> Iterator[Any]:
    """A process with one model."""
    command = [sys.executable, "-m", "benchmarks.threads", "--seat", json.dumps(what)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as one:
        assert one.stdout is not None
        one.stdout.readline()
        yield one
        assert one.stdin is not None
        one.stdin.close()


def serve(what: dict[str, Any]) -> None:
    """Bursts until the input ends."""
    os.nice(what.get("nice", 0))
    os.sched_setaffinity(0, what.get("cores", CORES))
    candidate = Candidate(backend=Backend(what["backend"]), threads=what["threads"])
    session = open_session(what["path"], candidate, Config(input_size=(1, 1), confidence_threshold=0.0))
    port = session.get_inputs()[0]
    feeds = {port.name: np.random.default_rng(0).random(port.shape, np.float32)}
    session.run(None, feeds)
    print("ready", flush=True)
    for line in sys.stdin:
        print(json.dumps(burst(lambda: session.run(None, feeds), float(line))), flush=True)


def burst(run: Any, seconds: float) -> Burst:
    """Inferences a second, their p99 in ms, and CPU time of one in ms."""
    times: list[float] = []
    began, cpu = time.perf_counter(), time.process_time()
    while time.perf_counter() < began + seconds:
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    taken, spent = time.perf_counter() - began, time.process_time() - cpu
    return len(times) / taken, 1000 * float(np.percentile(times, 99)), 1000 * spent / len(times)


if __name__ == "__main__":
    main()
