"""A store in memory, held to the contract of the real ones (tests/adapters/test_store.py)."""

import hashlib

from agent.adapters.store import CHUNK_BYTES, Changed, Download, Missing, Store, check_key
from agent.core.errors import TransferError
from fleet.stores import Exists


class FakeStore(Store):
    """`offline` refuses everything. `content` may be changed under the reader's hands."""

    def __init__(self, content=None):
        self.content = dict(content or {})
        self.offline = False

    def stream(self, key, start=0, etag=None):
        self._require_network(key)
        if check_key(key) not in self.content:
            raise Missing(f"{key}: not here")
        content = self.content[key]
        mark = hashlib.md5(content).hexdigest()
        if etag not in {None, mark} or start > len(content):
            raise Changed(f"{key}: changed")
        return Download(mark, len(content), start, self._pieces(key, content, start), lambda: None, key)

    def write(self, key, content, *, if_absent=False):
        self._require_network(key)
        if if_absent and check_key(key) in self.content:
            raise Exists(f"{key}: exists")
        self.content[check_key(key)] = content if isinstance(content, bytes) else content.read()

    def keys(self, prefix=""):
        self._require_network(prefix)
        if prefix:
            check_key(prefix.removesuffix("/"))
        yield from sorted(key for key in self.content if key.startswith(prefix))

    def _pieces(self, key, content, start):
        for at in range(start, len(content), CHUNK_BYTES):
            self._require_network(key)
            yield content[at : at + CHUNK_BYTES]

    def _require_network(self, key):
        if self.offline:
            raise TransferError(f"{key}: no network: wait")
