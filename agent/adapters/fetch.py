"""One target, resumable, from a store that nobody believes.

1. The bytes go to `.part`; beside it `.part.json` says whose they are and how many are certainly on the disk.
2. A resume trusts no more than that, and hashes those bytes again.
3. Only a whole file with the signed length and digest gets its name; until then nobody sees it.
4. Bytes that are not the signed ones are removed at once (Mismatch). Whatever the network does keeps the part.
5. A full disk is seen before the first byte; one that fills up meanwhile is given back what we took.
"""

import hashlib
import os
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from agent.adapters import files
from agent.adapters.store import Changed, Download, Store
from agent.core.documents import Document, from_json, to_json
from agent.core.errors import InputError, TransferError, TrustError

SYNC_BYTES = 16 * 1024 * 1024  # lost at most when the power goes; smaller writes more often than flash likes
RESERVE_BYTES = 64 * 1024 * 1024  # stays free for the ledger, the logs and the outbox
SLOW_S = 60.0  # in this time ...
SLOW_BYTES = 16 * 1024  # ... a modem of 1995 brings more than this; a store that does not is holding us back
NAP_S = 0.25  # how long a stop may go unnoticed while the rate limit waits


class Mismatch(TrustError):  # noqa: N818  an answer, named as it reads
    """What came is not what was signed. It says nothing against the digest: other bytes may come another time."""


class Stopped(TransferError):  # noqa: N818  an answer, named as it reads
    """The caller asked to stop; the next call goes on from here."""


class NoRoom(TransferError):  # noqa: N818  an answer, named as it reads
    """The disk is too full for it."""


class TargetInfo(Document):
    """A listed target: what is signed of it, and where it lies in the store."""

    path: str
    length: int
    sha256: str
    custom: Mapping[str, Any]
    key: str


class State(Document):
    """What `.part.json` holds."""

    etag: str
    sha256: str
    size: int
    synced: int


class Pace:
    """Keeps a rate limit, and notices a store that drips."""

    def __init__(self, rate_limit: int | None, should_stop: Callable[[], bool]) -> None:
        self.rate_limit = rate_limit
        self.should_stop = should_stop
        self.began = self.looked = time.monotonic()
        self.total = self.recent = 0

    def count(self, taken: int) -> None:
        """Waits until `taken` more bytes are due.

        Raises:
            Stopped: the caller asked for it.
            TransferError: SLOW_S brought fewer than SLOW_BYTES.
        """
        self.total += taken
        self.recent += taken
        self._notice_drip()
        while True:
            if self.should_stop():
                raise Stopped(f"stopped after {self.total} bytes, as asked")
            early = self.total / self.rate_limit - (time.monotonic() - self.began) if self.rate_limit else 0.0
            if early <= 0:
                return
            time.sleep(min(early, NAP_S))

    def _notice_drip(self) -> None:
        now = time.monotonic()
        if now - self.looked < SLOW_S:
            return
        if self.recent < min(SLOW_BYTES, (self.rate_limit or SLOW_BYTES) * SLOW_S / 2):
            raise TransferError(f"only {self.recent} bytes in {SLOW_S:.0f} s: check the network or store; tried again")
        self.looked, self.recent = now, 0


class Part:
    """The unfinished file: what is in it, and what of that is certainly on the disk."""

    def __init__(self, destination: Path, target: TargetInfo) -> None:
        self.path = destination.with_name(destination.name + ".part")
        self.note = destination.with_name(destination.name + ".part.json")
        self.target = target
        self.file = files.writer(self.path)
        self.resume()

    def resume(self) -> None:
        """Takes up what an earlier call left, as far as it is certain."""
        state = self._state()
        trusted = min(state.synced, self.path.stat().st_size) if state else 0
        self.file.truncate(trusted)
        self.file.seek(0)
        self.etag = state.etag if state else ""
        self.digest = hashlib.file_digest(self.file, "sha256")
        self.offset = self.synced = trusted

    def restart(self) -> None:
        """Forgets everything."""
        self.note.unlink(missing_ok=True)
        self.resume()

    def add(self, piece: bytes) -> None:
        """Appends; syncs every SYNC_BYTES."""
        rest = memoryview(piece)
        while rest:
            rest = rest[self.file.write(rest) :]
        self.digest.update(piece)
        self.offset += len(piece)
        if self.offset - self.synced >= SYNC_BYTES:
            self.sync()

    def sync(self) -> None:
        """Makes all that came certain."""
        if self.offset == self.synced:
            return
        os.fdatasync(self.file.fileno())
        state = State(etag=self.etag, sha256=self.target.sha256, size=self.target.length, synced=self.offset)
        files.write_durably(self.note, to_json(state))
        self.synced = self.offset

    def finish(self, destination: Path) -> None:
        """Gives the whole, verified file its name."""
        os.fsync(self.file.fileno())
        self.path.replace(destination)
        self.note.unlink(missing_ok=True)
        files.sync_folder(destination.parent)

    def remove(self) -> None:
        """Leaves nothing."""
        self.path.unlink(missing_ok=True)
        self.note.unlink(missing_ok=True)

    def _state(self) -> State | None:
        content = files.read_or_none(self.note)
        try:
            state = from_json(State, content or b"", str(self.note))
        except InputError:  # torn, or of another version: begin again
            return None
        is_ours = (state.sha256, state.size) == (self.target.sha256, self.target.length)
        return state if is_ours and state.synced <= state.size else None


