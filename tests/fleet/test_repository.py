"""A repository that is read from a store nobody trusts, and extended without ever being half new."""

import shutil
from datetime import timedelta

import pytest

from agent.core.errors import InputError, TransferError, TrustError
from agent.trust.floor import issued_at
from fleet.repository import RENEW, Repository, expiries, listed_bytes
from tests.fleet.desk import NEW, NOW, OLD, Desk


class Cutting:
    """A store whose connection is cut after so many writes."""

    def __init__(self, store, writes):
        self.store, self.left = store, writes

    def write(self, key, content, *, if_absent=False):
        if self.left == 0:
            raise TransferError("cut")
        self.left -= 1
        self.store.write(key, content, if_absent=if_absent)

    def __getattr__(self, name):
        return getattr(self.store, name)


def test_a_started_repository_is_what_devices_believe(desk):
    """A device with the pinned root verifies the first metadata, and finds every role's keys."""
    targets = desk.device().targets
    assert set(targets.delegations.roles) == {
        "releases",
        "deployments",
        "operators",
        "operators-critical",
        "controller",
        "grants",
    }
    assert targets.delegations.roles["operators-critical"].threshold == 2


def test_a_repository_is_never_started_over_another(desk):
    """Starting where one lies would cut off every device."""
    with pytest.raises(InputError, match="holds a repository already"):
        Repository.start(desk.store, desk.keyring, NOW)


@pytest.mark.parametrize("writes", range(7))
def test_a_cut_start_is_started_again(tmp_path, writes):
    """Wherever the first upload stops, the next one makes a whole repository with the same root."""
    desk = Desk(tmp_path)
    shutil.rmtree(desk.store.root)
    desk.store.root.mkdir()
    shutil.rmtree(desk.keyring.folder / "seen")
    root = desk.keyring.root()
    if writes < 6:
        with pytest.raises(TransferError):
            Repository.start(Cutting(desk.store, writes), desk.keyring, NOW)
        Repository.start(desk.store, desk.keyring, NOW + timedelta(days=1))
    else:
        Repository.start(Cutting(desk.store, writes), desk.keyring, NOW)
    assert desk.keyring.root() == root
    assert desk.device().chain.timestamp.version == 1


@pytest.mark.parametrize("writes", range(4))
def test_a_cut_publication_leaves_the_state_before(desk, writes):
    """Readers see the old state or the new one, and the next upload goes past what the cut left."""
    desk.publish(OLD)
    repository = desk.load()
    repository.store = Cutting(desk.store, writes)
    with pytest.raises(TransferError):
        desk.publish(NEW, repository)
    assert [ref.name for ref in desk.load().refs()] == [OLD]
    desk.device()
    desk.publish(NEW, desk.load())
    assert desk.device().find(f"releases/{NEW}.sealed") is not None
    assert [ref.name for ref in desk.load().refs()] == [OLD, NEW]


def test_two_desks_at_one_time_do_not_lose_a_release(desk):
    """The slower one is told to run again; nothing of the faster one is lost."""
    mine, theirs = desk.load(), desk.load()
    desk.publish(OLD, theirs)
    with pytest.raises(InputError, match="somebody else published"):
        desk.publish(NEW, mine)
    assert [ref.name for ref in desk.load().refs()] == [OLD]


def test_a_desk_that_publishes_between_two_uploads_is_noticed(desk):
    """Whoever writes the timestamp last must have seen the one before."""
    mine, theirs = desk.load(), desk.load()

    class Interrupted(Cutting):
        def write(self, key, content, *, if_absent=False):
            self.store.write(key, content, if_absent=if_absent)
            if key.endswith(".snapshot.json"):
                desk.publish(OLD, theirs)

    mine.store = Interrupted(desk.store, 0)
    with pytest.raises(InputError, match="somebody else published"):
        desk.publish(NEW, mine)
    assert [ref.name for ref in desk.load().refs()] == [OLD]


def test_an_old_list_under_a_new_name_is_not_signed_anew(desk):
    """Mix and match: a withdrawn list that was once signed does not come back."""
    desk.publish(OLD)
    desk.publish(NEW)
    metadata = desk.store.root / "metadata"
    (metadata / "3.releases.json").write_bytes((metadata / "2.releases.json").read_bytes())
    with pytest.raises(TrustError, match="releases metadata"):
        desk.load().refs()


def test_an_old_copy_of_the_store_is_not_signed_anew(desk):
    """A desk remembers what it has seen, so a restored bucket does not bring back what was withdrawn."""
    shutil.copytree(desk.store.root, desk.folder / "old")
    desk.publish(NEW)
    shutil.rmtree(desk.store.root)
    shutil.copytree(desk.folder / "old", desk.store.root)
    with pytest.raises(TrustError, match="old copy"):
        desk.load()


def test_a_foreign_release_is_not_signed_along(desk):
    """Whoever owns the bucket cannot have the desk sign what he put into it."""
    desk.publish(NEW)
    path = max(desk.store.root.glob("metadata/*.releases.json"), key=lambda path: int(path.name.split(".")[0]))
    path.write_bytes(path.read_bytes().replace(b"retinaface", b"trojanface"))
    with pytest.raises(TrustError, match="releases metadata"):
        desk.load().refs()


def test_a_changed_blob_is_not_read(desk):
    """A small target is checked against what was signed."""
    desk.repository.add(listed_bytes("deployments/g1.json", b"{}"), b"{}")
    desk.repository.publish(NOW)
    next((desk.store.root / "targets/deployments").iterdir()).write_bytes(b"[]")
    with pytest.raises(TrustError, match="not what was signed"):
        desk.load().read("deployments/g1.json", 100)


def test_an_expired_repository_can_be_renewed(desk):
    """Expiry stops devices; the desk is who ends it."""
    late = NOW + timedelta(days=4)
    with pytest.raises(TrustError, match="has expired"):
        desk.device(now=late)
    desk.load().refresh(late)
    assert issued_at(desk.device(now=late).chain.timestamp) == late


def test_listing_roles_are_renewed_before_they_expire(desk):
    """`refresh` keeps alive what its keys can keep alive."""
    late = NOW + timedelta(days=180) - RENEW / 2
    repository = desk.load()
    repository.refresh(late)
    assert dict(expiries(desk.load()))["releases"] > late + RENEW
    assert next(iter(expiries(repository)))[0] == "timestamp"


def test_a_desk_without_the_key_says_which(desk):
    """An operator's desk cannot publish, and says what is missing."""
    (desk.keyring.folder / "roles/releases-1.pem").unlink()
    with pytest.raises(InputError, match="no key of the role releases"):
        desk.publish(NEW)
    assert desk.load().refs() == ()


def test_a_desk_without_a_root_says_so(desk):
    """Nothing is believed without the pinned root."""
    desk.keyring.root_file.unlink()
    with pytest.raises(InputError, match="store init"):
        desk.load()


def test_an_empty_store_is_no_repository(desk):
    """A wrong URL is answered in a sentence."""
    shutil.rmtree(desk.store.root)
    with pytest.raises(TransferError, match="check the store's URL"):
        desk.load()
