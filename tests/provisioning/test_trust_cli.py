"""Keys, roles and trust on the command line: what is said when it works, and when it is used wrongly."""

import re
from datetime import timedelta

import pytest

from fleet import terminal
from provisioning import cli
from tests.provisioning.estate import NOW, Estate


@pytest.fixture(autouse=True)
def clock(monkeypatch):
    """An hour after the estate began."""
    monkeypatch.setattr(terminal, "now", lambda: NOW + timedelta(hours=1))


@pytest.fixture(scope="module")
def used(tmp_path_factory):
    """An estate whose root and targets keys lie in a safe, for tests that change nothing."""
    estate = Estate(tmp_path_factory.mktemp("estate"))
    estate.lock_away("safe", *(f"{role}-{n}.pem" for role in ("root", "targets") for n in (1, 2, 3)))
    return estate


def test_the_whole_way_of_a_key(estate, capsys):
    """From a key of a holder elsewhere to one that counts, as each command's help says."""
    assert estate.provision("trust", "show") == 0
    assert re.search(r"releases .* list releases/\*", capsys.readouterr().out)
    assert cli.main(["keys", "add", "releases", "--keys", str(estate.keyring.folder)]) == 0
    keyid = re.search(r"key ([0-9a-f]{16}) is in", capsys.readouterr().out)[1]
    assert estate.provision("keys", "rotate", "releases", "--to", keyid) == 0
    assert (
        estate.provision("role", "add", "face", "--paths", "releases/face_*", "--threshold", "1", "--keys-count", "2")
        == 0
    )
    assert estate.provision("trust", "show") == 0
    said = capsys.readouterr()
    assert keyid in said.out
    assert "releases/face_*" in said.out
    assert "!" not in said.err
    (first, second) = estate.keyids("face")
    assert estate.provision("keys", "revoke", "face", first[:8]) == 0
    assert estate.provision("keys", "renew", "root") == 0
    assert estate.keyids("face") == [second]
    assert estate.provision("role", "remove", "face") == 0
    assert cli.main(["keys", "show", str(estate.keyring.folder)]) == 0
    assert "releases-2.pem" in capsys.readouterr().out


def test_what_others_must_sign_is_told_with_the_commands(estate, capsys):
    """Exit 3, and the two commands that finish it do, as they are printed; a holder sees what is signed."""
    safe = estate.lock_away("safe", *(f"targets-{n}.pem" for n in (1, 2, 3)))
    assert estate.provision("keys", "rotate", "releases") == 3
    said = capsys.readouterr().err
    sign, done = re.findall(r"`edge-provision (keys (?:sign|finish)[^`]*)`", said)
    assert cli.main(sign.replace("FOLDER", str(safe)).split()) == 0
    shown = capsys.readouterr().out
    assert "targets 2, good until" in shown
    assert "3 new signatures" in shown
    assert estate.provision(*done.removesuffix(" ...").split()) == 0
    assert "targets: published" in capsys.readouterr().out


WRONG = [
    (["keys", "rotate", "relases"], "role relases: there is none (there are root, targets"),
    (["keys", "rotate", "releases", "snapshot", "--old", "ab"], "--old and --to belong to one role"),
    (["keys", "rotate", "releases", "--to", "abcd"], "key 'abcd': 0 of the role's keys begin so (they are: "),
    (["keys", "rotate", "root", "--old", ""], "key '': 0 of"),
    (["keys", "revoke", "releases", "zz"], "key 'zz': 0 of the role's keys begin so"),
    (["keys", "revoke", "releases", ""], "key '': 0 of"),
    (["keys", "revoke", "team", "ab"], "role team: there is none"),
    (["keys", "renew", "operators"], "it lists nothing that could expire"),
    (["keys", "renew", "nobody"], "role nobody: there is none"),
    (["keys", "finish", "/nowhere/2.root.json"], "name a file that a command left in pending/"),
    (["role", "add", "face", "--paths", "face_*"], "write 'releases/PREFIX*'"),
    (
        ["role", "add", "face", "--paths", "releases/face_*", "--threshold", "3", "--keys-count", "2"],
        "3 of 2 keys cannot sign",
    ),
    (["role", "add", "face", "--paths", "releases/face_*", "--threshold", "0"], "0 of 0 keys cannot sign"),
    (["role", "remove", "releases"], "every repository needs it"),
    (["role", "remove", "nobody"], "role nobody: there is none"),
]


@pytest.mark.parametrize(
    ("words", "answer"), WRONG, ids=lambda value: " ".join(value)[:40] if isinstance(value, list) else ""
)
def test_a_wrong_use_is_one_useful_line(used, capsys, words, answer):
    """What was wrong, and what can be done; nothing changes in the store."""
    before = used.copy()
    assert used.provision(*words) in {2, 3}
    said = capsys.readouterr().err.strip()
    assert answer in said
    assert "\n" not in said
    assert used.copy() == before


@pytest.mark.parametrize(
    ("words", "answer"),
    [
        (["keys", "init", "{new}", "--encrypt"], "a passphrase is needed: set EDGE_KEY_PASSPHRASE"),
        (["keys", "init", "{keys}"], "keys are never overwritten"),
        (["keys", "init", "/proc/keys"], "choose another folder"),
        (["keys", "add", "a/b", "--keys", "{keys}"], "role 'a/b'"),
        (["keys", "add", "root", "--uri", "pkcs11:x", "--keys", "{keys}"], "write hsm:ID?label=TOKEN"),
        (["keys", "add", "root", "--public", "/etc/hostname", "--keys", "{keys}"], "/etc/hostname: not a public key"),
        (["keys", "sign", "/etc/hostname", "--keys", "{keys}"], "/etc/hostname: this is not valid JSON"),
        (["keys", "sign", "/nowhere", "--keys", "{keys}"], "name a file that a command left in pending/"),
        (["keys", "show", "/nowhere"], "make one with `edge-provision keys init`"),
        (["trust", "show", "--store", "file:///nowhere", "--keys", "{keys}"], "check the store's URL"),
        (["trust", "show", "--store", "nowhere", "--keys", "{keys}"], "write s3://bucket/prefix"),
        (["trust", "show", "--store", "file:///nowhere", "--keys", "/nowhere"], "root.json: No such file"),
    ],
)
def test_a_wrong_folder_or_file_is_one_useful_line(used, tmp_path, capsys, monkeypatch, words, answer):
    """Whatever the user points to."""
    monkeypatch.delenv("EDGE_KEY_PASSPHRASE", raising=False)
    monkeypatch.setattr("sys.stdin.isatty", lambda: False, raising=False)
    places = {"keys": used.keyring.folder, "new": tmp_path / "new"}
    assert cli.main([word.format(**places) for word in words]) in {1, 2}
    said = capsys.readouterr().err.strip()
    assert answer in said
    assert "\n" not in said
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    "words", [["keys"], ["keys", "rotate"], ["keys", "add"], ["role", "add", "x"], ["trust"], ["trust", "hide"]]
)
def test_a_missing_word_is_answered_with_the_right_ones(capsys, words):
    """The usage says what can be typed."""
    with pytest.raises(SystemExit) as left:
        cli.main(words)
    assert left.value.code == 2
    assert "usage: edge-provision" in capsys.readouterr().err
