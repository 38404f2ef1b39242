"""What systemd is told, and what it gives."""

import os
import socket
import subprocess
import sys

import pytest

from agent.adapters.service import listen_sockets, notify, watchdog_interval

RECEIVER = """
import os, sys
os.environ["LISTEN_PID"] = str(os.getpid())
from agent.adapters.service import listen_sockets
passed = listen_sockets()
print(sorted((name, door.getsockname()[1], os.get_inheritable(door.fileno())) for name, door in passed.items()))
print(listen_sockets())
"""


@pytest.mark.parametrize("abstract", [False, True])
def test_systemd_hears_us(tmp_path, monkeypatch, abstract):
    """A state reaches the socket that systemd names, a path or an abstract one."""
    name = f"@edge-test-{os.getpid()}" if abstract else str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(name.replace("@", "\0"))
        systemd.settimeout(5)
        monkeypatch.setenv("NOTIFY_SOCKET", name)
        notify("READY=1\nSTATUS=serving")
        assert systemd.recv(100) == b"READY=1\nSTATUS=serving"


def test_without_systemd_nothing_happens(monkeypatch):
    """On a desk nobody is told and nobody waits."""
    for name in ("NOTIFY_SOCKET", "WATCHDOG_USEC", "LISTEN_PID", "LISTEN_FDS"):
        monkeypatch.delenv(name, raising=False)
    notify("READY=1")
    assert watchdog_interval() is None
    assert listen_sockets() == {}


def test_a_socket_that_is_gone_stops_nobody(monkeypatch, tmp_path):
    """A service outlives a systemd that does not listen."""
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "gone"))
    notify("WATCHDOG=1")


def test_the_watchdog_hears_three_times_per_deadline(monkeypatch):
    """One lost beat does not kill."""
    monkeypatch.setenv("WATCHDOG_USEC", "30000000")
    monkeypatch.delenv("WATCHDOG_PID", raising=False)
    assert watchdog_interval() == 10
    monkeypatch.setenv("WATCHDOG_PID", "1")
    assert watchdog_interval() is None


@pytest.mark.parametrize(
    ("names", "heard"),
    [("door:metrics", ("door", "metrics")), ("door:door", ("door", "door-1")), ("", ("", "unnamed"))],
)
def test_sockets_are_passed_once_and_by_name(names, heard):
    """The sockets of the units arrive by their names, two of one unit as well, and children do not inherit them."""
    doors = [socket.create_server(("127.0.0.1", 0)) for _ in range(2)]
    ports = [door.getsockname()[1] for door in doors]
    keep = [os.dup2(door.fileno(), 200 + number) for number, door in enumerate(doors)]
    shell = f'exec 3<&{keep[0]} 4<&{keep[1]}; exec "$@"'
    answer = subprocess.run(
        ["bash", "-c", shell, "-", sys.executable, "-c", RECEIVER],
        pass_fds=keep, env=os.environ | {"LISTEN_FDS": "2", "LISTEN_FDNAMES": names},
        capture_output=True, text=True, check=True, timeout=30,
    )  # fmt: skip
    for number in keep:
        os.close(number)
    for door in doors:
        door.close()
    assert answer.stdout.splitlines() == [
        str(sorted((name, port, False) for name, port in zip(heard, ports, strict=True))),
        "{}",
    ]


def test_sockets_of_another_process_are_not_ours(monkeypatch):
    """Variables that were inherited name nobody's descriptors."""
    monkeypatch.setenv("LISTEN_PID", "1")
    monkeypatch.setenv("LISTEN_FDS", "1")
    assert listen_sockets() == {}
