"""One connection to the MQTT 5 broker, on paho: its thread reads and writes, its callbacks run in our event loop.

1. A new client for every connection: one that is used again sends old messages after newer ones.
2. `clean_start=False` with a session expiry: what was sent to us meanwhile waits for us, also over a broker's restart.
3. Acknowledging is the caller's, when it has recorded the message. At most RECEIVE_MAXIMUM unacknowledged ones
   reach us, so the queue is bounded without dropping.
4. The reason code of every CONNACK, SUBACK and PUBACK is looked at: a refusal is never taken for a yes.
5. Whoever waits for an answer is woken when the link is lost.
6. TCP_NODELAY: without it a round trip costs 88 ms instead of 0.7.
7. Nothing is left behind: an old socket that revives would take the session away.

Pinned to paho 2.2.0: `_reset_sockets` is private.
"""

import asyncio
import logging
import socket
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Annotated, Any

from msgspec import Meta
from paho.mqtt.client import Client, MQTTMessage, MQTTv5
from paho.mqtt.enums import CallbackAPIVersion, MQTTErrorCode
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode
from paho.mqtt.subscribeoptions import SubscribeOptions

from agent.core.documents import END, Document
from agent.core.errors import TransferError

log = logging.getLogger(__name__)

WINDOW = 20  # publishes in flight, or the broker's Receive Maximum, which paho does not heed: as fast as 100
RECEIVE_MAXIMUM = 16
PACKET_BYTES = 256 * 1024  # models and frames never go this way
HEADROOM_BYTES = 1024  # topic and properties beside a payload
STATE_EXPIRY_S = 7 * 24 * 3600
WILL_DELAY_S = 5  # a reconnect within it is no news
ANSWER_S = 10.0  # the broker's time for CONNACK, SUBACK, PUBACK
FAREWELL_S = 2.0
ACCEPTED = 0  # in place of a packet's number: MQTT gives none to CONNACK
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


class Reader(Client):
    """paho's client; its thread says when it ends, also by what is no MQTT."""

    ended: Callable[[], object]

    def loop_forever(self, *how: Any, **more: Any) -> MQTTErrorCode:
        """What paho's thread does."""
        try:
            return super().loop_forever(*how, **more)
        except Exception as error:  # noqa: BLE001  the top of a thread; paho raises what its parser meets
            log.warning("broker: what it sent cannot be read (%r)", error)
            return MQTTErrorCode.MQTT_ERR_PROTOCOL
        finally:
            self.ended()


