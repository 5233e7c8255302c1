"""A web server on this machine that answers as badly as the tests ask it to."""

import threading
import time
from collections import Counter
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

#: Longest time for which any handler keeps a connection, so that no thread outlives the tests.
LONGEST = 5.0


class Server(ThreadingHTTPServer):
    """Serves `files` (path -> bytes); the first part of the path says how, e.g. `/truncate/name`.

    `once-HOW` misbehaves at the first request for a path and is good from then on.
    """

    daemon_threads = True

    def __init__(self, files):
        super().__init__(("127.0.0.1", 0), Handler)
        self.files, self.requests, self.sent = files, Counter(), Counter()
        self.closing = threading.Event()
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    def url(self, path):
        return f"http://127.0.0.1:{self.server_address[1]}/{path}"

    def close(self):
        self.closing.set()
        self.shutdown()
        self.server_close()


class Handler(BaseHTTPRequestHandler):
    def log_message(self, *_):
        pass

    def do_GET(self):
        path = self.path.lstrip("/")
        self.server.requests[path] += 1
        how, _, name = path.partition("/")
        if how.startswith("once-"):
            how = how.removeprefix("once-") if self.server.requests[path] == 1 else "good"
        body = self.server.files.get(name)
        if body is None:
            self.send_error(404)
            return
        # The client may have left.
        with suppress(OSError):
            getattr(self, how)(body, name)

    def head(self, length=None, status=200, **headers):
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key.replace("_", "-"), value)
        if length is not None:
            self.send_header("Content-Length", str(length))
        self.end_headers()

    def send(self, body):
        self.wfile.write(body)
        self.server.sent[self.path.lstrip("/")] += len(body)

    def slowly(self, body, block, pause):
        """Send in blocks, but not for longer than `LONGEST`."""
        until = time.monotonic() + LONGEST
        for start in range(0, len(body), block):
            if self.server.closing.wait(pause) or time.monotonic() > until:
                return
            self.send(body[start : start + block])
            self.wfile.flush()

    def good(self, body, _):
        self.head(len(body))
        self.send(body)

    def unannounced(self, body, _):
        self.head()
        self.send(body)

    def missing(self, _, name):
        self.send_error(404)

    def failing(self, _, name):
        self.send_error(503)

    def redirect(self, _, name):
        self.head(0, 302, Location=f"/good/{name}")

    def misdirect(self, _, name):
        self.head(0, 302, Location=f"/wrong/{name}")

    def loop(self, _, name):
        self.head(0, 302, Location=f"/loop/{name}")

    def drop(self, _, name):
        self.connection.close()

    def truncate(self, body, _):
        self.head(len(body))
        self.send(body[: len(body) // 2])

    def quiet_truncate(self, body, _):
        self.head()
        self.send(body[: len(body) // 2])

    def announce_more(self, body, _):
        self.head(2 * len(body))
        self.send(body)

    def announce_less(self, body, _):
        self.head(len(body) // 2)
        self.send(body)

    def announce_nonsense(self, body, _):
        self.head("many")
        self.send(body)

    def wrong(self, body, _):
        self.head(len(body))
        self.send(bytes([body[0] ^ 1]) + body[1:])

    def page(self, _, name):
        text = b"<html>this file has moved</html>"
        self.head(len(text), Content_Type="text/html")
        self.send(text)

    def empty(self, _, name):
        self.head(0, 204)

    def compressed(self, body, _):
        self.head(len(body), Content_Encoding="gzip")
        self.send(body)

    def hang(self, _, name):
        self.server.closing.wait(LONGEST)

    def stall(self, body, _):
        self.head(len(body))
        self.send(body[: len(body) // 2])
        self.wfile.flush()
        self.server.closing.wait(LONGEST)

    def drip(self, body, _):
        self.head(len(body))
        self.slowly(body, 1100, 0.1)

    def slow(self, body, _):
        self.head(len(body))
        self.slowly(body, len(body) // 20 + 1, 0.05)

    def endless(self, body, _):
        self.head()
        for _ in range(1000):
            if self.server.closing.is_set():
                return
            self.send(body)
