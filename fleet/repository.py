"""A TUF repository on a store, as one desk sees and extends it.

1. The store is not believed: everything is verified from the pinned root before it is extended, and a desk keeps
   what it has seen, so that an old copy of the store is never signed anew. Expiry does not stop a desk: renewing is
   its work.
2. Upload order: blobs, N.{role}.json, N.snapshot.json, timestamp.json, and a new root last. A reader sees the old
   state or the new one. Only timestamp.json is ever replaced.
3. A version number that is taken was left by a cut upload, and is skipped; if the timestamp changed meanwhile,
   somebody else published, and the user is told to try again.
4. What a desk cannot sign alone is left for others to sign, before anything is uploaded.
"""

import copy
import hashlib
import re
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, BinaryIO, Self, TypeVar

from tuf.api.exceptions import RepositoryError
from tuf.api.metadata import Metadata, MetaFile, Root, Snapshot, TargetFile, Targets, Timestamp

from agent.adapters.files import write_durably
from agent.adapters.store import Missing
from agent.adapters.tuf_client import METADATA, TARGETS
from agent.core.errors import InputError, TrustError
from agent.core.release import Ref
from agent.trust.floor import ISSUED_AT
from agent.trust.listing import target_path
from fleet.keyring import Keyring
from fleet.listings import Listings
from fleet.pending import Pending, write_pending
from fleet.roles import (
    HIGHEST,
    OFFLINE,
    TOP,
    Authority,
    check_roles,
    delegated,
    delegations,
    expiry,
    listing_roles,
    make_root,
    role_of,
)
from fleet.signatures import (
    can_sign,
    keep_counting,
    leave,
    metadata_of,
    missing,
    pending_of,
    sign,
    signers_for,
    waiting_file,
)
from fleet.stores import DeskStore, Exists
from fleet.versions import METADATA_BYTES, has, numbers, see, sight, upload_once

S = TypeVar("S", Root, Timestamp, Snapshot, Targets)

RENEW = timedelta(days=60)  # `refresh` renews a listing role that expires within this time
RELEASE = re.compile(r"releases/(.+)\.sealed")
SKIPS = 16  # cut uploads in a row


class Overtaken(InputError):  # noqa: N818  an answer: run it again
    """Two desks publish at one time."""

    def __init__(self) -> None:
        super().__init__("somebody else published meanwhile, and nothing of yours is visible yet; run it again")


