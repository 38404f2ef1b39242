"""What systemd and a service say to each other: environment variables, one datagram socket, passed descriptors.

Outside systemd none of the variables is set and every call here but `leave_no_dump` does nothing.
Formats: sd_notify(3), sd_watchdog_enabled(3), sd_listen_fds(3).
"""

import os
import resource
import socket
from contextlib import suppress
from pathlib import Path

FIRST_DESCRIPTOR = 3
BEATS_PER_DEADLINE = 3  # one lost beat is no reason to be killed


def notify(text: str) -> None:
    """Tells systemd, e.g. `READY=1`, `STATUS=...`, `WATCHDOG=1`."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return
    if address.startswith("@"):
        address = "\0" + address[1:]
    # A state that cannot be told is told next time; when it is the watchdog, systemd itself will answer.
    with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as door:
        door.sendto(text.encode(), address)


def watchdog_interval() -> float | None:
    """Seconds between two `WATCHDOG=1`, or None when nobody waits for them."""
    deadline, process = os.environ.get("WATCHDOG_USEC", ""), os.environ.get("WATCHDOG_PID", "")
    if not deadline.isdigit() or (process and process != str(os.getpid())):
        return None
    return int(deadline) / 1e6 / BEATS_PER_DEADLINE


def leave_no_dump() -> None:
    """Keeps keys, weights and frames out of dumps: nothing of this process and its children's memory goes into one.

    The limit is for files; whoever takes dumps through a pipe (core(5)) may not ask it, but finds an empty one.
    """
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with suppress(OSError):  # a kernel that was built without dumps
        Path("/proc/self/coredump_filter").write_text("0")


def listen_sockets() -> dict[str, socket.socket]:
    """The sockets that systemd opened for us, by the name in the socket unit; once: children get none of it.

    A further socket of the same unit, which has the same name, is told apart by its number.
    """
    process, count = os.environ.pop("LISTEN_PID", ""), os.environ.pop("LISTEN_FDS", "")
    names = os.environ.pop("LISTEN_FDNAMES", "").split(":")
    if process != str(os.getpid()) or not count.isdigit():
        return {}
    passed = {}
    for number in range(int(count)):
        descriptor = FIRST_DESCRIPTOR + number
        os.set_inheritable(descriptor, False)  # noqa: FBT003  its only parameter
        name = names[number] if number < len(names) else "unnamed"
        passed[f"{name}-{number}" if name in passed else name] = socket.socket(fileno=descriptor)
    return passed
