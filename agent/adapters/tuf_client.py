"""What TUF lists today: a hardened client around `tuf.ngclient.Updater`.

1. The pinned root is given every time; what lies in the folder is never the anchor.
2. A refresh works on a copy of the last good set of files. Only when the whole chain is verified, `check` (the
   floor of versions) has agreed and everything is synced does that copy become the current set: a cut, a torn file
   or an old repository leaves the last good set as it was.
3. Time is the caller's: the clock, or the high-water time where the clock is behind.
4. `load` believes the current set without a network. All signatures and the floor are checked again; expiry is not
   (it bounds how long intent may be withheld, not how long a key may be read) and is reported.
5. Delegated roles are fetched when a path first leads to them.

Pinned to tuf 7.0: `_trusted_set` is private, and the only place where the reference time can be set.
"""

import hashlib
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from tuf.api import exceptions
from tuf.api.metadata import Metadata, Root, Snapshot, TargetFile, Targets, Timestamp
from tuf.api.serialization import DeserializationError
from tuf.ngclient import Updater, UpdaterConfig
from tuf.ngclient.fetcher import FetcherInterface

from agent.adapters import files
from agent.adapters.answers import short
from agent.adapters.fetch import Mismatch, TargetInfo
from agent.adapters.store import Denied, Missing, Store, check_key
from agent.core.errors import InputError, TransferError, TrustError

METADATA = "metadata/"
TARGETS = "targets/"
ROOTS = 1024  # root rotations in a device's life; each of them is signed by the one before
DELEGATIONS = 64
DOCUMENT_S = 300.0  # one document: 5 MB over a bad modem. A store that drips longer is holding us back
SMALL_BYTES = 1024 * 1024  # policies and deployments, which are kept for times without a network
SMALL_COUNT = 64
ALWAYS = datetime(1970, 1, 1, tzinfo=UTC)  # a reference time at which nothing has expired

SENTENCES: tuple[tuple[type[Exception], str], ...] = (
    (exceptions.ExpiredMetadataError, "has expired: its publisher must sign it anew, or this clock is ahead"),
    (exceptions.BadVersionNumberError, "is older than what was seen here: somebody serves an old copy"),
    (exceptions.UnsignedMetadataError, "is not signed by enough of the keys that answer for it: look at the store"),
    (exceptions.LengthOrHashMismatchError, "is not the file that the signed metadata names: look at the store"),
    (exceptions.DownloadLengthMismatchError, "is longer than it may be: look at the store"),
    (DeserializationError, "cannot be parsed: look at the store"),
    (exceptions.RepositoryError, "does not belong together: look at the store"),
)


@dataclass(frozen=True, slots=True)
class Chain:
    """The verified top-level metadata, for the floor and for signed commands."""

    root: Root
    timestamp: Timestamp
    snapshot: Snapshot
    targets: Targets


class Trusted:
    """What was verified at one moment. Calls may block; from any thread."""

    def __init__(self, updater: Updater, store: Store, small: Path) -> None:
        chain = updater._trusted_set  # noqa: SLF001  see the top of the file
        self.chain = Chain(root=chain.root, timestamp=chain.timestamp, snapshot=chain.snapshot, targets=chain.targets)
        self.targets: Targets = chain.targets  # `verify_delegate` of signed documents
        self._updater = updater
        self._store = store
        self._small = small
        self._lock = threading.Lock()

    @property
    def expiries(self) -> Mapping[str, datetime]:
        """Role: when its metadata expires, of every role that was looked at."""
        looked_at = self._updater._trusted_set._trusted_set  # noqa: SLF001  its iterator leaves the names out
        return {role: signed.expires for role, signed in list(looked_at.items())}

    def find(self, path: str) -> TargetInfo | None:
        """The target, or None when nobody who may lists it.

        Raises:
            TransferError: the metadata of a delegated role could not be had.
            TrustError: it could, and is not to be believed.
        """
        with self._lock, files.saying_why(self._small.parent), _translated(path):
            found = self._updater.get_targetinfo(path)
        return None if found is None else _target_info(found, consistent=bool(self.chain.root.consistent_snapshot))

    def read(self, path: str, limit: int) -> bytes:
        """A small target; kept on the disk by its digest, for times without a network.

        Raises:
            Missing: nobody lists it, or the store has lost it.
            TrustError: it is longer than `limit`, or not the one that is signed (Mismatch).
            TransferError: it could not be had now.
        """
        info = self.find(path)
        if info is None:
            raise Missing(f"{path}: not listed: publish it")
        if info.length > min(limit, SMALL_BYTES):
            raise TrustError(
                f"{path}: {info.length} bytes are signed; at most {limit} are believed: publish a smaller one"
            )
        with files.saying_why(self._small):
            kept = files.read_or_none(self._small / info.sha256)
        if kept is not None and _is_signed(kept, info):
            return kept
        content = self._store.read(info.key, info.length)
        if not _is_signed(content, info):
            raise Mismatch(f"{path}: what lies in the store is not what is signed: look at the store")
        self._keep(info.sha256, content)
        return content

    def _keep(self, name: str, content: bytes) -> None:
        with files.saying_why(self._small):
            files.write_durably(self._small / name, content)
            by_age = sorted(self._small.iterdir(), key=lambda path: path.stat().st_mtime_ns, reverse=True)
            for old in by_age[SMALL_COUNT:]:
                old.unlink(missing_ok=True)


