"""The desk's connection to the MQTT 5 broker: publish and be sure, subscribe and read.

The desk says little and waits for each answer: a refused publish is an error here, not a log line. What it reads is
for people's eyes; nothing is decided on it.
"""

import queue
import ssl
import time
from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import Any, Self
from urllib.parse import unquote, urlsplit

from paho.mqtt.client import Client, MQTTMessage, MQTTv5
from paho.mqtt.enums import CallbackAPIVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode

from agent.adapters.connection import BrokerSettings, no_delay
from agent.core.documents import from_tree
from agent.core.errors import InputError, TransferError

ANSWER_S = 10.0  # the broker's time for CONNACK, SUBACK, PUBACK
KEEPALIVE_S = 30


def broker_at(url: str, ca: str | None = None, cert: str | None = None, key: str | None = None) -> BrokerSettings:
    """The settings behind `mqtt://[user:password@]host[:port]` or `mqtts://...`.

    Raises:
        InputError: the URL is not one of these.
    """
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise InputError(f"{url}: {error}; write mqtt://host:port or mqtts://host:port") from error
    if parts.scheme not in {"mqtt", "mqtts"} or not parts.hostname or parts.path not in {"", "/"}:
        raise InputError(f"{url}: not a broker; write mqtt://host:port or mqtts://host:port")
    tls = parts.scheme == "mqtts"
    said = {
        "host": parts.hostname,
        "port": port if port is not None else 8883 if tls else 1883,
        "tls": tls,
        "ca": ca if tls else None,
        "cert": cert,
        "key": key,
        "username": unquote(parts.username) if parts.username else None,
        "password": unquote(parts.password) if parts.password else None,
    }
    return from_tree(BrokerSettings, said, f"broker {parts.hostname}")


class Broker:
    """One connection, for use in a `with`, by one thread."""

    def __init__(self, settings: BrokerSettings) -> None:
        self.settings = settings
        self._answers: queue.SimpleQueue[tuple[str, int, Sequence[ReasonCode]]] = queue.SimpleQueue()
        self._messages: queue.SimpleQueue[tuple[str, bytes]] = queue.SimpleQueue()
        self._client = Client(CallbackAPIVersion.VERSION2, protocol=MQTTv5)
        self._client.on_connect = self._connected
        self._client.on_publish = self._published
        self._client.on_subscribe = self._subscribed
        self._client.on_message = self._received
        self._client.on_socket_open = no_delay

    def __enter__(self) -> Self:
        settings = self.settings
        where = f"broker {settings.host}:{settings.port}"
        if settings.username is not None:
            self._client.username_pw_set(settings.username, settings.password)
        try:
            if settings.tls:
                context = ssl.create_default_context(cafile=settings.ca)
                if settings.cert is not None:
                    context.load_cert_chain(settings.cert, settings.key)
                self._client.tls_set_context(context)
            self._client.connect(settings.host, settings.port, KEEPALIVE_S)
        except OSError as error:
            given = ", ".join(filter(None, (settings.ca, settings.cert, settings.key)))
            certificates = f"certificates ({given})" if given else "certificates"
            raise TransferError(f"{where}: {error}; check its address, port and {certificates}") from error
        self._client.loop_start()
        try:
            self._wait("connect", 0, where)
        except BaseException:
            self._client.loop_stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._client.disconnect()
        self._client.loop_stop()

    def publish(self, topic: str, payload: bytes, *, retain: bool = False, expiry_s: int | None = None) -> None:
        """Returns when the broker has taken it, QoS 1.

        Raises:
            TransferError: the broker refused it, or did not answer.
        """
        properties = Properties(PacketTypes.PUBLISH)  # type: ignore[no-untyped-call]  # paho leaves it untyped
        if expiry_s is not None:
            properties.MessageExpiryInterval = expiry_s
        sent = self._client.publish(topic, payload, qos=1, retain=retain, properties=properties)
        self._wait("publish", sent.mid, topic)

    def subscribe(self, *topics: str) -> None:
        """Returns when the broker has granted all of them.

        Raises:
            TransferError: the broker refused one, or did not answer.
        """
        _, mid = self._client.subscribe([(topic, 1) for topic in topics])
        self._wait("subscribe", mid or 0, ", ".join(topics))

    def messages(self, seconds: float) -> Iterator[tuple[str, bytes]]:
        """(topic, payload) of what comes within so many seconds."""
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            try:
                yield self._messages.get(timeout=left)
            except queue.Empty:
                return

    def _wait(self, kind: str, mid: int, where: str) -> None:
        end = time.monotonic() + ANSWER_S
        while True:
            try:
                answered, number, codes = self._answers.get(timeout=max(0.0, end - time.monotonic()))
            except queue.Empty:
                raise TransferError(f"{where}: the broker does not answer; check it and try again") from None
            if (answered, number) == (kind, mid):
                break
        refused = [str(code) for code in codes if code.is_failure]
        if refused:
            raise TransferError(f"{where}: the broker refuses to {kind} ({refused[0]}); check the desk's rights there")

    def _connected(self, _client: Client, _userdata: Any, _flags: Any, code: ReasonCode, _properties: Any) -> None:
        self._answers.put(("connect", 0, [code]))

    def _published(self, _client: Client, _userdata: Any, mid: int, code: ReasonCode, _properties: Any) -> None:
        self._answers.put(("publish", mid, [code]))

    def _subscribed(
        self, _client: Client, _userdata: Any, mid: int, codes: Sequence[ReasonCode], _properties: Any
    ) -> None:
        self._answers.put(("subscribe", mid, codes))

    def _received(self, _client: Client, _userdata: Any, message: MQTTMessage) -> None:
        self._messages.put((message.topic, bytes(message.payload)))
