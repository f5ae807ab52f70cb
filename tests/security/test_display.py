"""Names and texts of a stranger cannot draw on the terminal or script a page."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from pathlib import Path

import pytest
from fuzz import run
from onnx import TensorProto, helper, save

from tapml import registry

Cli = Callable[..., tuple[int, str, str]]
HOSTILE = (
    "\x1b[2J\x1b]0;mine\x07\x9b31m\u202e\u2066\r<script>alert(1)</script><img src=x onerror=y>"
)
STAGES = '''
from typing import ClassVar
from tapml.errors import StageError
from tapml.stage import Curve, Frozen, Outputs, Report, Stage, Table

H = {hostile!r}


class Section(Frozen):
    """What it says."""

    text: str = ""
    fails: bool = False


class Loud(Stage):
    name: ClassVar[str] = "loud"
    version: ClassVar[int] = 1
    sections: ClassVar = {{"loud": Section}}
    outputs: ClassVar = {{"out": "text"}}
    text: str
    fails: bool

    @classmethod
    def from_recipe(cls, recipe):
        section = recipe.section("loud", Section)
        return cls(text=section.text, fails=section.fails)

    def run(self, inputs, ctx):
        ctx.logger.warning(H)
        ctx.progress(1, 2, H)
        if self.fails:
            raise StageError(message=f"no {{H}}", hint=H)
        path = ctx.workdir / "out.txt"
        path.write_text(self.text)
        table = Table(H, (H, "n"), ((H, 1.0), (H * 20, 2)))
        curve = Curve(H, H, H, {{H: ((1.0, 2.0), (2.0, 3.0))}})
        return Outputs({{"out": path}}, Report(H, {{"loud/x": 1.0}}, (H,), (table,), (curve,)))
'''
RECIPE = {
    "version": 1,
    "name": "loud",
    "workflow": "loud",
    "description": HOSTILE,
    "tags": {"team": HOSTILE, HOSTILE: "x"},
    "x-note": HOSTILE,
    "loud": {"text": HOSTILE},
}


class Page(HTMLParser):
    """What a page would do."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attrs}


def assert_quiet(text: str) -> None:
    """No line holds a character that a terminal or a page would obey."""
    for line in text.split("\n"):
        assert line.replace("\t", "").isprintable(), repr(line)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where a package with a stage that shouts is installed."""
    site = tmp_path_factory.mktemp("site")
    (site / "loud_stages").mkdir(parents=True)
    (site / "loud_stages" / "__init__.py").write_text(STAGES.format(hostile=HOSTILE))
    facts = site / "loud_stages-1.0.dist-info"
    facts.mkdir()
    (facts / "METADATA").write_text("Metadata-Version: 2.1\nName: loud-stages\nVersion: 1.0\n")
    (facts / "entry_points.txt").write_text("[tapml.stages]\nloud = loud_stages:Loud\n")
    return site


@pytest.fixture
def loud(stranger: Path, site: Path, monkeypatch: pytest.MonkeyPatch, cli: Cli) -> Iterator[Cli]:
    """The command, in a project whose stage and recipe shout."""
    (stranger / "workflows.yaml").write_text("workflows: {loud: {loud: {}}}\n")
    (stranger / "loud.yaml").write_text(json.dumps(RECIPE))
    monkeypatch.syspath_prepend(str(site))
    monkeypatch.setenv("PYTHONPATH", str(site))  # for worker processes
    monkeypatch.setenv("TAPML_TRACK", "off")
    registry.installed.cache_clear()
    yield cli
    registry.installed.cache_clear()


@pytest.mark.parametrize(
    "command",
    [
        "validate loud.yaml",
        "plan loud.yaml",
        "plan loud.yaml --json",
        "show loud.yaml",
        "show loud.yaml --resolved",
        "show loud.yaml --json",
        "explain loud.yaml loud",
        "schema",
    ],
)
def test_looking_at_a_recipe_prints_nothing_that_a_terminal_obeys(loud: Cli, command: str) -> None:
    code, out, err = loud(*command.split())
    assert code == 0, err
    assert_quiet(out + err)


def test_a_run_and_what_tells_of_it_print_nothing_that_a_terminal_obeys(
    loud: Cli, stranger: Path
) -> None:
    said = [loud("run", "loud.yaml", "--jobs", "0"), loud("run", "loud.yaml", "--set=loud.text=b")]
    said += [loud("explain", "loud.yaml", "loud"), loud("runs"), loud("runs", "--json")]
    said += [loud("cache", "ls"), loud("cache", "ls", "--json"), loud("report", "last")]
    first, second = sorted(path.name for path in (stranger / "store" / "runs").iterdir())
    said += [loud("compare", first, second), loud("compare", first, second, "--json")]
    for code, out, err in said:
        assert code == 0, err
        assert_quiet(out + err)


def test_a_failure_prints_nothing_that_a_terminal_obeys(loud: Cli) -> None:
    code, out, err = loud("run", "loud.yaml", "--jobs", "1", "--set=loud.fails=true")
    assert code == 1
    assert "<script>" in err
    assert_quiet(out + err)


@pytest.mark.parametrize("option", ["--set=loud.fails=false", "--set=loud.fails=true"])
def test_the_report_runs_and_loads_nothing(loud: Cli, stranger: Path, option: str) -> None:
    loud("run", "loud.yaml", "--jobs", "0", option)
    (path,) = (stranger / "store" / "runs").glob("*/report.html")
    text = path.read_text(encoding="utf-8")
    page = Page(text)
    assert "alert(1)" in text
    assert not page.tags & {"script", "img", "iframe", "object", "link", "form", "base"}
    assert not {name for name in page.attributes if name.startswith("on")} | (
        page.attributes & {"src", "srcdoc", "action"}
    )
    assert_quiet(text)


@pytest.mark.parametrize("argument", ["\x1b[2J.yaml", "no\x9b31m", "loud.yaml --set=\x1b[2J=1"])
def test_an_error_about_an_argument_is_quiet(loud: Cli, argument: str) -> None:
    code, out, err = loud("validate", *argument.split(" "))
    assert code == 2
    assert_quiet(out + err)


def test_names_in_a_model_are_quiet(loud: Cli, stranger: Path) -> None:
    x, y = (
        helper.make_tensor_value_info(HOSTILE + name, TensorProto.FLOAT, [HOSTILE, 4])
        for name in "xy"
    )
    weight = helper.make_tensor("w" + HOSTILE, TensorProto.FLOAT, [4, 4], [1.0] * 16)
    nodes = [
        helper.make_node("MatMul", [x.name, weight.name], ["h"], HOSTILE),
        helper.make_node(HOSTILE, ["h"], [y.name], HOSTILE, domain=HOSTILE),
    ]
    graph = helper.make_graph(nodes, HOSTILE, [x], [y], [weight])
    save(helper.make_model(graph), stranger / "m.onnx")
    for options in ((), ("--json",)):
        code, out, err = loud("inspect", "m.onnx", *options)
        assert code == 0, err
        assert_quiet(out + err)


def test_the_sweep_would_notice() -> None:
    assert list(run.judged(2, "", "error: \x1b[2J", 0.0))
