"""One device is besieged by every attack of the suite; what became of each is printed at the end."""

import re

import pytest

from tests.attacks.besieged import Besieged, Row
from tests.fakes import mosquitto
from tests.system.conftest import new_plant

__all__ = ["new_plant"]

STOPPED = "stopped"  # what a row is called in a test's report
WIDTHS = (50, 28, 110)
DIGEST = re.compile(r"(targets/releases/)?\b[0-9a-f]{64}\.")  # in front of names, which say more


@pytest.fixture(scope="package")
def besieged(tmp_path_factory):
    """A device that serves and has confirmed the good release, with an attacker's bucket and broker."""
    mosquitto.require()
    one = Besieged(tmp_path_factory.mktemp("besieged"))
    yield one
    one.close()


@pytest.fixture
def stopped(record_property):
    """Notes where an attack was stopped, and what was said: `stopped(attack, stage, message)`."""
    return lambda *row: record_property(STOPPED, row)


def pytest_terminal_summary(terminalreporter):
    """The table of attacks; those that another process tried are told of in its reports."""
    reports = [one for found in terminalreporter.stats.values() for one in found if isinstance(one, pytest.TestReport)]
    told = [one for one in reports if one.when == "call"]
    rows = [Row(*row) for one in told for name, row in one.user_properties if name == STOPPED]
    if rows:
        terminalreporter.section("attacks: where each was stopped, and what was said")
        for row in (Row("attack", "stopped by", "message"), *rows):
            cells = (DIGEST.sub("", cell)[:width].ljust(width) for cell, width in zip(row, WIDTHS, strict=True))
            terminalreporter.write_line("  ".join(cells).rstrip())
