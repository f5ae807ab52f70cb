from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tapml import settings, shipped, tracking
from tapml.journal import Journal

Cli = Callable[..., Any]
HEAVY = ("mlflow", "tvm", "torch", "joblib", "networkx", "pydantic", "numpy", "yaml", "rich")


def modules_after(*arguments: str) -> set[str]:
    """Top-level packages that a command has imported when it ends."""
    code = (
        "import sys, atexit\n"
        f"sys.argv = ['tapml', *{arguments!r}]\n"
        "atexit.register(lambda: print('\\n' + ' '.join(sys.modules), file=sys.stderr))\n"
        "from tapml.cli import main\n"
        "main()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    return {name.partition(".")[0] for name in done.stderr.splitlines()[-1].split()}


def test_help_imports_nothing_heavy() -> None:
    loaded = modules_after("--help")
    assert "click" in loaded
    assert loaded.isdisjoint(HEAVY)


def test_plan_imports_no_compiler(project: Path) -> None:
    loaded = modules_after("plan", "little.yaml")
    assert "pydantic" in loaded
    assert loaded.isdisjoint({"tvm", "mlflow", "torch", "onnx", "onnxruntime", "networkx"})


def test_a_second_run_says_that_nothing_is_left_to_do(cli: Cli) -> None:
    first, second = cli("run", "little.yaml"), cli("run", "little.yaml")
    assert (first.code, second.code) == (0, 0), first.err
    assert first.out.startswith("ran scale, pack, judge")
    assert second.out.startswith("nothing to do: 3 of 3 stages cached")


def test_the_end_of_a_run_names_speed_error_metric_gates_and_places(cli: Cli) -> None:
    out = cli("run", "little.yaml").out
    for part in (
        "numpy",
        "error    0 relative",
        "metric   same 1",
        "gate     passed  error",
        "rule",
    ):
        assert part in out
    bundle = next(line.split()[1] for line in out.splitlines() if line.startswith("bundle"))
    assert (Path(bundle) / "manifest.json").is_file()
    assert "file:///" in out
    assert "tapml ui " in out


def test_a_failed_gate_exits_with_4_each_time_and_runs_nothing_the_second(cli: Cli) -> None:
    worse = ("run", "little.yaml", "--set", "scaling.shipped=4")
    first, second = cli(*worse), cli(*worse)
    assert (first.code, second.code) == (4, 4)
    assert "2 of 2 gates failed" in second.err
    assert second.out.startswith("nothing to do")


def test_a_changed_gate_is_judged_anew_and_runs_nothing(cli: Cli) -> None:
    assert cli("run", "little.yaml").code == 0
    stricter = cli("run", "little.yaml", "--set", "validation.gates.metric.min=2")
    assert stricter.code == 4
    assert stricter.out.startswith("nothing to do")
    assert "metric.same 1, limit ≥ 2" in stricter.err


def test_a_failed_stage_exits_with_1_and_names_stage_hint_and_log(cli: Cli) -> None:
    done = cli("run", "little.yaml", "--set", "scaling.factor=0")
    assert done.code == 1
    assert "error: scale: a factor of 0 loses everything" in done.err
    assert "take another" in done.err
    assert "scale.log" in done.err
    assert "not done scale, pack, judge" in done.out


def test_json_is_one_document_on_stdout(cli: Cli) -> None:
    data = json.loads(cli("run", "little.yaml", "--json").out)
    (run,) = data["runs"]
    assert data["exit_code"] == 0
    assert {name: step["state"] for name, step in run["stages"].items()} == {
        "scale": "ran",
        "pack": "ran",
        "judge": "ran",
    }
    assert run["metric"] == {"same": 1.0}


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("run", "none.yaml", "--json"), 2, "no such file"),
        (("plan", "little.yaml", "--set", "scaling.factr=1", "--json"), 2, "did you mean 'factor'"),
        (("plan", "little.yaml", "--to", "pak", "--json"), 2, "did you mean 'pack'"),
        (("runs", "--nope", "--json"), 2, "--nope"),
        (("explain", "little.yaml", "skale", "--json"), 2, "did you mean 'scale'"),
    ],
)
def test_a_mistake_is_one_message_and_still_one_document(
    cli: Cli, arguments: tuple[str, ...], code: int, message: str
) -> None:
    done = cli(*arguments)
    assert done.code == code
    assert message in done.err
    assert "Traceback" not in done.err
    assert json.loads(done.out)["exit_code"] == code


