"""A TUF repository behind HTTP, of which anything can be changed; it remembers what was asked for.

`roles` holds what would be signed next, `keys` who signs it; nothing is seen before it is published. What lies in
`content` is served as it is.
"""

import threading
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import quote, unquote

from securesystemslib.signer import CryptoSigner
from tuf.api.metadata import (
    DelegatedRole,
    Delegations,
    Metadata,
    MetaFile,
    Root,
    Snapshot,
    SuccinctRoles,
    TargetFile,
    Targets,
    Timestamp,
)

TOP = ("root", "timestamp", "snapshot", "targets")
ALL = ("root", "targets", "snapshot", "timestamp")  # in the order of publishing
ONLINE = ("snapshot", "timestamp")


def days(count):
    return (datetime.now(UTC) + timedelta(days=count)).replace(microsecond=0)


def unpublished():
    """A role that lists nothing, whose first version will be 1."""
    role = Metadata(Targets(expires=days(30)))
    role.signed.version = 0
    return role


class TufSite:
    """One repository, as a server on the loopback. Every role is at version 1."""

    def __init__(self, consistent=True):
        kinds = {"root": Root, "timestamp": Timestamp, "snapshot": Snapshot, "targets": Targets}
        self.roles = {name: Metadata(kind(expires=days(30))) for name, kind in kinds.items()}
        self.root.consistent_snapshot = consistent
        self.keys = {name: [] for name in TOP}
        self.content, self.asked, self.hashed = {}, [], True
        for name in TOP:
            self.give_key(name)
        self.publish(*ALL, first=True)
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), answering(self))
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"

    def close(self):
        self.server.shutdown()
        self.server.server_close()

    def signed(self, name):
        return self.roles[name].signed

    @property
    def root(self):
        return self.signed("root")

    # --- keys ----------------------------------------------------------------------------------------------------

    def give_key(self, name, signer=None):
        """One more key that answers for a top-level role."""
        self.keys[name].append(signer or CryptoSigner.generate_ed25519())
        self.root.add_key(self.keys[name][-1].public_key, name)

    def rotate(self, name):
        """Another key instead of all that answered for a top-level role."""
        for keyid in list(self.root.roles[name].keyids):
            self.root.revoke_key(keyid, name)
        self.keys[name] = []
        self.give_key(name)

    # --- targets -------------------------------------------------------------------------------------------------

    def delegate(self, name, paths=("*",), by="targets", terminating=False):
        """A delegated role that lists nothing yet."""
        self.keys.setdefault(name, [CryptoSigner.generate_ed25519()])
        self.roles.setdefault(name, unpublished())
        delegator = self.signed(by)
        delegator.delegations = delegator.delegations or Delegations({}, roles={})
        delegator.delegations.roles[name] = DelegatedRole(name, [], 1, terminating, list(paths))
        delegator.add_key(self.keys[name][0].public_key, name)

    def delegate_to_bins(self, bits):
        """Hashed bins under one key; their names."""
        signer = CryptoSigner.generate_ed25519()
        bins = SuccinctRoles([], 1, bits, "bin")
        self.signed("targets").delegations = Delegations({}, succinct_roles=bins)
        self.signed("targets").add_key(signer.public_key)
        for name in bins.get_roles():
            self.keys[name] = [signer]
            self.roles[name] = unpublished()
        return list(bins.get_roles())

    def add(self, path, content, by="targets", hashes=("sha256",)):
        """List a target and put it there."""
        target = TargetFile.from_data(path, content, list(hashes))
        self.signed(by).targets[path] = target
        folder, slash, name = path.rpartition("/")
        for digest in target.hashes.values():
            self.content[f"targets/{folder}{slash}{digest}.{name}"] = content
        self.content[f"targets/{path}"] = content

    # --- publishing ----------------------------------------------------------------------------------------------

    def publish(self, *names, first=False, listed=True):
        """Sign and serve a new version of roles, and have snapshot and timestamp name it; in the order that is given.

        `listed` False: what names a role is left as it is.
        """
        for name in names:
            document = self.roles[name]
            document.signed.version += not first
            document.signatures.clear()
            for signer in self.keys[name]:
                document.sign(signer, append=True)
            raw = document.to_bytes()
            self.serve(name, raw, document.signed.version)
            if listed and name not in {"root", "timestamp"}:
                hashed = ["sha256"] if self.hashed else None
                meta = (
                    MetaFile.from_data(document.signed.version, raw, hashed)
                    if hashed
                    else MetaFile(document.signed.version)
                )
                if name == "snapshot":
                    self.signed("timestamp").snapshot_meta = meta
                else:
                    self.signed("snapshot").meta[f"{name}.json"] = meta

    def serve(self, name, raw, version):
        """Bytes where a client looks for a version of a role."""
        versioned = name == "root" or (self.root.consistent_snapshot and name != "timestamp")
        self.content[f"metadata/{f'{version}.' if versioned else ''}{quote(name, '')}.json"] = raw

    def current(self, name):
        """What a client gets that asks for a role."""
        version = self.signed(name).version
        names = (f"metadata/{version}.{quote(name, '')}.json", f"metadata/{quote(name, '')}.json")
        return next(self.content[one] for one in names if one in self.content)


def answering(site):
    """The handler of requests to a site."""

    class Answer(BaseHTTPRequestHandler):
        def do_GET(self):
            key = self.path.lstrip("/")
            site.asked.append(key)
            found = site.content.get(key, site.content.get(unquoted(key)))
            self.send_response(404 if found is None else 200)
            self.send_header("Content-Length", str(len(found or b"")))
            self.end_headers()
            self.wfile.write(found or b"")

        def log_message(self, *_):
            pass

    return Answer


def unquoted(key):
    """A target's name, which the client had to quote; a role's name stays quoted in its URL."""
    return unquote(key) if key.startswith("targets/") else key
