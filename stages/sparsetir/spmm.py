"""Programs for Y = X @ Aᵀ with a sparse A [N, K]: one per format and per way to run it."""

from __future__ import annotations

from .formats import Format
from .language import Builder, Expr, Program, Read, Size, lift


def block_rows(form: Format, m: Size, n: int, k: int) -> Program:
    """BSR: each stored block multiplies a row of X's block; lanes are the block's outputs.

    At edges the last inputs are read again: a padded value is 0.0, and the NaN that it may meet is
    in its own block anyway.
    """
    outputs, inputs = form.block
    program = Builder(f"spmm_{form.name}")
    i, j, x = program.axis("I", m), program.axis("J", n), program.axis("K", k)
    jo, ko, ki, ji = form.declare(program, n, k)
    program.buffer("X", i, x)
    program.buffer("A", jo, ko, ki, ji)
    program.buffer("Y", i, j)

    def column(ko: Expr, ki: Expr) -> Expr:
        return (
            _affine(ko, inputs, ki) if k % inputs == 0 else _affine(ko, inputs, ki).minimum(k - 1)
        )

    program.iterate(
        "spmm",
        (i, jo, ji, ko, ki),
        "SSSRR",
        lambda i, jo, ji, ko, ki: (
            Read("Y", (i, _affine(jo, outputs, ji))),
            Read("X", (i, column(ko, ki))) * Read("A", (jo, ko, ki, ji)),
        ),
        where=(lambda i, jo, ji, ko, ki: _affine(jo, outputs, ji) < n) if n % outputs else None,
    )
    return program.build()


def row_dots(m: Size, n: int, k: int) -> Program:
    """CSR: each output is the dot product of a stored row with a gathered row of X."""
    program = Builder("spmm_csr_dots")
    i, x = program.axis("I", m), program.axis("K", k)
    j, ks = Format("csr").declare(program, n, k)
    program.buffer("X", i, x)
    program.buffer("A", j, ks)
    program.buffer("Y", i, j)
    program.iterate(
        "spmm",
        (i, j, ks),
        "SSR",
        lambda i, j, ks: (Read("Y", (i, j)), Read("X", (i, ks)) * Read("A", (j, ks))),
    )
    return program.build()


def row_lanes(m: Size, tiles: Size, n: int, k: int, lanes: int) -> Program:
    """CSR over tiles of X that were turned so that `lanes` rows of X lie side by side: each stored
    value scales a vector.

    The last tile repeats the last row of X; what it computes for it is not written.
    """
    program = Builder("spmm_csr_lanes")
    i, io, ii = program.axis("I", m), program.axis("IO", tiles), program.axis("II", lanes)
    x = program.axis("K", k)
    j, ks = Format("csr").declare(program, n, k)
    program.buffer("X", i, x)
    program.buffer("A", j, ks)
    program.buffer("T", io, x, ii, scope="local")
    program.buffer("Y", i, j)

    def row(io: Expr, ii: Expr) -> Expr:
        return _affine(io, lanes, ii)

    last = lift(m) - 1
    program.iterate(
        "turn",
        (io, x, ii),
        "SSS",
        lambda io, k, ii: (Read("T", (io, k, ii)), Read("X", (row(io, ii).minimum(last), k))),
    )
    program.iterate(
        "spmm",
        (io, j, ii, ks),
        "SSSR",
        lambda io, j, ii, ks: (
            Read("Y", (row(io, ii), j)),
            Read("T", (io, ks, ii)) * Read("A", (j, ks)),
        ),
        where=lambda io, j, ii, ks: row(io, ii) < lift(m),
    )
    return program.build()


def _affine(outer: Expr, factor: int, inner: Expr) -> Expr:
    return outer * factor + inner
