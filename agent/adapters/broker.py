"""The link to the MQTT 5 broker: aiomqtt, with the rules that make it lose nothing and do nothing twice.

1. A new Client for every connection: one that is used again sends old messages after newer ones.
2. `clean_start=False` with a session expiry: what was sent to us meanwhile waits for us, also over a broker's restart.
3. A message is acknowledged after `receive` has returned, that is after it was recorded durably; a crash before
   brings it again. At most RECEIVE_MAXIMUM unacknowledged ones reach us, so the queue is bounded without dropping.
4. The reason code of every SUBACK and PUBACK is looked at: aiomqtt's own calls return normally on a refusal. What
   the broker refuses is dropped and counted, never tried for ever.
5. Commands: retained ones are not asked for, and one that was published retained shows it (`Message.retain`).
6. TCP_NODELAY: without it a round trip costs 88 ms instead of 0.7.
7. A lost link leaves no socket behind: an old connection that revives would take the session away.
8. Leaving says `offline` itself (a clean DISCONNECT makes the broker forget the will). Losing leaves that to the will.
9. Reconnecting waits a random time up to a doubling bound: after a broker's restart a fleet must not come at once.

The broker is not trusted; `receive` verifies. Only this file uses private attributes of aiomqtt 2.5.1 and paho 2.2.0.
"""

import asyncio
import logging
import random
import socket
import ssl
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Annotated, Any

import aiomqtt
from msgspec import Meta
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode
from paho.mqtt.subscribeoptions import SubscribeOptions

from agent.adapters.outbox import Outbox, Row
from agent.core.documents import Document
from agent.core.errors import TransferError

log = logging.getLogger(__name__)

ROOT = "edge/v1"  # v1 is the major version of the payloads
WINDOW = 20  # publishes in flight, or the broker's Receive Maximum, which paho does not heed: as fast as 100
RECEIVE_MAXIMUM = 16
DRAIN_PER_S = 200.0  # rows of the outbox: a fleet that comes back must not starve its own commands
PACKET_BYTES = 256 * 1024  # models and frames never go this way
HEADROOM_BYTES = 1024  # topic and properties beside a payload
STATE_EXPIRY_S = 7 * 24 * 3600
WILL_DELAY_S = 5  # a reconnect within it is no news
FIRST_WAIT_S, LONGEST_WAIT_S = 0.5, 60.0
ANSWER_S = 10.0  # the broker's time for CONNACK, SUBACK, PUBACK
FAREWELL_S = 2.0
IDLE_S = 60.0
LOST = (aiomqtt.MqttError, OSError, TimeoutError, TransferError)


class BrokerSettings(Document):
    """Where the broker is and who we are there; `broker:` in agent.yaml."""

    host: str
    port: Annotated[int, Meta(ge=1, le=65535)] = 8883
    tls: bool = True
    ca: str | None = None  # PEM file; None: the system's authorities
    cert: str | None = None  # with key: mTLS
    key: str | None = None
    username: str | None = None
    password: str | None = None
    keepalive_s: Annotated[int, Meta(ge=2, le=3600)] = 30  # a dead link is noticed after 1.8 times this
    session_expiry_s: Annotated[int, Meta(ge=60)] = STATE_EXPIRY_S

    def __post_init__(self) -> None:
        """Settings that fit together."""
        if (self.cert is None) != (self.key is None):
            raise ValueError("`cert` and `key` go together: give both or neither")
        if not self.tls and (self.ca or self.cert):
            raise ValueError("`tls: false` with certificates: remove one of them")


@dataclass(frozen=True, slots=True)
class Message:
    """What came. Nothing in it is believed yet."""

    topic: str
    payload: bytes
    retain: bool
    expiry_s: int | None  # what the broker says is left


def device_topic(device: str, *steps: str) -> str:
    """A topic of one device."""
    return "/".join((ROOT, device, *steps))


def group_topic(group: str, *steps: str) -> str:
    """A topic of one group."""
    return "/".join((ROOT, "groups", group, *steps))


