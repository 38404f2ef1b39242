"""What the device has to say, kept until the broker has it.

1. Events come before replies, replies before telemetry; within a rank the order is that of `put`.
2. `put` of an event or reply returns when it is on the disk. Telemetry may lose its last second with the power;
   put it once per second or so, not row by row: flash wears.
3. It never grows beyond `max_bytes`: the oldest telemetry goes first, then replies, events last. Every row dropped
   is counted, and the counts survive as the rows do.
4. Rows have an age. One that was put before the clock was set does not age: bytes bound it.
5. A row leaves when the broker has acknowledged it; a crash in between sends it twice, never not at all.

All calls block for a moment and may come from any thread.
"""

import sqlite3
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from enum import IntEnum
from pathlib import Path

from agent.adapters import database, files
from agent.core.documents import Document

MAX_BYTES = 64 * 1024 * 1024  # two weeks of one slot's figures at one row of 300 bytes in six seconds
ROW_BYTES = 64  # what SQLite adds to a row, about
CLOCK_SET = 1_735_689_600.0  # 2025-01-01: an earlier clock is one that nobody has set
WEEK_S = 7 * 24 * 3600
TABLES = """
PRAGMA wal_autocheckpoint=200;
CREATE TABLE IF NOT EXISTS outbox(
    id INTEGER PRIMARY KEY AUTOINCREMENT, rank INTEGER NOT NULL, at REAL NOT NULL, expires REAL NOT NULL,
    topic TEXT NOT NULL, payload BLOB NOT NULL);
CREATE INDEX IF NOT EXISTS outbox_order ON outbox(rank, id);
CREATE TABLE IF NOT EXISTS outbox_dropped(rank INTEGER PRIMARY KEY, rows INTEGER NOT NULL);
"""
SIZE = f"length(CAST(topic AS BLOB)) + length(payload) + {ROW_BYTES}"
WHOLE = f"SELECT coalesce(sum({SIZE}), 0) FROM outbox"  # noqa: S608  SIZE is the line above
FORGET = f"DELETE FROM outbox WHERE id=? RETURNING {SIZE}"  # noqa: S608
HEAD = "SELECT id, rank, at, expires, topic, payload FROM outbox ORDER BY rank, id LIMIT ?"
LEAST = "SELECT id, rank FROM outbox ORDER BY rank DESC, id LIMIT 1"
COUNT_DROPPED = "INSERT INTO outbox_dropped VALUES(?, 1) ON CONFLICT(rank) DO UPDATE SET rows = rows + 1"


class Rank(IntEnum):
    """What goes first, and what is dropped last."""

    EVENT = 0
    REPLY = 1
    TELEMETRY = 2


class Item(Document):
    """Something to say."""

    topic: str
    payload: bytes
    rank: Rank
    expiry_s: float = WEEK_S


class Row(Document):
    """Something to say, and the number to say `done` with."""

    id: int
    topic: str
    payload: bytes
    expiry_s: float  # what is left


class Outbox:
    """One SQLite file; other tables in it are not touched."""

    def __init__(self, path: Path, max_bytes: int = MAX_BYTES) -> None:
        """The outbox in `path`; a corrupt file is put aside as `.broken`, and counted by nobody.

        Raises:
            TransferError: the disk refuses; what is kept stays.
        """
        self.max_bytes = max_bytes
        self._lock = threading.Lock()
        self._wake: Callable[[], object] = lambda: None
        if files.is_read_only(path.parent):
            path = Path(":memory:")  # what the disk does not take may still reach the broker
        self._path = path
        try:
            self._base = database.connect(path, TABLES)
        except database.CorruptError:
            with files.saying_why(path):
                database.set_aside(path, ".broken")
            self._base = database.connect(path, TABLES)
        with database.saying_why(path):
            (self._bytes,) = self._base.execute(WHOLE).fetchone()

    def watch(self, wake: Callable[[], object]) -> None:
        """Calls `wake` after every `put`, in the thread of the put."""
        self._wake = wake

    def put(self, items: Sequence[Item], now: float) -> None:
        """Keeps the items. `now` is Unix time.

        Raises:
            TransferError: the disk refuses.
        """
        durable = any(item.rank is not Rank.TELEMETRY for item in items)
        rows = [(item.rank, now, now + item.expiry_s, item.topic, item.payload) for item in items]
        with self._transaction(durable=durable) as base:
            base.executemany("INSERT INTO outbox(rank, at, expires, topic, payload) VALUES(?,?,?,?,?)", rows)
            self._bytes += sum(len(item.topic.encode()) + len(item.payload) + ROW_BYTES for item in items)
            self._make_room(base)
        self._wake()

    def head(self, count: int, now: float) -> tuple[Row, ...]:
        """The next rows to say, at most `count`; those too old are dropped and counted."""
        with self._transaction(durable=False) as base:
            found = base.execute(HEAD, (count,)).fetchall()
            while old := [row for row in found if _is_old(row, now)]:
                for id_, rank, *_ in old:
                    self._drop(base, id_, rank)
                found = base.execute(HEAD, (count,)).fetchall()
        return tuple(
            Row(id=id_, topic=topic, payload=payload, expiry_s=expires - (now if at >= CLOCK_SET else at))
            for id_, _, at, expires, topic, payload in found
        )

    def done(self, ids: Sequence[int]) -> None:
        """Forgets rows that the broker has."""
        with self._transaction(durable=False) as base:
            for id_ in ids:
                self._forget(base, id_)

    @property
    def waiting(self) -> int:
        """How many rows are kept.

        Raises:
            TransferError: the disk refuses.
        """
        with self._lock, database.saying_why(self._path):
            (count,) = self._base.execute("SELECT count(*) FROM outbox").fetchone()
        return int(count)

    @property
    def dropped(self) -> Mapping[Rank, int]:
        """How many rows of each rank were never said, since the file was made.

        Raises:
            TransferError: the disk refuses.
        """
        with self._lock, database.saying_why(self._path):
            found = dict(self._base.execute("SELECT rank, rows FROM outbox_dropped"))
        return {rank: found.get(rank, 0) for rank in Rank}

    def close(self) -> None:
        """Ends it."""
        with self._lock:
            self._base.close()

    @contextmanager
    def _transaction(self, *, durable: bool) -> Iterator[sqlite3.Connection]:
        with self._lock, database.saying_why(self._path):
            kept = self._bytes
            try:
                self._base.execute(f"PRAGMA synchronous={'FULL' if durable else 'NORMAL'}")
                with database.transaction(self._base):
                    yield self._base
            except BaseException:
                self._bytes = kept
                raise

    def _make_room(self, base: sqlite3.Connection) -> None:
        while self._bytes > self.max_bytes:
            self._drop(base, *base.execute(LEAST).fetchone())

    def _drop(self, base: sqlite3.Connection, id_: int, rank: int) -> None:
        self._forget(base, id_)
        base.execute(COUNT_DROPPED, (rank,))

    def _forget(self, base: sqlite3.Connection, id_: int) -> None:
        gone = base.execute(FORGET, (id_,)).fetchall()
        self._bytes -= sum(size for (size,) in gone)


def _is_old(row: tuple[int, int, float, float, str, bytes], now: float) -> bool:
    _, _, at, expires, _, _ = row
    return at >= CLOCK_SET and expires <= now
