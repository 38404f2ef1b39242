"""`make demo`: the whole way of a model on this machine alone, from nothing, told so that a newcomer can follow.

1. The commands are a user's: edge-provision, edge-fleet and edge-agent as child processes, each printed as it is run.
2. Nothing is claimed that was not seen: every step waits for the device to say it, and the camera counts for itself.
3. Whatever happens, nothing is left running; everything that was written lies in one folder.
"""

import argparse
import fcntl
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from itertools import dropwhile, takewhile
from pathlib import Path
from typing import IO, Any

from agent.core.candidate import Failure
from agent.core.errors import Kind
from agent.daemon.news import Event
from agent.daemon.state import State
from client import Client
from models.accuracy import Detections, detect
from models.loading import load_model_config
from models.plates import draw_plate
from tools import demo_picture
from tools.demo_client import Camera, Tally
from tools.demo_print import Printer
from tools.demo_services import PROGRAMS, DemoError, Device, Store, folder_store, mqtt_broker, s3_store

ROOT = Path(__file__).resolve().parents[1]
OUT = ROOT / "demo-out"
MARK = ".demo"  # the folder is ours to empty; held locked while a demo runs
GROUP, DEVICE, SLOT = "line-1", "cam-7", "defect_detection"
FAMILY = f"{SLOT}_ssd_plates_"
ONE, TWO, BAD = "20250628", "20250629", "20250630"
SOAK_S = 3.0  # a fleet would take ten minutes
STEP_S = 300.0  # for a machine that has much else to do
CAMERA_FPS = 100.0
PLATE = 1_000_742  # a plate that no training drew, with a faint scratch
LOG_LINES = 20
CLOCK = re.compile(r"(?:\x1b\[[0-9;]*m)*\d\d:\d\d:\d\d ")


def main() -> int:
    """The program; the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tools.demo", description="The whole way of a model, in a minute.")
    parser.add_argument("--s3", action="store_true", help="a real S3 server as the store, not a folder")
    parser.add_argument("--out", type=Path, default=OUT, help="where everything is written; emptied first")
    options = parser.parse_args()
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    printer = Printer()
    try:
        with emptied(options.out.resolve()) as out:
            seen = told(out, printer, s3=options.s3)
            printer.say(f"camera, in all: {count(seen)}")
            printer.say(f"nothing is left running; everything that was written lies in {out}")
    except DemoError as error:
        printer.trouble(str(error))
        return 1
    except KeyboardInterrupt:
        printer.trouble("stopped; everything is ended")
        return 130
    return 0


def told(out: Path, printer: Printer, *, s3: bool) -> Tally:
    """The story from beginning to end, and everything ended; what the camera saw."""
    with ExitStack() as ends:
        try:
            return story(Demo(out, printer, ends, s3=s3))
        finally:
            for number in (
                signal.SIGINT,
                signal.SIGTERM,
            ):  # a second Ctrl-C does not keep us from ending what we started
                signal.signal(number, signal.SIG_IGN)


@contextmanager
def emptied(out: Path) -> Iterator[Path]:
    """The folder, empty; nobody else's, and no other demo's."""
    if out.exists() and any(out.iterdir()) and not (out / MARK).exists():
        raise DemoError(f"{out}: it holds something that no demo wrote; give an empty folder with --out")
    out.mkdir(parents=True, exist_ok=True)
    with (out / MARK).open("a") as mark:
        lock(mark, out)
        for path in out.iterdir():
            if path.is_dir():
                shutil.rmtree(path)
            elif path.name != MARK:
                path.unlink()
        yield out


def lock(mark: IO[str], out: Path) -> None:
    """One demo for one folder."""
    try:
        fcntl.flock(mark, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise DemoError(f"{out}: another demo runs there; wait for it, or give another folder with --out") from error


class Demo:
    """The stage: services, commands, one device."""

    device: Device  # from its enrolment on

    def __init__(self, out: Path, printer: Printer, ends: ExitStack, *, s3: bool) -> None:
        self.out, self.printer = out, printer
        self.store: Store = ends.enter_context((s3_store if s3 else folder_store)(out / "store"))
        self.broker = ends.enter_context(mqtt_broker(out / "broker"))
        self.ends = ends
        self.keys = out / "keys"
        self.plate = draw_plate(PLATE)
        self.repository = ["--store", self.store.url, "--keys", str(self.keys)]
        if self.store.endpoint is not None:
            self.repository += ["--endpoint", self.store.endpoint]
        self.names = {
            self.store.url: "$STORE", str(self.keys): "$KEYS", self.broker: "$BROKER",
            str(out / DEVICE / "agent.yaml"): "$CONFIG", self.store.endpoint or "": "$ENDPOINT",
        }  # fmt: skip

    def run(self, *words: str, show: Callable[[str], str] = str) -> str:
        """What a command says; printed, as far as `show` lets it through.

        Raises:
            DemoError: it failed; its own words say why.
        """
        self.printer.command(self.short(words))
        done = subprocess.run(
            [str(PROGRAMS / words[0]), *words[1:]], capture_output=True, text=True, check=False, cwd=ROOT,
            env=os.environ | dict(self.store.desk) | self.printer.environment,
        )  # fmt: skip
        if done.returncode != 0:
            raise DemoError(f"{self.short(words)}\n{done.stderr.strip()}")
        self.printer.output(show(done.stdout))
        return done.stdout

    def short(self, words: tuple[str, ...]) -> str:
        """A command as it is printed."""
        return " ".join(self.names.get(word, word.replace(f"{self.out}/", f"{self.out.name}/")) for word in words)

    def until(self, what: str, holds: Callable[[State], bool]) -> State:
        """As `Device.until`; a failure shows the agent's last words."""
        try:
            with self.printer.waiting(what):
                return self.device.until(what, holds, self.tell, STEP_S)
        except DemoError as error:
            raise DemoError("\n".join([str(error), *self.device.last_words(LOG_LINES)])) from error

    def tell(self, event: Event, state: State) -> None:
        """One event of the device, in words."""
        words = event.release.removeprefix(FAMILY)
        if event.candidate:
            words += f" on {event.candidate}"
        elif event.kind == "rejected":
            words += " on every backend"
        if event.kind == "passed":
            words += f" at {fps(state, event.release, event.candidate):.0f} frames a second"
        if event.reason:
            words += f": {event.reason}" if words else event.reason
        self.printer.event(DEVICE, event.kind, words)

    def inspect(self, path: Path) -> None:
        """One picture through the door, drawn with what was found."""
        with Client(f"unix:{self.device.door}") as client:
            answer = client.infer(SLOT, self.plate.image)
        found = detections(answer.outputs["boxes"][0], answer.outputs["scores"][0], FAMILY + answer.version)
        demo_picture.draw(self.plate, found, f"{DEVICE} · {SLOT} · version {answer.version}", path)
        hits = demo_picture.are_found(self.plate, found)
        self.printer.say(f"version {answer.version} finds {hits.sum()} of the {len(hits)} defects: {path}")


