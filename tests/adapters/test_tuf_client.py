"""What an attacker who owns the store, and a power cut, can make a device believe: nothing."""

import resource
import shutil
from contextlib import contextmanager
from datetime import timedelta

import pytest
from securesystemslib.signer import CryptoSigner

from agent.adapters.fetch import Mismatch
from agent.adapters.store import Missing
from agent.adapters.tuf_client import SMALL_COUNT, TufClient
from agent.core.errors import InputError, TransferError, TrustError
from agent.trust.floor import Floor, check_floor, issued_at, seen
from tests.adapters.tuf_repository import NOW, TufRepository
from tests.fakes.store import FakeStore


class Device:
    """A client with the real floor, kept as the daemon keeps it."""

    def __init__(self, folder, repository):
        self.folder = folder
        self.floor = Floor()
        self.client = TufClient(folder, repository.store, repository.pinned, self.check)

    def check(self, chain):
        found = seen(chain.root, chain.timestamp, chain.snapshot, chain.targets)
        self.floor = check_floor(self.floor, found, issued_at(chain.timestamp))

    def refresh(self, now=NOW):
        return self.client.refresh(now)

    def tear(self, *names):
        """What a power cut may leave of files that nobody synced."""
        for name in names:
            (self.folder / "current" / name).write_bytes(b"")


@contextmanager
def full_disk():
    """Each write fails."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.fixture
def repository():
    made = TufRepository()
    made.add("policy/operators.json", b"{}", custom={"fmt": 1})
    made.add("releases/model", b"sealed" * 100, "team", {"task": "detection"})
    made.publish("targets", "team")
    return made


@pytest.fixture
def device(tmp_path, repository):
    return Device(tmp_path / "tuf", repository)


def test_a_listed_target_is_found_with_what_is_signed_of_it(device, repository):
    """Length, digest, custom and the place in the store come from signed metadata, delegated roles included."""
    trusted = device.refresh()
    model = trusted.find("releases/model")
    assert (model.length, model.custom) == (600, {"task": "detection"})
    assert model.key == f"targets/releases/{model.sha256}.model"
    assert repository.store.read(model.key, 600) == b"sealed" * 100
    assert trusted.read("policy/operators.json", 100) == b"{}"
    assert trusted.find("releases/other") is None
    assert issued_at(trusted.chain.timestamp) == NOW
    assert trusted.expiries["timestamp"] == NOW + timedelta(days=1)


def test_keys_of_the_top_level_verify_documents(device, repository):
    """Delegated keys lend themselves to signed documents."""
    signature = repository.keys["team"][0].sign(b"document")
    device.refresh().targets.verify_delegate("team", b"document", {signature.keyid: signature})


def test_an_old_copy_of_the_store_is_refused(device, repository):
    """A replayed older bucket is named as such, and the last good set stands."""
    old = repository.copy()
    repository.publish()
    device.refresh()
    repository.store.content = old
    with pytest.raises(TrustError, match="older"):
        device.refresh()
    assert device.client.load().chain.timestamp.version == 3


def test_a_torn_state_does_not_open_the_way_back(device, repository):
    """With python-tuf's own files torn by a power cut, an old copy of the store is still refused."""
    old = repository.copy()
    repository.publish()
    device.refresh()
    device.tear("timestamp.json", "snapshot.json")
    repository.store.content = old
    with pytest.raises(TrustError, match="has seen"):
        device.refresh()
    with pytest.raises(TransferError, match="damaged"):
        device.client.load()


@pytest.mark.parametrize("name", ["timestamp.json", "snapshot.json", "targets.json"])
def test_a_torn_file_is_mended_by_the_next_refresh(device, name):
    """What was torn here is fetched again."""
    device.refresh()
    device.tear(name)
    with pytest.raises(TransferError, match="damaged"):
        device.client.load()
    device.refresh()
    assert device.client.load().find("policy/operators.json") is not None


