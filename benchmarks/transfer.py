"""A download in figures: ours, verified and synced, beside curl and the AWS CLI, from one S3 server on this machine.

1. Every program fetches the same object in turn, several times after one that warms up; the best wall time, the
   least CPU time and the shortest stall of each counts: the machine has other work.
2. Ours runs as in the agent: in a worker thread beside an event loop that is asked every few milliseconds. Its times
   are those of the download, for an agent runs already; `cpu_ratio_with_start` counts Python and the SDK's imports too.
3. curl's peer does the same work: fetch to a file, sync it, hash it. The AWS CLI does less: it does not sync.

`--quick`: 64 MB instead of 512, nothing is written. The first call installs the AWS CLI into .cache/awscli.
"""

import argparse
import hashlib
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from benchmarks import _results
from tests.fakes.seaweed import ADMIN, BUCKET, EDGE, Seaweed

CLAIMS = {
    "wall_ratio_to_curl": "ours, verified and synced / `curl`, `sync` and `sha256sum` after one another, wall time",
    "wall_ratio_to_awscli": "ours, verified and synced / the AWS CLI and `sha256sum`, wall time",
    "cpu_ratio_to_awscli": "ours, verified / the AWS CLI and `sha256sum`, CPU time of the processes",
    "cpu_ratio_plain": "the same, both without verification",
    "cpu_ratio_with_start": "as `cpu_ratio_to_awscli`, ours with its start from nothing",
    "peak_rss_mb": "most memory of the whole process that fetched (Python, SDK and all), MB",
    "max_stall_ms": "longest time that the event loop beside the download was held up, ms",
    "idle_stall_ms": "the same of a loop beside which nothing is downloaded, ms",
    "size_mb": "size of the object, MB",
    "ours_mb_s": "ours, verified and synced, MB/s",
    "curl_mb_s": "`curl`, `sync` and `sha256sum`, MB/s",
    "awscli_mb_s": "the AWS CLI and `sha256sum`, MB/s",
    "ours_cpu_s_per_gb": "ours, verified, CPU s/GB",
    "ours_plain_cpu_s_per_gb": "ours, without verification, CPU s/GB",
    "curl_cpu_s_per_gb": "`curl`, `sync` and `sha256sum`, CPU s/GB",
    "awscli_cpu_s_per_gb": "the AWS CLI and `sha256sum`, CPU s/GB",
    "awscli_plain_cpu_s_per_gb": "the AWS CLI alone, CPU s/GB",
    "load_before": "load average of the machine before all this began",
}
MB = 1_000_000
KEY = "targets/bench.sealed"
AWS = Path(__file__).parents[1] / ".cache" / "awscli"
OURS = (sys.executable, "-m", "benchmarks._download")


