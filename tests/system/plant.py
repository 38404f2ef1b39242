"""A whole plant on one machine: a desk, a store, a broker, devices as real processes, and cameras that never rest."""

import contextlib
import http.client
import itertools
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import psutil
import yaml

from client import Client, ClientError
from fleet.broker import Broker, broker_at
from fleet.deploy import deploy, sign_command
from fleet.publish import newest_publics, publish
from fleet.repository import Repository
from fleet.stores import open_store
from models.check import check_release
from provisioning.enrol import enrol, folders_in, paths_at
from provisioning.keys import init_group, init_keys
from tests.fakes.waiting import PATIENCE, until

ROOT = Path(__file__).parents[2]
MODELS = ROOT / "models"
SLOT = "defect_detection"
ONE, TWO = (f"{SLOT}_ssd_plates_202506{day}" for day in (28, 29))
GROUP = "plant"


class Plant:
    """A desk and its store; devices are enrolled and started on demand."""

    def __init__(self, folder: Path, *, broker=None, url=None, settings=None):
        self.folder = folder
        self.broker = broker
        self.short = Path(tempfile.mkdtemp(prefix="edge-"))  # a unix socket's path has at most 107 bytes
        self.url = url or f"file://{folder / 'store'}"
        self.settings = settings or {}
        if self.url.startswith("file://"):
            Path(self.url.removeprefix("file://")).mkdir(parents=True)
        self.keyring = init_keys(folder / "keys")
        init_group(self.keyring, GROUP)
        self.store = open_store(self.url, **{k: v for k, v in self.settings.items() if k in OPTIONS})
        self.repository = Repository.start(self.store, self.keyring, now())
        self.devices = []

    def publish(self, name, folder=MODELS):
        """Check, seal and list a release of a model folder."""
        return self.publish_checked(check_release(folder, name))

    def publish_checked(self, checked):
        """Seal and list whatever is given, checked or not."""
        return publish(self.repository, checked, newest_publics(self.keyring, [GROUP]), now=now())

    def publish_hopeless(self):
        """Seal and list a release, as quick as the others, whose gate asks for a speed that no device reaches."""
        sound = renamed(check_release(MODELS, ONE), "20250701")
        config = yaml.safe_load(sound.config)
        config["gates"]["min_fps"] = 1e6
        return self.publish_checked(replace(sound, config=yaml.safe_dump(config).encode()))

    def rollout(self, release, *, soak=0.3, slot=SLOT, broker=True):
        """Deploy a release, an older one, too; by the store, and by message where there is a broker. The signed pair."""
        roles = ("operators", "operators-critical")
        pair = deploy(self.repository, self.keyring, GROUP, slot, release, soak_s=soak, now=now(), roles=roles)
        if self.broker is not None and broker:
            self.say(f"edge/v1/groups/{GROUP}/deployment", pair, retain=True)
        return pair

    def command(self, device, verb, *, slot=SLOT, release=None, retain=False):
        """Send a signed command; its id."""
        name = uuid.uuid4().hex
        raw = sign_command(
            self.keyring, f"device:{device.name}", verb, command_id=name, now=now(), slot=slot, release=release
        )
        self.say(f"edge/v1/{device.name}/cmd/{name}/req", raw, retain=retain)
        return name

    def say(self, topic, payload, *, retain=False):
        with Broker(broker_at(f"mqtt://{self.broker.host}:{self.broker.port}")) as link:
            link.publish(topic, payload, retain=retain)

    def device(self, name="cam-1", **settings):
        """A device that is enrolled and not started."""
        one = Device(self, name, settings)
        self.devices.append(one)
        return one

    def close(self):
        for device in self.devices:
            device.close()
        shutil.rmtree(self.short, ignore_errors=True)


FRAME_S = 0.02  # a camera of 50 frames per second leaves the machine some time for the test
TICK_S = 0.05  # two files of one tick of the disk's clock may have the same number and time
OPTIONS = frozenset({"endpoint", "region", "access_key", "secret_key", "ca"})


