"""Request handler: one connection, its request and its response, with limits on size and time."""

from __future__ import annotations

import json
import socket
from collections.abc import Mapping
from contextlib import AbstractContextManager
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler
from io import BufferedReader, BytesIO, RawIOBase
from pathlib import Path
from time import monotonic
from typing import Any, BinaryIO, Protocol
from urllib.parse import urlsplit

from gaussad_pl.errors import UserError
from gaussad_pl.web.senders import is_same_site, is_served

PAGE = Path(__file__).with_name("page")
KINDS = {".html": "text/html", ".css": "text/css", ".js": "text/javascript"}
FILES = (
    "page.css", "page.js", "camera.js", "judging.js", "plot.js", "queue.js", "records.js", "table.js", "threshold.js",
)  # fmt: skip
SERVED = {"/": "page.html", **{f"/{name}": name for name in FILES}}  # no request names a file in any other way
LARGEST = 64 * 2**20  # bytes of an upload
IDLE = 30  # seconds that a client may be silent, or block the sending of a response
WHOLE = 120  # seconds that a request may take to arrive
LINGER = 5  # seconds that a client has to read why its upload was refused
CHUNK = 2**20  # bytes to read at once
HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src data:; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "Permissions-Policy": "camera=(self)",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


class RefusedError(Exception):
    """A request that is refused, with the status and the message of the response."""

    def __init__(self, status: HTTPStatus, message: str) -> None:
        super().__init__(message)
        self.status = status


class _Arriving(RawIOBase):
    """The incoming bytes of a connection; a TimeoutError if the client is idle or the request takes too long."""

    def __init__(self, connection: socket.socket) -> None:
        self.connection = connection
        self.end = monotonic() + WHOLE

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        left = self.end - monotonic()
        if left <= 0:
            raise TimeoutError
        self.connection.settimeout(min(left, IDLE))
        return self.connection.recv_into(buffer)


class Page(Protocol):
    """The application behind the page; `detect` is called for one image at a time."""

    def about(self) -> dict[str, Any]:
        """Return what the page shows before the first image."""

    def detect(self, file: BinaryIO) -> dict[str, Any]:
        """Return the prediction for the image in a file."""


class Limits(Protocol):
    """The server of a handler, with the limits that all connections share."""

    demo: Page
    names: set[str]
    turn: AbstractContextManager[Any]

    def hold(self, count: int) -> None:
        """Reserve memory for an upload."""


class Handler(BaseHTTPRequestHandler):
    """Serves the page and answers its requests in JSON.

    ``GET /`` returns the page, ``GET /page.css`` and the like its other files, ``GET /about`` describes the detector,
    and ``POST /detect`` scores the uploaded image.
    """

    server: Limits  # type: ignore[assignment]
    timeout = IDLE

    def setup(self) -> None:
        super().setup()
        self.rfile.close()
        self.arriving = _Arriving(self.connection)
        self.rfile = BufferedReader(self.arriving)

    def do_GET(self) -> None:
        """Answer requests for the files of the page and for the description of the detector."""
        path = urlsplit(self.path).path
        try:
            self._check_sender()
            if path == "/about":
                self._json(HTTPStatus.OK, {**self.server.demo.about(), "largest": LARGEST})
            elif path in SERVED:
                file = PAGE / SERVED[path]
                self._send(HTTPStatus.OK, f"{KINDS[file.suffix]}; charset=utf-8", file.read_bytes())
            else:
                raise RefusedError(HTTPStatus.NOT_FOUND, "This page does not exist.")
        except RefusedError as refusal:
            self._json(refusal.status, {"error": str(refusal)})

    def do_POST(self) -> None:
        """Score an uploaded image."""
        try:
            self._check_sender()
            if urlsplit(self.path).path != "/detect":
                raise RefusedError(HTTPStatus.NOT_FOUND, "This page does not exist.")
            content = self._detect(self._length())
        except RefusedError as refusal:
            self._json(refusal.status, {"error": str(refusal)})
            self._linger()
        except UserError as error:
            self._json(HTTPStatus.BAD_REQUEST, {"error": str(error)})
            self._linger()
        else:
            self._json(HTTPStatus.OK, content)

    def _check_sender(self) -> None:
        """Refuse requests that a page of another site made the browser send."""
        host, origin = self.headers.get("Host", ""), self.headers.get("Origin")
        if not is_served(host, self.server.names):
            raise RefusedError(HTTPStatus.FORBIDDEN, f"{host} is not a name of this server: open it by its IP address.")
        if not is_same_site(origin, host):
            raise RefusedError(HTTPStatus.FORBIDDEN, "Requests from pages of other sites are refused.")

    def _length(self) -> int:
        text = self.headers.get("Content-Length", "")
        if not (text.isascii() and text.isdecimal()):
            raise RefusedError(HTTPStatus.LENGTH_REQUIRED, "The request has no Content-Length.")
        if len(text) > 20 or int(text) > LARGEST:  # int() refuses thousands of digits
            raise RefusedError(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"The file is larger than {LARGEST // 2**20} MB.")
        if int(text) == 0:
            raise RefusedError(HTTPStatus.BAD_REQUEST, "The file is empty.")
        return int(text)

    def _detect(self, length: int) -> Mapping[str, Any]:
        """Read an upload and score it; the memory it reserves is released before the response is sent."""
        file, held = BytesIO(), 0
        try:
            while held < length:
                chunk = self.rfile.read1(min(CHUNK, length - held))
                if not chunk:
                    raise ConnectionAbortedError
                self.server.hold(len(chunk))
                held += len(chunk)
                file.write(chunk)
            with self.server.turn:
                self._check_presence()
                return self.server.demo.detect(file)
        finally:
            self.server.hold(-held)

    def _check_presence(self) -> None:
        """Raise if the client has disconnected while its image was waiting."""
        self.connection.setblocking(False)
        try:
            if not self.connection.recv(1, socket.MSG_PEEK):
                raise ConnectionAbortedError
        except BlockingIOError:
            pass
        finally:
            self.connection.settimeout(IDLE)

    def _linger(self) -> None:
        """Keep reading for a moment, as a client that is still sending would not see the response otherwise."""
        self.connection.shutdown(socket.SHUT_WR)
        self.arriving.end = monotonic() + LINGER
        while self.rfile.read1(CHUNK):
            pass

    def _json(self, status: HTTPStatus, content: Mapping[str, Any]) -> None:
        self._send(status, "application/json", json.dumps(content).encode())

    def _send(self, status: HTTPStatus, kind: str, body: bytes) -> None:
        self.connection.settimeout(IDLE)
        self.send_response(status)
        for name, value in {"Content-Type": kind, "Content-Length": str(len(body)), **HEADERS}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        """Log nothing: the terminal shows only the address."""
