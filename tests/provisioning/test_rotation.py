"""Keys change, and every device follows at its next refresh; what was not signed by enough changes nothing."""

import re
from datetime import timedelta

import pytest
from securesystemslib.signer import CryptoSigner
from tuf.api.metadata import Metadata, MetaFile, Root, Snapshot, Timestamp

from agent.core.errors import InputError, TransferError, TrustError
from agent.trust.command import COMMAND_BYTES
from agent.trust.envelope import open_envelope
from fleet.keyring import Keyring
from fleet.pending import Pending, Unfinished, read_pending, write_pending
from fleet.repository import Repository, listed_bytes
from fleet.roles import HIGHEST
from fleet.sealing import make_envelope
from fleet.stores import DeskFolder
from provisioning.keys import init_keys, new_key
from provisioning.rotation import add_role, add_signatures, finish, remove_role, renew, revoke, rotate
from tests.provisioning.estate import NOW

LATER = NOW + timedelta(hours=1)


@pytest.mark.parametrize("role", ["root", "targets", "snapshot", "timestamp", "releases", "deployments"])
def test_devices_follow_a_rotation(estate, role):
    """Whatever role: a device of before and a new one believe what the new keys sign, and the old keys count no more."""
    estate.list("a_b_c_20250101")
    device, old = estate.device(), estate.keyids(role)
    device.refresh()
    made = rotate(estate.load(), [role], LATER)[role]
    path = estate.list("a_b_c_20250102", now=LATER)
    assert estate.keyids(role) == made
    assert set(made).isdisjoint(old)
    for one in (device, estate.device("cam-8")):
        trusted = one.refresh(LATER)
        assert trusted.find(path) is not None
        assert trusted.find("releases/a_b_c_20250101.sealed") is not None


def test_documents_count_by_the_keys_of_today(estate):
    """An operator's key that was replaced signs nothing that a device believes; the new one does."""
    device, old = estate.device(), estate.keyring.signers("operators")
    device.refresh()
    rotate(estate.load(), ["operators"], LATER)
    targets = device.refresh(LATER).targets
    new = [one for one in estate.load().keyring.signers("operators") if one not in old]
    assert open_envelope(make_envelope(b"{}", "t", new), "t", "operators", targets, COMMAND_BYTES).payload == b"{}"
    with pytest.raises(TrustError, match="0 of the 1 keys"):
        open_envelope(make_envelope(b"{}", "t", old), "t", "operators", targets, COMMAND_BYTES)


def test_one_root_key_is_replaced_by_a_key_from_elsewhere(estate):
    """The other two stay; the new holder's key is the one that was named."""
    old = estate.keyids("root")
    key = new_key(estate.keyring, "root")
    assert rotate(estate.load(), ["root"], LATER, old=old[1][:12], to=[key.keyid[:12]]) == {"root": [key.keyid]}
    assert set(estate.keyids("root")) == {old[0], old[2], key.keyid}
    assert estate.device().refresh(LATER).chain.root.version == 2


def test_a_revoked_key_counts_no_more(estate):
    """Two of three root keys are left, which is as many as must sign; a third cannot go."""
    old = estate.keyids("root")
    revoke(estate.load(), "root", old[0][:10], LATER)
    assert estate.keyids("root") == old[1:]
    with pytest.raises(InputError, match="2 keys must sign and it would have 1"):
        revoke(estate.load(), "root", old[1], LATER)
    renew(estate.load(), "root", LATER)
    raw = (estate.store.root / "metadata/3.root.json").read_bytes()
    assert Metadata[Root].from_bytes(raw).signatures.keys() == set(old[1:])
    assert estate.device().refresh(LATER).chain.root.version == 3


def test_root_and_targets_are_renewed_before_they_end(estate):
    """Nothing changes but the date; a device that sleeps through the old one's end goes on."""
    late = NOW + timedelta(days=364)
    device = estate.device()
    device.refresh()
    for role in ("root", "targets", "releases"):
        renew(estate.load(), role, late)
    after = late + timedelta(days=2)
    estate.load().refresh(after)
    trusted = device.refresh(after)
    assert min(trusted.chain.root.expires, trusted.chain.targets.expires) > late + timedelta(days=360)


# --- signatures from elsewhere ---------------------------------------------------------------------------------------


