"""`edge-agent doctor`: each thing the device needs, whether it is so, and the next thing to do where it is not.

It looks for itself and asks no daemon, so that it helps where none starts.
"""

import asyncio
import json
import socket
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

from agent.adapters import files, host
from agent.adapters.ledger import Ledger
from agent.adapters.seat_process import ask_seat, find_backends
from agent.adapters.store import Missing, StoreSettings, open_store
from agent.core.candidate import Found
from agent.core.documents import Document, from_json
from agent.core.errors import EdgeError, TransferError
from agent.daemon.keyring import read_key
from agent.daemon.settings import Settings

CONNECT_S = 5.0
LOW_DISK_BYTES = 512 * 1024 * 1024


class Finding(Document):
    """One line of the doctor's."""

    what: str
    fine: bool
    says: str


def examine(settings: Settings) -> Iterator[Finding]:
    """Every finding, as it is made."""
    yield checked("device key", lambda: f"{settings.device_key}: {read_key(Path(settings.device_key)).key_size} bits")
    yield checked("pinned root", lambda: root_version(Path(settings.root)))
    yield checked("state folder", lambda: writable(settings.state))
    yield checked("ledger", lambda: ledger(settings.state / "ledger.db"))
    yield checked("store", lambda: store(settings.store))
    if (broker := settings.broker) is not None:
        yield checked("broker", lambda: reachable(broker.host, broker.port))
    yield clock()
    yield checked("seat", walls)
    found = asyncio.run(find_backends())
    yield from (backend(one) for one in found)
    if not any(one.present for one in found):
        yield Finding(what="inference", fine=False, says="no backend works, so no model can: install the cpu extra")


def checked(what: str, look: Callable[[], str]) -> Finding:
    """What a look found, or why it failed."""
    try:
        return Finding(what=what, fine=True, says=look())
    except EdgeError as error:
        return Finding(what=what, fine=False, says=str(error))


def root_version(path: Path) -> str:
    """The pinned root's version."""
    content = files.read_or_none(path)
    if content is None:
        raise TransferError(f"{path}: not there; `edge-provision device enrol` writes it")
    try:
        signed = json.loads(content)["signed"]
        return f"{path}: version {signed['version']}, expires {signed['expires']}"
    except (ValueError, KeyError, TypeError) as error:
        raise TransferError(f"{path}: this is no TUF root; copy it again from the provisioning desk") from error


def writable(folder: Path) -> str:
    """Whether the state can be kept."""
    files.write_durably(folder / ".doctor", b"")
    (folder / ".doctor").unlink()
    free = files.free_bytes(folder)
    if free < LOW_DISK_BYTES:
        raise TransferError(f"{folder}: {free / 1e6:.0f} MB free; make room for at least {LOW_DISK_BYTES / 1e6:.0f} MB")
    return f"{folder}: {free / 1e9:.1f} GB free"


def ledger(path: Path) -> str:
    """Whether the ledger is whole. It is not mended here."""
    if not path.exists():
        return f"{path}: not there yet; the first start makes it"
    trouble = Ledger.examine(path)
    if trouble:
        raise TransferError(f"{path}: {trouble}; the agent puts its copy in place when it starts")
    return f"{path}: whole"


def store(one: StoreSettings) -> str:
    """Whether the store answers."""
    try:
        content = open_store(one).read("metadata/timestamp.json", 64 * 1024)
    except Missing as error:
        raise TransferError(f"{one.url}: no repository lies there ({error}); check the store's URL") from error
    try:
        return f"{one.url}: timestamp version {json.loads(content)['signed']['version']}"
    except (ValueError, KeyError, TypeError) as error:
        raise TransferError(f"{one.url}: what answers is no repository of ours; check the URL") from error


def reachable(name: str, port: int) -> str:
    """Whether something listens at the broker's address."""
    try:
        with socket.create_connection((name, port), timeout=CONNECT_S):
            return f"{name}:{port} answers"
    except OSError as error:
        raise TransferError(f"{name}:{port}: {error}; check `broker:` in agent.yaml and the network") from error


def clock() -> Finding:
    """Whether the time can be trusted; a wrong one only delays."""
    known = host.SYNCHRONISED.exists()
    says = "synchronised" if known else "not known to be synchronised; expiry is judged by the newest signed time seen"
    return Finding(what="clock", fine=True, says=f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC, {says}")


def backend(found: Found) -> Finding:
    """One backend."""
    says = "; ".join(filter(None, (found.version, found.reason)))
    return Finding(what=f"backend {found.backend}", fine=found.present, says=says)


def walls() -> str:
    """Which walls stand around a seat that is started here.

    Raises:
        TransferError: one does not hold; says why.
        BackendError: no seat says so.
    """
    drawn = from_json(dict[str, str], asyncio.run(ask_seat("--walls")), "walls")
    failed = ", ".join(f"{name} ({reason})" for name, reason in drawn.items() if reason)
    if failed:
        raise TransferError(f"not all walls hold: {failed}. Seats run; the unit's own walls are around them")
    return f"walled in: {', '.join(drawn)}"
