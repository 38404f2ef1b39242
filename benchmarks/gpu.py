"""The models of the tree, and detectors of YOLOv8n's size, on an NVIDIA GPU and on this machine's processor.

1. Each model on each candidate is a trial in a process of its own, as on a device: parity first, then speed, memory of
   process and GPU, load time.
2. An inference begins and ends with arrays in the host's memory: copies to and from the GPU are part of it.
3. The ratio's peer is ONNX Runtime on every core of the processor, measured in the same run.

Elsewhere it says what is missing, and is done. `--quick`: each model once, RESULTS.md stays as it is.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from time import perf_counter

from msgspec.structs import replace

from agent.backends import open_session
from agent.backends.golden import Sample, load_golden
from agent.backends.hardware import gpu, gpu_memory_mb
from agent.backends.trial import Loaded, run_trial
from agent.core.candidate import Backend, Candidate, Evidence, Failure, Found
from agent.core.documents import from_json, from_tree, from_yaml, to_json
from agent.core.errors import BackendError
from agent.core.release import Config, Metadata, Tolerance
from benchmarks import _results
from models.check import check_release
from models.folder import open_folder
from tests.backends import graphs
from tests.backends.conftest import trusted

CANDIDATES = (
    Candidate(backend=Backend.CPU, threads=len(os.sched_getaffinity(0))),
    Candidate(backend=Backend.CUDA),
    Candidate(backend=Backend.TENSORRT),
    Candidate(backend=Backend.TENSORRT, precision="fp16"),
)
DETECTORS = {"detector_8gflop": 1, "detector_8gflop_batch_8": 8}  # images at once
WIDE = Tolerance(atol=5e-3, rtol=1e-3)
RUNS = 100
WHAT = {
    "fps": "images a second",
    "times_cpu": "the same / the processor's",
    "p50_ms": "p50 of an inference, ms",
    "p99_ms": "p99, ms",
    "off": "furthest from the golden samples",
    "load_s": "load, s",
    "rss_mb": "process, MB",
    "gpu_mb": "GPU, MB",
}


def main() -> None:
    """The program."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--quick", action="store_true", help="RESULTS.md stays as it is")
    parser.add_argument("--one", nargs=2, metavar=("MODEL", "CANDIDATE"), help="one trial; prints its evidence")
    options = parser.parse_args()
    if options.one is not None:
        sys.stdout.buffer.write(to_json(tried(options.one[0], from_json(Candidate, options.one[1], "--one"))))
        return
    present = probed()
    if all(one.reason for one in present.values()):
        print("\n".join(f"{name}: {one.reason}" for name, one in present.items()))
        _results.tell({"gpu": "none"})
        return
    found = measured([one for one in CANDIDATES if one.backend is Backend.CPU or present[one.backend].present])
    if not options.quick:
        rows = [(*name, *(figures.get(key, "") for key in WHAT)) for name, figures in found.items()]
        _results.write_table("gpu", ("model", "candidate", *WHAT.values()), rows, gpu())
    told = {f"{model}.{on}.{key}": value for (model, on), row in found.items() for key, value in row.items()}
    _results.tell({"gpu": gpu() or "unnamed"} | told)


def probed() -> dict[Backend, Found]:
    """The GPU's backends on this machine, looked for as the runner does."""
    command = [sys.executable, "-m", "agent.runner.seat", "--probe", Backend.CUDA, Backend.TENSORRT]
    done = subprocess.run(command, check=True, capture_output=True)
    return {one.backend: one for one in from_tree(tuple[Found, ...], json.loads(done.stdout), "probe")}


def measured(candidates: list[Candidate]) -> dict[tuple[str, str], dict[str, float | str]]:
    """The figures of each model on each candidate; `off` says why where there are none."""
    found: dict[tuple[str, str], dict[str, float | str]] = {}
    for model in (*open_folder().releases(), *DETECTORS):
        cpu_fps = 0.0
        for candidate in candidates:
            evidence = tried_alone(model, candidate)
            if evidence.failure is not None or evidence.latency_ms is None:
                reason = evidence.failure.reason if evidence.failure is not None else "out of parity"
                found[model, str(candidate)] = {"off": reason[:200]}
                continue
            cpu_fps = cpu_fps or evidence.fps
            found[model, str(candidate)] = rounded(evidence, cpu_fps)
            print(f"{model} on {candidate}: {found[model, str(candidate)]}", flush=True)
    return found


def rounded(evidence: Evidence, cpu_fps: float) -> dict[str, float | str]:
    """The figures of one trial."""
    assert evidence.latency_ms is not None
    found: dict[str, float | str] = {
        "fps": round(evidence.fps, 1),
        "times_cpu": round(evidence.fps / cpu_fps, 2),
        "p50_ms": round(evidence.latency_ms.p50, 3),
        "p99_ms": round(evidence.latency_ms.p99, 3),
        "off": float(f"{max(one.max_abs for one in evidence.deviations):.2g}"),
        "load_s": round(evidence.load_s, 2),
        "rss_mb": round(evidence.memory_mb),
    }
    return found | ({"gpu_mb": round(float(taken))} if (taken := evidence.conditions.get("gpu_mb")) else {})


def tried_alone(model: str, candidate: Candidate) -> Evidence:
    """The evidence of a trial in a child."""
    command = [sys.executable, "-m", "benchmarks.gpu", "--one", model, to_json(candidate).decode()]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE)
    return from_json(Evidence, done.stdout, model)


def tried(model: str, candidate: Candidate) -> Evidence:
    """The evidence of a trial here; a candidate that cannot load leaves its reason."""
    with tempfile.TemporaryDirectory() as folder:
        path, metadata, config, golden = release(model, Path(folder) / "model.onnx")
        before_mb, began = gpu_memory_mb()[1], perf_counter()
        try:
            session = open_session(path, candidate, config)
        except BackendError as error:
            return Evidence(candidate=candidate, key="", failure=Failure.of(error))
        loaded = Loaded(candidate, session, metadata, config, golden, perf_counter() - began, before_mb)
        return run_trial(loaded, "", RUNS)


def release(model: str, path: Path) -> tuple[str, Metadata, Config, tuple[Sample, ...]]:
    """Path, metadata, config and golden samples of a release of the tree, or of a detector that is made here."""
    if model in DETECTORS:
        made, metadata, config, golden = trusted(graphs.detector(path, DETECTORS[model]), WIDE)
        return made, metadata, replace(config, batch_size=DETECTORS[model], warm_up=10), golden
    checked = check_release(None, model)
    path.write_bytes(checked.weights)
    metadata = from_json(Metadata, checked.metadata, model)
    return str(path), metadata, from_yaml(Config, checked.config, model), load_golden(checked.golden, metadata)


if __name__ == "__main__":
    main()
