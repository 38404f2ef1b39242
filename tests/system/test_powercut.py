"""`make powercut` is run by hand; what it says where it cannot run is tried here."""

from tests.system.powercut import __main__ as powercut


def test_what_is_missing_is_named_with_the_command_that_brings_it(monkeypatch, capsys, tmp_path):
    """Exit 2 and one line, before anything is made."""
    monkeypatch.setattr(powercut, "MODULES", tmp_path / "none")
    monkeypatch.setattr(powercut, "NEEDED", {"no-such-program": "dmsetup"})
    assert powercut.main() == 2
    assert capsys.readouterr().err == (
        "missing: dmsetup, user-mode-linux. As root: apt-get install -y dmsetup user-mode-linux\n"
    )