def test_offline_holders_sign_a_root_one_after_the_other(estate):
    """The desk that needs new online keys has no root key: two safes sign its file, and it publishes."""
    safes = [estate.lock_away(f"safe-{n}", f"root-{n}.pem") for n in (1, 2, 3)]
    device = estate.device()
    device.refresh()
    before = estate.copy()
    with pytest.raises(Unfinished, match="keys sign"):
        rotate(estate.load(), ["timestamp"], LATER)
    assert estate.copy() == before, "nothing is published yet"
    (path,) = (estate.keyring.folder / "pending").iterdir()
    with pytest.raises(InputError, match="a change waits for signatures"):
        rotate(estate.load(), ["snapshot"], LATER)
    assert len(estate.keyring.files("snapshot")) == 1, "no key is made for nothing"
    assert add_signatures(path, Keyring(safes[0]))[1] == 1
    with pytest.raises(InputError, match=r"root 2: 1 of 2 of the keys before it signed and 1 of 2 of its own"):
        finish(estate.load(), [path], LATER)
    assert add_signatures(path, Keyring(safes[2]))[1] == 1
    assert add_signatures(path, Keyring(safes[2]))[1] == 0
    assert finish(estate.load(), [path], LATER) == ("root",)
    assert not path.exists()
    assert device.refresh(LATER).chain.root.version == 2
    assert estate.keyring.root() != estate.pinned, "the desk pins the newest root, for the devices it enrols"


def test_a_new_targets_key_takes_both_files(estate):
    """The root names it, and the old holders still have the rest: the two files are finished together."""
    safe = estate.lock_away("safe", *(f"{role}-{n}.pem" for role in ("root", "targets") for n in (1, 2, 3)))
    old = estate.keyids("targets")
    with pytest.raises(Unfinished, match=r"root and targets"):
        rotate(estate.load(), ["targets"], LATER, old=old[0])

    paths = sorted((estate.keyring.folder / "pending").iterdir())
    for path in paths:
        add_signatures(path, Keyring(safe))
    finish(estate.load(), paths[::-1], LATER)
    trusted = estate.device().refresh(LATER)
    assert len(set(trusted.chain.root.roles["targets"].keyids) & set(old)) == 2


def test_a_rotation_that_the_old_threshold_alone_signed_is_refused(estate):
    """Here by the desk; and by a device, when somebody puts it into the store all the same."""
    device = estate.device()
    device.refresh()
    old = estate.keyring.signers("root")
    new = [CryptoSigner.generate_ed25519() for _ in range(3)]
    root = estate.load().root.signed
    for signer in old:
        root.revoke_key(signer.public_key.keyid, "root")
    for signer in new:
        root.add_key(signer.public_key, "root")
    root.version = 2
    octets = Metadata(root).signed_bytes
    pending = Pending(kind="root", payload=octets).signed_by(old, octets)
    path = estate.folder / "2.root.json"
    write_pending(path, pending)
    with pytest.raises(InputError, match="0 of 2 of its own keys signed"):
        finish(estate.load(), [path], LATER)
    made = Metadata(root, dict(pending.by_key()))
    (estate.store.root / "metadata/2.root.json").write_bytes(made.to_bytes())
    with pytest.raises(TrustError, match="not signed by enough"):
        device.refresh(LATER)


def test_what_was_begun_before_another_change_is_not_published_over_it(estate):
    """A change of targets that waited while another one came is begun again."""
    safe = estate.lock_away("safe", *(f"targets-{n}.pem" for n in (1, 2, 3)))
    with pytest.raises(Unfinished):
        renew(estate.load(), "targets", LATER)

    (path,) = (estate.keyring.folder / "pending").iterdir()
    add_signatures(path, Keyring(safe))
    kept = path.read_bytes()
    finish(estate.load(), [path], LATER)
    path.write_bytes(kept)
    with pytest.raises(InputError, match="version 2 is published already"):
        finish(estate.load(), [path], LATER)
    with pytest.raises(InputError, match="a change waits"):
        renew(estate.load(), "targets", LATER)


@pytest.mark.parametrize("payload", [b"{}", b"[]", b"garbage", b'{"_type": "snapshot"}'])
def test_a_file_that_holds_no_change_is_told(estate, payload):
    """Whatever somebody sends instead."""
    path = estate.folder / "x.json"
    write_pending(path, Pending(kind="targets", payload=payload))
    with pytest.raises(InputError, match="targets: what waits there is"):
        finish(estate.load(), [path], LATER)
    path.write_bytes(b"{}")
    with pytest.raises(InputError, match=r"x\.json"):
        read_pending(path)


