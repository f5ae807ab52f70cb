"""Inline SVG for the report: paired bars with whiskers, and lines. Colours come from the page's
CSS.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from .facts import Spread
from .markup import Safe, element, join, number
from .stage import Curve

_SERIES = ("var(--ours)", "var(--second)", "var(--third)", "var(--fourth)", "var(--muted)")


@dataclass(frozen=True)
class Bar:
    """One horizontal bar: median, with a whisker from low to high."""

    label: str
    spread: Spread
    is_ours: bool


@dataclass(frozen=True)
class Group:
    """Bars that are compared with each other, with a verdict in words beside the title."""

    title: str
    words: str
    tone: str
    bars: tuple[Bar, ...]


def bars(groups: Sequence[Group], unit: str) -> Safe:
    """Bars in groups, each group on its own scale from zero; a bar's figure stands beside it."""
    left, width, right, height = 104.0, 560.0, 236.0, 24.0
    parts: list[Safe] = []
    y = 4.0
    for group in groups:
        high = max((bar.spread.high for bar in group.bars), default=0.0) or 1.0
        title = (
            element("tspan", group.title, class_="strong"),
            element("tspan", group.words, dx=10, class_=group.tone),
        )
        parts.append(element("text", *title, x=0, y=y + 13, class_="label"))
        y += 22
        for bar in group.bars:
            end = left + bar.spread.p50 / high * width
            low, top = (left + value / high * width for value in (bar.spread.low, bar.spread.high))
            middle = y + height / 2 - 4
            spread = f"{number(bar.spread.low)} … {number(bar.spread.high)}"
            figure = (
                element("tspan", f"{number(bar.spread.p50)} {unit}", class_="strong"),
                element("tspan", spread, dx=8, class_="dim"),
            )
            parts += [
                _text(bar.label, left - 8, middle + 4, "end", "label"),
                element(
                    "rect",
                    x=left,
                    y=y,
                    width=_short(max(end - left, 1)),
                    height=height - 8,
                    rx=3,
                    class_="ours" if bar.is_ours else "peer",
                ),
                element(
                    "line", x1=_short(low), x2=_short(top), y1=middle, y2=middle, class_="whisker"
                ),
                element("text", *figure, x=_short(max(top, end) + 8), y=middle + 4, class_="label"),
            ]
            y += height
        y += 12
    return _svg(left + width + right, y, *parts)


def lines(curve: Curve) -> Safe:
    """A plot of a stage's curve: named lines, axes with round ticks, a legend when there are
    several.
    """
    series = {
        name: [p for p in points if all(map(math.isfinite, p))]
        for name, points in curve.lines.items()
    }
    points = [point for line in series.values() for point in line]
    if not points:
        return element("p", "no points", class_="dim")
    left, top, width, height = 62.0, 12.0, 560.0, 190.0
    xs, ys = _range([x for x, _ in points]), _range([y for _, y in points], from_zero=True)

    def place(x: float, y: float) -> tuple[float, float]:
        return (
            left + (x - xs[0]) / (xs[1] - xs[0]) * width,
            top + height - (y - ys[0]) / (ys[1] - ys[0]) * height,
        )

    parts: list[Safe] = []
    for tick in _ticks(*ys):
        _, y = place(xs[0], tick)
        parts.append(
            element("line", x1=left, x2=left + width, y1=_short(y), y2=_short(y), class_="grid")
        )
        parts.append(_text(number(tick), left - 8, y + 4, "end", "tick"))
    for tick in _ticks(*xs):
        x, _ = place(tick, ys[0])
        parts.append(_text(number(tick), x, top + height + 16, "middle", "tick"))
    for index, (name, line) in enumerate(series.items()):
        colour = _SERIES[min(index, len(_SERIES) - 1)]
        path = " ".join(f"{_short(x)},{_short(y)}" for x, y in (place(*point) for point in line))
        parts.append(element("polyline", points=path, class_="line", style=f"stroke:{colour}"))
        if len(line) <= 40:
            dots = (place(*point) for point in line)
            parts += [
                element("circle", cx=_short(x), cy=_short(y), r=2.5, style=f"fill:{colour}")
                for x, y in dots
            ]
        if len(series) > 1 and index < len(_SERIES):
            x = left + width + 16
            y = top + 10 + index * 18
            parts.append(
                element("rect", x=x, y=y - 8, width=12, height=4, rx=2, style=f"fill:{colour}")
            )
            parts.append(_text(name, x + 18, y, "start", "label"))
    parts.append(_text(curve.x_label, left + width / 2, top + height + 36, "middle", "label dim"))
    y_label = element(
        "text",
        curve.y_label,
        transform=f"translate(12 {top + height / 2}) rotate(-90)",
        text_anchor="middle",
        class_="label dim",
    )
    legend = 150.0 if len(series) > 1 else 20.0
    return _svg(left + width + legend, top + height + 42, *parts, y_label)


def shares(parts: Mapping[str, float]) -> Safe:
    """One bar cut into shares, largest first, with a legend below; what is small is one part."""
    total = sum(parts.values()) or 1.0
    order = sorted(parts.items(), key=lambda item: -item[1])
    shown = order[: len(_SERIES) - 1]
    rest = total - sum(value for _, value in shown)
    if len(order) > len(shown):
        shown.append((f"{len(order) - len(shown)} others", rest))
    slices = [
        element("span", style=f"width:{value / total:.2%};background:{_SERIES[index]}", title=name)
        for index, (name, value) in enumerate(shown)
    ]
    legend = [
        element(
            "span",
            element("i", style=f"background:{_SERIES[index]}"),
            f"{name} ",
            element("b", f"{value / total:.0%}"),
        )
        for index, (name, value) in enumerate(shown)
    ]
    return element(
        "div",
        element("div", *slices, class_="stack"),
        element("div", *legend, class_="legend"),
    )


def _svg(width: float, height: float, *children: Safe) -> Safe:
    return element(
        "svg",
        join(*children),
        viewBox=f"0 0 {width:.0f} {height:.0f}",
        width=f"{width:.0f}",
        role="img",
    )


def _text(text: str, x: float, y: float, anchor: str, class_: str) -> Safe:
    return element("text", text, x=_short(x), y=_short(y), text_anchor=anchor, class_=class_)


def _short(value: float) -> str:
    return f"{value:.1f}".removesuffix(".0")


def _range(values: Sequence[float], *, from_zero: bool = False) -> tuple[float, float]:
    low, high = min(values), max(values)
    if from_zero and low > 0:
        low = 0.0
    return (low, high) if high > low else (low - 0.5, high + 0.5)


def _ticks(low: float, high: float) -> list[float]:
    """About five round numbers between the two."""
    raw = (high - low) / 5
    magnitude = 10 ** math.floor(math.log10(raw))
    step = next(m * magnitude for m in (1, 2, 5, 10) if m * magnitude >= raw)
    first = math.ceil(low / step)
    return [round(i * step, 12) for i in range(first, math.floor(high / step + 1e-9) + 1)]
