"""Attacks and faults on commands; each gets its own answer."""

import pytest
from securesystemslib.signer import CryptoSigner

from agent.core.intent import Command, Verb
from agent.trust.command import believe_command, floor_key
from tests.trust.keys import MINUTE, NOW


def answer(desk, raw, floors=None, now=NOW):
    return believe_command(raw, desk.targets, "cam-7", "g1", floors or {}, now)


def refused(got, status, word):
    return not isinstance(got, Command) and got.status == status and word in got.reason


@pytest.mark.parametrize("scope", ["device:cam-7", "group:g1"])
def test_a_command_for_this_device_is_believed(desk, scope):
    """Device and group scopes both reach it."""
    assert answer(desk, desk.command(scope=scope)).verb is Verb.SYNC


@pytest.mark.parametrize("raw", [b"", b"{}", b"null", b"[" * 9000, b"\xff\xfe"])
def test_garbage_is_rejected(desk, raw):
    """Whatever bytes come, the answer is a refusal and never a crash."""
    assert refused(answer(desk, raw), "rejected", "operators envelope")


def test_an_oversized_command_is_rejected(desk):
    """The length limit comes first."""
    assert refused(answer(desk, b" " * 16385), "rejected", "at most 16384")


def test_a_command_of_an_unknown_key_is_rejected(desk):
    """Anybody may publish to a stolen broker; nobody may command."""
    assert refused(answer(desk, desk.command([CryptoSigner.generate_ed25519()])), "rejected", "signed by 0")


def test_a_wave_is_no_command(desk):
    """What was signed as something else commands nothing."""
    raw = desk.sign({"id": "0123456789ab"}, "application/vnd.other+json", "operators")
    assert refused(answer(desk, raw), "rejected", "its type is")


@pytest.mark.parametrize("changes", [{"verb": "reboot"}, {"counter": 0}, {"scope": "fleet:*"}, {"id": "short"}])
def test_a_command_against_the_schema_is_rejected(desk, changes):
    """A signature does not make a command well formed."""
    assert refused(answer(desk, desk.command(**changes)), "rejected", "command:")


@pytest.mark.parametrize("scope", ["device:cam-8", "group:g2", "group:cam-7", "device:g1"])
def test_a_command_for_somebody_else_is_rejected(desk, scope):
    """A command sent to the wrong topic does nothing."""
    assert refused(answer(desk, desk.command(scope=scope)), "rejected", "the command is for")


@pytest.mark.parametrize("counter", [4, 5])
def test_a_replayed_command_is_rejected(desk, counter):
    """The counter of a scope only rises."""
    floors = {floor_key("device:cam-7", desk.targets): 5}
    assert refused(answer(desk, desk.command(counter=counter), floors), "rejected", "not above 5")


def test_scopes_count_apart(desk):
    """A group's counter does not stop a device's."""
    floors = {floor_key("group:g1", desk.targets): 99}
    assert isinstance(answer(desk, desk.command(counter=5), floors), Command)


def test_a_counter_burnt_by_a_stolen_key_is_void_after_revocation(desk):
    """Floors are bound to the operators' key set."""
    floors = {floor_key("device:cam-7", desk.targets): 2**53}
    desk.revoke("operators", 0)
    assert isinstance(answer(desk, desk.command(), floors), Command)


def test_an_expired_command_says_so(desk):
    """Commands always expire; that is another answer than a bad one."""
    assert refused(answer(desk, desk.command(), now=NOW + 16 * MINUTE), "expired", "expired")
    assert isinstance(answer(desk, desk.command(), now=NOW + 14 * MINUTE), Command)


def test_a_command_from_the_future_is_rejected(desk):
    """Clocks may be five minutes apart, not more."""
    assert refused(answer(desk, desk.command(), now=NOW - 6 * MINUTE), "rejected", "check both clocks")
    assert isinstance(answer(desk, desk.command(), now=NOW - 4 * MINUTE), Command)
