"""`tapml cache`: what is stored, whole, small, and carried elsewhere."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from stored import publish

from tapml import runs
from tapml.cli import quantities
from tapml.store import Store

Cli = Callable[..., Any]


@pytest.fixture
def store(cli: Cli, project: Path) -> Path:
    """The store of two runs: the first, and one of which a stage differs."""
    assert cli("run", "little.yaml").code == 0
    assert cli("run", "little.yaml", "--set", "scaling.factor=5").code == 0
    return project / "artifacts"


def listed(cli: Cli, *arguments: str) -> dict[str, Any]:
    return json.loads(cli("cache", "ls", "--json", *arguments).out)


def test_ls_sums_by_stage_and_by_recipe(cli: Cli, store: Path) -> None:
    done = listed(cli)
    assert done["count"] == len(done["results"]) == 6
    assert {name: one["results"] for name, one in done["by_stage"].items()} == {
        "scale": 2,
        "pack": 2,
        "judge": 2,
    }
    assert done["by_recipe"] == {"little": {"results": 6, "bytes": done["bytes"]}}
    said = cli("cache", "ls", "--limit", "2").out
    assert "… and 4 older ones; --limit 6 lists all" in said
    assert "recipe  results  size" in said


def test_ls_lists_what_is_asked_for(cli: Cli, store: Path) -> None:
    newest = listed(cli)["results"][0]
    assert listed(cli, newest["stage"])["count"] == 2
    assert listed(cli, f"{newest['stage']}/{newest['key'][:10]}")["results"] == [newest]
    assert listed(cli, "last")["count"] == 3
    assert listed(cli, "--recipe", "little")["count"] == 6
    assert cli("cache", "ls", "nosuch").code == 2


def flip(store: Path) -> Path:
    blob = next(path for path in store.glob("cas/*/*") if path.stat().st_size > 9)
    blob.chmod(0o644)
    blob.write_bytes(b"x" + blob.read_bytes()[1:])
    return blob


def test_verify_is_1_when_something_is_damaged_and_changes_nothing(cli: Cli, store: Path) -> None:
    assert cli("cache", "verify").code == 0
    blob = flip(store)
    for _ in range(2):
        done = cli("cache", "verify")
        assert done.code == 1
        assert blob.name in done.out
        assert "nothing was changed; `tapml cache verify --repair`" in done.out
    found = json.loads(cli("cache", "verify", "--json").out)
    assert found["damaged"] == len(found["findings"]) > 0


def test_a_name_cannot_draw_on_the_terminal(cli: Cli, store: Path) -> None:
    folder = next(store.glob("cas/*"))
    (folder / "\x1b[31mred").write_bytes(b"")
    done = cli("cache", "verify")
    assert done.code == 0
    assert "its name is no digest" in done.out
    assert "\x1b" not in done.out


def test_what_is_repaired_is_made_again_by_the_next_run(cli: Cli, store: Path) -> None:
    flip(store)
    done = cli("cache", "verify", "--repair")
    assert done.code == 0
    assert "set aside; the next run makes them again" in done.out
    assert "all whole" in cli("cache", "verify").out
    assert cli("run", "little.yaml").code == 0
    assert cli("run", "little.yaml", "--set", "scaling.factor=5").code == 0
    assert listed(cli)["count"] == 6
    assert "all whole" in cli("cache", "verify").out


def test_gc_takes_nothing_of_a_recent_run_and_all_when_it_is_none(cli: Cli, store: Path) -> None:
    done = cli("cache", "gc", "--max-size", "0")
    assert done.code == 0
    assert "0 results, 0 blobs, 0 left-overs went" in done.out
    assert "above --max-size stay" in done.out
    told = json.loads(
        cli("cache", "gc", "--keep-runs", "1", "--grace", "0s", "--dry-run", "--json").out
    )
    assert len(told["results"]) == 3
    assert listed(cli)["count"] == 6
    went = json.loads(cli("cache", "gc", "--keep-runs", "1", "--grace", "0s", "--json").out)
    assert {**told, "dry_run": False} == went
    assert listed(cli)["count"] == 3
    again = cli("run", "little.yaml", "--set", "scaling.factor=5")
    assert again.out.startswith("nothing to do")


def test_gc_keeps_what_a_pinned_run_uses(cli: Cli, store: Path) -> None:
    first = runs.ids(store)[-1]
    cli("runs", "--pin", first)
    cli("cache", "gc", "--max-size", "0", "--grace", "0s")
    assert listed(cli)["count"] == 3
    assert cli("run", "little.yaml").out.startswith("nothing to do")
    refused = cli("cache", "rm", first)
    assert refused.code == 2
    assert f"`tapml runs --unpin {first}`" in refused.err
    cli("runs", "--unpin", first)
    assert "3 results" in cli("cache", "rm", first).out


def test_gc_takes_run_folders_only_when_asked(cli: Cli, store: Path) -> None:
    assert cli("cache", "gc", "--runs").code == 2
    cli("cache", "gc", "--keep-runs", "1", "--grace", "0s")
    assert len(runs.ids(store)) == 2
    newest = runs.ids(store)[0]
    done = cli("cache", "gc", "--keep-runs", "1", "--runs", "--grace", "0s")
    assert "went  run " in done.out
    assert runs.ids(store) == [newest]


def test_rm_says_what_went(cli: Cli, store: Path) -> None:
    assert cli("cache", "rm").code == 2
    assert "went  pack/" in cli("cache", "rm", "pack").out
    assert listed(cli)["count"] == 4
    assert cli("cache", "rm", "--recipe", "nosuch").code == 2
    assert json.loads(cli("cache", "rm", "--recipe", "little", "--json").out)["kept_bytes"] == 0
    assert listed(cli)["count"] == 0


def test_a_run_is_carried_to_another_store_and_is_a_hit_there(
    cli: Cli, store: Path, tmp_path: Path
) -> None:
    file, other = tmp_path / "run.tar", tmp_path / "other"
    assert "3 results" in cli("cache", "export", str(file), "last").out
    assert cli("cache", "export", str(file), "last").code == 2
    there = ("--store", str(other))
    assert "3 results new, 0 here already" in cli("cache", "import", str(file), *there).out
    assert "0 results new, 3 here already" in cli("cache", "import", str(file), *there).out
    done = cli("run", "little.yaml", "--set", "scaling.factor=5", *there)
    assert done.out.startswith("nothing to do: 3 of 3 stages cached")
    for path in (tmp_path / "none.tar", tmp_path):
        refused = cli("cache", "import", str(path))
        assert (refused.code, "cannot read" in refused.err) == (2, True)
    refused = cli("cache", "export", str(tmp_path / "none" / "run.tar"), "last")
    assert (refused.code, "is in no folder" in refused.err) == (2, True)


def test_a_large_store_is_listed_in_part(cli: Cli, project: Path) -> None:
    for number in range(40):
        publish(Store(project / "artifacts"), number)
    done = cli("cache", "ls")
    assert len(done.out.splitlines()) < 40
    assert "… and 20 older ones" in done.out
    assert "(no run)  40" in done.out


@pytest.mark.parametrize(
    ("text", "count"),
    [("0", 0), ("500", 500), ("1k", 1000), ("1.5GB", 1_500_000_000), ("10 GiB", 10 * 2**30)],
)
def test_sizes_are_decimal_or_binary(text: str, count: int) -> None:
    assert quantities.bytes_of(text) == count


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0 B"), (1023, "1023 B"), (1024, "1.00 KiB"), (3 << 40, "3.00 TiB")]
)
def test_sizes_are_told_in_binary_units(count: int, text: str) -> None:
    assert quantities.size(count) == text


@pytest.mark.parametrize("option", ["--max-size=lots", "--older-than=30", "--older-than=-3d"])
def test_an_amount_that_is_none_is_2(cli: Cli, option: str) -> None:
    done = cli("cache", "gc", option)
    assert done.code == 2
    assert "such as" in done.err
