"""Why a stage is stale, and what it will take."""

import os
import shutil
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tapml import estimate, host
from tapml.explain import Counted
from tapml.stage import Amount, Frozen, Outputs, PythonFunction, Report


@pytest.fixture
def custom(stages):
    class Custom(stages.Text):
        """Has a function of the recipe's author."""

        inputs_function: PythonFunction

    Custom.__module__ = stages.__name__
    return Custom


def function(**files):
    return PythonFunction(
        path="/a/inputs.py", function="files", sha256=str(sorted(files.items())), files=files
    )


def test_the_file_of_the_recipes_python_that_changed_is_named(bench, custom, graph):
    before = function(**{"inputs.py": "aa", "helper.py": "bb", "data/x.npz": "cc"})
    bench.run(graph(text=(custom(inputs_function=before), {})))
    after = function(**{"inputs.py": "aa", "helper.py": "dd", "data/x.npz": "cc", "new.py": "ee"})
    (step,) = bench.plan(graph(text=(custom(inputs_function=after), {})))
    assert [(one.kind, one.field, one.old, one.new) for one in step.changes] == [
        ("python", "inputs_function: helper.py", "bb", "dd"),
        ("python", "inputs_function: new.py", "–", "ee"),
    ]


def test_the_files_of_python_are_in_no_key(bench, custom, graph):
    one = function(**{"inputs.py": "aa"})
    bench.run(graph(text=(custom(inputs_function=one), {})))
    two = one.model_copy(update={"files": {"inputs.py": "aa", "other.py": "bb"}})
    result = bench.run(graph(text=(custom(inputs_function=two), {})))
    assert result.steps["text"].state == "hit"


def test_an_upstream_output_that_changed_is_shown_old_to_new(bench, stages, graph):
    def make(text):
        return graph(
            text=(stages.Text(text=text), {}), last=(stages.Constant(), {"a": ("text", "out")})
        )

    old = bench.run(make("one")).steps["text"].outputs["out"]
    new = bench.run(graph(text=(stages.Text(text="two"), {}))).steps["text"].outputs["out"]
    (change,) = bench.plan(make("two"))["last"].changes
    assert (change.kind, change.field) == ("input", "a")
    assert (change.old, change.new) == (old[:12], new[:12])


def test_of_earlier_results_the_one_with_the_fewest_differences_counts(bench, stages, graph):
    for upper, text in enumerate(["a", "b", "c"]):
        bench.run(graph(text=(stages.Text(text=text, counter=os.devnull * (upper == 0)), {})))
    (step,) = bench.plan(graph(text=(stages.Text(text="d", counter=os.devnull), {})))
    assert [str(change) for change in step.changes] == ["text a → d"]


def test_a_stage_is_expected_to_take_what_it_took_on_this_machine(
    bench, stages, graph, monkeypatch
):
    bench.run(graph(text=(stages.Act(act="nothing", arg="x"), {})), jobs=1)
    (step,) = bench.plan(graph(text=(stages.Act(act="nothing", arg="y"), {})))
    assert step.expected.seconds < 5
    assert step.expected.rss_mib > 1
    assert step.expected.disk_mib == pytest.approx(len("acted") / 2**20)
    monkeypatch.setattr(host, "machine", lambda: "another")
    (step,) = bench.plan(graph(text=(stages.Act(act="nothing", arg="y"), {})))
    assert step.expected is None
    assert step.changes  # what changed is known all the same


def test_a_pending_stage_is_expected_to_take_what_it_took(bench, chain):
    bench.run(chain())
    planned = bench.plan(chain(text="changed"))
    assert planned["last"].state == "pending"
    assert planned["last"].expected is not None
    found = estimate.estimate(planned, 1)
    assert found.unknown == ()
    assert found.seconds == pytest.approx(
        sum(step.expected.seconds for step in planned if step.state != "hit")
    )


def test_stages_that_never_ran_here_are_named(bench, chain):
    found = estimate.estimate(bench.plan(chain()), 2)
    assert found.unknown == ("text", "other", "join", "last")
    assert (found.seconds, found.disk_mib, found.memory_mib) == (0, 0, 0)


def test_what_does_not_fit_is_a_warning_with_what_to_do(tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)._replace(free=100 * 2**20)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    monkeypatch.setattr(host, "memory_mib", lambda: 1000.0)
    store = tmp_path / "not" / "made"
    assert estimate.warnings(estimate.Estimate(1, 80, 800, ()), store) == []
    disk, memory = estimate.warnings(estimate.Estimate(1, 95, 950, ()), store)
    assert "95 MiB of disk" in disk
    assert "100 MiB free" in disk
    assert "--jobs 1" in memory


