"""Kernels: a structure, sizes and an epilogue in, one scheduled PrimFunc out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tapml.stage import Target

from ..regions import Epilogue
from . import spmm
from .emit import Emitter, prim_func, tirx
from .formats import Structure
from .language import Program, Size
from .lower import PositionProgram, lower
from .schedules import Dots, Lanes, Problem, Schedule, emit, schedule_for

STRUCTURE = ("splits", "indptr", "indices")


@dataclass(frozen=True)
class Kernel:
    """A PrimFunc with what it was made from.

    inputs:  indices of the region's parameters that it takes, in order; in the weight's place it
             takes `arrays` and the packed values
    arrays:  the structure arrays that it reads
    chunks:  what `splits` cuts the compressed rows into
    """

    func: Any
    program: Program
    positions: PositionProgram
    schedule: Schedule
    inputs: tuple[int, ...]
    arrays: tuple[str, ...]
    chunks: int


def make_kernel(
    structure: Structure,
    rows: tuple[int, int],
    target: Target,
    *,
    name: str = "main",
    epilogue: Epilogue | None = None,
    activation: int = 0,
    weight: int = 1,
) -> Kernel:
    """The kernel of Y = epilogue(X @ Aᵀ) for one structure.

    In:  smallest and largest row count of X: equal for a kernel of exactly that size, else
         symbolic; indices of X and of the weight among the region's parameters.
    """
    n, k = structure.shape
    problem = Problem(rows, n, k, structure.stored)
    schedule = schedule_for(structure.format, problem, target)
    m: Size = rows[0] if problem.is_static else "m"
    program = _program(schedule, structure, m)
    stored = max(structure.stored_blocks, 1)
    sizes: dict[str, Any] = {"nnz_KO": stored, "nnz_KS": stored, "m": tirx.Var("m", "int32")}
    positions = lower(program)
    emitter = Emitter(positions, sizes, frozenset({"T"}))
    operands = epilogue.buffers(emitter.size("X", 0)) if epilogue else {}
    if activation in operands:
        operands[activation] = emitter.buffer("X")

    def finish(product: Any, i: Any, j: Any) -> Any:
        return epilogue.finish(operands, product, i, j) if epilogue else product

    body = emit(schedule, emitter, finish)
    arrays = tuple(one for one in STRUCTURE if one in emitter.buffers)
    packed = [emitter.buffers[one] for one in (*arrays, "A")]
    params = {one: [buffer] for one, buffer in operands.items()}
    params |= {activation: [emitter.buffer("X")], weight: packed}
    inputs = tuple(sorted(params))
    flat = [buffer for one in inputs for buffer in params[one]]
    func = prim_func([*flat, emitter.buffer("Y")], body, name)
    chunks = emitter.buffers["splits"].shape[0].value - 1 if "splits" in arrays else 1
    return Kernel(func, program, positions, schedule, inputs, arrays, chunks)


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
