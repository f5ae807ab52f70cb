"""Several recipes, and the points of a matrix, through the command line."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import tapml
from tapml import runs
from tapml.errors import RecipeError

Cli = Callable[..., Any]
MATRIX = "matrix: {scaling.factor: [1.0, 2.0], scaling.shipped: [null, 4.0]}\n"


@pytest.fixture
def swept(project: Path) -> Path:
    path = project / "little.yaml"
    path.write_text(path.read_text() + MATRIX)
    return project


def test_a_matrix_is_one_plan_and_shared_stages_run_once(swept: Path, cli: Cli) -> None:
    planned = json.loads(cli("plan", "little.yaml", "--json").out)
    assert len(planned["recipes"]) == 4
    assert sum(row["stage"] == "scale" for row in planned["stages"]) == 2
    done = cli("run", "little.yaml")
    assert "4 runs: ran 10 stages, 0 cached" in done.out
    assert "4 runs: ran 0 stages, 10 cached" in cli("run", "little.yaml").out


def test_one_failed_gate_of_a_sweep_is_told_with_its_name_and_is_its_exit_code(
    swept: Path, cli: Cli
) -> None:
    done = cli("run", "little.yaml")
    assert done.code == 4
    assert "factor=1.0,shipped=4.0: 2 of 2 gates failed" in done.err
    assert "factor=1.0,shipped=none:" not in done.err


def test_the_error_of_a_stage_that_runs_share_is_told_once(project: Path, cli: Cli) -> None:
    path = project / "little.yaml"
    path.write_text(path.read_text() + "matrix: {scaling.shipped: [null, 4.0]}\n")
    done = cli("run", "little.yaml", "--set", "scaling.factor=0.0")
    assert done.code == 1
    assert done.err.count("error: 2 runs: scale: a factor of 0 loses everything") == 1
    assert "ran 0 stages, 0 cached; 2 did not come to their end" in done.out


def test_runs_of_a_sweep_are_named_by_what_differs_and_found_by_its_id(
    swept: Path, cli: Cli
) -> None:
    rows = json.loads(cli("run", "little.yaml", "--json").out)["runs"]
    assert [row["label"] for row in rows] == [
        "factor=1.0,shipped=none",
        "factor=1.0,shipped=4.0",
        "factor=2.0,shipped=none",
        "factor=2.0,shipped=4.0",
    ]
    (sweep,) = {row["sweep"] for row in rows}
    found = json.loads(cli("runs", "--sweep", sweep, "--json").out)["runs"]
    assert {row["run"] for row in found} == {row["run"] for row in rows}
    page = (swept / "artifacts" / "runs" / f"{sweep}.html").read_text()
    assert "factor=2.0,shipped=4.0" in page


def test_two_recipes_are_one_plan(project: Path, cli: Cli) -> None:
    text = (project / "little.yaml").read_text()
    other = text.replace("name: little", "name: other").replace("min: 0.5", "min: 0.6")
    (project / "other.yaml").write_text(other)
    done = cli("run", "little.yaml", "other.yaml", "--json")
    first, second = json.loads(done.out)["runs"]
    assert (first["label"], second["label"]) == ("little", "other")
    assert first["stages"]["judge"]["key"] == second["stages"]["judge"]["key"]
    assert len(list((project / "artifacts" / "ac" / "judge").iterdir())) == 1


def test_mistakes_in_all_recipes_are_told_at_once(project: Path, cli: Cli) -> None:
    text = (project / "little.yaml").read_text()
    (project / "one.yaml").write_text(text.replace("factor", "facter"))
    (project / "two.yaml").write_text(text.replace("3.0", "three"))
    done = cli("validate", "one.yaml", "two.yaml")
    assert done.code == 2
    assert "did you mean 'factor'" in done.err
    assert "two.yaml:4:" in done.err


def test_a_stage_of_a_matrix_is_forced_in_all_its_recipes_or_in_one(swept: Path, cli: Cli) -> None:
    cli("run", "little.yaml")
    planned = json.loads(cli("plan", "little.yaml", "--force", "scale", "--json").out)["stages"]
    assert [row["reason"] for row in planned if row["stage"] == "scale"] == ["--force"] * 2
    one = ("--force", "scale@factor=2.0")
    planned = json.loads(cli("plan", "little.yaml", *one, "--json").out)["stages"]
    forced = [row["name"] for row in planned if row["reason"] == "--force"]
    assert forced == ["scale@factor=2.0"]


def test_explain_answers_for_each_recipe_in_which_the_stage_differs(swept: Path, cli: Cli) -> None:
    cli("run", "little.yaml")
    told = cli("explain", "little.yaml", "pack", "--set", "scaling.factor=9.0").out
    assert "pack@shipped=none may run: below scale" in told
    assert "pack@shipped=4.0 may run: below scale" in told


def test_bundles_of_a_matrix_are_copied_each_to_a_folder_of_its_own(
    project: Path, cli: Cli
) -> None:
    path = project / "little.yaml"
    path.write_text(path.read_text() + "matrix: {scaling.factor: [1.0, 2.0]}\n")
    assert cli("run", "little.yaml", "--out", "built").code == 0
    for factor in (1.0, 2.0):
        manifest = project / "built" / f"factor={factor}" / "params.json"
        assert json.loads(manifest.read_text())["factor"] == factor


def test_python_has_one_function_for_one_result_and_one_for_all(swept: Path) -> None:
    with pytest.raises(RecipeError, match="makes 4 recipes"):
        tapml.run("little.yaml", jobs=0, track="off")
    results = tapml.run_all(["little.yaml"], jobs=0, track="off", check=False)
    assert [run.state for run in results] == ["ok", "gate", "ok", "gate"]
    assert [runs.load(run.folder) for run in results] == list(results)


def test_recipes_with_different_stores_are_refused(project: Path, cli: Cli) -> None:
    other = project / "deeper"
    other.mkdir()
    (other / "workflows.yaml").write_text((project / "workflows.yaml").read_text())
    (other / "little.yaml").write_text((project / "little.yaml").read_text())
    done = cli("run", "little.yaml", "deeper/little.yaml")
    assert done.code == 2
    assert "stores of their own" in done.err
    assert cli("run", "little.yaml", "deeper/little.yaml", "--store", "one").code == 0


def test_what_a_recipe_requires_is_missing_before_anything_runs(project: Path, cli: Cli) -> None:
    path = project / "little.yaml"
    path.write_text(path.read_text() + "requires: {packages: ['no-such-package>=3']}\n")
    assert cli("plan", "little.yaml").code == 0
    done = cli("run", "little.yaml")
    assert done.code == 3
    assert "pip install 'no-such-package>=3'" in done.err
    assert not (project / "artifacts" / "runs").exists()


def test_the_engine_section_names_the_store_and_the_number_of_workers(
    project: Path, cli: Cli
) -> None:
    path = project / "workflows.yaml"
    path.write_text(path.read_text() + "engine: {store: elsewhere, jobs: 1}\n")
    cli("run", "little.yaml")
    assert (project / "elsewhere" / "runs").is_dir()
    assert "little" in cli("runs").out


def test_the_engine_section_and_the_environment_name_the_executor(
    project: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = project / "workflows.yaml"
    path.write_text(
        path.read_text() + "engine: {executor: {kind: dask, address: 'tcp://127.0.0.1:9'}}\n"
    )
    monkeypatch.setattr("tapml.pools.dask._CONNECT_S", 1.0)
    done = cli("run", "little.yaml", "--jobs", "1")
    assert done.code == 3
    assert "no dask scheduler answers at tcp://127.0.0.1:9" in done.err
    assert cli("plan", "little.yaml").code == 0
    monkeypatch.setenv("TAPML_EXECUTOR", "slurm")
    assert cli("plan", "little.yaml").code == 2
    monkeypatch.setenv("TAPML_EXECUTOR", "tcp://127.0.0.1:10")
    assert "tcp://127.0.0.1:10" in cli("run", "little.yaml", "--jobs", "1").err


def test_a_worker_says_what_it_lacks(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    done = cli("worker", "tcp://127.0.0.1:9", "--tls-cert", "cert.pem")
    assert done.code == 2
    assert "--tls-ca-file, --tls-cert and --tls-key" in done.err
    monkeypatch.setitem(sys.modules, "distributed", None)
    done = cli("worker", "tcp://127.0.0.1:9")
    assert done.code == 3
    assert "pip install 'tapml[dask]'" in done.err


def test_values_of_the_environment_are_recorded(
    project: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = project / "workflows.yaml"
    path.write_text(path.read_text() + "engine: {env: [FACTOR]}\n")
    recipe = project / "little.yaml"
    recipe.write_text(recipe.read_text().replace("3.0", "'${env:FACTOR:-1.5}'"))
    monkeypatch.setenv("FACTOR", "2.5")
    assert cli("run", "little.yaml").code == 0
    run = runs.find("last", project / "artifacts")
    assert run.environment["env.FACTOR"] == "2.5"
    assert run.fields["scaling.factor"] == 2.5