def story(demo: Demo) -> Tally:
    """All steps, in order; what the camera saw."""
    printer = demo.printer
    printer.title("The whole way of a model, on this machine alone", demo.names)
    with printer.step("Keys and a store", "One key for each role of The Update Framework; devices pin the root."):
        demo.run("edge-provision", "keys", "init", str(demo.keys))
        demo.run("edge-provision", "store", "init", *demo.repository)
        demo.run("edge-provision", "group", "init", GROUP, "--keys", str(demo.keys))
    with printer.step("A device", "It gets the pinned root, a key of its own, and a grant to open what its group may."):
        demo.run(
            "edge-provision", "device", "enrol", DEVICE, "--group", GROUP, "--out", str(demo.out / DEVICE),
            "--broker", demo.broker, *demo.repository,
        )  # fmt: skip
    with printer.step("Version one", "Checked, sealed, signed, uploaded; then deployed to the group."):
        publish(demo, ONE)
        rollout(demo, ONE)
    with printer.step(
        "The agent", "It pulls and verifies the release, and proves it on every backend of this machine."
    ):
        begin(demo)
    with printer.step("A picture through the door", "Open Inference Protocol on a unix socket, as Triton speaks it."):
        demo.inspect(demo.out / "inspected.png")
    with filming(demo) as camera:
        with printer.step("Version two", "Rolled out by a signed message over MQTT, while a camera keeps asking."):
            version_two(demo, camera)
        with printer.step(
            "A bad version", "Signed and sealed like any other; but it is too slow, and that is measured."
        ):
            bad_version(demo, camera)
        with printer.step("Back to version one", "An operator's rollback: a signed command to one device."):
            roll_back(demo, camera)
    with printer.step("What the device says", "The same as MQTT reports to the fleet."):
        demo.run("edge-agent", "status", "--config", str(demo.device.config))
        demo.run("edge-agent", "why", SLOT, "--config", str(demo.device.config), show=without_events)
    return camera.tally()


def publish(demo: Demo, version: str) -> None:
    """Publish one of our models."""
    demo.run("edge-fleet", "publish", FAMILY + version, *demo.repository)


def rollout(demo: Demo, version: str) -> None:
    """Deploy it to the group, by the store and by message."""
    demo.run(
        "edge-fleet", "rollout", "--group", GROUP, "--release", FAMILY + version, "--soak", f"{SOAK_S:g}",
        "--broker", demo.broker, *demo.repository,
    )  # fmt: skip


def begin(demo: Demo) -> None:
    """Start the agent and wait for version one."""
    demo.device = Device(demo.out / DEVICE)
    demo.ends.callback(demo.device.end)
    demo.printer.command(demo.short(("edge-agent", "run", "--config", str(demo.device.config), "&")))
    demo.device.start(demo.store.device)
    demo.until("version one is confirmed", lambda state: is_confirmed(state, ONE))


