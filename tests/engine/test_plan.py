"""Plans say what would run and why, and run nothing."""

import pytest

from tapml.errors import RecipeError
from tapml.stage import PythonFunction


def rows(planned):
    return {step.name: (step.state, step.reason) for step in planned}


def test_on_an_empty_store_the_first_stages_run_and_the_rest_is_pending(bench, chain):
    assert rows(bench.plan(chain())) == {
        "text": ("run", "never run"),
        "other": ("run", "never run"),
        "join": ("pending", "below text, other"),
        "last": ("pending", "below join"),
    }
    assert not bench.store.root.exists()


def test_after_a_run_everything_is_a_hit(bench, chain):
    bench.run(chain())
    planned = bench.plan(chain())
    assert {step.state for step in planned} == {"hit"}
    assert all(step.outputs for step in planned)


def test_a_changed_field_is_named_old_to_new_and_only_what_is_below_is_pending(bench, chain):
    bench.run(chain(suffix="!"))
    planned = bench.plan(chain(suffix="?"))
    assert rows(planned) == {
        "text": ("hit", "cached"),
        "other": ("hit", "cached"),
        "join": ("run", "suffix ! → ?"),
        "last": ("pending", "below join"),
    }
    (change,) = planned["join"].changes
    assert (change.kind, change.field, change.old, change.new) == ("param", "suffix", "!", "?")


def test_the_plan_is_what_the_run_does(bench, chain):
    bench.run(chain(suffix="!"))
    changed = chain(suffix="?")
    planned = bench.plan(changed)
    result = bench.run(changed)
    for step in planned:
        state = result.steps[step.name].state
        assert state == "hit" if step.state == "hit" else state == "ran"


def test_a_stage_is_compared_with_the_nearest_earlier_result(bench, chain, tmp_path):
    bench.run(chain(act="nothing", times=1))
    bench.run(chain(act="nothing", times=2, mark=str(tmp_path / "marks")))
    planned = bench.plan(chain(act="nothing", times=3))
    assert [str(change) for change in planned["last"].changes] == ["times 1 → 3"]


def test_an_input_that_changed_is_named(bench, stages, graph):
    def make(text):
        return graph(
            text=(stages.Text(text=text), {}), last=(stages.Constant(), {"a": ("text", "out")})
        )

    bench.run(make("one"))
    bench.run(graph(text=(stages.Text(text="two"), {})))
    planned = bench.plan(make("two"))
    assert planned["text"].state == "hit"
    assert planned["last"].reason == "input a changed"


def test_a_pending_stage_names_its_own_changes(bench, chain):
    bench.run(chain(times=1))
    planned = bench.plan(chain(text="changed", times=2))
    assert planned["last"].state == "pending"
    assert [str(change) for change in planned["last"].changes] == ["times 1 → 2"]


def test_changes_of_tools_versions_and_python_are_named(bench, stages, graph, monkeypatch):
    function = PythonFunction(path="/a/inputs.py", function="files", sha256="aa")

    class Custom(stages.Text):
        """Has a function of the recipe's author."""

        inputs_function: PythonFunction = function

    Custom.__module__ = stages.__name__
    monkeypatch.setattr(Custom, "tool_versions", classmethod(lambda cls: {"linker": "1"}))
    bench.run(graph(text=(Custom(), {})))
    monkeypatch.setattr(Custom, "tool_versions", classmethod(lambda cls: {"linker": "2"}))
    monkeypatch.setattr(Custom, "version", 2)
    edited = function.model_copy(update={"sha256": "bb"})
    planned = bench.plan(graph(text=(Custom(inputs_function=edited), {})))
    assert planned["text"].reason == (
        "text's version 1 → 2; inputs_function: its Python changed; linker 1 → 2"
    )


def test_a_recipe_file_in_another_place_changes_nothing(bench, stages, graph):
    class Custom(stages.Text):
        """Has a function of the recipe's author."""

        inputs_function: PythonFunction

    Custom.__module__ = stages.__name__
    for path in ("/a/inputs.py", "/b/inputs.py"):
        function = PythonFunction(path=path, function="files", sha256="aa")
        result = bench.run(graph(text=(Custom(inputs_function=function), {})))
    assert result.steps["text"].state == "hit"


def test_a_forced_stage_says_so(bench, chain):
    bench.run(chain())
    assert rows(bench.plan(chain(), force=["join"]))["join"] == ("run", "--force")
    assert rows(bench.plan(chain(), from_=["other"]))["join"] == ("pending", "below other")


@pytest.mark.parametrize("option", ["force", "from_", "to"])
def test_an_unknown_stage_is_told_with_the_nearest_name(bench, chain, option):
    with pytest.raises(RecipeError, match="no stage 'jion'") as caught:
        bench.plan(chain(), **{option: ["jion"]})
    assert caught.value.hint == "did you mean 'join'?"


def test_a_result_that_was_removed_is_said_to_be(bench, chain):
    result = bench.run(chain())
    for path in (bench.store.root / "ac" / "text").rglob("0"):
        path.unlink()
    assert rows(bench.plan(chain()))["text"] == ("run", "never run")
    bench.store.blob(result.steps["join"].outputs["out"]).unlink()
    planned = bench.plan(chain(), to=["join"])
    assert planned["join"].state == "pending"


def test_a_plan_is_json(bench, chain):
    import json

    data = json.loads(json.dumps(bench.plan(chain()).to_data()))
    assert data[0] == {
        "name": "text",
        "stage": "text",
        "state": "run",
        "where": None,
        "reason": "never run",
        "key": data[0]["key"],
        "outputs": None,
        "changes": [],
        "beside": "",
        "expected": None,
        "counted": None,
        "seconds": None,
        "notes": [],
        "python": [],
    }
