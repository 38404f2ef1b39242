"""What the demo stands on: a store, a broker, and one device. All of it ends with the demo.

1. Everything listens on the loopback, on ports that are free.
2. What was started is ended, by us, whatever state it is in: the agent, the runner that it started, the seats of that.
3. A fact is waited for until a deadline, and an agent that died is told at once.
"""

import contextlib
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import yaml

from agent.core.documents import from_json
from agent.daemon.news import Event
from agent.daemon.state import State
from tests.fakes.ports import free_ports, is_open
from tests.fakes.seaweed import ADMIN, BUCKET, EDGE, Seaweed
from tests.fakes.waiting import until

PROGRAMS = Path(sys.executable).parent
SOCKET_BYTES = 107  # of a unix socket's path
LOOK_S = 0.05
END_S = 30.0  # a runner answers what is inside before it leaves
BROKER_TOML = """\
id = 0
[router]
id = 0
max_connections = 100
max_outgoing_packet_count = 200
max_segment_size = 104857600
max_segment_count = 10
[v5.1]
name = "v5-1"
listen = "127.0.0.1:{port}"
next_connection_delay_ms = 1
[v5.1.connections]
connection_timeout_ms = 60000
max_payload_size = 1048576
max_inflight_count = 100
dynamic_filters = true
"""


class DemoError(Exception):
    """The story does not go on; says why."""


@dataclass(frozen=True, slots=True)
class Store:
    """Where releases lie, and the environment variables with which the desk may write and a device may only read."""

    url: str
    endpoint: str | None = None
    desk: Mapping[str, str] = field(default_factory=dict)
    device: Mapping[str, str] = field(default_factory=dict)


@contextlib.contextmanager
def folder_store(folder: Path) -> Iterator[Store]:
    """A folder."""
    folder.mkdir()
    yield Store(folder.as_uri())


@contextlib.contextmanager
def s3_store(folder: Path) -> Iterator[Store]:
    """SeaweedFS, ready when it is given."""
    folder.mkdir()
    server = Seaweed(folder)
    try:
        try:
            server.start()
        except (AssertionError, OSError) as error:
            raise DemoError(f"the S3 server does not start: {error}") from error
        yield Store(f"s3://{BUCKET}/demo", server.endpoint, keys_of(ADMIN), keys_of(EDGE))
    finally:
        if server.process is not None:
            server.stop()


def keys_of(identity: tuple[str, str]) -> Mapping[str, str]:
    """An S3 identity as environment variables."""
    return {"AWS_ACCESS_KEY_ID": identity[0], "AWS_SECRET_ACCESS_KEY": identity[1]}


@contextlib.contextmanager
def mqtt_broker(folder: Path) -> Iterator[str]:
    """An MQTT 5 broker; its URL."""
    folder.mkdir()
    (port,) = free_ports(1)
    config = folder / "mqtt.toml"
    config.write_text(BROKER_TOML.format(port=port))
    process = start(["-m", "iotcore", "--config", str(config)], folder / "broker.log")
    try:
        if until(lambda: is_open(port) or process.poll() is not None, what="the broker listens") and process.poll():
            raise DemoError(f"the broker does not start; see {folder / 'broker.log'}")
        yield f"mqtt://127.0.0.1:{port}"
    finally:
        end([psutil.Process(process.pid)] if process.poll() is None else [])
        process.wait()


def start(words: list[str], log: Path, more: Mapping[str, str] | None = None) -> subprocess.Popen[bytes]:
    """A Python program in a session of its own: Ctrl-C is for us, and we end it in order."""
    with log.open("ab") as out:
        return subprocess.Popen(
            [sys.executable, *words], stdin=subprocess.DEVNULL, stdout=out, stderr=out,
            env=os.environ | dict(more or {}), start_new_session=True,
        )  # fmt: skip


