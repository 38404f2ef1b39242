"""From a sealed file to the first inference, in time and memory, beside ONNX Runtime on the plain file.

1. Ours is the product's way: the agent opens the release into memory files, the runner seals and hashes them, a new
   seat loads the model and proves it with its golden sample. Agent and runner run already, as on a device.
2. The peer is a fresh Python that imports ONNX Runtime, loads the file and runs it once. Both files are in the page
   cache, and both run compiled code, as pip installs it; they take turns, and the median of the pairs' ratios counts.
3. Memory files are counted once, beside what the processes hold of their own. Memory and stalls are looked for in
   rounds of their own: a hundred looks a second take agent and runner a tenth of a core.
4. When either begins to be timed the machine has its memory at hand; see _warm.py. Memory and stalls come before that:
   while a host takes so much back, everything stands still for tenths of a second.

`--quick`: without the largest model, nothing is written.
"""

import argparse
import asyncio
import compileall
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import onnx
from cryptography.cobblestone import Cobblestone256Encryptor
from onnx import TensorProto, helper

from agent.core.documents import to_json
from agent.trust.sealing import seal
from benchmarks import _results
from benchmarks._load_agent import ALONE, THREADS
from benchmarks._releases import ROOT, release_of
from benchmarks._warm import warm
from fleet.publish import describe
from tests.runner.conftest import Running, runner_in

SIZES_MB = (13, 250, 960)
CLAIMS = {
    "time_ratio": "from sealed file to first inference / plain file in a fresh process; the worst of the sizes",
    "peak_ratio": "most resident memory of the seat / of the plain process; the worst",
    "system_peak_ratio": "seat, memory files and agent together / the plain process; the worst",
    "max_stall_ms": "the longest that the loop of agent or runner was late, ms",
    **{f"time_ratio_{size}": f"time, {size} MB" for size in SIZES_MB},
    **{f"time_s_{size}": f"the same in s, {size} MB" for size in SIZES_MB},
    **{f"peak_ratio_{size}": f"the seat's memory, {size} MB" for size in SIZES_MB},
    **{f"system_peak_ratio_{size}": f"all memory, {size} MB" for size in SIZES_MB},
    "agent_mb": "the most that the agent held of its own, MB; its limit is 512",
    "load_before": "load average of the machine before all this began",
}
TIMED, WATCHED = 7, 3  # rounds
PLAIN = """
import sys, numpy, onnxruntime as ort
options = ort.SessionOptions()
options.intra_op_num_threads, options.inter_op_num_threads = int(sys.argv[2]), 1
options.add_session_config_entry("session.intra_op.allow_spinning", "0")
session = ort.InferenceSession(sys.argv[1], options, providers=["CPUExecutionProvider"])
feeds = {one.name: numpy.ones(one.shape, numpy.float32) for one in session.get_inputs()}
session.run(None, feeds)
print([line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")][0], flush=True)
sys.stdin.read()
"""

Figures = dict[str, float | int | str | None]


def main() -> None:
    """Measure, print, and on a full run write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--quick", action="store_true", help="without the largest model; RESULTS.md stays as it is")
    quick = parser.parse_args().quick
    compileall.compile_dir(ROOT / "agent", quiet=1)
    figures: Figures = {"load_before": round(os.getloadavg()[0], 1)}
    with tempfile.TemporaryDirectory(prefix="edge-") as folder:
        figures |= asyncio.run(measured(Path(folder), SIZES_MB[:2] if quick else SIZES_MB))
    if not quick:
        _results.write("load", CLAIMS, figures)
    _results.tell(figures)


async def measured(folder: Path, sizes: tuple[int, ...]) -> Figures:
    """The figures of all sizes."""
    figures: Figures = {}
    stalls, agents = [], []
    for size in sizes:
        path = draw(folder / f"{size}.onnx", size)
        call = sealed(path)
        os.sync()  # else the one or the other shares the disk with what was just written
        watched = [await pair(folder, path, call) for _ in range(WATCHED)]
        timed = [await pair(folder, path, [*call, ALONE]) for _ in range(TIMED)]
        path.unlink()
        for name, pairs, mine, other in (
            ("time", timed, "seconds", 0), ("peak", watched, "peak_mb", 1), ("system_peak", watched, "system_mb", 1)
        ):  # fmt: skip
            ratio = statistics.median(our[mine] / their[other] for our, their in pairs)
            figures[f"{name}_ratio_{size}"] = round(ratio, 2)
        figures[f"time_s_{size}"] = round(statistics.median(our["seconds"] for our, _ in timed), 2)
        stalls += [our["stall_ms"] for our, _ in watched]
        agents += [our["agent_mb"] for our, _ in watched]
    for name in ("time_ratio", "peak_ratio", "system_peak_ratio"):
        figures[name] = max(float(figures[f"{name}_{size}"] or 0) for size in sizes)
    return figures | {"max_stall_ms": max(stalls), "agent_mb": round(max(agents), 1)}


async def pair(folder: Path, path: Path, call: list[str]) -> tuple[dict[str, float], tuple[float, float]]:
    """What one load of ours cost, with a runner that holds nothing of the release yet, and one of the plain file."""
    async with runner_in(folder) as running:
        our = await asyncio.to_thread(ours, running, call)
        if ALONE in call:
            await asyncio.to_thread(warm)
        return our, plain(path)


def draw(path: Path, size_mb: int) -> Path:
    """A network whose weights take so many MB and that computes next to nothing."""
    width = 4096 if size_mb > 100 else 1024
    layers = max(1, round(size_mb * 1e6 / (4 * width * width)))
    rng, names = np.random.default_rng(0), [f"t{number}" for number in range(layers + 1)]
    weights = [
        helper.make_tensor(
            f"w{number}", TensorProto.FLOAT, (width, width),
            (rng.standard_normal((width, width), np.float32) / width**0.5).tobytes(), raw=True,
        )
        for number in range(layers)
    ]  # fmt: skip
    nodes = [helper.make_node("MatMul", [names[n], f"w{n}"], [names[n + 1]]) for n in range(layers)]
    ports = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, width]) for name in (names[0], names[-1])]
    graph = helper.make_graph(nodes, "heavy", ports[:1], ports[1:], weights)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def sealed(path: Path) -> list[str]:
    """The sealed release of a network beside it, and how the agent's half is called for it."""
    release = release_of(path, 1)
    key = Cobblestone256Encryptor.generate_key()
    parts = [describe(name, content) for name, content in release.parts.items()]
    file = path.with_suffix(".sealed")
    with file.open("wb") as out:
        for piece in seal(key, release.ref.name, parts, [[content] for content in release.parts.values()]):
            out.write(piece)
    size = sum(part.size for part in parts)
    return [str(file), to_json(release.ref).decode(), key.hex(), str(size)]


def ours(running: Running, call: list[str]) -> dict[str, float]:
    """What one load of the sealed file cost."""
    command = [sys.executable, "-m", "benchmarks._load_agent", str(running.folder), *call]
    said = subprocess.run(command, check=True, stdout=subprocess.PIPE)
    return dict(json.loads(said.stdout))


def plain(path: Path) -> tuple[float, float]:
    """Seconds and MB of the plain file."""
    began = time.perf_counter()
    command = [sys.executable, "-c", PLAIN, str(path), str(THREADS)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        kilobytes = int(process.stdout.readline())
        seconds = time.perf_counter() - began
        process.communicate()
    return seconds, kilobytes * 1024 / 1e6


if __name__ == "__main__":
    main()
