from __future__ import annotations

import io
import os
import pty
import subprocess
import sys
from contextlib import suppress

from tapml import progress
from tapml.events import Event, RunStarted, StageFinished, StageProgress, StageStarted
from tapml.stage import Report

STORY: list[Event] = [
    RunStarted(0.0, "id-1", "magika", "magika.yaml", 1, ("import", "tune")),
    StageFinished(0.1, "import", "hit", report=Report("74 values")),
    StageStarted(0.2, "tune", "trials 0 → 64", 240.0),
    *(StageProgress(20.0 * i, "tune", i, 64, f"best {10 - i} ms") for i in range(1, 5)),
    StageFinished(90.0, "tune", "ran", 89.0, 700.0, report=Report("best 6 ms")),
]


def told() -> list[str]:
    out = io.StringIO()
    with progress.watching(out) as watch:
        for event in STORY:
            watch(event)
    return out.getvalue().splitlines()


def test_plain_lines_say_what_was_cached_and_what_ran() -> None:
    lines = told()
    assert lines[1].split(None, 1) == ["import", "[1/2] cached  74 values"]
    assert lines[-1].split(None, 1) == ["tune", "[2/2] done in 89 s, 700 MiB  best 6 ms"]


def test_plain_lines_tell_why_a_stage_starts_and_what_it_took_last_time() -> None:
    assert "started: trials 0 → 64  (last time 4 min 00 s)" in told()[2]


def test_progress_has_note_and_time_left() -> None:
    assert "4/64  best 6 ms  about 20 min 00 s left" in told()[-2]


def test_plain_lines_are_not_repeated_within_ten_seconds() -> None:
    out = io.StringIO()
    lines = progress.Lines(out)
    lines(StageStarted(0.0, "tune", "never run"))
    for i in range(100):
        lines(StageProgress(i / 10, "tune", i, 100, ""))
    assert len(out.getvalue().splitlines()) == 1


def test_work_that_was_there_already_is_no_sign_of_the_pace() -> None:
    pace = progress.Pace()
    for time, done in ((0.0, 50), (10.0, 51), (20.0, 52), (30.0, 53)):
        pace.update(StageProgress(time, "tune", done, 63))
    assert pace.left_s == 100.0


def test_no_time_left_is_guessed_when_the_total_is_unknown() -> None:
    pace = progress.Pace()
    for i in range(9):
        pace.update(StageProgress(float(i), "tune", i, 0))
    assert pace.left_s is None


def test_no_rich_without_a_terminal() -> None:
    code = "import sys, tapml.progress as p\nwith p.watching(): pass\nprint('rich' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def on_a_terminal(story: list[Event]) -> str:
    """What a terminal is sent."""
    parent, child = pty.openpty()
    with os.fdopen(child, "w") as terminal, progress.watching(terminal) as watch:
        for event in story:
            watch(event)
    seen = b""
    with suppress(OSError):  # Linux says EIO at the end
        while part := os.read(parent, 1 << 16):
            seen += part
    os.close(parent)
    return seen.decode()


def test_a_terminal_gets_bars_with_the_stage_and_its_note() -> None:
    seen = on_a_terminal(STORY)
    assert "74 values" in seen
    assert "best 6 ms" in seen
    assert "\x1b[" in seen


def test_markup_in_a_note_is_shown_and_not_obeyed() -> None:
    odd = StageFinished(0.1, "odd", "ran", report=Report("[bold]literally[/]"))
    assert "[bold]literally[/]" in on_a_terminal([odd])


def test_a_terminal_shows_for_whom_a_stage_waits_before_it_starts() -> None:
    waits = StageProgress(0.1, "tune", 0, 0, "waits for run other, which is making it")
    assert "waits for run other" in on_a_terminal([STORY[0], waits, STORY[1]])


def test_control_characters_of_a_stage_reach_no_terminal() -> None:
    odd = StageFinished(0.1, "odd", "ran", report=Report("a\x1b]0;title\x07b"))
    out = io.StringIO()
    with progress.watching(out) as watch:
        watch(odd)
    for seen in (out.getvalue(), on_a_terminal([odd])):
        assert "a\\x1b]0;title\\x07b" in seen
        assert "\x07" not in seen
