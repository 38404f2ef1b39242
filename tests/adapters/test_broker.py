"""The link to a real broker that restarts, is killed, refuses, and lies about retained commands."""

import asyncio
import contextlib
import json
import os
import random
import socket
import time
from collections import Counter
from pathlib import Path

import aiomqtt
import psutil
import pytest
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from agent.adapters import backoff, broker, connection
from agent.adapters.broker import BrokerSettings, Link, device_topic, group_topic
from agent.adapters.outbox import Item, Outbox, Rank
from agent.core.documents import from_tree
from agent.core.errors import InputError, TransferError
from tests.adapters.certificates import Authority
from tests.fakes.descriptors import held
from tests.fakes.waiting import PATIENCE, reached

DEVICE = "edge-0001"
DYNSEC = next(iter(Path("/usr/lib").glob("*/mosquitto_dynamic_security.so")), None)


ANSWER_S = 3.0 * PATIENCE


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """The same rules with shorter waits."""
    monkeypatch.setattr(broker, "FIRST_WAIT_S", 0.05)
    monkeypatch.setattr(broker, "LONGEST_WAIT_S", 0.4)
    monkeypatch.setattr(connection, "ANSWER_S", ANSWER_S)
    monkeypatch.setattr(broker, "DRAIN_PER_S", 2000.0)


@pytest.fixture
def outbox(tmp_path):
    made = Outbox(tmp_path / "outbox.db")
    yield made
    made.close()


class Site:
    """A device: a link, and what reached it. `record` may be replaced."""

    def __init__(self, settings, outbox, boot=b""):
        self.heard = []
        self.record = self.heard.append
        self.ours = {b"online" + boot, b"offline" + boot}
        self.link = Link(
            settings, DEVICE, ["line-1"], outbox,
            birth=lambda: b"online" + boot, will=b"offline" + boot, receive=self.receive,
        )  # fmt: skip

    async def receive(self, message):
        if message.topic.endswith("/state"):
            self.link.met_twin |= self.link.connections > 1 and message.payload not in self.ours
        else:
            self.record(message)

    @contextlib.asynccontextmanager
    async def running(self, connected=True):
        task = asyncio.create_task(self.link.run())
        try:
            if connected:
                await reached(lambda: self.link.connected or task.done(), what="the link connects")
            yield self
        finally:
            task.cancel()
            done, _ = await asyncio.wait({task}, timeout=10 * PATIENCE)
            assert done, "the link ends when it is cancelled"
            if not task.cancelled() and task.exception():
                raise task.exception()


@contextlib.asynccontextmanager
async def operator(port, name="operator", **options):
    """A client that stays the same session over restarts."""
    properties = Properties(PacketTypes.CONNECT)
    properties.SessionExpiryInterval = 600
    async with aiomqtt.Client(
        "127.0.0.1", port, identifier=name, protocol=aiomqtt.ProtocolVersion.V5, clean_start=False,
        properties=properties, socket_options=[(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)], **options,
    ) as client:  # fmt: skip
        yield client


@contextlib.asynccontextmanager
async def listening(port, name="listener", **options):
    """What anybody may hear, as a list that grows."""
    heard = []

    async def listen():
        while True:
            with contextlib.suppress(aiomqtt.MqttError):
                async with operator(port, name, **options) as client:
                    await client.subscribe("edge/#", qos=1)
                    ready.set()
                    async for message in client.messages:
                        heard.append((str(message.topic), message.payload, message.retain))  # noqa: PERF401  it never ends
            await asyncio.sleep(0.1)

    ready = asyncio.Event()
    task = asyncio.create_task(listen())
    await reached(ready.is_set, what="the listener has subscribed")
    yield heard
    await _ended(task)


def site_on(port, outbox, **settings):
    return Site(
        BrokerSettings(host="127.0.0.1", port=port, tls=False, keepalive_s=round(2 * PATIENCE), **settings), outbox
    )


@pytest.fixture
def site(mosquitto, outbox):
    return site_on(mosquitto.port, outbox)


def event(number, rank=Rank.EVENT):
    return Item(topic=device_topic(DEVICE, "evt", "test"), payload=b"%d" % number, rank=rank)


