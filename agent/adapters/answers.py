"""An HTTP answer, whichever client asked: what of it is believed before the first byte, and its bytes.

1. The status alone says nothing: offset, length and size must agree with what was asked.
2. A web page is not an object: a login page of a hotel or a captive portal answers 200 to everything.
3. Bytes are taken as they arrive (`read1`), so that a server which drips one byte at a time cannot hold a worker
   thread inside one call: every HEARTBEAT_S at the latest the caller gets what there is.
"""

import re
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http import HTTPStatus

from urllib3 import BaseHTTPResponse
from urllib3.exceptions import HTTPError

from agent.adapters.store import CHUNK_BYTES, Changed, Denied, Download, Missing
from agent.core.errors import TransferError

CONNECT_S = 10.0  # a handshake over a satellite takes 3
READ_S = 20.0  # silence that counts as a dead connection
HEARTBEAT_S = 1.0
RECEIVE_BYTES = 256 * 1024  # what one receive may bring
RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+)")


def download(body: BaseHTTPResponse, start: int, etag: str | None, where: str) -> Download:
    """The object behind an answer, from `start` or from its beginning.

    Args:
        body: the answer, whose status is below 300.
        start: the byte that was asked for.
        etag: the mark that was asked for.
        where: the object's name in messages.

    Raises:
        Changed: other bytes than asked for would come.
        TransferError: it is not the object that answers, or its length is not said.
    """
    try:
        begins, size = _extent(body.status, body.headers, start, where)
        mark = body.headers.get("etag", "")
        if etag not in {None, mark}:
            raise changed(where)
    except TransferError:
        body.close()
        raise
    # a weak mark means the same to people, not to bytes: no server continues by it
    return Download("" if mark.startswith("W/") else mark, size, begins, _pieces(body, where), body.close, where)


def _extent(status: int, headers: Mapping[str, str], start: int, where: str) -> tuple[int, int]:
    """Where the bytes of an answer begin, and the size of the whole object."""
    if headers.get("content-type", "").startswith("text/html"):
        raise TransferError(
            f"{where}: a web page came in its place: log this network in (captive portal) or correct the store's URL"
        )
    said, written = headers.get("content-range"), headers.get("content-length", "")
    if not written.isdecimal():
        raise TransferError(f"{where}: the server does not say how long it is: use a server that sends Content-Length")
    length = int(written)
    if said is None and status != HTTPStatus.PARTIAL_CONTENT:
        return 0, length
    match = RANGE.fullmatch(said or "")
    if match is None or match[1] != str(start) or (int(match[3]) - start, int(match[2]) + 1) != (length, int(match[3])):
        raise Changed(f"{where}: asked from byte {start}, the server answers {said!r}: fetched from the beginning")
    return start, int(match[3])


def _pieces(body: BaseHTTPResponse, where: str) -> Iterator[bytes]:
    """What arrives, in pieces: as soon as CHUNK_BYTES or HEARTBEAT_S are full."""
    gathered, due = bytearray(), time.monotonic() + HEARTBEAT_S
    while True:
        try:
            with connected(where):
                arrived = body.read1(min(RECEIVE_BYTES, CHUNK_BYTES - len(gathered)), decode_content=False)
        except TransferError:
            yield bytes(gathered)  # on a network that cuts early and often, these bytes are all the progress there is
            raise
        gathered += arrived
        if gathered and (not arrived or len(gathered) == CHUNK_BYTES or time.monotonic() >= due):
            yield bytes(gathered)
            gathered, due = bytearray(), time.monotonic() + HEARTBEAT_S
        if not arrived:
            return


@contextmanager
def connected(where: str) -> Iterator[None]:
    """The errors of a connection as ours."""
    try:
        yield
    except (HTTPError, OSError) as error:
        raise unreachable(error, where) from error


def unreachable(error: Exception, where: str) -> TransferError:
    """What a connection that failed means."""
    return TransferError(f"{where}: no connection ({short(error)}): check the network; it is tried again")


def refused(status: int, where: str, code: str = "") -> TransferError:
    """What a status that brings no object means."""
    match status:
        case 404 | 410:
            return Missing(f"{where}: there is nothing under this key")
        case 403:
            return Denied(f"{where}: access denied: give these credentials the right, or correct them")
        case 412 | 416:
            return changed(where)
        case 401 | 407:
            return TransferError(f"{where}: the server wants to know who asks: set the store's credentials")
    return TransferError(f"{where}: the server answers {f'{status} {code}'.strip()}: it is tried again")


def changed(where: str) -> Changed:
    """Other bytes lie there now."""
    return Changed(f"{where}: it is not the object it was: it is fetched from its beginning")


def short(error: Exception) -> str:
    """An error of a library's in one line: of an attempt that failed, why."""
    return str(getattr(error, "reason", None) or error).replace("\n", " ")[:200]
