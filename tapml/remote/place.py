"""Where a shared cache lies: a folder, a bucket, whatever fsspec reaches.

    tapml.json   says that it is one, and in which form
    tmp/         objects that are not whole yet, where a put is not atomic

Its calls block for as long as they like, and raise what the package behind fsspec raises.
"""

from __future__ import annotations

import importlib.util
import json
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast
from urllib.parse import unquote, urlsplit
from uuid import uuid4

from .. import mask
from ..errors import EnvironmentalError, RecipeError

if TYPE_CHECKING:
    from ..settings import RemoteCache

_FORMAT = 1
_MARKER = "tapml.json"
_CHUNK = 8 << 20  # of an upload in parts; each part is a sign of life
_ATOMIC = frozenset({"s3", "s3a", "gs", "gcs", "abfs", "abfss", "az"})  # half a put is not there
_S3: dict[str, Any] = {"config_kwargs": {"retries": {"max_attempts": 1}}}  # s3fs tries again itself
_OPTIONS: dict[str, dict[str, Any]] = {"file": {"auto_mkdir": True}, "s3": _S3, "s3a": _S3}
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://[^\s'\"]+")


class FileSystem(Protocol):
    """What is used of fsspec's AbstractFileSystem, which has no types."""

    @property
    def protocol(self) -> str | tuple[str, ...]: ...
    def cat_file(self, path: str) -> bytes: ...
    def pipe_file(self, path: str, value: bytes) -> None: ...
    def get_file(self, rpath: str, lpath: str, callback: object) -> None: ...
    def put_file(self, lpath: str, rpath: str, callback: object, **options: int) -> None: ...
    def mv(self, path1: str, path2: str) -> None: ...
    def rm_file(self, path: str) -> None: ...
    def info(self, path: str) -> dict[str, Any]: ...
    def makedirs(self, path: str, exist_ok: bool) -> None: ...
    def find(self, path: str) -> list[str]: ...
    def modified(self, path: str) -> datetime: ...


class UnusableError(Exception):
    """The place answers, but is no shared cache that we can use."""


class Place:
    """Objects by name in a shared cache. It is found, or made, when first asked for something.

    heard: when there was a sign of life, by the monotonic clock
    """

    def __init__(self, settings: RemoteCache) -> None:
        self.heard = 0.0
        self._settings = settings
        self._opening, self._connecting = threading.Lock(), threading.Lock()
        self._is_open = False
        self._files: tuple[FileSystem, str] | None = None

    def open(self) -> None:
        """Makes sure that it is a shared cache of our form. Raises: UnusableError."""
        with self._opening:
            if self._is_open:
                return
            fs, path = self._at(_MARKER)
            try:
                text = fs.cat_file(path)
            except FileNotFoundError:
                text = self._make()
            if not _is_ours(text):
                raise UnusableError(f"its {_MARKER} is of another form than {_FORMAT}")
            self._is_open = True

    def ping(self) -> None:
        """Returns when it answers, whatever it says."""
        fs, path = self._at(_MARKER)
        with suppress(FileNotFoundError, PermissionError):
            fs.cat_file(path)
        self.beat()

    def beat(self, *_: object, **__: object) -> None:
        """There was a sign of life."""
        self.heard = time.monotonic()

    def words(self, error: Exception) -> str:
        """What an error of it says, without secrets, in one line."""
        text = " ".join(str(error).split())[:300] or type(error).__name__
        for secret in _secrets(self._settings.url):
            text = text.replace(secret, "•••")
        return mask.mask(_URL.sub(lambda url: mask.bare(url[0]), text))

    # --- objects

    def read(self, name: str) -> bytes:
        """Raises: FileNotFoundError."""
        self.open()
        fs, path = self._at(name)
        return fs.cat_file(path)

    def size(self, name: str) -> int | None:
        """Bytes of an object; None when it is not there."""
        self.open()
        fs, path = self._at(name)
        try:
            return int(fs.info(path)["size"])
        except FileNotFoundError:
            return None
        finally:
            self.beat()

    def get(self, name: str, target: Path) -> None:
        """Downloads an object. Raises: FileNotFoundError."""
        self.open()
        fs, path = self._at(name)
        fs.get_file(path, str(target), self._callback())

    def put_file(self, source: Path, name: str) -> None:
        """Uploads a file: it is there whole, or not at all."""
        self.open()
        fs, _ = self._at(name)
        options = {"chunksize": _CHUNK} if _protocols(fs) & {"s3", "s3a"} else {}
        self._put(lambda path: fs.put_file(str(source), path, self._callback(), **options), name)

    def put_bytes(self, data: bytes, name: str) -> None:
        """Uploads bytes: they are there whole, or not at all."""
        self.open()
        self._put_bytes(data, name)

    def remove(self, name: str) -> None:
        """Raises: FileNotFoundError."""
        fs, path = self._at(name)
        fs.rm_file(path)

    def sweep(self) -> None:
        """Removes what puts left that were killed more than a day ago."""
        self.open()
        fs, folder = self._at("tmp")
        oldest = datetime.now(UTC) - timedelta(days=1)
        with suppress(NotImplementedError):  # a place that does not tell times
            for path in fs.find(folder):
                if fs.modified(path) < oldest:
                    fs.rm_file(path)

    # --- how

    def _at(self, name: str) -> tuple[FileSystem, str]:
        """The file system, one for all threads, and the path of an object; asks nothing yet."""
        import fsspec  # pyright: ignore[reportMissingTypeStubs]

        with self._connecting:
            if self._files is None:
                url = self._settings.url
                options = {"use_listings_cache": False, "skip_instance_cache": True}
                options |= _OPTIONS.get(_protocol(url), {})
                found = cast(Any, fsspec).url_to_fs(url, **options)
                fs, root = cast("tuple[FileSystem, str]", found)
                self._files = fs, root.rstrip("/")
                self.beat()  # that took time, but not the place's
        fs, root = self._files
        return fs, f"{root}/{name}"

    def _make(self) -> bytes:
        """Makes a new shared cache; the text of its marker."""
        if self._settings.mode == "read-only":
            raise UnusableError(f"it has no {_MARKER}, and read-only makes none")
        text = json.dumps({"format": _FORMAT}).encode()
        try:
            self._put_bytes(text, _MARKER)
        except FileNotFoundError as error:  # a bucket that is not there is no miss
            raise UnusableError(str(error)) from error
        return text

    def _put_bytes(self, data: bytes, name: str) -> None:
        fs, _ = self._at(name)
        self._put(lambda path: fs.pipe_file(path, data), name)

    def _put(self, put: Callable[[str], None], name: str) -> None:
        fs, final = self._at(name)
        if _protocols(fs) & _ATOMIC:
            put(final)
        else:
            _, draft = self._at(f"tmp/{uuid4().hex}")
            for path in (draft, final):
                fs.makedirs(path.rpartition("/")[0], exist_ok=True)
            put(draft)
            fs.mv(draft, final)
        self.beat()

    def _callback(self) -> object:
        from fsspec.callbacks import Callback  # pyright: ignore[reportMissingTypeStubs]

        return cast(Any, Callback)(hooks={"beat": self.beat})


