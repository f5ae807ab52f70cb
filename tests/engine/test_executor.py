"""Runs of small graphs: in this process where it is about the loop, else in workers."""

import json
import time

import pytest

from tapml import journal
from tapml.errors import EnvironmentalError, RecipeError
from tapml.events import StageFinished, StageProgress, from_data, to_data


def states(result):
    return {name: step.state for name, step in result.steps.items()}


def test_a_cold_run_runs_every_stage_and_a_warm_one_none(bench, chain):
    first = bench.run(chain())
    assert set(states(first).values()) == {"ran"}
    assert bench.text(first, "join") == "helloother!"
    second = bench.run(chain())
    assert set(states(second).values()) == {"hit"}
    assert second.exit_code == 0
    assert second.steps["join"].outputs == first.steps["join"].outputs


def test_workers_give_what_this_process_gives_and_their_prints_go_to_the_log(bench, chain):
    result = bench.run(chain(), jobs=2)
    assert set(states(result).values()) == {"ran"}
    assert bench.text(result, "join") == "helloother!"
    assert "joined helloother!" in result.steps["join"].log.read_text()
    assert any(isinstance(event, StageProgress) and event.note == "half" for event in bench.events)
    assert result.steps["join"].rss_mib > 10


def test_a_hit_brings_the_log_of_its_making(bench, chain):
    bench.run(chain(), jobs=1)
    result = bench.run(chain())
    assert "joined helloother!" in result.steps["join"].log.read_text()


def test_an_upstream_change_that_gives_equal_bytes_stops_there(bench, stages, graph):
    def make(text):
        return graph(
            text=(stages.Text(text=text), {}),
            constant=(stages.Constant(), {"a": ("text", "out")}),
            join=(stages.Join(), {"a": ("constant", "out")}),
        )

    bench.run(make("one"))
    result = bench.run(make("two"))
    assert states(result) == {"text": "ran", "constant": "ran", "join": "hit"}


def test_an_absent_optional_input_is_absent(bench, stages, graph):
    made = graph(text=(stages.Text(), {}), join=(stages.Join(), {"a": ("text", "out")}))
    assert bench.text(bench.run(made), "join") == "hello"


def test_a_failure_cancels_what_is_below_and_nothing_else(bench, stages, graph):
    result = bench.run(
        graph(
            bad=(stages.Act(act="raise"), {}),
            below=(stages.Constant(), {"a": ("bad", "out")}),
            lower=(stages.Join(), {"a": ("below", "out")}),
            good=(stages.Text(), {}),
        )
    )
    assert states(result) == {
        "bad": "failed",
        "below": "cancelled",
        "lower": "cancelled",
        "good": "ran",
    }
    assert result.exit_code == 1
    assert result.steps["lower"].error.because == "bad"


def test_an_exception_becomes_type_message_and_the_line_that_raised(bench, stages, graph):
    result = bench.run(graph(bad=(stages.Act(act="raise"), {})), jobs=1)
    error = result.steps["bad"].error
    assert error.message == "ValueError: the sky fell"
    assert "engine_stages.py:" in error.hint
    assert "in do_raise" in error.hint
    assert "Traceback" in result.steps["bad"].log.read_text()
    assert error.log == str(result.steps["bad"].log)


@pytest.mark.parametrize("jobs", [0, 1])
def test_secrets_stand_neither_in_logs_nor_in_errors(bench, stages, graph, jobs):
    secret = "ghp_abcdefghijklmnopqrstuvwxyz0123"
    kept = stages.Act(act="leak", arg=f"https://me:{secret}@host")
    broken = stages.Act(act="leak", arg=f"token={secret}", times=1)
    result = bench.run(graph(good=(kept, {}), bad=(broken, {})), jobs=jobs)
    assert states(result) == {"good": "ran", "bad": "failed"}
    assert result.steps["bad"].error.message == "ValueError: no entry with token=•••"
    for step in result.steps.values():
        text = step.log.read_text()
        assert "logged" in text
        assert "•••" in text
        assert secret not in text
    assert all(secret not in path.read_text() for path in result.folder.glob("*.jsonl"))


def test_a_failure_is_not_cached(bench, stages, graph, tmp_path):
    made = graph(bad=(stages.Act(act="raise", times=1, mark=str(tmp_path / "mark")), {}))
    assert states(bench.run(made)) == {"bad": "failed"}
    assert states(bench.run(made)) == {"bad": "ran"}


def test_sys_exit_in_a_stage_is_its_failure(bench, stages, graph):
    result = bench.run(graph(bad=(stages.Act(act="exit"), {})))
    assert "SystemExit: 7" in result.steps["bad"].error.message


def test_a_recipe_error_of_a_stage_gets_its_place(bench, stages, graph):
    result = bench.run(graph(bad=(stages.Act(act="recipe_error"), {})))
    error = result.steps["bad"].error
    assert isinstance(error, RecipeError)
    assert str(error) == "recipe.yaml:3:5: model.path: is wrong"
    assert result.exit_code == 2


def test_fail_fast_starts_nothing_more(bench, stages, graph):
    result = bench.run(
        graph(bad=(stages.Act(act="raise"), {}), good=(stages.Text(), {})), fail_fast=True
    )
    assert states(result) == {"bad": "failed", "good": "cancelled"}


