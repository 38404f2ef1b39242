"""A fleet's desk, safes far from it, and devices that follow what it publishes with the real client and floor."""

import shutil
from datetime import UTC, datetime

from agent.adapters.tuf_client import TufClient
from agent.trust.floor import Floor, check_floor, issued_at, seen
from fleet.keyring import Keyring
from fleet.repository import Repository, listed_bytes
from fleet.stores import DeskFolder
from provisioning import cli
from provisioning.keys import init_keys

NOW = datetime(2026, 11, 1, 12, 0, tzinfo=UTC)


class Device:
    """A client with the real floor, kept as the daemon keeps it."""

    def __init__(self, folder, store, root):
        self.floor = Floor()
        self.client = TufClient(folder, store, root, self.check)

    def check(self, chain):
        found = seen(chain.root, chain.timestamp, chain.snapshot, chain.targets)
        self.floor = check_floor(self.floor, found, issued_at(chain.timestamp))

    def refresh(self, now=NOW):
        return self.client.refresh(now)


class Estate:
    """One desk with all keys, until `lock_away` brings some to a safe."""

    def __init__(self, folder):
        self.folder = folder
        self.store = DeskFolder(folder / "store")
        self.store.root.mkdir()
        self.keyring = init_keys(folder / "keys")
        Repository.start(self.store, self.keyring, NOW)
        self.pinned = self.keyring.root()

    def load(self, keyring=None):
        return Repository.load(self.store, keyring or Keyring(self.keyring.folder))

    def device(self, name="cam-7"):
        return Device(self.folder / name, self.store, self.pinned)

    def lock_away(self, safe, *files):
        """Moves key files to a safe; its folder."""
        folder = self.folder / safe / "roles"
        folder.mkdir(parents=True, exist_ok=True)
        for file in files:
            (self.keyring.folder / "roles" / file).rename(folder / file)
        return self.folder / safe

    def lend(self, other, *files):
        """Copies key files and the root to another desk; its keyring."""
        folder = self.folder / other / "roles"
        folder.mkdir(parents=True, exist_ok=True)
        for file in files:
            shutil.copy(self.keyring.folder / "roles" / file, folder / file)
        shutil.copy(self.keyring.root_file, folder.parent / "root.json")
        return Keyring(folder.parent)

    def list(self, name, repository=None, now=NOW):
        """Lists a made-up release, as publishing does at its end."""
        repository = repository or self.load()
        path = f"releases/{name}.sealed"
        repository.add(listed_bytes(path, name.encode()), name.encode())
        repository.publish(now)
        return path

    def provision(self, *words):
        """The command line, at this desk."""
        return cli.main([*words, "--store", f"file://{self.store.root}", "--keys", str(self.keyring.folder)])

    def keyids(self, role):
        return list(self.load().authority.role(role).keyids)

    def copy(self):
        """The store as it is now."""
        return {path: path.read_bytes() for path in self.store.root.rglob("*") if path.is_file()}

    def put_back(self, copy):
        shutil.rmtree(self.store.root)
        for path, content in copy.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
