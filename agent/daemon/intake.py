"""How intent comes in: from TUF by polling, from the broker by message. It is believed here, or refused here.

1. A deployment counts however it came; the pair's counters decide, not the way.
2. What a message changes (intent, counters, the reply) is one transaction, synced before the message is acknowledged.
3. A command that came before, by its id, gets the same answer again and has no second effect.
4. What is refused is written down with its reason; the intent that stands, stands.
"""

import asyncio
import re
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime

from msgspec.structs import replace

from agent.adapters.broker import Message
from agent.adapters.ledger import Ledger
from agent.adapters.store import Missing
from agent.adapters.tuf_client import Chain, Trusted, TufClient
from agent.core.documents import Document
from agent.core.errors import EdgeError, InputError, TransferError, TrustError
from agent.core.intent import Command, Reply, Verb, wanted
from agent.core.records import ReleaseRecord
from agent.core.release import Ref
from agent.core.slot import SlotRecord, deploy, pin, roll_back
from agent.daemon.board import Board
from agent.daemon.keyring import Keyring
from agent.daemon.news import News
from agent.trust.command import Refusal, believe_command, floor_key
from agent.trust.deployment import PAIR_BYTES, Taken, believe_deployment
from agent.trust.floor import Floor, check_floor, high_water, issued_at, seen
from agent.trust.grant import GRANT_BYTES
from agent.trust.listing import target_path

COMMAND_TOPIC = re.compile(r"^edge/v1/(?:groups/)?[^/]+/cmd/(?P<id>[A-Za-z0-9-]{8,64})/req$")
REPLIES_KEPT = 1_000  # commands expire within minutes; more than this many in that time is an attack


class Known(Document):
    """A command that was taken, and what was answered last."""

    reply: Reply
    slot: str | None = None
    release: Ref | None = None  # what must serve before the command is done
    at: datetime | None = None


class StoreState(Document):
    """How the last contact to the store went."""

    last_sync: datetime | None = None
    expires: datetime | None = None  # of the timestamp: until then withheld intent may stay unseen
    error: str = ""


