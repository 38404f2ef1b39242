"""A plant whose good release serves a camera all the time, and what has to be the same after whatever came."""

import io
import json
import os
import signal
import sqlite3
import sys
from base64 import b64decode
from contextlib import closing, contextmanager, redirect_stderr, redirect_stdout, suppress
from pathlib import Path
from unittest.mock import patch

import pytest

from agent.daemon import cli
from models.check import check_release
from tests.fakes import mosquitto
from tests.fakes.waiting import until
from tests.system.listener import Listener
from tests.system.plant import GROUP, MODELS, ONE, TWO, CalmCamera, Plant, golden, renamed
from tests.system.steady import until_settled

POLL_S = 1.0  # what the bucket did is seen, and seen to be over, within a test's patience
FIXED = frozenset(
    {"slot", "release", "grant", "counter", "deployment"}
)  # the rest of the ledger is record: events, trials, floor
LAST = frozenset({"done", "failed", "rejected", "expired"})


class Standing:
    """A device that has confirmed the good release, a camera that asks it, and a desk that listens."""

    def __init__(self, folder):
        self.broker = mosquitto.Mosquitto(folder)
        self.broker.start()
        (folder / "plant").mkdir()
        self.plant = Plant(folder / "plant", broker=self.broker)
        self.store = Path(self.plant.url.removeprefix("file://"))
        self.good, self.other = self.plant.publish(ONE), self.plant.publish(TWO)
        self.sound = check_release(MODELS, TWO)
        self.device = self.new_device().start()
        self.pair = self.plant.rollout(ONE)
        assert until_settled(self.device, self.good), self.device.log.read_text()[-3000:]
        self.listener = Listener(self.broker)
        frame, wanted = golden(ONE)
        self.camera = CalmCamera(self.device.door, frame, {"20250628": wanted})
        self.camera.start()

    def new_device(self):
        """The device, not started."""
        return self.plant.device(store={"poll_s": POLL_S}).with_one_backend()

    def close(self):
        self.camera.end()
        self.listener.close()
        self.plant.close()
        self.broker.kill()

    # --- what happens ------------------------------------------------------------------------------------------

    def unsound(self, date, keys=None, **files):
        """As `renamed` of the sound release."""
        return renamed(self.sound, date, keys, **files)

    def another(self, date):
        """A sound release that nobody has seen yet."""
        return self.plant.publish_checked(self.unsound(date))

    def deploy(self, release):
        """Deploy by a signed pair, as an operator does."""
        self.pair = self.plant.rollout(release)

    def say(self, pair):
        """Publish bytes as the group's deployment."""
        self.plant.say(f"edge/v1/groups/{GROUP}/deployment", pair, retain=True)

    def answer(self, name):
        """The last word on a command, as a client at the broker sees it."""
        return self.listener.until(f"edge/v1/cam-1/cmd/{name}/res", lambda said: said["status"] in LAST)

    # --- what is seen ------------------------------------------------------------------------------------------

    def rejection(self, release, seconds=60.0):
        """Wait until the device has rejected a release; why."""

        def found():
            return [one for one in self.device.slot().get("rejections", ()) if one["ref"]["digest"] == release.digest]

        self.device.until(found, f"{release} is rejected", seconds)
        return found()[0]["failure"]

    def until_told(self, words, seconds=30.0):
        """Wait until both commands say it in words; all of it, and the state then."""
        return until_told(self.device, words, seconds)

    @contextmanager
    def asleep(self):
        """The agent sees nothing of what happens meanwhile, and then all of it at once."""
        self.device.agent.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self.device.agent.send_signal(signal.SIGCONT)

    @contextmanager
    def unharmed(self, *, but=()):
        """Nothing but the record of it is left of what happens inside; `but`: kinds of facts that rightly moved."""
        files, facts = files_of(self.device), facts_of(self.device, but)
        answers, failures = self.camera.answers, len(self.camera.failures)
        yield
        if "deployment" in but:
            self.deploy(ONE)
            self.device.until(
                lambda: facts_of(self.device)["deployment", GROUP]["rollout"] == counter(self.pair), "taken"
            )
        else:
            self.say(self.pair)  # what a broker keeps is not the device's to clean

        def moved():
            now = facts_of(self.device, but)
            return {key: (facts.get(key), now.get(key)) for key in facts.keys() | now if facts.get(key) != now.get(key)}

        try:
            self.device.until(lambda: not moved(), "the facts are as before", 30)
        finally:
            left = moved()
            assert left == {}, left
        until_settled(self.device, self.good)
        until(lambda: files_of(self.device) == files, 10, f"{files_of(self.device)} are {files}")
        until(lambda: self.camera.answers > answers + 2, 10, "the camera is answered")
        assert self.device.is_alive()
        assert self.camera.failures[failures:] == []
        assert self.camera.wrong == []


def counter(pair):
    """The counter of a pair's rollout."""
    return json.loads(b64decode(json.loads(pair)["rollout"]["payload"]))["counter"]


def told(device):
    """What `edge-agent status` and `why` print, without the breaks of a terminal: {command: text}.

    Called in this process: a start of Python for each would double the time of these tests.
    """
    said = {}
    for name in ("status", "why"):
        text = io.StringIO()
        with (
            patch.object(sys, "argv", ["edge-agent", name, "--config", str(device.config)]),
            patch.dict(os.environ, {"COLUMNS": "2000"}),
            redirect_stdout(text),
            redirect_stderr(text),
            suppress(SystemExit),
        ):
            cli.main()
        said[name] = text.getvalue()
    return said


def until_told(device, words, seconds=30.0):
    """Wait until `status` and `why` say something in words, for however short a time; all of it, and the state then."""
    heard, seen = [], []

    def holds():
        state = device.state()
        if heard or state in seen[-1:]:  # else both would say the same again
            return heard
        said = told(device)
        if device.state() == state:  # they spoke of it
            seen.append(state)
            if all(words in one for one in said.values()):
                heard.append((said, state))
        return heard

    try:
        device.until(holds, words, seconds)
    finally:
        assert heard, told(device)
    return heard[0]


def files_of(device):
    """Every file where the models lie."""
    return sorted(str(path.relative_to(device.models)) for path in device.models.rglob("*") if path.is_file())


def facts_of(device, but=()):
    """What the ledger holds, but for the record of what happened."""
    path = Path(device.tree["state_folder"]) / "ledger.db"
    with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as ledger:
        rows = ledger.execute("SELECT kind, key, body FROM facts ORDER BY kind, key").fetchall()
    return {(kind, key): json.loads(body) for kind, key, body in rows if kind in FIXED.difference(but)}


@pytest.fixture(scope="module")
def standing(tmp_path_factory):
    """A device that serves and has confirmed the good release, asked by a camera all the time."""
    mosquitto.require()
    one = Standing(tmp_path_factory.mktemp("standing"))
    yield one
    one.close()