class Device:
    """One enrolled device and its processes."""

    program = "agent.daemon.cli"

    def __init__(self, plant, name, settings):
        self.name = name
        self.folder = plant.short / name
        enrol(
            plant.store, plant.keyring, name, GROUP, self.folder,
            settings={**paths_at(self.folder), **folders_in(self.folder), "store": {"url": plant.url}},
        )  # fmt: skip
        self.config = self.folder / "agent.yaml"
        tree = yaml.safe_load(self.config.read_text())
        tree["runner"]["tcp"] = None
        tree["store"] |= {"poll_s": 300.0, **plant.settings}
        if plant.broker is not None:
            tree["broker"] = {"host": plant.broker.host, "port": plant.broker.port, "tls": False}
        self.write(deep_merge(tree, settings))
        self.log = self.folder / "agent.log"
        self.environment = {"PYTHONPATH": str(ROOT), "ORT_DISABLE_TELEMETRY": "1"}
        self.agent = None
        self.read = None, None  # which file its state was read from, and the state

    def with_one_backend(self):
        """The device without OpenVINO: half of the work, where backends are not what is looked at."""
        self.environment["PYTHONPATH"] = os.pathsep.join([str(ROOT / "tests" / "fakes" / "one_backend"), str(ROOT)])
        return self

    def write(self, tree):
        self.tree = tree
        self.config.write_text(yaml.safe_dump(tree))

    @property
    def door(self):
        return Path(self.tree["runner"]["folder"]) / "door.sock"

    @property
    def models(self):
        return Path(self.tree["state_folder"]) / "models"

    def start(self):
        """Start the agent, which starts the runner or finds it."""
        with self.log.open("ab") as log:
            self.agent = subprocess.Popen(
                [sys.executable, "-m", self.program, "run", "--config", str(self.config)],
                stdout=log, stderr=log, cwd=ROOT, env={**os.environ, **self.environment},
            )  # fmt: skip
        return self

    def state(self):
        """What the agent says of itself, or None before it has said anything; parsed anew where the file is another one."""
        path = Path(self.tree["run_folder"]) / "state.json"
        with contextlib.suppress(FileNotFoundError, json.JSONDecodeError):
            found = path.stat()
            file = found.st_ino, found.st_mtime_ns
            if file != self.read[0] or time.time() - found.st_mtime < TICK_S:
                self.read = file, json.loads(path.read_text())
            return self.read[1]
        return None

    def slot(self, slot=SLOT):
        state = self.state()
        return (state or {"slots": {}})["slots"].get(slot, {})

    def until(self, holds, what, seconds=60.0):
        """Wait for a fact; on failure the agent's log is shown."""
        try:
            return until(lambda: holds() or not self.is_alive(), seconds, what) and holds()
        except AssertionError as error:
            log = self.log.read_text()[-6000:] if self.log.exists() else "no log"
            raise AssertionError(f"{error}\nstate: {json.dumps(self.slot(), indent=1)[:3000]}\n{log}") from None

    def until_serving(self, release, *, confirmed=False, seconds=60.0):
        """Wait until a release serves (and is confirmed) as the agent reports it."""
        name = getattr(release, "name", release)

        def serves():
            slot = self.slot()
            return slot.get("serving") == name and (slot["confirmed"] or not confirmed) and self.is_alive()

        self.until(serves, f"{self.name} serves {name}{' confirmed' if confirmed else ''}", seconds)

    def is_alive(self):
        return self.agent is not None and self.agent.poll() is None

    def runner(self):
        """The runner's process, or None."""
        wanted = str(Path(self.tree["runner"]["folder"]) / "models.sock")
        for process in psutil.process_iter(["cmdline"]):
            words = process.info["cmdline"] or []
            if wanted in words and "agent.runner.main" in words:
                return process
        return None

    def seats(self):
        """The seats' processes."""
        runner = self.runner()
        with contextlib.suppress(psutil.NoSuchProcess):
            return [one for one in runner.children() if one.name() == "edge-seat"] if runner else []
        return []

    def stop(self):
        """A clean stop takes the runner along."""
        self.agent.send_signal(signal.SIGTERM)
        self.agent.wait(30 * PATIENCE)

    def close(self):
        """End every process of this device, whatever state it is in."""
        runner, seats = self.runner(), self.seats()
        if self.is_alive():
            self.agent.kill()
            self.agent.wait()
        for process in [*([runner] if runner else []), *seats]:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
                process.wait(10)

    def memory(self):
        """Resident bytes of agent, runner and seats together."""
        processes = [psutil.Process(self.agent.pid), self.runner(), *self.seats()]
        return sum(process.memory_info().rss for process in processes)


class UnixConnection(http.client.HTTPConnection):
    """HTTP over the door's unix socket."""

    def __init__(self, path, timeout=30.0):
        super().__init__("door", timeout=timeout)
        self.path = str(path)

    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self.path)


@dataclass
class Answer:
    """What the door said to one request."""

    status: int
    version: str = ""
    outputs: dict = field(default_factory=dict)
    error: str = ""