@pytest.mark.parametrize("kind", ["/etc/passwd", "../../x", "*", "", "nobody", "operators"])
def test_a_file_for_a_role_that_is_none_is_told(estate, kind):
    """What a stick brings may be anything; the role's name is looked up, never followed."""
    path = estate.folder / "x.json"
    write_pending(path, Pending(kind=kind, payload=estate.load().listings.page("releases").signed_bytes))
    with pytest.raises((InputError, TrustError)):
        finish(estate.load(), [path], LATER)
    if kind != "operators":
        with pytest.raises(InputError, match="no key of the role"):
            add_signatures(path, estate.keyring)


class Cut(DeskFolder):
    """A store that goes away before the new root."""

    def write(self, key, content, *, if_absent=False):
        if key.endswith("2.root.json"):
            raise TransferError("cut")
        super().write(key, content, if_absent=if_absent)


def test_a_cut_between_timestamp_and_root_harms_nobody(estate):
    """What is signed for both roots is believed whether the new root is there or not; the next run goes on from it."""
    device = estate.device()
    device.refresh()
    repository = estate.load()
    repository.store = Cut(estate.store.root)
    with pytest.raises(TransferError):
        rotate(repository, ["timestamp", "snapshot", "targets"], LATER)
    assert device.refresh(LATER).chain.root.version == 1
    finish(estate.load(), [estate.keyring.folder / "pending/2.root.json"], LATER)
    assert device.refresh(LATER).chain.root.version == 2


def test_a_cut_before_a_root_that_alone_names_the_new_key_is_mended(estate, capsys):
    """Where the old online key is elsewhere nobody can read the store without the root: it waits, and is finished."""
    device, repository = estate.device(), estate.load()
    device.refresh()
    estate.lock_away("elsewhere", "timestamp-1.pem")
    repository.store = Cut(estate.store.root)
    with pytest.raises(TransferError):
        rotate(repository, ["timestamp"], LATER)
    for attempt in (device.refresh, estate.load):
        with pytest.raises(TrustError, match="not signed by enough"):
            attempt()
    assert device.client.load().chain.timestamp.version == 1, "the last good set stands"
    assert estate.provision("keys", "finish", str(estate.keyring.folder / "pending/2.root.json")) == 0
    assert device.refresh(LATER).chain.root.version == 2
    renew(estate.load(), "root", LATER)


# --- thieves ---------------------------------------------------------------------------------------------------------


def burn(estate, *roles, listed=()):
    """What a thief of the online keys does: versions that nobody can count beyond."""
    metadata = estate.store.root / "metadata"
    newest = max(metadata.glob("*.snapshot.json"), key=lambda path: int(path.name.split(".")[0]))
    stamp = Metadata[Timestamp].from_bytes((metadata / "timestamp.json").read_bytes())
    if "snapshot" in roles:
        snapshot = Metadata[Snapshot].from_bytes(newest.read_bytes())
        snapshot.signed.version = HIGHEST + 1
        for name in listed:
            snapshot.signed.meta[f"{name}.json"] = MetaFile(HIGHEST + 1)
        for signer in estate.keyring.signers("snapshot")[:1]:
            snapshot.sign(signer)
        (metadata / f"{HIGHEST + 1}.snapshot.json").write_bytes(snapshot.to_bytes())
        stamp.signed.snapshot_meta = MetaFile(HIGHEST + 1)
    stamp.signed.version = HIGHEST + 1
    for signer in estate.keyring.signers("timestamp")[:1]:
        stamp.sign(signer)
    (metadata / "timestamp.json").write_bytes(stamp.to_bytes())


@pytest.mark.parametrize(
    ("stolen", "listed"), [(["timestamp"], []), (["timestamp", "snapshot"], ["releases", "deployments"])]
)
def test_versions_that_a_thief_burnt_fall_again_with_his_keys(estate, stolen, listed):
    """A device that believed version 2^31 believes the next low one, because the keys are others."""
    path, device = estate.list("a_b_c_20250101"), estate.device()
    burn(estate, *stolen, listed=listed)
    assert device.refresh().chain.timestamp.version == HIGHEST + 1
    rotate(estate.load(), stolen, LATER)
    trusted = device.refresh(LATER)
    assert max(trusted.chain.timestamp.version, trusted.chain.snapshot.version) < 100
    assert trusted.find(path) is not None
    burn(estate, *stolen)
    with pytest.raises(TrustError, match="not signed by enough"):
        device.refresh(LATER)


