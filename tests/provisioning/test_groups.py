"""Devices join a group, leave it, and the group's key changes; many at once, and cut at any point."""

import base64
import io
import itertools
import shutil
from datetime import timedelta

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from agent.adapters.ledger import Ledger
from agent.core.errors import InputError, TransferError
from agent.daemon.keyring import Keyring as DeviceKeyring
from agent.trust.grant import CURVE, GRANT_BYTES, Grant
from agent.trust.listing import read_listing, target_path
from fleet.deploy import deploy
from fleet.keyring import Keyring
from fleet.stores import DeskFolder
from provisioning import cli
from provisioning.enrol import enrol, enrol_listed, grant_key
from provisioning.grants import rotate
from provisioning.keys import add_epoch, init_group
from provisioning.register import enrolled, strike_out
from tests.fleet.desk import NEW, NOW, OLD, WEIGHTS, Desk

LATER = NOW + timedelta(hours=1)


class Device:
    """A device as its agent has it: a key, a ledger, and what it opens."""

    def __init__(self, desk, name):
        self.desk, self.name = desk, name
        enrol(desk.store, desk.keyring, name, "g1", desk.folder / name, settings={}, now=NOW)
        self.ledger = Ledger(desk.folder / name / "ledger.db")
        self.keyring = DeviceKeyring(desk.folder / name / "device.key", name, "g1", self.ledger)

    def poll(self):
        """Take the grant that lies in the store now; its counter."""
        self.keyring.take(self.desk.store.read(grant_key("g1", self.name), GRANT_BYTES), self.desk.device().targets)
        return self.ledger.get("grant", "g1", Grant).counter

    def opens(self, release):
        """Whether it reads the weights of a release, from what TUF lists now."""
        info = self.desk.device().find(target_path(release))
        try:
            opener = self.keyring.open(release, read_listing(info.custom, info.path), self.desk.store.root / info.key)
        except TransferError:
            return False
        content = b"".join(bytes(piece) for index, piece in opener.pieces() if opener.parts[index].name == "model.onnx")
        return content == WEIGHTS


@pytest.fixture
def desk(tmp_path):
    desk = Desk(tmp_path)
    desk.devices = []

    def device(name):
        desk.devices.append(Device(desk, name))
        return desk.devices[-1]

    desk.enrol = device
    yield desk
    for one in desk.devices:
        one.ledger.close()


class Counting(DeskFolder):
    """Counts the grants that are written, and fails when there are enough."""

    def __init__(self, root, limit=1 << 30):
        super().__init__(root)
        self.limit, self.written = limit, []

    def write(self, key, content, *, if_absent=False):
        if key.startswith("grants/"):
            if len(self.written) >= self.limit:
                raise TransferError("the line is cut")
            self.written.append(key)
        super().write(key, content, if_absent=if_absent)


def provision(desk, *words):
    return cli.main([*words, "--store", f"file://{desk.store.root}", "--keys", str(desk.keyring.folder)])


def sealed(desk, release):
    return desk.device().find(target_path(release)).sha256


def silent(done, total):
    pass


def test_a_revoked_device_opens_nothing_published_afterwards(desk, capsys):
    """It keeps what it could read, and the command says so; for the others nothing changes."""
    stays, leaves = desk.enrol("cam-1"), desk.enrol("cam-2")
    desk.publish(OLD)
    before = sealed(desk, OLD)
    assert [one.poll() > 0 and one.opens(OLD) for one in (stays, leaves)] == [True, True]
    assert provision(desk, "device", "revoke", "cam-2", "--group", "g1") == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "epoch 2, granted to its devices (1); nothing was encrypted again" in said
    assert "It keeps what it could read" in said
    desk.publish(NEW, desk.load())
    stays.poll(), leaves.poll()
    assert (stays.opens(OLD), stays.opens(NEW)) == (True, True)
    assert (leaves.opens(OLD), leaves.opens(NEW)) == (True, False)
    assert sealed(desk, OLD) == before


def test_a_device_that_has_not_heard_of_the_new_epoch_reads_on(desk):
    """A listing keeps the last epoch beside the new one, and no more: it does not grow for ever."""
    device = desk.enrol("cam-1")
    desk.publish(OLD)
    device.poll()
    rotate(desk.load(), "g1", now=LATER, tell=silent)
    assert device.opens(OLD)
    rotate(desk.load(), "g1", now=LATER, tell=silent)
    assert [wrap.epoch for wrap in read_listing(desk.device().find(target_path(OLD)).custom, OLD).wraps] == [2, 3]
    device.poll()
    assert device.opens(OLD)