def test_a_recipe_is_compared_with_its_own_results_before_those_of_others(bench, stages, graph):
    """`mine` differs from its own result in two fields, from the other recipe's in one."""

    def made(recipe, **fields):
        found = graph(text=(stages.Text(**fields), {}))
        found.nodes["text"]["recipes"] = (recipe,)
        return found

    bench.run(made("other", text="b", counter=os.devnull))
    new = made("mine", text="c", counter=os.devnull)
    (step,) = bench.plan(new)
    assert step.beside == "other"
    assert step.reason == "not run for this recipe before; other has the nearest result"
    assert [str(change) for change in step.changes] == ["text b → c"]
    bench.run(made("mine", text="a"))
    (step,) = bench.plan(new)
    assert step.beside == ""
    assert step.reason == f"counter  → {os.devnull}; text a → c"


class Tuning(Frozen):
    trials: int = 0
    max_seconds: float | None = None
    seed: int = 0


@pytest.fixture
def tuner(stages):
    class Tuner(stages.Text):
        """Says that it measured its trials at two a second."""

        tuning: Tuning = Tuning()

        def amount(self):
            return Amount("tuning", "trials", self.tuning.trials, self.tuning.max_seconds, 0.5)

        def run(self, inputs, ctx):
            trials = self.tuning.trials
            path = ctx.workdir / "out"
            path.write_text("")
            metrics = {"tuning/trials": trials, "tuning/trials_per_s": 2, "tuning/seconds": 1e-9}
            return Outputs({"out": path}, Report(metrics=metrics))

    Tuner.__module__ = stages.__name__

    def make(**fields):
        return Tuner(tuning=Tuning(**fields))

    return make


def test_trials_are_told_at_an_assumed_rate_until_this_machine_has_measured_one(
    bench, tuner, graph, monkeypatch
):
    (step,) = bench.plan(graph(text=(tuner(trials=64), {})))
    assert str(step.counted) == (
        "tuning: 64 trials, about 2 min 08 s at 0.5 trials/s assumed: none measured here yet"
    )
    bench.run(graph(text=(tuner(trials=8), {})))
    (step,) = bench.plan(graph(text=(tuner(trials=64, seed=1), {})))
    assert step.counted.done == 0  # another search
    assert f"64 trials, about 32 s at 2 trials/s measured on {today()}" in str(step.counted)
    monkeypatch.setattr(host, "machine", lambda: "another")
    (step,) = bench.plan(graph(text=(tuner(trials=64, seed=1), {})))
    assert not step.counted.measured


def today():
    return datetime.now(UTC).date().isoformat()


def test_what_an_equal_search_has_done_is_not_done_again(bench, tuner, graph):
    bench.run(graph(text=(tuner(trials=8), {})))
    (step,) = bench.plan(graph(text=(tuner(trials=28, max_seconds=99.0), {})))
    assert "tuning: 28 trials, 8 of them done before, about 10 s" in str(step.counted)
    (forced,) = bench.plan(graph(text=(tuner(trials=8), {})), force=["text"])
    assert str(forced.counted) == "tuning: 8 trials, 8 of them done before"


def test_max_seconds_bounds_the_time_and_says_how_many_trials_fit(bench, tuner, graph):
    bench.run(graph(text=(tuner(trials=8), {})))
    planned = bench.plan(graph(text=(tuner(trials=1008, max_seconds=60.0), {})))
    (step,) = planned
    assert "about 60 s (max_seconds), enough for about 120 at 2 trials/s" in str(step.counted)
    found = estimate.estimate(planned, 1)
    assert found.seconds == pytest.approx(60 + step.expected.seconds)
    assert found.counted == (str(step.counted),)


def test_a_stage_that_never_ran_counts_with_its_trials(bench, tuner, graph):
    found = estimate.estimate(bench.plan(graph(text=(tuner(trials=64), {}))), 1)
    assert (found.seconds, found.unknown) == (128, ("text",))


@given(st.integers(0, 10**6), st.integers(0, 10**6), st.floats(1e-3, 1e4), st.floats(0.1, 1e6))
def test_no_more_time_is_told_than_the_limit_and_no_less_than_none(count, done, rate, limit):
    amount = Amount("tuning", "trials", count, limit, 1.0)
    counted = Counted(amount, done, rate, "", 0.0)
    assert 0 <= counted.seconds <= limit
    assert counted.left + min(done, count) == count
    assert f"{count} trials" in str(counted)
