"""agent.yaml: the example says all of it and is true, and a mistake is answered with its key and what to do."""

from pathlib import Path

import pytest
import yaml
from cryptography.hazmat.primitives.asymmetric import ec
from msgspec import NODEFAULT
from msgspec.structs import fields

from agent.adapters.broker import BrokerSettings
from agent.core.errors import InputError
from agent.daemon.keyring import read_key
from agent.daemon.settings import RunnerSettings, Settings, SlotSettings, StoreSettings, read_settings
from provisioning.keys import private_pem

EXAMPLE = Path(__file__).parents[2] / "docs/agent.example.yaml"
EXAMPLES = {"endpoint", "ca", "cert", "key", "start"}  # their comments say that the value is an example
LEAST = {
    "device": "cam-7", "group": "line-1", "root": "root.json", "device_key": "device.key", "store": {"url": "file:///s"},
}  # fmt: skip


def section(*path):
    tree = yaml.safe_load(EXAMPLE.read_bytes())
    for step in path:
        tree = tree[step]
    return tree


SECTIONS = [
    ((), Settings),
    (("store",), StoreSettings),
    (("broker",), BrokerSettings),
    (("runner",), RunnerSettings),
    (("slots", "defect_detection"), SlotSettings),
]


def written(tmp_path, tree):
    path = tmp_path / "agent.yaml"
    path.write_text(yaml.safe_dump(tree))
    return path


def test_the_example_is_a_valid_file():
    """Whoever copies the example has a file that is read."""
    settings = read_settings(EXAMPLE)
    assert settings.device == "cam-7"
    assert settings.runner.start == "never", "under systemd the runner is a unit of its own"


@pytest.mark.parametrize(("path", "form"), SECTIONS, ids=lambda one: getattr(one, "__name__", None))
def test_the_example_names_every_key(path, form):
    """No key is there that the example does not explain."""
    assert {one.encode_name for one in fields(form)} == set(section(*path))


@pytest.mark.parametrize(("path", "form"), SECTIONS[1:], ids=lambda one: getattr(one, "__name__", None))
def test_the_example_shows_the_defaults(path, form):
    """The value shown is what counts where the key is left out."""
    shown = section(*path)
    optional = [one for one in fields(form) if one.default is not NODEFAULT and one.name not in EXAMPLES]
    assert {one.name: shown[one.name] for one in optional} == {one.name: one.default for one in optional}


def test_what_is_left_out_has_the_values_of_the_example(tmp_path):
    """As above, for the keys at the top."""
    settings, shown = read_settings(written(tmp_path, LEAST)), section()
    for key in ("state_folder", "run_folder", "health_s", "fps_s"):
        assert getattr(settings, key) == shown[key]
    assert settings.broker is None
    assert settings.slot("any") == SlotSettings(**section("slots", "defect_detection"))


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("device: a\ndevice: b\n", "agent.yaml: device stands twice, again in line 2: leave one"),
        ("store:\n  url: file:///s\n  poll_s: 5\n  poll_s: 9\n", "store.poll_s stands twice, again in line 4"),
        ("slots:\n  a: {}\n  b: {}\n  a: {hold_s: 3}\n", "slots.a stands twice, again in line 4"),
    ],
)
def test_a_key_that_stands_twice_is_refused(tmp_path, text, answer):
    """Of two values of one key nobody knows which was meant; YAML's reader would take the last."""
    path = tmp_path / "agent.yaml"
    path.write_text(text)
    with pytest.raises(InputError) as told:
        read_settings(path)
    assert answer in str(told.value)