class Intake:
    """Believes intent and moves the desired board."""

    def __init__(
        self,
        device: str,
        group: str,
        client: TufClient,
        ledger: Ledger,
        keyring: Keyring,
        news: News,
        built: datetime,
    ) -> None:
        self.device = device
        self.group = group
        self.trusted: Trusted | None = None
        self.store = StoreState()
        self.refused: Board[str] = Board("")
        self.desired: Board[Mapping[str, SlotRecord]] = Board(ledger.all("slot", SlotRecord))
        self.poll_now = asyncio.Event()
        self._client = client
        self._ledger = ledger
        self._keyring = keyring
        self._news = news
        self._built = built
        self._polling = asyncio.Lock()

    def now(self) -> datetime:
        """The time as far as it is known: never earlier than the newest signed time seen."""
        floor = self._ledger.get("trust", "floor", Floor) or Floor()
        return high_water(datetime.now(UTC), floor.time, self._built)

    def load(self) -> None:
        """Believe what the last refresh left, without a network."""
        try:
            self.trusted = self._client.load()
        except (TransferError, TrustError) as error:
            self.store = StoreState(error=str(error))

    async def poll(self) -> None:
        """Ask the store what is listed, granted and deployed today.

        Raises:
            EdgeError: why it could not be had or believed; what was known stands.
        """
        async with self._polling:
            try:
                self.trusted = await asyncio.to_thread(self._client.refresh, self.now())
                await asyncio.to_thread(self._take_grant, self.trusted)
                await asyncio.to_thread(self._take_deployment, self.trusted)
            except EdgeError as error:
                self.store = StoreState(last_sync=self.store.last_sync, expires=self.store.expires, error=str(error))
                raise
            self.store = StoreState(last_sync=datetime.now(UTC), expires=self.trusted.expires)

    def check(self, chain: Chain) -> None:
        """The floor of versions, kept in the ledger before the metadata counts.

        Raises:
            TrustError: the repository is older than what was seen here.
        """
        old = self._ledger.get("trust", "floor", Floor) or Floor()
        found = seen(chain.root, chain.timestamp, chain.snapshot, chain.targets)
        new = check_floor(old, found, issued_at(chain.timestamp))
        if new != old:
            self._ledger.put_all([("trust", "floor", new)], precious=True)

    async def receive(self, message: Message) -> None:
        """One message from the broker; returns when what it changed is on the disk."""
        if message.topic.endswith("/req"):
            await asyncio.to_thread(self._take_command, message)
        elif message.payload:
            await asyncio.to_thread(self._take_pair, message.payload)

    # --- deployments -------------------------------------------------------------------------------------------

    def _take_grant(self, trusted: Trusted) -> None:
        try:
            raw = self._client.store.read(f"grants/{self.group}/{self.device}.json", GRANT_BYTES)
        except Missing:
            return  # an old grant stands; opening says what is missing
        self._keyring.take(raw, trusted.targets)

    def _take_deployment(self, trusted: Trusted) -> None:
        path = f"deployments/{self.group}.json"
        if trusted.find(path) is not None:
            self._deploy(trusted.read(path, PAIR_BYTES), trusted)

    def _take_pair(self, raw: bytes) -> None:
        """A deployment by message; where it names what is not listed here yet, the store is asked at once."""
        try:
            trusted = self._require_trusted()
            if any(trusted.find(target_path(goal.name)) is None for goal in self._deploy(raw, trusted)):
                self._news.post(self.poll_now.set)
        except TrustError as error:
            self._refuse("deployment", str(error))
        except TransferError as error:
            self.store = StoreState(last_sync=self.store.last_sync, expires=self.store.expires, error=str(error))

    def _deploy(self, raw: bytes, trusted: Trusted) -> Iterable[Ref]:
        """Move the intent as the pair says; the releases that it means for this device."""
        floor = self._ledger.get("deployment", self.group, Taken) or Taken()
        believed = believe_deployment(raw, trusted.targets, self.group, floor, self.now())
        if believed.same:
            return ()
        goals = wanted(believed.rollout, believed.wave, self.device)
        old = self._ledger.all("slot", SlotRecord)
        new = {slot: old.get(slot, SlotRecord(slot=slot)) for slot in {*old, *believed.rollout.slots}}
        new = {
            slot: deploy(record, goals.get(slot, stays(record, slot, believed.rollout.slots)), believed.rollout.soak_s)
            for slot, record in new.items()
        }
        facts: list[tuple[str, str, object]] = [("slot", slot, record) for slot, record in new.items()]
        self._ledger.put_all([*facts, ("deployment", self.group, believed.taken)], precious=True)
        self._news.tell(
            "deployment",
            reason=f"rollout {believed.rollout.counter}, wave {believed.wave.counter} ({believed.wave.action})",
        )
        self._publish(new)
        return [goal for goal in goals.values() if goal is not None]

    # --- commands ----------------------------------------------------------------------------------------------

    def _take_command(self, message: Message) -> None:
        matched = COMMAND_TOPIC.match(message.topic)
        if matched is None:
            self._refuse("command", f"topic {message.topic!r} names no command id")
            return
        known = self._ledger.get("command", matched["id"], Known)
        if known is not None:
            self._news.reply(known.reply)
            return
        self.answer(self._judge(message, matched["id"]), remember=not message.retain)

    def _judge(self, message: Message, name: str) -> Known:
        if message.retain:
            return rejected(name, "the command was published as retained; send it without retain")
        try:
            trusted = self._require_trusted()
        except TransferError as error:
            return rejected(name, str(error))
        floors = self._ledger.all("counter", int)
        command = believe_command(message.payload, trusted.targets, self.device, {self.group}, floors, self.now())
        if isinstance(command, Refusal):
            return Known(reply=Reply(id=name, status=command.status, reason=command.reason))
        if command.id != name:
            return rejected(name, f"the topic names command {name}, its envelope {command.id}; send it anew")
        key = floor_key(command.scope, trusted.targets)
        self._ledger.put_all([("counter", key, command.counter)], precious=True)
        try:
            return self._obey(command, trusted)
        except EdgeError as error:
            return Known(reply=Reply(id=name, status="failed", reason=str(error)))

    def _obey(self, command: Command, trusted: Trusted) -> Known:
        """Move the intent as the command says; what takes longer is done by those who wait for it."""
        accepted = Reply(id=command.id, status="accepted")
        match command.verb:
            case Verb.PIN:
                release = self._named(command.release, trusted) if command.release else None
                return self._move(command, lambda record: pin(record, release, command.id))
            case Verb.ROLLBACK:
                return self._move(command, lambda record: roll_back(record, command.id))
            case _:
                self._news.ask(command)
                return Known(reply=accepted, slot=command.slot)

    def _move(self, command: Command, change: Callable[[SlotRecord], SlotRecord]) -> Known:
        records = self._ledger.all("slot", SlotRecord)
        slots = [command.slot] if command.slot else sorted(records)
        if command.release is not None and len(slots) != 1:
            raise InputError("a pin names one slot; say which with --slot")
        unknown = [slot for slot in slots if slot not in records]
        if unknown or not slots:
            raise InputError(f"no slot {unknown or command.slot}; this device has {sorted(records) or 'none yet'}")
        moved = {slot: change(records[slot]) for slot in slots}
        self._ledger.put_all([("slot", slot, record) for slot, record in moved.items()], precious=True)
        self._publish({**records, **moved})
        goal = moved[slots[0]].desired if len(slots) == 1 else None
        return Known(reply=Reply(id=command.id, status="accepted"), slot=slots[0] if goal else None, release=goal)

    def _named(self, name: str, trusted: Trusted) -> Ref:
        """The release with a name: confirmed here, or listed today."""
        for record in self._ledger.all("release", ReleaseRecord).values():
            if record.ref.name == name and record.verified:
                return record.ref
        info = trusted.find(target_path(name))
        if info is None:
            raise InputError(f"release {name!r} is not listed: publish it first, or check its name")
        return Ref(name=name, digest=info.sha256)

    def answer(self, known: Known, *, remember: bool = True) -> None:
        """Reply to a command, and remember the reply for a second delivery."""
        if remember:
            known_at = replace(known, at=known.at or datetime.now(UTC))
            by_age = sorted(self._ledger.all("command", Known).items(), key=lambda one: str(one[1].at))
            old = [("command", name, None) for name, _ in by_age[: max(0, len(by_age) - REPLIES_KEPT)]]
            self._ledger.put_all([("command", known.reply.id, known_at), *old])
        self._news.reply(known.reply)
        if known.reply.status in {"rejected", "expired"}:
            self._refuse("command", known.reply.reason)

    # --- shared ------------------------------------------------------------------------------------------------

    def _require_trusted(self) -> Trusted:
        if self.trusted is None:
            raise TransferError("no keys are known yet: the first contact to the store brings them")
        return self.trusted

    def _refuse(self, what: str, reason: str) -> None:
        self._news.tell("refused", reason=f"{what}: {reason}")
        self._news.post(lambda: self.refused.post(f"{what}: {reason}"))

    def _publish(self, records: Mapping[str, SlotRecord]) -> None:
        self._news.post(lambda: self.desired.post(records))


def stays(record: SlotRecord, slot: str, moves: Mapping[str, object]) -> Ref | None:
    """What a slot keeps that the rollout names but this device's wave does not reach; none that it does not name."""
    return record.deployed if slot in moves else None


def rejected(name: str, reason: str) -> Known:
    """A command that is not carried out."""
    return Known(reply=Reply(id=name, status="rejected", reason=reason))
