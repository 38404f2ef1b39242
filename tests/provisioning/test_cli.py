"""From nothing to an enrolled device on the command line, and how mistakes are answered."""

import stat

import pytest
import yaml

from agent.daemon.settings import read_settings
from provisioning import cli


@pytest.fixture
def desk(tmp_path):
    """A folder with keys, a group and a repository."""
    assert cli.main(["keys", "init", str(tmp_path / "keys")]) == 0
    assert cli.main(["group", "init", "g1", "--keys", str(tmp_path / "keys")]) == 0
    (tmp_path / "store").mkdir()
    assert provision(tmp_path, "store", "init") == 0
    return tmp_path


def provision(folder, *words):
    return cli.main([*words, "--store", f"file://{folder}/store", "--keys", str(folder / "keys")])


def test_an_enrolment_folder_is_ready_to_run(desk):
    """The agent reads its settings, and everything it writes stays inside the folder."""
    words = [
        "device",
        "enrol",
        "cam-7",
        "--group",
        "g1",
        "--out",
        str(desk / "out"),
        "--broker",
        "mqtt://127.0.0.1:1883",
    ]
    assert provision(desk, *words) == 0
    settings = read_settings(desk / "out/agent.yaml")
    assert (settings.device, settings.group, settings.store.url) == ("cam-7", "g1", f"file://{desk}/store")
    assert (settings.broker.host, settings.broker.port, settings.broker.tls) == ("127.0.0.1", 1883, False)
    assert str(settings.state).startswith(str(desk / "out"))
    assert stat.S_IMODE((desk / "out/device.key").stat().st_mode) == 0o600


def test_an_enrolment_for_another_place_names_that_place(desk):
    """Settings that are copied to a device point to where they will lie."""
    words = ["device", "enrol", "cam-7", "--group", "g1", "--out", str(desk / "out"), "--installed", "/etc/edge-agent"]
    assert provision(desk, *words) == 0
    settings = yaml.safe_load((desk / "out/agent.yaml").read_bytes())
    assert (settings["root"], settings["device_key"]) == ("/etc/edge-agent/root.json", "/etc/edge-agent/device.key")
    assert "state_folder" not in settings
    assert settings["runner"] == {"start": "never"}, "the installed runner is a service of its own"


def test_keys_are_shown_without_their_secrets(desk, capsys):
    """Ids and counts; never a private key."""
    assert cli.main(["keys", "show", str(desk / "keys")]) == 0
    said = capsys.readouterr().out
    assert "operators-critical" in said
    assert "PRIVATE" not in said


@pytest.mark.parametrize(
    ("words", "answer"),
    [
        (["store", "init"], "holds a repository already"),
        (["device", "enrol", "cam/7", "--group", "g1", "--out", "x"], "device 'cam/7'"),
        (["device", "enrol", "cam-7", "--group", "g2", "--out", "x"], "no keys of the group g2"),
        (["device", "enrol", "cam-7", "--group", "g1", "--out", "x", "--public-key", "/nowhere"], "/nowhere"),
        (["device", "enrol", "cam-7", "--group", "g1", "--out", "x", "--broker", "tcp://x"], "not a broker"),
    ],
)
def test_a_users_mistake_is_one_sentence(desk, capsys, monkeypatch, words, answer):
    """Exit 2, one line on standard error, no trace."""
    monkeypatch.chdir(desk)
    assert provision(desk, *words) == 2
    said = capsys.readouterr().err.strip()
    assert answer in said
    assert "\n" not in said


def test_keys_are_not_made_twice(desk, capsys):
    """The second time is an error, and the first keys stay."""
    assert cli.main(["keys", "init", str(desk / "keys")]) == 2
    assert "never overwritten" in capsys.readouterr().err
    assert cli.main(["keys", "show", str(desk / "nowhere")]) == 2