def test_burnt_versions_are_told_where_the_keys_are_shown(estate, capsys):
    """`trust show` says what to do about it."""
    burn(estate, "timestamp", "snapshot", listed=["releases"])
    assert estate.provision("trust", "show") == 1, "the releases are not readable"
    assert "releases is at version 2147483648" in capsys.readouterr().err


def test_what_a_thief_left_in_the_store_is_replaced_by_what_the_desk_saw_last(estate):
    """Where he made the store unreadable for everybody, devices keep what they had, and new keys bring all of it back."""
    path, device = estate.list("a_b_c_20250101"), estate.device()
    device.refresh()
    burn(estate, "timestamp", "snapshot", listed=["targets"])
    for attempt in (device.refresh, estate.load):
        with pytest.raises((TransferError, TrustError)):
            attempt()
    rotate(Repository.recall(estate.store, Keyring(estate.keyring.folder)), ["timestamp", "snapshot"], LATER)
    for one in (device, estate.device("cam-8")):
        assert one.refresh(LATER).find(path) is not None
    estate.list("a_b_c_20250102", now=LATER)


def test_a_store_that_serves_the_old_root_is_told(estate):
    """A device that knows the new root does not go back; one that lost its files has its floor."""
    device, before = estate.device(), estate.copy()
    rotate(estate.load(), ["root", "timestamp"], LATER)
    device.refresh(LATER)
    estate.put_back(before)
    with pytest.raises(TrustError):
        device.refresh(LATER)
    emptied = estate.device("emptied")
    emptied.floor = device.floor
    with pytest.raises(TrustError, match="root metadata: version 1 is older than 2"):
        emptied.refresh(LATER)


def test_a_key_answers_for_one_role(estate):
    """Else one role's signatures would pass as another's."""
    (signer,) = estate.keyring.signers("releases")
    desk = estate.lend("other", "snapshot-1.pem", "timestamp-1.pem", *(f"targets-{n}.pem" for n in (1, 2, 3)))
    (desk.folder / "roles/deployments-1.pem").write_bytes((estate.keyring.folder / "roles/releases-1.pem").read_bytes())
    before = estate.copy()
    with pytest.raises(InputError, match="answers for releases already"):
        rotate(estate.load(desk), ["deployments"], LATER, to=[signer.public_key.keyid])
    (desk.folder / "roles/team-1.pem").write_bytes((estate.keyring.folder / "roles/releases-1.pem").read_bytes())
    with pytest.raises(InputError, match="answers for releases already"):
        add_role(estate.load(desk), "team", ["releases/face_*"], LATER)
    assert estate.copy() == before


def test_a_repository_does_not_begin_with_a_key_in_two_roles_or_one_too_few(tmp_path):
    """Nothing is written: the first metadata is believed for as long as the fleet lives."""
    store, keyring = DeskFolder(tmp_path / "store"), init_keys(tmp_path / "keys")
    store.root.mkdir()
    roles = keyring.folder / "roles"
    own = (roles / "controller-1.pem").read_bytes()
    (roles / "controller-1.pem").write_bytes((roles / "operators-1.pem").read_bytes())
    with pytest.raises(InputError, match="would answer for operators and controller"):
        Repository.start(store, keyring, NOW)
    (roles / "controller-1.pem").write_bytes(own)
    (roles / "operators-critical-2.pem").unlink()
    with pytest.raises(InputError, match="role operators-critical: 2 keys must sign and it would have 1"):
        Repository.start(store, Keyring(keyring.folder), NOW)
    assert list(store.keys()) == []


# --- teams -----------------------------------------------------------------------------------------------------------

FACE, FIRE = "face_detection_x_y_20250101", "fire_detection_x_y_20250101"


def test_a_team_lists_its_own_releases_and_no_others(estate):
    """Its desk holds its own key and the online ones; what was listed before stays listed; others cannot."""
    face, fire = estate.list(FACE), estate.list(FIRE)
    device = estate.device()
    device.refresh()
    add_role(estate.load(), "face", ["releases/face_detection_*"], LATER)
    team = estate.lend("team", "face-1.pem", "snapshot-1.pem", "timestamp-1.pem")
    new = estate.list("face_detection_x_y_20250102", estate.load(team), LATER)
    trusted = device.refresh(LATER)
    assert all(trusted.find(path) for path in (face, fire, new))
    with pytest.raises(InputError, match="no key of the role releases"):
        estate.list("fire_detection_x_y_20250102", estate.load(team), LATER)
    general = estate.lend("general", "releases-1.pem", "snapshot-1.pem", "timestamp-1.pem")
    with pytest.raises(InputError, match="no key of the role face"):
        estate.list("face_detection_x_y_20250103", estate.load(general), LATER)