async def test_a_device_says_that_it_is_here_and_that_it_leaves(site, mosquitto):
    """Birth at the connection, and `offline` before a clean end, both retained."""
    async with listening(mosquitto.port) as heard:
        async with site.running():
            await reached(lambda: (device_topic(DEVICE, "state"), b"online", False) in heard)
        await reached(lambda: heard[-1][:2] == (device_topic(DEVICE, "state"), b"offline"))
    async with operator(mosquitto.port, "late") as late:
        await late.subscribe(device_topic(DEVICE, "state"))
        message = await anext(aiter(late.messages))
        assert (message.payload, message.retain) == (b"offline", True)


async def test_what_waited_in_the_outbox_arrives_in_order(site, mosquitto, outbox):
    """What was put without a network and with one arrives, in order, and leaves the outbox."""
    outbox.put([event(number) for number in range(30)], time.time())
    async with listening(mosquitto.port) as heard, site.running():
        outbox.put([event(number) for number in range(30, 60)], time.time())
        await reached(lambda: outbox.waiting == 0 and len(_numbers(heard)) == 60)
    assert _numbers(heard) == list(range(60))


async def test_documents_and_commands_reach_the_device(site, mosquitto):
    """A retained deployment is heard at the connection; commands for device and group as they come."""
    async with operator(mosquitto.port) as client:
        await client.publish(group_topic("line-1", "deployment"), b"deployment", qos=1, retain=True)
        async with site.running():
            await client.publish(device_topic(DEVICE, "pin"), b"pin", qos=1, retain=True)
            await client.publish(device_topic(DEVICE, "cmd/c1/req"), b"mine", qos=1)
            await client.publish(group_topic("line-1", "cmd/c2/req"), b"ours", qos=1)
            await client.publish(group_topic("line-2", "cmd/c3/req"), b"theirs", qos=1)
            await client.publish(device_topic(DEVICE, "pin"), b"", qos=1, retain=True)
            await client.publish(device_topic(DEVICE, "cmd/c4/req"), b"last", qos=1)
            await reached(lambda: site.heard and site.heard[-1].payload == b"last")
    assert [message.payload for message in site.heard] == [b"deployment", b"pin", b"mine", b"ours", b"last"]
    assert site.heard[0].retain


async def test_a_retained_command_is_seen_as_one(site, mosquitto):
    """An old retained command is not delivered; one that is published now shows that it was retained."""
    async with operator(mosquitto.port) as client:
        await client.publish(device_topic(DEVICE, "cmd/old/req"), b"old", qos=1, retain=True)
        async with site.running():
            await client.publish(device_topic(DEVICE, "cmd/new/req"), b"new", qos=1, retain=True)
            await client.publish(device_topic(DEVICE, "cmd/live/req"), b"live", qos=1)
            await reached(lambda: len(site.heard) >= 2)
    assert [(message.payload, message.retain) for message in site.heard] == [(b"new", True), (b"live", False)]


async def test_a_commands_age_is_seen(site, mosquitto):
    """What the broker says is left of a message reaches the device."""
    properties = Properties(PacketTypes.PUBLISH)
    properties.MessageExpiryInterval = 300
    async with operator(mosquitto.port) as client, site.running():
        await client.publish(device_topic(DEVICE, "cmd/c1/req"), b"c", qos=1, properties=properties)
        await reached(lambda: site.heard)
    assert 290 < site.heard[0].expiry_s <= 300


async def test_a_message_that_could_not_be_recorded_comes_again(site, mosquitto):
    """What was not durably recorded is not acknowledged: a full disk loses no command."""
    refusals = [3]

    def record(message):
        if refusals[0]:
            refusals[0] -= 1
            raise TransferError("ledger: the disk is full: make room")
        site.heard.append(message)

    site.record = record
    async with operator(mosquitto.port) as client, site.running():
        await client.publish(device_topic(DEVICE, "cmd/c1/req"), b"once", qos=1)
        await reached(lambda: site.heard)
    assert [message.payload for message in site.heard] == [b"once"]
    assert "disk is full" in site.link.last_error or site.link.connections > 3


async def test_a_link_that_is_lost_while_it_is_cancelled_ends(site, mosquitto):
    """A fault at the very moment of the end does not keep the link alive."""
    task = asyncio.create_task(site.link.run())

    def record(message):
        task.cancel()
        raise TransferError("ledger: the disk is full: make room")

    site.record = record
    await reached(lambda: site.link.connected)
    async with operator(mosquitto.port) as client:
        await client.publish(device_topic(DEVICE, "cmd/c1/req"), b"c", qos=1)
        await reached(task.done)
    assert task.cancelled()


