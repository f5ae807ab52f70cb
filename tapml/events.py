"""What a run tells whoever watches it: five kinds of events, plain data with the time of each.

The executor hands them to a callback (terminal, tests) and to the journal, which feeds MLflow.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, cast

from .stage import Bar, Bars, Curve, Dot, Report, Scatter, Table

State = Literal["hit", "ran", "failed", "cancelled", "interrupted"]
Json = dict[str, Any]


@dataclass(frozen=True)
class RunStarted:
    """A run begins. `fields` are the recipe's dotted fields; `label` and `sweep` tell which run of
    a batch it is.
    """

    time: float
    run_id: str
    recipe: str
    path: str
    pid: int
    stages: tuple[str, ...]
    fields: Mapping[str, Any] = field(default_factory=dict[str, Any])
    host: Mapping[str, Any] = field(default_factory=dict[str, Any])
    label: str = ""
    sweep: str = ""


@dataclass(frozen=True)
class StageStarted:
    """A worker takes up a stage. `expected_s` is what it took last time, when that is known."""

    time: float
    stage: str
    reason: str
    expected_s: float | None = None


@dataclass(frozen=True)
class StageProgress:
    """How far a stage is; `total` 0 means unknown. Also tells for whom a stage waits (`note`)."""

    time: float
    stage: str
    done: int
    total: int
    note: str = ""


@dataclass(frozen=True)
class StageFinished:
    """How a stage ended. A hit has the figures of when it was made."""

    time: float
    stage: str
    state: State
    seconds: float = 0.0
    rss_mib: float = 0.0
    key: str = ""
    outputs: Mapping[str, str] = field(default_factory=dict[str, str])
    report: Report = field(default_factory=Report)
    error: Mapping[str, Any] | None = None
    log: str = ""
    notes: tuple[str, ...] = ()
    made_at: str = ""
    made_on: Mapping[str, Any] = field(default_factory=dict[str, Any])


@dataclass(frozen=True)
class RunFinished:
    """The run's last event, gates not judged yet."""

    time: float
    run_id: str
    exit_code: int
    seconds: float


Event = RunStarted | StageStarted | StageProgress | StageFinished | RunFinished

_CLASSES: dict[str, type[Event]] = {
    cls.__name__: cls
    for cls in (RunStarted, StageStarted, StageProgress, StageFinished, RunFinished)
}


def to_data(event: Event) -> Json:
    """JSON-able data of an event; `event` names its class."""
    data = {"event": type(event).__name__, **vars(event)}
    if isinstance(event, StageFinished):
        data["report"] = report_to_data(event.report)
    return data


def from_data(data: Mapping[str, Any]) -> Event:
    """The event that `to_data` described."""
    facts = {name: value for name, value in data.items() if name != "event"}
    for name in ("stages", "notes"):
        if name in facts:
            facts[name] = tuple(facts[name])
    if "report" in facts:
        facts["report"] = report_from_data(facts["report"])
    return _CLASSES[data["event"]](**facts)


_NESTED = ("tables", "curves", "bars", "scatters")


def report_to_data(report: Report) -> Json:
    """JSON-able data of a stage's report; NumPy's numbers become Python's, non-finite ones None."""
    plain = {name: value for name, value in vars(report).items() if name not in _NESTED}
    return _plain(plain | {name: list(map(vars, getattr(report, name))) for name in _NESTED})


def _plain(value: Any) -> Any:
    match value:
        case dict():
            return {str(name): _plain(one) for name, one in cast("Json", value).items()}
        case list() | tuple():
            return [_plain(one) for one in cast("list[Any]", value)]
        case None | bool():
            return value
        case str():
            return str(value)  # TVM's strings are a class of their own
        case int():
            return int(value)
        case _:
            number = float(value)
            return number if math.isfinite(number) else None


def report_from_data(data: Mapping[str, Any]) -> Report:
    """The report that `report_to_data` described."""
    return Report(
        summary=data["summary"],
        metrics={name: one for name, one in data["metrics"].items() if one is not None},
        notes=tuple(data["notes"]),
        tables=tuple(
            Table(row["title"], tuple(row["columns"]), tuple(tuple(cells) for cells in row["rows"]))
            for row in data["tables"]
        ),
        curves=tuple(
            Curve(row["title"], row["x_label"], row["y_label"], _lines(row["lines"]))
            for row in data["curves"]
        ),
        bars=tuple(
            Bars(
                row["title"],
                row["unit"],
                tuple(Bar(*one) for one in row["bars"] if one[1] is not None),
            )
            for row in data.get("bars", ())
        ),
        scatters=tuple(
            Scatter(
                row["title"],
                row["x_label"],
                row["y_label"],
                tuple(Dot(*one) for one in row["dots"] if None not in one[1:4]),
                _lines(row["lines"]),
            )
            for row in data.get("scatters", ())
        ),
        advice=tuple(data.get("advice", ())),
    )


def _lines(data: Mapping[str, Any]) -> dict[str, tuple[tuple[float, float], ...]]:
    """Lines by name, without the points that were not finite."""
    return {
        name: tuple((x, y) for x, y in points if x is not None and y is not None)
        for name, points in data.items()
    }
