"""What a device reads: its store or, as long as an import lasts, an exported file; counted and limited by link.

1. A link is the interface of the default route. Without an entry in `links` that matches it, nothing is counted.
2. Bytes of objects count, per link and day of this device's clock, in the ledger; a kill loses at most NOTE_BYTES.
3. Documents (metadata, grants, deployments) are small and always come. Anything else waits for the link's window and
   ends with its day's budget, and says until when.
4. What is read from a folder or an exported file goes over no link.
"""

import threading
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from fnmatch import fnmatch
from pathlib import Path

from agent.adapters import files
from agent.adapters.archive import ArchiveStore
from agent.adapters.ledger import Ledger
from agent.adapters.store import Download, FileStore, Limits, Store
from agent.core.errors import TransferError

ROUTES = Path("/proc/net/route")
NOTE_BYTES = 4 * 1024 * 1024
KIND = "traffic"  # in the ledger: "2026-11-25 wwan0" -> bytes


@dataclass(eq=False)
class Source(Store):
    """The device's one way to bytes."""

    store: Store
    rate_limit_mb_s: float | None
    links: Mapping[str, Limits]
    ledger: Ledger
    carried: ArchiveStore | None = None  # everything is read from this file, and from nowhere else
    _pending: Counter[str] = field(default_factory=Counter)  # day and link -> bytes that the ledger does not have yet
    _counting: threading.Lock = field(default_factory=threading.Lock)

    def pace(self) -> int | None:
        """Bytes per second that a release may take now, None for all; raises as `stream`."""
        if self.carried is not None:
            return None
        link = default_link()
        limits = self._limits(link) or Limits()
        self._require(link, limits)
        rate = limits.rate_limit_mb_s or self.rate_limit_mb_s
        return int(rate * 1e6) if rate else None

    def stream(self, key: str, start: int = 0, etag: str | None = None) -> Download:
        """As `Store.stream`; what the link may not carry now is a TransferError that says until when."""
        if self.carried is not None:
            return self.carried.stream(key, start, etag)
        link = default_link()
        limits = self._limits(link)
        if limits is None:
            return self.store.stream(key, start, etag)
        binding = Limits() if key.endswith(".json") else limits
        self._require(link, binding)
        download = self.store.stream(key, start, etag)
        return replace(download, pieces=self._counted(download.pieces, link, binding))

    def _limits(self, link: str) -> Limits | None:
        links = () if isinstance(self.store, FileStore) else self.links.items()
        return next((limits for pattern, limits in links if fnmatch(link, pattern)), None)

    def _counted(self, pieces: Iterator[bytes], link: str, limits: Limits) -> Iterator[bytes]:
        try:
            for piece in pieces:
                self._count(link, len(piece))
                yield piece
                self._require(link, limits)
        finally:
            self._count(link, 0)

    def _count(self, link: str, taken: int) -> None:
        """Adds to what the link has carried today; in the ledger every NOTE_BYTES, and when nothing more comes."""
        with self._counting:
            day = today(link)
            self._pending[day] += taken
            if taken and self._pending[day] < NOTE_BYTES:
                return
            old = [(KIND, other, None) for other in self.ledger.all(KIND, int) if other[:10] != day[:10]]
            self.ledger.put_all([(KIND, day, self._used(day)), *old])
            self._pending.clear()

    def _used(self, day: str) -> int:
        return (self.ledger.get(KIND, day, int) or 0) + self._pending[day]

    def _require(self, link: str, limits: Limits) -> None:
        """Raises TransferError where the link may carry no release now."""
        begin, end = (limits.window or "00:00-00:00").split("-")
        clock = f"{now():%H:%M}"
        if not (begin <= clock < end if begin < end else clock >= begin or clock < end):
            raise TransferError(f"{link} carries releases from {begin} to {end}: waits until {begin}")
        budget = limits.budget_mb_per_day
        if budget is not None and self._used(today(link)) >= budget * 1e6:
            raise TransferError(f"{link} has carried its {budget:g} MB of today: waits until midnight")


def default_link() -> str:
    """The interface of the default route (Linux, IPv4); empty where there is none."""
    lines = (files.read_or_none(ROUTES) or b"").decode().splitlines()[1:]
    routes = [(int(columns[6]), columns[0]) for columns in map(str.split, lines) if columns[1] == columns[7] == "0" * 8]
    return min(routes, default=(0, ""))[1]


def now() -> datetime:
    """This device's clock, in its time zone: budgets and windows are people's."""
    return datetime.now(UTC).astimezone()


def today(link: str) -> str:
    """Under which the ledger keeps what a link carries today."""
    return f"{now():%Y-%m-%d} {link}"
