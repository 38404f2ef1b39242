"""What a device makes of what the store lists: a policy, withdrawals, an old pair; with a real repository and ledger."""

import asyncio
from datetime import UTC, datetime, timedelta

import pytest

from agent.adapters.broker import Message
from agent.adapters.ledger import Ledger
from agent.adapters.outbox import Outbox
from agent.adapters.tuf_client import TufClient
from agent.core.candidate import Backend, Candidate
from agent.core.documents import to_json
from agent.core.errors import EdgeError, Kind, TransferError, TrustError
from agent.core.intent import WITHDRAWN_TYPE, Operator, Policy, Withdrawn
from agent.core.messages import Place
from agent.core.records import Rejection
from agent.core.slot import SlotRecord, pin
from agent.daemon.intake import Intake
from agent.daemon.keyring import Keyring
from agent.daemon.news import News
from agent.trust.policy import POLICY_PATH, WITHDRAWN_PATH
from fleet.deploy import deploy
from fleet.policy import propose_withdrawal, put_withdrawal, set_policy
from fleet.repository import key_of, listed_bytes
from fleet.sealing import make_envelope
from fleet.signing import signed
from provisioning.enrol import enrol
from tests.fleet.desk import NEW, NOW, OLD, Desk

BUILT = datetime(2026, 10, 1, tzinfo=UTC)
POLL_S = 300.0


class Device:
    """An agent's intake, without an agent around it; `at` is what its clock says."""

    def __init__(self, desk):
        self.desk, self.at = desk, datetime.now(UTC)
        folder = desk.folder / "cam-7"
        if not folder.exists():
            enrol(desk.store, desk.keyring, "cam-7", "g1", folder, settings={}, now=NOW)
        self.ledger, self.outbox = Ledger(folder / "ledger.db"), Outbox(folder / "outbox.db")
        self.news = News("cam-7", self.ledger, self.outbox)
        keyring = Keyring(folder / "device.key", "cam-7", "g1", self.ledger)
        client = TufClient(folder / "tuf", desk.store, desk.keyring.root(), self._check)
        self.intake = Intake("cam-7", "g1", client, self.ledger, keyring, self.news, BUILT, POLL_S)
        self.intake.now = lambda: self.at
        self.intake.load()

    def _check(self, chain):
        self.intake.check(chain)

    def slot(self, name="face"):
        return self.ledger.get("slot", name, SlotRecord)

    def rejected(self):
        kinds = {one.ref.name: one.failure.kind for one in self.ledger.all("rejection", Rejection).values()}
        return {name for name, kind in kinds.items() if kind is Kind.WITHDRAWN}

    async def hear(self, pair):
        """A deployment by message; why it was refused, if it was."""
        message = Message("edge/v1/groups/g1/deployment", pair, retain=True, expiry_s=None)
        await asyncio.to_thread(self.intake.take, message)
        await asyncio.sleep(0)
        return self.intake.refused

    def close(self):
        self.news.close()
        self.ledger.close()
        self.outbox.close()


@pytest.fixture
def desk(tmp_path):
    desk = Desk(tmp_path)
    desk.devices = []
    desk.publish(OLD), desk.publish(NEW)
    desk.now = datetime.now(UTC)
    desk.repository.refresh(desk.now)

    def device():
        """The device; asked again, after a restart."""
        if desk.devices:
            desk.devices[-1].close()
        desk.devices.append(Device(desk))
        return desk.devices[-1]

    desk.device = device
    yield desk
    if desk.devices:
        desk.devices[-1].close()


def moved(desk, release, **more):
    return deploy(desk.repository, desk.keyring, "g1", "face", release, now=desk.now, **more)


def withdraw(desk, release):
    listed = propose_withdrawal(desk.repository, release, "sees ghosts", desk.now)
    put_withdrawal(desk.repository, signed(listed, desk.keyring, "operators-critical"), desk.now)


def forget_all(desk):
    """A shorter list, signed as well as the longer one was."""
    signers = desk.keyring.signers("operators-critical")
    raw = make_envelope(to_json(Withdrawn(counter=99, releases=())), WITHDRAWN_TYPE, signers)
    desk.repository.add(listed_bytes(WITHDRAWN_PATH, raw), raw)


def allow(desk, *verbs):
    key = desk.keyring.signers("operators")[0].public_key.keyid
    operator = Operator(
        key=key, name="anna", verbs=("rollout", *verbs), groups=("g1",), expires=desk.now + timedelta(days=1)
    )
    set_policy(desk.repository, to_json(Policy(operators=(operator,))), "policy", desk.now)


