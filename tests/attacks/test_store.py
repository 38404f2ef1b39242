"""Whoever owns the bucket, the CDN or the network: what they serve is not believed, and the device serves on."""

from contextlib import ExitStack
from datetime import timedelta
from pathlib import Path

import pytest
from securesystemslib.signer import CryptoSigner
from tuf.api.metadata import Metadata, Root

import fleet.roles
from fleet.repository import Repository
from fleet.stores import open_store
from provisioning.keys import init_keys
from provisioning.rotation import rotate
from tests.attacks.hostile import dripping, endless, plain_portal, portal, redirect, serving
from tests.attacks.thief import seize, signed_root
from tests.faults.test_bad_intent import ask, request
from tests.system.plant import GROUP, ONE, TWO, now
from tests.system.steady import until_settled

TIMESTAMP = "metadata/timestamp.json"
RELEASES = "targets/releases/*"
FAR = 2**31 - 1


def play(besieged, pattern, trick, words):
    """The bucket plays a trick until it is told in words; what was said."""
    with besieged.unharmed(), besieged.bucket.playing(pattern, trick):
        return besieged.told(words)


def deploy_and_play(besieged, date, pattern, trick, words):
    """As `play`, while a release that nobody has seen yet is deployed."""
    release = besieged.another(date)
    with besieged.unharmed(but={"deployment"}), besieged.bucket.playing(pattern, trick):
        besieged.deploy(release.name)
        said = besieged.told(words)
        assert besieged.device.slot()["serving"] == ONE
        besieged.deploy(ONE)
    return said


# --- older, mixed, frozen ------------------------------------------------------------------------------------------


def test_rollback(besieged, stopped):
    """Yesterday's bucket, signatures and all."""
    old = besieged.bucket.read(TIMESTAMP)
    besieged.renew()
    said = play(besieged, TIMESTAMP, serving(old), "is older than what was seen here")
    stopped("rollback", "TUF versions", said)


def test_rollback_after_a_torn_state(besieged, stopped):
    """As above, when a power cut took what TUF's client remembers: the ledger's floor remembers too."""
    old, device = besieged.bucket.read(TIMESTAMP), besieged.device
    besieged.renew()
    with besieged.unharmed(), besieged.bucket.playing(TIMESTAMP, serving(old)):
        device.agent.kill()
        device.agent.wait()
        for name in ("timestamp.json", "snapshot.json"):
            (Path(device.tree["state_folder"]) / "tuf" / "current" / name).write_bytes(b"")
        device.start()
        device.until(lambda: device.state()["pid"] == device.agent.pid, "the agent is back")
        stopped("rollback after a torn state", "floor of versions", besieged.told("which this device has seen"))


@pytest.mark.parametrize("role", ["snapshot", "deployments"])
def test_mix_and_match(besieged, stopped, role):
    """An older file of a role under its newest name, beside what is new in all other roles."""
    with besieged.unharmed(but={"deployment"}), ExitStack() as meanwhile:
        with besieged.asleep():
            old = besieged.bucket.read(besieged.metadata(role))
            besieged.plant.rollout(ONE, broker=False)
            meanwhile.enter_context(besieged.bucket.playing(besieged.metadata(role), serving(old)))
        said = besieged.told("is not the file that the signed metadata names")
        meanwhile.close()
    stopped(f"mix-and-match: old {role}", "TUF hashes", said)


def test_freeze(besieged, stopped, monkeypatch):
    """News that is held back is noticed when the timestamp that is known expires; what runs, runs on."""
    monkeypatch.setitem(fleet.roles.DAYS, "timestamp", timedelta(seconds=3) / timedelta(days=1))
    besieged.plant.repository.refresh(now())
    monkeypatch.undo()
    try:
        with besieged.unharmed():
            said = besieged.told("has expired: its publisher must sign it anew")
    finally:
        besieged.renew()
    stopped("freeze", "expiry of the timestamp", said)


def test_fast_forward(besieged, stopped):
    """A thief of the online keys counts to 2^31; with new keys in the root, counting begins anew."""
    plant = besieged.plant
    timestamp = Metadata.from_bytes(besieged.bucket.read(TIMESTAMP))
    timestamp.signed.version = FAR
    timestamp.sign(plant.keyring.signers("timestamp")[0])
    with besieged.unharmed():
        with besieged.bucket.playing(TIMESTAMP, serving(timestamp.to_bytes())):
            floor = Path(besieged.device.tree["state_folder"]) / "tuf" / "current" / "timestamp.json"
            besieged.device.until(lambda: Metadata.from_file(str(floor)).signed.version == FAR, "it took the bait")
        said = besieged.told("is older than what was seen here")
        rotate(plant.repository, ["timestamp", "snapshot"], now())
        besieged.until_synced()
        assert Metadata.from_file(str(floor)).signed.version < FAR
    stopped("fast-forward", "new keys begin a new floor", said)


# --- too much, too slow, something else ----------------------------------------------------------------------------


def test_endless_metadata(besieged, stopped):
    """A timestamp without an end."""
    stopped("endless data: metadata", "length limit", play(besieged, TIMESTAMP, endless, "is longer than it may be"))


def test_an_endless_grant(besieged, stopped):
    """A grant without an end: it is not in TUF, and has a limit of its own."""
    said = play(besieged, f"grants/{GROUP}/*", endless, "at most 65536 are believed")
    stopped("endless data: grant", "length limit", said)


