"""The heads of HTTP/1.1 requests and responses. Bodies pass by them untouched.

1. h11 reads a request's head, by the letter of RFC 9112; what it refuses is refused.
2. A body has a length that is known before it comes: a chunked one gets 411. So two sides can never disagree
   where a request ends.
3. An error has a status, and a sentence as the Open Inference Protocol writes it.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from http import HTTPStatus

import h11
import msgspec

HEAD_BYTES = 16 * 1024  # request line and headers; what browsers and proxies send stays below 8 KB
HEADS = 64  # remembered: a camera's are the same each time, and reading one takes a third of the door's work

JSON = {"Content-Type": "application/json"}
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"


class HttpError(Exception):
    """A request that is refused."""

    def __init__(self, status: int, reason: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(reason)
        self.status = status
        self.headers = headers or {}

    def body(self) -> bytes:
        """The sentence, as the protocol writes it."""
        return msgspec.json.encode({"error": str(self)})


@dataclass(frozen=True, slots=True)
class RequestHead:
    """What is asked, and how long its body is."""

    method: str
    path: str
    length: int
    headers: Mapping[str, str] = field(default_factory=dict)
    keeps_alive: bool = True
    waits_for_continue: bool = False


@lru_cache(HEADS)
def read_head(head: bytes) -> RequestHead:
    """The request that a head stands for.

    Raises:
        HttpError: it is not one.
    """
    connection = h11.Connection(h11.SERVER, max_incomplete_event_size=HEAD_BYTES)
    try:
        connection.receive_data(head)
        event = connection.next_event()
    except h11.RemoteProtocolError as error:
        raise HttpError(error.error_status_hint, f"this is not HTTP/1.1: {error}") from error
    if not isinstance(event, h11.Request):
        raise HttpError(HTTPStatus.BAD_REQUEST, "this is not HTTP/1.1: there is no request line")
    headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in event.headers}
    closes = "close" in headers.get("connection", "").lower()
    return RequestHead(
        method=event.method.decode("ascii"),
        path=event.target.decode("latin-1").partition("?")[0],
        length=int(headers.get("content-length", "0")),
        headers=headers,
        keeps_alive=event.http_version == b"1.1" and not closes and "transfer-encoding" not in headers,
        waits_for_continue=connection.they_are_waiting_for_100_continue,
    )


def write_head(status: int, length: int, headers: Mapping[str, str], *, keeps_alive: bool) -> bytes:
    """The head of a response with a body of `length` bytes."""
    lines = [f"HTTP/1.1 {status} {HTTPStatus(status).phrase}", f"Content-Length: {length}"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    if not keeps_alive:
        lines.append("Connection: close")
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")


def unavailable(reason: str, seconds: float) -> HttpError:
    """The refusal that says when to try again."""
    return HttpError(HTTPStatus.SERVICE_UNAVAILABLE, reason, {"Retry-After": str(max(1, math.ceil(seconds)))})