class TufClient:
    """One folder of metadata. One refresh at a time; the caller sees to that."""

    def __init__(self, folder: Path, store: Store, root: bytes, check: Callable[[Chain], object]) -> None:
        """The client for the repository in `store`.

        Args:
            folder: its own, on the disk; it is made when absent.
            store: where the repository lies.
            root: the root that was pinned at provisioning.
            check: raises TrustError when a verified chain is below the floor. The caller keeps the new floor, durably,
                after the set became current.

        Raises:
            InputError: the pinned root is none.
        """
        try:
            pinned = Metadata[Root].from_bytes(root)
            pinned.signed.verify_delegate("root", pinned.signed_bytes, pinned.signatures)
        except (exceptions.RepositoryError, ValueError) as error:
            raise _unusable(error) from error
        self.folder = folder
        self.store = store
        self.root = root
        self.check = check

    def refresh(self, now: datetime) -> Trusted:
        """What the store lists now, wholly verified and kept.

        Args:
            now: aware; never earlier than the high-water time.

        Raises:
            TransferError: it could not be had; the last good set stands.
            TrustError: it could, and is not to be believed; the last good set stands.
        """
        with files.saying_why(self.folder):
            stage = self._stage()
            trusted = self._verify(stage, StoreFetcher(self.store), now)
            self.check(trusted.chain)
            self._adopt(stage)
        return trusted

    def load(self) -> Trusted:
        """What the last good refresh listed, without a network; it may have expired (`expiries`).

        Raises:
            TransferError: there is no whole set here, and the next refresh brings one; or the disk refuses.
            TrustError: the set is below the floor.
        """
        current, folder = self.folder / "current", self.folder
        with files.saying_why(folder):  # python-tuf writes what it has verified, here too
            if not (current / "timestamp.json").is_file():
                raise TransferError(f"{folder}: nothing verified is here yet: the first contact to the store brings it")
            try:
                trusted = self._verify(current.resolve(), KeptFetcher(current / "timestamp.json"), ALWAYS)
            except (TransferError, TrustError) as error:
                raise TransferError(f"{folder}: what is kept here is damaged; the next refresh mends it") from error
            self.check(trusted.chain)
        return trusted

    def _verify(self, folder: Path, fetcher: FetcherInterface, now: datetime) -> Trusted:
        config = UpdaterConfig(max_root_rotations=ROOTS, max_delegations=DELEGATIONS)
        try:
            updater = Updater(str(folder), METADATA, fetcher=fetcher, config=config, bootstrap=self.root)
        except exceptions.RepositoryError as error:
            raise _unusable(error) from error
        with _translated("metadata"):
            updater._trusted_set.reference_time = now  # noqa: SLF001  see the top of the file
            updater.refresh()
        return Trusted(updater, self.store, self.folder / "small")

    def _stage(self) -> Path:
        """A copy of the current set, as links: python-tuf replaces files and never writes into one."""
        current = self.folder / "current"
        if current.is_dir() and not current.is_symlink():  # somebody copied the folder without its links
            number = 1 + max((int(old.name.removeprefix("set-")) for old in self.folder.glob("set-*")), default=0)
            current.rename(self.folder / f"set-{number}")
            current.symlink_to(f"set-{number}")
        was = current.resolve().name if current.exists() else "set-0"
        stage = self.folder / f"set-{int(was.removeprefix('set-')) + 1}"
        for old in self.folder.glob("set-*"):
            if old.name != was:
                shutil.rmtree(old)
        stage.mkdir(parents=True)
        if current.exists():
            unfinished = shutil.ignore_patterns("tmp*")
            shutil.copytree(current, stage, symlinks=True, ignore=unfinished, copy_function=os.link, dirs_exist_ok=True)
        return stage

    def _adopt(self, stage: Path) -> None:
        """Makes the set durable, then current."""
        for path in (stage, stage / "root_history"):
            for file in path.glob("*.json"):
                files.sync_file(file)
            files.sync_folder(path)
        link = self.folder / f"{files.TEMP}current"
        link.unlink(missing_ok=True)
        link.symlink_to(stage.name)
        link.replace(self.folder / "current")
        files.sync_folder(self.folder)


