"""What an action gave, as it stands in the store: a line of JSON and its checksum."""

from __future__ import annotations

import hashlib
import json
import re
import time
from dataclasses import dataclass, field
from typing import Any

from .. import keys

DIGEST = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Record:
    """What one action gave: `outputs`, `log` and `views` are digests of blobs.

    preimage: what the key is the digest of
    report:   data of a `tapml.stage.Report`
    made_on:  the host's fingerprint and the machine's opaque id, for results that are timings
    recipes:  names of those that it was made for
    sources:  files of the recipe's Python and their digests, by the field that names the function
    blobs:    digest → bytes of every blob that the outputs consist of, files of folders included
    sides:    the same of `log` and `views`, which may be lost; the store fills in both
    """

    stage: str
    key: str
    preimage: dict[str, Any]
    outputs: dict[str, str]
    report: dict[str, Any] = field(default_factory=dict[str, Any])
    seconds: float = 0.0
    rss_mib: float = 0.0
    made_at: str = ""
    made_on: dict[str, Any] = field(default_factory=dict[str, Any])
    recipes: list[str] = field(default_factory=list[str])
    log: str = ""
    views: str = ""
    sources: dict[str, dict[str, str]] = field(default_factory=dict[str, dict[str, str]])
    blobs: dict[str, int] = field(default_factory=dict[str, int])
    sides: dict[str, int] = field(default_factory=dict[str, int])


def encode(record: Record) -> bytes:
    """The record as it is written. Raises: TypeError for what JSON cannot hold."""
    line = keys.canonical_json(vars(record))
    return line + b"\n" + hashlib.sha256(line).hexdigest().encode() + b"\n"


def decode(data: bytes) -> Record | None:
    """The record that `encode` wrote; None for one of another form, as a newer or older tapml or a
    stranger writes. Raises: ValueError when it is damaged.
    """
    line, _, checksum = data.partition(b"\n")
    if hashlib.sha256(line).hexdigest().encode() + b"\n" != checksum:
        raise ValueError("its checksum is another one")
    try:
        record = Record(**json.loads(line))
        named = {*record.outputs.values()}, {one for one in (record.log, record.views) if one}
        whole = named[0] <= record.blobs.keys() and named[1] <= record.sides.keys()
        sizes = {**record.blobs, **record.sides}
    except (ValueError, TypeError, AttributeError):
        return None
    whole = whole and all(map(DIGEST.fullmatch, sizes))
    return record if whole and all(type(size) is int for size in sizes.values()) else None


def now() -> str:
    """The time, ISO 8601 in UTC to the microsecond, so that texts sort as times do."""
    seconds, micros = divmod(time.time_ns() // 1000, 10**6)
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds)) + f".{micros:06d}Z"
