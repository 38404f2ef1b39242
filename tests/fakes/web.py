"""A web server over TLS that serves a folder as a CDN does: ranges, If-Range, marks, redirects, who may.

Knobs: `bearer`: the token it wants · `away`: a path that begins with it is sent to this URL · `asked`: the headers of
each request.
"""

import re
import ssl
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote

from agent.adapters.store import StoreSettings, open_store
from fleet.stores import DeskFolder


class Web(ThreadingHTTPServer):
    """Serves `folder` with a certificate of `authority`; with `mutual`, only to those whom it vouches for."""

    def __init__(self, folder, authority, *, mutual=False):
        super().__init__(("127.0.0.1", 0), Answer)
        self.folder, self.authority = folder, authority
        self.bearer, self.away, self.asked = None, {}, []
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*authority.issue("127.0.0.1"))
        if mutual:
            context.verify_mode = ssl.CERT_REQUIRED
            context.load_verify_locations(authority.ca)
        self.socket = context.wrap_socket(self.socket, server_side=True, do_handshake_on_connect=False)
        self.url = f"https://127.0.0.1:{self.server_address[1]}"
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    def store(self, **access):
        return open_store(StoreSettings(**{"url": self.url, "ca": str(self.authority.ca), **access}))

    def handle_error(self, request, client_address):
        pass  # a client that was refused, or left

    def close(self):
        self.shutdown()
        self.server_close()


class Answer(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    timeout = 10

    def do_GET(self):
        web, path = self.server, unquote(self.path).lstrip("/")
        web.asked.append(self.headers)
        if web.bearer and self.headers.get("Authorization") != f"Bearer {web.bearer}":
            return self.say(401)
        for prefix, url in web.away.items():
            if path.startswith(prefix):
                return self.say(302, Location=f"{url}/{path}")
        file = web.folder / path
        if not file.is_file():
            return self.say(404)
        return self.send(file.read_bytes())

    def send(self, content):
        mark = f'"{hash(content):x}"'
        asked = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        if asked is None or self.headers.get("If-Range", mark) != mark:
            return self.say(200, content, ETag=mark)
        start, size = int(asked[1]), len(content)
        if start >= size:
            return self.say(416, Content_Range=f"bytes */{size}")
        return self.say(206, content[start:], ETag=mark, Content_Range=f"bytes {start}-{size - 1}/{size}")

    def say(self, status, body=b"", **headers):
        self.send_response(status)
        for name, value in {"Content_Length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args):
        pass


class Published:
    """A web server as its desk and its devices see it together: written to a folder, read over TLS."""

    def __init__(self, web):
        origin, self._read = DeskFolder(web.folder), web.store()
        self.write, self.keys = origin.write, origin.keys
        self.read, self.stream = self._read.read, self._read.stream
