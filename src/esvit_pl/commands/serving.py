"""A page for the browsers of this machine alone, made anew while somebody looks at it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

HOST = "127.0.0.1"
NAMES = (HOST, "localhost")
"""What a browser may call this server: a foreign page whose name was led to this address is refused."""


class PageServer(ThreadingHTTPServer):
    """Answers ``GET /`` with a page, and nothing else.

    Args:
        port: 0 for any free one.
        make: gives the HTML. One thread at a time calls it, at most once in `every` seconds.
        every: seconds for which a page counts as fresh.

    Raises:
        ValueError: another program has the port.
    """

    daemon_threads = True

    def __init__(self, port: int, make: Callable[[], str], *, every: float = 3.0) -> None:
        try:
            super().__init__((HOST, port), _Handler)
        except OSError as error:
            raise ValueError(
                f"serve={port}: {error.strerror or error}; give another port, such as {port + 1}"
            ) from error
        self._make, self._every = make, every
        self._lock = threading.Lock()
        self._page, self._until = "", 0.0

    @property
    def address(self) -> str:
        return f"http://{HOST}:{self.server_port}/"

    def page(self) -> str:
        """The page, made anew if it is old."""
        with self._lock:
            if time.monotonic() >= self._until:
                self._page = self._make()
                self._until = time.monotonic() + self._every
            return self._page


class _Handler(BaseHTTPRequestHandler):
    server: PageServer
    timeout = 30.0

    def do_GET(self) -> None:
        name = self.headers.get("Host", "").rpartition(":")[0] or self.headers.get("Host", "")
        if name not in NAMES:
            self._answer(403, f"this page is for {' and '.join(NAMES)} alone", "text/plain")
        elif self.path.partition("?")[0] != "/":
            self._answer(404, "there is one page, /", "text/plain")
        else:
            try:
                page = self.server.page()
            except Exception as error:  # a run folder that somebody removes; the next request may go well
                self._answer(500, f"the page could not be made ({type(error).__name__}): {error}", "text/plain")
            else:
                self._answer(200, page, "text/html")

    def _answer(self, status: int, text: str, kind: str) -> None:
        content = text.encode("utf-8", errors="backslashreplace")
        self.send_response(status)
        headers = {
            "Content-Type": f"{kind}; charset=utf-8",
            "Content-Length": str(len(content)),
            "Cache-Control": "no-store",
            "X-Content-Type-Options": "nosniff",
            "Cross-Origin-Resource-Policy": "same-origin",
            "Referrer-Policy": "no-referrer",
        }
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *args: Any, **kwargs: Any) -> None:
        """Nothing: a browser asks every few seconds."""
