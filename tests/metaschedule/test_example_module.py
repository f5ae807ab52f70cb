"""The package in docs/examples adds a search module by its entry point alone, and it wins."""

from __future__ import annotations

import logging
import tomllib
from pathlib import Path

import pytest
from metaschedule_programs import save

from tapml.stage import Context, Inputs, Target
from tapml_stages import records, search_modules
from tapml_stages.compat import tvm
from tapml_stages.metaschedule.stage import MetaSchedule, Tuning
from tapml_stages.program import Io, Program, TensorSpec
from tapml_stages.tensorir.schedule import default_records

EXAMPLE = Path(__file__).parents[2] / "docs" / "examples" / "separable_pooling"
relax = tvm.relax


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The example as pip leaves it."""
    project = tomllib.loads((EXAMPLE / "pyproject.toml").read_text())["project"]
    [(group, points)] = project["entry-points"].items()
    info = tmp_path / "site" / "separable_pooling-1.0.dist-info"
    info.mkdir(parents=True)
    lines = [f"{name} = {value}\n" for name, value in points.items()]
    (info / "entry_points.txt").write_text(f"[{group}]\n{''.join(lines)}")
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: separable-pooling\nVersion: 1.0\n")
    monkeypatch.syspath_prepend(str(info.parent))
    monkeypatch.syspath_prepend(str(EXAMPLE))


def pooling(size: int, window: int) -> Program:
    """A pool of maxima, its borders padded."""
    x = tvm.te.placeholder((1, 64, size, size), name="x")
    pads = [window // 2] * 4
    y = tvm.topi.nn.pool2d(x, [window] * 2, [1, 1], [1, 1], pads, "max")
    func = tvm.te.create_prim_func([x, y]).without_attr("global_symbol")
    builder = relax.BlockBuilder()
    arg = relax.Var("x", relax.TensorType((1, 64, size, size), "float32"))
    with builder.function("main", [arg]):
        kernel = builder.add_func(func, "pool")
        builder.emit_func_output(builder.emit(relax.call_tir(kernel, [arg], arg.ty)))
    spec = TensorSpec("x", (1, 64, size, size), "float32")
    return Program(builder.get(), Io((spec,), (spec,), ()))


def test_it_is_short() -> None:
    files = [EXAMPLE / "pyproject.toml", EXAMPLE / "separable_pooling.py"]
    assert sum(len(file.read_text().splitlines()) for file in files) <= 100


@pytest.mark.usefixtures("installed")
def test_it_is_known_by_its_entry_point_and_its_code_is_in_the_key() -> None:
    assert "separable-pooling" in search_modules.names()
    assert "separable-pooling" in MetaSchedule.tool_versions()


@pytest.mark.slow
@pytest.mark.usefixtures("installed")
def test_it_finds_a_schedule_that_is_right_and_much_faster_than_any_without_it(
    tmp_path: Path, target: Target
) -> None:
    program = pooling(20, 13)
    inputs = save(tmp_path, program, default_records(program.mod, target))
    (tmp_path / "work").mkdir()
    ctx = Context(tmp_path / "work", logging.getLogger("test"), tmp_path / "database")
    tuning = Tuning(trials=12, space=("tiles", "rules", "separable-pooling"))
    outputs = MetaSchedule(target=target, tuning=tuning).run(Inputs(inputs), ctx)
    [choice] = records.load_choices(outputs.artifacts["choices"]).kernels
    known = {record.id: record for record in records.load(outputs.artifacts["records"])}
    assert known[choice.record].rule == "separable-pooling"
    times = {candidate.id: candidate.ms for candidate in choice.candidates}
    default = next(c.ms for c in choice.candidates if c.kind == "default")
    tuned = times[choice.record]
    assert default is not None
    assert tuned is not None
    assert tuned < default / 2  # ten times or more on a quiet machine
