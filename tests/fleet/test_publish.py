"""A release that is published opens on an enrolled device, and nowhere else."""

import hashlib
from dataclasses import replace

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from agent.core.errors import InputError, TrustError
from agent.trust.grant import CURVE, unwrap_key
from agent.trust.listing import read_listing, target_path
from agent.trust.sealing import Opener
from fleet.publish import newest_publics, publish
from fleet.sealing import make_grant
from provisioning.keys import add_epoch, init_group
from tests.fleet.desk import NEW, NOW, OLD, WEIGHTS, checked
from tests.trust.keys import open_grant


def opened(desk, name=NEW, group="g1", epochs=None):
    """The parts of a release, as a device of the group opens them."""
    trusted, path = desk.device(), target_path(name)
    info = trusted.find(path)
    listing = read_listing(info.custom, path)
    private = ec.generate_private_key(CURVE)
    grant = make_grant(
        "cam-7", group, epochs or desk.keyring.privates(group), private.public_key(), desk.keyring.signers("grants")
    )
    keys = open_grant(grant, trusted.targets, "cam-7", group, private)
    wrap = listing.wrap(group, keys)
    key = unwrap_key(wrap.key, keys[wrap.epoch], path, group, wrap.epoch)
    with desk.store.stream(info.key) as download:
        opener = Opener(key, path, download.pieces, listing.size)
        parts = {part.name: b"" for part in opener.parts}
        for index, piece in opener.pieces():
            parts[opener.parts[index].name] += piece
    return parts


def test_a_published_release_opens_on_a_device(desk):
    """From the checked files to the device's parts, through TUF, a grant and the seal."""
    ref = desk.publish()
    parts = opened(desk)
    assert parts["model.onnx"] == WEIGHTS
    assert set(parts) == {"metadata.json", "config.yaml", "golden.npz", "model.onnx"}
    info = desk.device().find(target_path(NEW))
    assert (ref.name, ref.digest) == (NEW, info.sha256)
    assert hashlib.sha256(desk.store.read(info.key, 1 << 20)).hexdigest() == ref.digest


def test_weights_in_other_precisions_are_parts_of_the_release(desk):
    """They are sealed with it, and a device opens them with it."""
    desk.publish(variants={"int8": b"in eight bits"})
    assert opened(desk)["model.int8.onnx"] == b"in eight bits"


def test_weights_may_lie_in_a_file(desk, tmp_path):
    """Large weights never have to fit into memory."""
    (tmp_path / "model.onnx").write_bytes(WEIGHTS)
    desk.publish(weights=tmp_path / "model.onnx")
    assert opened(desk)["model.onnx"] == WEIGHTS


def test_a_name_is_one_set_of_bytes_for_ever(desk):
    """Publishing a name again is refused, whatever the bytes are."""
    ref = desk.publish()
    with pytest.raises(InputError, match="published before"):
        desk.publish(weights=b"other")
    with pytest.raises(InputError, match="published before"):
        desk.publish(repository=desk.load())
    assert desk.load().ref(NEW) == ref


def test_nothing_in_the_store_shows_the_weights(desk):
    """Neither the bytes of a model nor their digests are public."""
    desk.publish()
    digest = hashlib.sha256(WEIGHTS).hexdigest().encode()
    for key in list(desk.store.keys()):
        content = desk.store.read(key, 1 << 20)
        assert WEIGHTS[:64] not in content
        assert digest not in content


def test_another_group_cannot_read_it(desk):
    """A release is sealed for the groups it was published for."""
    desk.publish()
    init_group(desk.keyring, "g2")
    with pytest.raises(TrustError, match="sealed for"):
        opened(desk, group="g2")


def test_a_revoked_device_cannot_read_the_next_release(desk):
    """A new epoch that a device's grant lacks shuts it out; what it could read, it keeps."""
    desk.publish(OLD)
    old = desk.keyring.privates("g1")
    add_epoch(desk.keyring, "g1", 2)
    desk.publish(NEW)
    assert opened(desk, OLD, epochs=old)
    assert opened(desk, NEW)
    with pytest.raises(TrustError, match="grant the device"):
        opened(desk, NEW, epochs=old)


def test_a_publisher_needs_public_halves_alone(desk):
    """A stolen publisher's desk reads no model."""
    (desk.keyring.folder / "groups/g1/1.pem").unlink()
    assert desk.publish().name == NEW
    with pytest.raises(InputError, match="no keys of the group"):
        desk.keyring.privates("g1")


def test_a_release_for_nobody_is_refused(desk):
    """A forgotten group is a mistake, not a release that nobody can open."""
    with pytest.raises(InputError, match="no keys of the group g9"):
        newest_publics(desk.keyring, ["g9"])
    (desk.keyring.folder / "groups/g1/1.pub").unlink()
    with pytest.raises(InputError, match="no group"):
        desk.publish()


def test_malformed_metadata_is_refused_before_anything_is_uploaded(desk):
    """The summary that TUF signs comes from the metadata."""
    before = list(desk.store.keys())
    broken = replace(checked(), metadata=b"{}")
    with pytest.raises(InputError, match="metadata of"):
        publish(desk.repository, broken, newest_publics(desk.keyring, ["g1"]), now=NOW)
    assert list(desk.store.keys()) == before
