"""Faults are tried on whole plants; what became of each seat's is printed at the end."""

import pytest

from tests.faults.standing import standing
from tests.system.conftest import new_plant, plant

__all__ = ["new_plant", "plant", "standing"]

ROWS = pytest.StashKey[list[tuple[str, ...]]]()
HEAD = ("fault of a seat", "moment", "the runner", "failed", "why")
WIDTHS = (15, 20, 62, 7, 120)


@pytest.fixture
def happened(request):
    """Notes what became of a fault: `happened(kind, moment, what the runner did, failed requests, what why says)`."""
    rows = request.config.stash.setdefault(ROWS, [])
    return lambda kind, moment, did, failures, why: rows.append((kind, moment, did, str(len(failures)), why))


def pytest_terminal_summary(terminalreporter, config):
    """The table of faults."""
    rows = config.stash.get(ROWS, [])
    if rows:
        terminalreporter.section("seats that fail: what the runner did, and what is told")
        for row in (HEAD, *rows):
            cells = (cell[:width].ljust(width) for cell, width in zip(row, WIDTHS, strict=True))
            terminalreporter.write_line("  ".join(cells).rstrip())
