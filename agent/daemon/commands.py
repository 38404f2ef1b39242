"""How commands come in: believed or refused here, obeyed once, answered as often as they come.

1. What a believed command changes (its counter, the intent, its answer) is one transaction, synced before the message
   is acknowledged. So a crash leaves all of it or nothing.
2. A believed command that comes again, by its id, gets its answer again and has no second effect. A refused one is
   not remembered: whoever cannot sign cannot use up an id.
3. A command that moved intent is done when every release that it means serves; jobs.py watches for that.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime

from msgspec import field
from msgspec.structs import replace

from agent.adapters.broker import Message
from agent.adapters.ledger import Ledger
from agent.adapters.tuf_client import Trusted
from agent.core.documents import Document
from agent.core.errors import EdgeError, InputError
from agent.core.intent import Command, Reply, Verb
from agent.core.records import Rejection, ReleaseRecord
from agent.core.release import Ref
from agent.core.slot import SlotRecord, pin, roll_back, slots_of
from agent.daemon.intake import Intake
from agent.daemon.news import News
from agent.trust.command import Refusal, believe_command, floor_key
from agent.trust.listing import target_path

TOPIC = re.compile(r"edge/v1/(?:groups/)?[^/]+/cmd/(?P<id>[A-Za-z0-9-]{8,64})/req")
KEPT = 1_000  # commands expire within minutes; more than this many in that time is an attack
OPEN = frozenset({"accepted", "progress"})

Facts = list[tuple[str, str, object]]


class Known(Document):
    """A command that was believed, and what was answered last."""

    command: Command
    reply: Reply
    at: datetime
    goals: Mapping[str, Ref] = field(default_factory=dict)  # slot: what must serve before it is done


@dataclass(eq=False)
class Commands:
    """Takes commands."""

    intake: Intake
    ledger: Ledger
    news: News

    def resume(self) -> None:
        """Take up the jobs that an earlier life of the agent accepted and did not finish."""
        for known in self.ledger.all("command", Known).values():
            if known.reply.status in OPEN and not known.goals:
                self.news.ask(known.command)

    def open(self) -> list[Known]:
        """Those that wait for a release to serve."""
        return [one for one in self.ledger.all("command", Known).values() if one.reply.status in OPEN and one.goals]

    def take(self, message: Message) -> None:
        """One message; returns when what it changed is on the disk."""
        matched = TOPIC.fullmatch(message.topic)
        if matched is None:
            self.intake.refuse("command", f"topic {message.topic!r} names no command id")
            return
        with self.intake.moving:
            known = self.ledger.get("command", matched["id"], Known)
            reply = known.reply if known is not None else self._judge(message, matched["id"])
        self.news.reply(reply)
        if reply.status in {"rejected", "expired"}:
            self.intake.refuse("command", reply.reason)

    def finish(self, reply: Reply) -> None:
        """The last word on a command that was believed."""
        known = self.ledger.get("command", reply.id, Known)
        if known is not None:
            self.ledger.put("command", reply.id, replace(known, reply=reply))
        self.news.reply(reply)

    def _judge(self, message: Message, name: str) -> Reply:
        if message.retain:
            return refusal(name, "the command was published as retained; send it without retain")
        trusted = self.intake.trusted
        if trusted is None:
            return refusal(name, "no keys or no policy is known yet: the next contact to the store brings them")
        floors = self.ledger.all("counter", int)
        device, group, policy = self.intake.device, self.intake.group, self.intake.policy
        command = believe_command(message.payload, trusted.targets, device, group, floors, self.intake.now(), policy)
        if isinstance(command, Refusal):
            return Reply(id=name, status=command.status, reason=command.reason)
        if command.id != name:
            return refusal(name, f"the topic names command {name}, its envelope {command.id}; send it anew")
        return self._obey(command, trusted)

    def _obey(self, command: Command, trusted: Trusted) -> Reply:
        """Move the intent as the command says; what takes longer is done by those who wait for it."""
        records = self.ledger.all("slot", SlotRecord)
        reply, moved = Reply(id=command.id, status="accepted"), dict[str, SlotRecord]()
        try:
            moved = self._moved(command, records, trusted)
            self.intake.check_withdrawn(records, moved)
        except EdgeError as error:
            reply = replace(reply, status="failed", reason=str(error))
        goals = {slot: record.desired for slot, record in moved.items() if record.desired is not None}
        known = Known(command=command, reply=reply, at=datetime.now(UTC), goals=goals)
        counter = ("counter", floor_key(command.scope, trusted.targets), command.counter)
        slots: Facts = [("slot", slot, record) for slot, record in moved.items()]
        self.ledger.put_all([counter, ("command", command.id, known), *slots, *self._outworn()], precious=True)
        if moved:
            self.intake.publish({**records, **moved})
        elif reply.status in OPEN:
            self.news.ask(command)
        return reply

    def _moved(self, command: Command, records: Mapping[str, SlotRecord], trusted: Trusted) -> dict[str, SlotRecord]:
        """The slots that a command moves, as they are after it; none for a job.

        Raises:
            InputError: it names none of this device, or a release for several.
        """
        if command.verb not in {Verb.PIN, Verb.ROLLBACK}:
            return {}
        slots = slots_of(command.slot, records)
        if command.release is not None and len(slots) != 1:
            raise InputError("a pin names one slot; say which with --slot")
        if not slots:
            raise InputError("this device has no slot yet; deploy to its group first")
        if command.verb is Verb.PIN:
            release = self._named(command.release, trusted) if command.release else None
            return {slot: pin(records[slot], release, command.id) for slot in slots}
        rejected = {one.ref for one in self.ledger.all("rejection", Rejection).values()}
        return {slot: roll_back(records[slot], command.id, rejected) for slot in slots}

    def _named(self, name: str, trusted: Trusted) -> Ref:
        """The release with a name: verified here, or listed today."""
        for record in self.ledger.all("release", ReleaseRecord).values():
            if record.ref.name == name and record.verified:
                return record.ref
        info = trusted.find(target_path(name))
        if info is None:
            raise InputError(f"release {name!r} is not listed: publish it first, or check its name")
        return Ref(name=name, digest=info.sha256)

    def _outworn(self) -> Facts:
        """The oldest commands, beyond those that are kept."""
        by_age = sorted(self.ledger.all("command", Known).items(), key=lambda one: one[1].at)
        return [("command", name, None) for name, _ in by_age[: max(0, len(by_age) - KEPT)]]


def refusal(name: str, reason: str) -> Reply:
    """The answer to a command that is not believed."""
    return Reply(id=name, status="rejected", reason=reason)
