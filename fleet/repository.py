"""A TUF repository on a store, as one desk sees and extends it.

1. The store is not believed: everything is verified from the pinned root before it is extended, and a desk keeps
   what it has seen, so that an old copy of the store is never signed anew. Expiry does not stop a desk: renewing is
   its work.
2. Upload order: blobs, N.{role}.json, N.snapshot.json, timestamp.json last. A reader sees the old state or the new
   one. Only timestamp.json is ever replaced.
3. A version number that is taken was left by a cut upload, and is skipped; if the timestamp changed meanwhile,
   somebody else published, and the user is told to try again.
"""

import hashlib
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, BinaryIO, Self, TypeVar

from tuf.api.exceptions import RepositoryError
from tuf.api.metadata import (
    DelegatedRole,
    Delegations,
    Metadata,
    MetaFile,
    Root,
    Snapshot,
    TargetFile,
    Targets,
    Timestamp,
)

from agent.adapters.files import write_durably
from agent.adapters.store import Missing, Store
from agent.adapters.tuf_client import ALWAYS, METADATA, TARGETS, Chain, TufClient
from agent.core.errors import InputError, TrustError
from agent.core.release import Ref
from agent.trust.floor import ISSUED_AT
from agent.trust.listing import target_path
from fleet.keyring import ROLES, Keyring
from fleet.stores import DeskStore, Exists

S = TypeVar("S", Root, Timestamp, Snapshot, Targets)

PATHS: Mapping[str, list[str]] = {
    "releases": ["releases/*"],
    "deployments": ["deployments/*"],
    "operators": [],  # these four lend their keys to signed documents and list nothing
    "operators-critical": [],
    "controller": [],
    "grants": [],
}
LISTING_ROLES = tuple(role for role, paths in PATHS.items() if paths)
# A stolen bucket can withhold news until the timestamp expires: three days outlive a weekend without `refresh`.
DAYS = {"root": 365, "targets": 365, "releases": 180, "deployments": 180, "snapshot": 14, "timestamp": 3}
RENEW = timedelta(days=60)  # `refresh` renews a listing role that expires within this time
METADATA_BYTES = 5_000_000  # as python-tuf's own limit for targets metadata
SKIPS = 16  # cut uploads in a row


class Repository:
    """The newest verified state of a store, and what this desk is about to add."""

    def __init__(self, store: DeskStore, keyring: Keyring, root: Root) -> None:
        self.store = store
        self.keyring = keyring
        self.root = root
        self.targets = Metadata(Targets())
        self.roles = {role: Metadata(Targets()) for role in LISTING_ROLES}
        self.snapshot = Metadata(Snapshot(meta={}))
        self.timestamp = Metadata(Timestamp())
        self._changed: set[str] = set()
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
        repository = cls(store, keyring, Metadata[Root].from_bytes(raw).signed)
        repository.targets.signed.delegations = delegations(keyring)
        store.write(f"{METADATA}1.root.json", raw)
        repository._number_from_zero()
        repository._changed = {"targets", *LISTING_ROLES}
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
        repository = cls(store, keyring, chain.root)
        repository.targets = Metadata(chain.targets)
        repository.snapshot = Metadata(chain.snapshot)
        repository.timestamp = Metadata(chain.timestamp)
        repository._base = store.read(f"{METADATA}timestamp.json", METADATA_BYTES)
        if Metadata[Timestamp].from_bytes(repository._base).signed != chain.timestamp:
            raise somebody_else()
        for role in LISTING_ROLES:
            repository.roles[role] = read_role(store, role, chain.targets, chain.snapshot)
        return repository

    def refs(self) -> tuple[Ref, ...]:
        """Every listed release, sorted by name."""
        targets = self.roles["releases"].signed.targets
        sealed = (path for path in targets if path.endswith(".sealed"))  # the others are deltas
        names = sorted(path.removeprefix("releases/").removesuffix(".sealed") for path in sealed)
        return tuple(self.ref(name) for name in names)

    def ref(self, name: str) -> Ref:
        """A listed release.

        Raises:
            InputError: it is not listed.
        """
        target = self.find(target_path(name))
        if target is None:
            raise InputError(f"release {name}: not published here; `edge-fleet list` shows what is")
        return Ref(name=name, digest=target.hashes["sha256"])

    def find(self, path: str) -> TargetFile | None:
        """What a role lists at this path."""
        return self.roles[role_of(path)].signed.targets.get(path)

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
        role = role_of(target.path)
        self.roles[role].signed.targets[target.path] = target
        self._changed.add(role)

    def publish(self, now: datetime) -> None:
        """Signs and uploads everything that changed; readers see it when this returns.

        Raises:
            InputError: a key is missing, or somebody else published meanwhile.
            TransferError: an upload failed; readers still see the state before.
        """
        for role in sorted(self._changed):
            metadata = self.targets if role == "targets" else self.roles[role]
            self.snapshot.signed.meta[f"{role}.json"] = self._upload(metadata, role, now)
        self.timestamp.signed.snapshot_meta = self._upload(self.snapshot, "snapshot", now)
        self._replace_timestamp(now)
        self._changed.clear()
        see(self.store, self.keyring)

    def refresh(self, now: datetime) -> None:
        """Renews timestamp and snapshot, and the listing roles that expire soon and whose keys are here."""
        self._changed |= {role for role in LISTING_ROLES if self.roles[role].signed.expires < now + RENEW}
        self.publish(now)

    def _number_from_zero(self) -> None:
        """The first upload makes every version 1."""
        for listing in (self.targets, *self.roles.values()):
            listing.signed.version = 0
        self.snapshot.signed.version = self.timestamp.signed.version = 0

    def _upload(self, metadata: Metadata[S], role: str, now: datetime) -> MetaFile:
        for _ in range(SKIPS):
            metadata.signed.version += 1
            raw = self._sign(metadata, role, now)
            try:
                self.store.write(f"{METADATA}{metadata.signed.version}.{role}.json", raw, if_absent=True)
            except Exists:
                continue
            return MetaFile.from_data(metadata.signed.version, raw, ["sha256"])
        raise InputError(
            f"{METADATA}: {SKIPS} versions of {role} lie there unfinished; somebody must look at the store"
        )

    def _replace_timestamp(self, now: datetime) -> None:
        self.timestamp.signed.version += 1
        self.timestamp.signed.unrecognized_fields[ISSUED_AT] = now.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        raw = self._sign(self.timestamp, "timestamp", now)
        self._check_alone()
        self.store.write(f"{METADATA}timestamp.json", raw)
        self._base = raw

    def _sign(self, metadata: Metadata[S], role: str, now: datetime) -> bytes:
        metadata.signed.expires = (now + timedelta(days=DAYS[role])).astimezone(UTC).replace(microsecond=0)
        metadata.signatures.clear()
        for signer in self.keyring.signers(role):
            metadata.sign(signer, append=True)
        return metadata.to_bytes()

    def _check_alone(self) -> None:
        """Raises when the timestamp is not the one that all of this builds on."""
        try:
            current: bytes | None = self.store.read(f"{METADATA}timestamp.json", METADATA_BYTES)
        except Missing:
            current = None
        if current != self._base:
            raise somebody_else()