async def test_a_withdrawn_release_is_remembered_for_ever(desk):
    """Through a restart, and when nobody lists it any more; it is no way back and no pin."""
    moved(desk, OLD)
    moved(desk, NEW)
    device = desk.device()
    await device.intake.poll()
    ref, old = desk.repository.ref(NEW), desk.repository.ref(OLD)
    place = Place(ref=ref, candidate=Candidate(backend=Backend.CPU))
    way_back = Place(ref=old, candidate=Candidate(backend=Backend.CPU))
    device.ledger.put("slot", "face", pin(SlotRecord(slot="face", deployed=ref, good=(place, way_back)), ref, "id"))
    withdraw(desk, NEW)
    await device.intake.poll()
    assert device.rejected() == {NEW}
    assert (device.slot().override, device.slot().last_good) == (None, way_back)
    device = desk.device()
    forget_all(desk)
    moved(desk, OLD)
    await device.intake.poll()
    assert f"face: {NEW} cannot be chosen (withdrawn" in await device.hear(moved(desk, NEW))
    assert device.rejected() == {NEW}
    assert device.slot().deployed == old


async def test_a_slot_that_stays_on_a_withdrawn_release_stops_no_other_slot(desk):
    """Only a move to it is refused."""
    moved(desk, NEW)
    device = desk.device()
    await device.intake.poll()
    withdraw(desk, NEW)
    await device.intake.poll()
    forget_all(desk)
    deploy(desk.repository, desk.keyring, "g1", "other", OLD, now=desk.now)
    await device.intake.poll()
    assert device.slot("other").deployed.name == OLD


async def test_a_policy_counts_for_deployments_however_they_come(desk):
    """By message and by the store: the operator's time is over for a new rollout, and not for the one that stands."""
    allow(desk)
    moved(desk, OLD)
    device = desk.device()
    await device.intake.poll()
    device.at += timedelta(days=2)
    await device.intake.poll()
    pair = moved(desk, NEW)
    assert "what anna may do ended" in await device.hear(pair)
    with pytest.raises(TrustError, match="what anna may do ended"):
        await device.intake.poll()
    assert device.slot().deployed.name == OLD


async def test_nobody_is_believed_while_the_policy_is_withheld(desk):
    """Neither now nor after a restart; with the policy, everybody who may is."""
    device = desk.device()
    await device.intake.poll()
    allow(desk)
    blob = desk.store.root / key_of(desk.repository.find(POLICY_PATH))
    content = blob.read_bytes()
    blob.unlink()
    for _ in range(2):
        with pytest.raises(TransferError, match="nobody is believed before the policy is here"):
            await device.intake.poll()
        assert device.intake.trusted is None
        device = desk.device()
    blob.write_bytes(content)
    await device.intake.poll()
    assert device.intake.trusted
    assert device.intake.policy.operators[0].name == "anna"


async def test_an_old_pair_in_the_store_is_named_after_a_poll(desk):
    """Not at once: a desk writes to the store and to the broker one after the other."""
    moved(desk, OLD)
    device = desk.device()
    await device.intake.poll()
    old = desk.repository.find("deployments/g1.json")
    pair = moved(desk, NEW)
    assert await device.hear(pair) == ""
    desk.repository.relist(old)
    desk.repository.publish(desk.now)
    await device.intake.poll()
    assert device.slot().deployed.name == NEW
    device.at += timedelta(seconds=POLL_S + 1)
    with pytest.raises(TrustError, match="the store still lists what is older than came by message"):
        await device.intake.poll()
    assert device.slot().deployed.name == NEW
    since = device.intake.store.last_sync
    device = desk.device()
    assert device.intake.store.last_sync == since, "a restart does not forget when the store was seen whole"


async def test_an_old_grant_is_told_and_changes_nothing(desk):
    """The store, or somebody before it, shows an old copy."""
    device = desk.device()
    path = desk.store.root / "grants/g1/cam-7.json"
    old = path.read_bytes()
    enrol(
        desk.store, desk.keyring, "cam-7", "g1", desk.folder / "again", settings={}, key=public_half(desk), now=desk.now
    )
    await device.intake.poll()
    path.write_bytes(old)
    with pytest.raises(EdgeError, match="somebody serves an old one"):
        await device.intake.poll()
    assert "somebody serves an old one" in device.intake.store.error


def public_half(desk):
    """The file in which the desk has the device's public key."""
    return desk.keyring.folder / "devices/g1/cam-7.pub"
