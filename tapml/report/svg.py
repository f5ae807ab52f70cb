"""Pieces of inline SVG that the report's charts are made of. Colours come from the page's CSS."""

from __future__ import annotations

import math
from collections.abc import Sequence

from .markup import Safe, element, join

SERIES = ("var(--ours)", "var(--second)", "var(--third)", "var(--fourth)", "var(--muted)")


def svg(width: float, height: float, *children: Safe) -> Safe:
    return element(
        "svg",
        join(*children),
        viewBox=f"0 0 {width:.0f} {height:.0f}",
        width=f"{width:.0f}",
        role="img",
    )


def label(text: str, x: float, y: float, anchor: str, class_: str) -> Safe:
    return element("text", text, x=short(x), y=short(y), text_anchor=anchor, class_=class_)


def segment(class_: str, x1: float, y1: float, x2: float, y2: float) -> Safe:
    places = {"x1": x1, "y1": y1, "x2": x2, "y2": y2}
    return element("line", **{k: short(v) for k, v in places.items()}, class_=class_)


def cut(text: str, length: int) -> str:
    return text if len(text) <= length else f"{text[: length - 1]}…"


def tail(text: str, length: int) -> str:
    """The end of a dotted name, which tells most."""
    return text if len(text) <= length else f"…{text[1 - length :]}"


def short(value: float) -> str:
    return f"{value:.1f}".removesuffix(".0")


def extent(values: Sequence[float], *, from_zero: bool = False) -> tuple[float, float]:
    low, high = min(values), max(values)
    if from_zero and low > 0:
        low = 0.0
    return (low, high) if high > low else (low - 0.5, high + 0.5)


def round_ticks(low: float, high: float) -> list[float]:
    """About five round numbers between the two."""
    raw = (high - low) / 5
    magnitude = 10 ** math.floor(math.log10(raw))
    step = next(m * magnitude for m in (1, 2, 5, 10) if m * magnitude >= raw)
    first = math.ceil(low / step)
    return [round(i * step, 12) for i in range(first, math.floor(high / step + 1e-9) + 1)]