async def test_a_bug_of_ours_goes_to_the_top(site, mosquitto):
    """An error that nobody expects ends `run` instead of being retried for ever."""

    def record(message):
        raise KeyError("bug")

    site.record = record
    task = asyncio.create_task(site.link.run())
    await reached(lambda: site.link.connected)
    async with operator(mosquitto.port) as client:
        await client.publish(device_topic(DEVICE, "cmd/c1/req"), b"c", qos=1)
        with pytest.raises(KeyError):
            await asyncio.wait_for(task, 10 * PATIENCE)


async def test_commands_sent_to_an_absent_device_wait_over_a_broker_crash(site, mosquitto):
    """A command for a device that is off survives `kill -9` of the broker."""
    async with site.running():
        pass
    async with operator(mosquitto.port) as client:
        await client.publish(device_topic(DEVICE, "cmd/c1/req"), b"waiting", qos=1)
        state = mosquitto.config.parent / "state" / "mosquitto.db"
        saved = lambda: state.exists() and (state.stat().st_ino, state.stat().st_mtime_ns)  # noqa: E731
        before = saved()
        await client.publish("edge/flush", b"", qos=1, retain=True)
        await reached(lambda: saved() not in {False, before})
    mosquitto.restart()
    async with site.running():
        await reached(lambda: site.heard)
    assert [message.payload for message in site.heard] == [b"waiting"]


@pytest.mark.parametrize("crashes", [0, 3], ids=["network", "network and broker"])
async def test_under_chaos_nothing_is_lost_and_nothing_is_done_twice(mosquitto, outbox, new_proxy, crashes):
    """Resets, black holes and kills: every command is executed exactly once, every event arrives in order.

    What mosquitto acknowledged in the instants before a kill, and had not yet saved, is lost by mosquitto: an
    operator without an answer asks again with the same id, and a crash may cost the listener a window of events.
    """
    proxy = new_proxy(mosquitto.port)
    site = site_on(proxy.port, outbox)
    executed, sent, put = Counter(), set(), 0

    def record(message):
        command = json.loads(message.payload)["id"]
        if not executed[command]:  # as the ledger does: the id is recorded with the effect
            executed[command] += 1

    site.record = record
    async with listening(mosquitto.port) as heard, site.running():
        chaos = asyncio.create_task(_chaos(proxy, mosquitto, crashes))
        ordering = asyncio.create_task(_order(mosquitto.port, sent))
        while not chaos.done():
            outbox.put([event(number, Rank.TELEMETRY) for number in range(put, put + 10)], time.time())
            put += 10
            await asyncio.sleep(0.05)
        await chaos
        await _ended(ordering)
        async with operator(mosquitto.port) as client:
            for command in sent - set(executed) if crashes else ():
                await _command(client, command)
            await reached(lambda: set(executed) >= sent and outbox.waiting == 0, 30, "everything arrives")
        await reached(lambda: len(_numbers(heard)) >= put - crashes * connection.WINDOW, 30, "every event is heard")
        said = _numbers(heard)
    assert sent
    assert set(executed.values()) == {1}
    assert said == sorted(said)
    assert site.link.connections > 1


async def test_what_the_broker_refuses_is_dropped_and_counted(new_broker, outbox, tmp_path):
    """A topic that its rules forbid does not block what comes after it."""
    (tmp_path / "acl").write_text(f"topic write {ROOT_STATE}\ntopic read #\ntopic write edge/v1/{DEVICE}/evt/#\n")
    (tmp_path / "acl").chmod(0o600)
    strict = new_broker(more=f"acl_file {tmp_path / 'acl'}")
    site = site_on(strict.port, outbox)
    outbox.put([Item(topic="edge/v1/other/evt/x", payload=b"spoofed", rank=Rank.EVENT), event(1)], time.time())
    async with listening(strict.port) as heard, site.running():
        await reached(lambda: outbox.waiting == 0)
        await reached(lambda: any(payload == b"1" for _, payload, _ in heard))
        assert not await site.link.publish("edge/v1/other/reported", b"spoofed", 1, retain=True, expiry_s=None)
    assert site.link.refused == 2
    assert not any(payload == b"spoofed" for _, payload, _ in heard)