def test_what_a_team_lists_outside_its_paths_is_never_anybodys(estate):
    """Not while it is a team, and not when its role ends and its releases move."""
    estate.list(FACE)
    add_role(estate.load(), "face", ["releases/face_detection_*"], LATER)
    hostile = estate.load()
    path = f"releases/{FIRE}.sealed"
    hostile.listings.page("face").signed.targets[path] = listed_bytes(path, b"trojan")
    hostile.listings.changed.add("face")
    hostile.publish(LATER)
    assert estate.device().refresh(LATER).find(path) is None
    assert [ref.name for ref in estate.load().refs()] == [FACE]
    remove_role(estate.load(), "face", LATER)
    trusted = estate.device("cam-8").refresh(LATER)
    assert trusted.find(path) is None
    assert trusted.find(f"releases/{FACE}.sealed") is not None
    assert [ref.name for ref in estate.load().refs()] == [FACE]


def test_a_role_may_come_again(estate):
    """Devices that knew the first one believe the second one of that name."""
    device = estate.device()
    for number in range(2):
        add_role(estate.load(), "face", ["releases/face_detection_*"], LATER)
        repository = estate.load()
        repository.listings.page("face").signed.version += 40  # it lived long
        path = estate.list(f"face_detection_x_y_2025010{number + 1}", repository, LATER)
        assert device.refresh(LATER).find(path) is not None
        remove_role(estate.load(), "face", LATER)
        assert device.refresh(LATER).find(path) is not None


def test_the_most_specific_role_is_asked_first(estate):
    """Whatever the order in which roles were made."""
    add_role(estate.load(), "specific", ["releases/face_detection_*"], LATER)
    add_role(estate.load(), "wide", ["releases/face_*"], LATER)
    found = estate.load().listings
    assert found.holder("releases/face_detection_x_y_20250101.sealed") == "specific"
    assert found.holder("releases/face_blur_x_y_20250101.sealed") == "wide"
    assert found.holder("releases/fire_x_y_20250101.sealed") == "releases"


def test_a_team_of_two_signs_one_after_the_other(estate):
    """With a threshold of two, a release waits until the second one has signed."""
    add_role(estate.load(), "face", ["releases/face_detection_*"], LATER, count=2, need=2)
    second = estate.lock_away("second", "face-2.pem")
    with pytest.raises(Unfinished, match="face: others must sign"):
        estate.list(FACE, now=LATER)

    (path,) = (estate.keyring.folder / "pending").iterdir()
    add_signatures(path, Keyring(second))
    finish(estate.load(), [path], LATER)
    assert estate.device().refresh(LATER).find(f"releases/{FACE}.sealed") is not None


REFUSED = [
    ("releases", ["releases/face_*"], "there is one"),
    ("root", ["releases/face_*"], "there is one"),
    ("team-3f", ["releases/face_*"], "is a bin's"),
    ("a/b", ["releases/face_*"], "role 'a/b'"),
    ("face", ["deployments/face_*"], "write 'releases/PREFIX"),
    ("face", ["releases/*"], "write 'releases/PREFIX"),
    ("face", ["releases/../x*"], "write 'releases/PREFIX"),
    ("face", ["releases/face_detection"], "write 'releases/PREFIX"),
    ("face", ["releases/taken_*"], "the role team has it"),
    ("face", ["releases/takenbefore_*", "releases/ta*"], "another role would have it first"),
]


def test_a_team_cannot_have_every_name_and_path(estate):
    """The answer says which words can be used, and nothing changes: no key is made."""
    add_role(estate.load(), "team", ["releases/taken_*", "releases/takenb_*"], LATER)
    before, keys = estate.copy(), sorted(estate.keyring.folder.glob("roles/*"))
    for name, paths, answer in REFUSED:
        with pytest.raises(InputError, match=re.escape(answer)):
            add_role(estate.load(), name, paths, LATER)
    assert (estate.copy(), sorted(estate.keyring.folder.glob("roles/*"))) == (before, keys)
