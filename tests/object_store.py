"""A real S3 server (moto's) in a process of its own, and what a client of it needs to know."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

SECRET = "wJalrXUtnFEMIK7MDENGbPxRfiCYEXAMPLEKEY"
_START_S = 60.0


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class ObjectStore:
    """An S3 server on 127.0.0.1 with one bucket; `closed` to all but those it knows, so to us."""

    bucket = "bucket"

    def __init__(self, log: Path, *, closed: bool = False) -> None:
        environment = {**os.environ, "INITIAL_NO_AUTH_ACTION_COUNT": "1"} if closed else None
        self.endpoint = f"http://127.0.0.1:{(port := free_port())}"
        with log.open("wb") as out:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)],
                stdout=out,
                stderr=out,
                env=environment,
            )
        deadline = time.monotonic() + _START_S
        while not self._put(self.bucket):
            assert self._process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, "moto did not start"
            time.sleep(0.05)

    def _put(self, name: str) -> bool:
        request = urllib.request.Request(f"{self.endpoint}/{name}", method="PUT", data=b"")
        try:
            with urllib.request.urlopen(request, timeout=5):
                return True
        except OSError:
            return False

    @property
    def environment(self) -> dict[str, str]:
        return {
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_ACCESS_KEY_ID": "AKIAIOSFODNN7EXAMPLE",
            "AWS_SECRET_ACCESS_KEY": SECRET,
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
            "AWS_CONFIG_FILE": os.devnull,
            "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
        }

    def freeze(self) -> None:
        """From now on it accepts connections and never answers."""
        self._process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """It answers again."""
        self._process.send_signal(signal.SIGCONT)

    def stop(self) -> None:
        self._process.kill()
        self._process.wait()
