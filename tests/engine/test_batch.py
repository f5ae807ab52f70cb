"""Several graphs as one: what is equal is there once, with a name that tells it from others."""

import json
from types import SimpleNamespace

import networkx as nx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tapml import batch, journal
from tapml.events import StageFinished
from tapml.stage import Stage


class Cell(Stage):
    """Takes what is above it; `value` is all that it depends on."""

    name = "cell"
    version = 1
    inputs = {"a": "text"}  # noqa: RUF012
    optional = frozenset({"a"})
    outputs = {"out": "text"}  # noqa: RUF012
    value: int


def chain_of(values):
    graph = nx.DiGraph()
    for index, value in enumerate(values):
        inputs = {"a": (f"n{index - 1}", "out")} if index else {}
        graph.add_node(f"n{index}", stage=Cell(value=value), inputs=inputs)
        graph.add_edges_from((node, f"n{index}") for node, _ in inputs.values())
    return graph


ROWS = st.lists(
    st.lists(st.integers(0, 2), min_size=1, max_size=5), min_size=1, max_size=6, unique_by=tuple
)


@given(ROWS)
def test_nodes_with_equal_stages_below_equal_nodes_are_one(rows):
    labels = [f"values={'x'.join(map(str, row))}" for row in rows]
    merged, steps = batch.merge([chain_of(row) for row in rows], labels)
    prefixes = {tuple(row[: n + 1]) for row in rows for n in range(len(row))}
    assert len(merged.nodes) == len(prefixes)
    for row, own in zip(rows, steps, strict=True):
        assert [merged.nodes[own[f"n{i}"]]["stage"].value for i in range(len(row))] == row
        for index in range(1, len(row)):
            assert list(merged.predecessors(own[f"n{index}"])) == [own[f"n{index - 1}"]]


def test_a_node_is_named_by_what_its_recipes_have_in_common():
    rows = {"a=1,b=1": [1, 1], "a=1,b=2": [1, 2], "a=2,b=1": [2, 1], "a=2,b=2": [2, 2]}
    merged, steps = batch.merge([chain_of(row) for row in rows.values()], list(rows))
    assert sorted(merged.nodes) == sorted(["n0@a=1", "n0@a=2", *(f"n1@{label}" for label in rows)])
    assert steps[3] == {"n0": "n0@a=2", "n1": "n1@a=2,b=2"}


def test_a_node_that_all_share_keeps_its_name():
    merged, _ = batch.merge([chain_of([1, 1]), chain_of([1, 2])], ["b=1", "b=2"])
    assert sorted(merged.nodes) == ["n0", "n1@b=1", "n1@b=2"]


@pytest.mark.parametrize(
    ("recipes", "labels"),
    [
        ([("a", "")], [""]),
        ([("a", "x=1"), ("a", "x=2")], ["x=1", "x=2"]),
        ([("a", ""), ("b", "")], ["a", "b"]),
        ([("a", "x=1"), ("a", "x=2"), ("b", "")], ["a,x=1", "a,x=2", "b"]),
        ([("a", ""), ("a", "")], ["a-1", "a-2"]),
    ],
)
def test_every_recipe_has_a_label_of_its_own(recipes, labels):
    found = batch.labels([SimpleNamespace(name=name, label=label) for name, label in recipes])
    assert found == labels


def finished(told):
    return sorted(event.stage for event in told if isinstance(event, StageFinished))


def test_what_recipes_share_runs_once_and_is_told_to_each(bench, chain):
    done = bench.batch({"s=!": chain(suffix="!"), "s=?": chain(suffix="?")})
    one, two = done["s=!"], done["s=?"]
    assert one.steps.keys() == two.steps.keys() == {"text", "other", "join", "last"}
    assert {step.state for step in (*one.steps.values(), *two.steps.values())} == {"ran"}
    assert one.steps["text"].key == two.steps["text"].key
    assert (bench.text(one, "join"), bench.text(two, "join")) == ("helloother!", "helloother?")
    assert len(finished(bench.events)) == 6


def test_each_recipe_has_a_folder_with_its_own_names_of_stages(bench, chain):
    done = bench.batch({"s=!": chain(suffix="!"), "s=?": chain(suffix="?")}, views=True)
    assert len({result.sweep for result in done.values()}) == 1
    for label, result in done.items():
        told = journal.read_events(result.folder)
        assert (told[0].label, told[0].sweep) == (label, result.sweep)
        assert finished(told) == ["join", "last", "other", "text"]
        plan = json.loads((result.folder / "plan.json").read_bytes())
        assert [row["name"] for row in plan] == list(result.steps)


def test_logs_of_shared_stages_are_in_each_folder(bench, chain):
    for _ in range(2):  # made, then cached
        done = bench.batch({"s=!": chain(times=1), "s=?": chain(times=2)}, jobs=1)
        for result in done.values():
            assert "joined hello" in (result.folder / "logs" / "join.log").read_text()


def test_a_failure_is_that_of_the_recipes_that_need_the_stage(bench, stages, graph):
    def make(act):
        return graph(text=(stages.Text(), {}), last=(stages.Act(act=act), {"a": ("text", "out")}))

    done = bench.batch({"act=raise": make("raise"), "act=nothing": make("nothing")})
    assert [result.exit_code for result in done.values()] == [1, 0]
    assert done["act=raise"].steps["last"].state == "failed"
    assert done["act=nothing"].steps["last"].state == "ran"


def test_a_second_batch_has_nothing_to_do(bench, chain):
    graphs = {"s=!": chain(suffix="!"), "s=?": chain(suffix="?")}
    bench.batch(graphs)
    done = bench.batch(graphs)
    assert {step.state for result in done.values() for step in result.steps.values()} == {"hit"}
