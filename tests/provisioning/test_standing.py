"""Whoever signs from now on: what stands goes on to stand, and devices do not move."""

from types import SimpleNamespace

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from msgspec.structs import replace

from agent.adapters.ledger import Ledger
from agent.adapters.tuf_client import TufClient
from agent.core.documents import to_json, to_tree
from agent.core.errors import TrustError
from agent.core.slot import SlotRecord
from agent.daemon.intake import Intake
from agent.trust.deployment import Taken, believe_deployment, standing
from agent.trust.grant import CURVE
from agent.trust.listing import Listing, Wrap
from fleet.deploy import current, deploy, deployment_path
from fleet.policy import propose_withdrawal, put_withdrawal, set_policy, withdrawn_list
from fleet.repository import listed
from fleet.sealing import make_grant
from fleet.signers import KeyFile, public_at
from fleet.signing import signed
from provisioning.enrol import grant_key
from provisioning.keys import init_group, new_key
from provisioning.rotation import revoke, rotate
from provisioning.standing import leave_all
from tests.provisioning.estate import NOW
from tests.trust.keys import open_grant

NAME = "face_detection_x_y_20250101"


@pytest.fixture
def deployed(estate):
    """An estate whose group g1 has a deployment, and a device with its grant."""
    repository = estate.load()
    init_group(estate.keyring, "g1")
    wrap = Wrap(group="g1", epoch=1, key=bytes(113))
    listing = Listing(
        fmt="cob256+zstd+bg/v1", size=1, wraps=(wrap,), task="face_detection", architecture="x", dataset="y",
        version="1", memory_mb=1, opset=17,
    )  # fmt: skip
    repository.add(listed(f"releases/{NAME}.sealed", 1, "ab" * 32, to_tree(listing)), b"x")
    repository.publish(NOW)
    deploy(repository, estate.keyring, "g1", "face_detection", NAME, now=NOW)
    estate.private = ec.generate_private_key(CURVE)
    epochs = estate.keyring.privates("g1")
    grant = make_grant("cam-7", "g1", epochs, estate.private.public_key(), estate.keyring.signers("grants"))
    estate.store.write(grant_key("g1", "cam-7"), grant)
    return estate


def taken(estate, last=Taken()):  # noqa: B008  a frozen value
    """What a device believes of the deployment that is listed."""
    repository = estate.load()
    raw = repository.read(deployment_path("g1"), 1 << 18)
    return believe_deployment(raw, repository.targets.signed, "g1", last, NOW)


@pytest.mark.parametrize("role", ["operators", "controller", "grants"])
def test_what_stands_is_signed_by_the_new_keys(deployed, role):
    """The same rollout and wave, so that nobody moves; the same grant; and the floor counts by who signs today."""
    before = taken(deployed).taken
    old = deployed.keyids(role)
    rotate(deployed.load(), [role], NOW)
    after = taken(deployed, before)
    assert after.same
    assert (after.taken.rollout_digest, after.taken.wave_digest) == (before.rollout_digest, before.wave_digest)
    assert not {*after.taken.rollout_signers, *after.taken.wave_signers} & set(old)
    assert standing(after.taken, deployed.load().targets.signed) == after.taken
    assert current(deployed.load(), "g1", NOW) is not None, "the desk rolls out on"
    raw = deployed.store.read(grant_key("g1", "cam-7"), 1 << 16)
    assert set(open_grant(raw, deployed.load().targets.signed, "cam-7", "g1", deployed.private)) == {1}


async def test_a_device_stays_rolled_back_when_operators_change(deployed, tmp_path):
    """The pair that new keys signed is the pair it has: nothing moves, and its floor counts by the new keys."""
    ledger = Ledger(tmp_path / "ledger.db")
    news = SimpleNamespace(tell=lambda *_, **__: None, post=lambda act: act())
    intake = Intake("cam-8", "g1", None, ledger, None, news, NOW, 60.0)
    intake.client = TufClient(tmp_path / "tuf", deployed.store, deployed.pinned, intake.check)
    intake.now = lambda: NOW
    await intake.poll()
    before = ledger.get("deployment", "g1", Taken)
    slot = replace(ledger.get("slot", "face_detection", SlotRecord), override_verb="rollback", override_by="me")
    ledger.put_all([("slot", "face_detection", slot)])
    rotate(deployed.load(), ["operators", "controller"], NOW)
    await intake.poll()
    assert ledger.get("slot", "face_detection", SlotRecord) == slot
    after = ledger.get("deployment", "g1", Taken)
    assert not {*after.rollout_signers, *after.wave_signers} & {*before.rollout_signers, *before.wave_signers}


