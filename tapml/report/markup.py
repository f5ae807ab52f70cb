"""HTML as a value: whatever is not `Safe` is escaped, so that no name of a recipe can become
markup.
"""

from __future__ import annotations

import re
from html import escape as _escape

from ..terminal import printable

_VOID = frozenset({"br", "hr", "meta", "line", "rect", "circle", "polyline", "path"})


class Safe(str):
    """Markup that was made by `element` or is a constant of ours."""

    __slots__ = ()


_KEPT = "\n\t\xa0\u2009\u3000"  # line ends and spaces


def escape(text: str) -> str:
    """Text that can neither become markup nor turn the line around it: no control characters."""
    return _escape(printable(text, keep=_KEPT))


Child = str | int | float | None


def element(name: str, /, *children: Child, **attributes: str | float | None) -> Safe:
    """`<name …>children</name>`. Attribute names: `class_` is `class`, `stroke_width` is `stroke-
    width`.
    """
    pairs = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{escape(str(value))}"'
        for key, value in attributes.items()
        if value is not None
    )
    if name in _VOID and not children:
        return Safe(f"<{name}{pairs}>" if name in ("br", "hr", "meta") else f"<{name}{pairs}/>")
    return Safe(f"<{name}{pairs}>{join(*children)}</{name}>")


def join(*children: Child) -> Safe:
    """The children beside each other, each escaped unless it is markup."""
    return Safe(
        "".join(c if isinstance(c, Safe) else escape(str(c)) for c in children if c is not None)
    )


def breakable(text: str) -> Safe:
    """Text whose long words, such as names of kernels, may be broken after `_` and `/`."""
    return Safe(
        re.sub(r"(?<=\w)([_/]+)(?=\w)", r"\1<wbr>", escape(text))
        if len(text) > 24
        else escape(text)
    )


def shortened(name: str, length: int) -> str:
    """A name with its middle left out when it is long: names of kernels begin alike."""
    half = length // 2
    return name if len(name) <= length else f"{name[:half]}…{name[half + 1 - length :]}"


def shortened_words(line: str, length: int) -> str:
    """A line whose long words, names of kernels, have their middle left out."""
    return " ".join(shortened(word, length) for word in line.split(" "))


def number(value: float | None, unit: str = "") -> str:
    """Four significant digits at most, thin space before the unit; a dash for what is not known."""
    if value is None:
        return "–"
    text = f"{value:.4g}" if abs(value) < 1e4 or abs(value) >= 1e9 else f"{value:,.0f}"
    return f"{text} {unit}" if unit else text
