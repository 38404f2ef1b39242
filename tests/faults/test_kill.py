"""`kill -9` at fifty moments of pull, trial, swap and soak: what was verified serves on, or serves again, without a network.

They are shared out between two devices, which may be tested side by side. The moments are drawn from SEED, which is
printed; `KILL_SEED=N` draws others.
"""

import os
import random
import sqlite3
import time
from contextlib import closing, contextmanager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import psutil
import pytest

from tests.fakes.waiting import until
from tests.system.plant import SLOT, Camera
from tests.system.steady import until_settled
from tests.system.weighty import Weighty

SEED = int(os.environ.get("KILL_SEED", "1"))
MOMENTS = 50
WEIGHTS_MB, RATE_MB_S = 4.0, 3.0
SOAK_S = 3.0
WITHIN_S = 15.0  # a verified version serves again; a slow machine imports two inference libraries in that time
CHANCES = 3  # of a candidate that dies, as agent/daemon/reconcile.py counts them
RESTART_S = (0.1, 1.0)  # systemd's RestartSec=, and what a start takes
PHASES = {  # who is killed then, and how long after its beginning at most
    "pull": (("agent", "runner", "serving"), 1.0),
    "trial": (("agent", "runner", "serving", "candidate"), 1.5),
    "swap": (("agent", "runner", "serving", "candidate"), 0.4),
    "soak": (("agent", "runner", "serving", "warm"), 1.0),
}
UNSEEN = {"state": "", "place": {"ref": {"digest": ""}}}  # a seat that the agent has not shown yet


@dataclass
class Moment:
    """One kill, and what came of it."""

    phase: str
    victim: str
    after_s: float
    step: str = ""  # what the slot was at
    failures: int = 0
    dark_s: float = 0.0  # until the next good answer


