"""Keys are made once, for their owner alone."""

import stat
from datetime import UTC, datetime

import pytest
import yaml
from cryptography.hazmat.primitives.asymmetric import ec

from agent.core.errors import InputError
from agent.trust.grant import CURVE
from fleet.keyring import ROLES, Keyring, private_key
from fleet.repository import Repository
from fleet.stores import DeskFolder
from provisioning.enrol import enrol, folders_in, grant_key, paths_at
from provisioning.keys import init_group, init_keys, public_pem
from tests.trust.keys import open_grant

NOW = datetime(2026, 11, 1, tzinfo=UTC)


@pytest.fixture
def keyring(tmp_path):
    keyring = init_keys(tmp_path / "keys")
    init_group(keyring, "g1")
    return keyring


@pytest.fixture
def store(tmp_path, keyring):
    store = DeskFolder(tmp_path / "store")
    Repository.start(store, keyring, NOW)
    return store


def test_every_role_gets_its_keys(keyring):
    """As many as its threshold and a lost one ask for, all different."""
    ids = [signer.public_key.keyid for role in ROLES for signer in keyring.signers(role)]
    assert len(ids) == len(set(ids)) == sum(keys.count for keys in ROLES.values())


def test_private_keys_are_for_their_owner_alone(keyring):
    """Mode 0600, from the first moment."""
    assert {stat.S_IMODE(path.stat().st_mode) for path in keyring.folder.rglob("*.pem")} == {0o600}


def test_keys_are_never_overwritten(keyring):
    """A second run changes no byte."""
    before = {path: path.read_bytes() for path in keyring.folder.rglob("*") if path.is_file()}
    with pytest.raises(InputError, match="never overwritten"):
        init_keys(keyring.folder)
    with pytest.raises(InputError, match="has keys already"):
        init_group(keyring, "g1")
    assert {path: path.read_bytes() for path in keyring.folder.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("name", ["", "../g", "a/b", "groups", ".g", "g" * 65, "g g", "g+"])
def test_a_group_has_a_name_that_topics_can_carry(keyring, name):
    """Names are parts of paths, topics and scopes."""
    with pytest.raises(InputError, match="group"):
        init_group(keyring, name)


def test_a_damaged_key_is_named(keyring):
    """The message says which file to bring again."""
    (keyring.folder / "roles/grants-1.pem").write_bytes(b"garbage")
    with pytest.raises(InputError, match=r"grants-1\.pem"):
        keyring.signers("grants")
    (keyring.folder / "groups/g1/1.pub").write_bytes(b"garbage")
    with pytest.raises(InputError, match=r"1\.pub"):
        keyring.publics("g1")


def test_an_enrolled_device_opens_its_grant(tmp_path, keyring, store):
    """The key in the folder and the grant in the store belong together."""
    out = tmp_path / "device"
    enrol(store, keyring, "cam-7", "g1", out, settings=paths_at(out) | folders_in(out))
    targets = Repository.load(store, keyring).targets.signed
    grant = store.read(grant_key("g1", "cam-7"), 1 << 16)
    assert set(open_grant(grant, targets, "cam-7", "g1", private_key(out / "device.key"))) == {1}
    assert stat.S_IMODE((out / "device.key").stat().st_mode) == 0o600
    assert (out / "root.json").read_bytes() == keyring.root()
    assert yaml.safe_load((out / "agent.yaml").read_bytes())["device"] == "cam-7"


def test_a_device_that_made_its_own_key_keeps_it(tmp_path, keyring, store):
    """No private key is made, and the grant opens with the device's."""
    private = ec.generate_private_key(CURVE)
    (tmp_path / "device.pub").write_bytes(public_pem(private.public_key()))
    enrol(store, keyring, "cam-7", "g1", tmp_path / "out", settings={}, key=tmp_path / "device.pub")
    targets = Repository.load(store, keyring).targets.signed
    assert open_grant(store.read(grant_key("g1", "cam-7"), 1 << 16), targets, "cam-7", "g1", private)
    assert not (tmp_path / "out/device.key").exists()


def test_an_enrolment_is_not_overwritten(tmp_path, keyring, store):
    """A second device into the same folder is a mistake."""
    enrol(store, keyring, "cam-7", "g1", tmp_path / "out", settings={})
    with pytest.raises(InputError, match="exists"):
        enrol(store, keyring, "cam-8", "g1", tmp_path / "out", settings={})


def test_a_desk_without_the_groups_private_keys_enrols_nobody(tmp_path, keyring, store):
    """Nothing is written when the grant cannot be made."""
    (keyring.folder / "groups/g1/1.pem").unlink()
    with pytest.raises(InputError, match="no keys of the group"):
        enrol(store, keyring, "cam-7", "g1", tmp_path / "out", settings={})
    assert not (tmp_path / "out").exists()
    assert list(store.keys("grants/")) == []


def test_a_keyring_of_another_curve_is_refused(keyring):
    """Groups and devices have P-256 keys: a TPM can hold them."""
    other = ec.generate_private_key(ec.SECP384R1())
    (keyring.folder / "groups/g1/2.pub").write_bytes(public_pem(other.public_key()))
    with pytest.raises(InputError, match="P-256"):
        Keyring(keyring.folder).publics("g1")
