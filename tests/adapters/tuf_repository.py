"""A small TUF repository in a FakeStore, for the client's tests. Keys stay here; anything can be signed."""

import copy
from datetime import UTC, datetime, timedelta

from securesystemslib.signer import CryptoSigner
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

from tests.fakes.store import FakeStore

NOW = datetime(2026, 3, 1, tzinfo=UTC)
ONLINE = ("snapshot", "timestamp")


class TufRepository:
    """Top-level roles and one delegated role, `team`, for `releases/*`."""

    def __init__(self):
        self.store = FakeStore()
        self.keys = {role: [CryptoSigner.generate_ed25519()] for role in ("root", "targets", "team", *ONLINE)}
        root = Root(expires=NOW + timedelta(days=365), consistent_snapshot=True)
        for role in ("root", "targets", *ONLINE):
            root.add_key(self.keys[role][0].public_key, role)
        top = Targets(expires=NOW + timedelta(days=90))
        top.delegations = Delegations({}, roles={})
        top.delegations.roles["team"] = DelegatedRole("team", [], 1, terminating=True, paths=["releases/*"])
        top.add_key(self.keys["team"][0].public_key, "team")
        self.metadata = {
            "root": Metadata(root),
            "targets": Metadata(top),
            "team": Metadata(Targets(expires=NOW + timedelta(days=30))),
            "snapshot": Metadata(Snapshot(expires=NOW + timedelta(days=7))),
            "timestamp": Metadata(Timestamp(expires=NOW + timedelta(days=1))),
        }
        self.pinned = self._write("root")
        self.publish("targets", "team", first=True)

    def publish(self, *roles, first=False, now=NOW):
        """Signs and uploads new versions of `roles`, then snapshot and timestamp."""
        for role in roles:
            self.metadata[role].signed.version += not first
            self._list(role)
        stamp = self.metadata["timestamp"].signed
        stamp.expires = now + timedelta(days=1)
        stamp.unrecognized_fields["x-issued-at"] = now.strftime("%Y-%m-%dT%H:%M:%SZ")
        self.metadata["snapshot"].signed.version += not first
        stamp.snapshot_meta = self._meta("snapshot")
        stamp.version += not first
        self._write("timestamp")

    def add(self, path, content, role="targets", custom=None):
        """Lists a target and uploads it."""
        target = TargetFile.from_data(path, content, ["sha256"])
        target.unrecognized_fields["custom"] = custom or {}
        self.metadata[role].signed.targets[path] = target
        folder, _, name = path.rpartition("/")
        self.store.content[f"targets/{folder}/{target.hashes['sha256']}.{name}"] = content

    def rotate(self, role):
        """Gives a top-level role another key, in a new root."""
        root = self.metadata["root"].signed
        root.revoke_key(self.keys[role][0].public_key.keyid, role)
        before = list(self.keys["root"])
        self.keys[role] = [CryptoSigner.generate_ed25519()]
        root.add_key(self.keys[role][0].public_key, role)
        root.version += 1
        self._write("root", before)

    def copy(self):
        """All objects as they are now."""
        return copy.deepcopy(self.store.content)

    def _list(self, role):
        self.metadata["snapshot"].signed.meta[f"{role}.json"] = self._meta(role)

    def _meta(self, role):
        content = self._write(role)
        return MetaFile.from_data(self.metadata[role].signed.version, content, ["sha256"])

    def _write(self, role, also=()):
        document = self.metadata[role]
        document.signatures.clear()
        for signer in {signer.public_key.keyid: signer for signer in (*also, *self.keys[role])}.values():
            document.sign(signer, append=True)
        content = document.to_bytes()
        name = "timestamp.json" if role == "timestamp" else f"{document.signed.version}.{role}.json"
        self.store.content[f"metadata/{name}"] = content
        return content