class StoreFetcher(FetcherInterface):
    """Metadata from the store, into memory, each before its deadline."""

    def __init__(self, store: Store) -> None:
        self.store = store

    def _fetch(self, url: str) -> Iterator[bytes]:
        deadline = time.monotonic() + DOCUMENT_S
        try:
            with self.store.stream(url) as download:
                for piece in download.pieces:
                    if time.monotonic() > deadline:
                        raise TransferError(f"{url}: not here after {DOCUMENT_S:.0f} s: check the network or the store")
                    yield piece
        except Missing as error:
            raise exceptions.DownloadHTTPError(str(error), 404) from error
        except Denied as error:
            raise exceptions.DownloadHTTPError(str(error), 403) from error

    def download_bytes(self, url: str, max_length: int) -> bytes:
        """All of it, in memory: python-tuf's own way is a file in /tmp, which is memory too, or full."""
        content = bytearray()
        for piece in self._fetch(url):
            content += piece
            if len(content) > max_length:
                raise exceptions.DownloadLengthMismatchError(f"{url}: more than {max_length} bytes")
        return bytes(content)


class KeptFetcher(FetcherInterface):
    """Answers the one question that python-tuf always asks, for a newer timestamp, with the kept one."""

    def __init__(self, timestamp: Path) -> None:
        self.timestamp = timestamp

    def _fetch(self, url: str) -> Iterator[bytes]:
        if url != f"{METADATA}timestamp.json":
            raise exceptions.DownloadHTTPError(f"{url}: not kept on this device", 404)
        yield self.timestamp.read_bytes()


@contextmanager
def _translated(what: str) -> Iterator[None]:
    """python-tuf's errors as ours, each with its sentence."""
    try:
        yield
    except (exceptions.RepositoryError, exceptions.DownloadLengthMismatchError) as error:
        sentence = next(text for kind, text in SENTENCES if isinstance(error, kind))
        raise TrustError(f"{what} {sentence} ({short(error)})") from error
    except exceptions.DownloadError as error:
        raise TransferError(
            f"{what} could not be had ({short(error)}): check the store's URL and the network"
        ) from error


def _target_info(found: TargetFile, *, consistent: bool) -> TargetInfo:
    sha256 = found.hashes.get("sha256")
    if sha256 is None:
        raise TrustError(f"{found.path}: listed without a SHA-256: its publisher must list it anew")
    folder, slash, name = found.path.rpartition("/")
    try:
        key = check_key(f"{TARGETS}{folder}{slash}{sha256}.{name}" if consistent else f"{TARGETS}{found.path}")
    except InputError as error:
        raise TrustError(f"{error}: its publisher must list it anew") from error
    return TargetInfo(path=found.path, length=found.length, sha256=sha256, custom=found.custom or {}, key=key)


def _is_signed(content: bytes, info: TargetInfo) -> bool:
    return len(content) == info.length and hashlib.sha256(content).hexdigest() == info.sha256


def _unusable(error: Exception) -> InputError:
    return InputError(f"the pinned root, root.json, cannot be used ({short(error)}); provision this device again")
