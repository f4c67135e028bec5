"""One connection: a request, its answer, and how long both may take."""

from __future__ import annotations

import json
import socket
from collections.abc import Mapping
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler
from io import BufferedReader, BytesIO, RawIOBase
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, urlsplit

from gaussad_pl.errors import UserError
from gaussad_pl.web.senders import is_same_site, is_served

if TYPE_CHECKING:
    from gaussad_pl.web.server import Server

PAGE = Path(__file__).with_name("page.html")
LARGEST = 64 * 2**20  # bytes of an upload
IDLE = 30  # seconds that a client may be silent, or take to read an answer
WHOLE = 120  # seconds that a request may take to arrive
LINGER = 5  # seconds that a client gets to see why its upload was refused
CHUNK = 2**20  # bytes that are read at once
POLICY = (
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data:; connect-src 'self'; "
    "frame-ancestors 'none'"
)


class RefusedError(Exception):
    """A request that is not to be answered, and why."""

    def __init__(self, status: HTTPStatus, message: str) -> None:
        super().__init__(message)
        self.status = status


class _Arriving(RawIOBase):
    """What a client sends, until it was silent for too long or took too long altogether."""

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


class Handler(BaseHTTPRequestHandler):
    server: Server
    timeout = IDLE

    def setup(self) -> None:
        super().setup()
        self.rfile.close()
        self.arriving = _Arriving(self.connection)
        self.rfile = BufferedReader(self.arriving)

    def do_GET(self) -> None:
        url, demo = urlsplit(self.path), self.server.demo
        try:
            self._check_sender()
            if url.path == "/":
                self._send(HTTPStatus.OK, "text/html; charset=utf-8", PAGE.read_bytes())
            elif url.path == "/about":
                self._json(HTTPStatus.OK, {**demo.about(), "largest": LARGEST})
            elif url.path == "/threshold":
                self._json(HTTPStatus.OK, demo.threshold(self._fpr()))
            else:
                raise RefusedError(HTTPStatus.NOT_FOUND, "There is nothing here.")
        except RefusedError as refusal:
            self._json(refusal.status, {"error": str(refusal)})
        except UserError as error:
            self._json(HTTPStatus.BAD_REQUEST, {"error": str(error)})

    def do_POST(self) -> None:
        try:
            self._check_sender()
            if urlsplit(self.path).path != "/detect":
                raise RefusedError(HTTPStatus.NOT_FOUND, "There is nothing here.")
            content = self._detect(self._length(), self._fpr())
        except RefusedError as refusal:
            self._json(refusal.status, {"error": str(refusal)})
            self._linger()
        except UserError as error:
            self._json(HTTPStatus.BAD_REQUEST, {"error": str(error)})
            self._linger()
        else:
            self._json(HTTPStatus.OK, content)

    def _check_sender(self) -> None:
        """Refuse what a page of another site made a browser send."""
        host, origin = self.headers.get("Host", ""), self.headers.get("Origin")
        if not is_served(host, self.server.names):
            raise RefusedError(HTTPStatus.FORBIDDEN, f"This server is not called {host}: open it by its IP address.")
        if not is_same_site(origin, host):
            raise RefusedError(HTTPStatus.FORBIDDEN, "Only the page of this server may ask.")

    def _length(self) -> int:
        text = self.headers.get("Content-Length", "")
        if not (text.isascii() and text.isdecimal()):
            raise RefusedError(HTTPStatus.LENGTH_REQUIRED, "The length of the file is missing.")
        if len(text) > 20 or int(text) > LARGEST:  # Python converts no number of thousands of digits
            raise RefusedError(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"The file is larger than {LARGEST // 2**20} MB.")
        if int(text) == 0:
            raise RefusedError(HTTPStatus.BAD_REQUEST, "The file is empty.")
        return int(text)

    def _detect(self, length: int, fpr: float) -> Mapping[str, Any]:
        """Read a file and score it; what is held of it is given back before anything is sent."""
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
                return self.server.demo.detect(file, fpr)
        finally:
            self.server.hold(-held)

    def _check_presence(self) -> None:
        """Spare the work for a client that left while its image waited."""
        self.connection.setblocking(False)
        try:
            if not self.connection.recv(1, socket.MSG_PEEK):
                raise ConnectionAbortedError
        except BlockingIOError:
            pass
        finally:
            self.connection.settimeout(IDLE)

    def _linger(self) -> None:
        """Read on for a moment: a client that is still sending would not see the answer if the connection closed."""
        self.connection.shutdown(socket.SHUT_WR)
        self.arriving.end = monotonic() + LINGER
        while self.rfile.read1(CHUNK):
            pass

    def _fpr(self) -> float:
        given = parse_qs(urlsplit(self.path).query).get("fpr", [str(self.server.demo.fpr)])[0]
        try:
            return float(given)
        except ValueError as error:
            raise UserError(f"fpr={given}: expected a number between 0 and 1") from error

    def _json(self, status: HTTPStatus, content: Mapping[str, Any]) -> None:
        self._send(status, "application/json", json.dumps(content).encode())

    def _send(self, status: HTTPStatus, kind: str, body: bytes) -> None:
        self.connection.settimeout(IDLE)
        self.send_response(status)
        headers = {"Content-Type": kind, "Content-Length": str(len(body)), "Cache-Control": "no-store"}
        for name, value in {**headers, "Content-Security-Policy": POLICY, "X-Content-Type-Options": "nosniff"}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        """Nothing: the terminal shows the address."""
