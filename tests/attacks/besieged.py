"""A device that serves a camera while somebody attacks it, and the table of what became of each attack."""

from contextlib import contextmanager
from typing import NamedTuple

from tests.attacks.hostile import HostileBucket
from tests.faults.standing import POLL_S, Standing
from tests.system.plant import now

HURRIED = "tests.attacks.hurried"


class Row(NamedTuple):
    """What became of an attack."""

    attack: str
    stage: str
    message: str


class Besieged(Standing):
    """A standing device whose bucket and broker belong to an attacker."""

    def new_device(self):
        self.bucket = HostileBucket(self.store)
        device = self.plant.device(store={**self.bucket.settings, "poll_s": POLL_S}).with_one_backend()
        device.program = HURRIED
        return device

    def close(self):
        super().close()
        self.bucket.close()

    @contextmanager
    def unharmed(self, **options):
        """As ever; what was told of an earlier attack is over."""
        self.device.until(lambda: self.device.state()["store"]["error"] == "", "the store is believed", 30)
        with super().unharmed(**options):
            yield

    def told(self, words, seconds=30.0):
        """Wait until `status` and `why` say something in words; the sentence of it."""
        _, state = self.until_told(words, seconds)
        said = [text for text in texts(state) if words in text]
        return min(said, key=len)

    def renew(self):
        """The desk signs a new timestamp, and the device takes it."""
        was = self.plant.repository.timestamp.signed.expires
        while (
            self.plant.repository.timestamp.signed.expires == was
        ):  # whole seconds, and all that the device tells of it
            self.plant.repository.refresh(now())
        self.until_synced()

    def until_synced(self):
        """Wait until the device has read the newest timestamp and believes it."""
        wanted = self.plant.repository.timestamp.signed.expires.isoformat()

        def synced():
            store = self.device.state()["store"]
            return store["error"] == "" and store["expires"].replace("Z", "+00:00") >= wanted

        self.device.until(synced, "it has read the newest timestamp", 30)

    def metadata(self, role):
        """The key of the newest metadata of a role."""
        found = (self.store / "metadata").glob(f"*.{role}.json")
        newest = max(found, key=lambda path: int(path.name.split(".")[0]))
        return f"metadata/{newest.name}"


def texts(tree):
    """Every string in JSON."""
    if isinstance(tree, str):
        yield tree
    elif isinstance(tree, dict | list):
        for one in tree.values() if isinstance(tree, dict) else tree:
            yield from texts(one)
