"""What stages draw in their reports: bars with room in them, and dots under lines that bound
them.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from ..stage import Bar, Bars, Dot, Scatter
from .markup import Safe, element, number, shortened
from .svg import SERIES, label, segment, short, svg

_BARS = 20  # shown of a plot; what is left is one bar
_OTHERS = "others"  # no group of a stage's
_NAMED = 8  # dots that have their names beside them, at most
_END = 1e15  # no quantity is drawn beyond
Point = tuple[float, float]
Taken = list[tuple[float, float, float]]  # where a text begins, its line, how far it goes


def bars(plot: Bars) -> Safe:
    """A bar a row, the longest first; what is above its `least` is pale."""
    known = [bar for bar in plot.bars if 0 <= bar.value < _END]
    if not known:
        return element("p", "no bars", class_="dim")
    ranked = sorted(known, key=lambda bar: -bar.value)
    shown, rest = ranked[:_BARS], ranked[_BARS:]
    colours = _colours(bar.group for bar in ranked)
    if rest:
        total = sum(bar.value for bar in rest)
        shown.append(Bar(f"{len(rest)} others", total, group=_OTHERS))
    left, width, right, height = 300.0, 400.0, 330.0, 20.0
    high = max(bar.value for bar in shown) or 1.0
    parts: list[Safe] = []
    y = 0.0
    for bar in shown:
        colour = colours.get(bar.group, "var(--peer)")
        least = bar.value if bar.least is None else max(0.0, min(bar.least, bar.value))
        note = element("tspan", bar.note, dx=8, class_="dim") if bar.note else None
        figure = element("tspan", f"{number(bar.value)} {plot.unit}", class_="strong")
        words = f"{bar.name}: {number(bar.value)} {plot.unit}"
        words += f", at best {number(bar.least)} {plot.unit}" if bar.least is not None else ""
        end = left + bar.value / high * width
        parts.append(
            element(
                "g",
                element("title", words),
                label(shortened(bar.name, 40), left - 8, y + 13, "end", "label"),
                _rect(left, y + 2, bar.value / high * width, height - 6, colour, pale=True),
                _rect(left, y + 2, least / high * width, height - 6, colour),
                element("text", figure, note, x=short(end + 8), y=y + 13, class_="label"),
                class_="mark",
            )
        )
        y += height
    key = _legend(colours, 0.0, y + 18)
    return svg(left + width + right, y + (26 if key else 4), *parts, *key)


def _rect(x: float, y: float, width: float, height: float, colour: str, pale: bool = False) -> Safe:
    return element(
        "rect",
        x=x,
        y=y,
        width=short(max(width, 1)),
        height=height,
        rx=3,
        style=f"fill:{colour}" + (";fill-opacity:.35" if pale else ""),
    )


def scatter(plot: Scatter) -> Safe:
    """Dots by name, their area by share, on logarithmic axes under the lines."""
    dots = [dot for dot in plot.dots if _drawable(dot.x, dot.y) and math.isfinite(dot.share)]
    if not dots:
        return element("p", "no dots", class_="dim")
    lines = {
        name: [point for point in points if _drawable(*point)]
        for name, points in plot.lines.items()
    }
    corners = [point for points in lines.values() for point in points]
    xs = _decades([x for x, _ in corners] + [dot.x for dot in dots])
    ys = _decades(
        [dot.y for dot in dots] + [max((y for _, y in corners), default=dots[0].y)], room=1.6
    )
    area = _Area(xs, ys)
    lowest = math.log10(ys[0])
    parts = list(_axes(area, plot))
    drawn: list[Safe] = []
    taken: Taken = []
    for name, points in lines.items():
        if len(points) < 2:
            continue
        inside = _from(points, lowest)
        path = " ".join(f"{short(x)},{short(y)}" for x, y in (area.place(*p) for p in inside))
        drawn.append(element("polyline", points=path, class_="bound"))
        drawn.append(_along(name, area.place(*inside[0]), area.place(*inside[-1]), taken))
    colours = _colours(dot.group for dot in dots)
    names: list[Safe] = []
    for dot in sorted(dots, key=lambda dot: -dot.share):
        x, y = area.place(dot.x, dot.y)
        radius = 3 + 17 * math.sqrt(min(max(dot.share, 0.0), 1.0))
        drawn.append(
            element(
                "g",
                element("title", f"{dot.name}: {dot.note}" if dot.note else dot.name),
                element(
                    "circle",
                    cx=short(x),
                    cy=short(y),
                    r=short(radius),
                    style=f"fill:{colours[dot.group]};fill-opacity:.6",
                ),
                class_="mark",
            )
        )
        if len(names) < _NAMED and (spot := _free(dot, x, y, radius, area, taken)) is not None:
            names.append(spot)
    key = _legend(colours, area.left, area.bottom + 56)
    height = area.bottom + (64 if key else 44)
    return svg(area.right + 30, height, *parts, *drawn, *names, *key)


@dataclass(frozen=True)
class _Area:
    """Where values are in the picture."""

    xs: Point
    ys: Point
    left: float = 84.0
    top: float = 12.0
    right: float = 944.0
    bottom: float = 372.0

    def place(self, x: float, y: float) -> Point:
        across = math.log(x / self.xs[0]) / math.log(self.xs[1] / self.xs[0])
        up = math.log(y / self.ys[0]) / math.log(self.ys[1] / self.ys[0])
        width, height = self.right - self.left, self.bottom - self.top
        return self.left + across * width, self.bottom - up * height


def _axes(area: _Area, plot: Scatter) -> Iterator[Safe]:
    for tick in _log_ticks(*area.ys):
        _, y = area.place(area.xs[0], tick)
        yield segment("grid", area.left, y, area.right, y)
        yield label(number(tick), area.left - 8, y + 4, "end", "tick")
    for tick in _log_ticks(*area.xs):
        x, _ = area.place(tick, area.ys[0])
        yield segment("grid", x, area.top, x, area.bottom)
        yield label(number(tick), x, area.bottom + 16, "middle", "tick")
    middle = (area.left + area.right) / 2
    yield label(plot.x_label, middle, area.bottom + 36, "middle", "label dim")
    yield element(
        "text",
        plot.y_label,
        transform=f"translate(14 {(area.top + area.bottom) / 2:.0f}) rotate(-90)",
        text_anchor="middle",
        class_="label dim",
    )


def _along(name: str, start: Point, end: Point, taken: Taken) -> Safe:
    """The name of a line: at the end of a level one, along a rising one."""
    if start[1] == end[1]:
        x, y = end[0] - 6, end[1] - 6
        taken.append((x - 7 * len(name), y, 7.0 * len(name)))
        return label(name, x, y, "end", "tick")
    angle = math.degrees(math.atan2(end[1] - start[1], end[0] - start[0]))
    return element(
        "text",
        name,
        transform=f"translate({short(start[0])} {short(start[1])}) rotate({angle:.1f})",
        x=14,
        y=-5,
        class_="tick",
    )


def _free(
    dot: Dot,
    x: float,
    y: float,
    radius: float,
    area: _Area,
    taken: Taken,
) -> Safe | None:
    """The name of a dot beside it, unless another text is there."""
    name = shortened(dot.name, 36)
    width = 6.6 * len(name)
    on_left = x + radius + width > area.right
    start = x - radius - 4 if on_left else x + radius + 4
    span = (start - width, start) if on_left else (start, start + width)
    for other_x, other_y, other in taken:
        low, high = sorted((other_x, other_x + other))
        if abs(other_y - y - 4) < 13 and span[0] < high and low < span[1]:
            return None
    taken.append((span[0], y + 4, width))
    return label(name, start, y + 4, "end" if on_left else "start", "tick")


def _from(points: Sequence[Point], lowest: float) -> list[Point]:
    """A line without what is below the picture; it rises from left to right, straight in logs."""
    (x1, y1), (x2, y2) = points[0], points[-1]
    if math.log10(y1) >= lowest or y1 == y2:
        return list(points)
    part = (lowest - math.log10(y1)) / (math.log10(y2) - math.log10(y1))
    return [(x1 * (x2 / x1) ** part, 10**lowest), *points[1:]]


def _drawable(x: float, y: float) -> bool:
    return 1 / _END < x < _END and 1 / _END < y < _END


def _decades(values: Sequence[float], room: float = 1.0) -> Point:
    """The range of values, with room at both ends and a decade at least."""
    low, high = min(values) / room, max(values) * room
    if high / low < 10:
        middle = math.sqrt(low) * math.sqrt(high)
        low, high = middle / math.sqrt(10), middle * math.sqrt(10)
    return low, high


def _log_ticks(low: float, high: float) -> list[float]:
    """Powers of ten between the two: with twos and fives where they are few, every so many where
    they are many.
    """
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    step = max(1, (last - first) // 8)
    factors = (1, 2, 5) if last - first <= 3 else (1,)
    found = [f * 10.0**power for power in range(first, last + 1, step) for f in factors]
    return [tick for tick in found if low <= tick <= high]


def _colours(groups: Iterable[str]) -> dict[str, str]:
    """A colour for each group, in order."""
    named = dict.fromkeys(groups)
    return {group: SERIES[min(i, len(SERIES) - 1)] for i, group in enumerate(named)}


def _legend(colours: dict[str, str], x: float, y: float) -> list[Safe]:
    """Squares and names of the groups; nothing for a single one without a name."""
    parts: list[Safe] = []
    for group, colour in colours.items():
        if group:
            parts.append(
                element(
                    "rect", x=short(x), y=y - 9, width=11, height=11, rx=3, style=f"fill:{colour}"
                )
            )
            parts.append(label(group, x + 17, y, "start", "label"))
            x += 40 + 7.2 * len(group)
    return parts
