"""The ledger: what the device knows of itself, in one SQLite file, whole after any kill or power cut.

1. Every change is one transaction, synced before it counts (WAL, synchronous FULL).
2. Facts are documents under (kind, key); the types in `agent.core` say what is in them.
3. After a change that must not be lost (intent, counters, confirmations) a copy is kept beside the ledger. A ledger
   that is corrupt is moved aside, never deleted, and the copy takes its place: the last good release serves on. The
   copy takes the place of a ledger that is gone, too.
4. On a disk that can only be read the copy is read in its place, in memory: what was confirmed is served, and nothing
   is changed.
5. Writing blocks for a disk sync: the daemon does it in a thread. Reading has a connection of its own and never waits
   for a write.
"""

import sqlite3
import threading
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from agent.adapters import database, files
from agent.core.documents import to_json

T = TypeVar("T")

SCHEMA = """
CREATE TABLE IF NOT EXISTS facts (kind TEXT, key TEXT, body BLOB NOT NULL, PRIMARY KEY (kind, key)) WITHOUT ROWID
"""


class Ledger:
    """Facts under (kind, key)."""

    def __init__(self, path: Path) -> None:
        """Open the ledger, or the copy of it where it is corrupt or gone, or the disk can only be read.

        Raises:
            TransferError: the disk refuses; the ledger and its copy are as they were.
        """
        self.path = path
        self.copy = path.with_name(path.name + ".copy")
        self.trouble = ""  # what was wrong at opening, in a sentence; empty when nothing was
        self._writing_lock, self._reading_lock = threading.Lock(), threading.Lock()
        with files.saying_why(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            copied = files.read_or_none(self.copy) if files.is_read_only(path.parent) else None
        if copied:
            self.trouble = (
                f"{path}: the disk can only be read: what was confirmed serves, and nothing new is taken; "
                "mend the disk, then restart the agent"
            )
            self._database, self._reader = database.read_only(copied), database.read_only(copied)
            return
        self._database = self._open()
        try:
            self._reader = database.connect(self.path, SCHEMA)
        except BaseException:
            self._database.close()
            raise

    @staticmethod
    def examine(path: Path) -> str:
        """What is wrong with a ledger, in a few words; empty when it is whole. Nothing is changed."""
        try:
            with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as opened:
                found = opened.execute("PRAGMA quick_check").fetchone()[0]
        except sqlite3.Error as error:
            is_cut = error.sqlite_errorcode & database.PRIMARY == sqlite3.SQLITE_READONLY  # the next start finishes it
            return "" if is_cut else str(error)
        return "" if found == "ok" else str(found)

    def close(self) -> None:
        """Close the file."""
        with self._writing_lock, self._reading_lock:
            self._reader.close()
            self._database.close()

    def get(self, kind: str, key: str, form: type[T]) -> T | None:
        """The fact, or None. One that cannot be read any more counts as absent."""
        rows = self._rows("SELECT body FROM facts WHERE kind = ? AND key = ?", kind, key)
        return _read(rows[0][0], form) if rows else None

    def all(self, kind: str, form: type[T]) -> Mapping[str, T]:
        """Every fact of a kind, by key."""
        rows = self._rows("SELECT key, body FROM facts WHERE kind = ? ORDER BY key", kind)
        found = {key: _read(body, form) for key, body in rows}
        return {key: fact for key, fact in found.items() if fact is not None}

    def newest(self, kind: str, form: type[T], count: int) -> tuple[T, ...]:
        """The facts with the highest keys, in the order of their keys."""
        rows = self._rows("SELECT body FROM facts WHERE kind = ? ORDER BY key DESC LIMIT ?", kind, count)
        return tuple(fact for (body,) in reversed(rows) if (fact := _read(body, form)) is not None)

    def put(self, kind: str, key: str, fact: object) -> None:
        """Record one fact."""
        self.put_all([(kind, key, fact)])

    def put_all(self, facts: Sequence[tuple[str, str, object]], *, precious: bool = False) -> None:
        """Record facts together, or none; a fact of None is removed. Precious ones go into the copy, too.

        Raises:
            TransferError: the disk refuses; nothing was changed.
        """
        with self._writing_lock, database.saying_why(self.path), database.transaction(self._database):
            for kind, key, fact in facts:
                if fact is None:
                    self._database.execute("DELETE FROM facts WHERE kind = ? AND key = ?", (kind, key))
                else:
                    self._database.execute("INSERT OR REPLACE INTO facts VALUES (?, ?, ?)", (kind, key, to_json(fact)))
        if precious:
            with self._writing_lock, database.saying_why(self.path):
                files.write_durably(self.copy, self._database.serialize())

    def remove(self, kind: str, key: str) -> None:
        """Forget one fact."""
        self.put_all([(kind, key, None)])

    def _open(self) -> sqlite3.Connection:
        with files.saying_why(self.path):
            is_gone = not self.path.exists() or not self.path.stat().st_size
            has_copy = self.copy.exists()
        if is_gone and has_copy:
            return self._recover("was gone")
        try:
            return database.connect(self.path, SCHEMA)
        except database.CorruptError as error:
            return self._recover(f"was corrupt ({error.what})")

    def _recover(self, what: str) -> sqlite3.Connection:
        """The copy in place of the ledger; what is left of that is moved aside."""
        has_copy = self._put_copy()
        kept = "its copy took its place" if has_copy else "there was no copy of it, so it begins anew"
        self.trouble = f"{self.path}: the ledger {what}; {kept}"
        try:
            return database.connect(self.path, SCHEMA)
        except database.CorruptError as error:
            with files.saying_why(self.path):
                for name in ("", *database.BESIDE):  # the copy itself stays, until the next one
                    self.path.with_name(self.path.name + name).unlink(missing_ok=True)
            self.trouble += f"; the copy is corrupt, too ({error.what}), so the ledger begins anew"
            return database.connect(self.path, SCHEMA)

    def _put_copy(self) -> bool:
        """Puts the copy in the ledger's place, whole or not at all; whether there was one.

        The ledger is moved before its WAL: a WAL that is left beside the copy would be played into it, and a ledger
        without its WAL would be an older one. When the power goes in between, the ledger is gone, and this is done
        again.
        """
        with files.saying_why(self.path):
            content = files.read_or_none(self.copy)
            temp = files.write_temp(self.path, content) if content is not None else None
            database.set_aside(self.path, ".corrupt")
            if temp is not None:
                files.sync_folder(self.path.parent)
                temp.replace(self.path)
            files.sync_folder(self.path.parent)
        return content is not None

    def _rows(self, query: str, *values: str | int) -> list[Any]:
        with self._reading_lock, database.saying_why(self.path):
            return self._reader.execute(query, values).fetchall()


def _read(body: bytes, form: type[T]) -> T | None:
    try:
        return msgspec.json.decode(body, type=form)
    except msgspec.DecodeError:
        return None