def test_nothing_runs_when_one_of_two_recipes_is_wrong(cli: Cli, project: Path) -> None:
    assert cli("run", "little.yaml", "none.yaml").code == 2
    assert not (project / "artifacts" / "runs").exists()


def test_explain_names_field_old_and_new(cli: Cli) -> None:
    cli("run", "little.yaml")
    done = cli("explain", "little.yaml", "scale", "--set", "scaling.factor=7")
    assert "factor: 3.0 → 7.0" in done.out


def test_plan_predicts_what_runs(cli: Cli) -> None:
    cli("run", "little.yaml")
    changed = ("little.yaml", "--set", "scaling.shipped=3")
    planned = json.loads(cli("plan", *changed, "--json").out)
    assert [stage["state"] for stage in planned["stages"]] == ["hit", "run", "pending"]
    (run,) = json.loads(cli("run", *changed, "--json").out)["runs"]
    # pack gives equal bytes again, so that judge, which was pending, is a hit
    assert [stage["state"] for stage in run["stages"].values()] == ["hit", "ran", "hit"]


def test_the_graph_of_a_plan_is_drawn_without_edges_that_follow_from_others(cli: Cli) -> None:
    drawn = cli("plan", "little.yaml", "--graph", "text").out
    assert [line.strip(" ╙─└╼") for line in drawn.splitlines()] == [
        "scale (run)",
        "pack (pending)",
        "judge (pending)",
    ]
    mermaid = cli("plan", "little.yaml", "--graph", "mermaid").out.splitlines()
    assert mermaid[0] == "flowchart TD"
    assert [line for line in mermaid if "-->" in line] == ["  s0 --> s1", "  s1 --> s2"]


def test_runs_lists_the_newest_first(cli: Cli) -> None:
    cli("run", "little.yaml")
    cli("run", "little.yaml", "--set", "scaling.factor=0")
    lines = cli("runs").out.splitlines()
    assert lines[1].split()[4:6] == ["failed", "0/3"]
    assert lines[2].split()[4:6] == ["ok", "3/3"]


def test_export_and_out_copy_a_bundle_that_can_be_written(cli: Cli, project: Path) -> None:
    assert cli("run", "little.yaml", "--out", "shipped").code == 0
    assert cli("export", "last", "again").code == 0
    assert (project / "shipped/manifest.json").read_bytes() == (
        project / "again/manifest.json"
    ).read_bytes()
    (project / "again/params.json").write_text("mine now")
    assert cli("export", "last", "more").code == 0


def test_out_is_refused_before_anything_runs_when_something_else_is_there(
    cli: Cli, project: Path
) -> None:
    done = cli("run", "little.yaml", "--out", ".")
    assert done.code == 2
    assert "not empty and no bundle" in done.err
    assert not (project / "artifacts").exists()


def test_report_is_written_again(cli: Cli) -> None:
    cli("run", "little.yaml")
    path = Path(cli("report", "last").out.strip())
    first = path.read_bytes()
    path.unlink()
    cli("report", "last")
    assert path.read_bytes() == first


def test_show_validate_schema_and_cache_answer(cli: Cli) -> None:
    assert "factor: 3.0" in cli("show", "little.yaml", "--resolved").out
    assert "valid; 3 stages of little" in cli("validate", "little.yaml").out
    assert "scaling" in json.loads(cli("schema").out)["properties"]
    cli("run", "little.yaml")
    assert len(json.loads(cli("cache", "ls", "--json").out)["results"]) == 3
    assert "all whole" in cli("cache", "verify").out