class Link:
    """The connection, as long as `run` runs; in one event loop."""

    def __init__(
        self,
        settings: BrokerSettings,
        device: str,
        groups: Sequence[str],
        outbox: Outbox,
        *,
        birth: Callable[[], bytes],
        will: bytes,
        receive: Callable[[Message], Awaitable[None]],
    ) -> None:
        """A link that is not connected yet.

        Args:
            settings: where.
            device: our name: client id and topic level.
            groups: whose deployments and commands we hear.
            outbox: what is sent once it can be.
            birth: what `state` says while we are here; asked at each connection.
            will: what `state` says when we are gone; with the same boot and birth counter.
            receive: records a message durably, then returns. A TransferError from it drops the link, and the
                message comes again.
        """
        self.settings = settings
        self.device = device
        self.groups = tuple(groups)
        self.outbox = outbox
        self.birth = birth
        self.will = will
        self.receive = receive
        self.last_error = "not connected yet"
        self.connections = 0
        self.refused = 0
        self._open: Connection | None = None

    @property
    def connected(self) -> bool:
        """Whether the broker has heard our birth and we hear it."""
        return self._open is not None

    async def run(self) -> None:
        """Keeps the link until it is cancelled; then says `offline` and leaves."""
        lost = 0
        while True:
            came = self.connections
            try:
                await self._connect_once()
            except LOST as error:
                self.last_error = str(error) or type(error).__name__
                log.info("broker %s:%d: %s", self.settings.host, self.settings.port, self.last_error)
            _end_if_cancelled()
            lost = 0 if self.connections > came else min(lost + 1, 12)
            await asyncio.sleep(random.uniform(0, min(LONGEST_WAIT_S, FIRST_WAIT_S * 2**lost)))  # noqa: S311  jitter

    async def publish(self, topic: str, payload: bytes, qos: int, *, retain: bool, expiry_s: float | None) -> bool:
        """Says something now or never; True when the broker has it (QoS 0: when it is on its way)."""
        connection = self._open
        if connection is None:
            return False
        try:
            refusal = await connection.publish(topic, payload, qos, retain=retain, expiry_s=expiry_s)
        except LOST:
            return False
        return self._is_taken(topic, refusal)

    async def _connect_once(self) -> None:
        will = _will(device_topic(self.device, "state"), self.will)
        async with _connected(self.settings, self.device, will) as connection:
            await connection.subscribe(self._subscriptions())
            await self._say_state(connection, self.birth())
            self._open, self.last_error = connection, ""
            self.connections += 1
            try:
                _end_if_cancelled()
                await self._live(connection)
            except asyncio.CancelledError:
                await self._leave(connection)
                raise
            finally:
                self._open = None

    async def _live(self, connection: "Connection") -> None:
        """Receives and sends until one of them fails. Until Python 3.13 a TaskGroup loses a cancellation meanwhile."""
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
        raise next(end for end in ends if isinstance(end, Exception))

    def _subscriptions(self) -> list[tuple[str, SubscribeOptions]]:
        commands = SubscribeOptions(qos=1, retainHandling=SubscribeOptions.RETAIN_DO_NOT_SEND, retainAsPublished=True)
        documents = SubscribeOptions(
            qos=1, retainHandling=SubscribeOptions.RETAIN_SEND_ON_SUBSCRIBE, retainAsPublished=True
        )
        wanted = [(device_topic(self.device, "cmd/+/req"), commands), (device_topic(self.device, "pin"), documents)]
        for group in self.groups:
            wanted.append((group_topic(group, "cmd/+/req"), commands))
            wanted.append((group_topic(group, "deployment"), documents))
        return wanted

    async def _say_state(self, connection: "Connection", payload: bytes) -> None:
        topic = device_topic(self.device, "state")
        refusal = await connection.publish(topic, payload, 1, retain=True, expiry_s=STATE_EXPIRY_S)
        self._is_taken(topic, refusal)

    async def _leave(self, connection: "Connection") -> None:
        self._open = None
        with suppress(*LOST):
            async with asyncio.timeout(FAREWELL_S):
                await self._say_state(connection, self.will)
            await connection.leave()

    async def _receive_all(self, connection: "Connection") -> None:
        async for came, message in connection.messages():
            if message.payload:  # a retained document that somebody cleared says nothing
                await self.receive(message)
            connection.acknowledge(came)

    async def _drain(self, connection: "Connection") -> None:
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
                    await connection.wait_for(wake.wait(), IDLE_S)
        finally:
            self.outbox.watch(lambda: None)

    async def _send(self, connection: "Connection", rows: Sequence[Row]) -> None:
        """Sends rows together; those that the broker answered leave the outbox, up to the first it did not."""
        results = await asyncio.gather(*(self._send_row(connection, row) for row in rows), return_exceptions=True)
        failed = next((number for number, result in enumerate(results) if isinstance(result, BaseException)), len(rows))
        await asyncio.to_thread(self.outbox.done, [row.id for row in rows[:failed]])
        if failed < len(rows):
            lost = results[failed]
            assert isinstance(lost, BaseException)
            raise lost

    async def _send_row(self, connection: "Connection", row: Row) -> None:
        refusal = await connection.publish(row.topic, row.payload, 1, retain=False, expiry_s=row.expiry_s)
        self._is_taken(row.topic, refusal)

    def _is_taken(self, topic: str, refusal: str | None) -> bool:
        if refusal is not None:
            self.refused += 1
            log.error("%s: the broker does not take it (%s): correct its rules; dropped", topic, refusal)
        return refusal is None


