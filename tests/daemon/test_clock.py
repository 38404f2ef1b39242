"""Devices without a clock, and with a wrong one: nothing old is believed, nothing that was known is lost."""

from datetime import UTC, datetime, timedelta

import pytest

from agent.core.errors import TrustError
from agent.daemon import intake
from tests.daemon.test_intake import Device
from tests.daemon.test_intake import desk as desk  # noqa: PLC0414  a fixture

NO_CLOCK = datetime(1970, 1, 1, 0, 2, tzinfo=UTC)
AHEAD = datetime(2099, 1, 1, tzinfo=UTC)
DAY = timedelta(days=1)


@pytest.fixture
def boot(desk, monkeypatch):
    """A device that starts with its clock at a time."""

    def at(moment):
        class Clock(datetime):
            @classmethod
            def now(cls, tz=None):
                return moment.astimezone(tz)

        device = desk.device()
        monkeypatch.setattr(intake, "datetime", Clock)
        del device.intake.now  # its own again
        return device

    return at


async def test_a_new_device_that_boots_in_1970_learns_the_time_from_the_store(desk, boot):
    """What is signed says when; the build of the agent bounds it until then."""
    device = boot(NO_CLOCK)
    assert device.intake.now() > datetime(2026, 1, 1, tzinfo=UTC)
    await device.intake.poll()
    assert device.intake.now() >= desk.now.replace(microsecond=0)


async def test_a_device_that_boots_in_1970_is_not_shown_what_expired_long_ago(desk, boot):
    """It has seen a later time, and takes no timestamp that was over by then."""
    await boot(desk.now).intake.poll()
    metadata = desk.store.root / "metadata"
    yesterday = (metadata / "timestamp.json").read_bytes()
    desk.repository.refresh(desk.now + 10 * DAY)
    await boot(desk.now + 10 * DAY).intake.poll()
    desk.repository.refresh(desk.now + 2 * DAY)  # newer by its number, signed, and over at the time that was seen
    device = boot(NO_CLOCK)
    with pytest.raises(TrustError, match="has expired"):
        await device.intake.poll()
    (metadata / "timestamp.json").write_bytes(yesterday)
    with pytest.raises(TrustError, match="older"):
        await device.intake.poll()
    assert device.intake.trusted is not None


async def test_a_clock_that_jumps_ahead_delays_and_spoils_nothing(desk, boot):
    """In 2099 nothing new is believed, what is known stands; when the clock is right again, so is everything."""
    await boot(desk.now).intake.poll()
    device = boot(AHEAD)
    with pytest.raises(TrustError, match=r"has expired: .*this clock is ahead"):
        await device.intake.poll()
    assert device.intake.trusted is not None
    device = boot(desk.now)
    await device.intake.poll()
    assert device.intake.store.error == ""


async def test_what_runs_is_not_asked_whether_its_metadata_has_expired(desk, boot):
    """A start without a network, long after the last contact: the listings that open what is here are believed."""
    await boot(desk.now).intake.poll()
    device = boot(desk.now + 400 * DAY)
    assert isinstance(device, Device)
    assert device.intake.trusted is not None
    assert device.intake.store.error == ""
