"""Inline SVG for the report: bars, ranges, lines, points and parallel axes. Colours come from the
page's CSS; what the pointer is on tells its name, without a script.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ..facts import Spread
from ..stage import Curve
from .markup import Safe, element, number, shortened
from .svg import SERIES, cut, extent, label, round_ticks, segment, short, svg, tail

_NAMED = 12  # points that have their names beside them, at most
_STEPS = 8  # different numbers that stand at equal distances on an axis, at most


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
                label(bar.label, left - 8, middle + 4, "end", "label"),
                element(
                    "rect",
                    x=left,
                    y=y,
                    width=short(max(end - left, 1)),
                    height=height - 8,
                    rx=3,
                    class_="ours" if bar.is_ours else "peer",
                ),
                element(
                    "line", x1=short(low), x2=short(top), y1=middle, y2=middle, class_="whisker"
                ),
                element("text", *figure, x=short(max(top, end) + 8), y=middle + 4, class_="label"),
            ]
            y += height
        y += 12
    return svg(left + width + right, y, *parts)


@dataclass(frozen=True)
class Mark:
    """One run in a chart of several. `tone`: `best`, `bad` or nothing."""

    name: str
    tone: str = ""


def ranges(marks: Sequence[Mark], spreads: Sequence[Spread], unit: str) -> Safe:
    """A line per mark from low to high with a point at the median, on one scale from zero."""
    left = min(max((len(mark.name) for mark in marks), default=0) * 7.8 + 16, 340.0)
    width, right, height = 780.0 - left, 210.0, 22.0
    high = max((spread.high for spread in spreads), default=0.0) or 1.0
    bottom = len(marks) * height + 4
    parts: list[Safe] = []
    for tick in round_ticks(0.0, high):
        x = left + tick / high * width
        parts.append(segment("grid", x, 0, x, bottom))
        parts.append(label(number(tick), x, bottom + 16, "middle", "tick"))
    for index, (mark, spread) in enumerate(zip(marks, spreads, strict=True)):
        y = index * height + height / 2
        low, middle, top = (left + v / high * width for v in (spread.low, spread.p50, spread.high))
        figure = (
            element("tspan", f"{number(spread.p50)} {unit}", class_="strong"),
            element("tspan", f"{number(spread.low)} … {number(spread.high)}", dx=8, class_="dim"),
        )
        parts.append(
            element(
                "g",
                element("title", mark.name),
                label(cut(mark.name, 44), left - 12, y + 4, "end", "label"),
                element("line", x1=short(low), x2=short(top), y1=y, y2=y, class_="range"),
                element("circle", cx=short(middle), cy=y, r=5, class_="dot"),
                element("text", *figure, x=left + width + 14, y=y + 4, class_="label"),
                class_=f"mark {mark.tone}".rstrip(),
            )
        )
    return svg(left + width + right, bottom + 24, *parts)


@dataclass(frozen=True)
class Axis:
    """One axis: the value of each mark, numbers or texts; None where a mark has none.

    measured: numbers to scale; else few different ones stand at equal distances, as texts do
    """

    name: str
    values: tuple[float | str | None, ...]
    unit: str = ""
    measured: bool = False

    @property
    def title(self) -> str:
        return f"{self.name}, {self.unit}" if self.unit else self.name


def scatter(marks: Sequence[Mark], x: Axis, y: Axis, spreads: Sequence[Spread | None]) -> Safe:
    """A point per mark that has both numbers; its whisker is the spread along `x`."""
    points = [
        (mark, a, b, spread)
        for mark, a, b, spread in zip(marks, x.values, y.values, spreads, strict=True)
        if isinstance(a, float) and isinstance(b, float)
    ]
    if not points:
        return element("p", "no points", class_="dim")
    left, top, width, height = 84.0, 12.0, 860.0, 280.0
    extremes = [v for _, a, _, s in points for v in ((s.low, s.high) if s else (a, a))]
    xs = extent(extremes, from_zero=True)
    ys = extent([b for _, _, b, _ in points])
    pad = (ys[1] - ys[0]) * 0.08
    ys = (ys[0] - pad, ys[1] + pad)

    def across(value: float) -> float:
        return left + (value - xs[0]) / (xs[1] - xs[0]) * width

    parts: list[Safe] = []
    for tick in round_ticks(*ys):
        height_of = top + height - (tick - ys[0]) / (ys[1] - ys[0]) * height
        parts.append(segment("grid", left, height_of, left + width, height_of))
        parts.append(label(number(tick), left - 8, height_of + 4, "end", "tick"))
    parts += [
        label(number(tick), across(tick), top + height + 16, "middle", "tick")
        for tick in round_ticks(*xs)
    ]
    for mark, a, b, spread in points:
        place = top + height - (b - ys[0]) / (ys[1] - ys[0]) * height
        whisker = (
            segment("spread", across(spread.low), place, across(spread.high), place)
            if spread
            else None
        )
        named = len(points) <= _NAMED
        on_left = across(a) > left + width * 0.7
        shift, anchor = (-8, "end") if on_left else (8, "start")
        name = label(cut(mark.name, 32), across(a) + shift, place - 7, anchor, "tick")
        parts.append(
            element(
                "g",
                element("title", f"{mark.name}: {number(a)}, {number(b)}"),
                whisker,
                element("circle", cx=short(across(a)), cy=short(place), r=5, class_="dot"),
                name if named else None,
                class_=f"mark {mark.tone}".rstrip(),
            )
        )
    parts.append(label(x.title, left + width / 2, top + height + 36, "middle", "label dim"))
    y_label = element(
        "text",
        y.title,
        transform=f"translate(14 {top + height / 2}) rotate(-90)",
        text_anchor="middle",
        class_="label dim",
    )
    return svg(left + width + 30, top + height + 44, *parts, y_label)


def parallel(marks: Sequence[Mark], axes: Sequence[Axis]) -> Safe:
    """A line per mark over upright axes, coloured by where it meets the last axis (blue is low).

    A mark that lacks a value has a gap there; a mark without the last one is grey and dashed.
    """
    gap, left, top, height = 150.0, 84.0, 44.0, 230.0
    scales = [_scale(axis) for axis in axes]
    parts: list[Safe] = []
    for index, mark in enumerate(marks):
        spots = [places.at[index] for places in scales]
        last = spots[-1] if spots else None
        colour = (
            f"stroke:color-mix(in oklab, var(--third) {last:.0%}, var(--ours))"
            if last is not None
            else None
        )
        runs: list[list[str]] = [[]]
        for column, spot in enumerate(spots):
            if spot is None:
                runs.append([])
            else:
                x, y = left + column * gap, top + height - spot * height
                runs[-1].append(f"{short(x)},{short(y)}")
        pieces = [
            element("polyline", points=" ".join(run), class_="strand", style=colour)
            for run in runs
            if len(run) > 1
        ]
        tone = mark.tone if last is not None else "none"
        words = element("title", mark.name)
        parts.append(element("g", words, *pieces, class_=f"mark {tone}".rstrip()))
    for column, (axis, places) in enumerate(zip(axes, scales, strict=True)):
        x = left + column * gap
        parts.append(segment("axis", x, top, x, top + height))
        parts.append(
            element(
                "g",
                element("title", axis.title),
                label(tail(axis.title, 20), x, top - 20, "middle", "label strong"),
            )
        )
        for text, place in places.ticks:
            y = top + height - place * height
            parts.append(segment("axis", x - 4, y, x, y))
            parts.append(label(cut(text, 16), x - 7, y + 4, "end", "tick"))
    return svg(left + (len(axes) - 1) * gap + 80, top + height + 16, *parts)


@dataclass(frozen=True)
class _Scale:
    """Where marks and ticks are on an axis, from 0 at the bottom to 1."""

    at: tuple[float | None, ...]
    ticks: tuple[tuple[str, float], ...]


def _scale(axis: Axis) -> _Scale:
    known = {value for value in axis.values if value is not None}
    numbers = [value for value in known if isinstance(value, float)]
    if len(numbers) == len(known) > (1 if axis.measured else _STEPS):
        low, high = extent(numbers)
        at = tuple(None if v is None else (float(v) - low) / (high - low) for v in axis.values)
        ticks = tuple(
            (number(tick), (tick - low) / (high - low)) for tick in round_ticks(low, high)
        )
        return _Scale(at, ticks)
    order = [*sorted(numbers), *sorted(str(v) for v in known if isinstance(v, str))]
    places: dict[float | str, float] = {
        value: index / (len(order) - 1) if len(order) > 1 else 0.5
        for index, value in enumerate(order)
    }
    texts = {v: number(v) if isinstance(v, float) else v for v in order}
    step = max(1, len(order) // 12)
    return _Scale(
        tuple(None if value is None else places[value] for value in axis.values),
        tuple((texts[value], places[value]) for value in order[::step]),
    )


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
    xs, ys = extent([x for x, _ in points]), extent([y for _, y in points], from_zero=True)

    def place(x: float, y: float) -> tuple[float, float]:
        return (
            left + (x - xs[0]) / (xs[1] - xs[0]) * width,
            top + height - (y - ys[0]) / (ys[1] - ys[0]) * height,
        )

    parts: list[Safe] = []
    for tick in round_ticks(*ys):
        _, y = place(xs[0], tick)
        parts.append(
            element("line", x1=left, x2=left + width, y1=short(y), y2=short(y), class_="grid")
        )
        parts.append(label(number(tick), left - 8, y + 4, "end", "tick"))
    for tick in round_ticks(*xs):
        x, _ = place(tick, ys[0])
        parts.append(label(number(tick), x, top + height + 16, "middle", "tick"))
    for index, (name, line) in enumerate(series.items()):
        colour = SERIES[min(index, len(SERIES) - 1)]
        path = " ".join(f"{short(x)},{short(y)}" for x, y in (place(*point) for point in line))
        drawn = element("polyline", points=path, class_="line", style=f"stroke:{colour}")
        parts.append(element("g", element("title", name), drawn))
        if len(line) <= 40:
            dots = (place(*point) for point in line)
            parts += [
                element("circle", cx=short(x), cy=short(y), r=2.5, style=f"fill:{colour}")
                for x, y in dots
            ]
        if len(series) > 1 and index < len(SERIES):
            x = left + width + 16
            y = top + 10 + index * 18
            parts.append(
                element("rect", x=x, y=y - 8, width=12, height=4, rx=2, style=f"fill:{colour}")
            )
            parts.append(label(shortened(name, 40), x + 18, y, "start", "label"))
    parts.append(label(curve.x_label, left + width / 2, top + height + 36, "middle", "label dim"))
    y_label = element(
        "text",
        curve.y_label,
        transform=f"translate(12 {top + height / 2}) rotate(-90)",
        text_anchor="middle",
        class_="label dim",
    )
    longest = max((min(len(name), 40) for name in series), default=0)
    legend = 50.0 + 7.5 * longest if len(series) > 1 else 20.0
    return svg(left + width + legend, top + height + 42, *parts, y_label)


def shares(parts: Mapping[str, float]) -> Safe:
    """One bar cut into shares, largest first, with a legend below; what is small is one part."""
    total = sum(parts.values()) or 1.0
    order = sorted(parts.items(), key=lambda item: -item[1])
    shown = order[: len(SERIES) - 1]
    rest = total - sum(value for _, value in shown)
    if len(order) > len(shown):
        shown.append((f"{len(order) - len(shown)} others", rest))
    slices = [
        element("span", style=f"width:{value / total:.2%};background:{SERIES[index]}", title=name)
        for index, (name, value) in enumerate(shown)
    ]
    legend = [
        element(
            "span",
            element("i", style=f"background:{SERIES[index]}"),
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
