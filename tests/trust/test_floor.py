"""A rollback that python-tuf forgives after a torn state file, and faults of time."""

from datetime import UTC, datetime, timedelta

import pytest
from securesystemslib.signer import CryptoSigner
from tuf.api.metadata import MetaFile, Root, Snapshot, Targets, Timestamp

from agent.core.documents import from_json, to_json
from agent.core.errors import TrustError
from agent.trust.floor import ISSUED_AT, Floor, RoleFloor, check_floor, high_water, issued_at, seen

NOW = datetime(2026, 11, 1, tzinfo=UTC)
ROLES = ("root", "timestamp", "snapshot", "targets")


@pytest.fixture
def chain(desk):
    root = Root(version=3)
    for role in ROLES:
        root.add_key(CryptoSigner.generate_ed25519().public_key, role)
    snapshot = Snapshot(version=5, meta={"targets.json": MetaFile(7), "operators.json": MetaFile(9)})
    targets = Targets(version=7, delegations=desk.targets.delegations)
    return root, Timestamp(version=8), snapshot, targets


def older(chain, role):
    root, timestamp, snapshot, targets = chain
    if role == "operators":
        snapshot.meta["operators.json"] = MetaFile(8)
    else:
        dict(zip(ROLES, (root, timestamp, snapshot, targets), strict=True))[role].version -= 1
    return seen(*chain)


@pytest.mark.parametrize("role", [*ROLES, "operators"])
def test_an_older_version_is_a_rollback(chain, role):
    """Each role has its own floor, delegated roles too."""
    floor = check_floor(Floor(), seen(*chain))
    with pytest.raises(TrustError, match=f"{role} metadata: version"):
        check_floor(floor, older(chain, role))


def test_the_same_and_newer_versions_pass(chain):
    """Polling an unchanged repository is the common case."""
    floor = check_floor(Floor(), seen(*chain))
    assert check_floor(floor, seen(*chain)) == floor
    chain[1].version += 1
    assert check_floor(floor, seen(*chain)).roles["timestamp"].version == 9


def test_new_keys_begin_a_new_floor(chain):
    """A stolen key that published version 2^31 is recovered from as TUF intends."""
    floor = check_floor(Floor(), seen(*chain))
    chain[0].add_key(CryptoSigner.generate_ed25519().public_key, "snapshot")
    assert check_floor(floor, older(chain, "snapshot")).roles["snapshot"].version == 4
    with pytest.raises(TrustError, match="timestamp"):
        check_floor(floor, older(chain, "timestamp"))


def test_the_root_never_falls(chain):
    """No key change excuses an older root."""
    floor = check_floor(Floor(), seen(*chain))
    chain[0].add_key(CryptoSigner.generate_ed25519().public_key, "root")
    with pytest.raises(TrustError, match="root metadata"):
        check_floor(floor, older(chain, "root"))


def test_the_time_never_falls():
    """A device that starts in 1970 keeps the newest time it knew."""
    roles = {"root": RoleFloor(keys="", version=1)}
    floor = check_floor(Floor(), roles, NOW)
    assert check_floor(floor, roles, NOW - timedelta(days=1)).time == NOW
    assert check_floor(floor, roles).time == NOW
    assert check_floor(Floor(), roles).time is None
    assert high_water(datetime(1970, 1, 1, tzinfo=UTC), None, NOW) == NOW


def test_a_floor_survives_the_disk(chain):
    """It is kept as a document."""
    floor = check_floor(Floor(), seen(*chain), NOW)
    assert from_json(Floor, to_json(floor), "floor") == floor


@pytest.mark.parametrize("text", ["soon", 5, "2026-11-01T00:00:00", ""])
def test_a_signed_time_that_is_none_is_refused(text):
    """A time without its zone, or no time at all, moves no clock."""
    with pytest.raises(TrustError, match=ISSUED_AT):
        issued_at(Timestamp(unrecognized_fields={ISSUED_AT: text}))


def test_a_signed_time_is_read():
    """With Z or with an offset; and none where the publisher gave none."""
    assert issued_at(Timestamp(unrecognized_fields={ISSUED_AT: "2026-11-01T00:00:00Z"})) == NOW
    assert issued_at(Timestamp()) is None