def test_after_a_theft_nothing_is_signed_again(deployed):
    """What stands may be the thief's: it is named instead, and counts no more."""
    before = {path.name: path.read_bytes() for path in deployed.store.root.glob("grants/*/*")}
    told = []
    rotate(deployed.load(), ["grants", "operators"], NOW, stand=lambda repository: told.extend(leave_all(repository)))
    assert [sentence.split(":")[0] for sentence in told] == ["deployments/g1.json", "grants/g1/cam-7.json"]
    assert {path.name: path.read_bytes() for path in deployed.store.root.glob("grants/*/*")} == before
    with pytest.raises(TrustError, match="operators"):
        taken(deployed)


def test_what_was_withdrawn_stays_withdrawn(deployed):
    """The list is signed by the new keys of `operators-critical`; else the desk itself would believe it no more."""
    repository = deployed.load()
    pending = propose_withdrawal(repository, NAME, "burns", NOW)
    put_withdrawal(repository, signed(pending, deployed.keyring, "operators-critical"), NOW)
    rotate(deployed.load(), ["operators-critical"], NOW)
    assert [one.release.name for one in withdrawn_list(deployed.load()).releases] == [NAME]


def test_a_new_operator_whom_the_policy_does_not_know_is_told(deployed, capsys):
    """The key counts for TUF, and may do nothing: whoever rotates hears of it."""
    keyid = deployed.keyids("operators")[0]
    content = to_json({"operators": [{"name": "ann", "key": keyid, "verbs": ["*"], "groups": ["*"]}]})
    set_policy(deployed.load(), content, "policy.yaml", NOW)
    assert deployed.provision("keys", "rotate", "operators") == 0
    new = deployed.keyids("operators")[0]
    assert f"policy: key {new[:16]} of operators may do nothing yet" in capsys.readouterr().err


def test_a_forged_grant_is_not_signed_along(deployed):
    """A rotation vouches for what the old keys signed, not for what somebody put beside it."""
    forged = make_grant(
        "cam-8", "g1", deployed.keyring.privates("g1"), deployed.private.public_key(), deployed.keyring.signers("releases")
    )  # fmt: skip
    deployed.store.write(grant_key("g1", "cam-8"), forged)
    deployed.store.write("grants/g1/cam-9.json", b"garbage")
    rotate(deployed.load(), ["grants"], NOW)
    assert deployed.store.read(grant_key("g1", "cam-8"), 1 << 16) == forged
    assert deployed.store.read("grants/g1/cam-9.json", 1 << 16) == b"garbage"


def test_an_operator_who_leaves_takes_no_deployment_along(deployed, capsys):
    """The other operator's desk signs what stands; where her key is elsewhere, it says what must be made anew."""
    first = deployed.keyids("operators")[0]
    second = new_key(deployed.keyring, "operators").keyid
    third = new_key(deployed.keyring, "operators").keyid
    rotate(deployed.load(), ["operators"], NOW, old=first, to=[second, third])
    assert set(taken(deployed).taken.rollout_signers) == {second, third}
    revoke(deployed.load(), "operators", second, NOW)
    assert taken(deployed).taken.rollout_signers == (third,)
    fourth = new_key(deployed.keyring, "operators").keyid
    deployed.lock_away("elsewhere", "operators-1.pem", "operators-4.pem")
    keyring = deployed.keyring.folder / "roles"
    (keyring / "operators-4.json").write_bytes(named(deployed.folder / "elsewhere/roles/operators-4.pem"))
    assert deployed.provision("keys", "rotate", "operators", "--to", fourth) == 0
    assert "deployments/g1.json: devices believe it no more" in capsys.readouterr().err


def named(pem):
    """The file that names this key as another desk's."""
    key = public_at(pem, pem.read_bytes())
    return to_json(KeyFile(uri="", keyid=key.keyid, key=key.to_dict()))