def fetch(
    store: Store,
    target: TargetInfo,
    destination: Path,
    *,
    on_progress: Callable[[int], None],
    should_stop: Callable[[], bool],
    rate_limit: int | None = None,
) -> None:
    """Makes `destination` the target, byte for byte. Blocks; for one worker thread.

    Args:
        store: where from.
        target: what.
        destination: the file; its folder exists.
        on_progress: told how many bytes are here, after each piece.
        should_stop: asked after each piece.
        rate_limit: bytes per second, or None.

    Raises:
        Mismatch: what lies there is not what was signed; nothing of it is left here.
        Stopped: `should_stop` said so.
        TransferError: network, store or disk; call again later, it goes on where it stopped.
    """
    size = target.length
    with files.saying_why(destination):
        if _holds(destination, target):
            return
        destination.parent.mkdir(parents=True, exist_ok=True)
        part = Part(destination, target)
    with files.saying_why(destination), part.file:
        require_room(destination, size, size - part.offset)
        try:
            if part.offset < size or not size:
                _transfer(store, part, Pace(rate_limit, should_stop), on_progress)
            _require_signed(part)
            part.finish(destination)
        except Mismatch:
            part.remove()
            raise
        except (OSError, TransferError) as error:
            if not _says_full(error):
                raise
            part.remove()
            raise NoRoom(
                f"{destination}: the disk filled up while {size / 1e6:.1f} MB were fetched: "
                "what came was removed; make room, it is tried again"
            ) from error


def _transfer(store: Store, part: Part, pace: Pace, on_progress: Callable[[int], None]) -> None:
    key, size = part.target.key, part.target.length
    try:
        with _open(store, part) as download:
            if download.size != size:
                raise Mismatch(f"{key}: {download.size} bytes lie there, {size} are signed: publish it again")
            if download.start != part.offset:
                part.restart()
            part.etag = download.etag
            for piece in download.pieces:
                if part.offset + len(piece) > size:
                    raise Mismatch(f"{key}: more than the {size} signed bytes came: look at the store")
                part.add(piece)
                on_progress(part.offset)
                pace.count(len(piece))
    except TransferError:
        part.sync()
        raise
    if part.offset < size:
        part.sync()
        raise TransferError(f"{key}: the connection ended after {part.offset} of {size} bytes: it is tried again")


def _open(store: Store, part: Part) -> Download:
    """The rest of the object; all of it when the rest is of another one."""
    if part.offset:
        with suppress(Changed):
            return store.stream(part.target.key, part.offset, part.etag or None)
    return store.stream(part.target.key)


def _require_signed(part: Part) -> None:
    came, signed = part.digest.hexdigest(), part.target.sha256
    if came != signed:
        raise Mismatch(f"{part.target.key}: SHA-256 {came[:16]}… came, {signed[:16]}… is signed: look at the store")


def require_room(destination: Path, size: int, missing: int) -> None:
    """Raises NoRoom where less is free than the missing bytes and the reserve."""
    free = files.free_bytes(destination)
    if free < missing + RESERVE_BYTES:
        raise NoRoom(
            f"{destination}: {missing / 1e6:.1f} of {size / 1e6:.1f} MB are missing and {RESERVE_BYTES / 1e6:.0f} MB "
            f"stay in reserve, but {free / 1e6:.1f} MB are free: make room; it is tried again"
        )


def _says_full(error: BaseException) -> bool:
    cause = error.__cause__ if isinstance(error, TransferError) else error
    return isinstance(cause, OSError) and cause.errno in files.NO_ROOM


def _holds(path: Path, target: TargetInfo) -> bool:
    """Whether an earlier call got as far as the name."""
    return path.exists() and path.stat().st_size == target.length and files.digest_of(path) == target.sha256
