"""A repository that grows: what a device downloads for one update stays small, and so does what a desk signs."""

from base64 import b64encode
from dataclasses import dataclass, field
from datetime import timedelta
from hashlib import sha256

import pytest

from agent.adapters.tuf_client import TufClient
from agent.trust.floor import Floor, check_floor, seen
from fleet import listings
from fleet.keyring import Keyring
from fleet.repository import Repository, expiries, listed
from fleet.roles import bins_of, with_keys
from provisioning.keys import new_key
from tests.fakes.store import FakeStore
from tests.fleet.desk import NOW, OTHER

LATER = NOW + timedelta(hours=1)
MANY = 10_000
WRAP = {"group": "line-12", "epoch": 3, "key": b64encode(bytes(113)).decode()}


@dataclass
class Counting:
    """A store that counts what is read and remembers what is written."""

    store: FakeStore
    read_bytes: int = 0
    written: list = field(default_factory=list)

    def stream(self, key, start=0, etag=None):
        download = self.store.stream(key, start, etag)
        self.read_bytes += download.size
        return download

    def write(self, key, content, *, if_absent=False):
        self.store.write(key, content, if_absent=if_absent)
        self.written.append(key)

    def __getattr__(self, name):
        return getattr(self.store, name)


class Follower:
    """A device with the real floor, and what it downloads."""

    def __init__(self, folder, store, root):
        self.store, self.floor = Counting(store), Floor()
        self.client = TufClient(folder, self.store, root, self.check)

    def check(self, chain):
        self.floor = check_floor(self.floor, seen(chain.root, chain.timestamp, chain.snapshot, chain.targets))

    def update(self, name):
        """Bytes of metadata for one update; the release must be listed."""
        before = self.store.read_bytes
        assert self.client.refresh(LATER).find(path_of(name)) is not None
        return self.store.read_bytes - before


def path_of(name):
    return f"releases/{name}.sealed"


def name_of(number):
    return f"face_detection_retinaface_line{number}_20250628"


def release(number):
    """A listing as publishing makes one for two groups, without the bytes of a release."""
    custom = {
        "fmt": "cob256+zstd+bg/v1", "size": 104_858_624, "wraps": [WRAP, WRAP], "task": "face_detection", "dataset": f"line{number}",
        "architecture": "retinaface", "version": "2.1", "memory_mb": 210, "opset": 17,
    }  # fmt: skip
    return listed(path_of(name_of(number)), 90_000_000, sha256(b"%d" % number).hexdigest(), custom)


def grow(repository, numbers):
    for number in numbers:
        repository.listings.add(release(number))
    repository.publish(LATER)


def open_desk(desk, store):
    return Repository.load(store, Keyring(desk.keyring.folder))


def test_one_update_of_ten_thousand_releases_is_small(desk, tmp_path):
    """After the next release a device reads under 100 kB of metadata, and the desk has written three files."""
    store = FakeStore({key: desk.store.read(key, 1 << 20) for key in list(desk.store.keys())})
    device = Follower(tmp_path / "device", store, desk.keyring.root())
    device.client.refresh(LATER)
    grow(open_desk(desk, store), range(MANY))
    first = device.update(name_of(17))
    counting = Counting(store)
    grow(open_desk(desk, counting), [MANY])
    second = device.update(name_of(MANY))
    print(f"first update {first:,} bytes, next update {second:,} bytes, files {counting.written}")
    assert max(first, second) < 100_000
    kinds = [key.split(".", 1)[1].rpartition("-")[0] or key for key in counting.written]
    assert kinds == ["releases", "metadata/3.snapshot.json", "metadata/timestamp.json"]
    assert device.client.load().find(path_of(name_of(17))) is not None


@pytest.fixture
def full(monkeypatch):
    """A page is full with eight: 256 bins are too many for each of the tests below."""
    monkeypatch.setattr(listings, "FULL", 8)
    monkeypatch.setattr("fleet.roles.BIN_BITS", 5)


def test_a_full_page_becomes_bins_once(desk, full, tmp_path):
    """At the publication that fills it: nothing is lost, and devices of before follow without knowing."""
    device = Follower(tmp_path / "device", desk.store, desk.keyring.root())
    grow(desk.load(), range(8))
    device.update(name_of(3))
    assert bins_of(desk.load().listings.page("releases").signed) is None
    grow(desk.load(), [8])
    assert bins_of(desk.load().listings.page("releases").signed).number_of_bins == 32
    assert len(desk.load().refs()) == 9
    grow(desk.load(), [9])
    for number in range(10):
        device.update(name_of(number))
    desk.publish(OTHER, desk.load())
    assert desk.load().ref(OTHER)


def test_bins_follow_their_roles_keys(desk, full, tmp_path):
    """A rotation signs every bin anew; the old key counts for none."""
    grow(desk.load(), range(9))
    device = Follower(tmp_path / "device", desk.store, desk.keyring.root())
    device.update(name_of(3))
    repository = desk.load()
    old = repository.authority.role("releases").keyids
    key = new_key(repository.keyring, "releases")
    repository.change(with_keys(repository.authority, "releases", old, [key]))
    repository.publish(LATER)
    for name, page in desk.load().listings.pages("releases").items():
        assert key.keyid in page.signatures, name
    grow(desk.load(), [9])
    for number in range(10):
        device.update(name_of(number))
    assert bins_of(desk.load().listings.page("releases").signed).keyids == [key.keyid]


def test_bins_are_renewed_before_they_expire(desk, full):
    """By the desk that has their key; the renewing machine does not even read them."""
    grow(desk.load(), range(9))
    late = NOW + timedelta(days=170)
    counting = Counting(desk.store)
    Repository.load(counting, Keyring(desk.keyring.folder)).refresh(late)
    assert sum("releases-" in key for key in counting.written) == 32
    repository = desk.load()
    repository.listings.pages("releases")
    assert dict(expiries(repository))["releases"] > late + timedelta(days=100)
    (desk.keyring.folder / "roles/releases-1.pem").unlink()
    (desk.keyring.folder / "roles/deployments-1.pem").unlink()
    counting = Counting(desk.store)
    Repository.load(counting, Keyring(desk.keyring.folder)).refresh(late)
    assert [key for key in counting.written if "releases" in key] == []
