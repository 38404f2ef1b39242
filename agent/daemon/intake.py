"""How deployments come in: from TUF by polling, from the broker by message. Believed here, or refused here.

1. A deployment counts however it came; the pair's counters decide, not the way.
2. What a pair changes (intent and counters) is one transaction, synced before the message is acknowledged.
3. What is refused is written down with its reason; the intent that stands, stands.
4. What was withdrawn is rejected for ever, before any intent of the same poll counts.
5. A store that lists an older pair than the broker brought, for longer than a poll takes, is named.
"""

import asyncio
import threading
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from agent.adapters.broker import Message
from agent.adapters.ledger import Ledger
from agent.adapters.store import Missing
from agent.adapters.tuf_client import Chain, Trusted, TufClient
from agent.core.candidate import Failure
from agent.core.errors import EdgeError, InputError, Kind, TransferError, TrustError
from agent.core.intent import Policy, wanted
from agent.core.records import Rejection
from agent.core.release import Ref
from agent.core.slot import SlotRecord, deploy, without
from agent.daemon.board import Board
from agent.daemon.keyring import Keyring
from agent.daemon.news import News
from agent.daemon.state import StoreState
from agent.trust import policy
from agent.trust.deployment import PAIR_BYTES, Replayed, Taken, believe_deployment
from agent.trust.expiry import expiring
from agent.trust.floor import Floor, check_floor, high_water, issued_at, seen
from agent.trust.grant import GRANT_BYTES
from agent.trust.listing import target_path

