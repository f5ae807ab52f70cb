from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar, Self

import pytest
from pydantic import Field, create_model

from tapml import recipe as recipes
from tapml import shipped, workflow
from tapml.errors import RecipeError, RecipeErrors
from tapml.registry import Registry, stage_names
from tapml.stage import Frozen, Stage
from tapml.stage import Recipe as RecipeView

Graph = Callable[..., Any]


class Sparsity(Frozen):
    """Opt-in."""

    layers: tuple[str, ...]


def stage(
    name: str,
    inputs: Mapping[str, str],
    outputs: Mapping[str, str],
    optional: tuple[str, ...] = (),
    sections: Mapping[str, type[Frozen]] | None = None,
) -> type[Stage]:
    """A stage class with these declarations."""
    cls = create_model(name.capitalize(), __base__=Stage)
    cls.name, cls.version, cls.inputs, cls.outputs = name, 1, inputs, outputs
    cls.optional, cls.sections = frozenset(optional), sections or {}
    return cls


class Tune(Stage):
    """A stage with parameters."""

    name: ClassVar[str] = "tune"
    version: ClassVar[int] = 1
    inputs: ClassVar[Mapping[str, str]] = {"program": "program"}
    outputs: ClassVar[Mapping[str, str]] = {"records": "records"}
    trials: int = Field(default=0, ge=0)
    layers: tuple[str, ...] = ()

    @classmethod
    def from_recipe(cls, recipe: RecipeView) -> Self:
        if recipe.has("sparsity"):
            layers = recipe.section("sparsity", Sparsity).layers
            if "nothing" in layers:
                raise RecipeError(field="sparsity.layers", message="matches nothing")
            return cls(trials=7, layers=layers)
        return cls(trials=7)


PROGRAM, WEIGHTS, RECORDS = {"program": "program"}, {"weights": "weights"}, {"records": "records"}
REGISTRY = Registry.of(
    stage("import", {}, PROGRAM | WEIGHTS | {"source": "source"}),
    stage(
        "prune", PROGRAM | WEIGHTS, WEIGHTS | {"masks": "masks"}, sections={"sparsity": Sparsity}
    ),
    stage("reference", {"original": "weights"} | WEIGHTS, {"reference": "reference"}),
    stage("relax", PROGRAM, PROGRAM),
    stage("sparsetir", PROGRAM | WEIGHTS, {"alternatives": "alternatives"}),
    stage(
        "tensorir", PROGRAM | {"alternatives": "alternatives"}, PROGRAM | RECORDS, ("alternatives",)
    ),
    stage("need", PROGRAM | {"alternatives": "alternatives"}, {}),
    stage("codegen", PROGRAM | RECORDS | WEIGHTS, {"bundle": "bundle"}),
    stage("two", PROGRAM, {"left": "weights", "right": "weights"}),
    Tune,
)
WHOLE = """\
workflows:
  deploy:
    import:    {}
    prune:     {needs: [import], when: sparsity}
    reference: {needs: {original: import, weights: prune}}
    relax:     {needs: [import]}
    sparsetir: {needs: [relax, prune], when: sparsity}
    tensorir:  {needs: [relax, sparsetir]}
    tune:      {needs: [tensorir]}
    codegen:   {needs: [tensorir, tune, prune]}
"""
SPARSE = "sparsity: {layers: ['*']}\n"


@pytest.fixture
def graph(tmp_path: Path) -> Graph:
    """The graph of a workflow's text for a recipe with these sections."""

    def build(text: str, sections: str = "") -> Any:
        (tmp_path / "recipe.yaml").write_text(f"version: 1\nname: tiny\n{sections}")
        (tmp_path / "workflows.yaml").write_text(text, encoding="utf-8")
        recipe = recipes.load(tmp_path / "recipe.yaml", (), REGISTRY)
        return workflow.graph(recipe, workflow.load(workflow.find(recipe.path)))

    return build


@pytest.fixture
def errors_of(graph: Graph) -> Callable[..., list[RecipeError]]:
    def find(text: str, sections: str = "") -> list[RecipeError]:
        with pytest.raises(RecipeError) as caught:
            graph(text, sections)
        error = caught.value
        found = error.errors if isinstance(error, RecipeErrors) else (error,)
        for one in found:
            one.where = one.where.rpartition("/")[2]
        return list(found)

    return find


def deploy(*nodes: str) -> str:
    return "workflows:\n  deploy:\n" + "".join(f"    {node}\n" for node in nodes)


def inputs(graph: Any, node: str) -> dict[str, tuple[str, str]]:
    return graph.nodes[node]["inputs"]