def test_a_full_disk_says_nothing_against_what_is_kept(device):
    """Loading writes, too; where that fails, it is the disk's error, and what is kept is loaded later."""
    trusted = device.refresh()
    with full_disk():
        with pytest.raises(TransferError, match="disk is full"):
            device.client.load()
        with pytest.raises(TransferError, match="disk is full"):
            trusted.find("releases/model")
    assert device.client.load().find("policy/operators.json") is not None


def test_a_set_below_the_floor_is_not_loaded(device, tmp_path, repository):
    """A folder that was put back by hand is refused by the floor."""
    device.refresh()
    floor = device.floor
    old = Device(tmp_path / "tuf", repository)
    repository.publish()
    fresh = Device(tmp_path / "other", repository)
    fresh.refresh()
    old.floor = fresh.floor
    with pytest.raises(TrustError, match="has seen"):
        old.client.load()
    assert floor != fresh.floor


def test_a_frozen_store_is_noticed(device):
    """A timestamp that nobody signs anew expires, whatever the store says."""
    device.refresh()
    with pytest.raises(TrustError, match="expired"):
        device.refresh(NOW + timedelta(days=2))


def test_without_a_network_the_last_set_is_believed(device, repository):
    """Keys, policies and releases that were seen can be read offline, also after they expired."""
    trusted = device.refresh(NOW)
    trusted.find("releases/model")
    trusted.read("policy/operators.json", 100)
    repository.store.offline = True
    with pytest.raises(TransferError, match="no network"):
        device.refresh()
    kept = device.client.load()
    assert kept.find("releases/model") is not None
    assert kept.read("policy/operators.json", 100) == b"{}"
    assert kept.targets.delegations is not None
    assert kept.expiries["timestamp"] == NOW + timedelta(days=1)


def test_before_the_first_contact_there_is_nothing(device):
    """A device that was never online says so."""
    with pytest.raises(TransferError, match="nothing verified"):
        device.client.load()


def test_a_refresh_that_is_cut_leaves_the_last_set_whole(device, repository):
    """A store that gives the timestamp and then nothing takes nothing away."""
    device.refresh()
    repository.publish("targets")
    del repository.store.content["metadata/3.snapshot.json"]
    with pytest.raises(TransferError):
        device.refresh()
    assert device.client.load().chain.timestamp.version == 2


def test_metadata_signed_by_others_is_refused(device, repository):
    """A store that signs with its own keys is not believed."""
    repository.keys["targets"] = [CryptoSigner.generate_ed25519()]
    repository.publish("targets")
    with pytest.raises(TrustError, match="not signed by enough"):
        device.refresh()


def test_mixed_metadata_is_refused(device, repository):
    """Old targets under a new name do not pass."""
    repository.publish("targets")
    content = repository.store.content
    content["metadata/3.targets.json"] = content["metadata/2.targets.json"]
    with pytest.raises(TrustError, match="not the file that the signed metadata names"):
        device.refresh()


@pytest.mark.parametrize(
    ("garbage", "sentence"),
    [(b"{", "cannot be parsed"), (b"[" * 10_000, "cannot be parsed"), (b" " * 20_000, "longer than it may be")],
)
def test_garbage_is_refused(device, repository, garbage, sentence):
    """What is no metadata, nested without end, or too long is refused with its reason."""
    repository.store.content["metadata/timestamp.json"] = garbage
    with pytest.raises(TrustError, match=sentence):
        device.refresh()


def test_a_team_cannot_list_outside_its_paths(device, repository):
    """A delegated role is believed for its own paths alone."""
    repository.add("policy/withdrawn.json", b"[]", "team")
    repository.publish("team")
    assert device.refresh().find("policy/withdrawn.json") is None


def test_a_small_target_that_is_not_the_signed_one_is_not_read(device, repository):
    """Changed bytes of the same length are a mismatch; a missing object is a matter of waiting."""
    trusted = device.refresh()
    key = trusted.find("policy/operators.json").key
    repository.store.content[key] = b"[]"
    with pytest.raises(Mismatch):
        trusted.read("policy/operators.json", 100)
    del repository.store.content[key]
    with pytest.raises(Missing):
        trusted.read("policy/operators.json", 100)
    with pytest.raises(TrustError, match="600 bytes"):
        trusted.read("releases/model", 100)
    with pytest.raises(Missing, match="not listed"):
        trusted.read("policy/none.json", 100)


