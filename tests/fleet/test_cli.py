"""The operator's command line: what it does, and how it answers mistakes."""

import sys
from datetime import timedelta
from types import SimpleNamespace

import pytest

from agent.core.errors import InputError
from fleet import cli, terminal
from fleet.repository import Repository
from tests.fleet.desk import NEW, NOW, checked


@pytest.fixture
def models(monkeypatch, tmp_path):
    """A models folder that holds one good release; EDGE_MODELS names it."""
    monkeypatch.setenv("EDGE_MODELS", str(tmp_path))

    def check_release(folder, name):
        if name != NEW or folder != tmp_path:
            raise InputError(f"{name}: no weights in {folder}")
        return checked(name)

    monkeypatch.setitem(sys.modules, "models.check", SimpleNamespace(check_release=check_release))


def fleet(desk, *words):
    return cli.main([*words, "--store", f"file://{desk.store.root}", "--keys", str(desk.keyring.folder)])


def test_a_release_is_published_and_listed(desk, models, capsys):
    """Two commands, and every group can read it; no bar is drawn where nobody would see it move."""
    assert fleet(desk, "publish", NEW) == 0
    assert fleet(desk, "list") == 0
    said = capsys.readouterr()
    assert f"published {NEW} for g1 (epoch 1): sha256 {desk.load().ref(NEW).digest}" in said.out
    assert "timestamp: " in said.out
    assert said.err == ""


def test_a_rollout_takes_its_slot_from_the_release(desk, models, capsys):
    """The release's task is the slot that it was made for."""
    fleet(desk, "publish", NEW)
    assert fleet(desk, "rollout", "--group", "g1", "--release", NEW, "--share", "0.1") == 0
    assert fleet(desk, "wave", "run", "--group", "g1", "--share", "1") == 0
    assert "face_detection moves to" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "answer"),
    [
        (["publish", "nope"], "no weights"),
        (["publish", NEW, "--group", "g9"], "no keys of the group g9"),
        (["rollout", "--group", "g1", "--release", NEW], "not published here"),
        (["rollout", "--group", "../g", "--release", NEW], "not published here"),
        (["wave", "halt", "--group", "g1"], "nothing is deployed"),
        (["wave", "halt", "--group", "a/b"], "group 'a/b'"),
    ],
)
def test_a_users_mistake_is_one_sentence(desk, models, capsys, words, answer):
    """Exit 2, one line on standard error, no trace."""
    assert fleet(desk, *words) == 2
    said = capsys.readouterr().err.strip()
    assert said.startswith("error: ")
    assert answer in said
    assert "\n" not in said


@pytest.mark.parametrize(
    "words", [["dance"], ["rollout"], ["command", "sync"], ["command", "sync", "--device", "a", "--group", "b"], []]
)
def test_a_wrong_word_is_answered_with_the_right_ones(capsys, words):
    """The usage says what can be typed."""
    with pytest.raises(SystemExit) as left:
        cli.main(words)
    assert left.value.code == 2
    assert "usage: edge-fleet" in capsys.readouterr().err


def test_a_release_belongs_to_a_pin_alone(desk, capsys):
    """A command can never name what to run, except to pin a release that was confirmed."""
    words = ["command", "sync", "--device", "cam-7", "--release", NEW, "--broker", "mqtt://127.0.0.1:1"]
    assert cli.main([*words, "--keys", str(desk.keyring.folder)]) == 2
    assert "only pin does" in capsys.readouterr().err


def test_a_store_that_is_away_is_no_mistake(desk, capsys):
    """Exit 1: try again later."""
    assert cli.main(["list", "--store", f"file://{desk.folder}/nowhere", "--keys", str(desk.keyring.folder)]) == 1
    assert "check the store's URL" in capsys.readouterr().err


def test_a_refresh_is_silent_where_all_is_well(desk, capsys):
    """Cron sends mail for every word."""
    assert fleet(desk, "refresh") == 0
    assert capsys.readouterr() == ("", "")


def test_a_refresh_says_what_it_could_not_renew(desk, capsys, monkeypatch):
    """The root is somebody else's to sign; whoever reads cron's mail hears of it in time."""
    monkeypatch.setattr(terminal, "now", lambda: NOW + timedelta(days=360))
    assert fleet(desk, "refresh") == 0
    said = capsys.readouterr()
    assert "root metadata expires within 7 d" in said.err
    assert said.out == ""


def test_a_refresh_needs_the_online_keys_alone(desk, capsys):
    """The renewing machine holds snapshot and timestamp; a missing one is one line and exit 2."""
    for path in (desk.keyring.folder / "roles").iterdir():
        if not path.name.startswith(("snapshot", "timestamp")):
            path.unlink()
    before = desk.device().chain.timestamp.version
    assert fleet(desk, "refresh") == 0
    assert desk.device().chain.timestamp.version == before + 1
    (desk.keyring.folder / "roles/timestamp-1.pem").unlink()
    assert fleet(desk, "refresh") == 2
    assert "no key of the role timestamp" in capsys.readouterr().err


def test_a_refresh_that_another_desk_overtook_runs_again(desk, capsys, monkeypatch):
    """Two desks at one moment are no reason for a mail."""
    true = Repository.refresh

    def overtaken(repository, now):
        monkeypatch.setattr(Repository, "refresh", true)
        true(desk.load(), now)
        true(repository, now)

    monkeypatch.setattr(Repository, "refresh", overtaken)
    before = desk.device().chain.timestamp.version
    assert fleet(desk, "refresh") == 0
    assert desk.device().chain.timestamp.version == before + 2


@pytest.mark.parametrize("option", ["--device", "--group"])
def test_a_name_that_is_empty_is_told(tmp_path, capsys, option):
    """As that of a variable that is not set: a sentence, and nothing is sent."""
    words = ["command", "rollback", option, "", "--keys", str(tmp_path), "--broker", "mqtt://127.0.0.1:1"]
    assert cli.main(words) == 2
    assert f"{option[2:]} ''" in capsys.readouterr().err


def test_words_are_shown_as_they_are(capsys):
    """No picture in place of a path that holds a word between colons."""
    terminal.say("file:///srv/:fire:/store")
    terminal.warn("awskms:x: You")
    shown = capsys.readouterr()
    assert (shown.out, shown.err) == ("file:///srv/:fire:/store\n", "! awskms:x: You\n")


def test_a_broker_that_is_away_is_told_with_what_stands(desk, models, capsys):
    """The rollout is in the store by then: who repeats it would lose the way back, and is told so."""
    assert fleet(desk, "publish", NEW, "--group", "g1") == 0
    assert fleet(desk, "rollout", "--group", "g1", "--release", NEW, "--broker", "mqtt://127.0.0.1:1") == 1
    assert "it stands in the store all the same" in capsys.readouterr().err
    assert fleet(desk, "rollout", "--group", "g1", "--release", NEW) == 0
    assert "nothing moves" in capsys.readouterr().out
