"""The releases on this disk: fetched whole, verified once, opened when they are needed, removed when nobody wants them.

1. The ledger knows of a file when it is whole, and forgets it before it goes: a file that the ledger does not know is
   a stray, removed at the next start.
2. What cannot be believed is told from what went bad on this disk: that is forgotten, and fetched again.
3. What is kept and what comes, of all slots together, stays within the quota; engines make room.

Calls that are not async block, and are for worker threads.
"""

import asyncio
import contextlib
import math
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from msgspec.structs import replace

from agent.adapters import files
from agent.adapters.fetch import RESERVE_BYTES, NoRoom, TargetInfo, fetch
from agent.adapters.ledger import Ledger
from agent.adapters.source import Source
from agent.adapters.tuf_client import Trusted
from agent.core.documents import from_json, from_yaml, to_tree
from agent.core.errors import InputError, TransferError, TrustError
from agent.core.messages import CONFIG, METADATA
from agent.core.names import check_form
from agent.core.records import ReleaseRecord, TrialRecord
from agent.core.release import Config, Metadata, Ref
from agent.core.slot import SlotRecord
from agent.daemon.deltas import Deltas
from agent.daemon.engines import Engines
from agent.daemon.keyring import Keyring
from agent.trust.listing import read_listing, target_path
from agent.trust.sealing import Opener

DOCUMENT_BYTES = 1024 * 1024  # metadata or config; a real one has a few KB
SEALED = "weights/{}.sealed"
DOCUMENTS = {METADATA: "metadata/{}_metadata.json", CONFIG: "configs/{}_config.yaml"}

T = TypeVar("T")


@dataclass(slots=True)
class Progress:
    """Bytes of a running fetch."""

    done: int = 0
    total: int = 0