def infer(connection, array, slot=SLOT, name="input"):
    """One request with a binary tensor."""
    array = np.ascontiguousarray(array)
    datatype = {"float32": "FP32", "uint8": "UINT8", "int64": "INT64"}[array.dtype.name]
    head = {
        "inputs": [{
            "name": name, "datatype": datatype, "shape": list(array.shape),
            "parameters": {"binary_data_size": array.nbytes},
        }],
        "parameters": {"binary_data_output": True},
    }  # fmt: skip
    text = json.dumps(head).encode()
    headers = {"Inference-Header-Content-Length": str(len(text)), "Content-Type": "application/octet-stream"}
    connection.request("POST", f"/v2/models/{slot}/infer", text + array.tobytes(), headers)
    response = connection.getresponse()
    body = response.read()
    if response.status != 200:
        return Answer(response.status, error=body.decode(errors="replace"))
    length = int(response.headers["Inference-Header-Content-Length"])
    tree = json.loads(body[:length])
    outputs, at = {}, length
    for one in tree["outputs"]:
        size = one["parameters"]["binary_data_size"]
        kind = {"FP32": np.float32, "INT64": np.int64}[one["datatype"]]
        outputs[one["name"]] = np.frombuffer(body[at : at + size], kind).reshape(one["shape"])
        at += size
    return Answer(200, tree["model_version"], outputs)


class Camera(threading.Thread):
    """A client that asks without a pause and keeps count; `expected` checks each answer by the version it names."""

    def __init__(self, door, frame, expected=None, slot=SLOT, name="input"):
        super().__init__(daemon=True)
        self.door, self.frame, self.expected, self.slot, self.tensor = door, frame, expected or {}, slot, name
        self.answers, self.failures, self.wrong = 0, [], []
        self.versions, self.times = {}, []
        self.ending = threading.Event()

    def run(self):
        with self.line() as ask:
            while not self.ending.is_set():
                began = time.monotonic()
                try:
                    answer = ask()
                except (OSError, http.client.HTTPException, ClientError) as error:
                    self.failures.append(f"{type(error).__name__}: {error}")
                    time.sleep(0.01)
                    continue
                self.times.append((began, time.monotonic()))
                self.take(answer)

    @contextlib.contextmanager
    def line(self):
        """Asks the door; a connection that failed is made anew."""
        connection = UnixConnection(self.door)

        def ask():
            try:
                return infer(connection, self.frame, self.slot, self.tensor)
            except (OSError, http.client.HTTPException):
                connection.close()
                raise

        yield ask

    def take(self, answer):
        if answer.status != 200:
            self.failures.append(f"{answer.status}: {answer.error}")
            return
        self.answers += 1
        self.versions[answer.version] = self.versions.get(answer.version, 0) + 1
        wanted = self.expected.get(answer.version)
        if wanted is not None and not all(
            np.allclose(answer.outputs[k], v, atol=0.05, rtol=0.01) for k, v in wanted.items()
        ):
            self.wrong.append(answer.version)

    def end(self):
        self.ending.set()
        self.join(30 * PATIENCE)
        return self

    @property
    def longest_gap(self):
        """Seconds between two answers, at most."""
        ends = [end for _, end in self.times]
        return max((b - a for a, b in itertools.pairwise(ends)), default=0.0)


class RingingCamera(Camera):
    """A camera that asks with our client, and so the seat itself."""

    @contextlib.contextmanager
    def line(self):
        with Client(f"unix:{self.door}") as client:

            def ask():
                answer = client.infer(self.slot, {self.tensor: self.frame})
                return Answer(200, answer.version, answer.outputs)

            yield ask


class CalmCamera(Camera):
    """As a camera is: a frame now and then, for ever."""

    def take(self, answer):
        super().take(answer)
        time.sleep(FRAME_S)


class CalmRingingCamera(CalmCamera, RingingCamera):
    """The same with our client."""


def renamed(checked, date, keys=None, **files):
    """The bytes of a release that nobody checked: of another date, `keys` of its metadata, or whole files, are others."""
    name = f"{SLOT}_ssd_plates_{date}"
    tree = {**json.loads(checked.metadata), "name": name, "version": date, **(keys or {})}
    kept = {key: value for key, value in tree.items() if value is not None}
    return replace(replace(checked, name=name, metadata=json.dumps(kept).encode()), **files)


def golden(name):
    """One golden input of our own model, and its reference outputs by name."""
    with np.load(MODELS / "golden" / f"{name}_golden.npz") as arrays:
        return arrays["in.input"][:1], {key[4:]: arrays[key][:1] for key in arrays.files if key.startswith("out.")}


def now():
    return datetime.now(UTC)


def deep_merge(tree, more):
    for key, value in more.items():
        tree[key] = (
            deep_merge(tree[key], value) if isinstance(value, dict) and isinstance(tree.get(key), dict) else value
        )
    return tree
