"""One SQLite file (WAL), for whoever keeps tables in it. Connections may be used from any thread, one at a time.

1. A transaction counts whole or not at all.
2. Only what SQLite calls corrupt is corrupt. A disk that is full or refuses says nothing against the file: nothing is
   moved, and opening it is tried again.
3. A file's WAL is part of it: whoever moves one, moves or removes the other, or SQLite plays it into the next file.
"""

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from agent.core.errors import TransferError

CORRUPT = frozenset({sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB})
PRIMARY = 0xFF  # the low byte of an extended result code (sqlite.org/rescode.html)
BESIDE = ("-wal", "-shm")  # files of SQLite's that belong to a database's file
BUSY_S = 5.0  # `edge-agent` commands may look at a file while the daemon writes


class CorruptError(TransferError):
    """The file is no whole SQLite file; `what` is SQLite's word for it."""

    def __init__(self, path: Path, what: object) -> None:
        super().__init__(f"{path}: {what}; restart the agent, which puts the file aside and goes on")
        self.what = what


def connect(path: Path, schema: str) -> sqlite3.Connection:
    """A connection to a file that is whole; every write is synced.

    Raises:
        CorruptError: it is not whole.
        TransferError: the disk refuses.
    """
    try:
        database = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=BUSY_S)
        try:
            database.execute("PRAGMA journal_mode = WAL")
            database.execute("PRAGMA synchronous = FULL")
            found = database.execute("PRAGMA quick_check").fetchone()[0]
            if found != "ok":
                raise CorruptError(path, found)  # noqa: TRY301  as a damaged page raises by itself
            database.executescript(schema)
        except BaseException:
            database.close()
            raise
    except sqlite3.Error as error:
        if is_corrupt(error):
            raise CorruptError(path, error) from error
        raise TransferError(
            f"{path}: cannot be opened: the disk refuses ({error}): check owner, mode and disk"
        ) from error
    return database


def read_only(serialized: bytes) -> sqlite3.Connection:
    """A connection to what `serialize` gave, in memory, for reading alone."""
    database = sqlite3.connect(":memory:", isolation_level=None, check_same_thread=False)
    database.deserialize(serialized[:18] + b"\1\1" + serialized[20:])  # these two say WAL, which is none in memory
    database.execute("PRAGMA query_only = ON")
    return database


@contextmanager
def saying_why(path: Path) -> Iterator[None]:
    """Turns an error of SQLite's into a TransferError with what, where and what to do."""
    try:
        yield
    except sqlite3.Error as error:
        raise TransferError(f"{path}: the disk refuses ({error}): make room or check it") from error


@contextmanager
def transaction(database: sqlite3.Connection) -> Iterator[None]:
    """All that is done inside, or nothing of it."""
    with database:  # commits it, or rolls it back
        database.execute("BEGIN IMMEDIATE")
        yield


def set_aside(path: Path, ending: str) -> None:
    """Renames a database's files, the one itself first, as far as they are there."""
    for name in ("", *BESIDE):
        with suppress(FileNotFoundError):
            path.with_name(path.name + name).replace(path.with_name(path.name + ending + name))


def is_corrupt(error: sqlite3.Error) -> bool:
    """Whether SQLite found the file damaged, and not the disk full, refusing or busy."""
    return getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR) & PRIMARY in CORRUPT