@pytest.mark.skipif(DYNSEC is None, reason="mosquitto's dynamic security plugin is not here")
async def test_a_refused_subscription_is_an_error(new_broker, outbox, tmp_path):
    """A device that may not hear its commands is not connected, and says why."""
    rules = {
        "defaultACLAccess": {
            "publishClientSend": True, "publishClientReceive": True, "subscribe": False, "unsubscribe": True,
        },
        "clients": [], "groups": [{"groupname": "all", "roles": []}], "roles": [], "anonymousGroup": "all",
    }  # fmt: skip
    (tmp_path / "dynsec.json").write_text(json.dumps(rules))
    strict = new_broker(more=f"plugin {DYNSEC}\nplugin_opt_config_file {tmp_path / 'dynsec.json'}")
    site = site_on(strict.port, outbox)
    async with site.running(connected=False):
        await reached(lambda: "refused the subscription" in site.link.last_error)
        assert not site.link.connected


async def test_a_message_longer_than_a_packet_does_not_block(site, mosquitto, outbox):
    """What is too long for the broker is dropped and counted; the link stays."""
    outbox.put([Item(topic="edge/v1/x", payload=b"x" * 300_000, rank=Rank.EVENT), event(1)], time.time())
    async with site.running():
        await reached(lambda: outbox.waiting == 0)
        assert not await site.link.publish("edge/v1/x", b"x" * 300_000, 1, retain=False, expiry_s=None)
    assert (site.link.refused, site.link.connections) == (2, 1)


async def test_a_smaller_limit_of_the_broker_is_heeded(new_broker, outbox):
    """The broker's own packet limit counts where it is smaller than ours."""
    narrow = new_broker(more="max_packet_size 5000")
    site = site_on(narrow.port, outbox)
    outbox.put([Item(topic="edge/v1/x", payload=b"x" * 6000, rank=Rank.EVENT), event(1)], time.time())
    async with site.running():
        await reached(lambda: outbox.waiting == 0)
    assert (site.link.refused, site.link.connections) == (1, 1)


async def test_live_figures_are_said_now_or_never(site, mosquitto):
    """Without a link a live message is not kept; with one it arrives."""
    topic = device_topic(DEVICE, "tele/health")
    assert not await site.link.publish(topic, b"lost", 0, retain=False, expiry_s=60)
    async with listening(mosquitto.port) as heard, site.running():
        assert await site.link.publish(topic, b"now", 0, retain=False, expiry_s=60)
        await reached(lambda: (topic, b"now", False) in heard)
    assert (topic, b"lost", False) not in heard


async def test_a_device_that_vanishes_is_said_to_be_offline(mosquitto, outbox, new_proxy, monkeypatch):
    """The will speaks for a device that could not, after its delay; a short absence is no news."""
    monkeypatch.setattr(connection, "WILL_DELAY_S", round(PATIENCE))
    proxy = new_proxy(mosquitto.port)
    site = site_on(proxy.port, outbox)
    async with listening(mosquitto.port) as heard, site.running():
        states = lambda: [payload for topic, payload, _ in heard if topic.endswith("/state")]  # noqa: E731
        proxy.reset_all()
        await reached(lambda: states() == [b"online", b"online"])
        proxy.refuse = True
        proxy.reset_all()
        await reached(lambda: states()[-1] == b"offline")
        proxy.refuse = False
        await reached(lambda: states()[-1] == b"online")
        assert states() == [b"online", b"online", b"offline", b"online"]


async def test_commands_do_not_wait_for_a_delayed_acknowledgement(site):
    """TCP_NODELAY is set on our end: without it a round trip costs 44 ms more."""
    async with site.running():
        door = site.link._open.client.socket()
        assert door.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


async def test_a_lost_link_leaves_no_socket(mosquitto, outbox, new_proxy):
    """However often it reconnects, there is one connection."""
    proxy = new_proxy(mosquitto.port)
    site = site_on(proxy.port, outbox)
    async with site.running():
        before = held(os.getpid(), "socket:")
        for number in range(2, 6):
            proxy.reset_all()
            await reached(lambda wanted=number: site.link.connections >= wanted and site.link.connected)
        await reached(lambda: held(os.getpid(), "socket:") <= before)


async def test_a_broker_that_hangs_up_at_once_is_not_waited_for(outbox, monkeypatch):
    """A connection that ends before it is accepted is tried again at once, not after a timeout."""
    monkeypatch.setattr(connection, "ANSWER_S", 600.0)
    came = []

    async def hang_up(reader, writer):
        came.append(await reader.read(100))
        writer.close()

    async with site_at(hang_up, outbox) as site:
        await reached(lambda: len(came) > 3)
        assert "hung up" in site.link.last_error