@pytest.mark.parametrize(
    ("change", "answer"),
    [
        ({"colour": "red"}, "unknown field `colour`"),
        ({"slots": {"a": {"hold_s": float("inf")}}}, "hold_s"),
        ({"store": {"url": "file:///s", "polls": 3}}, "unknown field `polls` - at `$.store`"),
        ({"store": {"url": "ftp://x"}}, "at `$.store.url`"),
        ({"store": {"url": "file:///s", "poll_s": 0}}, "at `$.store.poll_s`"),
        (
            {"store": {"url": "s3://b", "links": {"wwan*": {"budget": 3}}}},
            "unknown field `budget` - at `$.store.links[...]`",
        ),
        ({"store": {"url": "s3://b", "links": {"wwan*": {"window": "1-5"}}}}, "at `$.store.links[...].window`"),
        ({"store": {"url": "s3://b", "links": {"wwan*": {"window": "23:00-24:00"}}}}, "window"),
        ({"import_folder": "drop"}, "at `$.import_folder`"),
        ({"device": "cam/7"}, "at `$.device`"),
        ({"device": None}, "at `$.device`"),
        ({"broker": {"host": "h", "cert": "c.pem"}}, "`cert` and `key` go together"),
        ({"broker": {"host": "h", "tls": False, "ca": "ca.pem"}}, "`tls: false` with certificates"),
        ({"broker": {"host": "h", "port": 70000}}, "at `$.broker.port`"),
        ({"runner": {"start": "always"}}, "at `$.runner.start`"),
        ({"runner": {"tcp": "0.0.0.0:8000"}}, "runner.tcp: 0.0.0.0:8000: give a loopback address"),
        ({"runner": {"grpc": "127.0.0.1"}}, "runner.grpc: 127.0.0.1: give a loopback address"),
        ({"runner": {"grpc": "127.0.0.1:999999"}}, "and a port"),
        ({"slots": {"defect_detection": {"swap": "gently"}}}, "swap"),
    ],
)
def test_a_wrong_key_is_named(tmp_path, change, answer):
    """A typing mistake never switches anything off in silence."""
    path = written(tmp_path, LEAST | change)
    with pytest.raises(InputError) as caught:
        read_settings(path)
    assert answer in str(caught.value)
    assert str(path) in str(caught.value)


def test_a_key_that_is_needed_is_named(tmp_path):
    """A file that lacks one says which."""
    with pytest.raises(InputError, match="missing required field `store`"):
        read_settings(written(tmp_path, {key: value for key, value in LEAST.items() if key != "store"}))


@pytest.mark.parametrize("content", [b"device: [", b"\xff\xfe\x00", b"just words"])
def test_a_file_that_is_no_settings_is_refused(tmp_path, content):
    """Half a file, another encoding, another kind of file."""
    path = tmp_path / "agent.yaml"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"agent\.yaml"):
        read_settings(path)


def test_a_missing_file_says_what_to_do(tmp_path):
    """The next step stands in the message."""
    with pytest.raises(InputError, match=r"edge-provision device enrol.*agent\.example\.yaml"):
        read_settings(tmp_path / "agent.yaml")


@pytest.fixture
def key(tmp_path):
    path = tmp_path / "device.key"
    path.write_bytes(private_pem(ec.generate_private_key(ec.SECP256R1())))
    path.chmod(0o600)
    return path


@pytest.mark.parametrize("mode", [0o604, 0o620, 0o602, 0o666])
def test_a_key_that_others_can_read_or_change_is_refused(key, mode):
    """The message names the mode and its cure."""
    key.chmod(mode)
    with pytest.raises(InputError, match=rf"mode {mode:o}.*chmod 600"):
        read_key(key)


@pytest.mark.parametrize("mode", [0o600, 0o400, 0o440, 0o640])
def test_a_key_of_the_services_group_is_taken(key, mode):
    """Root owns it and the service's group reads it; a systemd credential may have 0440."""
    key.chmod(mode)
    assert read_key(key).key_size == 256


def test_a_key_of_another_kind_is_refused(key):
    """A P-384 key, or no key at all."""
    key.write_bytes(private_pem(ec.generate_private_key(ec.SECP384R1())))
    with pytest.raises(InputError, match="no P-256 key"):
        read_key(key)
    key.write_bytes(b"-----BEGIN NOTHING-----")
    with pytest.raises(InputError, match="no private key in PEM"):
        read_key(key)
    key.unlink()
    with pytest.raises(InputError, match="enrol the device"):
        read_key(key)
