"""Metadata that runs out is told in time."""

from datetime import UTC, datetime, timedelta

import pytest

from agent.trust.expiry import expiring

NOW = datetime(2026, 11, 1, tzinfo=UTC)


@pytest.mark.parametrize(
    ("days", "said"),
    [
        (30.1, ""),
        (30, "root metadata expires within 30 d (2026-12-01)"),
        (7.1, "within 30 d"),
        (7, "within 7 d"),
        (1.1, "within 7 d"),
        (1, "within 1 d"),
        (0.1, "within 1 d"),
        (0, "has expired"),
        (-400, "has expired"),
    ],
)
def test_the_words_change_at_thirty_seven_and_one_days(days, said):
    """Between two stages the sentence stays as it is: each stage is news once."""
    told = " ".join(expiring({"root": NOW + timedelta(days=days)}, NOW))
    assert said in told
    assert bool(told) == bool(said)


def test_what_is_renewed_by_a_timer_is_told_when_the_timer_must_have_stopped():
    """Three days of a timestamp are no news, one is; a snapshot is told at a week."""
    times = {"timestamp": NOW + timedelta(days=2.9), "snapshot": NOW + timedelta(days=13.9)}
    assert expiring(times, NOW) == ()
    assert "edge-fleet refresh" in expiring(times, NOW + timedelta(days=2))[0]
    assert [text.split()[0] for text in expiring(times, NOW + timedelta(days=8))] == ["timestamp", "snapshot"]


def test_each_sentence_names_the_cure():
    """Who reads it on a device knows what to do at the desk; the most urgent comes first."""
    told = expiring({"targets": NOW + timedelta(days=20), "plates-team": NOW + timedelta(days=3)}, NOW)
    assert ["edge-provision keys renew plates-team" in told[0], "edge-provision keys renew targets" in told[1]] == [
        True,
        True,
    ]
