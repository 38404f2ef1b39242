"""What a link may carry: counted by day, limited by budget and window, and never in the way of metadata."""

from datetime import UTC, datetime

import pytest

from agent.adapters import source as module
from agent.adapters.archive import ArchiveStore
from agent.adapters.ledger import Ledger
from agent.adapters.source import Source, default_link
from agent.adapters.store import Limits
from agent.core.errors import TransferError
from fleet.stores import DeskFolder
from tests.adapters.zips import zipped
from tests.fakes.store import FakeStore

MB = 1_000_000
KEY, DOCUMENT = "targets/releases/x.sealed", "metadata/timestamp.json"
CONTENT = {KEY: bytes(10 * MB), DOCUMENT: b"{}" * 1000}
ROUTES = """Iface\tDestination\tGateway\tFlags\tRefCnt\tUse\tMetric\tMask\tMTU\tWindow\tIRTT
wwan0\t00000000\t0101A8C0\t0003\t0\t0\t700\t00000000\t0\t0\t0
wlan0\t00000000\t0101A8C0\t0003\t0\t0\t600\t00000000\t0\t0\t0
eth0\t0001A8C0\t00000000\t0001\t0\t0\t100\t00FFFFFF\t0\t0\t0
"""


class Site:
    """A device with a ledger, a link and a clock."""

    def __init__(self, folder, monkeypatch):
        self.ledger = Ledger(folder / "ledger.db")
        self.link, self.clock = "wwan0", datetime(2026, 11, 25, 12, 0, tzinfo=UTC)
        monkeypatch.setattr(module, "default_link", lambda: self.link)
        monkeypatch.setattr(module, "now", lambda: self.clock)

    def source(self, store=None, rate=None, **limits):
        return Source(store or FakeStore(CONTENT), rate, {"wwan*": Limits(**limits)}, self.ledger)

    @property
    def carried(self):
        return dict(self.ledger.all("traffic", int))


@pytest.fixture
def site(tmp_path, monkeypatch):
    one = Site(tmp_path, monkeypatch)
    yield one
    one.ledger.close()


def take(source, key=KEY, start=0):
    """How many bytes came, and what stopped them."""
    done = start
    try:
        with source.stream(key, start) as download:
            for piece in download.pieces:
                done += len(piece)
    except TransferError as error:
        return done, str(error)
    return done, ""


def test_a_budget_ends_a_download_and_a_new_day_goes_on(site):
    """What waits says until when; the day's bytes are in the ledger; the next day begins at zero."""
    source = site.source(budget_mb_per_day=4)
    done, why = take(source)
    assert 4 * MB <= done < 4 * MB + 1.1 * 1024 * 1024
    assert why == "wwan0 has carried its 4 MB of today: waits until midnight"
    assert site.carried == {"2026-11-25 wwan0": done}
    assert take(source)[0] == 0
    site.clock = site.clock.replace(day=26)
    assert take(source, start=done)[0] > done
    assert list(site.carried) == ["2026-11-26 wwan0"]


def test_a_budget_survives_the_agent(site):
    """A restart, or a second download at one time, does not get the day's bytes again."""
    take(site.source(budget_mb_per_day=4))
    assert take(site.source(budget_mb_per_day=4))[0] == 0


def test_metadata_always_comes_and_counts(site):
    """A device learns of a halt whatever its budget and window say."""
    source = site.source(budget_mb_per_day=0.001, window="01:00-05:00")
    for _ in range(3):
        assert source.read(DOCUMENT, 2000) == CONTENT[DOCUMENT]
    assert site.carried == {"2026-11-25 wwan0": 6000}
    assert take(source)[0] == 0


@pytest.mark.parametrize(
    ("window", "clock", "is_open"),
    [
        ("01:00-05:00", "00:59", False), ("01:00-05:00", "01:00", True), ("01:00-05:00", "04:59", True),
        ("01:00-05:00", "05:00", False), ("22:00-05:00", "23:30", True), ("22:00-05:00", "04:59", True),
        ("22:00-05:00", "12:00", False), ("00:00-00:00", "12:00", True),
    ],
)  # fmt: skip
def test_a_window_is_kept_also_over_midnight(site, window, clock, is_open):
    """From the first minute to before the last, in the device's time."""
    site.clock = datetime.fromisoformat(f"2026-11-25T{clock}:00+00:00")
    source = site.source(window=window)
    done, why = take(source)
    assert (done == 10 * MB) is is_open
    if not is_open:
        with pytest.raises(TransferError, match="waits until"):
            source.pace()
    assert is_open or why.endswith(f"waits until {window[:5]}")


def test_a_window_that_closes_ends_a_download(site):
    """What came is kept by the caller; the rest comes in the next window."""
    source = site.source(window="11:00-13:00")
    with source.stream(KEY) as download:
        pieces = download.pieces
        next(pieces)
        site.clock = site.clock.replace(hour=13)
        with pytest.raises(TransferError, match="waits until 11:00"):
            next(pieces)


def test_a_link_that_nothing_was_said_of_is_free(site):
    """Without a match nothing is limited, counted or written."""
    site.link = "eth0"
    assert take(site.source(budget_mb_per_day=1, window="01:00-02:00")) == (10 * MB, "")
    assert site.carried == {}


def test_a_links_rate_holds_on_that_link(site):
    """Else the store's own holds."""
    source = site.source(rate=7, rate_limit_mb_s=0.5)
    assert source.pace() == 500_000
    site.link = "eth0"
    assert source.pace() == 7_000_000
    assert site.source().pace() is None


def test_a_folder_and_a_file_go_over_no_link(site, tmp_path):
    """A stick costs nobody's budget, and is read at once."""
    DeskFolder(tmp_path / "mirror").write(KEY, CONTENT[KEY])
    limits = {"budget_mb_per_day": 1, "window": "01:00-02:00", "rate_limit_mb_s": 1}
    assert take(site.source(DeskFolder(tmp_path / "mirror"), **limits)) == (10 * MB, "")
    archive = ArchiveStore(zipped(tmp_path / "site.zip", [(KEY, CONTENT[KEY])]))
    source = site.source(**limits)
    source.carried = archive
    assert take(source) == (10 * MB, "")
    assert source.pace() is None
    assert "site.zip" in take(source, DOCUMENT)[1], "and nothing but the file is asked"
    source.carried = None
    assert take(source)[0] == 0
    assert site.carried == {}


def test_the_link_is_that_of_the_best_default_route(tmp_path, monkeypatch):
    """The lowest metric wins; without a route, or without the kernel's table, there is none."""
    table = tmp_path / "route"
    monkeypatch.setattr(module, "ROUTES", table)
    assert default_link() == ""
    table.write_text(ROUTES)
    assert default_link() == "wlan0"
    table.write_text("\n".join(line for line in ROUTES.splitlines() if not line.startswith("w")))
    assert default_link() == ""