def test_doctor_exits_with_3_without_a_compiler(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    done = cli("doctor")
    assert done.code == 3
    assert "apt-get install g++" in done.out


def test_new_copies_a_recipe_with_what_it_needs(cli: Cli, project: Path) -> None:
    assert cli("new", "--from", "magika", "mine").code == 0
    assert (project / "mine/magika_inputs.py").is_file()
    packaged = ("--workflows", str(shipped.workflows()))
    assert cli("validate", "mine/magika.yaml", *packaged).code == 0
    again = cli("new", "--from", "magika", "mine")
    assert again.code == 2
    assert "already there" in again.err


def test_new_knows_the_shipped_recipes(cli: Cli) -> None:
    assert "did you mean 'magika'" in cli("new", "--from", "magikka").err


def cut_off(project: Path) -> Path:
    """The folder of a run as SIGKILL leaves it: after its first stage, without an end."""
    (record,) = (project / "artifacts/runs").glob("*/run.json")
    record.unlink()
    journal = record.with_name("events.jsonl")
    lines = journal.read_text().splitlines(keepends=True)
    first = next(i for i, line in enumerate(lines) if '"StageFinished"' in line)
    journal.write_text("".join(lines[: first + 1]) + '{"event": "Sta')
    return record.parent


def test_a_killed_run_is_listed_with_what_it_did(cli: Cli, project: Path) -> None:
    cli("run", "little.yaml")
    folder = cut_off(project)
    (row,) = cli("runs").out.splitlines()[1:]
    assert row.split()[0] == folder.name
    assert row.split()[4:6] == ["killed", "1/3"]
    (run,) = json.loads(cli("runs", "--json").out)["runs"]
    assert [step["state"] for step in run["stages"].values()] == ["ran", "cancelled", "cancelled"]
    assert "KILLED" in Path(cli("report", folder.name).out.strip()).read_text()
    assert tracking.pending(project / "artifacts", settings.Tracking()) == [folder]


def test_a_run_that_goes_on_is_not_called_killed(cli: Cli, project: Path) -> None:
    cli("run", "little.yaml")
    folder = cut_off(project)
    with Journal(folder):
        done = cli("runs")
    assert f"{folder.name}: running" in done.err
    assert not done.out
    assert "killed" in cli("runs").out


def test_ir_is_kept_with_the_result_it_shows(cli: Cli, project: Path) -> None:
    first = cli("run", "little.yaml", "--dump-ir")
    second = cli("run", "little.yaml", "--dump-ir")
    views = [path.read_text() for path in (project / "artifacts/runs").glob("*/views/*/scaled.py")]
    assert views == ["x * 3.0\n"] * 2
    assert first.out.count("views: scale") == second.out.count("views: scale") == 1
    assert "cached without it" not in second.out


def test_what_is_cached_without_its_ir_is_named_with_the_way_to_get_it(
    cli: Cli, project: Path
) -> None:
    cli("run", "little.yaml")
    out = cli("run", "little.yaml", "--dump-ir").out
    assert "cached without it: scale, pack, judge; `--dump-ir --from scale` runs it again" in out
    assert "views: scale" in cli("run", "little.yaml", "--dump-ir", "--from", "scale").out
    assert "views" not in cli("run", "little.yaml").out


def test_show_prints_a_document_for_each_point_of_the_matrix(cli: Cli, project: Path) -> None:
    recipe = project / "little.yaml"
    recipe.write_text(recipe.read_text() + "\nmatrix: {scaling.factor: [2.0, 3.0]}\n")
    shown = cli("show", str(recipe))
    assert shown.out.count("---  # factor=") == 2
    assert len(json.loads(cli("show", str(recipe), "--json").out)["recipes"]) == 2


def test_show_resolved_tells_where_each_value_came_from(cli: Cli, project: Path) -> None:
    recipe = project / "little.yaml"
    shown = cli("show", str(recipe), "--resolved", "--json")
    assert json.loads(shown.out)["x-origin"]["name"].startswith(str(recipe))
    assert json.loads(shown.out)["x-origin"]["validation.repeats"] == "default"
