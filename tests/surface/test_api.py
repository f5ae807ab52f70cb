from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tapml
from tapml import api
from tapml.errors import EnvironmentalError, GateError, RecipeError, StageError


def run(**options: Any) -> tapml.RunResult:
    return tapml.run("little.yaml", jobs=0, track="off", **options)


def test_run_gives_what_was_measured_and_load_what_can_be_called(project: Path) -> None:
    result = run(set={"scaling.factor": 5.0})
    assert result.exit_code == 0
    assert result.facts is not None
    assert result.facts.metric == {"same": 1.0}
    np.testing.assert_array_equal(tapml.load(result)(x=np.arange(3))["y"], [0, 5, 10])


def test_load_takes_run_id_run_folder_bundle_folder_and_last(project: Path) -> None:
    result = run()
    assert result.bundle is not None
    for source in (result.run_id, result.run_id[:-2], result.folder, result.bundle, "last"):
        assert tapml.load(source)(x=np.ones(1))["y"] == [3.0]


def test_load_refuses_a_bundle_with_a_changed_file(project: Path) -> None:
    folder = api.export(run(), project / "mine")
    (folder / "params.json").write_text('{"factor": 1}')
    with pytest.raises(EnvironmentalError, match=r"damaged: params\.json"):
        tapml.load(folder)


def test_load_of_an_unknown_run_offers_the_known_ones(project: Path) -> None:
    result = run()
    with pytest.raises(RecipeError, match=result.run_id):
        tapml.load("nothing")


def test_run_raises_what_failed(project: Path) -> None:
    with pytest.raises(StageError, match="loses everything"):
        run(set=["scaling.factor=0"])
    with pytest.raises(GateError, match=r"metric\.same"):
        run(set={"scaling.shipped": 4.0})


def test_without_check_the_result_comes_back_whatever_happened(project: Path) -> None:
    result = run(set={"scaling.shipped": 4.0}, check=False)
    assert (result.exit_code, result.state) == (4, "gate")
    with pytest.raises(GateError):
        result.raise_for_failure()


def test_a_run_read_back_from_its_folder_is_the_same(project: Path) -> None:
    result = run()
    assert api.runs.load(result.folder) == result


def test_a_failed_run_read_back_keeps_its_error(project: Path) -> None:
    result = run(set={"scaling.factor": 0.0}, check=False)
    again = api.runs.load(result.folder)
    assert isinstance(again.error, StageError)
    assert str(again.error) == str(result.error)


def test_facts_of_another_machine_are_foreign(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run()
    monkeypatch.setattr("tapml.host.machine", lambda: "elsewhere")
    limit = {"validation.gates.latency_vs": {"max_ratio": 1e9}}
    result = run(set=limit, check=False)
    assert result.foreign
    assert result.cached == result.steps
    assert result.exit_code == 4


def test_stages_below_to_are_left_out_and_no_gate_is_judged(project: Path) -> None:
    result = run(to=["pack"])
    assert [step.name for step in result.steps] == ["scale", "pack"]
    assert result.verdicts == ()
    assert result.bundle is not None


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"explicit": "here"}, "project/here"),
        ({"recipe_path": Path("little.yaml")}, "project/artifacts"),
        ({"workflows": Path("../other/workflows.yaml")}, "other/artifacts"),
        ({"recipe_path": Path("/")}, "project/artifacts"),
    ],
)
def test_the_store_is_beside_the_workflows(
    project: Path, options: dict[str, Any], expected: str
) -> None:
    assert api.store_root(**options) == project.parent / expected


def test_the_environment_names_the_store(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TAPML_STORE", "elsewhere")
    assert api.store_root(None, Path("little.yaml")) == project / "elsewhere"


def test_a_disk_that_is_full_at_the_end_is_said_to_be_full(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(result: tapml.RunResult) -> Path:
        raise OSError(errno.ENOSPC, "No space left on device", str(result.report))

    monkeypatch.setattr("tapml.report.write", full)
    with pytest.raises(EnvironmentalError, match=r"cannot write .*report\.html"):
        run()