class Connection:
    """One connection; its calls are for one event loop."""

    def __init__(self, client: Reader) -> None:
        self.client = client
        self.came: asyncio.Queue[MQTTMessage | None] = asyncio.Queue()  # None: nothing more comes
        self.packet_bytes = PACKET_BYTES
        self.window = asyncio.Semaphore(WINDOW)
        self._loop = asyncio.get_running_loop()
        self._answers: dict[int, asyncio.Future[list[ReasonCode]]] = {}
        self._why = "it is no MQTT"
        self._lost = asyncio.Event()  # set while paho's thread does not run
        self._lost.set()
        client.on_connect = self._in_loop(self._on_connect)
        client.on_subscribe = client.on_publish = self._in_loop(self._on_answer)
        client.on_message = self._in_loop(self.came.put_nowait)
        client.on_disconnect = self._in_loop(self._on_disconnect)
        client.ended = lambda: self._loop.call_soon_threadsafe(self._on_end)

    def _in_loop(self, take: Callable[..., object]) -> Any:
        """A callback for paho's thread: what it is told is taken in our event loop."""
        return lambda _client, _userdata, *said: self._loop.call_soon_threadsafe(take, *said)

    async def open(self, settings: BrokerSettings) -> None:
        """Returns when the broker has accepted us.

        Raises:
            TransferError: it does not, or does not answer.
            OSError: it cannot be reached.
        """
        asked = _properties(PacketTypes.CONNECT)
        asked.SessionExpiryInterval = settings.session_expiry_s
        asked.ReceiveMaximum = RECEIVE_MAXIMUM
        asked.MaximumPacketSize = PACKET_BYTES
        address = (settings.host, settings.port, settings.keepalive_s)
        await asyncio.to_thread(self.client.connect, *address, clean_start=False, properties=asked)
        self._lost.clear()
        self.client.loop_start()
        if refusal := _refusal(await self._answer(ACCEPTED)):
            raise TransferError(f"the broker does not take us ({refusal})")

    async def subscribe(self, wanted: list[tuple[str, SubscribeOptions]]) -> None:
        """Subscribes to all.

        Raises:
            TransferError: the broker refused one, or the link was lost.
        """
        _, number = self.client.subscribe(wanted)
        for (topic, _), code in zip(wanted, await self._answer(number), strict=False):  # nobody is held to their count
            if code.is_failure:
                raise TransferError(f"{topic}: the broker refused the subscription ({code}): correct its access rules")

    async def publish(
        self, topic: str, payload: bytes, qos: int, *, retain: bool, expiry_s: float | None
    ) -> str | None:
        """None when the broker has it, or why it refused.

        Raises:
            TransferError: nobody knows: the link was lost first.
        """
        if len(payload) > self.packet_bytes - HEADROOM_BYTES:
            return f"{len(payload)} bytes; it takes {self.packet_bytes - HEADROOM_BYTES}"
        properties = _properties(PacketTypes.PUBLISH)
        if expiry_s is not None:
            properties.MessageExpiryInterval = max(1, int(expiry_s))
        async with self.window:
            sent = self.client.publish(topic, payload, qos, retain, properties)
            if sent.rc != 0:
                raise TransferError("the link was lost")
            return _refusal(await self._answer(sent.mid)) if qos else None

    async def _answer(self, number: int | None) -> list[ReasonCode]:
        """The broker's answer to what was sent under a number just now: it cannot have been taken yet."""
        if number is None or self._lost.is_set():
            raise TransferError("the link was lost")
        answer: asyncio.Future[list[ReasonCode]] = self._loop.create_future()
        self._answers[number] = answer
        try:
            async with asyncio.timeout(ANSWER_S):
                return await answer
        except TimeoutError:
            raise TransferError(f"the broker did not answer within {ANSWER_S:.0f} s") from None
        finally:
            del self._answers[number]

    async def messages(self) -> AsyncIterator[tuple[MQTTMessage, Message]]:
        """What comes, with what `acknowledge` wants.

        Raises:
            TransferError: the link was lost.
        """
        while (came := await self.came.get()) is not None:
            left = getattr(came.properties, "MessageExpiryInterval", None)
            try:
                message = Message(came.topic, bytes(came.payload), came.retain, left)
            except UnicodeDecodeError as error:
                raise TransferError(f"a topic that came is no text ({error})") from error
            yield came, message
        raise TransferError(f"the link was lost ({self._why})")

    def acknowledge(self, came: MQTTMessage) -> None:
        """Tells the broker that it need not send this again."""
        self.client.ack(came.mid, came.qos)

    async def leave(self) -> None:
        """A clean DISCONNECT: no will."""
        self.client.disconnect()
        await self._is_lost()

    async def close(self) -> None:
        """Leaves no socket and no thread behind."""
        with suppress(OSError):
            door: Any = self.client.socket()
            if door is not None:
                socket.socket.shutdown(door, socket.SHUT_RDWR)  # wakes paho's thread, which ends
        await self._is_lost()
        self.client._reset_sockets()  # noqa: SLF001  else the pipe that wakes its thread stays until it is collected

    async def _is_lost(self) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(FAREWELL_S):
                await self._lost.wait()

    def _on_connect(self, _flags: Any, code: ReasonCode, properties: Any) -> None:
        """Heeds what the broker can take; a longer packet would make it hang up for ever."""
        self.packet_bytes = min(PACKET_BYTES, getattr(properties, "MaximumPacketSize", PACKET_BYTES))
        self.window = asyncio.Semaphore(min(WINDOW, getattr(properties, "ReceiveMaximum", WINDOW)))
        self._on_answer(ACCEPTED, code, properties)

    def _on_answer(self, number: int, codes: ReasonCode | list[ReasonCode], _properties: Any) -> None:
        waiting = self._answers.get(number)
        if waiting is not None and not waiting.done():
            waiting.set_result(codes if isinstance(codes, list) else [codes])

    def _on_disconnect(self, _flags: Any, code: ReasonCode, _properties: Any) -> None:
        self._why = str(code)

    def _on_end(self) -> None:
        self._lost.set()
        self.came.put_nowait(None)
        why = "the broker hung up before it accepted us" if ACCEPTED in self._answers else "the link was lost"
        for waiting in self._answers.values():
            if not waiting.done():
                waiting.set_exception(TransferError(f"{why} ({self._why})"))


@asynccontextmanager
async def connected(settings: BrokerSettings, device: str, topic: str, will: bytes) -> AsyncIterator[Connection]:
    """A connection that the broker has accepted; closed at the end of the block, without a farewell.

    The broker says `will` on `topic`, retained, when we have been lost for WILL_DELAY_S.

    Raises:
        TransferError: it could not be made, or a certificate cannot be used.
        OSError: the broker cannot be reached.
    """
    client = Reader(CallbackAPIVersion.VERSION2, device, protocol=MQTTv5, reconnect_on_failure=False, manual_ack=True)
    client.connect_timeout = ANSWER_S
    client.max_inflight_messages_set(WINDOW)
    client.on_socket_open = no_delay
    if settings.username is not None:
        client.username_pw_set(settings.username, settings.password)
    if settings.tls:
        client.tls_set_context(await asyncio.to_thread(_tls, settings))
    terms = _properties(PacketTypes.WILLMESSAGE)
    terms.WillDelayInterval = WILL_DELAY_S
    terms.MessageExpiryInterval = STATE_EXPIRY_S
    client.will_set(topic, will, 1, retain=True, properties=terms)
    connection = Connection(client)
    try:
        await connection.open(settings)
        yield connection
    finally:
        await connection.close()


def no_delay(_client: Client, _userdata: Any, door: Any) -> None:
    """Small packets leave at once."""
    door.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


def _refusal(codes: list[ReasonCode]) -> str | None:
    return next((str(code) for code in codes if code.is_failure), None)


def _properties(packet: int) -> Properties:
    return Properties(packet)  # type: ignore[no-untyped-call]  # paho's constructor has no annotations


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
