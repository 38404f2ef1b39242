"""One connection to the MQTT 5 broker, with what aiomqtt hides or forgets.

1. A new Client for every connection: one that is used again sends old messages after newer ones.
2. `clean_start=False` with a session expiry: what was sent to us meanwhile waits for us, also over a broker's restart.
3. Acknowledging is the caller's, when it has recorded the message. At most RECEIVE_MAXIMUM unacknowledged ones
   reach us, so the queue is bounded without dropping.
4. The reason code of every SUBACK and PUBACK is looked at: aiomqtt's own calls return normally on a refusal.
5. A call that waits is woken when the link is lost; aiomqtt's own wait for their timeout.
6. TCP_NODELAY: without it a round trip costs 88 ms instead of 0.7.
7. Nothing is left behind: an old socket that revives would take the session away.

Pinned to aiomqtt 2.5.1 and paho 2.2.0: only this file uses their private attributes.
"""

import asyncio
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Annotated, Any

import aiomqtt
from msgspec import Meta
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode
from paho.mqtt.subscribeoptions import SubscribeOptions

from agent.core.documents import END, Document
from agent.core.errors import TransferError

WINDOW = 20  # publishes in flight, or the broker's Receive Maximum, which paho does not heed: as fast as 100
RECEIVE_MAXIMUM = 16
PACKET_BYTES = 256 * 1024  # models and frames never go this way
HEADROOM_BYTES = 1024  # topic and properties beside a payload
STATE_EXPIRY_S = 7 * 24 * 3600
WILL_DELAY_S = 5  # a reconnect within it is no news
ANSWER_S = 10.0  # the broker's time for CONNACK, SUBACK, PUBACK
FAREWELL_S = 2.0
HOST = r"^[\w:%-]{1,63}(\.[\w-]{1,63})*\.?" + END  # for a name that cannot be one the resolver raises no OSError


class BrokerSettings(Document):
    """Where the broker is and who we are there; `broker:` in agent.yaml."""

    host: Annotated[str, Meta(pattern=HOST)]
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


class Connection:
    """One connection; what aiomqtt hides of it."""

    def __init__(self, client: aiomqtt.Client) -> None:
        self.client = client
        self.answers: dict[int, asyncio.Future[ReasonCode]] = {}
        self.packet_bytes = PACKET_BYTES
        self.window = asyncio.Semaphore(WINDOW)
        self._loop = asyncio.get_running_loop()
        self._paho = client._client  # noqa: SLF001  see the top of the file
        self._paho.manual_ack_set(True)  # noqa: FBT003  its only parameter
        self._paho.on_publish = self._on_publish
        self._said_connected: Any = self._paho.on_connect
        self._paho.on_connect = self._on_connect
        self._said_disconnected: Any = self._paho.on_disconnect
        self._paho.on_disconnect = self._on_disconnect
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
        lost = self.client._disconnected  # noqa: SLF001  see rule 5
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

    def _on_disconnect(self, client: Any, userdata: Any, flags: Any, code: ReasonCode, properties: Any) -> None:
        """As aiomqtt's own, which leaves a connection that ends before it is accepted to its timeout."""
        accepted = self.client._connected  # noqa: SLF001  see rule 5

        def refuse() -> None:
            if not accepted.done():
                accepted.set_exception(aiomqtt.MqttError(f"the broker hung up before it accepted us ({code})"))

        if accepted.done():
            self._said_disconnected(client, userdata, flags, code, properties)
        else:
            self._loop.call_soon_threadsafe(refuse)

    def _on_register_write(self, _client: Any, _userdata: Any, door: Any) -> None:
        """As aiomqtt's own, which may watch the number of a closed socket, by then somebody else's, for ever."""
        number = door.fileno()

        def watch() -> None:
            if self._paho.socket() is door:
                self._loop.add_writer(number, self._write)

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
async def connected(settings: BrokerSettings, device: str, will: aiomqtt.Will) -> AsyncIterator[Connection]:
    """A connection that the broker has accepted; closed at the end of the block, without a farewell.

    Raises:
        MqttError: it could not be made.
        TransferError: a certificate cannot be used.
    """
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


def will_of(topic: str, payload: bytes) -> aiomqtt.Will:
    """What the broker says, retained, when we have been lost for WILL_DELAY_S."""
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