@contextlib.asynccontextmanager
async def site_at(serve, outbox):
    """A site whose broker is whatever `serve` does with a connection."""
    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    site = site_on(server.sockets[0].getsockname()[1], outbox)
    async with server, site.running(connected=False):
        yield site


def broker_of(came, properties, said):
    """A broker that welcomes with these properties, and answers what comes next, which it keeps, with `said`."""

    async def serve(reader, writer):
        with contextlib.suppress(ConnectionError):
            await reader.read(1000)
            writer.write(bytes([0x20, 3 + len(properties), 0, 0, len(properties)]) + properties)
            asked = await reader.read(1000)
            came.append(asked)
            writer.write(said.replace(b"NN", asked[3:5]))
            await reader.read(1000)
        writer.close()

    return serve


GRANTED = b"\x90\x08NN\x00" + b"\x01" * 5


@pytest.mark.parametrize(
    "said",
    [
        GRANTED + b"\x31\x06\x00\x02\xff\xfe\x00x",  # a topic that is no text
        GRANTED + b"\x31\x06\x00\x01t\x01\x77x",  # a property that there is none of
        GRANTED + b"\xff" * 9,
        b"\x90\x04NN\x00\x01",  # one answer to five subscriptions
    ],
)
async def test_what_is_no_mqtt_ends_the_connection_alone(outbox, monkeypatch, said):
    """Whatever a broker says, the link is lost at most, told and made anew."""
    monkeypatch.setattr(connection, "ANSWER_S", 600.0)
    came = []
    async with site_at(broker_of(came, b"", said), outbox) as site:
        await reached(lambda: len(came) > 2)
        assert "check the network" in site.link.last_error


@pytest.mark.parametrize("limit", [b"\x21\x00\x00", b"\x27\x00\x00\x00\x00"])
async def test_a_broker_that_says_it_takes_nothing_is_left(outbox, limit):
    """A Receive Maximum or Maximum Packet Size of 0 is no MQTT: what we have to say does not wait for ever."""
    came = []
    async with site_at(broker_of(came, limit, GRANTED), outbox) as site:
        await reached(lambda: len(came) > 2)
        assert "Protocol error" in site.link.last_error


async def test_a_flood_of_commands_waits_at_the_broker(site, mosquitto):
    """No more than RECEIVE_MAXIMUM messages wait here for a slow disk; none is dropped."""
    gate = asyncio.Event()

    async def receive(message):
        if not message.topic.endswith("/state"):
            site.heard.append(message)
            await gate.wait()

    site.link.receive = receive
    async with operator(mosquitto.port) as client, site.running():
        for number in range(60):
            await client.publish(device_topic(DEVICE, f"cmd/c{number}/req"), b"%d" % number, qos=1)
        assert site.link._open.came.qsize() < connection.RECEIVE_MAXIMUM
        gate.set()
        await reached(lambda: len(site.heard) == 60)
    assert [int(message.payload) for message in site.heard] == list(range(60))


async def test_a_black_hole_collects_no_sockets(mosquitto, outbox, new_proxy, monkeypatch):
    """A network that takes connections and answers nothing leaves none of them open."""
    proxy = new_proxy(mosquitto.port)
    site = site_on(proxy.port, outbox)
    async with site.running():
        proxy.blackhole = True
        monkeypatch.setattr(connection, "ANSWER_S", 0.1)
        outbox.put([event(1)], time.time())
        await reached(lambda: proxy.connections > 6)
        await reached(lambda: _sockets_to(proxy.port) <= 1)
        monkeypatch.setattr(connection, "ANSWER_S", ANSWER_S)
        proxy.blackhole = False
        await reached(lambda: site.link.connected and outbox.waiting == 0)


