"""A store as the desk has it: it also writes and lists. A device reads alone (agent/adapters/store.py).

1. An object is there whole or not at all, also when the power goes.
2. What was published under a name is never replaced where the writer says so. Some servers ignore the condition, some
   file systems have no links: there two writers may race.
"""

import errno
import os
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, Protocol

from agent.adapters import files
from agent.adapters.store import CHUNK_BYTES, FileStore, Store, StoreSettings, check_key, place_of
from agent.core.errors import InputError

NO_LINKS = frozenset({errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS})  # a FAT stick


class Exists(InputError):  # noqa: N818  an answer, named as it reads
    """Something lies under this key already, and it was not to be replaced."""

    def __init__(self, where: str) -> None:
        super().__init__(f"{where}: exists; a name is never given to other bytes: choose a new one")


class DeskStore(Store, Protocol):
    """A store that one may write to."""

    def write(self, key: str, content: bytes | BinaryIO, *, if_absent: bool = False) -> None:
        """Puts the object there, whole or not at all.

        Raises:
            Exists: `if_absent`, and there is one.
            TransferError: it could not be written now.
        """
        ...

    def keys(self, prefix: str = "") -> Iterator[str]:
        """Every key that begins with `prefix`, sorted."""
        ...


def open_store(
    url: str,
    *,
    endpoint: str | None = None,
    region: str | None = None,
    access_key: str | None = None,
    secret_key: str | None = None,
    ca: str | None = None,
) -> DeskStore:
    """The store at `s3://bucket/prefix` or `file:///path`, to read and write; the rest is as in agent.yaml.

    Raises:
        InputError: the URL is not one of these, or the settings do not fit together.
    """
    if url.startswith("https://"):
        raise InputError(f"{url}: a web server is only read; a desk takes the bucket or folder behind it")
    settings = StoreSettings(
        url=url, endpoint=endpoint, region=region, access_key=access_key, secret_key=secret_key, ca=ca
    )
    place = place_of(url)
    if isinstance(place, Path):
        return DeskFolder(place)
    from fleet.bucket import DeskBucket  # noqa: PLC0415  the SDK costs 340 ms and 45 MB that a folder never needs

    return DeskBucket(settings, *place)


class DeskFolder(FileStore):
    """A folder as a store."""

    def write(self, key: str, content: bytes | BinaryIO, *, if_absent: bool = False) -> None:
        """As `DeskStore.write`."""
        path = self._path(key)
        pieces = content if isinstance(content, bytes) else iter(lambda: content.read(CHUNK_BYTES), b"")
        with files.saying_why(path):
            if not if_absent:
                files.write_durably(path, pieces, 0o644)
                return
            temp = files.write_temp(path, pieces, 0o644)
            try:
                _take_name(temp, path, key)
                files.sync_folder(path.parent)
            finally:
                temp.unlink(missing_ok=True)

    def keys(self, prefix: str = "") -> Iterator[str]:
        """As `DeskStore.keys`."""
        if prefix:
            check_key(prefix.removesuffix("/"))
        found = (path for path in self.root.rglob("*") if not path.name.startswith(files.TEMP) and path.is_file())
        yield from sorted(key for path in found if (key := path.relative_to(self.root).as_posix()).startswith(prefix))


def _take_name(temp: Path, path: Path, key: str) -> None:
    """Gives `temp` its name unless somebody has it; on a file system without links, two writers may race."""
    try:
        os.link(temp, path)
    except FileExistsError as error:
        raise Exists(key) from error
    except OSError as error:
        if error.errno not in NO_LINKS:
            raise
        if path.exists():
            raise Exists(key) from error
        temp.replace(path)