def main() -> None:
    """Measure, print, and on a full run write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--quick", action="store_true", help="64 MB; RESULTS.md stays as it is")
    options = parser.parse_args()
    load = {"load_before": round(os.getloadavg()[0], 1)}
    install_awscli()
    with tempfile.TemporaryDirectory() as folder:
        figures = load | (measure(Path(folder), 64 * MB, 2) if options.quick else measure(Path(folder), 512 * MB, 4))
    if not options.quick:
        _results.write("transfer", CLAIMS, figures)
    _results.tell({key: figures[key] for key in CLAIMS})


def install_awscli() -> None:
    """The AWS CLI in an environment of its own: it wants another SDK than ours."""
    if not (AWS / "bin" / "aws").exists():
        subprocess.run([sys.executable, "-m", "venv", str(AWS)], check=True)
        subprocess.run([str(AWS / "bin" / "pip"), "install", "-q", "awscli"], check=True)


def measure(folder: Path, size: int, rounds: int) -> dict[str, float]:
    """All figures, with a server that begins and ends here."""
    (folder / "server").mkdir()
    server = Seaweed(folder / "server")
    server.start()
    try:
        content = np.random.default_rng(0).integers(0, 256, size, np.uint8).tobytes()
        server.store("bench").write(KEY, content)
        digest = hashlib.sha256(content).hexdigest()
        del content
        return summed(in_turn(programs(server.endpoint, folder / "fetched", size, digest), rounds), size)
    finally:
        server.stop()


class Measured:
    """The best of what one program took."""

    def __init__(self) -> None:
        self.wall = self.cpu = self.whole = float("inf")
        self.told: dict[str, float] = {}

    def take(self, run: Callable[[], dict[str, float]]) -> None:
        """One more run."""
        before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
        told = run()
        wall, after = time.monotonic() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
        self.wall = min(self.wall, told.get("wall", wall))
        whole = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        self.whole = min(self.whole, whole)
        self.cpu = min(self.cpu, told.get("cpu", whole))
        self.told = {key: min(value, self.told.get(key, value)) for key, value in told.items()}


def programs(endpoint: str, target: Path, size: int, digest: str) -> dict[str, Callable[[], dict[str, float]]]:
    """What is compared: each leaves the object at `target`."""
    url = f"{endpoint}/{BUCKET}/bench/{KEY}"
    asked = {"store": f"s3://{BUCKET}/bench", "endpoint": endpoint, "key": KEY, "user": EDGE[0], "secret": EDGE[1]}
    asked |= {"target": str(target), "size": str(size), "digest": digest}
    curl = ["curl", "-sf", "--aws-sigv4", "aws:amz:us-east-1:s3", "--user", ":".join(EDGE), "-o", str(target), url]
    aws = [str(AWS / "bin" / "aws"), "s3", "cp", "--only-show-errors", "--endpoint-url", endpoint]
    aws += [f"s3://{BUCKET}/bench/{KEY}", str(target)]
    check = ["sha256sum", str(target)]

    def run(*commands: Sequence[str]) -> dict[str, float]:
        target.unlink(missing_ok=True)
        names = {"AWS_ACCESS_KEY_ID": ADMIN[0], "AWS_SECRET_ACCESS_KEY": ADMIN[1], "AWS_DEFAULT_REGION": "us-east-1"}
        said = [subprocess.run(one, check=True, capture_output=True, env={**os.environ, **names}) for one in commands]
        told: dict[str, float] = json.loads(said[0].stdout) if commands[0][:3] == OURS else {}
        return told

    return {
        "ours": lambda: run((*OURS, json.dumps({**asked, "verify": "yes"}))),
        "curl": lambda: run(curl, ["sync", str(target)], check),
        "awscli": lambda: run(aws, check),
        "ours_plain": lambda: run((*OURS, json.dumps({**asked, "verify": ""}))),
        "awscli_plain": lambda: run(aws),
        "idle": lambda: run((*OURS, json.dumps({**asked, "verify": "idle"}))),
    }


def in_turn(runs: dict[str, Callable[[], dict[str, float]]], rounds: int) -> dict[str, Measured]:
    """Each program once to warm up, then all of them in turn."""
    for run in runs.values():
        run()
    measured = {name: Measured() for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            measured[name].take(run)
    return measured


def summed(measured: dict[str, Measured], size: int) -> dict[str, float]:
    """The figures."""
    ours, curl, awscli = (measured[name] for name in ("ours", "curl", "awscli"))
    plain, awscli_plain = measured["ours_plain"], measured["awscli_plain"]
    figures = {
        "wall_ratio_to_curl": ours.wall / curl.wall,
        "wall_ratio_to_awscli": ours.wall / awscli.wall,
        "cpu_ratio_to_awscli": ours.cpu / awscli.cpu,
        "cpu_ratio_plain": plain.cpu / awscli_plain.cpu,
        "cpu_ratio_with_start": ours.whole / awscli.cpu,
    }
    figures |= {f"{name}_mb_s": size / MB / measured[name].wall for name in ("ours", "curl", "awscli")}
    figures |= {f"{name}_cpu_s_per_gb": one.cpu / size * 1e9 for name, one in measured.items() if name != "idle"}
    figures |= {"idle_stall_ms": measured["idle"].told["stall"]}
    figures |= {"peak_rss_mb": ours.told["rss"], "max_stall_ms": ours.told["stall"], "size_mb": size / MB}
    return {key: round(value, 2) for key, value in figures.items()}


if __name__ == "__main__":
    main()
