"""A hub on this machine for huggingface_hub's real loader, and tiny models as folders."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from huggingface_hub import constants

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class Hub:
    """Models by id; what it refuses, and what was asked of it."""

    models: dict[str, dict[str, bytes]] = field(default_factory=dict)
    refuse: tuple[int, str] | None = None  # status and X-Error-Code of every answer
    broken_files: frozenset[str] = frozenset()  # asked for, the connection is closed
    asked: list[str] = field(default_factory=list)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def log_message(self, format: str, *args: object) -> None: ...

    def do_GET(self) -> None:
        self._answer(body=True)

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def _answer(self, *, body: bool) -> None:
        path = urlsplit(self.path).path.strip("/")
        self.hub.asked.append(path)
        if self.hub.refuse:
            return self._send(self.hub.refuse[0], b"", {"X-Error-Code": self.hub.refuse[1]}, body)
        parts = path.removeprefix("api/models/").split("/")
        model, rest = "/".join(parts[:2]), parts[2:]
        if model not in self.hub.models:
            return self._send(404, b"", {"X-Error-Code": "RepoNotFound"}, body)
        if rest[1] != COMMIT:
            return self._send(404, b"", {"X-Error-Code": "RevisionNotFound"}, body)
        files = self.hub.models[model]
        if rest[0] == "tree":
            rows = [
                {"type": "file", "path": name, "size": len(data), "oid": _digest(data)}
                for name, data in files.items()
            ]
            return self._send(200, json.dumps(rows).encode(), {}, body)
        name = "/".join(rest[2:])
        if name in self.hub.broken_files:
            self.close_connection = True
            return None
        facts = {"X-Repo-Commit": COMMIT, "ETag": f'"{_digest(files[name])}"'}
        return self._send(200, files[name], facts, body)

    def _send(self, status: int, data: bytes, headers: dict[str, str], body: bool) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(data))}.items():
            self.send_header(name, value)
        self.end_headers()
        if body:
            self.wfile.write(data)


def _digest(data: bytes) -> str:
    return hashlib.sha1(data, usedforsecurity=False).hexdigest()


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A running hub that huggingface_hub takes for the real one, and an empty cache."""
    handler = type("Handler", (_Handler,), {"hub": Hub()})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    address = f"http://127.0.0.1:{server.server_port}"
    template = address + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "ENDPOINT", address)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    yield handler.hub
    server.shutdown()
    thread.join()
    server.server_close()