def somebody_else() -> InputError:
    """Two desks publish at one time."""
    return InputError("somebody else published meanwhile, and nothing of yours is visible yet; run it again")


def see(store: Store, keyring: Keyring) -> Chain:
    """The store's metadata, verified as a device does; from now on this desk believes nothing older."""
    client = TufClient(keyring.folder / "seen", store, keyring.root(), check=lambda _: None)
    return client.refresh(ALWAYS).chain


def has(store: Store, key: str) -> bool:
    """Whether something lies under this key."""
    try:
        store.stream(key).close()
    except Missing:
        return False
    return True


def make_root(keyring: Keyring, now: datetime) -> bytes:
    """Version 1 of the root, signed by all its keys."""
    root = Root(expires=(now + timedelta(days=DAYS["root"])).astimezone(UTC).replace(microsecond=0))
    for role in ("root", "targets", "snapshot", "timestamp"):
        for signer in keyring.signers(role):
            root.add_key(signer.public_key, role)
        root.roles[role].threshold = ROLES[role].threshold
    metadata = Metadata(root)
    for signer in keyring.signers("root"):
        metadata.sign(signer, append=True)
    return metadata.to_bytes()


def delegations(keyring: Keyring) -> Delegations:
    """Every role that targets delegates to, each terminating."""
    targets = Targets(delegations=Delegations({}, roles={}))
    made = targets.delegations
    if made is None or made.roles is None:
        raise AssertionError
    for role, paths in PATHS.items():
        made.roles[role] = DelegatedRole(role, [], ROLES[role].threshold, terminating=True, paths=paths)
        for signer in keyring.signers(role):
            targets.add_key(signer.public_key, role)
    return made


def read_role(store: Store, role: str, targets: Targets, snapshot: Snapshot) -> Metadata[Targets]:
    """A delegated role's metadata, verified against snapshot and delegation."""
    listed = snapshot.meta[f"{role}.json"]
    raw = store.read(f"{METADATA}{listed.version}.{role}.json", METADATA_BYTES)
    try:
        listed.verify_length_and_hashes(raw)
        metadata = Metadata[Targets].from_bytes(raw)
        targets.verify_delegate(role, metadata.signed_bytes, metadata.signatures)
    except (RepositoryError, ValueError) as error:
        raise TrustError(f"{role} metadata: {error}; look at the store") from error
    return metadata


def listed(path: str, length: int, sha256: str, custom: Mapping[str, Any] | None = None) -> TargetFile:
    """A target as TUF lists it."""
    return TargetFile(length, {"sha256": sha256}, path, {"custom": custom} if custom is not None else None)


def listed_bytes(path: str, content: bytes) -> TargetFile:
    """A small target as TUF lists it."""
    return listed(path, len(content), hashlib.sha256(content).hexdigest())


def key_of(target: TargetFile) -> str:
    """Where a target's bytes lie in the store: under their digest, so that they never change."""
    return TARGETS + next(iter(target.get_prefixed_paths()))


def role_of(path: str) -> str:
    """The role that lists a path."""
    return path.split("/", 1)[0]


def expiries(repository: Repository) -> Iterable[tuple[str, datetime]]:
    """(role, when it expires), soonest first."""
    found = {role: metadata.signed.expires for role, metadata in repository.roles.items()}
    found |= {"root": repository.root.expires, "targets": repository.targets.signed.expires}
    found |= {"snapshot": repository.snapshot.signed.expires, "timestamp": repository.timestamp.signed.expires}
    return sorted(found.items(), key=lambda item: item[1])
