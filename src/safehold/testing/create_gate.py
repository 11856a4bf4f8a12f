"""A gate before an S3 server that lets nothing be written without If-None-Match.

It stands in for the one condition of the writers' store policy, `"Null": {"s3:if-none-match": "false"}`, that the server of the tests does not
know and Amazon's does. Everything else goes through as it came, signatures too.
"""

from __future__ import annotations

import contextlib
import http.client
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

__all__ = ["create_gate"]

_REFUSAL = b"<Error><Code>AccessDenied</Code></Error>"
_UPLOAD = {"uploads", "uploadId"}
"""In the query of a POST: the begin and the end of a multipart upload, which need the same permission as a put."""


class _Gate(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def _pass(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        query = parse_qs(urlsplit(self.path).query, keep_blank_values=True)
        writes = self.command == "PUT" or (self.command == "POST" and not _UPLOAD.isdisjoint(query))
        if writes and "If-None-Match" not in self.headers:
            self._answer(403, {"Content-Type": "application/xml"}, _REFUSAL, len(_REFUSAL))
            return
        onward = http.client.HTTPConnection(self.server.behind)
        try:
            onward.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
            for name, value in self.headers.items():
                onward.putheader(name, value)
            onward.endheaders(body)
            answer = onward.getresponse()
            data = answer.read()
        finally:
            onward.close()
        # The answer to a HEAD tells the length of a body that does not come.
        length = int(answer.headers.get("Content-Length", 0)) if self.command == "HEAD" else len(data)
        kept = {
            n: v
            for n, v in answer.headers.items()
            if n.lower() not in ("content-length", "transfer-encoding", "connection")
        }
        self._answer(answer.status, kept, data, length)

    def _answer(self, status: int, headers: dict[str, str], data: bytes, length: int) -> None:
        self.send_response_only(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(length))
        self.end_headers()
        self.wfile.write(data)

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = _pass  # noqa: N815


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, behind: str) -> None:
        super().__init__(("127.0.0.1", 0), _Gate)
        self.behind = behind


@contextlib.contextmanager
def create_gate(endpoint: str) -> Iterator[str]:
    """The endpoint of a gate before the server at `endpoint`, on loopback."""
    server = _Server(urlsplit(endpoint).netloc)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
