"""How deployments come in: from TUF by polling, from the broker by message. Believed here, or refused here.

1. A deployment counts however it came; the pair's counters decide, not the way.
2. What a pair changes (intent and counters) is one transaction, synced before the message is acknowledged.
3. What is refused is written down with its reason; the intent that stands, stands.
"""

import asyncio
import threading
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime

from agent.adapters.broker import Message
from agent.adapters.ledger import Ledger
from agent.adapters.store import Missing
from agent.adapters.tuf_client import Chain, Trusted, TufClient
from agent.core.documents import Document
from agent.core.errors import EdgeError, InputError, TransferError, TrustError
from agent.core.intent import wanted
from agent.core.release import Ref
from agent.core.slot import SlotRecord, deploy
from agent.daemon.board import Board
from agent.daemon.keyring import Keyring
from agent.daemon.news import News
from agent.trust.deployment import PAIR_BYTES, Taken, believe_deployment
from agent.trust.expiry import expiring
from agent.trust.floor import Floor, check_floor, high_water, issued_at, seen
from agent.trust.grant import GRANT_BYTES
from agent.trust.listing import target_path

ASK_AGAIN_S = 60.0


class StoreState(Document):
    """How the last contact to the store went."""

    last_sync: datetime | None = None
    expires: datetime | None = None  # of the timestamp: until then withheld intent may stay unseen
    error: str = ""
    expiring: tuple[str, ...] = ()  # a sentence for each role of the repository that somebody must sign anew