def end(processes: list[psutil.Process]) -> None:
    """Ask all of them to leave; kill those that do not."""
    for call in (psutil.Process.terminate, psutil.Process.kill):
        for process in processes:
            with contextlib.suppress(psutil.NoSuchProcess):
                call(process)
        _, processes = psutil.wait_procs(processes, END_S)


class Device:
    """One enrolled device: its agent, and what the agent says of itself."""

    def __init__(self, folder: Path) -> None:
        self.config = folder / "agent.yaml"
        self.log = folder / "agent.log"
        self._settings = yaml.safe_load(self.config.read_text())
        self._short: tempfile.TemporaryDirectory[str] | None = None
        self._told = 0
        self._agent: subprocess.Popen[bytes] | None = None
        self._settle_in(folder)

    def _settle_in(self, folder: Path) -> None:
        """No TCP door, so that no port is taken; and sockets where their paths are short enough."""
        runner, run = folder / "runner", folder / "run"
        if len(os.fsencode(runner / "models.sock")) > SOCKET_BYTES:
            self._short = tempfile.TemporaryDirectory(prefix="edge-demo-")
            runner, run = Path(self._short.name) / "runner", Path(self._short.name) / "run"
        self._settings |= {"run_folder": str(run), "runner": {"folder": str(runner), "tcp": None}}
        self.config.write_text(yaml.safe_dump(self._settings, sort_keys=False))

    @property
    def door(self) -> Path:
        """Where camera applications ask."""
        return Path(self._settings["runner"]["folder"]) / "door.sock"

    def start(self, more: Mapping[str, str]) -> None:
        """Start `edge-agent run`."""
        program = str(PROGRAMS / "edge-agent")
        self._agent = start([program, "run", "--config", str(self.config)], self.log, more)

    def until(
        self, what: str, holds: Callable[[State], bool], tell: Callable[[Event, State], None], seconds: float
    ) -> State:
        """The state in which something holds; events on the way there are told with the state they came with.

        Raises:
            DemoError: the agent ended, or it did not come to that.
        """
        deadline = time.monotonic() + seconds
        while True:
            state = self._read()
            if state is not None:
                for event in [one for one in state.events if one.number > self._told]:
                    self._told = event.number
                    tell(event, state)
                if holds(state):
                    return state
            if self._agent is None or self._agent.poll() is not None:
                raise DemoError("the agent has ended")
            if time.monotonic() > deadline:
                raise DemoError(f"not within {seconds:.0f} s: {what}")
            time.sleep(LOOK_S)

    def last_words(self, lines: int) -> list[str]:
        """The end of the agent's log."""
        return self.log.read_text(errors="replace").splitlines()[-lines:] if self.log.exists() else []

    def end(self) -> None:
        """End the agent, and what it leaves behind when it was in no state to take it along."""
        family = self._family()
        if self._agent is not None and self._agent.poll() is None:
            self._agent.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._agent.wait(END_S)
        psutil.wait_procs(family, END_S if self._agent is not None and self._agent.poll() == 0 else 0)
        end([one for one in family if one.is_running()])
        if self._agent is not None:
            self._agent.wait()
        if self._short is not None:
            self._short.cleanup()

    def _family(self) -> list[psutil.Process]:
        """Agent, runner and seats that live."""
        socket = str(Path(self._settings["runner"]["folder"]) / "models.sock")
        pid = self._agent.pid if self._agent is not None and self._agent.poll() is None else 0
        every = psutil.process_iter(["cmdline"])
        found = [one for one in every if one.pid == pid or socket in (one.info["cmdline"] or ())]
        for one in tuple(found):
            with contextlib.suppress(psutil.NoSuchProcess):
                found += one.children(recursive=True)
        return list(dict.fromkeys(found))

    def _read(self) -> State | None:
        with contextlib.suppress(FileNotFoundError):
            path = Path(self._settings["run_folder"]) / "state.json"
            return from_json(State, path.read_bytes(), str(path))
        return None
