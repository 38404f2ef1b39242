"""The ledger: what the device knows of itself, in one SQLite file, whole after any kill or power cut.

1. Every change is one transaction, synced before it counts (WAL, synchronous FULL).
2. Facts are documents under (kind, key); the types in `agent.core` say what is in them.
3. After a change that must not be lost (intent, counters, confirmations) a copy is kept beside the ledger. A ledger
   that is corrupt is moved aside, never deleted, and the copy takes its place: the last good release serves on.
4. Writing blocks for a disk sync: the daemon does it in a thread. Reading has a connection of its own and never waits
   for a write.
"""

import sqlite3
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TypeVar

import msgspec

from agent.adapters import files
from agent.core.documents import to_json
from agent.core.errors import TransferError

T = TypeVar("T")

SCHEMA = """
CREATE TABLE IF NOT EXISTS facts (kind TEXT, key TEXT, body BLOB NOT NULL, PRIMARY KEY (kind, key)) WITHOUT ROWID
"""
BUSY_MS = 5_000  # `edge-agent` commands may look at the ledger while the daemon writes


class Ledger:
    """Facts under (kind, key)."""

    def __init__(self, path: Path) -> None:
        """Open the ledger, or the copy of it where it is corrupt.

        Raises:
            TransferError: the disk refuses.
        """
        self.path = path
        self.copy = path.with_name(path.name + ".copy")
        self.trouble = ""  # what was wrong at opening, in a sentence; empty when nothing was
        self._writing_lock, self._reading_lock = threading.Lock(), threading.Lock()
        with files.saying_why(path):
            path.parent.mkdir(parents=True, exist_ok=True)
        self._database = self._open()
        self._reader = self._connect(path)

    @staticmethod
    def examine(path: Path) -> str:
        """What is wrong with a ledger, in a few words; empty when it is whole. Nothing is changed."""
        try:
            with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as database:
                found = database.execute("PRAGMA quick_check").fetchone()[0]
        except sqlite3.Error as error:
            return str(error)
        return "" if found == "ok" else str(found)

    def close(self) -> None:
        """Close the file."""
        with self._writing_lock, self._reading_lock:
            self._reader.close()
            self._database.close()

    def get(self, kind: str, key: str, form: type[T]) -> T | None:
        """The fact, or None. One that cannot be read any more counts as absent."""
        with self._reading():
            row = self._reader.execute("SELECT body FROM facts WHERE kind = ? AND key = ?", (kind, key)).fetchone()
        return _read(row[0], form) if row else None

    def all(self, kind: str, form: type[T]) -> Mapping[str, T]:
        """Every fact of a kind, by key."""
        with self._reading():
            rows = self._reader.execute("SELECT key, body FROM facts WHERE kind = ? ORDER BY key", (kind,)).fetchall()
        found = {key: _read(body, form) for key, body in rows}
        return {key: fact for key, fact in found.items() if fact is not None}

    def put(self, kind: str, key: str, fact: object) -> None:
        """Record one fact."""
        self.put_all([(kind, key, fact)])

    def put_all(self, facts: Sequence[tuple[str, str, object]], *, precious: bool = False) -> None:
        """Record facts together, or none; a fact of None is removed. Precious ones go into the copy, too.

        Raises:
            TransferError: the disk refuses; nothing was changed.
        """
        with self._writing():
            for kind, key, fact in facts:
                if fact is None:
                    self._database.execute("DELETE FROM facts WHERE kind = ? AND key = ?", (kind, key))
                else:
                    self._database.execute("INSERT OR REPLACE INTO facts VALUES (?, ?, ?)", (kind, key, to_json(fact)))
        if precious:
            self._keep_copy()

    def remove(self, kind: str, key: str) -> None:
        """Forget one fact."""
        self.put_all([(kind, key, None)])

    def _open(self) -> sqlite3.Connection:
        try:
            return self._connect(self.path)
        except sqlite3.DatabaseError as error:
            if isinstance(error, sqlite3.OperationalError) and "unable to open" in str(error):
                raise TransferError(f"{self.path}: cannot be opened: {error}; check owner, mode and disk") from error
            return self._recover(str(error))

    def _recover(self, reason: str) -> sqlite3.Connection:
        """The copy in place of a corrupt ledger, which is moved aside."""
        aside = self.path.with_name(self.path.name + ".corrupt")
        with files.saying_why(self.path):
            self.path.replace(aside)
            for rest in ("-wal", "-shm"):
                self.path.with_name(self.path.name + rest).unlink(missing_ok=True)
            content = files.read_or_none(self.copy)
            if content is not None:
                files.write_durably(self.path, content)
        kept = "its copy took its place" if content is not None else "there was no copy of it, so it begins anew"
        self.trouble = f"{self.path}: the ledger was corrupt ({reason}); moved to {aside.name}, and {kept}"
        try:
            return self._connect(self.path)
        except sqlite3.DatabaseError as error:
            self.path.unlink(missing_ok=True)
            self.trouble += f"; the copy is corrupt, too ({error}), so the ledger begins anew"
            return self._connect(self.path)

    def _connect(self, path: Path) -> sqlite3.Connection:
        database = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=BUSY_MS / 1000)
        try:
            database.execute("PRAGMA journal_mode = WAL")
            database.execute("PRAGMA synchronous = FULL")
            broken = database.execute("PRAGMA quick_check").fetchone()[0]
            if broken != "ok":
                raise sqlite3.DatabaseError(broken)  # noqa: TRY301  as a damaged page raises by itself
            database.execute(SCHEMA)
        except BaseException:
            database.close()
            raise
        return database

    def _keep_copy(self) -> None:
        with self._writing_lock, self._saying_why():
            files.write_durably(self.copy, self._database.serialize())

    @contextmanager
    def _reading(self) -> Iterator[None]:
        with self._reading_lock, self._saying_why():
            yield

    @contextmanager
    def _saying_why(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise TransferError(f"{self.path}: {error}; check the disk") from error

    @contextmanager
    def _writing(self) -> Iterator[None]:
        with self._writing_lock, self._saying_why(), closing(self._database.cursor()) as cursor:
            cursor.execute("BEGIN IMMEDIATE")
            try:
                yield
                cursor.execute("COMMIT")
            except BaseException:
                if self._database.in_transaction:
                    cursor.execute("ROLLBACK")
                raise


def _read(body: bytes, form: type[T]) -> T | None:
    try:
        return msgspec.json.decode(body, type=form)
    except msgspec.DecodeError:
        return None
