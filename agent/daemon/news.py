"""What the device has to tell: events and replies, durable before they count, and jobs for those who wait.

Events are numbered over all boots of the device, so that whoever collects them sees what is missing. Called from
any thread; one thread of ours writes, in order, so that nobody waits for the disk. What must run on the event loop
is posted there.
"""

import asyncio
import logging
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime

from agent.adapters.broker import device_topic
from agent.adapters.ledger import Ledger
from agent.adapters.outbox import Item, Outbox, Rank
from agent.core.documents import Document, to_json
from agent.core.errors import TransferError
from agent.core.intent import Command, Reply

EVENTS_KEPT = 300  # for `edge-agent why`; all of them go to the broker
EVENTS_SHOWN = 30  # in the state, which is made anew each second
REPLY_EXPIRY_S = 3600.0

log = logging.getLogger("edge-agent")


class Event(Document):
    """What changed, when, and why."""

    number: int
    at: datetime
    kind: str
    slot: str = ""
    release: str = ""
    candidate: str = ""
    step: str = ""
    outcome: str = ""
    reason: str = ""


class News:
    """Tells the fleet and the journal."""

    def __init__(self, device: str, ledger: Ledger, outbox: Outbox) -> None:
        self.device = device
        self.jobs: asyncio.Queue[Command] = asyncio.Queue()
        self._ledger = ledger
        self._outbox = outbox
        self._loop = asyncio.get_running_loop()
        self._numbering = threading.Lock()
        self._number = ledger.get("count", "event", int) or 0
        self._writer = ThreadPoolExecutor(1, "news")

    def tell(self, kind: str, **said: str) -> None:
        """One line in the journal, one event to the fleet."""
        with self._numbering:
            self._number += 1
            event = Event(number=self._number, at=datetime.now(UTC), kind=kind, **said)
            self._writer.submit(self._keep, event)
        log.info("%s", " ".join([kind, *(f"{key}={value}" for key, value in said.items() if value)]))

    def reply(self, reply: Reply) -> None:
        """The answer to a command."""
        topic = device_topic(self.device, "cmd", reply.id, "res")
        self._put(Item(topic=topic, payload=to_json(reply), rank=Rank.REPLY, expiry_s=REPLY_EXPIRY_S))

    def figures(self, topic: str, payload: bytes, expiry_s: float) -> None:
        """Telemetry, kept while the broker is away."""
        at = device_topic(self.device, topic)
        self._put(Item(topic=at, payload=payload, rank=Rank.TELEMETRY, expiry_s=expiry_s))

    def ask(self, command: Command) -> None:
        """Hand a job to whoever does it."""
        self.post(lambda: self.jobs.put_nowait(command))

    def post(self, call: Callable[[], object]) -> None:
        """Run a call on the event loop."""
        self._loop.call_soon_threadsafe(call)

    def recent(self) -> tuple[Event, ...]:
        """The newest events, oldest first."""
        return self._ledger.newest("event", Event, EVENTS_SHOWN)

    def close(self) -> None:
        """Write what is left."""
        self._writer.shutdown()

    def _put(self, item: Item) -> None:
        self._writer.submit(self._say, lambda: self._outbox.put([item], datetime.now(UTC).timestamp()))

    def _keep(self, event: Event) -> None:
        name, outworn = f"{event.number:012d}", f"{event.number - EVENTS_KEPT:012d}"
        facts = [("count", "event", event.number), ("event", name, event), ("event", outworn, None)]
        self._say(lambda: self._ledger.put_all(facts))
        item = Item(topic=device_topic(self.device, "evt", event.kind), payload=to_json(event), rank=Rank.EVENT)
        self._say(lambda: self._outbox.put([item], event.at.timestamp()))

    def _say(self, write: Callable[[], None]) -> None:
        """Write; a disk that refuses loses news, never more."""
        try:
            write()
        except TransferError as error:
            log.error("news lost: %s", error)  # noqa: TRY400  the message is the news, not the trace