def test_another_group_is_left_alone(desk):
    """Its wraps, its grants and its epoch are as they were."""
    init_group(desk.keyring, "g2")
    desk.publish(OLD)
    enrol(desk.store, desk.keyring, "cam-9", "g2", desk.folder / "cam-9", settings={})
    before = desk.store.read(grant_key("g2", "cam-9"), GRANT_BYTES)
    rotate(desk.load(), "g1", now=LATER, tell=silent)
    wraps = read_listing(desk.device().find(target_path(OLD)).custom, OLD).wraps
    assert [(wrap.group, wrap.epoch) for wrap in wraps] == [("g2", 1), ("g1", 1), ("g1", 2)]
    assert desk.store.read(grant_key("g2", "cam-9"), GRANT_BYTES) == before


@pytest.mark.parametrize("written", range(3))
def test_a_cut_change_of_epoch_is_finished_by_the_next_run(desk, written, monkeypatch):
    """The same epoch, and only the grants that are missing."""
    monkeypatch.setattr("provisioning.grants.BATCH", 1)
    for name in ("cam-1", "cam-2", "cam-3"):
        desk.enrol(name)
    desk.publish(OLD)
    repository = desk.load()
    repository.store = Counting(desk.store.root, written)
    with pytest.raises(TransferError, match="cut"):
        rotate(repository, "g1", now=LATER, tell=silent)
    assert [wrap.epoch for wrap in read_listing(desk.device().find(target_path(OLD)).custom, OLD).wraps] == [1]
    repository = desk.load()
    repository.store = Counting(desk.store.root)
    assert rotate(repository, "g1", now=LATER, tell=silent) == 2
    assert len(repository.store.written) == 3 - written
    for one in desk.devices:
        one.poll()
        assert sorted(one.keyring._epochs()) == [1, 2]


def test_a_cut_revocation_goes_on_where_it_was(desk, capsys):
    """The device is out already: the command is repeated as it was typed."""
    desk.enrol("cam-1"), desk.enrol("cam-2")
    repository = desk.load()
    repository.store = Counting(desk.store.root, 0)
    strike_out(desk.keyring, "g1", "cam-2")
    with pytest.raises(TransferError):
        rotate(repository, "g1", now=LATER, tell=silent)
    assert provision(desk, "device", "revoke", "cam-2", "--group", "g1") == 0
    assert "epoch 2 was begun before" in capsys.readouterr().out
    assert max(desk.keyring.publics("g1")) == 2


def test_a_desk_that_knows_no_device_changes_no_epoch(desk):
    """It would shut all of them out."""
    desk.enrol("cam-1")
    shutil.rmtree(desk.keyring.folder / "devices" / "g1")
    with pytest.raises(InputError, match="none is known at this desk"):
        rotate(desk.load(), "g1", now=LATER, tell=silent)
    assert max(desk.keyring.publics("g1")) == 1


def test_the_last_device_of_a_group_can_leave(desk, capsys):
    """The group stays, with a key that nobody was granted."""
    desk.enrol("cam-1")
    assert provision(desk, "device", "revoke", "cam-1", "--group", "g1") == 0
    assert "cam-1 is out of g1" in capsys.readouterr().out
    assert max(desk.keyring.publics("g1")) == 2


def test_a_publisher_that_missed_the_new_epoch_is_told(desk):
    """What it sealed for the old one, a device that was taken out could open."""
    desk.enrol("cam-1")
    desk.publish(OLD)
    deploy(desk.load(), desk.keyring, "g1", "face", OLD, now=NOW)
    rotate(desk.load(), "g1", now=LATER, tell=silent)
    (desk.keyring.folder / "groups/g1/2.pub").unlink()
    with pytest.raises(InputError, match=r"is at epoch 2, this desk knows 1; copy groups/g1/2\.pub"):
        desk.publish(NEW, desk.load())


def test_grants_count_on_though_the_clock_falls(desk):
    """A device that has the last grant takes the next one."""
    device = desk.enrol("cam-1")
    first = device.poll()
    rotate(desk.load(), "g1", now=NOW - timedelta(days=2), tell=silent)
    assert device.poll() == first + 1


# --- keys at rest -----------------------------------------------------------------------------------------------------


def test_an_epochs_key_is_locked_by_a_passphrase(desk, monkeypatch, capsys):
    """From the environment; the next epoch is locked as the last one; a wrong word is one clear line."""
    monkeypatch.setenv("EDGE_KEY_PASSPHRASE", "correct horse")
    assert cli.main(["group", "init", "g2", "--encrypt", "--keys", str(desk.keyring.folder)]) == 0
    enrol(desk.store, desk.keyring, "cam-9", "g2", desk.folder / "cam-9", settings={})
    rotate(desk.load(), "g2", now=LATER, tell=silent)
    for epoch in (1, 2):
        assert b"ENCRYPTED" in (desk.keyring.folder / f"groups/g2/{epoch}.pem").read_bytes()
    assert set(Keyring(desk.keyring.folder).privates("g2")) == {1, 2}
    monkeypatch.setenv("EDGE_KEY_PASSPHRASE", "wrong horse")
    assert provision(desk, "group", "rotate", "g2") == 2
    assert capsys.readouterr().err.strip().endswith("groups/g2/1.pem: wrong passphrase")
    monkeypatch.delenv("EDGE_KEY_PASSPHRASE")
    monkeypatch.setattr("sys.stdin", io.StringIO())
    assert provision(desk, "group", "rotate", "g2") == 2
    assert "set EDGE_KEY_PASSPHRASE" in capsys.readouterr().err


