"""Which runs `tapml runs` lists, and in which order."""

from __future__ import annotations

import operator
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from . import journal, runs
from .errors import RecipeError, nearest
from .report import figures
from .runs import RunResult, Scalar

_FIGURE = {"size": "bundle_mib"}
_DESCENDING = ("when", "metric")  # the newest and the best first; of all else the smallest
_UNITS = {"m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}
_COMPARISONS: dict[str, Callable[[Any, Any], bool]] = {
    ">=": operator.ge,
    "<=": operator.le,
    "!=": operator.ne,
    "==": operator.eq,
    "=": operator.eq,
    ">": operator.gt,
    "<": operator.lt,
}
_CONDITION = re.compile(r"\s*([A-Za-z_][\w.\-\[\]]*)\s*(>=|<=|!=|==|=|>|<)\s*(.*?)\s*")


@dataclass(frozen=True)
class Condition:
    """`field OP value`, of a dotted field of the recipe or a figure of the run."""

    field: str
    comparison: str
    value: str

    def holds(self, values: Mapping[str, Scalar]) -> bool:
        """Compares numbers as such, all else as text; nothing holds of what a run does not have."""
        if (found := values.get(self.field)) is None:
            return False
        compare = _COMPARISONS[self.comparison]
        a, b = _number(found), _number(self.value)
        if a is not None and b is not None:
            return compare(a, b)
        if compare in (operator.eq, operator.ne):
            return compare(_text(found), self.value)
        return False


@dataclass(frozen=True)
class Query:
    """What to list. Empty is no filter.

    tags, where: all must hold
    since:       Unix time
    sort:        `when`, `size` or a name of `figures.of`
    """

    recipe: str = ""
    state: str = ""
    sweep: str = ""
    tags: Mapping[str, str] = field(default_factory=dict[str, str])
    where: tuple[Condition, ...] = ()
    since: float = 0.0
    sort: str = "when"
    reverse: bool = False
    limit: int | None = 20

    @property
    def chooses(self) -> bool:
        """Whether anything but the newest ones are asked for, so that each run has to be read."""
        return self != Query(limit=self.limit)


@dataclass(frozen=True)
class Listing:
    """The runs, and the ids of those that go on or have left no record."""

    runs: tuple[RunResult, ...]
    others: Mapping[str, str]


def select(query: Query, store: Path) -> Listing:
    """The runs of a store that a query asks for.

    Raises: RecipeError when no run has a field that it names.
    """
    folder = runs.folder_of(store)
    read = None if query.chooses else query.limit
    ended, open_ = runs.ids(store)[:read], runs.unfinished(store)[:read]
    found = list(runs.each(store, ended))
    others: dict[str, str] = dict.fromkeys(ended, "its record is damaged")
    for run in found:
        del others[run.folder.name]
    for name in open_:
        if (dead := runs.killed(folder / name)) is not None:
            found.append(dead)
        else:
            going = journal.is_written(folder / name)
            others[name] = "running" if going else "left no record of its end"
    _check(query.where, found)
    chosen = [run for run in found if _holds(query, run)]
    return Listing(tuple(_ordered(chosen, query)[: query.limit]), others)


def condition(text: str) -> Condition:
    """`tuning.trials>=8` as a condition. Raises: RecipeError when it is none."""
    match = _CONDITION.fullmatch(text)
    if match is None:
        raise RecipeError(
            message=f"--where: {text!r} is no condition",
            hint="a field, one of >= <= != = > < and a value: --where 'tuning.trials>=8'",
        )
    found = Condition(*match.groups())
    if found.comparison not in ("=", "==", "!=") and _number(found.value) is None:
        raise RecipeError(
            message=f"--where: {text!r} compares with {found.value!r}, which is no number",
            hint="texts can be compared with = and != only",
        )
    return found


def moment(text: str) -> float:
    """Unix time of `7d` (`m`inutes, `h`ours, `d`ays, `w`eeks) ago, or of an ISO date in local time.

    Raises: RecipeError when it is neither.
    """
    if match := re.fullmatch(r"(\d{1,6}(?:\.\d{1,6})?)([mhdw])", text):
        return time.time() - float(match[1]) * _UNITS[match[2]]
    try:
        return datetime.fromisoformat(text).timestamp()
    except (ValueError, OverflowError, OSError) as error:
        raise RecipeError(
            message=f"--since: {text!r} is no time", hint="such as 7d, 12h or 2026-11-01"
        ) from error


def values(run: RunResult) -> dict[str, Scalar]:
    """All that a condition can name: the recipe's fields, then the run's figures."""
    return {**run.fields, **figures.of(run)}


def _check(where: Sequence[Condition], found: Sequence[RunResult]) -> None:
    """Refuses a field that no run has: it is a slip of the pen."""
    if not where or not found:
        return
    known = dict.fromkeys(name for run in found for name in values(run))
    for one in where:
        if one.field not in known:
            raise RecipeError(
                message=f"--where: no run has a field {one.field!r}",
                hint=nearest(one.field, list(known)),
            )


def _holds(query: Query, run: RunResult) -> bool:
    return (
        query.recipe in ("", run.recipe)
        and query.state in ("", run.state)
        and query.sweep in ("", run.sweep)
        and run.started >= query.since
        and query.tags.items() <= run.tags.items()
        and (not query.where or _all(query.where, values(run)))
    )


def _all(where: Sequence[Condition], values: Mapping[str, Scalar]) -> bool:
    return all(one.holds(values) for one in where)


def _ordered(chosen: Sequence[RunResult], query: Query) -> list[RunResult]:
    """Sorted; runs that lack the figure come last, whichever the direction."""
    newest = sorted(chosen, key=lambda run: run.started, reverse=True)
    if query.sort == "when":
        return newest[::-1] if query.reverse else newest
    name = _FIGURE.get(query.sort, query.sort)
    found = [(figures.of(run).get(name), run) for run in newest]
    has = [(value, run) for value, run in found if value is not None]
    has.sort(key=lambda pair: pair[0], reverse=(query.sort in _DESCENDING) != query.reverse)
    return [run for _, run in has] + [run for value, run in found if value is None]


def _number(value: Scalar) -> float | None:
    if isinstance(value, bool) or value is None:
        return None
    try:
        return float(value)
    except ValueError:
        return None


def _text(value: Scalar) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
