"""The main job in figures: from publishing to serving, a swap under load, the door, the seal.

1. Store (SeaweedFS), broker (mosquitto), agent, runner and seats are the real ones, each a process on this machine.
2. Whatever depends on the machine stands beside a peer that ran in the same minute: a swap beside the same camera
   without one, the door beside the session without it, opening beside hashing.
3. A request that failed ends the program: figures of a swap that loses requests are of no use.

`--quick`: fewer repetitions, nothing is written.
"""

import argparse
import contextlib
import hashlib
import itertools
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from cryptography.cobblestone import Cobblestone256Encryptor

from agent.backends import open_session
from agent.core.candidate import Backend, Candidate
from agent.core.documents import from_yaml
from agent.core.release import Config
from agent.trust.sealing import Opener, seal
from benchmarks import _results
from fleet.publish import describe
from tests.fakes.mosquitto import Mosquitto, program
from tests.fakes.seaweed import ADMIN, BUCKET, EDGE, Seaweed
from tests.fakes.waiting import until
from tests.system.plant import GROUP, MODELS, ONE, TWO, Answer, Camera, Device, Plant, UnixConnection, golden, infer

CLAIMS = {
    "publish_to_serving_s": "from `publish` at the desk to the first answer of a device that served nothing, s",
    "swap_new_s": "from the signed message to the first answer of a version never seen there, s",
    "swap_known_s": "the same, of a version that was proven there before, s (median)",
    "gap_ratio": "longest gap between two answers during a swap, in median gaps outside (median of all swaps)",
    "quiet_gap_ratio": "the same, in as long a time without a swap",
    "gap_worst_ratio": "the same, during the worst swap",
    "quiet_gap_worst_ratio": "the same, in the worst time without a swap",
    "gap_median_ms": "median gap between two answers of one client, ms",
    "swaps": "swaps measured",
    "answers": "answers during all of it; none failed",
    "door_ratio": "p50 through the door / p50 of the same ONNX Runtime session without it",
    "door_added_ms": "what the door adds to an inference, ms (float32 of 1x3x160x160 in, 62 KB out)",
    "direct_p50_ms": "p50 of that session, ms",
    "open_ratio": "opening a sealed release / SHA-256 of the same bytes, in MB/s",
    "open_mb_s": "opening a sealed release, MB/s",
    "sha256_mb_s": "SHA-256, MB/s",
    "load_before": "load average of the machine before all this began",
}
LABEL = {ONE: "20250628", TWO: "20250629"}
SOAK_S = 0.3
SETTLE_S = 120.0
LOOK_S = 0.002  # how often a first answer is asked for
QUIET_S = 2.0  # of a camera without a swap, for the median
CPU_ONLY = ONE.replace("20250628", "20250701")  # the door is compared with ONNX Runtime: so it serves on that
ROUNDS = 3  # of opening and hashing in turn; the best of each counts: the machine has other work


class Watch(Camera):
    """A camera that notes when each version answered first."""

    def __init__(self, door: Path) -> None:
        super().__init__(door, golden(ONE)[0])
        self.firsts: list[tuple[float, str]] = []

    def take(self, answer: Answer) -> None:
        super().take(answer)
        if answer.status == 200 and (not self.firsts or self.firsts[-1][1] != answer.version):
            self.firsts.append((time.monotonic(), answer.version))

    def first_answer(self, release: str) -> float:
        """When the release that was last asked for answered first."""
        until(lambda: self.firsts and self.firsts[-1][1] == LABEL[release], SETTLE_S, f"{release} answers")
        return self.firsts[-1][0]

    def gaps(self, begin: float, end: float) -> list[float]:
        """Seconds between answers, of those that came in a time."""
        ends = [at for _, at in self.times if begin <= at <= end]
        return [later - earlier for earlier, later in itertools.pairwise(ends)]


