from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from math import isfinite
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import tapml
from tapml import report, summary
from tapml.errors import RecipeError, StageError
from tapml.report import charts, plots, sweep
from tapml.report.markup import Safe, breakable, element, join, number, shortened
from tapml.stage import Bar, Bars, Curve, Dot, Report, Scatter

VOID = {"meta", "br", "hr", "wbr"}


class Checker(HTMLParser):
    """Elements and texts of a page; fails when tags are not nested."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture
def result(project: Path) -> tapml.RunResult:
    return tapml.run("little.yaml", jobs=0, track="off")


def test_the_report_needs_nothing_from_outside_and_runs_nothing(result: tapml.RunResult) -> None:
    page = Checker(result.report.read_text(encoding="utf-8"))
    assert not {"script", "link", "img", "iframe", "object"} & {tag for tag, _ in page.seen}
    assert not any(name in ("src", "href") for _, attributes in page.seen for name in attributes)
    assert "url(" not in report.render(result)
    assert "@import" not in report.render(result)


def test_names_from_outside_are_escaped(result: tapml.RunResult) -> None:
    page = Checker(report.render(replace(result, recipe="<img onerror=x>"), "a: <b>"))
    assert "<script>alert(1)</script>" in page.text
    assert "<img onerror=x>" in page.text
    assert "a: <b>" in page.text


def test_the_report_has_figures_gates_stages_and_recipe(result: tapml.RunResult) -> None:
    text = Checker(report.render(result, "the recipe")).text
    for part in ("PASSED", "metric.same", "Stages: 3 ran, 0 cached", "injective", "the recipe"):
        assert part in text


def test_a_failed_run_shows_the_error_first(project: Path) -> None:
    failed = tapml.run("little.yaml", set={"scaling.factor": 0.0}, jobs=0, track="off", check=False)
    text = Checker(report.render(failed)).text
    assert text.index("loses everything") < text.index("Stages:")
    assert "Stopped at scale." in text


def test_foreign_timings_are_said_to_be_foreign(result: tapml.RunResult) -> None:
    assert "timed on another machine" not in report.render(result)
    assert "timed on another machine" in report.render(replace(result, foreign=True))


def test_an_attribute_cannot_be_left() -> None:
    assert element("i", title='"><b>') == '<i title="&quot;&gt;&lt;b&gt;"></i>'


def test_only_markup_of_ours_is_left_as_it_is() -> None:
    assert join(Safe("<br>"), "<br>", None, 1) == "<br>&lt;br&gt;1"


@pytest.mark.parametrize(
    "points",
    [
        (),
        ((1.0, 2.0),),
        ((1.0, 5.0), (2.0, 5.0)),
        ((0.0, 1e-9), (1e6, 3e-9)),
        ((1.0, float("inf")), (2.0, 1.0), (3.0, float("nan"))),
        ((-3.0, -2.0), (3.0, 2.0)),
    ],
)
def test_any_points_can_be_drawn(points: tuple[tuple[float, float], ...]) -> None:
    drawn = charts.lines(Curve("title", "x", "y", {"line": points}))
    Checker(drawn)
    assert "nan" not in drawn
    assert "inf" not in drawn


def test_shares_that_are_many_are_summed_up() -> None:
    drawn = Checker(charts.shares({f"rule {i}": 1.0 for i in range(10)}))
    assert "6 others 60%" in drawn.text


def test_long_names_can_be_broken_and_are_still_escaped() -> None:
    name = "fused_conv_add_multiply_<b>_tanh"
    drawn = breakable(name)
    assert "fused_<wbr>conv_" in drawn
    assert Checker(drawn).text == name


@pytest.fixture
def members(made: Callable[..., tapml.RunResult]) -> list[tapml.RunResult]:
    """A sweep over two fields, of which one run failed."""
    found = [
        made(
            ms * 2 if kind == "csr" else ms,
            metric=0.9 + ms / 100,
            label=f"density={density},format={kind}",
            sweep="s1",
            fields={"sparsity.density": density, "sparsity.format": kind, "tuning.trials": 0},
        )
        for density, ms in ((0.3, 1.0), (0.5, 1.6), (0.7, 2.5))
        for kind in ("bsr", "csr")
    ]
    fields = {"sparsity.density": 0.9, "sparsity.format": "bsr", "tuning.trials": 0}
    label = "density=0.9,format=bsr"
    return [*found, made(None, exit_code=1, label=label, sweep="s1", fields=fields)]


def test_the_page_of_a_sweep_has_all_runs_in_a_table_and_charts(
    members: list[tapml.RunResult],
) -> None:
    text = sweep.render("s1", members)
    page = Checker(text)
    assert text.count("<svg") == 5  # ranges, three of points, parallel axes
    for run in members:
        assert page.text.count(run.label) >= 2
    assert "6 OF 7 PASSED" in page.text
    assert "sparsity.format" in page.text
    assert "tuning.trials" not in page.text  # which does not differ
    assert "Fastest at batch 1 that passed: density=0.3,format=bsr, 1 ms" in page.text


def test_the_page_of_a_sweep_runs_nothing_and_links_only_to_its_own_reports(
    members: list[tapml.RunResult],
) -> None:
    page = Checker(sweep.render("s1", members))
    assert not {"script", "link", "img", "iframe", "object"} & {tag for tag, _ in page.seen}
    links = [attributes["href"] for _, attributes in page.seen if "href" in attributes]
    assert links == [f"{run.run_id}/report.html" for run in members]


def test_no_name_of_a_sweep_scripts_its_page(made: Callable[..., tapml.RunResult]) -> None:
    evil = '"><script>alert(1)</script>\x1b[2J\u202e'
    runs = [
        made(1.0, label=f"a={evil}", fields={f"s.{evil}": evil}, exit_code=1),
        made(2.0, label="b", recipe="little", fields={f"s.{evil}": "other"}),
    ]
    text = sweep.render("s1", runs)
    page = Checker(text)
    assert "script" not in {tag for tag, _ in page.seen}
    assert evil[:27] in page.text
    assert not {"\x1b", "\u202e"} & set(text)


def test_a_sweep_over_a_scale_tells_how_far_one_may_go_and_draws_figures_against_it(
    made: Callable[..., tapml.RunResult],
) -> None:
    field = "sparsity.prune.density"
    runs = [
        made(
            float(density),
            label=f"density={density}",
            fields={field: density},
            exit_code=0 if density > 0.3 else 4,
            metric=density,
        )
        for density in (0.9, 0.6, 0.4, 0.2)
    ]
    text = Checker(sweep.render("s1", runs)).text
    assert f"Least {field} that passed: 0.4, in density=0.4." in text
    assert f"metric against {field}" in text
    assert f"latency against {field}" in text


def test_a_sweep_within_the_noise_names_no_fastest(made: Callable[..., tapml.RunResult]) -> None:
    text = sweep.render("s1", [made(1.0, label="a"), made(1.1, label="b")])
    assert "No run is the fastest at batch 1 beyond the noise" in text
    assert 'class="best"' not in text


@pytest.mark.parametrize("count", [1, 2, 30])
def test_a_sweep_of_any_size_can_be_drawn(made: Callable[..., tapml.RunResult], count: int) -> None:
    runs = [
        made(1.0 + i, label=f"x={i}", fields={f"s.f{n}": i * n for n in range(12)}, sweep="s")
        for i in range(count)
    ]
    text = sweep.render("s", runs)
    Checker(text)
    assert "nan" not in text
    assert "inf," not in text


def test_a_sweep_without_any_figure_can_be_drawn(made: Callable[..., tapml.RunResult]) -> None:
    text = sweep.render("s", [made(None, exit_code=1), made(None, exit_code=130)])
    assert "No run that was timed has passed." in Checker(text).text


def test_figures_that_are_no_numbers_are_not_drawn(made: Callable[..., tapml.RunResult]) -> None:
    runs = [made(float("inf"), label="a"), made(float("nan"), label="b"), made(1.0, label="c")]
    runs.append(made(2.0, label="d", metric=float("nan"), error=float("inf"), bundle_mib=9.0))
    text = sweep.render("s", runs)
    Checker(text)
    assert "nan" not in text
    assert "inf," not in text


def test_the_command_writes_the_page_of_a_sweep(
    cli: Callable[..., Any], members: list[tapml.RunResult]
) -> None:
    store = members[0].folder.parent.parent
    done = cli("report", "s1", "--store", str(store))
    assert done.code == 0, done.err
    assert Path(done.out.strip()) == store / "runs" / "s1.html"
    assert len(cli("runs", "--store", str(store)).out.splitlines()) == 8  # the page is no run
    assert cli("report", "s2", "--store", str(store)).code == 2


def test_a_sweep_cannot_be_written_outside_its_folder(members: list[tapml.RunResult]) -> None:
    for name in ("../s1", "a/b", "", ".hidden"):
        with pytest.raises(RecipeError, match="no name of a sweep"):
            sweep.write(name, members, members[0].folder.parent.parent)


def test_secrets_and_control_characters_are_not_in_a_report(result: tapml.RunResult) -> None:
    key = "AKIAABCDEFGHIJKLMNOP"
    step = replace(result.steps[0], state="failed", error=StageError(message=f"no {key}\x1b[2J"))
    text = report.render(replace(result, steps=(step,)), f"x: {key}\n\u202egnp.exe")
    assert key not in text
    assert not {"\x1b", "\u202e"} & set(text)


NUMBERS = st.floats(allow_nan=True, allow_infinity=True)


@given(st.lists(st.tuples(NUMBERS, st.none() | NUMBERS), max_size=40))
def test_any_bars_can_be_drawn(values: list[tuple[float, float | None]]) -> None:
    drawn = [Bar(f"kernel <{i}>", value, least) for i, (value, least) in enumerate(values)]
    page = Checker(plots.bars(Bars("Time", "ms", tuple(drawn))))
    sizes = [float(row["width"] or 0) for tag, row in page.seen if tag == "rect"]
    assert all(0 <= size <= 401 for size in sizes)


@given(st.lists(st.tuples(NUMBERS, NUMBERS, NUMBERS), max_size=40), st.floats(1e-9, 1e9))
def test_any_dots_can_be_drawn_and_each_tells_its_name(
    points: list[tuple[float, float, float]], peak: float
) -> None:
    dots = tuple(Dot(f"kernel_{i}", *point, note="<ms>") for i, point in enumerate(points))
    line = {
        "peak": ((peak / 10, peak), (peak * 10, peak)),
        "read": ((peak / 1e3, 1.0), (peak, 1e3)),
    }
    page = Checker(plots.scatter(Scatter("Roofline", "x", "y", dots, line)))
    drawable = [p for p in points if isfinite(p[2]) and all(1e-15 < v < 1e15 for v in p[:2])]
    circles = [row for tag, row in page.seen if tag == "circle"]
    assert len(circles) == len(drawable)
    for row in circles:
        assert 80 < float(row["cx"] or 0) < 950
        assert float(row["cy"] or 0) < 380


def test_kernels_beyond_the_twentieth_are_one_bar() -> None:
    drawn = tuple(Bar(f"kernel_{i}", float(i + 1), group="default") for i in range(90))
    text = Checker(plots.bars(Bars("Time", "ms", drawn))).text
    assert "kernel_89" in text
    assert "kernel_69" not in text
    assert f"70 others{sum(range(1, 71))} ms" in text.replace(",", "")


@given(st.text(max_size=80), st.integers(8, 60))
def test_a_long_name_keeps_its_end_and_its_length_is_bounded(name: str, length: int) -> None:
    found = shortened(name, length)
    assert len(found) == min(len(name), length)
    assert found == name or (found[0], found[-1]) == (name[0], name[-1])


@given(st.floats(-1e15, 1e15))
def test_a_number_is_within_half_of_its_last_digit(value: float) -> None:
    shown = float(number(value).replace(",", ""))
    assert shown == pytest.approx(value, rel=5e-4, abs=1e-300)


def test_what_to_tune_next_is_on_the_page_and_at_the_end_of_a_run(
    result: tapml.RunResult,
) -> None:
    advice = ("dense (main, 90% of its time): not tuned; tuning: {trials: 64}", "\x1b[2Jsecond")
    told = replace(
        result.steps[0],
        report=Report(
            bars=(Bars("Time by kernel", "ms", (Bar("dense", 2.0, 1.0, "dense"),)),),
            scatters=(Scatter("Roofline", "x", "y", (Dot("dense", 1.0, 2.0, 0.5),), {}),),
            advice=advice,
        ),
    )
    run = replace(result, steps=(told, *result.steps[1:]))
    page = Checker(report.render(run))
    assert "What to tune next" in page.text
    assert "Time by kernel" in page.text
    assert page.text.index("What to tune next") < page.text.index("Roofline")
    text = summary.of_run(run)
    assert f"next     {advice[0]}\n" in text
    assert "\x1b[2J" not in text
