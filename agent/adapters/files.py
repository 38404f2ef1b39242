"""Files that survive a power cut.

A file is replaced whole: temp beside it, fsync, rename, fsync of the folder. A reader sees the old content or
the new, never half of one. Without the last fsync the rename itself may be lost. A temp file that a crash
left behind starts with TEMP, is never read, and is removed at the next start.
"""

import errno
import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from io import FileIO
from pathlib import Path

from agent.core.errors import InputError, TransferError

TEMP = ".tmp-"
NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})

Content = bytes | Iterable[bytes]  # all of it, or piece by piece


def write_durably(path: Path, content: Content, mode: int = 0o640) -> None:
    """Makes `path` hold `content`, whole or not at all, also when the power goes.

    Raises:
        TransferError: the disk is full or refuses; what was there before is still there.
    """
    with saying_why(path):
        temp = write_temp(path, content, mode)
        try:
            temp.replace(path)
        except OSError:
            temp.unlink(missing_ok=True)
            raise
        sync_folder(path.parent)


def write_temp(path: Path, content: Content, mode: int = 0o640) -> Path:
    """A synced temp file beside `path`, whose folder is made; the caller renames, links or removes it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    number, name = tempfile.mkstemp(prefix=TEMP, dir=path.parent)
    try:
        with os.fdopen(number, "wb") as file:
            file.writelines([content] if isinstance(content, bytes) else content)
            os.fchmod(number, mode)
            file.flush()
            os.fsync(number)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
    return Path(name)


def sync_folder(folder: Path) -> None:
    """Makes renames, new names and removals in `folder` durable."""
    sync_file(folder)


def sync_file(path: Path) -> None:
    """Makes what others wrote to `path` durable."""
    number = os.open(path, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)


def read_needed(path: Path, cure: str) -> bytes:
    """The whole file; raises InputError with the cure where it cannot be had."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}; {cure}") from error


def digest_of(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_or_none(path: Path) -> bytes | None:
    """The whole file, or None when there is none."""
    try:
        return path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return None


def remove_temps(folder: Path) -> None:
    """Removes what a crash left behind in `folder` and below."""
    for left in list(folder.rglob(f"{TEMP}*")):
        with suppress(OSError):
            left.unlink()


def is_read_only(folder: Path) -> bool:
    """Whether the disk takes no writes at all, as after an error that it does not trust itself with."""
    try:
        with tempfile.TemporaryFile(dir=folder):
            return False
    except OSError as error:
        return error.errno == errno.EROFS


def free_bytes(path: Path) -> int:
    """Bytes that this process may still write where `path` is, or would be."""
    return shutil.disk_usage(next(place for place in (path, *path.parents) if place.exists())).free


def writer(path: Path) -> FileIO:
    """An unbuffered file for reading and writing at offsets; made when absent, never cut."""
    number = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o640)
    return os.fdopen(number, "r+b", buffering=0)


@contextmanager
def saying_why(path: Path) -> Iterator[None]:
    """Turns an error of the disk into a TransferError with what, where and what to do."""
    try:
        yield
    except OSError as error:
        raise TransferError(_disk_sentence(path, error)) from error


def _disk_sentence(path: Path, error: OSError) -> str:
    if error.errno in NO_ROOM:
        with suppress(OSError):
            free = free_bytes(path)
            return f"{path}: the disk is full ({free / 1e6:.1f} MB free): make room; it is tried again"
    return f"{path}: the disk refused ({error.strerror or error}): check the folder's owner, mode and health"
