"""HTTP server with limits on connections, on bytes of uploads, and on images that are decoded at once."""

from __future__ import annotations

import json
import socket
import sys
import threading
from http import HTTPStatus
from http.server import ThreadingHTTPServer
from typing import Any

from gaussad_pl.errors import UserError
from gaussad_pl.web.handler import LARGEST, Handler, Page, RefusedError
from gaussad_pl.web.senders import names_of

IN_FLIGHT = 4 * LARGEST  # bytes of all uploads that are arriving or waiting to be scored
CONNECTIONS = 32  # simultaneous connections, each with its own thread
BUSY = b"HTTP/1.0 503 Service Unavailable\r\nContent-Type: application/json\r\n\r\n" + json.dumps(
    {"error": "Too many connections: try again in a moment."}
).encode("ascii")


class Server(ThreadingHTTPServer):
    """Serves a page.

    Raises:
        UserError: the server cannot listen on the address.
    """

    daemon_threads = True

    def __init__(self, demo: Page, host: str, port: int) -> None:
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        try:
            super().__init__((host, port), Handler)
        except (OSError, OverflowError, UnicodeError) as error:
            raise UserError(f"host={host} port={port}: cannot listen there ({error}): give another port=") from error
        self.demo = demo
        self.names = names_of(host, self.server_name)
        self.turn = threading.Lock()  # one image at a time: each is decoded and scored on all cores
        self._places = threading.BoundedSemaphore(CONNECTIONS)
        self._counting = threading.Lock()
        self._held = 0

    def hold(self, count: int) -> None:
        """Reserve memory for ``count`` bytes of an upload; a negative ``count`` releases it.

        Raises:
            RefusedError: all uploads together exceed `IN_FLIGHT`.
        """
        with self._counting:
            if self._held + count > IN_FLIGHT:
                raise RefusedError(HTTPStatus.SERVICE_UNAVAILABLE, "Too many uploads: try again in a moment.")
            self._held += count

    def process_request(self, request: Any, client_address: Any) -> None:
        """Handle a connection in a thread, or answer 503 if there are too many."""
        if not self._places.acquire(blocking=False):
            request.setblocking(False)
            request.send(BUSY)
            self.shutdown_request(request)
            return
        try:
            super().process_request(request, client_address)
        except Exception:  # no thread could be started; a signal may come when one has, which then gives its place back
            self._places.release()
            raise

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._places.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Print the traceback of an error, unless a client has disconnected."""
        error = sys.exception()
        if not isinstance(error, OSError) or error.filename is not None:
            super().handle_error(request, client_address)
