"""The figures of a bundle that decodes."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import language
import pytest
from small_programs import HOST

pytestmark = pytest.mark.slow


def script() -> ModuleType:
    path = Path(__file__).parents[2] / "benchmarks" / "decode_speed.py"
    spec = importlib.util.spec_from_file_location("decode_speed", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_memory_is_what_the_manifest_states_and_the_reader_reads_all(tmp_path: Path) -> None:
    model = language.Llama(
        layers=2, hidden=512, heads=8, kv_heads=8, inner=2048, vocabulary=32_000, context=1024
    )
    folder = language.stages(model, tmp_path, HOST)["bundle"]
    found = script().measure(folder, threads=1, rounds=2, position=5)
    memory = found["memory"]
    assert memory["stated"] > 150e6  # beside it, what the allocator keeps is little
    assert memory["measured"] == pytest.approx(memory["stated"], rel=0.1)
    assert found["weights_bytes"] < memory["stated"]
    assert found["ratio"]["p50"] > 0
    assert [row["kernel"] for row in found["kernels"]]
