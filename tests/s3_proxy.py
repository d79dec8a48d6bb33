"""An HTTP proxy on loopback that disturbs the requests to an object store as told."""

import http.client
import socket
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

HOP_BY_HOP = ("content-length", "connection", "transfer-encoding")
LIMIT_S = 20  # for every wait here, so that a failed test ends


class Faults:
    """What happens to the next requests of each method, one entry per request.

    Only requests whose path contains ``where`` count: how many come before them is not known.
    "500" and "503" answer so at once; "before" drops the connection in the middle of the body;
    "after" forwards the whole request and drops the answer; "timeout" forwards it and does not
    answer; "short" sends half of the answer's body; "" forwards.
    """

    def __init__(
        self,
        plan: Mapping[str, Sequence[str]] | None = None,
        drop_headers: Sequence[str] = (),
        where: str = "",
    ) -> None:
        self.plan = {method: list(faults) for method, faults in (plan or {}).items()}
        self.drop_headers = drop_headers
        self.where = where
        self.requests: list[tuple[str, str]] = []
        self.sent: list[tuple[str, int]] = []  # path and bytes of the body of each answer to a GET
        self.released = threading.Event()

    def take(self, method: str) -> str:
        """The fault of the request that has just come; recorded."""
        waiting = self.plan.get(method, [])
        fault = waiting.pop(0) if waiting else ""
        self.requests.append((method, fault))
        return fault


class Handler(BaseHTTPRequestHandler):
    """Forwards one connection's requests."""

    protocol_version = "HTTP/1.1"

    def __init__(self, faults: Faults, upstream: str, *connection: object) -> None:
        self.faults = faults
        self.upstream = upstream
        super().__init__(*connection)

    def forward(self) -> None:
        fault = self.faults.take(self.command) if self.faults.where in self.path else ""
        length = int(self.headers.get("content-length", 0))
        if fault == "before":
            self.rfile.read(length // 2)
            self.cut()
            return
        body = self.rfile.read(length)
        if fault in ("500", "503"):
            self.answer(int(fault), {}, b"")
            return
        status, headers, data = self.ask_upstream(body)
        if self.command == "GET":
            self.faults.sent.append((self.path, len(data)))
        if fault == "timeout":
            self.faults.released.wait(LIMIT_S)
        if fault in ("after", "timeout"):
            self.cut()
            return
        self.answer(status, headers, data, short=fault == "short")

    do_GET = do_PUT = do_HEAD = do_POST = do_DELETE = forward

    def ask_upstream(self, body: bytes) -> tuple[int, dict[str, str], bytes]:
        kept = {k: v for k, v in self.headers.items() if k.lower() not in self.faults.drop_headers}
        connection = http.client.HTTPConnection(self.upstream, timeout=LIMIT_S)
        try:
            connection.request(self.command, self.path, body, kept)
            reply = connection.getresponse()
            return reply.status, dict(reply.getheaders()), reply.read()
        finally:
            connection.close()

    def cut(self) -> None:
        self.close_connection = True
        self.connection.shutdown(socket.SHUT_RDWR)

    def answer(
        self, status: int, headers: Mapping[str, str], data: bytes, short: bool = False
    ) -> None:
        self.send_response_only(status)
        for name, value in headers.items():
            if name.lower() not in HOP_BY_HOP:
                self.send_header(name, value)
        size = headers.get("Content-Length", "0") if self.command == "HEAD" else str(len(data))
        self.send_header("Content-Length", size)
        self.end_headers()
        self.wfile.write(data[: len(data) // 2] if short else data)
        if short:
            self.cut()


class Server(ThreadingHTTPServer):
    """A server whose clients may hang up as they like."""

    daemon_threads = True

    def handle_error(self, request: object, client_address: object) -> None:
        """Say nothing: a client that timed out has left its connection."""


@contextmanager
def proxied(endpoint: str, faults: Faults) -> Iterator[str]:
    """Run a proxy in front of an endpoint (http://host:port) and give its address."""
    server = Server(("127.0.0.1", 0), partial(Handler, faults, endpoint.removeprefix("http://")))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        faults.released.set()
        server.shutdown()
        thread.join(LIMIT_S)
        server.server_close()