ASK_AGAIN_S = 60.0


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
    poll_s: float

    def __post_init__(self) -> None:
        self.trusted: Trusted | None = None
        self.policy: Policy | None = None  # that `trusted` lists
        self.store = self.ledger.get("trust", "store", StoreState) or StoreState()
        self.refused = ""  # what was not believed last, and why
        self.desired: Board[Mapping[str, SlotRecord]] = Board(self.ledger.all("slot", SlotRecord))
        self.poll_now = asyncio.Event()
        self.moving = threading.Lock()  # intent is moved by one thread at a time
        self._asked = -ASK_AGAIN_S
        self._polling = asyncio.Lock()

    def now(self) -> datetime:
        """The time as far as it is known: never earlier than the newest signed time seen."""
        return high_water(datetime.now(UTC), self._floor().time, self.built)

    def load(self) -> None:
        """Believe what the last refresh left, without a network."""
        error = ""
        try:
            self._believe(self.client.load())
        except (TransferError, TrustError) as why:
            error = str(why)
        self._show_store(self.store.last_sync, error)

    async def poll(self) -> None:
        """Ask the store what is listed, granted and deployed today.

        Raises:
            EdgeError: why it could not be had or believed; what was known stands.
        """
        async with self._polling:
            try:
                trusted = await asyncio.to_thread(self.client.refresh, self.now())
                for take in (self._believe, self._take_withdrawn, self._take_grant, self._take_deployment):
                    await asyncio.to_thread(take, trusted)
            except EdgeError as error:
                self._show_store(self.store.last_sync, str(error))
                raise
            self._show_store(datetime.now(UTC))
            await asyncio.to_thread(self.ledger.put, "trust", "store", self.store)

    def _believe(self, trusted: Trusted) -> None:
        """From now on this listing counts, with its policy; no listing does while that cannot be had."""
        listed = policy.POLICY_PATH in trusted.targets.targets
        try:
            rules = policy.read_policy(trusted.read(policy.POLICY_PATH, policy.POLICY_BYTES)) if listed else None
        except EdgeError as error:
            self.trusted = None
            raise TransferError(f"{error}; nobody is believed before the policy is here") from error
        floor = self.check(trusted.chain)
        if floor != self._floor():
            # After the set is current: a floor above the set that lies here would be a device that believes nothing
            # until its next contact.
            self.ledger.put_all([("trust", "floor", floor)], precious=True)
        self.policy, self.trusted = rules, trusted

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
        found = seen(chain.root, chain.timestamp, chain.snapshot, chain.targets)
        return check_floor(self._floor(), found, issued_at(chain.timestamp))

    def _floor(self) -> Floor:
        return self.ledger.get("trust", "floor", Floor) or Floor()

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
            try:
                self._deploy(trusted.read(path, PAIR_BYTES), trusted)
            except Replayed as error:
                taken_at = self._taken().at
                if taken_at is None or self.now() > taken_at + timedelta(seconds=self.poll_s):
                    raise TrustError(f"the store still lists what is older than came by message: {error}") from error

    def _taken(self) -> Taken:
        return self.ledger.get("deployment", self.group, Taken) or Taken()

    def _take_withdrawn(self, trusted: Trusted) -> None:
        """Reject for ever what was withdrawn, and leave no way back to it."""
        if trusted.find(policy.WITHDRAWN_PATH) is None:
            return
        raw = trusted.read(policy.WITHDRAWN_PATH, policy.WITHDRAWN_BYTES)
        listed = policy.believe_withdrawn(raw, trusted.targets)
        with self.moving:
            known = self.withdrawn()
            new = [one for one in listed.releases if one.release not in known]
            gone = {*known, *(one.release for one in new)}
            records = self.ledger.all("slot", SlotRecord)
            moved = {slot: after for slot, was in records.items() if (after := without(was, gone)) != was}
            facts: list[tuple[str, str, object]] = [("slot", slot, record) for slot, record in moved.items()]
            for one in new:
                failure = Failure(kind=Kind.WITHDRAWN, reason=f"withdrawn {one.at:%Y-%m-%d}: {one.reason}")
                rejection = Rejection(ref=one.release, failure=failure, at=datetime.now(UTC))
                facts.append(("rejection", one.release.digest, rejection))
                self.news.tell("withdrawn", release=one.release.name, reason=failure.reason)
            if facts:
                self.ledger.put_all(facts, precious=True)
                self.publish({**records, **moved})

    def take(self, message: Message) -> None:
        """A deployment from the broker; returns when what it changed is on the disk.

        Where it names a release or a key that is not known yet, the store is asked.
        """
        trusted = self.trusted
        if trusted is None:  # the store has the same pair, and brings the keys
            return
        try:
            goals = self._deploy(message.payload, trusted)
        except (TrustError, InputError) as error:
            self.refuse("deployment", str(error))
            self._ask_now_and_then()
            return
        with suppress(EdgeError):  # what cannot be told now counts as not listed
            if all(trusted.find(target_path(goal.name)) is not None for goal in goals):
                return
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
            believed = believe_deployment(raw, trusted.targets, self.group, self._taken(), self.now(), self.policy)
            taken = ("deployment", self.group, believed.taken)
            if believed.same:
                if believed.taken.signers != self._taken().signers:  # keys were replaced; the floor follows today's
                    self.ledger.put_all([taken], precious=True)
                return ()
            old = self.ledger.all("slot", SlotRecord)
            standing = {slot: record.deployed for slot, record in old.items()}
            confirmed = {place.ref for record in old.values() for place in record.good}
            goals = wanted(believed.rollout, believed.wave, self.device, standing, confirmed)
            new = {
                slot: deploy(old.get(slot, SlotRecord(slot=slot)), goals.get(slot), believed.rollout.soak_s)
                for slot in {*old, *goals}
            }
            self.check_withdrawn(old, new)
            facts: list[tuple[str, str, object]] = [("slot", slot, record) for slot, record in new.items()]
            self.ledger.put_all([*facts, taken], precious=True)
            said = f"rollout {believed.rollout.counter}, wave {believed.wave.counter} ({believed.wave.action})"
            self.news.tell("deployment", reason=said)
            self.publish(new)
            return [goal for goal in goals.values() if goal is not None]

    # --- shared ------------------------------------------------------------------------------------------------

    def withdrawn(self) -> Mapping[Ref, str]:
        """Every release that was ever withdrawn, and why."""
        known = self.ledger.all("rejection", Rejection).values()
        return {one.ref: one.failure.reason for one in known if one.failure.kind is Kind.WITHDRAWN}

    def check_withdrawn(self, old: Mapping[str, SlotRecord], new: Mapping[str, SlotRecord]) -> None:
        """Raises InputError where a slot would move to a withdrawn release."""
        gone = self.withdrawn()
        for slot, record in new.items():
            was = old.get(slot, SlotRecord(slot=slot))
            for ref in {record.deployed, record.override} - {was.deployed, was.override}:
                if ref is not None and ref in gone:
                    raise InputError(f"{slot}: {ref} cannot be chosen ({gone[ref]}); name another release")

    def refuse(self, what: str, reason: str) -> None:
        """Write down what was not believed."""
        said = self.refused = f"{what}: {reason}"
        self.news.tell("refused", reason=said)

    def publish(self, records: Mapping[str, SlotRecord]) -> None:
        """Show new intent to those who act on it."""
        self.news.post(lambda: self.desired.post(records))