def main() -> None:
    """Measure, print, and on a full run write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--quick", action="store_true", help="fewer repetitions; RESULTS.md stays as it is")
    quick = parser.parse_args().quick
    if program() is None:
        sys.exit("mosquitto is not here: run tools/apt.sh mosquitto 2.0")
    figures = {"load_before": round(os.getloadavg()[0], 1)}
    with new_plant() as plant:
        figures |= measure_plant(plant, swaps=3 if quick else 20, requests=300 if quick else 3000)
    figures |= measure_seal(32_000_000 if quick else 256_000_000)
    if not quick:
        _results.write("main_job", CLAIMS, figures)
    _results.tell(figures)


@contextlib.contextmanager
def new_plant() -> Iterator[Plant]:
    """A desk, an S3 server and a broker."""
    with tempfile.TemporaryDirectory() as temp, contextlib.ExitStack() as ends:
        folders = {name: Path(temp) / name for name in ("plant", "seaweed", "broker")}
        for folder in folders.values():
            folder.mkdir()
        server, broker = Seaweed(folders["seaweed"]), Mosquitto(folders["broker"])
        server.start()
        ends.callback(server.stop)
        broker.start()
        ends.callback(broker.kill)
        keys = {"endpoint": server.endpoint, "access_key": ADMIN[0], "secret_key": ADMIN[1]}
        plant = Plant(folders["plant"], broker=broker, url=f"s3://{BUCKET}/bench", settings=keys)
        ends.callback(plant.close)
        yield plant


# --- the main job ------------------------------------------------------------------------------------------------


def measure_plant(plant: Plant, swaps: int, requests: int) -> dict[str, float]:
    """All figures for which a device must run."""
    device = plant.device(store={"access_key": EDGE[0], "secret_key": EDGE[1]}).start()
    device.until(lambda: is_connected(device), "the device is connected")
    figures = {"publish_to_serving_s": round(publish_to_serving(plant, device), 2)}
    plant.publish(TWO)
    watch = Watch(device.door)
    watch.start()
    figures |= measure_swaps(plant, device, watch, swaps)
    watch.end()
    if watch.failures:
        sys.exit(f"{len(watch.failures)} requests failed: {watch.failures[0]}")
    return figures | {"answers": watch.answers} | measure_door(plant, device, requests)


def is_connected(device: Device) -> bool:
    """Whether the agent has its broker and its runner."""
    state = device.state()
    return state is not None and state["broker"].get("connected", False) and state["runner"]["connected"]


def publish_to_serving(plant: Plant, device: Device) -> float:
    """Seconds from the beginning of publishing to the first answer."""
    frame, _ = golden(ONE)
    began = time.monotonic()
    plant.publish(ONE)
    plant.rollout(ONE, soak=SOAK_S)
    connection = UnixConnection(device.door)
    while infer(connection, frame).status != 200:
        if time.monotonic() - began > SETTLE_S:
            sys.exit(f"{ONE} does not serve: {device.slot()}")
        time.sleep(LOOK_S)
    took = time.monotonic() - began
    settle(device, ONE)
    return took


def measure_swaps(plant: Plant, device: Device, watch: Watch, swaps: int) -> dict[str, float]:
    """Swaps from one version to the other and back, while a camera asks without a pause."""
    began = time.monotonic()
    time.sleep(QUIET_S)  # nothing is waited for: the camera is measured meanwhile
    median = statistics.median(watch.gaps(began, time.monotonic()))
    seconds, during, quiet = [], [], []
    for _, release in zip(range(swaps), itertools.cycle((TWO, ONE)), strict=False):
        sent, answered, settled = swap(plant, device, watch, release)
        seconds.append(answered - sent)
        during.append(max(watch.gaps(sent, settled)))
        time.sleep(settled - sent)  # as long without a swap
        quiet.append(max(watch.gaps(settled, time.monotonic())))
    return {
        "swap_new_s": round(seconds[0], 2),
        "swap_known_s": round(statistics.median(seconds[1:]), 2),
        "gap_ratio": round(statistics.median(during) / median, 1),
        "quiet_gap_ratio": round(statistics.median(quiet) / median, 1),
        "gap_worst_ratio": round(max(during) / median, 1),
        "quiet_gap_worst_ratio": round(max(quiet) / median, 1),
        "gap_median_ms": round(median * 1000, 2),
        "swaps": swaps,
    }


def swap(plant: Plant, device: Device, watch: Watch, release: str) -> tuple[float, float, float]:
    """When the message was sent, the release answered first, and nothing was left to do."""
    pair = plant.rollout(release, soak=SOAK_S, broker=False)
    sent = time.monotonic()
    plant.say(f"edge/v1/groups/{GROUP}/deployment", pair, retain=True)
    answered = watch.first_answer(release)
    settle(device, release)
    return sent, answered, time.monotonic()


def settle(device: Device, release: str) -> None:
    """Return when a release is confirmed and its slot has nothing left to do."""
    device.until_serving(release, confirmed=True, seconds=SETTLE_S)
    device.until(lambda: device.slot()["step"] == "settled", f"{release} settles", SETTLE_S)


# --- the door ----------------------------------------------------------------------------------------------------


def measure_door(plant: Plant, device: Device, requests: int) -> dict[str, float]:
    """The same inferences through the door and without it, in turn."""
    folder = plant.folder / "cpu-only"
    config = write_cpu_only(folder)
    plant.publish(CPU_ONLY, folder)
    plant.rollout(CPU_ONLY, soak=SOAK_S)
    settle(device, CPU_ONLY)
    frame, _ = golden(ONE)
    candidate = candidate_of(device.slot()["candidate"])
    session = open_session(str(folder / "weights" / f"{CPU_ONLY}.onnx"), candidate, config)
    names = [one.name for one in session.get_outputs()]
    connection = UnixConnection(device.door)
    direct, through = in_turn(
        lambda: session.run(names, {"input": frame}), lambda: infer(connection, frame).outputs["scores"], requests
    )
    return {
        "door_ratio": round(through / direct, 2),
        "door_added_ms": round((through - direct) * 1000, 3),
        "direct_p50_ms": round(direct * 1000, 3),
    }


def write_cpu_only(folder: Path) -> Config:
    """A models folder with the first release under another name, for one backend; its config."""
    content = {}
    for room, ending in (("weights", ".onnx"), ("metadata", "_metadata.json"), ("configs", "_config.yaml")):
        content[room] = (MODELS / room / f"{ONE}{ending}").read_bytes()
        (folder / room).mkdir(parents=True)
        changed = content[room].replace(b"[tensorrt, cuda, openvino, cpu]", b"[cpu]")
        if room == "metadata":
            changed = changed.replace(ONE.encode(), CPU_ONLY.encode()).replace(b'"20250628"', b'"20250701"')
        (folder / room / f"{CPU_ONLY}{ending}").write_bytes(changed)
    (folder / "golden").mkdir()
    (folder / "golden" / f"{CPU_ONLY}_golden.npz").write_bytes((MODELS / "golden" / f"{ONE}_golden.npz").read_bytes())
    return from_yaml(Config, (folder / "configs" / f"{CPU_ONLY}_config.yaml").read_bytes(), "config")


def candidate_of(text: str) -> Candidate:
    """The candidate that a device names, as `cpu/fp32/2t`."""
    backend, precision, threads = text.split("/")
    return Candidate(backend=Backend(backend), precision=precision, threads=int(threads.removesuffix("t")))


def in_turn(one: Callable[[], object], other: Callable[[], object], times: int) -> tuple[float, float]:
    """Median seconds of two calls that are made in turn."""
    seconds: tuple[list[float], list[float]] = ([], [])
    for number in range(times + times // 10):
        for call, taken in zip((one, other), seconds, strict=True):
            began = time.perf_counter()
            call()
            if number >= times // 10:  # the first tenth warms up
                taken.append(time.perf_counter() - began)
    return statistics.median(seconds[0]), statistics.median(seconds[1])


# --- the seal ----------------------------------------------------------------------------------------------------


def measure_seal(size: int) -> dict[str, float]:
    """Opening a sealed release of `size` bytes that look like weights, and hashing them, in turn."""
    weights = np.random.default_rng(0).normal(0, 0.02, size // 4).astype(np.float32).tobytes()
    key, path = Cobblestone256Encryptor.generate_key(), "releases/bench"
    sealed = list(seal(key, path, [describe("model.onnx", weights)], [[weights]]))
    opened, hashed = [], []
    for _ in range(ROUNDS):
        opened.append(seconds_of(lambda: [None for _ in Opener(key, path, sealed, len(weights)).pieces()]))
        hashed.append(seconds_of(lambda: hashlib.sha256(weights).digest()))
    rates = [len(weights) / min(seconds) / 1e6 for seconds in (opened, hashed)]
    return {
        "open_ratio": round(rates[0] / rates[1], 2),
        "open_mb_s": round(rates[0]),
        "sha256_mb_s": round(rates[1]),
    }


def seconds_of(call: Callable[[], object]) -> float:
    """How long a call takes."""
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


if __name__ == "__main__":
    main()
