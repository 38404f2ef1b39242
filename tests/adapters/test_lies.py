"""Servers that answer wrongly, to both who speak HTTP. Some do so by mistake: rclone says 200 to a range."""

import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from agent.adapters.https import HttpsStore
from agent.adapters.store import Changed, Denied, Missing, StoreSettings
from agent.core.errors import TransferError
from fleet.stores import open_store

CONTENT = b"0123456789"
START = 4


class Liar(ThreadingHTTPServer):
    """Answers every GET with `status`, `headers` and `body`."""

    def __init__(self, kind):
        super().__init__(("127.0.0.1", 0), Answer)
        self.kind = kind
        self.status, self.headers, self.body = 200, {}, b""
        self.thread = threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        self.thread.start()

    def store(self):
        endpoint = f"http://127.0.0.1:{self.server_address[1]}"
        if self.kind == "https":
            return HttpsStore(StoreSettings(url=endpoint))  # what an answer is worth does not hang on TLS
        return open_store("s3://models/x", endpoint=endpoint, access_key="a", secret_key="s")

    def answers(self, status, body, **headers):
        self.status, self.body = status, body
        self.headers = {"ETag": '"1"', "Content-Length": str(len(body))}
        self.headers |= {name.replace("_", "-"): value for name, value in headers.items()}


class Answer(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(self.server.status)
        for name, value in self.server.headers.items():
            if value is not None:
                self.send_header(name, value)
        self.end_headers()
        self.wfile.write(self.server.body)
        self.close_connection = True

    def log_message(self, *args):
        pass


@pytest.fixture(params=["s3", "https"])
def liar(request):
    server = Liar(request.param)
    yield server
    server.shutdown()
    server.server_close()


def take(store):
    with store.stream("key", START, '"1"') as download:
        return download.start, download.size, b"".join(download.pieces)


def test_a_right_answer_with_the_wrong_status_is_right(liar):
    """rclone answers a range with 200: what it says of the bytes counts."""
    liar.answers(200, CONTENT[START:], Content_Range=f"bytes {START}-9/10")
    assert take(liar.store()) == (START, 10, CONTENT[START:])


def test_a_server_without_ranges_is_taken_from_the_beginning(liar):
    """A 200 without a range is the whole object."""
    liar.answers(200, CONTENT)
    assert take(liar.store()) == (0, 10, CONTENT)


@pytest.mark.parametrize(
    "said", ["bytes 3-8/10", "bytes 4-8/10", "bytes 4-9/11", "bytes 4-9/*", "bytes 0-9/10", "nonsense", None]
)
def test_a_range_that_is_not_the_asked_one_is_not_used(liar, said):
    """Another offset, end or size than asked, or none: the bytes are not joined to ours."""
    liar.answers(206, CONTENT[START:], Content_Range=said)
    with pytest.raises(Changed):
        take(liar.store())


def test_a_server_that_ignores_the_condition_is_found_out(liar):
    """The etag of the answer is compared with the one that was asked for."""
    liar.answers(206, CONTENT[START:], Content_Range="bytes 4-9/10", ETag='"2"')
    with pytest.raises(Changed):
        take(liar.store())


def test_an_answer_without_a_length_is_not_begun(liar):
    """Without a length nobody knows when it is whole."""
    liar.answers(200, CONTENT, Content_Length=None)
    with pytest.raises(TransferError, match="does not say how long"):
        take(liar.store())


def test_a_body_that_ends_early_is_not_taken_for_whole(liar):
    """A short body is an error of the transfer, whatever the layer that notices."""
    liar.answers(200, CONTENT, Content_Length="20")
    with pytest.raises(TransferError):
        liar.store().read("key", 100)


@pytest.mark.parametrize("kind", ["text/html", "text/html; charset=utf-8"])
def test_a_captive_portal_is_told_from_an_object(liar, kind):
    """A login page under every address, with 200: said as what it is, and no byte of it is taken."""
    liar.answers(200, b"<html>Welcome to the hotel</html>", Content_Type=kind)
    with pytest.raises(TransferError, match="captive portal"):
        liar.store().read("key", 100)
    with pytest.raises(TransferError, match="captive portal"):
        take(liar.store())


@pytest.mark.parametrize(
    ("status", "kind", "sentence"),
    [
        (500, TransferError, "answers 500"),
        (503, TransferError, "answers 503"),
        (429, TransferError, "answers 429"),
        (401, TransferError, "credentials"),
        (403, Denied, "access denied"),
        (404, Missing, "nothing under this key"),
        (412, Changed, "from its beginning"),
        (416, Changed, "from its beginning"),
        (304, TransferError, "answers 304"),
    ],
)
def test_every_refusal_says_what_to_do(liar, status, kind, sentence):
    """A server in trouble is a matter of waiting; none of its answers is a bug of ours."""
    liar.answers(status, b"" if status == 304 else b"<html>not XML of S3</html>")
    with pytest.raises(kind, match=sentence):
        take(liar.store())


def test_a_weak_mark_is_no_mark():
    """`W/` promises the same meaning, not the same bytes: nothing is continued by it."""
    liar = Liar("https")
    liar.answers(200, CONTENT, ETag='W/"1"')
    with liar.store().stream("key") as download:
        assert download.etag == ""
    liar.shutdown()
    liar.server_close()
