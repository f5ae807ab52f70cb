"""A look into a bundle: what it takes and gives, and the memory that it holds while it runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from fuzz.run import call

from tapml import inspection
from tapml.errors import StageError

MIB = 1 << 20
MANIFEST = {
    "kind": "vm-library",
    "name": "little",
    "inputs": [{"name": "x", "shape": ["batch", 4], "dtype": "float32"}],
    "outputs": [{"name": "y", "shape": ["batch", 2], "dtype": "float32"}],
    "dims": {"batch": {"min": 1, "max": 8}},
    "params": {"bytes": 3 * MIB},
    "memory_bytes": 2 * MIB,
    "state_bytes": 5 * MIB,
}


def bundle(folder: Path, **changes: Any) -> Path:
    (folder / "manifest.json").write_text(json.dumps({**MANIFEST, **changes}))
    return folder


def test_memory_is_that_of_weights_states_and_activations(tmp_path: Path) -> None:
    code, out, err = call("inspect", str(bundle(tmp_path)))
    assert code == 0, err
    lines = dict(line.split(maxsplit=1) for line in out.splitlines()[1:5])
    assert lines["weights"].startswith("3.00 MiB")
    assert lines["activations"] == "2.00 MiB as planned"
    assert lines["states"] == "5.00 MiB at the largest sizes"
    assert lines["memory"].startswith("10.00 MiB at most while it runs")
    assert inspection.to_data(inspection.inspect(str(tmp_path)))["memory"] == 10 * MIB


def test_a_bundle_without_states_has_no_line_of_them(tmp_path: Path) -> None:
    _, out, _ = call("inspect", str(bundle(tmp_path, state_bytes=0)))
    assert "\nstates" not in out
    assert "memory       5.00 MiB" in out


def test_memory_that_the_manifest_does_not_state_is_not_made_up(tmp_path: Path) -> None:
    found = inspection.inspect(str(bundle(tmp_path, memory_bytes=None)))
    assert found.memory is None


def test_a_manifest_with_no_size_for_a_size_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StageError, match="state_bytes"):
        inspection.inspect(str(bundle(tmp_path, state_bytes="much")))