async def test_only_certificates_of_the_fleet_connect(new_broker, outbox, tmp_path):
    """With mTLS the name in the certificate is who we are; a foreign authority, or none, does not get in."""
    ours, theirs = Authority(tmp_path / "ours"), Authority(tmp_path / "theirs")
    cert, key = ours.issue("127.0.0.1")
    secure = new_broker(
        anonymous=False,
        more=f"cafile {ours.ca}\ncertfile {cert}\nkeyfile {key}\nrequire_certificate true\n"
        "use_identity_as_username true\nuse_username_as_clientid true",
    )
    for authority, who, gets_in in ((ours, ours, True), (ours, theirs, False), (theirs, ours, False)):
        device_cert, device_key = who.issue(DEVICE)
        settings = BrokerSettings(
            host="127.0.0.1", port=secure.port, ca=str(authority.ca), cert=str(device_cert), key=str(device_key)
        )
        site = Site(settings, outbox)
        async with site.running(connected=gets_in):
            if not gets_in:
                await reached(lambda one=site: one.link.last_error not in {"", "not connected yet"})
            assert site.link.connected == gets_in


async def test_a_missing_certificate_is_named(outbox, mosquitto, tmp_path):
    """A file that cannot be read is named, with where to correct it."""
    site = Site(BrokerSettings(host="127.0.0.1", port=mosquitto.port, ca=str(tmp_path / "none.pem")), outbox)
    async with site.running(connected=False):
        await reached(lambda: "none.pem" in site.link.last_error and "agent.yaml" in site.link.last_error)


@pytest.mark.parametrize(
    "settings",
    [{"host": "x", "cert": "a"}, {"host": "x", "tls": False, "ca": "a"}, {"host": "x", "port": 0}, {"hots": "x"}],
)
def test_settings_that_do_not_fit_together_are_refused(settings):
    """A mistake in agent.yaml is found when it is read."""
    with pytest.raises(InputError, match=r"agent\.yaml"):
        from_tree(BrokerSettings, settings, "agent.yaml")


ROOT_STATE = device_topic(DEVICE, "state")


async def _ended(task):
    """aiomqtt may swallow a cancellation while it says goodbye: it is asked until it has gone."""
    while not task.done():
        task.cancel()
        await asyncio.wait({task}, timeout=1)


def _sockets_to(port):
    return sum(one.status == "ESTABLISHED" and one.raddr.port == port for one in psutil.Process().net_connections())


def _numbers(heard):
    """The events in the order of their first arrival."""
    return list(dict.fromkeys(int(payload) for topic, payload, _ in heard if topic.endswith("evt/test")))


async def _chaos(proxy, mosquitto, crashes, rounds=10):
    chance = random.Random(7)
    for number in range(rounds):
        await asyncio.sleep(chance.uniform(0.1, 0.4))
        if number % 3 == 2 and number // 3 < crashes:
            await asyncio.to_thread(mosquitto.restart)
        elif number == rounds // 2:
            proxy.blackhole = True
            await asyncio.sleep(1.0)
            proxy.blackhole = False
            await asyncio.to_thread(proxy.reset_all)
        else:
            await asyncio.to_thread(proxy.reset_all)


async def _order(port, sent):
    """Sends commands, every third one twice; what the broker acknowledged counts as sent."""
    number = 0
    while True:
        with contextlib.suppress(aiomqtt.MqttError):
            async with operator(port, timeout=2) as client:
                while True:
                    for _ in range(2 if number % 3 == 0 else 1):
                        await _command(client, f"c{number}")
                    sent.add(f"c{number}")
                    number += 1
                    await asyncio.sleep(0.03)
        await asyncio.sleep(0.05)


async def _command(client, command):
    topic = device_topic(DEVICE, f"cmd/{command}/req")
    await client.publish(topic, json.dumps({"id": command}).encode(), qos=1)


async def test_two_of_one_name_meet_ever_more_rarely(mosquitto, tmp_path, monkeypatch):
    """A copy of a device puts it out, and it the copy: the time until they meet again doubles."""
    bounds = []
    monkeypatch.setattr(backoff.random, "uniform", lambda _, bound: bounds.append(bound) or min(bound, 0.3))
    outboxes = [Outbox(tmp_path / f"{name}.db") for name in "ab"]
    settings = BrokerSettings(host="127.0.0.1", port=mosquitto.port, tls=False)
    one, other = Site(settings, outboxes[0], b"1"), Site(settings, outboxes[1], b"2")
    async with one.running(), other.running():
        await reached(lambda: max(bounds, default=0) >= 2 * broker.LONGEST_WAIT_S, what="they wait longer than ever")
    assert sorted(set(bounds)) == [broker.FIRST_WAIT_S * 2**lost for lost in range(len(set(bounds)))]
    for outbox in outboxes:
        outbox.close()
