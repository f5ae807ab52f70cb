"""What a run shows while it goes, on stderr: bars on a terminal, plain lines elsewhere. rich is
imported for bars only.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TextIO

from .errors import from_data
from .events import Event, RunFinished, RunStarted, StageFinished, StageProgress, StageStarted
from .terminal import printable

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

_EVERY_S = 10.0  # between two plain lines about one running stage
_LONG_S = 3.0  # a stage quicker than this needs no word about its memory
_WORDS = {
    "hit": "cached",
    "ran": "done",
    "failed": "FAILED",
    "cancelled": "not run",
    "interrupted": "interrupted",
}


@contextmanager
def watching(stream: TextIO | None = None) -> Generator[Callable[[Event], None]]:
    """A callback that shows the events of a run, for as long as the block lasts."""
    out = stream or sys.stderr
    if out.isatty() and os.environ.get("TERM") != "dumb":
        with _bars(out) as progress:
            yield _Bars(progress)
    else:
        yield Lines(out)


def duration(seconds: float) -> str:
    """`0.4 s`, `12 s`, `3 min 20 s`, `2 h 05 min`."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


@dataclass
class Pace:
    """When a stage with `total` known steps will be done, from the steps that it took since the
    first news of it.

    Work already there when it began (a resumed search) is no sign of its pace.
    """

    since: float | None = None
    first: int = 0
    done: int = 0
    total: int = 0
    now: float = 0.0

    def update(self, event: StageProgress) -> None:
        if self.since is None or event.total != self.total:
            self.since, self.first = event.time, event.done
        self.done, self.total, self.now = event.done, event.total, event.time

    @property
    def left_s(self) -> float | None:
        """Seconds left, once at least three steps were seen to take time."""
        steps = self.done - self.first
        if self.since is None or steps < 3 or not self.total or self.now <= self.since:
            return None
        return (self.total - self.done) * (self.now - self.since) / steps

    def __str__(self) -> str:
        left = self.left_s
        return f"about {duration(left)} left" if left is not None and left >= 1 else ""


def line_of(event: StageFinished) -> str:
    """What a finished stage has to say: how it ended, time, memory, its own summary."""
    parts = [_WORDS[event.state]]
    if event.state in ("ran", "failed"):
        parts[0] = f"{parts[0]} in {duration(event.seconds)}"
        if event.seconds >= _LONG_S and event.rss_mib:
            parts[0] += f", {event.rss_mib:.0f} MiB"
    if event.state == "cancelled" and event.error:
        parts[0] += f", because of {event.error.get('facts', {}).get('because', 'another stage')}"
    if event.state == "failed" and event.error:
        parts.append(str(from_data(dict(event.error))).partition("\n")[0])
    if event.report.summary:
        parts.append(event.report.summary)
    return "  ".join(parts)


@dataclass
class Lines:
    """One plain line per piece of news, for logs and pipes."""

    out: TextIO
    width: int = 12
    total: int = 0
    ended: int = 0
    paces: dict[str, Pace] = field(default_factory=dict[str, Pace])
    shown: dict[str, float] = field(default_factory=dict[str, float])

    def __call__(self, event: Event) -> None:
        match event:
            case RunStarted():
                self.total = len(event.stages)
                self.width = max(map(len, event.stages), default=12)
                self._print(f"{event.recipe}: run {event.run_id}")
            case StageStarted():
                self.shown[event.stage] = event.time
                expected = event.expected_s
                known = f"  (last time {duration(expected)})" if expected and expected >= 3 else ""
                self._print(f"  {event.stage:<{self.width}}  started: {event.reason}{known}")
            case StageProgress():
                pace = self.paces.setdefault(event.stage, Pace())
                pace.update(event)
                if event.time - self.shown.get(event.stage, 0.0) >= _EVERY_S:
                    self.shown[event.stage] = event.time
                    count = f"{event.done}/{event.total}" if event.total else ""
                    words = "  ".join(part for part in (count, event.note, str(pace)) if part)
                    self._print(f"  {event.stage:<{self.width}}  {words}")
            case StageFinished():
                self.ended += 1
                count = f"[{self.ended}/{self.total}]"
                self._print(f"  {event.stage:<{self.width}}  {count} {line_of(event)}")
                for note in event.notes:
                    self._print(f"  {'':<{self.width}}  {note}")
            case RunFinished():
                pass

    def _print(self, text: str) -> None:
        print(printable(text), file=self.out, flush=True)


@contextmanager
def _bars(out: TextIO) -> Generator[Progress]:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    with Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        TextColumn("{task.fields[count]:>7}"),
        TimeElapsedColumn(),
        TextColumn("[dim]{task.fields[note]}", markup=True),
        console=Console(file=out),
        transient=True,
        refresh_per_second=4,
    ) as progress:
        yield progress


@dataclass
class _Bars:
    """A bar for the pipeline, a bar with a note for each running stage, a line above for each one
    that ended.
    """

    progress: Progress
    width: int = 12
    total: int = 0
    ended: int = 0
    pipeline: TaskID | None = None
    tasks: dict[str, TaskID] = field(default_factory=dict[str, "TaskID"])
    paces: dict[str, Pace] = field(default_factory=dict[str, Pace])

    def __call__(self, event: Event) -> None:
        match event:
            case RunStarted():
                self.width = max(map(len, (event.recipe, *event.stages)))
                name = f"[bold]{_plain(event.recipe):<{self.width}}"
                self.total = len(event.stages)
                self.pipeline = self.progress.add_task(
                    name, total=self.total, note=event.run_id, count=f"0/{self.total}"
                )
            case StageStarted():
                self._end(event.stage)  # it may have waited, or crashed
                self._begin(event.stage, event.reason)
            case StageProgress():
                if event.stage not in self.tasks:  # it waits for another run
                    self._begin(event.stage, "")
                pace = self.paces.setdefault(event.stage, Pace())
                pace.update(event)
                note = "  ".join(part for part in (event.note, str(pace)) if part)
                self.progress.update(
                    self.tasks[event.stage],
                    completed=event.done,
                    total=event.total or None,
                    note=_plain(note),
                    count=f"{event.done}/{event.total}" if event.total else "",
                )
            case StageFinished():
                self._end(event.stage)
                self._count()
                self._say(event)
            case _:
                pass

    def _begin(self, stage: str, note: str) -> None:
        self.tasks[stage] = self.progress.add_task(
            f"{stage:<{self.width}}", total=None, note=_plain(note), count=""
        )

    def _end(self, stage: str) -> None:
        if (task := self.tasks.pop(stage, None)) is not None:
            self.progress.remove_task(task)

    def _count(self) -> None:
        if self.pipeline is not None:
            self.ended += 1
            self.progress.update(self.pipeline, advance=1, count=f"{self.ended}/{self.total}")

    def _say(self, event: StageFinished) -> None:
        colour = {"hit": "cyan", "ran": "green", "cancelled": "dim"}.get(event.state, "red")
        text = _plain(line_of(event))
        self.progress.console.print(
            f"[{colour}]{event.stage:<{self.width}}[/]  {text}", highlight=False, soft_wrap=True
        )
        for note in event.notes:
            self.progress.console.print(f"{'':<{self.width}}  [dim]{_plain(note)}", highlight=False)


def _plain(text: str) -> str:
    """The text with nothing that rich reads as markup, or a terminal as a command."""
    from rich.markup import escape

    return escape(printable(text))