def test_an_endless_release(besieged, stopped):
    """A release without an end."""
    said = deploy_and_play(besieged, "20250301", RELEASES, endless, "1000000000000 bytes lie there")
    stopped("endless data: release", "declared length", said)


def test_slow_metadata(besieged, stopped):
    """A store that drips a document keeps a device for no longer than its deadline."""
    said = play(besieged, TIMESTAMP, dripping, "not here after 3 s")
    stopped("slow retrieval: metadata", "deadline of a document", said)


def test_a_slow_release(besieged, stopped):
    """A store that drips a release is left and asked again."""
    said = deploy_and_play(besieged, "20250302", RELEASES, dripping, "bytes in 3 s: check the network or store")
    stopped("slow retrieval: release", "least speed", said)


LENGTHS = {"longer": lambda true: true + b"more", "shorter": lambda true: true[: len(true) // 2]}


@pytest.mark.parametrize("case", LENGTHS)
def test_wrong_length(besieged, stopped, case):
    """A release of another length than was signed."""
    date = f"2025031{list(LENGTHS).index(case)}"
    said = deploy_and_play(besieged, date, RELEASES, serving(LENGTHS[case]), "are signed: publish it again")
    stopped(f"wrong length: {case}", "declared length", said)


SOFTWARE = {"other bytes": lambda true: bytes(len(true)), "one bit": lambda true: true[:-1] + bytes([true[-1] ^ 1])}


@pytest.mark.parametrize("case", SOFTWARE)
def test_arbitrary_software(besieged, stopped, case):
    """Other bytes of the length that was signed."""
    date = f"2025032{list(SOFTWARE).index(case)}"
    said = deploy_and_play(besieged, date, RELEASES, serving(SOFTWARE[case]), "is signed: look at the store")
    stopped(f"arbitrary software: {case}", "hash of the release", said)


def test_a_whole_bucket_of_a_stranger(besieged, stopped, tmp_path):
    """A repository that is right in itself, by keys that nobody trusts."""
    strange = open_store(f"file://{tmp_path}/store")
    Repository.start(strange, init_keys(tmp_path / "keys"), now())
    said = play(besieged, TIMESTAMP, serving(strange.read(TIMESTAMP, 10_000)), "is not signed by enough of the keys")
    stopped("arbitrary software: a stranger's bucket", "TUF signatures", said)


PORTALS = {
    "a page": (portal, "store", "a web page came in its place: log this network in (captive portal)"),
    "a page that says nothing of its kind": (plain_portal, "TUF form", "cannot be parsed: look at the store"),
    "a redirect": (redirect, "store", "the server answers 302"),
}


@pytest.mark.parametrize("case", PORTALS)
def test_a_captive_portal(besieged, stopped, case):
    """A hotel's page, wherever the device asks."""
    trick, stage, words = PORTALS[case]
    stopped(f"captive portal: {case}", stage, play(besieged, "*", trick, words))


@pytest.mark.parametrize(
    ("date", "trick", "stage", "words"),
    [
        ("20250303", portal, "store", "a web page came in its place"),
        ("20250304", plain_portal, "declared length", "are signed: publish it again"),
    ],
)
def test_a_captive_portal_instead_of_a_release(besieged, stopped, date, trick, stage, words):
    """A hotel's page where the release lies."""
    stopped("captive portal: release", stage, deploy_and_play(besieged, date, RELEASES, trick, words))


# --- stolen keys ---------------------------------------------------------------------------------------------------


def test_keys_below_the_threshold(besieged, stopped):
    """One root key of three that must be two: the thief's root is none."""
    plant = besieged.plant
    root = Metadata[Root].from_bytes(plant.store.read(besieged.metadata("root"), 100_000)).signed
    thief = CryptoSigner.generate_ed25519()
    root.version += 1
    for role in root.roles:
        root.add_key(thief.public_key, role)
    forged = signed_root(root, [plant.keyring.signers("root")[0], thief])
    said = play(besieged, f"metadata/{root.version}.root.json", serving(forged), "is not signed by enough of the keys")
    stopped("root key stolen, below the threshold", "TUF signatures", said)


def test_a_pin_by_a_thief_of_the_operators_key(besieged, stopped):
    """A pin needs the operators' key alone: who has it moves a device to any release that TUF lists, and to no other."""
    assert ask(besieged, *request(besieged))["status"] == "done"
    besieged.device.until_serving(besieged.other)
    assert ask(besieged, *request(besieged, release=ONE.replace("0628", "0101")))["status"] == "failed"
    assert ask(besieged, *request(besieged, release=None))["status"] == "done"
    assert until_settled(besieged.device, besieged.good)
    stopped(
        "operators' key stolen: a pin", "nothing", f"the device serves {TWO}, which is listed, until the pin is lifted"
    )


def test_keys_at_the_threshold(new_plant, stopped, tmp_path):
    """Two root keys of three: the thief is the owner now, and the device follows. Nothing on it could tell."""
    plant = new_plant()
    plant.publish(ONE)
    plant.rollout(ONE)
    device = plant.device(store={"poll_s": 1.0}).start()
    device.until_serving(ONE, confirmed=True)
    seize(plant, init_keys(tmp_path / "thief"))
    release = plant.publish(TWO)
    plant.rollout(TWO)
    assert until_settled(device, release)
    stopped("root keys stolen, at the threshold", "nothing", f"the device serves {release.name}, which the thief listed and deployed")  # fmt: skip
