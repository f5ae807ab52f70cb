"""Amounts on the command line: `10GB`, `30d`."""

from __future__ import annotations

import re

import click

_POWERS = {"": 0, "k": 1, "m": 2, "g": 3, "t": 4}
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}


def bytes_of(text: str) -> int:
    """Bytes of `500MB` (decimal), `10GiB` (binary) or a bare number. Raises: BadParameter."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kmgt]?)(i?)b?", text.strip().lower())
    if found is None:
        raise click.BadParameter(f"{text!r} is no size, such as 500MB or 10GiB")
    return int(float(found[1]) * (1024 if found[3] else 1000) ** _POWERS[found[2]])


def seconds_of(text: str) -> float:
    """Seconds of `90s`, `30m`, `12h`, `30d` or `2w`. Raises: BadParameter."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([smhdw])", text.strip().lower())
    if found is None:
        raise click.BadParameter(f"{text!r} is no length of time, such as 12h or 30d")
    return float(found[1]) * _SECONDS[found[2]]


def size(count: int) -> str:
    """`1.50 GiB`; whole bytes below one KiB."""
    if count < 1024:
        return f"{count} B"
    power = min(4, (count.bit_length() - 1) // 10)
    return f"{count / 1024**power:.2f} {' KMGT'[power]}iB"