def test_an_input_binds_to_the_node_that_gives_its_kind(graph: Graph) -> None:
    built = graph(WHOLE, SPARSE)
    assert inputs(built, "prune") == {
        "program": ("import", "program"),
        "weights": ("import", "weights"),
    }
    assert inputs(built, "tensorir") == {
        "program": ("relax", "program"),
        "alternatives": ("sparsetir", "alternatives"),
    }
    assert list(built) == [
        *("import", "prune", "reference", "relax", "sparsetir", "tensorir", "tune", "codegen")
    ]
    edges = {(above, name) for name in built for above in built.predecessors(name)}
    assert ("sparsetir", "tensorir") in edges
    assert ("codegen", "prune") not in edges


def test_named_needs_bind_each_input(graph: Graph) -> None:
    assert inputs(graph(WHOLE, SPARSE), "reference") == {
        "original": ("import", "weights"),
        "weights": ("prune", "weights"),
    }


def test_where_two_give_a_kind_the_later_is_bound(graph: Graph) -> None:
    built = graph(WHOLE, SPARSE)
    assert inputs(built, "codegen")["records"] == ("tune", "records")
    text = deploy("import: {}", "relax: {needs: [import]}", "tune: {needs: [import, relax]}")
    assert inputs(graph(text), "tune") == {"program": ("relax", "program")}


def test_what_a_left_out_node_would_replace_passes_through(graph: Graph) -> None:
    built = graph(WHOLE)
    assert "prune" not in built
    assert "sparsetir" not in built
    assert inputs(built, "codegen")["weights"] == ("import", "weights")
    assert inputs(built, "reference")["weights"] == ("import", "weights")


def test_what_a_left_out_node_gives_anew_is_an_absent_optional_input(graph: Graph) -> None:
    assert inputs(graph(WHOLE), "tensorir") == {"program": ("relax", "program")}


def test_a_chain_of_left_out_nodes_passes_through(graph: Graph) -> None:
    text = deploy(
        "import: {}",
        "a: {stage: prune, needs: [import], when: sparsity}",
        "b: {stage: prune, needs: [import, a], when: sparsity}",
        "reference: {needs: {original: import, weights: b}}",
    )
    assert inputs(graph(text), "reference")["weights"] == ("import", "weights")
    assert inputs(graph(text, SPARSE), "reference")["weights"] == ("b", "weights")


def test_a_required_input_that_a_left_out_node_gives_is_an_error(
    errors_of: Callable[..., list[RecipeError]],
) -> None:
    (error,) = errors_of(WHOLE + "    need: {needs: [relax, sparsetir]}\n")
    assert "comes from 'sparsetir', which is left out" in error.message
    assert error.where == "workflows.yaml:11:19"


def test_a_stage_may_stand_twice_under_other_names(graph: Graph) -> None:
    text = deploy("import: {}", "again: {stage: relax, needs: [import]}")
    assert type(graph(text).nodes["again"]["stage"]).name == "relax"


def test_a_side_stage_is_one_line(graph: Graph) -> None:
    built = graph(WHOLE + "    count: {stage: tune, needs: [import]}\n")
    assert inputs(built, "count") == {"program": ("import", "program")}


def test_with_overrides_parameters(graph: Graph) -> None:
    text = deploy("import: {}", "tune: {needs: [import], with: {trials: 9, layers: [a]}}")
    built = graph(text).nodes["tune"]["stage"]
    assert (built.trials, built.layers) == (9, ("a",))


def test_without_with_parameters_are_the_recipes(graph: Graph) -> None:
    assert graph(WHOLE).nodes["tune"]["stage"].trials == 7


