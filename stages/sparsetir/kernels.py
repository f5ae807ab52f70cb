"""Kernels: a format, sizes and an epilogue in, one scheduled PrimFunc out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from tapml.stage import Target

from . import spmm
from .emit import Emitter, Finish, prim_func, tirx
from .formats import Structure
from .language import Program, Size
from .lower import lower
from .schedules import Dots, Lanes, Problem, Schedule, emit, schedule_for

STRUCTURE = ("splits", "indptr", "indices")
Order = Callable[[dict[str, Any]], Sequence[Any]]


@dataclass(frozen=True)
class Kernel:
    """A PrimFunc with what it was made from. `arrays`: the structure arrays that it reads, in parameter order.

    parameters: X, then those arrays and A, then the epilogue's buffers, then Y — as `order` arranged them.
    """

    func: Any
    program: Program
    schedule: Schedule
    chunks: int
    arrays: tuple[str, ...]


def plain(product: Any, _row: Any, _column: Any) -> Any:
    """The epilogue that does nothing."""
    return product


def make_kernel(
    structure: Structure,
    rows: tuple[int, int],
    target: Target,
    *,
    name: str = "main",
    finish: Finish = plain,
    order: Order | None = None,
) -> Kernel:
    """The kernel of Y = epilogue(X @ Aᵀ) for one structure.

    In:  rows of X, smallest and largest: equal for a kernel of exactly that size, else symbolic; `finish` builds the
         epilogue's expression from a product and its place; `order` arranges the kernel's buffers (by name) before Y.
    """
    n, k = structure.shape
    problem = Problem(rows, n, k, structure.stored)
    schedule = schedule_for(structure.format, problem, target)
    m: Size = rows[0] if problem.is_static else "m"
    program = _program(schedule, structure, m)
    stored = max(structure.stored_blocks, 1)
    sizes: dict[str, Any] = {"nnz_KO": stored, "nnz_KS": stored, "m": tirx.Var("m", "int32")}
    emitter = Emitter(lower(program), sizes, frozenset({"T"}))
    x, values, y = (emitter.buffer(one) for one in ("X", "A", "Y"))
    body = emit(schedule, emitter, finish)
    arrays = tuple(one for one in STRUCTURE if one in emitter.buffers)
    weight = [*(emitter.buffers[one] for one in arrays), values]
    params = order({"x": [x], "weight": weight}) if order else [x, *weight]
    chunks = emitter.buffers["splits"].shape[0].value - 1 if "splits" in arrays else 1
    return Kernel(prim_func([*params, y], body, name), program, schedule, chunks, arrays)


def _program(schedule: Schedule, structure: Structure, m: Size) -> Program:
    n, k = structure.shape
    match schedule:
        case Lanes(lanes=lanes):
            tiles: Size = -(-m // lanes) if isinstance(m, int) else "tiles"
            return spmm.row_lanes(m, tiles, n, k, lanes)
        case Dots():
            return spmm.row_dots(m, n, k)
        case _:
            return spmm.block_rows(structure.format, m, n, k)