class Connection:
    """One connection; what aiomqtt hides of it."""

    def __init__(self, client: aiomqtt.Client) -> None:
        self.client = client
        self.answers: dict[int, asyncio.Future[ReasonCode]] = {}
        self.packet_bytes = PACKET_BYTES
        self.window = asyncio.Semaphore(WINDOW)
        self._loop = asyncio.get_running_loop()
        self._paho = client._client  # noqa: SLF001  see rules 3, 4 and 7
        self._paho.manual_ack_set(True)  # noqa: FBT003  its only parameter
        self._paho.on_publish = self._on_publish
        self._said_connected: Any = self._paho.on_connect
        self._paho.on_connect = self._on_connect
        self._paho.on_socket_register_write = self._on_register_write

    async def subscribe(self, wanted: list[tuple[str, SubscribeOptions]]) -> None:
        """Subscribes to all.

        Raises:
            MqttError: the broker refused one.
        """
        codes = await self.client.subscribe(wanted)
        for (topic, _), code in zip(wanted, codes, strict=True):
            if isinstance(code, ReasonCode) and code.is_failure:
                raise aiomqtt.MqttError(
                    f"{topic}: the broker refused the subscription ({code}): correct its access rules"
                )

    async def publish(
        self, topic: str, payload: bytes, qos: int, *, retain: bool, expiry_s: float | None
    ) -> str | None:
        """None when the broker has it, or why it refused.

        Raises:
            MqttError: nobody knows: the link was lost first.
        """
        if len(payload) > self.packet_bytes - HEADROOM_BYTES:
            return f"{len(payload)} bytes; it takes {self.packet_bytes - HEADROOM_BYTES}"
        properties = _properties(PacketTypes.PUBLISH)
        if expiry_s is not None:
            properties.MessageExpiryInterval = max(1, int(expiry_s))
        if qos == 0:
            self._hand_over(topic, payload, qos, retain, properties)
            return None
        async with self.window:
            sent = self._hand_over(topic, payload, qos, retain, properties)
            code = await self._answer(sent)  # nothing was read since: the answer cannot have come before
        return str(code) if code.is_failure else None

    def _hand_over(self, topic: str, payload: bytes, qos: int, retain: bool, properties: Properties) -> int:  # noqa: FBT001
        sent = self._paho.publish(topic, payload, qos, retain, properties)
        if sent.rc != 0:
            raise aiomqtt.MqttCodeError(sent.rc, "not sent")
        return sent.mid

    async def _answer(self, mid: int) -> ReasonCode:
        future: asyncio.Future[ReasonCode] = asyncio.get_running_loop().create_future()
        self.answers[mid] = future
        try:
            if not await self.wait_for(future, ANSWER_S):
                raise aiomqtt.MqttError(f"the broker did not acknowledge within {ANSWER_S:.0f} s")
            return future.result()
        finally:
            self.answers.pop(mid, None)

    async def wait_for(self, wanted: Awaitable[Any], timeout_s: float) -> bool:
        """True when it came, False when the time is up.

        Raises:
            MqttError: the link was lost first.
        """
        lost = self.client._disconnected  # noqa: SLF001  aiomqtt's calls wait the whole timeout on a lost link
        task = asyncio.ensure_future(wanted)
        try:
            await asyncio.wait({task, lost}, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
        finally:
            if not task.done():
                task.cancel()
        if task.done() and not task.cancelled():
            return True
        if lost.done():
            raise aiomqtt.MqttError("disconnected") from lost.exception()
        return False

    async def messages(self) -> AsyncIterator[tuple[aiomqtt.Message, Message]]:
        """What comes, with what `acknowledge` wants."""
        async for came in self.client.messages:
            yield came, _message(came)

    def acknowledge(self, came: aiomqtt.Message) -> None:
        """Tells the broker that it need not send this again."""
        self._paho.ack(came.mid, came.qos)

    async def leave(self) -> None:
        """A clean DISCONNECT: no will."""
        self._paho.disconnect()
        await self.wait_for(asyncio.sleep(FAREWELL_S), FAREWELL_S)

    def close(self) -> None:
        """Leaves no socket, no reader and no unread error behind."""
        with suppress(OSError, ValueError):
            self._paho._sock_close()  # noqa: SLF001  see rule 7
        lost = self.client._disconnected  # noqa: SLF001
        if lost.done() and not lost.cancelled():
            lost.exception()

    def _on_publish(self, _client: Any, _userdata: Any, mid: int, code: ReasonCode, _properties: Any) -> None:
        waiting = self.answers.get(mid)
        if waiting is not None and not waiting.done():
            waiting.set_result(code)

    def _on_register_write(self, _client: Any, _userdata: Any, door: Any) -> None:
        """As aiomqtt's own, which may watch the number of a closed socket, by then somebody else's, for ever."""

        def watch() -> None:
            if self._paho.socket() is door:
                self._loop.add_writer(door, self._write)

        self._loop.call_soon_threadsafe(watch)  # the first call comes from the thread that connects

    def _write(self) -> None:
        lost = self.client._disconnected  # noqa: SLF001
        try:
            self._paho.loop_write()
        except (OSError, ValueError) as error:
            if not lost.done():
                lost.set_exception(error)

    def _on_connect(self, client: Any, userdata: Any, flags: Any, code: ReasonCode, properties: Any) -> None:
        """Heeds what the broker can take; a longer packet would make it hang up for ever."""
        self.packet_bytes = min(PACKET_BYTES, getattr(properties, "MaximumPacketSize", PACKET_BYTES))
        self.window = asyncio.Semaphore(min(WINDOW, getattr(properties, "ReceiveMaximum", WINDOW)))
        self._said_connected(client, userdata, flags, code, properties)


@asynccontextmanager
async def _connected(settings: BrokerSettings, device: str, will: aiomqtt.Will) -> AsyncIterator[Connection]:
    client = aiomqtt.Client(
        settings.host,
        settings.port,
        identifier=device,
        username=settings.username,
        password=settings.password,
        protocol=aiomqtt.ProtocolVersion.V5,
        clean_start=False,
        properties=_connect_properties(settings),
        keepalive=settings.keepalive_s,
        timeout=ANSWER_S,
        max_inflight_messages=WINDOW,
        socket_options=[(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)],
        tls_context=await asyncio.to_thread(_tls, settings) if settings.tls else None,
        will=will,
    )
    connection = Connection(client)
    try:
        await client.__aenter__()  # its __aexit__ would wait for a farewell on a dead link: see `leave` and `close`
        yield connection
    finally:
        connection.close()


def _properties(packet: int) -> Properties:
    return Properties(packet)  # type: ignore[no-untyped-call]  # paho's constructor has no annotations


def _connect_properties(settings: BrokerSettings) -> Properties:
    properties = _properties(PacketTypes.CONNECT)
    properties.SessionExpiryInterval = settings.session_expiry_s
    properties.ReceiveMaximum = RECEIVE_MAXIMUM
    properties.MaximumPacketSize = PACKET_BYTES
    return properties


def _will(topic: str, payload: bytes) -> aiomqtt.Will:
    properties = _properties(PacketTypes.WILLMESSAGE)
    properties.WillDelayInterval = WILL_DELAY_S
    properties.MessageExpiryInterval = STATE_EXPIRY_S
    return aiomqtt.Will(topic, payload, qos=1, retain=True, properties=properties)


def _tls(settings: BrokerSettings) -> ssl.SSLContext:
    """Read anew for each connection: certificates are renewed while we run."""
    try:
        context = ssl.create_default_context(cafile=settings.ca)
        if settings.cert is not None:
            context.load_cert_chain(settings.cert, settings.key)
    except OSError as error:
        files = ", ".join(name for name in (settings.ca, settings.cert, settings.key) if name)
        raise TransferError(f"{files}: cannot be used ({error}): correct `broker` in agent.yaml") from error
    return context


def _message(came: aiomqtt.Message) -> Message:
    payload = came.payload if isinstance(came.payload, bytes) else b""
    return Message(str(came.topic), payload, bool(came.retain), getattr(came.properties, "MessageExpiryInterval", None))


def _end_if_cancelled() -> None:
    """Until Python 3.12 `asyncio.wait_for`, inside aiomqtt, may lose a cancellation."""
    task = asyncio.current_task()
    if task is not None and task.cancelling():
        raise asyncio.CancelledError