@dataclass(eq=False)
class Copies:
    """What this device has of releases."""

    folder: Path
    source: Source
    ledger: Ledger
    keyring: Keyring
    engines: Engines
    trusted: Callable[[], Trusted | None]
    quota_mb: float | None = None

    def __post_init__(self) -> None:
        self.progress: dict[str, Progress] = {}
        self._deltas = Deltas(self.ledger, self.keyring, self._open)

    def path(self, ref: Ref) -> Path:
        """Where a release lies, sealed."""
        return self.folder / SEALED.format(ref.name)

    # --- in ------------------------------------------------------------------------------------------------------

    async def fetch(self, slot: str, ref: Ref) -> str:
        """Download a listed release, resumable, to its place; what a delta saved, or why it did not."""
        stop = threading.Event()
        progress = self.progress[slot] = Progress()
        try:
            return await asyncio.to_thread(self._fetch, ref, progress, stop)
        finally:
            stop.set()
            self.progress.pop(slot, None)

    def _fetch(self, ref: Ref, progress: Progress, stop: threading.Event) -> str:
        trusted, info = self._listed(ref)
        listing = read_listing(info.custom, info.path)
        destination = self.path(ref)
        progress.total = info.length
        if files.free_bytes(destination) < info.length + RESERVE_BYTES:
            self.engines.fit(0)
        self._require_quota(ref)

        def count(done: int) -> None:
            progress.done = done

        def get(target: TargetInfo, place: Path) -> None:
            progress.total = target.length
            fetch(
                self.source, target, place,
                on_progress=count, should_stop=stop.is_set, rate_limit=self.source.pace(),
            )  # fmt: skip

        try:
            said = self._deltas.take(ref, info, destination, trusted, get)
            if not said:
                get(info, destination)
            self._record(ReleaseRecord(ref=ref, size=info.length, listing=to_tree(listing)))
            if stop.is_set():  # nobody looks for the record any more; whoever stops later finds it
                self.ledger.remove("release", ref.digest)
                raise TransferError(f"{ref.name}: another release is wanted by now")  # noqa: TRY301
        except TransferError:
            self.free_of_strays()  # stopped because another release is wanted: what came is of no use
            raise
        return said or self._deltas.failed.get(ref, "")

    def _listed(self, ref: Ref) -> tuple[Trusted, TargetInfo]:
        trusted = self.trusted()
        if trusted is None:
            raise TransferError("nothing verified is known of the store yet: waiting for the first contact")
        try:
            info = trusted.find(target_path(ref.name))
        except TrustError as error:  # of what the store serves now, not of the release
            raise TransferError(f"{ref.name}: {error}") from error
        if info is None:
            raise TransferError(
                f"{ref.name}: the store did not list it when last asked; it is asked again. Is the release published?"
            )
        if info.sha256 != ref.digest:
            raise TrustError(
                f"{ref.name}: the deployment means {ref.digest[:12]}, the store lists {info.sha256[:12]} under this "
                "name; one name is one set of bytes for ever: deploy a release that is listed"
            )
        return trusted, info

    def _require_quota(self, ref: Ref) -> None:
        """Raises NoRoom where what is kept and what every slot fetches now are more than the quota."""
        kept = self._kept_mb(ref)
        coming = sum(one.total for one in self.progress.values()) / 1e6
        self.engines.fit(self.room(ref) - coming * 1e6)
        if self.quota_mb is not None and coming + sum(kept.values()) > self.quota_mb:
            names = ", ".join(f"{name} {size:.1f}" for name, size in kept.items()) or "nothing"
            raise NoRoom(
                f"{ref.name}: {coming:.1f} MB are to come and {sum(kept.values()):.1f} MB are kept ({names}), "
                f"more than the quota_mb of {self.quota_mb:.1f} in agent.yaml: raise it, or deploy a smaller release"
            )

    def _kept_mb(self, but: Ref | None) -> dict[str, float]:
        known = self.ledger.all("release", ReleaseRecord).values()
        return {one.ref.name: one.size / 1e6 for one in known if one.ref != but}

    def room(self, but: Ref | None = None) -> float:
        """Bytes that the quota leaves beside the releases that are kept."""
        return math.inf if self.quota_mb is None else (self.quota_mb - sum(self._kept_mb(but).values())) * 1e6

    # --- what is in them -----------------------------------------------------------------------------------------

    def verify(self, slot: str, ref: Ref) -> Config:
        """Open all of it once, read its two documents, and keep them; how to run it.

        Raises:
            TrustError: it cannot be believed.
            InputError: its documents are none, or another's.
            TransferError: it is to be fetched again.
        """
        record = self.release(ref)
        documents = self.blaming(ref, lambda: _documents(self._open(ref, record)))
        metadata = from_json(Metadata, documents[METADATA], f"{ref.name}: {METADATA}")
        config = from_yaml(Config, documents[CONFIG], f"{ref.name}: {CONFIG}")
        check_metadata(metadata, ref, slot)
        for path, content in zip(self._document_paths(ref), documents.values(), strict=True):  # for people alone
            files.write_durably(path, content)
        self._record(replace(record, verified=True, metadata=metadata, config=config))
        return config

    def release(self, ref: Ref) -> ReleaseRecord:
        """What is known of a release; raises TransferError where it has to be fetched."""
        found = self.ledger.get("release", ref.digest, ReleaseRecord)
        if found is None:
            raise TransferError(f"{ref.name}: the ledger does not know it; it is fetched again")
        return found

    def open(self, ref: Ref) -> Opener:
        """A release, ready to be read; raises as `blaming`."""
        return self.blaming(ref, lambda: self._open(ref, self.release(ref)))

    def blaming(self, ref: Ref, read: Callable[[], T]) -> T:
        """What reading a release gives; one that cannot be believed is told from a file that went bad here.

        Raises:
            TrustError: theirs; it is not read again.
            TransferError: the file went bad; it is fetched again.
        """
        try:
            return read()
        except TrustError as error:
            with contextlib.suppress(OSError):  # not there, or unreadable: gone bad here
                if files.digest_of(self.path(ref)) == ref.digest:
                    raise
            self.ledger.remove("release", ref.digest)
            self._remove_files(ref)
            raise TransferError(f"{ref.name}: its file was damaged on this disk; it is fetched again") from error

    def _open(self, ref: Ref, record: ReleaseRecord) -> Opener:
        sealed = self.path(ref)
        if not sealed.is_file():
            self.ledger.remove("release", ref.digest)
            raise TransferError(f"{sealed}: the file is gone; it is fetched again")
        return self.keyring.open(ref.name, read_listing(dict(record.listing), ref.name), sealed)

    def _record(self, release: ReleaseRecord) -> None:
        self.ledger.put_all([("release", release.ref.digest, release)], precious=True)

    def _document_paths(self, ref: Ref) -> list[Path]:
        return [self.folder / place.format(ref.name) for place in DOCUMENTS.values()]

    # --- out -----------------------------------------------------------------------------------------------------

    def delete(self, ref: Ref) -> None:
        """Forget a release and what was measured of it, and remove its files."""
        trials = self.ledger.all("trial", TrialRecord)
        measured = [("trial", key, None) for key, trial in trials.items() if trial.place.ref == ref]
        self.ledger.put_all([("release", ref.digest, None), *measured], precious=True)
        self._remove_files(ref)

    def _remove_files(self, ref: Ref) -> None:
        for path in (*self.folder.glob(f"*/{self.path(ref).name}*"), *self._document_paths(ref)):
            path.unlink(missing_ok=True)

    def free_of_strays(self) -> None:
        """Remove files that no release in the ledger owns."""
        known = {release.ref.name for release in self.ledger.all("release", ReleaseRecord).values()}
        records = self.ledger.all("slot", SlotRecord).values()
        wanted = {ref.name for record in records if (ref := record.desired)}
        wanted |= {place.ref.name for record in records if (place := record.last_good)}
        for path in self.folder.glob("*/*"):
            name = path.name.split(".sealed")[0].removesuffix("_metadata.json").removesuffix("_config.yaml")
            if name not in known | wanted and not name.startswith(files.TEMP):
                with contextlib.suppress(OSError):  # a disk that refuses is told elsewhere
                    path.unlink()


def _documents(opener: Opener) -> dict[str, bytes]:
    contents = {name: bytearray() for name in DOCUMENTS}
    sizes = {part.name: part.size for part in opener.parts}
    for name in DOCUMENTS:
        if not 0 < sizes.get(name, 0) <= DOCUMENT_BYTES:
            raise InputError(f"the release holds no {name}, or one over {DOCUMENT_BYTES} bytes; publish it anew")
    for index, piece in opener.pieces():
        if (name := opener.parts[index].name) in contents:
            contents[name] += piece
    return {name: bytes(content) for name, content in contents.items()}


def check_metadata(metadata: Metadata, ref: Ref, slot: str) -> None:
    """The signed metadata is this release's and this slot's.

    Raises:
        InputError: it is another's.
    """
    _, version = check_form(ref.name)
    if metadata.name != ref.name or metadata.version != version:
        raise InputError(f"{ref.name}: its metadata is of {metadata.name} {metadata.version}; publish it anew")
    if metadata.task != slot:
        raise InputError(f"{ref.name}: its task is {metadata.task}, the slot is {slot}; deploy it to that slot")
