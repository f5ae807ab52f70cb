"""`tapml db`: what was tuned, kept small, and carried elsewhere."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from searches import file_of, search, trial

from tapml.tuning import database

Cli = Callable[..., Any]
HELP = Path(__file__).parents[1] / "golden" / "surface" / "db_help.txt"
COMMANDS = ("ls", "show", "merge", "prune", "export", "import")


@pytest.fixture
def tuned(project: Path) -> Path:
    """The database of the project's store: two searches of a kernel, one of another."""
    folder = project / "artifacts" / "tuning"
    searches = [
        search(trial(1, 3.0), trial(2, 0.5), trial(3, None)),
        search(trial(4, 1.0), seed=1),
        search(trial(5, 4.0), workload="def", kernel="softmax"),
    ]
    database.merge(folder, searches)
    return folder


def test_golden_help_of_every_command(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    texts = [cli("db", "--help").out, *(cli("db", name, "--help").out for name in COMMANDS)]
    text = "\n".join(texts)
    if os.environ.get("TAPML_UPDATE_GOLDEN"):
        HELP.parent.mkdir(exist_ok=True)
        HELP.write_text(text, encoding="utf-8")
    assert HELP.read_text(encoding="utf-8") == text, "`make golden` writes it anew"


def test_ls_lists_searches_with_their_best_against_the_default(cli: Cli, tuned: Path) -> None:
    done = cli("db", "ls")
    assert "3 searches, 5 trials" in done.err
    (row,) = [line for line in done.out.splitlines() if "softmax" in line]
    for part in ("def", "x86-64, 1 thread", "click 8", "4 ms", "2 ms", "0.50x"):
        assert part in row
    data = json.loads(cli("db", "ls", "--json").out)
    assert data["count"] == 3
    first = next(one for one in data["searches"] if one["trials"] == 3)
    assert (first["failed"], first["best_ms"], first["default_ms"]) == (1, 0.5, 2.0)
    assert first["target"]["mcpu"] == "x86-64"
    assert len(json.loads(cli("db", "ls", "dense", "--json").out)["searches"]) == 2


def test_ls_of_an_empty_database_is_no_mistake(cli: Cli, project: Path) -> None:
    done = cli("db", "ls")
    assert (done.code, done.out) == (0, "")
    assert "0 searches" in done.err


def test_show_draws_curve_best_trace_and_tir(cli: Cli, tuned: Path) -> None:
    out = cli("db", "show", "softmax").out
    assert "v3, v4 = SamplePerfectTile(l1, 2, 64)  → [4, 8]" in out
    assert "def main(def)" in out
    data = json.loads(cli("db", "show", "dense", "--json").out)
    one = next(one for one in data["searches"] if one["seed"] == 0)
    assert one["curve"] == [[0, 2.0], [2, 0.5]]
    assert one["best"]["ms"] == 0.5
    assert one["best"]["trace"][1] == [[2, [4, 8]]]


def test_export_and_import_carry_what_is_named(cli: Cli, tuned: Path, project: Path) -> None:
    assert cli("db", "export", "softmax.jsonl", "softmax").code == 0
    done = cli("db", "import", "softmax.jsonl", "--db", "other")
    assert "1 searches and 1 trials new, 0 searches were here" in done.out
    again = json.loads(cli("db", "import", "softmax.jsonl", "--db", "other", "--json").out)
    assert [(one["before"], one["after"]) for one in again["searches"]] == [(1, 1)]
    assert json.loads(cli("db", "ls", "--db", "other", "--json").out)["count"] == 1


def test_merge_takes_a_folder_or_a_store(cli: Cli, tuned: Path, project: Path) -> None:
    assert "3 searches and 5 trials new" in cli("db", "merge", "artifacts", "--db", "other").out
    assert "0 searches and 0 trials new" in cli("db", "merge", "other").out


def test_prune_takes_what_it_is_told_and_a_dry_run_nothing(cli: Cli, tuned: Path) -> None:
    assert "3 searches and 5 trials would go" in cli("db", "prune", "--foreign", "--dry-run").out
    assert "0 searches and 2 trials went" in cli("db", "prune", "--keep-best", "1").out
    assert json.loads(cli("db", "ls", "--json").out)["count"] == 3
    assert "3 searches and 3 trials went" in cli("db", "prune", "--older-than", "1d").out
    assert json.loads(cli("db", "ls", "--json").out)["count"] == 0


def test_damage_is_told_with_what_takes_it_out(cli: Cli, tuned: Path) -> None:
    path = file_of(tuned, search(seed=1))
    path.write_bytes(path.read_bytes()[:-9])
    done = cli("db", "ls")
    assert done.code == 0
    assert f"{path}: line 2 is torn or damaged" in done.err
    assert "tapml db prune --damaged" in done.err
    assert cli("db", "prune", "--damaged").code == 0
    assert "damaged" not in cli("db", "ls").err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("show", "nothing"), "no search of 'nothing'"),
        (("show", "d"), "name one by its hash"),
        (("prune",), "--older-than AGE, --foreign, --keep-best N or --damaged"),
        (("import", "artifacts"), "tapml db merge"),
        (("import", "little.yaml"), "is no export of a tuning database"),
        (("merge", "none"), "no tuning database none"),
        (("export", "little.yaml"), "is there already"),
        (("ls", "--db", "none"), "no tuning database"),
    ],
)
def test_a_mistake_is_one_message_that_says_what_to_do(
    cli: Cli, tuned: Path, arguments: tuple[str, ...], message: str
) -> None:
    done = cli("db", *arguments)
    assert done.code == 2
    assert message in done.err


def test_a_kernels_name_cannot_draw_on_the_terminal(cli: Cli, tuned: Path) -> None:
    database.merge(tuned, [search(trial(1), kernel="\x1b[31mred", workload="\x1b[31m")])
    for command in (("ls",), ("show", "red"), ("prune", "--keep-best", "1", "--dry-run")):
        assert "\x1b[31m" not in cli("db", *command).out