def moments(chance):
    """Rounds of kills, one in each phase, the last one short; every victim comes about equally often in each phase."""
    rounds = -(-MOMENTS // len(PHASES))
    columns = []
    for phase, (victims, longest) in PHASES.items():
        drawn = [victims[number % len(victims)] for number in range(rounds)]
        chance.shuffle(drawn)
        columns.append([Moment(phase, victim, chance.uniform(0, longest)) for victim in drawn])
    kills = [*chain.from_iterable(zip(*columns, strict=True))][:MOMENTS]
    return [kills[first : first + len(PHASES)] for first in range(0, MOMENTS, len(PHASES))]


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("half", [0, 1])
def test_what_is_verified_serves_through_fifty_kills(new_plant, mosquitto, tmp_path, half):
    """No request fails but while the runner is down; the desired release serves in the end, and nothing is left over."""
    chance = random.Random(SEED)
    everything = moments(chance)
    rounds = everything[half::2]
    releases = [Weighty(tmp_path / "models", date, WEIGHTS_MB) for date in ("20250701", "20250702", "20250703")]
    plant = new_plant(broker=mosquitto, settings={"rate_limit_mb_s": RATE_MB_S})
    listed = [plant.publish_checked(release.checked) for release in releases]
    device = plant.device().start()
    plant.rollout(listed[0].name, soak=0.2)
    until_settled(device, listed[0])
    scene = Scene(plant, device, releases, chance)
    scene.camera.start()
    for number, kills in enumerate(rounds, 1):
        goal = listed[number % len(listed)]
        plant.rollout(goal.name, soak=SOAK_S)
        for kill in kills:
            scene.play(kill, goal)
        until_settled(device, goal, 120)
    scene.camera.end()
    scene.tell()
    assert sum(map(len, everything)) == MOMENTS
    assert len(scene.played) == sum(map(len, rounds))
    assert len(scene.camera.failures) == sum(one.failures for one in scene.played), (
        "no failure but in a runner's absence"
    )
    assert scene.camera.wrong == []
    assert device.slot()["rejections"] == []
    device.stop()
    assert_clean(device, scene.runners)


def test_a_candidate_that_was_killed_now_and_then_keeps_its_chances(plant, tmp_path):
    """What was confirmed since its last death is not held to be broken: it takes three in a row."""
    made = [Weighty(tmp_path / "models", date, 0.1, backends=["cpu"]) for date in ("20250701", "20250702")]
    one, two = (plant.publish_checked(release.checked) for release in made)
    plant.rollout(one.name, soak=0.2)
    device = plant.device().start()
    until_settled(device, one)
    for _ in range(CHANCES):
        plant.rollout(two.name, soak=0.2)
        candidate = until(lambda: [seat for seat in device.seats() if seat.pid not in shown(device)], 30, "a candidate")
        candidate[0].kill()
        until_settled(device, two)
        plant.rollout(one.name, soak=0.2)
        until_settled(device, one)
    assert device.slot()["rejections"] == []


def shown(device):
    """The seats that serve, as the agent shows them."""
    return [seat["pid"] for seat in device.slot()["seats"] if seat["state"] in {"serving", "warm"}]


class Watcher(Camera):
    """A camera that knows when it was answered well last."""

    good_at = 0.0

    def take(self, answer):
        super().take(answer)
        if answer.status == 200:
            self.good_at = time.monotonic()


class Scene:
    """The device under test, its camera, and the kills so far."""

    def __init__(self, plant, device, releases, chance):
        self.plant, self.device, self.chance = plant, device, chance
        self.camera = Watcher(device.door, releases[0].frame, {one.version: one.answer for one in releases})
        self.played, self.runners = [], set()

    def play(self, moment, goal):
        """Wait for the moment, kill, and see a verified version serve with the network gone."""
        self.device.until(
            lambda: rank(self.device.slot(), goal) >= [*PHASES].index(moment.phase), f"{moment} begins", 90
        )
        time.sleep(moment.after_s)
        victim = until(lambda: self.find(moment.victim, goal), 30, moment)
        slot, runner = self.device.slot(), self.device.runner().pid
        moment.step = f"{slot['step']} {slot['working_on']}"
        self.runners.add(runner)
        with network_gone(self.plant):
            before, began = len(self.camera.failures), time.monotonic()
            victim.kill()
            if moment.victim == "agent":
                self.device.agent.wait()
                time.sleep(self.chance.uniform(*RESTART_S))
                assert len(self.camera.failures) == before, (moment, self.camera.failures[before:])
                self.device.start()
            victim.wait(10)
            died = time.monotonic()
            until(lambda: self.camera.good_at > died, 2 * WITHIN_S, f"an answer after {moment}")
            moment.dark_s = self.camera.good_at - began
            gone = runner if moment.victim == "runner" else None
            self.device.until(lambda: self.is_back(gone), f"the agent sees what serves after {moment}", 2 * WITHIN_S)
        moment.failures = len(self.camera.failures) - before
        self.played.append(moment)
        assert moment.dark_s < WITHIN_S, moment
        assert not moment.failures or moment.victim == "runner", (moment, self.camera.failures[before:])

    def is_back(self, gone):
        """Whether the living agent sees a runner other than the dead one serve."""
        state = self.device.state()
        lives = state["pid"] == self.device.agent.pid and state["runner"]["pid"] not in {0, gone}
        return lives and state["slots"][SLOT]["serving"]

    def find(self, victim, goal):
        """The process to kill, or None while there is none; a candidate that serves already is still the candidate."""
        if victim == "agent":
            return psutil.Process(self.device.agent.pid)
        if victim == "runner":
            return self.device.runner()
        seats = {one["pid"]: one for one in self.device.slot()["seats"]}
        living = [one for one in self.device.seats() if one.is_running()]
        if victim == "candidate":
            fresh = [one for one in living if seats.get(one.pid, UNSEEN)["state"] not in {"serving", "warm"}]
            of_goal = [one for one in living if seats.get(one.pid, UNSEEN)["place"]["ref"]["digest"] == goal.digest]
            return next(iter([*fresh, *of_goal]), None)
        wanted = {"warm", "serving"} if victim == "warm" else {victim}  # a soak after a crash has no fall-back
        found = [one for one in living if seats.get(one.pid, UNSEEN)["state"] in wanted]
        return min(found, key=lambda one: seats[one.pid]["state"] != victim, default=None)

    def tell(self):
        """Every kill, for whoever runs this with -s."""
        print(f"\nseed {SEED}, {self.camera.answers} answers, longest gap {self.camera.longest_gap:.2f} s")
        for one in self.played:
            print(
                f"{one.phase:6} {one.victim:10} +{one.after_s:.2f} s  {one.failures:4} failed, {one.dark_s:5.2f} s to an answer; at {one.step}"
            )


def rank(slot, goal):
    """How far a slot is on its way to a release: the index of the phase, or more."""
    of_goal = [one for one in slot["trials"] if one["place"]["ref"]["digest"] == goal.digest and one["evidence"]]
    if slot["digest"] == goal.digest:
        return 3
    if len(of_goal) > 1:
        return 2
    if slot["step"] in {"load", "trial"} and goal.name in slot["working_on"]:
        return 1
    return 0 if slot["fetch_size"] and goal.name in slot["working_on"] else -1


@contextmanager
def network_gone(plant):
    """Neither store nor broker."""
    store = Path(plant.url.removeprefix("file://"))
    away = store.with_name("away")
    store.rename(away)
    plant.broker.kill()
    try:
        yield
    finally:
        away.rename(store)
        plant.broker.start()


def assert_clean(device, runners):
    """A whole ledger, no half files, no process left."""
    with closing(sqlite3.connect(Path(device.tree["state_folder"]) / "ledger.db")) as ledger:
        assert ledger.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    state = Path(device.tree["state_folder"])
    assert [path for path in state.rglob("*") if ".part" in path.name or path.name.startswith(".tmp-")] == []
    names = {
        str(device.config),
        str(Path(device.tree["runner"]["folder"]) / "models.sock"),
        *map(str, runners),
    }  # a seat is told its runner's number
    lines = [one.info["cmdline"] or [] for one in psutil.process_iter(["cmdline"])]
    assert [words for words in lines if any(word.startswith("agent.") for word in words) and names & {*words}] == []
