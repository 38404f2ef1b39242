"""A store holds bytes under keys. It belongs to nobody we trust: whatever comes from it is verified by the caller.

1. Calls block; they run in a worker thread. None of them tries again: the caller's loop is the retry policy.
2. A read is limited by its caller; a longer object is a TrustError, not a full memory.
3. An etag is an opaque word for "the same bytes as before", never a digest.
4. With an offset, the answer counts only if it says exactly which bytes it brings; the status alone is not believed.
5. A key cannot leave the store: no "..", no empty step, no backslash.
6. A device reads. Writing is the desk's (fleet/stores.py).
"""

import os
import stat
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, BinaryIO, Protocol, Self
from urllib.parse import unquote, urlsplit

from msgspec import Meta, field

from agent.core.documents import END, Document
from agent.core.errors import InputError, TransferError, TrustError

CHUNK_BYTES = 1024 * 1024  # one step of a stream: small beside any device's memory, large beside a system call
KEY_BYTES = 1024  # what S3 allows

Positive = Annotated[float, Meta(gt=0, le=1e9)]  # infinity cannot be told on
CLOCK = r"([01]\d|2[0-3]):[0-5]\d"


class Limits(Document):
    """What one link may carry. MB are 10^6 bytes."""

    budget_mb_per_day: Positive | None = None
    rate_limit_mb_s: Positive | None = None
    window: Annotated[str, Meta(pattern=f"^{CLOCK}-{CLOCK}" + END)] | None = None  # from-to, local time


class StoreSettings(Document):
    """Where releases come from; `store:` in agent.yaml."""

    url: Annotated[str, Meta(pattern=r"^(s3|https|file)://")]
    endpoint: str | None = None  # URL of an S3-compatible server; None is AWS
    region: str | None = None  # None takes the SDK's own choice
    access_key: str | None = None  # None takes the SDK's usual chain (environment, files, instance role)
    secret_key: str | None = None
    ca: str | None = None  # a PEM file with the authorities to trust instead of the system's
    bearer: str | None = None  # a token for an https:// store
    cert: str | None = None  # PEM files of this device's own certificate and key, for an https:// store
    key: str | None = None
    poll_s: Positive = 300.0
    rate_limit_mb_s: Positive | None = None
    links: Mapping[str, Limits] = field(default_factory=dict)


class Missing(TransferError):  # noqa: N818  an answer, named as it reads
    """There is nothing under this key."""


class Denied(TransferError):  # noqa: N818  an answer, named as it reads
    """These credentials may not; S3 also says so of a missing key to those who may not list."""


class Changed(TransferError):  # noqa: N818  an answer, named as it reads
    """Other bytes than before lie under this key, or the store cannot continue where we stopped."""


@dataclass(frozen=True, slots=True)
class Download:
    """An open answer. `start` is where its bytes begin; 0 although an offset was asked: from the beginning."""

    etag: str
    size: int  # of the whole object
    start: int
    pieces: Iterator[bytes]  # of at most CHUNK_BYTES; they may end early without an error
    close: Callable[[], None]
    where: str  # the object's name in messages

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Store(Protocol):
    """What a device needs of a store."""

    def read(self, key: str, limit: int) -> bytes:
        """The whole object.

        Raises:
            Missing: there is none.
            TrustError: it is longer than `limit` bytes.
            TransferError: it could not be had now.
        """
        with self.stream(key) as download:
            where, size = download.where, download.size
            if size > limit:
                raise TrustError(f"{where}: {size} bytes; at most {limit} are believed: its publisher must look")
            content = b"".join(download.pieces)
        if len(content) != size:
            raise TransferError(f"{where}: {len(content)} of {size} bytes came: it is tried again")
        return content

    def stream(self, key: str, start: int = 0, etag: str | None = None) -> Download:
        """The object from byte `start`, for use in a `with`; with `etag`, only of the same bytes as before.

        Raises:
            Missing: there is none.
            Changed: the etag is another, or `start` cannot be served.
            TransferError: it could not be had now.
        """


def open_store(settings: StoreSettings) -> Store:
    """The store at `s3://bucket/prefix`, `https://host/path` or `file:///path`. Nothing is contacted yet.

    Raises:
        InputError: the URL is not one of these, or the settings do not fit together.
    """
    if settings.url.startswith("https://"):
        from agent.adapters.https import HttpsStore  # noqa: PLC0415  as below

        return HttpsStore(settings)
    place = place_of(settings.url)
    if isinstance(place, Path):
        return FileStore(place)
    from agent.adapters.s3 import S3Store  # noqa: PLC0415  the SDK costs 340 ms and 45 MB that a folder never needs

    return S3Store(settings, *place)


def place_of(url: str) -> Path | tuple[str, str]:
    """The folder, or the bucket and prefix, at a store's URL; raises InputError as `open_store`."""
    parts = urlsplit(url)
    prefix = unquote(parts.path).strip("/")
    if parts.scheme == "file" and parts.netloc in {"", "localhost"} and prefix:
        return Path("/") / prefix
    if parts.scheme == "s3" and parts.netloc:
        return parts.netloc, prefix
    raise InputError(f"{url}: not a store; write s3://bucket/prefix or file:///path/to/folder, or https://host/path")


def check_key(key: str) -> str:
    """The key, when it is one.

    Raises:
        InputError: it could leave the store.
    """
    steps = key.split("/")
    if "\\" in key or "\0" in key or len(key.encode()) > KEY_BYTES or any(step in {"", ".", ".."} for step in steps):
        raise InputError(f"key {key[:80]!r}: a key is a relative path without '..', empty steps or backslashes")
    return key


class FileStore(Store):
    """A folder as a store: a stick, a mirror, a test."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def stream(self, key: str, start: int = 0, etag: str | None = None) -> Download:
        """As `Store.stream`."""
        path = self._path(key)
        number = self.descriptor(key)
        found = os.fstat(number)
        mark = f"{found.st_ino:x}-{found.st_mtime_ns:x}-{found.st_size:x}"
        if (etag not in {None, mark}) or start > found.st_size:
            os.close(number)
            raise Changed(f"{path}: it is not the file it was: it is fetched from its beginning")
        os.lseek(number, start, os.SEEK_SET)
        file = os.fdopen(number, "rb", buffering=0)
        return Download(mark, found.st_size, start, _pieces(file, path, found.st_size - start), file.close, key)

    def _path(self, key: str) -> Path:
        return self.root / check_key(key)

    def descriptor(self, key: str) -> int:
        """Of a plain file inside the store: a stick may hold links, pipes and devices. Raises as `Store.stream`."""
        path = self._path(key)
        try:
            if not path.resolve(strict=True).is_relative_to(self.root.resolve()):
                raise Missing(f"{key}: it is a link out of {self.root}; put the file itself there")
            number = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except (FileNotFoundError, NotADirectoryError) as error:
            raise Missing(f"{path}: no such file") from error
        except (OSError, RuntimeError) as error:
            raise TransferError(f"{path}: cannot be opened ({error}): check its owner and mode") from error
        if not stat.S_ISREG(os.fstat(number).st_mode):
            os.close(number)
            raise Missing(f"{path}: a folder or a device, not a file")
        return number


def _pieces(file: BinaryIO, path: Path, left: int) -> Iterator[bytes]:
    while left > 0:
        try:
            piece = file.read(min(CHUNK_BYTES, left))
        except OSError as error:
            raise TransferError(f"{path}: reading failed ({error}): check the disk or stick") from error
        if not piece:
            return
        left -= len(piece)
        yield piece
