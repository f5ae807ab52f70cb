"""Text of models, recipes and libraries, made fit for a terminal."""

from __future__ import annotations

import unicodedata


def printable(text: str, *, keep: str = "") -> str:
    """`text` with control and direction characters escaped, so that no terminal obeys them."""
    if text.isprintable():
        return text
    return "".join(
        c if c.isprintable() or c in keep else " " if c == "\t" else _escape(c) for c in text
    )


def columns(text: str) -> int:
    """Columns that `text` takes in a terminal."""
    return sum(
        0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in "WF" else 1
        for c in text
    )


def _escape(c: str) -> str:
    return c.encode("unicode_escape", "backslashreplace").decode("ascii")
