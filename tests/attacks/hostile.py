"""A bucket that belongs to an attacker: it holds what the desk wrote, and answers as it likes.

It speaks as much of S3 as a reader needs, over HTTP on the loopback. A trick is called with the open request and the
bytes that an honest bucket would send (None: there are none), and answers in its own way.
"""

import hashlib
import threading
import time
from contextlib import contextmanager, suppress
from fnmatch import fnmatchcase
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

URL = "s3://models/plant"
PREFIX = "/models/plant/"
DRIP_S = 0.05
PORTAL = b"<!DOCTYPE html><html><title>Welcome to our WLAN</title><form action=/login>Room number</form></html>"


class HostileBucket:
    """A bucket in front of a folder."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.tricks = {}
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), answering(self))
        self.server.daemon_threads = True
        threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True).start()
        self.settings = {
            "url": URL, "endpoint": f"http://127.0.0.1:{self.server.server_address[1]}", "region": "us-east-1",
            "access_key": "anybody", "secret_key": "anything",
        }  # fmt: skip

    def close(self):
        self.server.shutdown()
        self.server.server_close()

    def read(self, key):
        with suppress(OSError):
            return (self.folder / key).read_bytes()
        return None

    @contextmanager
    def playing(self, pattern, trick):
        """Meanwhile, keys of a pattern are answered by a trick."""
        self.tricks[pattern] = trick
        try:
            yield
        finally:
            del self.tricks[pattern]


def answering(bucket):
    """The handler of requests to a bucket."""

    class Answer(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self):
            key = unquote(urlsplit(self.path).path.removeprefix(PREFIX))
            trick = next((trick for pattern, trick in bucket.tricks.items() if fnmatchcase(key, pattern)), honest)
            trick(self, bucket.read(key))

        def handle(self):
            with suppress(ConnectionError):  # it has heard enough
                super().handle()

        def log_message(self, *_):
            pass

    return Answer


def answer(request, status, content, **headers):
    """One whole answer."""
    request.send_response(status)
    for name, value in headers.items():
        request.send_header(name.replace("_", "-"), value)
    request.send_header("Content-Length", str(len(content)))
    request.end_headers()
    request.wfile.write(content)


# --- tricks ------------------------------------------------------------------------------------------------------


def honest(request, content):
    """As S3 does."""
    if content is None:
        answer(request, 404, b"<Error><Code>NoSuchKey</Code></Error>")
        return
    mark, (start, _, _) = (
        f'"{hashlib.md5(content).hexdigest()}"',
        request.headers.get("Range", "bytes=0-")[6:].partition("-"),
    )
    if request.headers.get("If-Match", mark) != mark:
        answer(request, 412, b"<Error><Code>PreconditionFailed</Code></Error>")
    elif int(start):
        extent = f"bytes {start}-{len(content) - 1}/{len(content)}"
        answer(request, 206, content[int(start) :], ETag=mark, Content_Range=extent)
    else:
        answer(request, 200, content, ETag=mark)


def serving(change):
    """Other bytes, or what a function makes of the true ones."""

    def trick(request, content):
        honest(request, change if isinstance(change, bytes) else change(content))

    return trick


def endless(request, _):
    """A body that says it has a terabyte, and goes on."""
    request.send_response(200)
    request.send_header("Content-Length", str(10**12))
    request.end_headers()
    while True:
        request.wfile.write(bytes(65536))


def dripping(request, content):
    """The right bytes, twenty in a second."""
    request.send_response(200)
    request.send_header("Content-Length", str(len(content)))
    request.end_headers()
    for place in range(len(content)):
        request.wfile.write(content[place : place + 1])
        time.sleep(DRIP_S)


def portal(request, _):
    """The page of a hotel instead of what was asked for, as if it were that."""
    answer(request, 200, PORTAL, Content_Type="text/html")


def plain_portal(request, _):
    """As above, by a box that does not say what it sends."""
    answer(request, 200, PORTAL)


def redirect(request, _):
    """The way to the page of a hotel."""
    answer(request, 302, b"", Location="http://127.0.0.1/login")