A = "import: {}"
CASES = [
    (("imprt: {}",), "unknown stage 'imprt'", "did you mean 'import'?", "3:5"),
    ((A, "x: {stage: relx}"), "unknown stage 'relx'", "did you mean 'relax'?", "4:16"),
    ((A, "relax: {needs: [imprt]}"), "unknown node 'imprt'", "did you mean 'import'?", "4:21"),
    ((A, "relax: {needs: {prog: import}}"), "stage 'relax' has no input 'prog'", "did", "4:27"),
    ((A, "tune: {needs: {program: two}}", "two: {needs: [import]}"), "node 'two' gives no", "", ""),
    ((A, "relax: {}"), "no node in `needs` gives input 'program'", "import", "4:5"),
    ((A, "tune: {needs: [import], when: sparsty}"), "no stage has a section", "did", "4:35"),
    ((A, "tune: {needs: [import], with: {trails: 1}}"), "unknown key", "'trials'", "4:36"),
    ((A, "tune: {needs: [import], with: {trials: x}}"), "expected an integer", "", "4:44"),
    ((A, "tune: {needs: [import], with: {trials: -1}}"), "-1: should be", "", "4:44"),
    ((A, "tune: {need: [import]}"), "unknown key", "did you mean 'needs'?", "4:12"),
    ((A, "tune: {needs: 3}"), "expected a list or a mapping, not 3", "", "4:19"),
    ((A, "Tune: {stage: tune, needs: [import]}"), "the name of a node", "", "4:5"),
    (
        (A, "tune: {needs: [import, r]}", "r: {stage: reference, needs: [import]}"),
        "node 'r' gives nothing that 'tune' takes",
        "it gives: reference",
        "4:28",
    ),
    (
        (
            "a: {stage: relax, needs: [c]}",
            "b: {stage: relax, needs: [a]}",
            "c: {stage: relax, needs: [b]}",
        ),
        "nodes need each other in a circle: a → b → c → a",
        "",
        "3:30",
    ),
    (
        (
            A,
            "a: {stage: relax, needs: [import]}",
            "b: {stage: relax, needs: [import]}",
            "tune: {needs: [a, b]}",
        ),
        "input 'program' of 'tune' may be any of a.program, b.program",
        "name one",
        "6:19",
    ),
    (
        (A, "two: {needs: [import]}", "prune: {needs: [import, two]}"),
        "input 'weights' of 'prune' may be any of two.left, two.right",
        "name one",
        "5:20",
    ),
]


@pytest.mark.parametrize(("nodes", "message", "hint", "place"), CASES)
def test_a_mistake_in_a_workflow_is_one_error_at_its_place(
    errors_of: Callable[..., list[RecipeError]],
    nodes: tuple[str, ...],
    message: str,
    hint: str,
    place: str,
) -> None:
    (error,) = errors_of(deploy(*nodes))
    assert error.message.startswith(message)
    assert hint in error.hint
    assert place in error.where
    assert error.exit_code == 2


def test_mistakes_of_several_nodes_are_reported_together(
    errors_of: Callable[..., list[RecipeError]],
) -> None:
    found = errors_of(deploy("imprt: {}", "relax: {needs: [x]}"))
    assert [error.field for error in found] == [
        "workflows.deploy.imprt.stage",
        "workflows.deploy.relax.needs.0",
    ]


def test_an_unknown_workflow_is_an_error_of_the_recipe(
    errors_of: Callable[..., list[RecipeError]],
) -> None:
    (error,) = errors_of(WHOLE, "workflow: deplyo\n")
    assert error.where == "recipe.yaml:3:11"
    assert "did you mean 'deploy'?" in error.hint


def test_an_error_of_a_stage_is_placed_in_the_recipe(
    errors_of: Callable[..., list[RecipeError]],
) -> None:
    (error,) = errors_of(WHOLE, "sparsity: {layers: [nothing]}\n")
    assert (error.where, error.message) == ("recipe.yaml:3:20", "matches nothing")


def test_the_nearest_workflow_file_above_the_recipe_is_used(tmp_path: Path) -> None:
    deep = tmp_path / "a" / "b"
    deep.mkdir(parents=True)
    (tmp_path / "workflows.yaml").touch()
    assert workflow.find(deep / "r.yaml") == tmp_path / "workflows.yaml"
    (tmp_path / "a" / "workflows.yaml").touch()
    assert workflow.find(deep / "r.yaml") == tmp_path / "a" / "workflows.yaml"
    assert workflow.find(deep / "r.yaml", Path("other.yaml")) == Path("other.yaml")


def test_without_a_workflow_file_above_the_packaged_one_is_used(tmp_path: Path) -> None:
    assert workflow.find(tmp_path / "r.yaml") == shipped.workflows()


def test_a_workflow_file_that_is_missing_is_an_error() -> None:
    with pytest.raises(RecipeError, match=r"nowhere.yaml: no such file"):
        workflow.load(Path("nowhere.yaml"))


def test_the_shipped_workflow_names_installed_stages() -> None:
    for nodes in workflow.load(shipped.workflows()).file.workflows.values():
        assert {node.stage or name for name, node in nodes.items()} <= set(stage_names())


@pytest.mark.parametrize("name", list(shipped.recipes()))
def test_a_shipped_recipe_has_a_graph_and_resolves_to_itself(name: str, tmp_path: Path) -> None:
    for recipe in recipes.load_all(shipped.recipe(name)):
        built = workflow.graph(recipe, workflow.load(shipped.workflows()))
        assert "validation" in built
        assert ("prune" in built) == recipe.has("sparsity")
        (tmp_path / "again.yaml").write_text(recipe.resolved_yaml(), encoding="utf-8")
        assert recipes.load(tmp_path / "again.yaml").dotted() == recipe.dotted()
