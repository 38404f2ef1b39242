"""Exported files for the tests, good and bad ones."""

import zipfile

from agent.adapters.archive import ArchiveStore
from fleet.stores import DeskFolder


def zipped(path, entries, compression=zipfile.ZIP_STORED, modes=None):
    """A zip at `path` with (key, content) in order, each perhaps with a mode."""
    path.unlink(missing_ok=True)
    with zipfile.ZipFile(path, "w", compression) as archive:
        for key, content in entries:
            head = zipfile.ZipInfo(key)
            head.filename = key  # as it was given: the constructor tidies names
            head.compress_type = compression
            head.external_attr = (modes or {}).get(key, 0o644) << 16
            archive.writestr(head, content)
    return path


class Carried:
    """A file as its desk and its devices see it together: written to a folder, read from an export of that."""

    def __init__(self, folder):
        self.folder = DeskFolder(folder / "origin")
        self.folder.root.mkdir()
        self.path = folder / "site.zip"
        self.keys = self.folder.keys
        self._export()

    def write(self, key, content, *, if_absent=False):
        self.folder.write(key, content, if_absent=if_absent)
        self._export()

    def read(self, key, limit):
        return ArchiveStore(self.path).read(key, limit)

    def stream(self, key, start=0, etag=None):
        return ArchiveStore(self.path).stream(key, start, etag)

    def _export(self):
        zipped(self.path, [(key, self.folder.read(key, 1 << 30)) for key in self.keys()])
