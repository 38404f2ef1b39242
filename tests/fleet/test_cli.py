"""The operator's command line: what it does, and how it answers mistakes."""

import sys
from types import SimpleNamespace

import pytest

from agent.core.errors import InputError
from fleet import cli
from tests.fleet.desk import NEW, checked


@pytest.fixture
def models(monkeypatch):
    """A models folder that holds one good release."""

    def check_release(folder, name):
        if name != NEW:
            raise InputError(f"{name}: no weights in {folder}")
        return checked(name)

    monkeypatch.setitem(sys.modules, "models.check", SimpleNamespace(check_release=check_release))


def fleet(desk, *words):
    return cli.main([*words, "--store", f"file://{desk.store.root}", "--keys", str(desk.keyring.folder)])


def test_a_release_is_published_and_listed(desk, models, capsys):
    """Two commands, and every group can read it."""
    assert fleet(desk, "publish", NEW) == 0
    assert fleet(desk, "list") == 0
    said = capsys.readouterr().out
    assert f"published {NEW} for g1 (epoch 1): sha256 {desk.load().ref(NEW).digest}" in said
    assert "timestamp: " in said


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


def test_a_refresh_says_what_expires_next(desk, capsys):
    """So that a timer can be set by it."""
    assert fleet(desk, "refresh") == 0
    assert "timestamp" in capsys.readouterr().out