class Repository:
    """The newest verified state of a store, and what this desk is about to add."""

    def __init__(self, store: DeskStore, keyring: Keyring, root: Root, targets: Targets, snapshot: Snapshot) -> None:
        self.store = store
        self.keyring = keyring
        self.root = Metadata(root)
        self.snapshot = Metadata(snapshot)
        self.timestamp = Metadata(Timestamp())
        self.listings = Listings(store, targets, snapshot)
        self.before = copy.deepcopy(self.authority)  # as readers see it
        self._signed: dict[str, Metadata[Any]] = {}  # by their holders, elsewhere
        self._base: bytes | None = None  # timestamp.json that all of this builds on

    @classmethod
    def start(cls, store: DeskStore, keyring: Keyring, now: datetime) -> Self:
        """A new repository in an empty store.

        Raises:
            InputError: there is one already, or a key is missing.
            TransferError: it could not be written now.
        """
        if has(store, f"{METADATA}timestamp.json"):
            raise InputError("the store holds a repository already; choose an empty place, or work on that one")
        if not keyring.root_file.exists():
            write_durably(keyring.root_file, make_root(keyring, now), 0o644)
        raw = keyring.root()
        root, targets = Metadata[Root].from_bytes(raw).signed, Targets(delegations=delegations(keyring))
        repository = cls(store, keyring, root, targets, Snapshot(meta={}))
        check_roles(repository.authority.roles_by_key(), delegated(targets))
        store.write(f"{METADATA}1.root.json", raw)
        for first in (repository.targets, repository.snapshot, repository.timestamp):
            first.signed.version = 0  # the first upload makes it 1
        repository.listings.begin()
        repository.publish(now)
        return repository

    @classmethod
    def load(cls, store: DeskStore, keyring: Keyring) -> Self:
        """The repository in a store.

        Raises:
            TrustError: it does not verify from the pinned root, or is older than what this desk has seen.
            TransferError: it could not be read now.
        """
        chain = see(store, keyring)
        repository = cls(store, keyring, chain.root, chain.targets, chain.snapshot)
        repository.timestamp = Metadata(chain.timestamp)
        repository._base = store.read(f"{METADATA}timestamp.json", METADATA_BYTES)
        if Metadata[Timestamp].from_bytes(repository._base).signed != chain.timestamp:
            raise Overtaken
        return repository

    @classmethod
    def recall(cls, store: DeskStore, keyring: Keyring) -> Self:
        """The repository as this desk saw it last, to be put in the place of what a thief of its online keys left.

        Raises:
            TransferError: this desk has seen nothing, or the store cannot be read now.
        """
        chain = sight(store, keyring).load().chain
        repository = cls(store, keyring, chain.root, chain.targets, chain.snapshot)
        repository.timestamp = Metadata(chain.timestamp)
        repository._base = store.read(f"{METADATA}timestamp.json", METADATA_BYTES)
        return repository

    @property
    def targets(self) -> Metadata[Targets]:
        """The top-level targets."""
        return self.listings.targets

    @property
    def authority(self) -> Authority:
        """Who answers for what, once this is published."""
        return Authority(self.root.signed, self.targets.signed)

    def refs(self) -> tuple[Ref, ...]:
        """Every listed release, sorted by name."""
        found = [target for _, target in self.listings.owned() if RELEASE.fullmatch(target.path)]
        return tuple(
            Ref(name=RELEASE.sub(r"\1", target.path), digest=target.hashes["sha256"])
            for target in sorted(found, key=lambda target: target.path)
        )

    def ref(self, name: str) -> Ref:
        """A listed release.

        Raises:
            InputError: it is not listed.
        """
        target = self.find(target_path(name))
        if target is None:
            raise InputError(f"release {name}: not published here; `edge-fleet list` shows what is")
        return Ref(name=name, digest=target.hashes["sha256"])

    def paths(self, prefix: str) -> tuple[str, ...]:
        """Every path under a prefix that its owner lists, sorted."""
        return tuple(sorted(target.path for _, target in self.listings.owned() if target.path.startswith(prefix)))

    def find(self, path: str) -> TargetFile | None:
        """What its owner lists at this path."""
        return self.listings.find(path)

    def read(self, path: str, limit: int) -> bytes:
        """The content of a listed target; raises TrustError where it is not what was signed."""
        target = self.find(path)
        if target is None:
            raise Missing(f"{path}: not listed; publish it")
        content = self.store.read(key_of(target), min(limit, target.length))
        try:
            target.verify_length_and_hashes(content)
        except RepositoryError as error:
            raise TrustError(f"{path}: what lies in the store is not what was signed: look at the store") from error
        return content

    def add(self, target: TargetFile, content: bytes | BinaryIO) -> None:
        """Uploads a blob; it is listed with the next `publish`."""
        self.store.write(key_of(target), content)
        self.relist(target)

    def relist(self, target: TargetFile) -> None:
        """Lists a target whose bytes lie there already, with the next `publish`."""
        self.listings.add(target)

    def change(self, now: Authority) -> None:
        """Puts other keys and roles in force with the next `publish`; what follows from them is signed anew, too."""
        old = self.root.signed
        if now.root != old:
            self.root = Metadata(now.root)
            self.listings.changed.add("root")
            new = {role for role in TOP if set(now.root.roles[role].keyids) != set(old.roles[role].keyids)}
            self.listings.changed |= new & {"targets"}
            self._count_again(new)
        if now.targets != self.targets.signed:
            self.listings.change(now.targets)

    def renew(self, role: str) -> None:
        """Signs a role's metadata anew with the next `publish`; raises InputError where there is none."""
        self.authority.role(role)
        role = role_of(self.targets.signed, role)
        if role in listing_roles(self.targets.signed):
            self.listings.changed |= set(self.listings.pages(role))
        elif role in OFFLINE:
            self.listings.changed.add(role)
        elif role not in TOP:
            raise InputError(f"role {role}: it lists nothing that could expire; its keys stand in targets")

    def take(self, pending: Pending) -> None:
        """Takes over what its holders signed; readers see it with the next `publish`.

        Raises:
            InputError: signatures are missing, or something else was published since it was begun.
        """
        name, metadata = pending.kind, metadata_of(pending)
        self.authority.role(name)
        number, current = metadata.signed.version, self._metadata(name).signed.version
        if number <= current or (name == "root" and number != current + 1):
            raise InputError(
                f"{name} {number}: version {current} is published already; delete the file and begin again"
            )
        after = Authority(metadata.signed if name == "root" else self.root.signed, self.targets.signed)
        keep_counting(name, metadata, self.before, after)
        short = missing(name, metadata, self.before, after)
        if short:
            raise InputError(f"{name} {number}: {short}; add signatures with `edge-provision keys sign`")
        if name == "root":
            self.change(Authority(metadata.signed, self.targets.signed))
        elif name == "targets":
            self.listings.change(metadata.signed)
        else:
            self.listings.take(name, metadata)
        self._signed[name] = metadata

    def publish(self, now: datetime) -> None:
        """Signs and uploads everything that changed; readers see it when this returns.

        Raises:
            Unfinished: others must sign, too; what they sign waits in a file.
            InputError: a key is missing, or somebody else published meanwhile.
            TransferError: an upload failed; readers still see the state before.
        """
        changed = self.listings.changed
        self.listings.make_bins(self._can_sign)
        waiting = [name for name in sorted(changed - self._signed.keys()) if not self._can_sign(name)]
        if waiting:
            raise leave(
                self.keyring, {name: self._numbered(name, now) for name in waiting}, self.before, self.authority
            )
        for name in sorted(changed - {"root"}):
            self.snapshot.signed.meta[f"{name}.json"] = self._upload(self.listings.page(name), name, now)
        self.timestamp.signed.snapshot_meta = self._upload(self.snapshot, "snapshot", now)
        if "root" in changed:
            self._sign_root(now)
        self._replace_timestamp(now)
        if "root" in changed:
            write_durably(self.keyring.root_file, upload_once(self.store, self._signed["root"], "root"), 0o644)
            self._waiting_root.unlink(missing_ok=True)
        self.listings.settled()
        self._signed.clear()
        self.before = copy.deepcopy(self.authority)
        see(self.store, self.keyring)

    def refresh(self, now: datetime) -> None:
        """Renews timestamp and snapshot, and the listing roles that expire soon and whose keys are here."""
        for role in listing_roles(self.targets.signed):
            if self.keyring.holds(role):
                pages = self.listings.pages(role)
                self.listings.changed |= {name for name, page in pages.items() if page.signed.expires < now + RENEW}
        self.publish(now)

    def _metadata(self, name: str) -> Metadata[Any]:
        top: dict[str, Metadata[Any]] = {"root": self.root, "snapshot": self.snapshot, "timestamp": self.timestamp}
        return top[name] if name in top else self.listings.page(name)

    def _can_sign(self, name: str) -> bool:
        return can_sign(self.keyring, name, self.before, self.authority)

    def _numbered(self, name: str, now: datetime) -> Metadata[Any]:
        """The metadata under the next free version, to be signed elsewhere."""
        metadata = self._metadata(name)
        metadata.signed.expires = expiry(name, now)
        metadata.signed.version += 1
        while name != "root" and has(self.store, f"{METADATA}{metadata.signed.version}.{name}.json"):
            metadata.signed.version += 1
        return metadata

    def _count_again(self, new: set[str]) -> None:
        """Where a thief raised versions beyond reach, new keys of timestamp and snapshot let them fall."""
        if "timestamp" in new:
            self._count_below("timestamp")
        if {"timestamp", "snapshot"} <= new:
            self._count_below("snapshot")
            for name, listed in self.snapshot.signed.meta.items():
                if listed.version > HIGHEST:
                    self.snapshot.signed.meta[name] = self.listings.newest(name.removesuffix(".json"))

    def _count_below(self, name: str) -> None:
        signed = self._metadata(name).signed
        if signed.version > HIGHEST:
            signed.version = max((number for number in numbers(self.store, name) if number <= HIGHEST), default=0)

    def _upload(self, metadata: Metadata[S], name: str, now: datetime) -> MetaFile:
        if name in self._signed:
            raw = upload_once(self.store, self._signed[name], name)
            return MetaFile.from_data(metadata.signed.version, raw, ["sha256"])
        for _ in range(SKIPS):
            metadata.signed.version += 1
            raw = self._sign(metadata, name, now)
            try:
                self.store.write(f"{METADATA}{metadata.signed.version}.{name}.json", raw, if_absent=True)
            except Exists:
                continue
            return MetaFile.from_data(metadata.signed.version, raw, ["sha256"])
        raise InputError(
            f"{METADATA}: {SKIPS} versions of {name} lie there unfinished; somebody must look at the store"
        )

    @property
    def _waiting_root(self) -> Path:
        return waiting_file(self.keyring, "root", self.root.signed.version)

    def _sign_root(self, now: datetime) -> None:
        """Keeps the new root in a file until it is in the store.

        Where only new keys sign the timestamp, a cut between the two uploads leaves a store that nobody can read
        without it; `edge-provision keys finish` uploads it.
        """
        if "root" not in self._signed:
            self.root.signed.version += 1
            self._sign(self.root, "root", now)
            self._signed["root"] = self.root
        write_pending(self._waiting_root, pending_of("root", self._signed["root"]))

    def _replace_timestamp(self, now: datetime) -> None:
        self.timestamp.signed.version += 1
        self.timestamp.signed.unrecognized_fields[ISSUED_AT] = now.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        raw = self._sign(self.timestamp, "timestamp", now)
        self._check_alone()
        self.store.write(f"{METADATA}timestamp.json", raw)
        self._base = raw

    def _sign(self, metadata: Metadata[S], name: str, now: datetime) -> bytes:
        metadata.signed.expires = expiry(name, now)
        return sign(metadata, signers_for(self.keyring, name, self.before, self.authority))

    def _check_alone(self) -> None:
        """Raises when the timestamp is not the one that all of this builds on."""
        try:
            current: bytes | None = self.store.read(f"{METADATA}timestamp.json", METADATA_BYTES)
        except Missing:
            current = None
        if current != self._base:
            raise Overtaken


def listed(path: str, length: int, sha256: str, custom: Mapping[str, Any] | None = None) -> TargetFile:
    """A target as TUF lists it."""
    return TargetFile(length, {"sha256": sha256}, path, {"custom": custom} if custom is not None else None)


def listed_bytes(path: str, content: bytes) -> TargetFile:
    """A small target as TUF lists it."""
    return listed(path, len(content), hashlib.sha256(content).hexdigest())


def key_of(target: TargetFile) -> str:
    """Where a target's bytes lie in the store: under their digest, so that they never change."""
    return TARGETS + next(iter(target.get_prefixed_paths()))


def expiries(repository: Repository) -> Iterable[tuple[str, datetime]]:
    """(role, when it expires), soonest first; of a role with bins, the soonest of those that were looked at."""
    found: dict[str, list[Metadata[Any]]] = {"root": [repository.root], "targets": [repository.targets]}
    found |= {"snapshot": [repository.snapshot], "timestamp": [repository.timestamp]}
    found |= {role: repository.listings.looked_at(role) for role in listing_roles(repository.targets.signed)}
    soonest = {role: min(one.signed.expires for one in metadata) for role, metadata in found.items()}
    return sorted(soonest.items(), key=lambda item: item[1])
