"""What a bucket's refusals become."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from safehold.model.errors import SafeholdError, StoreError, StoreFull, StorePermission, StoreUnavailable
from safehold.objects.cloud import CloudStore, open_s3


class _Refusing(BaseHTTPRequestHandler):
    """Answers every request with the status and code that the server was given."""

    def _answer(self) -> None:
        status, code = self.server.answer  # type: ignore[attr-defined]
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        body = f"<Error><Code>{code}</Code><Message>no</Message></Error>".encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    do_GET = do_PUT = do_HEAD = do_DELETE = do_POST = _answer  # noqa: N815

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[ThreadingHTTPServer]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Refusing)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def store(server: ThreadingHTTPServer, monkeypatch: pytest.MonkeyPatch) -> CloudStore:
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.server_address[1]}")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    return open_s3("s3://bucket/prefix")


@pytest.mark.parametrize(
    ("status", "code", "kind"),
    [
        (507, "InsufficientStorage", StoreFull),
        (403, "QuotaExceeded", StoreFull),
        (507, "XMinioStorageFull", StoreFull),
        (403, "AccessDenied", StorePermission),
        (503, "SlowDown", StoreUnavailable),
        (500, "InternalError", StoreUnavailable),
        (400, "InvalidArgument", StoreError),
    ],
)
def test_a_refused_put_says_what_the_matter_is(
    server: ThreadingHTTPServer, store: CloudStore, status: int, code: str, kind: type[SafeholdError]
) -> None:
    server.answer = status, code  # type: ignore[attr-defined]
    # The name holds what looks like other status codes.
    with pytest.raises(StoreError) as caught:
        store.put("packs/hot/40/403500507", [b"x"])
    assert type(caught.value) is kind, caught.value