def test_outputs_that_differ_from_what_is_declared_are_a_failure(bench, stages, graph):
    result = bench.run(graph(liar=(stages.Liar(), {})))
    assert "declared but not given: more" in result.steps["liar"].error.message


def test_a_stage_that_writes_to_its_input_fails_and_what_it_read_is_made_again(
    bench, stages, graph
):
    made = graph(
        text=(stages.Text(), {}), bad=(stages.Act(act="write_input"), {"a": ("text", "out")})
    )
    result = bench.run(made)
    assert "wrote to its input 'a'" in result.steps["bad"].error.message
    assert bench.plan(made)["text"].state == "run"


def test_what_a_machine_lacks_is_told_before_any_stage_runs(bench, stages, graph, tmp_path):
    counter = tmp_path / "count"
    made = graph(text=(stages.Text(counter=str(counter)), {}), lacking=(stages.Lacking(), {}))
    with pytest.raises(EnvironmentalError, match="no compiler"):
        bench.run(made)
    assert not counter.exists()


def test_forcing_a_stage_runs_it_alone(bench, chain):
    bench.run(chain())
    result = bench.run(chain(), how={"force": ["join"]})
    assert states(result) == {"text": "hit", "other": "hit", "join": "ran", "last": "hit"}


def test_running_from_a_stage_runs_all_below(bench, chain):
    bench.run(chain())
    result = bench.run(chain(), how={"from_": ["join"]})
    assert states(result) == {"text": "hit", "other": "hit", "join": "ran", "last": "ran"}


def test_running_to_a_stage_stops_there(bench, chain):
    result = bench.run(chain(), how={"to": ["join"]})
    assert states(result) == {"text": "ran", "other": "ran", "join": "ran"}


def test_a_memo_is_worked_out_once(bench, stages, graph, tmp_path):
    counter = tmp_path / "count"
    for text in ("one", "two"):
        made = graph(
            text=(stages.Text(text=text), {}),
            memo=(stages.Act(act="memo", arg=str(counter)), {"a": ("text", "out")}),
        )
        assert states(bench.run(made))["memo"] == "ran"
    assert counter.read_text() == "x"


def test_a_run_leaves_recipe_plan_events_and_logs(bench, chain):
    result = bench.run(chain())
    assert (result.folder / "recipe.yaml").read_text().startswith("version: 1\n")
    assert [row["state"] for row in json.loads((result.folder / "plan.json").read_text())] == [
        "run",
        "run",
        "pending",
        "pending",
    ]
    start, *_, end = journal.read_events(result.folder)
    assert start.stages == ("text", "other", "join", "last")
    assert end.exit_code == 0
    assert (result.folder / "logs" / "join.log").exists()
    assert not list((bench.store.root / "tmp").iterdir())


def test_events_survive_the_journal_and_a_torn_line_ends_it(bench, chain):
    result = bench.run(chain())
    assert journal.read_events(result.folder) == bench.events
    assert all(from_data(json.loads(json.dumps(to_data(event)))) == event for event in bench.events)
    path = result.folder / "events.jsonl"
    path.write_bytes(path.read_bytes()[:-20])
    assert journal.read_events(result.folder) == bench.events[:-1]


def test_the_journal_keeps_reports_with_numbers_that_json_lacks(tmp_path):
    import numpy as np

    from tapml.stage import Report

    report = Report(metrics={"a/x": np.float32(0.5), "b/y": float("nan")})
    with journal.Journal(tmp_path) as log:
        log.write(StageFinished(time=1.0, stage="s", state="ran", report=report))
    (event,) = journal.read_events(tmp_path)
    assert event.report.metrics == {"a/x": 0.5}


def test_a_report_may_hold_strings_of_a_class_of_their_own():
    from tapml import keys
    from tapml.events import report_to_data
    from tapml.stage import Report, Table

    class String(str):
        """As TVM gives them."""

    report = Report(summary=String("s"), tables=(Table("t", ("a",), ((String("cell"),),)),))
    assert b'"cell"' in keys.canonical_json(report_to_data(report))


def test_a_warm_run_of_nine_stages_takes_a_fraction_of_a_second(bench, stages, graph):
    nodes = {"s0": (stages.Text(), {})}
    for index in range(1, 9):
        nodes[f"s{index}"] = (stages.Join(suffix=str(index)), {"a": (f"s{index - 1}", "out")})
    made = graph(**nodes)
    bench.run(made)
    seconds = []
    for _ in range(3):
        started = time.perf_counter()
        bench.run(made, jobs=None)
        seconds.append(time.perf_counter() - started)
    assert min(seconds) < 0.5


def test_threads_are_the_share_of_the_cores_and_a_fresh_stage_gets_its_own_process(
    bench, stages, graph, tmp_path
):
    paths = [tmp_path / name for name in ("one", "two", "three")]
    one, two, three = map(str, paths)
    made = graph(
        one=(stages.Act(act="threads", arg=one), {}),
        two=(stages.Act(act="threads", arg=two), {"a": ("one", "out")}),
        three=(stages.Fresh(act="threads", arg=three), {"a": ("two", "out")}),
    )
    assert bench.run(made, jobs=1, threads=3).exit_code == 0
    first, second, third = (path.read_text().split() for path in paths)
    assert first == second
    assert third[0] == first[0] == "3"
    assert third[1] != first[1]
