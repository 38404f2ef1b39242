"""Attacks and faults on grants and wrapped keys."""

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from agent.core.errors import TrustError
from agent.trust.grant import CURVE, unwrap_key
from fleet.sealing import make_grant, private_bytes, wrap_key
from tests.trust.keys import open_grant

KEY = bytes(range(32))


@pytest.fixture(scope="module")
def private():
    return ec.generate_private_key(CURVE)


@pytest.fixture(scope="module")
def epochs():
    return {epoch: ec.generate_private_key(CURVE) for epoch in (1, 2)}


def test_a_wrapped_key_opens_for_its_group(epochs):
    """The content key comes out for the holder of the epoch."""
    wrapped = wrap_key(KEY, epochs[1].public_key(), "p", "g1", 1)
    assert len(wrapped) == 113
    assert unwrap_key(wrapped, epochs[1], "p", "g1", 1) == KEY


@pytest.mark.parametrize("place", [("q", "g1", 1), ("p", "g2", 1), ("p", "g1", 2)])
def test_a_wrapped_key_does_not_open_elsewhere(epochs, place):
    """Path, group and epoch are bound into it."""
    with pytest.raises(TrustError, match="does not open"):
        unwrap_key(wrap_key(KEY, epochs[1].public_key(), "p", "g1", 1), epochs[1], *place)


def test_another_epochs_key_does_not_open(epochs):
    """A revoked device holds older epochs only."""
    with pytest.raises(TrustError, match="does not open"):
        unwrap_key(wrap_key(KEY, epochs[2].public_key(), "p", "g1", 2), epochs[1], "p", "g1", 2)


@pytest.mark.parametrize("wrapped", [b"", b"x" * 10, b"x" * 113])
def test_a_garbled_wrapped_key_is_refused(epochs, wrapped):
    """Garbage is a TrustError, not a crash."""
    with pytest.raises(TrustError, match="does not open"):
        unwrap_key(wrapped, epochs[1], "p", "g1", 1)


def test_a_grant_brings_every_epoch(desk, private, epochs):
    """A device reads all releases of its group."""
    raw = make_grant("cam-7", "g1", epochs, private.public_key(), desk.keys["grants"])
    got = open_grant(raw, desk.targets, "cam-7", "g1", private)
    assert {epoch: private_bytes(key) for epoch, key in got.items()} == {e: private_bytes(k) for e, k in epochs.items()}


def test_a_forged_grant_is_refused(desk, private, epochs):
    """Anybody can seal to a device; only `grants` may."""
    raw = make_grant("cam-7", "g1", epochs, private.public_key(), desk.keys["operators"])
    with pytest.raises(TrustError, match="signed by 0"):
        open_grant(raw, desk.targets, "cam-7", "g1", private)


@pytest.mark.parametrize("to", [("cam-8", "g1"), ("cam-7", "g2")])
def test_a_grant_of_another_device_or_group_is_refused(desk, private, epochs, to):
    """A grant served in another's place changes nothing."""
    raw = make_grant(*to, epochs, private.public_key(), desk.keys["grants"])
    with pytest.raises(TrustError, match="it is for"):
        open_grant(raw, desk.targets, "cam-7", "g1", private)


def test_a_grant_for_another_key_does_not_open(desk, private, epochs):
    """A copied grant is of no use without the device's own key."""
    raw = make_grant("cam-7", "g1", epochs, private.public_key(), desk.keys["grants"])
    with pytest.raises(TrustError, match="does not open"):
        open_grant(raw, desk.targets, "cam-7", "g1", ec.generate_private_key(CURVE))
