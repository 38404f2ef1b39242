"""A web server or CDN as a store: objects are read over HTTPS, with a bearer token, a certificate, or neither.

It is read alone: a desk writes to what lies behind it. A redirect to another host goes without the token. Nothing is
tried again here, and no page is taken for an object (answers.py).
"""

import ssl
from http import HTTPStatus
from urllib.parse import quote, urlsplit

from urllib3 import PoolManager, Retry, Timeout

from agent.adapters import answers
from agent.adapters.store import Download, Store, StoreSettings, check_key
from agent.core.errors import InputError

REDIRECTS = 3  # a CDN sends to one of its own hosts, perhaps by way of a signed URL


class HttpsStore(Store):
    """What lies below one URL."""

    def __init__(self, settings: StoreSettings) -> None:
        """Raises InputError where the URL or a file that it names is of no use."""
        parts = urlsplit(settings.url)
        if not parts.hostname or parts.query or (settings.cert is None) != (settings.key is None):
            raise InputError(f"{settings.url}: write https://host/path; `cert` and `key` go together")
        try:
            context = ssl.create_default_context(cafile=settings.ca)
            if settings.cert is not None:
                context.load_cert_chain(settings.cert, settings.key)
        except OSError as error:
            raise InputError(f"{settings.url}: ca, cert or key cannot be used ({error}): correct agent.yaml") from error
        self.url = settings.url.rstrip("/")
        self._headers = {"Authorization": f"Bearer {settings.bearer}"} if settings.bearer else {}
        self._pool = PoolManager(
            ssl_context=context,
            timeout=Timeout(connect=answers.CONNECT_S, read=answers.READ_S),
            retries=Retry(total=REDIRECTS, redirect=REDIRECTS, connect=0, read=0, status=0, other=0),
        )

    def stream(self, key: str, start: int = 0, etag: str | None = None) -> Download:
        """As `Store.stream`."""
        where = f"{self.url}/{quote(check_key(key))}"
        asked = {"Accept-Encoding": "identity", **self._headers}
        if start:
            asked |= {"Range": f"bytes={start}-"} | ({"If-Range": etag} if etag else {})
        with answers.connected(where):
            body = self._pool.request("GET", where, headers=asked, preload_content=False)
        if body.status not in {HTTPStatus.OK, HTTPStatus.PARTIAL_CONTENT}:
            body.close()
            raise answers.refused(body.status, where)
        return answers.download(body, start, etag, where)