def check_protocol(url: str) -> None:
    """Raises: EnvironmentalError when the package that speaks a URL's protocol is not installed,
    RecipeError when there is no such protocol.
    """
    if importlib.util.find_spec("fsspec") is None:
        raise EnvironmentalError(
            message="a shared cache needs the package fsspec, which is not installed",
            hint="pip install 'tapml[remote]'",
        )
    from fsspec.registry import (  # pyright: ignore[reportMissingTypeStubs]
        available_protocols,
        known_implementations,
    )

    names = cast("list[str]", cast(Any, available_protocols)())
    protocol = _protocol(url).rpartition("::")[2]
    if protocol not in names:
        raise RecipeError(
            message=f"the shared cache {mask.bare(url)}: fsspec knows no protocol {protocol!r}",
            hint="a folder, or a URL such as s3://bucket/prefix: TAPML_REMOTE, or `engine: cache:`",
        )
    package = known_implementations.get(protocol, {}).get("class", "fsspec").partition(".")[0]
    if importlib.util.find_spec(package) is None:
        extra = "'tapml[s3]'" if package == "s3fs" else package
        raise EnvironmentalError(
            message=f"the shared cache {mask.bare(url)} needs the package {package}, "
            "which is not installed",
            hint=f"pip install {extra}",
        )


def _protocols(fs: FileSystem) -> set[str]:
    return {fs.protocol} if isinstance(fs.protocol, str) else set(fs.protocol)


def _is_ours(marker: bytes) -> bool:
    try:
        return json.loads(marker)["format"] == _FORMAT
    except (ValueError, TypeError, KeyError):
        return False


def _protocol(url: str) -> str:
    return url.partition("://")[0] if "://" in url else "file"


def _secrets(url: str) -> Iterator[str]:
    """What of a URL may be secret, as it stands there and decoded; the longest first."""
    if "://" not in url:
        return
    rest = url.partition("://")[2]
    users = rest.partition("/")[0].rpartition("@")[0].partition(":")
    values = [pair.partition("=")[2] for pair in urlsplit(url).query.split("&")]
    texts = {text for one in (users[0], users[2], *values) for text in (one, unquote(one))}
    yield from sorted((text for text in texts if len(text) > 3), key=len, reverse=True)
