"""An S3 bucket as the desk has it: it also writes and lists (fleet/stores.py has the rules)."""

from collections.abc import Iterator
from typing import Any, BinaryIO

from agent.adapters.s3 import S3Store, translated
from agent.adapters.store import Changed, Denied, Missing, check_key
from agent.core.errors import InputError
from fleet.stores import Exists

PUT_BYTES = 5 * 1024**3  # what S3 takes in one request


class DeskBucket(S3Store):
    """One bucket, below one prefix."""

    def write(self, key: str, content: bytes | BinaryIO, *, if_absent: bool = False) -> None:
        """As `DeskStore.write`."""
        where = self._where(key)
        if if_absent and self._is_there(key):  # some servers ignore IfNoneMatch; a race stays possible there
            raise Exists(where)
        _check_put(content, where)
        asked: dict[str, Any] = {"IfNoneMatch": "*"} if if_absent else {}
        try:
            with translated(where):
                self.client.put_object(Bucket=self.bucket, Key=self._key(key), Body=content, **asked)
        except Changed as error:
            raise Exists(where) from error

    def keys(self, prefix: str = "") -> Iterator[str]:
        """As `DeskStore.keys`."""
        if prefix:
            check_key(prefix.removesuffix("/"))
        pages = self.client.get_paginator("list_objects_v2").paginate(Bucket=self.bucket, Prefix=self.prefix + prefix)
        with translated(self._where(prefix)):
            for page in pages:
                for found in page.get("Contents", ()):
                    yield found["Key"].removeprefix(self.prefix)

    def _is_there(self, key: str) -> bool:
        try:
            with translated(self._where(key)):
                self.client.head_object(Bucket=self.bucket, Key=self._key(key))
        except (Missing, Denied):
            return False
        return True


def _check_put(content: bytes | BinaryIO, where: str) -> None:
    if isinstance(content, bytes):
        return
    here = content.tell()
    size = content.seek(0, 2) - here
    content.seek(here)
    if size > PUT_BYTES:
        raise InputError(f"{where}: {size / 1e9:.1f} GB; one object holds at most 5 GB: publish a smaller release")
