"""A server on this machine that answers `POST /v1/audio/speech` as it is told, and takes down what is posted."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any, Self


class SpeakingServer(HTTPServer):
    """`body` is what it answers, or a function from the request to that. It runs while it is entered."""

    def __init__(self, body: bytes | Callable[[dict[str, Any]], bytes]) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.posted: list[dict[str, Any]] = []
        self.status, self.body, self.breaks_off = 200, body, False
        self.headers: dict[str, str] = {"Content-Type": "audio/pcm"}
        self.asked: list[str] = []
        self.length: int | None = None  # claimed; the default is to send in chunks
        self.health = 200
        self.thread = threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.02})

    def refuse(self, status: int, message: str) -> None:
        self.status, self.body = status, json.dumps({"error": {"message": message}}).encode()
        self.headers = {"Content-Type": "application/json"}

    def stop(self) -> None:
        """From now on nobody answers."""
        if self.thread.is_alive():
            self.shutdown()
            self.thread.join()
            self.server_close()

    def __enter__(self) -> Self:
        self.thread.start()
        return self

    def __exit__(self, *failure: object) -> None:
        self.stop()


class _Handler(BaseHTTPRequestHandler):
    server: SpeakingServer
    protocol_version = "HTTP/1.1"  # sends in chunks, as the server does

    def do_GET(self) -> None:
        """/health"""
        self.send_response(self.server.health)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def do_POST(self) -> None:
        self.server.asked.append(self.path)
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.posted.append(request)
        body = self.server.body
        content = body if isinstance(body, bytes) else body(request)
        self.send_response(self.server.status)
        for name, value in self.server.headers.items():
            self.send_header(name, value)
        # a client that does not take this answer may leave while it is sent
        if self.server.length is not None:
            self.send_header("Content-Length", str(self.server.length))
            self.end_headers()
            with suppress(ConnectionError):
                self.wfile.write(content)
            self.close_connection = True
            return
        self.send_header("Transfer-Encoding", "chunked")
        self.send_header("Connection", "close")
        self.end_headers()
        with suppress(ConnectionError):
            if content:
                self.wfile.write(f"{len(content):x}\r\n".encode() + content + b"\r\n")
            if not self.server.breaks_off:
                self.wfile.write(b"0\r\n\r\n")

    def log_message(self, format: str, *arguments: object) -> None:
        pass
