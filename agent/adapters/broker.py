"""The link to the MQTT broker: keeps a connection, loses nothing and does nothing twice.

1. A message is acknowledged after `receive` has returned, that is after it was recorded durably; a crash before
   brings it again.
2. What the broker refuses is dropped and counted, never tried for ever.
3. Commands: retained ones are not asked for, and one that was published retained shows it (`Message.retain`).
4. Leaving says `offline` itself (a clean DISCONNECT makes the broker forget the will). Losing leaves that to the will.
5. Reconnecting waits a random time up to a doubling bound: after a broker's restart a fleet must not come at once.
6. We hear our own `state`, and so of a twin: a client of our name that puts us out. Two that fight meet ever more
   rarely, down to twice an hour.

The broker is not trusted; `receive` verifies.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass

from paho.mqtt.subscribeoptions import SubscribeOptions

from agent.adapters import backoff
from agent.adapters.connection import FAREWELL_S, STATE_EXPIRY_S, WINDOW, BrokerSettings, Connection, Message, connected
from agent.adapters.outbox import Outbox, Row
from agent.core.errors import TransferError

__all__ = ["BrokerSettings", "Link", "Message", "device_topic", "group_topic"]

log = logging.getLogger(__name__)

ROOT = "edge/v1"  # v1 is the major version of the payloads
DRAIN_PER_S = 200.0  # rows of the outbox: a fleet that comes back must not starve its own commands
FIRST_WAIT_S, LONGEST_WAIT_S = 0.5, 60.0
TWIN_WAIT_S = 1800.0  # somebody must find the copy; deployments come by the store meanwhile
IDLE_S = 60.0
LOST = (OSError, TransferError)


def device_topic(device: str, *steps: str) -> str:
    """A topic of one device."""
    return "/".join((ROOT, device, *steps))


def group_topic(group: str, *steps: str) -> str:
    """A topic of one group."""
    return "/".join((ROOT, "groups", group, *steps))


@dataclass(eq=False)
class Link:
    """The connection, as long as `run` runs; in one event loop."""

    settings: BrokerSettings
    device: str  # our name: client id and topic level
    groups: Sequence[str]  # whose deployments and commands we hear
    outbox: Outbox  # what is sent once it can be
    birth: Callable[[], bytes]  # what `state` says while we are here; asked at each connection
    will: bytes  # what `state` says when we are gone; with the same boot and birth counter
    # Records a message durably, then returns. A TransferError from it drops the link, and the message comes again.
    receive: Callable[[Message], Awaitable[None]]

    def __post_init__(self) -> None:
        self.last_error = "not connected yet"
        self.connections = 0
        self.refused = 0
        self.met_twin = False  # set by `receive`, which knows our boot from another's
        self._open: Connection | None = None

    @property
    def connected(self) -> bool:
        """Whether the broker has heard our birth and we hear it."""
        return self._open is not None

    async def run(self) -> None:
        """Keeps the link until it is cancelled; then says `offline` and leaves."""
        lost = 0
        while True:
            came, self.met_twin = self.connections, False
            try:
                await self._connect_once()
            except LOST as error:
                self.last_error = (
                    f"{self.settings.host}:{self.settings.port}: {str(error) or type(error).__name__}: "
                    "check the network and `broker:` in agent.yaml; it is tried again"
                )
                log.info("broker %s", self.last_error)
            lost = 1 if self.connections > came and not self.met_twin else lost + 1
            longest = TWIN_WAIT_S if self.met_twin else LONGEST_WAIT_S
            await asyncio.sleep(backoff.wait_s(lost, FIRST_WAIT_S, longest))

    async def publish(self, topic: str, payload: bytes, qos: int, *, retain: bool, expiry_s: float | None) -> bool:
        """Says something now or never; True when the broker has it (QoS 0: when it is on its way)."""
        if self._open is None:
            return False
        try:
            return await self._say(self._open, topic, payload, qos, retain=retain, expiry_s=expiry_s)
        except LOST:
            return False

    async def _say(
        self, connection: Connection, topic: str, payload: bytes, qos: int = 1, *, retain: bool, expiry_s: float | None
    ) -> bool:
        refusal = await connection.publish(topic, payload, qos, retain=retain, expiry_s=expiry_s)
        if refusal is not None:
            self.refused += 1
            log.error("%s: the broker does not take it (%s): correct its rules; dropped", topic, refusal)
        return refusal is None

    async def _connect_once(self) -> None:
        topic = device_topic(self.device, "state")
        async with connected(self.settings, self.device, topic, self.will) as connection:
            await connection.subscribe(self._subscriptions())
            await self._say(connection, topic, self.birth(), retain=True, expiry_s=STATE_EXPIRY_S)
            self._open, self.last_error = connection, ""
            self.connections += 1
            try:
                await self._live(connection)
            except asyncio.CancelledError:
                await self._leave(connection, topic)
                raise
            finally:
                self._open = None

    async def _live(self, connection: Connection) -> None:
        """Receives and sends until one of them fails. A TaskGroup may lose a cancellation meanwhile (before 3.13)."""
        tasks = {
            asyncio.create_task(self._receive_all(connection), name="receive"),
            asyncio.create_task(self._drain(connection), name="drain"),
        }
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
            ends = await asyncio.gather(*tasks, return_exceptions=True)
        errors = [end for end in ends if isinstance(end, Exception)]
        raise next((error for error in errors if not isinstance(error, LOST)), errors[0])  # a bug of ours comes first

    def _subscriptions(self) -> list[tuple[str, SubscribeOptions]]:
        commands = SubscribeOptions(qos=1, retainHandling=SubscribeOptions.RETAIN_DO_NOT_SEND, retainAsPublished=True)
        documents = SubscribeOptions(
            qos=1, retainHandling=SubscribeOptions.RETAIN_SEND_ON_SUBSCRIBE, retainAsPublished=True
        )
        wanted = [(device_topic(self.device, "cmd/+/req"), commands)]
        wanted += [(device_topic(self.device, step), documents) for step in ("pin", "state")]
        for group in self.groups:
            wanted.append((group_topic(group, "cmd/+/req"), commands))
            wanted.append((group_topic(group, "deployment"), documents))
        return wanted

    async def _leave(self, connection: Connection, topic: str) -> None:
        self._open = None
        with suppress(*LOST):
            async with asyncio.timeout(FAREWELL_S):
                await self._say(connection, topic, self.will, retain=True, expiry_s=STATE_EXPIRY_S)
            await connection.leave()

    async def _receive_all(self, connection: Connection) -> None:
        async for came, message in connection.messages():
            if message.payload:  # a retained document that somebody cleared says nothing
                await self.receive(message)
            connection.acknowledge(came)

    async def _drain(self, connection: Connection) -> None:
        wake, loop = asyncio.Event(), asyncio.get_running_loop()
        self.outbox.watch(lambda: loop.call_soon_threadsafe(wake.set))
        try:
            while True:
                wake.clear()
                rows = await asyncio.to_thread(self.outbox.head, WINDOW, time.time())
                if rows:
                    await self._send(connection, rows)
                    await asyncio.sleep(len(rows) / DRAIN_PER_S)
                else:
                    with suppress(TimeoutError):
                        async with asyncio.timeout(IDLE_S):
                            await wake.wait()
        finally:
            self.outbox.watch(lambda: None)

    async def _send(self, connection: Connection, rows: Sequence[Row]) -> None:
        """Sends rows together; those that the broker answered leave the outbox, up to the first it did not."""
        said = (self._say(connection, row.topic, row.payload, retain=False, expiry_s=row.expiry_s) for row in rows)
        results = await asyncio.gather(*said, return_exceptions=True)
        failed = next((number for number, result in enumerate(results) if isinstance(result, BaseException)), len(rows))
        await asyncio.to_thread(self.outbox.done, [row.id for row in rows[:failed]])
        for result in results[failed:]:
            if isinstance(result, BaseException):
                raise result
