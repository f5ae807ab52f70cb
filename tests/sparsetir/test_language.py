"""Programs of the sparse language: printed, compared, and lowered to positions."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from tapml_stages.sparsetir import spmm
from tapml_stages.sparsetir.formats import Format
from tapml_stages.sparsetir.language import Builder, Coordinate, Program, Read
from tapml_stages.sparsetir.lower import LoweringError, lower

GOLDEN = Path(__file__).parents[1] / "golden" / "sparsetir" / "v1"


def ragged_sum() -> Program:
    """Sums of rows of different lengths: a dense variable axis below a list of rows (sparse
    fixed)."""
    program = Builder("ragged_sum")
    g = program.axis("G", 5)
    r = program.axis("R", 40, g, indices="rows", width=3)
    c = program.axis("C", 9, r, indptr="borders")
    x = program.axis("X", 40)
    program.buffer("V", g, r, c)
    program.buffer("Y", x)
    program.iterate(
        "sum", (g, r, c), "SSR", lambda g, r, c: (Read("Y", (r,)), Read("V", (g, r, c)))
    )
    return program.build()


PROGRAMS = {
    "bsr": spmm.block_rows(Format("bsr", (16, 16)), "m", 3072, 768),
    "bsr_padded": spmm.block_rows(Format("bsr", (8, 32)), 4, 100, 70),
    "csr_dots": spmm.row_dots(1, 214, 512),
    "csr_lanes": spmm.row_lanes("m", "tiles", 214, 512, 32),
    "ragged_sum": ragged_sum(),
}


@pytest.mark.parametrize("name", PROGRAMS)
def test_programs_print_as_the_golden_files_say(name: str) -> None:
    text = f"{PROGRAMS[name]}\n{lower(PROGRAMS[name])}"
    path = GOLDEN / f"{name}.txt"
    if os.environ.get("TAPML_UPDATE_GOLDEN") == "1":
        path.write_text(text, encoding="utf-8")
    assert path.read_text(encoding="utf-8") == text


def test_equal_programs_compare_hash_and_digest_equal() -> None:
    one, two = (spmm.row_dots(1, 8, 4) for _ in range(2))
    other = spmm.row_dots(2, 8, 4)
    assert one == two
    assert hash(one) == hash(two)
    assert one.digest == two.digest
    assert len({one, two, other}) == 2
    assert one.digest != other.digest


def test_all_four_kinds_of_axes_exist() -> None:
    kinds = {axis.kind for program in PROGRAMS.values() for axis in program.axes}
    assert kinds == {"dense_fixed", "dense_variable", "sparse_fixed", "sparse_variable"}


def test_a_sparse_axis_read_by_another_coordinate_needs_a_search() -> None:
    program = Builder("shifted")
    i = program.axis("I", 4)
    j = program.axis("J", 4, i, indptr="indptr", indices="indices")
    program.buffer("A", i, j)
    program.buffer("Y", i)
    program.iterate("sum", (i, j), "SR", lambda i, j: (Read("Y", (i,)), Read("A", (i, j + 1))))
    with pytest.raises(LoweringError, match=r"A: J is sparse_variable and read by j \+ 1"):
        lower(program.build())


def test_an_axis_before_its_parent_is_refused() -> None:
    program = Builder("backwards")
    i = program.axis("I", 4)
    j = program.axis("J", 4, i, indptr="indptr", indices="indices")
    with pytest.raises(ValueError, match="J comes before its parent I"):
        program.iterate("sum", (j, i), "SR", lambda j, i: (Read("Y", (i,)), Coordinate("J")))


def test_a_lowered_program_with_all_kinds_of_axes_computes_what_it_says() -> None:
    from tapml_stages.compat import tvm
    from tapml_stages.sparsetir.emit import Emitter, prim_func, unscheduled

    random = np.random.default_rng(0)
    rows = random.integers(0, 40, (5, 3)).astype(np.int32)
    borders = np.concatenate([[0], np.cumsum(random.integers(0, 9, 15))]).astype(np.int32)
    values = random.standard_normal(borders[-1]).astype(np.float32)
    emitter = Emitter(lower(PROGRAMS["ragged_sum"]), {"nnz_C": len(values)})
    body = unscheduled(emitter)
    func = prim_func([emitter.buffer(name) for name in ("rows", "borders", "V", "Y")], body, "main")
    y = tvm.runtime.tensor(np.full(40, np.nan, np.float32))
    library = tvm.compile(tvm.IRModule({"main": func}), tvm.target.Target("llvm"))
    library["main"](*map(tvm.runtime.tensor, (rows, borders, values)), y)
    expected = np.zeros(40)
    np.add.at(expected, np.repeat(rows.ravel(), np.diff(borders)), values)
    assert np.allclose(y.numpy(), expected, atol=1e-5)
