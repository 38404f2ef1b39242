"""An exported file as a store: an uncompressed zip, read in place, for sites without a network.

A stick is as hostile as a bucket. Nothing is unpacked and no name in the file ever becomes a path: an entry is a
range of bytes under a key. So only plain entries are taken: stored, not encrypted, no links, inside the file, each
key once. The index is read only up to INDEX_BYTES. What the bytes are worth is the caller's to verify, as always.
"""

import os
import stat
import struct
import zipfile
from collections.abc import Iterator
from io import FileIO
from pathlib import Path

from agent.adapters.store import Changed, Download, FileStore, Missing, Store, check_key
from agent.core.errors import InputError

INDEX_BYTES = 4 * 1024 * 1024  # 30,000 entries; it lies in memory, with what Python makes of it
LOCAL = struct.Struct("<4s22xHH")  # APPNOTE.TXT 4.3.7: signature ... length of the name, of the extra field


class ArchiveStore(Store):
    """One file, opened and looked through."""

    def __init__(self, path: Path) -> None:
        """The store in a file.

        Raises:
            InputError: it is no export, or holds what none holds.
            Missing: it is not there, or is a link or a device.
        """
        self.path = path
        self._folder = FileStore(path.parent)
        try:
            with Index(self._folder.descriptor(path.name)) as file:
                self._entries = dict(_entries(file))
        except (zipfile.BadZipFile, InputError, NotImplementedError, ValueError, OSError, struct.error) as error:
            raise InputError(f"{path}: not a whole export ({error}); make one with `edge-fleet export`") from error

    def stream(self, key: str, start: int = 0, etag: str | None = None) -> Download:
        """As `Store.stream`."""
        if check_key(key) not in self._entries:
            raise Missing(f"{self.path}: {key} is not in it; export it again")
        begin, size = self._entries[key]
        whole = self._folder.stream(self.path.name, begin + min(start, size))
        mark = f"{whole.etag}-{begin:x}"
        if etag not in {None, mark} or start > size:
            whole.close()
            raise Changed(f"{self.path}: {key} is not what was read before: it is read from its beginning")
        return Download(mark, size, start, _first(whole.pieces, size - start), whole.close, f"{self.path}: {key}")


class Index(FileIO):
    """A file whose index may be read, and does not fill the memory."""

    def read(self, size: int | None = -1) -> bytes:
        """As of any file, up to INDEX_BYTES."""
        if size is not None and size > INDEX_BYTES:
            raise zipfile.BadZipFile(f"an index of {size} bytes; at most {INDEX_BYTES} are read")
        return super().read(size)


def _entries(file: Index) -> Iterator[tuple[str, tuple[int, int]]]:
    """Key, and where its bytes begin and how many there are."""
    end, seen = os.fstat(file.fileno()).st_size, set[str]()
    with zipfile.ZipFile(file) as archive:
        for one in archive.infolist():
            key = check_key(one.filename)
            if key in seen:
                raise InputError(f"{key} is in it twice")
            plain = one.compress_type == zipfile.ZIP_STORED and one.compress_size == one.file_size
            if not plain or one.flag_bits & 1 or stat.S_ISLNK(one.external_attr >> 16):
                raise InputError(f"{key} is compressed, encrypted or a link")
            file.seek(one.header_offset)
            _, name, extra = LOCAL.unpack(file.read(LOCAL.size))
            begin = one.header_offset + LOCAL.size + name + extra
            if begin + one.file_size > end:
                raise InputError(f"{key} ends after the file does: it was not copied to its end")
            seen.add(key)
            yield key, (begin, one.file_size)


def _first(pieces: Iterator[bytes], left: int) -> Iterator[bytes]:
    while left > 0 and (piece := next(pieces, b"")):
        yield piece[:left]
        left -= len(piece)