# --- many at once ----------------------------------------------------------------------------------------------------


def line(name):
    public = ec.generate_private_key(CURVE).public_key()
    der = public.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return f"{name} {base64.b64encode(der).decode()}"


@pytest.fixture
def listed(tmp_path):
    path = tmp_path / "devices.txt"
    path.write_text("\n".join(["# a batch", *(line(f"cam-{number}") for number in range(7)), ""]))
    return path


def test_a_list_of_devices_is_enrolled(desk, listed, capsys):
    """Each has a grant, and is known for the next epoch."""
    assert provision(desk, "device", "enrol", "--from", str(listed), "--group", "g1") == 0
    assert "7 devices of g1 have their grants" in capsys.readouterr().out
    assert set(enrolled(desk.keyring, "g1")) == {f"cam-{number}" for number in range(7)}
    assert len(list(desk.store.keys("grants/g1/"))) == 7


@pytest.mark.parametrize("written", [0, 2, 5])
def test_a_cut_enrolment_goes_on_where_it_was(desk, listed, written, monkeypatch):
    """What is in the store is not made again, but for the devices whose key is another now."""
    monkeypatch.setattr("provisioning.grants.BATCH", 1)
    cut, whole = Counting(desk.store.root, written), Counting(desk.store.root)
    with pytest.raises(TransferError, match="cut"):
        enrol_listed(cut, desk.keyring, listed, "g1", now=NOW, tell=silent)
    lines = listed.read_text().splitlines()
    listed.write_text("\n".join([lines[0], line("cam-0"), *lines[2:]]))
    told = []
    enrol_listed(whole, desk.keyring, listed, "g1", now=NOW, tell=lambda done, total: told.append((done, total)))
    assert len(whole.written) == 7 - max(0, written - 1)
    assert told[-1] == (7, 7)
    assert all(a < b for a, b in itertools.pairwise(told))


def test_after_a_new_epoch_a_list_begins_anew(desk, listed, monkeypatch):
    """Half a list of grants for the old epoch is no half of the new one."""
    monkeypatch.setattr("provisioning.grants.BATCH", 1)
    with pytest.raises(TransferError):
        enrol_listed(Counting(desk.store.root, 5), desk.keyring, listed, "g1", now=NOW, tell=silent)
    add_epoch(desk.keyring, "g1", 2)
    whole = Counting(desk.store.root)
    enrol_listed(whole, desk.keyring, listed, "g1", now=NOW, tell=silent)
    assert len(whole.written) == 7


@pytest.mark.parametrize(
    ("content", "answer"),
    [
        ("", "names no device"),
        ("cam-1", "line 1: no public key in base64"),
        ("cam-1 !!!", "line 1: no public key in base64"),
        ("\ncam/1 " + line("x").split()[1], "line 2: device 'cam/1'"),
        (line("cam-1") + "\n" + line("cam-1"), "line 2: cam-1 stands there twice"),
        (b"\xff\xfe", "name the list of devices"),
    ],
)
def test_a_bad_list_writes_nothing(desk, tmp_path, capsys, content, answer):
    """All of it is read before anything is written, and the line is named."""
    (tmp_path / "list").write_bytes(content if isinstance(content, bytes) else content.encode())
    assert provision(desk, "device", "enrol", "--from", str(tmp_path / "list"), "--group", "g1") == 2
    said = capsys.readouterr().err.strip()
    assert answer in said
    assert "\n" not in said
    assert list(desk.store.keys("grants/")) == []
    assert enrolled(desk.keyring, "g1") == {}


@pytest.mark.parametrize(
    ("words", "answer"),
    [
        (["device", "revoke", "cam-9", "--group", "g1"], "not enrolled in g1 at this desk"),
        (["device", "revoke", "cam-9", "--group", "g9"], "no keys of the group g9"),
        (["group", "rotate", "g9"], "no keys of the group g9"),
        (["device", "enrol", "cam-9", "--group", "g1"], "--out"),
        (["device", "enrol", "--from", "/nowhere", "--group", "g1"], "/nowhere"),
        (["device", "enrol", "--from", "/nowhere", "--group", "g1", "--out", "x"], "leave out --out"),
    ],
)
def test_a_users_mistake_is_one_sentence(desk, capsys, words, answer):
    """Exit 2, one line on standard error, nothing changed."""
    assert provision(desk, *words) == 2
    said = capsys.readouterr().err.strip()
    assert answer in said
    assert "\n" not in said
    assert max(desk.keyring.publics("g1")) == 1