@dataclass(eq=False)
class Intake:
    """Believes intent and moves the desired board."""

    device: str
    group: str
    client: TufClient
    ledger: Ledger
    keyring: Keyring
    news: News
    built: datetime

    def __post_init__(self) -> None:
        self.trusted: Trusted | None = None
        self.store = StoreState()
        self.refused: Board[str] = Board("")
        self.desired: Board[Mapping[str, SlotRecord]] = Board(self.ledger.all("slot", SlotRecord))
        self.poll_now = asyncio.Event()
        self.moving = threading.Lock()  # intent is moved by one thread at a time
        self._asked = -ASK_AGAIN_S
        self._polling = asyncio.Lock()

    def now(self) -> datetime:
        """The time as far as it is known: never earlier than the newest signed time seen."""
        floor = self.ledger.get("trust", "floor", Floor) or Floor()
        return high_water(datetime.now(UTC), floor.time, self.built)

    def load(self) -> None:
        """Believe what the last refresh left, without a network."""
        error = ""
        try:
            self.trusted = self._kept(self.client.load())
        except (TransferError, TrustError) as why:
            error = str(why)
        self._show_store(None, error)

    async def poll(self) -> None:
        """Ask the store what is listed, granted and deployed today.

        Raises:
            EdgeError: why it could not be had or believed; what was known stands.
        """
        async with self._polling:
            try:
                trusted = await asyncio.to_thread(self.client.refresh, self.now())
                self.trusted = await asyncio.to_thread(self._kept, trusted)
                await asyncio.to_thread(self._take_grant, self.trusted)
                await asyncio.to_thread(self._take_deployment, self.trusted)
            except EdgeError as error:
                self._show_store(self.store.last_sync, str(error))
                raise
            self._show_store(datetime.now(UTC))

    def _show_store(self, last_sync: datetime | None, error: str = "") -> None:
        ends = self.trusted.expiries if self.trusted is not None else {}
        self.store = StoreState(
            last_sync=last_sync, expires=ends.get("timestamp"), error=error, expiring=expiring(ends, self.now())
        )

    def check(self, chain: Chain) -> Floor:
        """The floor of versions that this chain makes.

        Raises:
            TrustError: the repository is older than what was seen here.
        """
        old = self.ledger.get("trust", "floor", Floor) or Floor()
        found = seen(chain.root, chain.timestamp, chain.snapshot, chain.targets)
        return check_floor(old, found, issued_at(chain.timestamp))

    def _kept(self, trusted: Trusted) -> Trusted:
        """The metadata, once its floor is in the ledger.

        That comes after the set is current: a floor above the set that lies here would be a device that believes
        nothing until its next contact.
        """
        new = self.check(trusted.chain)
        if new != self.ledger.get("trust", "floor", Floor):
            self.ledger.put_all([("trust", "floor", new)], precious=True)
        return trusted

    async def receive(self, message: Message) -> None:
        """A deployment from the broker; returns when what it changed is on the disk."""
        await asyncio.to_thread(self._take_pair, message.payload)

    # --- deployments -------------------------------------------------------------------------------------------

    def _take_grant(self, trusted: Trusted) -> None:
        try:
            raw = self.client.store.read(f"grants/{self.group}/{self.device}.json", GRANT_BYTES)
        except Missing:
            return  # an old grant stands; opening says what is missing
        self.keyring.take(raw, trusted.targets)

    def _take_deployment(self, trusted: Trusted) -> None:
        path = f"deployments/{self.group}.json"
        if trusted.find(path) is not None:
            self._deploy(trusted.read(path, PAIR_BYTES), trusted)

    def _take_pair(self, raw: bytes) -> None:
        """A deployment by message; where it names a release or a key that is not known yet, the store is asked."""
        trusted = self.trusted
        if trusted is None:  # the store has the same pair, and brings the keys
            return
        try:
            goals = self._deploy(raw, trusted)
        except (TrustError, InputError) as error:
            self.refuse("deployment", str(error))
            self._ask_now_and_then()
            return
        if not all(is_listed(trusted, goal) for goal in goals):
            self.news.post(self.poll_now.set)

    def _ask_now_and_then(self) -> None:
        """The store may know a new key; but whoever can publish garbage cannot make us ask all the time."""
        now = time.monotonic()
        if now - self._asked > ASK_AGAIN_S:
            self._asked = now
            self.news.post(self.poll_now.set)

    def _deploy(self, raw: bytes, trusted: Trusted) -> Iterable[Ref]:
        """Move the intent as the pair says; the releases that it means for this device."""
        with self.moving:
            return self._deploy_alone(raw, trusted)

    def _deploy_alone(self, raw: bytes, trusted: Trusted) -> Iterable[Ref]:
        floor = self.ledger.get("deployment", self.group, Taken) or Taken()
        believed = believe_deployment(raw, trusted.targets, self.group, floor, self.now())
        if believed.same:
            if believed.taken.signers != floor.signers:  # keys were replaced; the floor follows who signs today
                self.ledger.put_all([("deployment", self.group, believed.taken)], precious=True)
            return ()
        old = self.ledger.all("slot", SlotRecord)
        standing = {slot: record.deployed for slot, record in old.items()}
        confirmed = {place.ref for record in old.values() for place in record.good}
        goals = wanted(believed.rollout, believed.wave, self.device, standing, confirmed)
        new = {
            slot: deploy(old.get(slot, SlotRecord(slot=slot)), goals.get(slot), believed.rollout.soak_s)
            for slot in {*old, *goals}
        }
        facts: list[tuple[str, str, object]] = [("slot", slot, record) for slot, record in new.items()]
        self.ledger.put_all([*facts, ("deployment", self.group, believed.taken)], precious=True)
        self.news.tell(
            "deployment",
            reason=f"rollout {believed.rollout.counter}, wave {believed.wave.counter} ({believed.wave.action})",
        )
        self.publish(new)
        return [goal for goal in goals.values() if goal is not None]

    # --- shared ------------------------------------------------------------------------------------------------

    def require_trusted(self) -> Trusted:
        """The keys and listings that were verified last; raises TransferError before the first contact."""
        if self.trusted is None:
            raise TransferError("no keys are known yet: the first contact to the store brings them")
        return self.trusted

    def refuse(self, what: str, reason: str) -> None:
        """Write down what was not believed."""
        self.news.tell("refused", reason=f"{what}: {reason}")
        self.news.post(lambda: self.refused.post(f"{what}: {reason}"))

    def publish(self, records: Mapping[str, SlotRecord]) -> None:
        """Show new intent to those who act on it."""
        self.news.post(lambda: self.desired.post(records))


def is_listed(trusted: Trusted, release: Ref) -> bool:
    """Whether a release is known to be listed; not when that cannot be told now."""
    try:
        return trusted.find(target_path(release.name)) is not None
    except EdgeError:
        return False