@contextmanager
def filming(demo: Demo) -> Iterator[Camera]:
    """A camera that asks all the time."""
    camera = Camera(demo.device.door, SLOT, demo.plate.image, CAMERA_FPS)
    camera.start()
    try:
        yield camera
    finally:
        camera.end()


def version_two(demo: Demo, camera: Camera) -> None:
    """A better model, without a lost request."""
    mark = camera.mark()
    publish(demo, TWO)
    rollout(demo, TWO)
    demo.until("version two is confirmed", lambda state: is_confirmed(state, TWO))
    demo.until("the camera is answered by version two", lambda _: TWO in camera.tally(mark).by_version)
    demo.printer.say(f"camera: {count(camera.tally(mark))}")
    demo.inspect(demo.out / f"inspected_{TWO}.png")


def bad_version(demo: Demo, camera: Camera) -> None:
    """A model that misses its speed gate, and what the device says of it; the desk takes the rollout back."""
    mark = camera.mark()
    publish(demo, BAD)
    rollout(demo, BAD)
    state = demo.until("the bad version is refused", lambda state: rejection(state, BAD) is not None)
    failure = rejection(state, BAD)
    if failure is None or failure.kind is not Kind.SPEED:
        raise DemoError(f"{BAD} was refused, but not for its speed: {failure}")
    demo.run("edge-agent", "why", SLOT, "--config", str(demo.device.config), show=only_rejections)
    demo.run("edge-fleet", "wave", "revert", "--group", GROUP, "--broker", demo.broker, *demo.repository)
    demo.until("version two is wanted again", lambda state: is_wanted(state, TWO))
    demo.printer.say(f"camera: {count(camera.tally(mark))}")


def roll_back(demo: Demo, camera: Camera) -> None:
    """What was confirmed before serves again."""
    mark = camera.mark()
    demo.run(
        "edge-fleet", "rollback", "--device", DEVICE, "--wait", "--keys", str(demo.keys), "--broker", demo.broker
    )  # fmt: skip
    demo.until("version one is confirmed", lambda state: is_confirmed(state, ONE))
    demo.until("the camera is answered by version one", lambda _: ONE in camera.tally(mark).by_version)
    demo.printer.say(f"camera: {count(camera.tally(mark))}")


def count(tally: Tally) -> str:
    """What a camera saw, in words.

    Raises:
        DemoError: a request failed.
    """
    if tally.failures:
        raise DemoError(f"{len(tally.failures)} of {tally.requests} requests failed; the first: {tally.failures[0]}")
    by = ", ".join(f"{answers} by {version}" for version, answers in tally.by_version.items())
    speed = f"{tally.median_s * 1000:.1f} ms each, longest gap {tally.longest_gap_s * 1000:.0f} ms"
    return f"{tally.requests} requests, {len(tally.failures)} failed; {by}; {speed}"


def is_confirmed(state: State, version: str) -> bool:
    """Whether a version serves, has come through its soak, and nothing is left to do."""
    slot = state.slots.get(SLOT)
    return slot is not None and slot.serving == FAMILY + version and slot.confirmed and slot.step == "settled"


def rejection(state: State, version: str) -> Failure | None:
    """Why a version was rejected."""
    found = (one.failure for one in state.slots[SLOT].rejections if one.ref.name == FAMILY + version)
    return next(found, None)


def is_wanted(state: State, version: str) -> bool:
    """Whether a version is deployed."""
    deployed = state.slots[SLOT].record.deployed
    return deployed is not None and deployed.name == FAMILY + version


def fps(state: State, release: str, candidate: str) -> float:
    """What a trial measured."""
    trials = state.slots[SLOT].trials
    places = {(one.place.ref.name, str(one.place.candidate)): one.evidence for one in trials}
    evidence = places.get((release, candidate))
    return evidence.fps if evidence is not None else 0.0


def detections(boxes: Any, scores: Any, release: str) -> Detections:
    """What a model's outputs mean by the release's own config."""
    config = load_model_config(release)
    if config is None:
        raise DemoError(f"{release}: it has no config")
    after = config["postprocessing"]
    nms, filters = after["nms"], after["filters"]
    return detect(
        boxes, scores, config["confidence_threshold"], nms["iou_threshold"], nms["max_detections"], filters["min_area"]
    )


def only_rejections(said: str) -> str:
    """Of `edge-agent why`, why something was rejected."""
    lines = without_events(said).splitlines()
    return "\n".join(dropwhile(lambda line: not line.startswith("rejected"), lines))


def without_events(said: str) -> str:
    """`edge-agent why` without the newest events at its end: they were told as they came."""
    return "\n".join(takewhile(lambda line: not CLOCK.match(line), said.splitlines()))


if __name__ == "__main__":
    sys.exit(main())
