"""The desk's connection, against a real broker."""

import threading
from contextlib import nullcontext

import pytest

from agent.core.documents import to_json
from agent.core.errors import InputError, TransferError
from agent.core.intent import COMMAND_TYPE, Command, Reply
from agent.trust.envelope import open_envelope, parse_signed
from fleet import cli
from fleet.broker import Broker, broker_at
from tests.fleet.desk import NEW


def url(broker):
    return f"mqtt://{broker.host}:{broker.port}"


class Device(threading.Thread):
    """Answers every command it is sent with these replies."""

    def __init__(self, broker, name, *replies):
        super().__init__(daemon=True)
        self.link = Broker(broker_at(url(broker)))
        self.name_, self.replies, self.commands, self.ready = name, replies, [], threading.Event()

    def run(self):
        with self.link as link:
            link.subscribe(f"edge/v1/{self.name_}/cmd/+/req", "edge/v1/groups/g1/cmd/+/req")
            self.ready.set()
            for topic, payload in link.messages(20):
                self.commands.append(payload)
                command_id = topic.split("/")[-2]
                for status in self.replies:
                    link.publish(
                        f"edge/v1/{self.name_}/cmd/{command_id}/res",
                        to_json(Reply(id=command_id, status=status, reason="so")),
                    )
                return

    def __enter__(self):
        self.start()
        assert self.ready.wait(10)
        return self

    def __exit__(self, *_):
        self.join(20)


def command(desk, broker, *words):
    return cli.main(["command", *words, "--keys", str(desk.keyring.folder), "--broker", url(broker)])


def test_a_deployment_waits_retained_for_late_devices(desk, mosquitto):
    """Whoever subscribes later gets what stands now, as it was signed."""
    desk.publish(NEW)
    options = ["--store", f"file://{desk.store.root}", "--keys", str(desk.keyring.folder), "--broker", url(mosquitto)]
    assert cli.main(["rollout", "--group", "g1", "--release", NEW, *options]) == 0
    with Broker(broker_at(url(mosquitto))) as late:
        late.subscribe("edge/v1/groups/g1/deployment")
        topic, payload = next(late.messages(10))
    assert topic == "edge/v1/groups/g1/deployment"
    assert payload == desk.load().read("deployments/g1.json", 1 << 20)


def test_a_command_reaches_its_device_and_its_replies_the_desk(desk, mosquitto, capsys):
    """The request is signed for the device; `--wait` shows every reply until the last word."""
    with Device(mosquitto, "cam-7", "accepted", "done") as device:
        assert command(desk, mosquitto, "pin", "--device", "cam-7", "--slot", "face", "--release", NEW, "--wait") == 0
    targets = desk.repository.targets.signed
    payload = open_envelope(device.commands[0], COMMAND_TYPE, "operators", targets, 1 << 14).payload
    sent = parse_signed(Command, payload, "command")
    assert (sent.scope, sent.verb, sent.slot, sent.release) == ("device:cam-7", "pin", "face", NEW)
    said = capsys.readouterr().out
    assert said.index("accepted") < said.index("done")


@pytest.mark.parametrize("word", ["failed", "rejected", "expired"])
def test_a_command_that_fails_is_an_error_at_the_desk(desk, mosquitto, capsys, word):
    """Scripts see it in the exit code."""
    with Device(mosquitto, "cam-7", "accepted", word):
        assert command(desk, mosquitto, "sync", "--device", "cam-7", "--wait") == 1
    assert f"ended as {word}: so" in capsys.readouterr().err


def test_a_command_for_a_group_goes_to_the_group(desk, mosquitto):
    """Every device of a group hears the group's topic."""
    with Device(mosquitto, "cam-8") as device:
        assert (
            cli.main(["rollback", "--group", "g1", "--keys", str(desk.keyring.folder), "--broker", url(mosquitto)]) == 0
        )
    assert len(device.commands) == 1


@pytest.mark.parametrize(
    ("whom", "replies", "answer"),
    [
        (("--device", "cam-7"), ["accepted"], "device:cam-7: no last word within"),
        (("--device", "cam-9"), [], "device:cam-9: nobody answered within"),
        (("--group", "g2"), [], "group:g2: nobody answered within"),
    ],
)
def test_a_silent_device_is_told_of(desk, mosquitto, capsys, monkeypatch, whom, replies, answer):
    """No answer is not a success; what is waited for is said at once, and where to look at the end."""
    monkeypatch.setattr(cli, "REPLY_S", 2.0 if replies else 0.2)
    with Device(mosquitto, "cam-7", *replies) if replies else nullcontext():
        assert command(desk, mosquitto, "sync", *whom, "--wait") == 1
    said = capsys.readouterr()
    assert "s at most for" in said.out
    assert answer in said.err
    assert "`edge-fleet watch`" in said.err


def test_a_refused_publish_is_an_error(tmp_path, new_broker):
    """The broker says no in an acknowledgement that clients like to ignore."""
    (tmp_path / "acl").write_text("topic read edge/#\n")
    broker = new_broker(more=f"acl_file {tmp_path / 'acl'}")
    with Broker(broker_at(url(broker))) as link, pytest.raises(TransferError, match="refuses to publish"):
        link.publish("edge/v1/groups/g1/deployment", b"x", retain=True)


def test_a_refused_connection_is_an_error(new_broker):
    """Wrong credentials are answered in a sentence."""
    broker = new_broker(anonymous=False)
    with pytest.raises(TransferError, match="refuses to connect"), Broker(broker_at(url(broker))):
        pass


def test_watching_shows_what_is_retained(mosquitto, capsys):
    """A desk that comes late sees every device."""
    with Broker(broker_at(url(mosquitto))) as device:
        device.publish("edge/v1/cam-7/state", b'{"state": "online"}', retain=True)
    assert cli.main(["watch", "--broker", url(mosquitto), "--for", "2"]) == 0
    assert "cam-7" in capsys.readouterr().out


@pytest.mark.parametrize(
    "text", ["", "http://x", "mqtt://", "mqtt://x:y", "mqtt://x:99999", "mqtt://x/topic", "mqtt://x:0"]
)
def test_a_url_that_is_no_broker_is_refused(text):
    """What can be typed wrongly is answered with what to type."""
    with pytest.raises(InputError, match=r"mqtt|broker x"):
        broker_at(text)


def test_a_url_says_everything():
    """Host, port, TLS and credentials."""
    settings = broker_at("mqtts://desk:p%40ss@broker.example")
    assert (settings.host, settings.port, settings.tls) == ("broker.example", 8883, True)
    assert (settings.username, settings.password) == ("desk", "p@ss")