def test_a_kept_small_target_that_the_disk_changed_is_fetched_again(device, repository):
    """The cache is not believed either."""
    trusted = device.refresh()
    trusted.read("policy/operators.json", 100)
    (kept,) = (device.folder / "small").iterdir()
    kept.write_bytes(b"[]")
    assert trusted.read("policy/operators.json", 100) == b"{}"


def test_kept_small_targets_do_not_pile_up(device, repository):
    """A deployment that changes for years keeps the newest few."""
    for number in range(SMALL_COUNT + 5):
        repository.add(f"deployments/{number}.json", b"%d" % number)
    repository.publish("targets")
    trusted = device.refresh()
    for number in range(SMALL_COUNT + 5):
        trusted.read(f"deployments/{number}.json", 10)
    assert len(list((device.folder / "small").iterdir())) == SMALL_COUNT


def test_a_new_root_is_followed(device, repository):
    """Keys rotate; the pinned root stays the anchor."""
    device.refresh()
    repository.rotate("timestamp")
    repository.rotate("targets")
    repository.publish("targets")
    assert device.refresh().chain.root.version == 3
    assert device.client.load().chain.root.version == 3


def test_a_fleet_recovers_from_a_stolen_online_key(device, repository):
    """Versions that a thief raised beyond reach fall again with the thief's key."""
    repository.metadata["timestamp"].signed.version = 2**31
    repository.publish()
    device.refresh()
    repository.rotate("timestamp")
    repository.metadata["timestamp"].signed.version = 5
    repository.publish()
    assert device.refresh().chain.timestamp.version == 6


def test_a_folder_that_was_copied_without_its_links_goes_on(tmp_path, repository):
    """A stick keeps no links: what was seen stays seen, and an older repository is still told."""
    floors = []
    TufClient(tmp_path / "tuf", repository.store, repository.pinned, floors.append).refresh(NOW)
    shutil.copytree(tmp_path / "tuf", tmp_path / "copy")
    assert not (tmp_path / "copy/current").is_symlink()
    client = TufClient(tmp_path / "copy", repository.store, repository.pinned, floors.append)
    client.refresh(NOW)
    assert client.load().chain.timestamp == floors[0].timestamp


def test_another_fleets_root_is_a_mistake_of_the_installation(tmp_path, repository):
    """A pinned root that is none says who must act."""
    for root in (b"not a root", b"{}", repository.pinned.replace(b'"sig":"', b'"sig":"00')):
        with pytest.raises(InputError, match="provision this device again"):
            TufClient(tmp_path / "tuf", repository.store, root, lambda chain: None)


def test_another_fleets_store_is_not_believed(tmp_path, repository):
    """The pinned root of one fleet does not accept the store of another."""
    other = TufRepository()
    client = TufClient(tmp_path / "tuf", other.store, repository.pinned, lambda chain: None)
    with pytest.raises(TrustError):
        client.refresh(NOW)


def test_the_folder_does_not_grow(device, repository):
    """Old sets go; the current one and at most one before it stay."""
    for _ in range(5):
        repository.publish("targets")
        device.refresh()
    assert len(list(device.folder.glob("set-*"))) <= 2


def test_python_tuf_still_takes_our_time(device):
    """The private attribute through which time is given is still there and still heeded."""
    device.refresh(NOW - timedelta(days=20_000))
    with pytest.raises(TrustError, match="expired"):
        device.refresh(NOW + timedelta(days=20_000))


def test_a_store_that_is_empty_says_where_to_look(tmp_path, repository):
    """A wrong URL is a matter of settings."""
    client = TufClient(tmp_path / "tuf", FakeStore(), repository.pinned, lambda chain: None)
    with pytest.raises(TransferError, match="URL"):
        client.refresh(NOW)
