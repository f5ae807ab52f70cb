from __future__ import annotations

from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

import tapml
from tapml import charts, report
from tapml.markup import Safe, breakable, element, join
from tapml.stage import Curve

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
