"""Alternatives: for each region and format, kernels of the region's whole signature, and the
structure that they read."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tapml.errors import StageError
from tapml.stage import Target
from tapml.target import missing_here

from ..packing import pack_values
from ..program import Io, Program
from ..regions import Epilogue, Region, Unsupported, read_epilogue, read_region, region_calls
from .check import MAX_ERROR, relative_error
from .formats import Format, FormatError, Structure, check_positions, structure_of
from .kernels import Kernel, make_kernel
from .schedules import Problem, schedule_for

MAX_PADDING = 4.0  # `auto`: more stored elements than this per nonzero are not worth a kernel
MAX_DENSITY = 0.9  # `auto`: above it nothing is saved
CHECK_ROWS = 13  # not a multiple of any tile


@dataclass(frozen=True)
class Request:
    """The formats asked for, as blocks of the *source* weight; `auto`: only those that can pay."""

    formats: tuple[Format, ...]
    auto: bool


@dataclass(frozen=True)
class Case:
    """A kernel to make: sizes of the dims that it is exact for (None: all that the program
    allows), rows of X."""

    label: str
    sizes: dict[str, int] | None
    rows: tuple[int, int]


@dataclass(frozen=True)
class Figure:
    """What a format stores for a region's weight; `declined` says why it has no kernel all the
    same."""

    region: str
    structure: Structure
    declined: str = ""


@dataclass
class Generated:
    """What the room gives: index rows and kernels by id, structure arrays, and what has no kernel,
    each with its reason. `errors` depend on the weights' values, so they stay out of the artifacts:
    new values in an old mask re-tune nothing."""

    rows: list[dict[str, Any]] = field(default_factory=list)
    kernels: dict[str, Kernel] = field(default_factory=dict)
    structure: dict[str, np.ndarray] = field(default_factory=dict)
    declined: list[dict[str, str]] = field(default_factory=list)
    figures: list[Figure] = field(default_factory=list)
    errors: dict[str, float | None] = field(default_factory=dict)

    def decline(self, region: str, form: str, reason: str) -> None:
        self.declined.append({"region": region, "format": form, "reason": reason})


def generate(
    program: Program,
    weights: Mapping[str, np.ndarray],
    request: Request,
    target: Target,
    progress: Callable[[int, int, str], None] = lambda done, total, note: None,
) -> Generated:
    """Alternatives of every region whose weight has zeros; what gets none is listed with the
    reason.

    Raises: StageError when a kernel computes something else than the region.
    """
    out, io = Generated(), program.io
    calls = list(region_calls(program))
    for done, (call, func, used) in enumerate(calls):
        name = call.op.name_hint
        progress(done, len(calls), name)
        try:
            region = read_region(call, func, used)
            if (weights[region.weight] != 0).all():
                raise Unsupported("the weight has no zeros")
            epilogue = read_epilogue(region)
        except Unsupported as error:
            out.decline(name, "*", str(error))
            continue
        maker = _Maker(
            out, region, epilogue, {i: weights[one] for i, one in used.items()}, io, target
        )
        for form in request.formats:
            maker.make(_oriented(form, region), request.auto)
    return out


def _oriented(form: Format, region: Region) -> Format:
    """The format with its block as (outputs, inputs); recipes give blocks in the weight's source
    layout."""
    rows, columns = form.block
    return Format(form.kind, (columns, rows)) if region.transpose else form


def _not_worth(structure: Structure) -> str:
    """Why `auto` leaves a format out, or nothing."""
    if structure.padding > MAX_PADDING:
        return f"stores {structure.padding:.1f} elements per nonzero (limit {MAX_PADDING:g})"
    if structure.stored_share > MAX_DENSITY:
        share = f"{100 * structure.stored_share:.0f} %"
        return f"would do {share} of the dense work (limit {100 * MAX_DENSITY:.0f} %)"
    return ""


@dataclass(frozen=True)
class _Maker:
    """Makes the kernels of one region."""

    out: Generated
    region: Region
    epilogue: Epilogue | None
    weights: Mapping[int, np.ndarray]
    io: Io
    target: Target

    def make(self, form: Format, auto: bool) -> None:
        """All kernels of one format, or its reason to have none."""
        region, matrix = self.region, self.weights[self.region.parameter]
        try:
            structure = structure_of((matrix.T if region.transpose else matrix) != 0, form)
            cases = list(self.cases(structure))
            check_positions(max(case.rows[1] for case in cases) * max(region.n, region.k))
            reason = _not_worth(structure) if auto else ""
            self.out.figures.append(Figure(region.name, structure, reason))
            if reason:
                raise Unsupported(reason)
            for case in cases:
                self.make_kernel(structure, case)
        except (Unsupported, FormatError) as error:
            self.out.decline(region.name, form.name, str(error))

    def cases(self, structure: Structure) -> Iterator[Case]:
        """The general kernel, and one for each bucket whose schedule is another.

        The general kernel has exact tiles for every size, so an equal schedule at a fixed size is
        no faster.
        """
        region, dims = self.region, self.io.dims
        low = region.count_rows({name: bounds.min for name, bounds in dims.items()})
        high = region.count_rows({name: bounds.max for name, bounds in dims.items()})
        yield Case("", None, (low, high))
        general, seen = self.traits(structure, (low, high)), set[int]()
        for bucket in self.io.buckets if low < high else ():
            rows = region.count_rows(dict(bucket)) if set(bucket) == set(dims) else 0
            if rows and rows not in seen and self.traits(structure, (rows, rows)) != general:
                seen.add(rows)
                label = "".join(f"-{name}{size}" for name, size in sorted(bucket.items()))
                yield Case(label, dict(bucket), (rows, rows))

    def traits(self, structure: Structure, rows: tuple[int, int]) -> object:
        problem = Problem(rows, self.region.n, self.region.k, structure.stored)
        return schedule_for(structure.format, problem, self.target).traits

    def make_kernel(self, structure: Structure, case: Case) -> None:
        """One kernel, checked and with its row in the index."""
        region, form = self.region, structure.format
        identifier = f"{region.name}.{form.name}{case.label}"
        name = identifier.replace(".", "_").replace("-", "_")
        kernel = make_kernel(
            structure,
            case.rows,
            self.target,
            name=name,
            epilogue=self.epilogue,
            activation=region.activation,
            weight=region.parameter,
        )
        arrays = structure.arrays(kernel.chunks)
        spec = {"packer": form.kind, "block": list(form.block), "transpose": region.transpose}
        args: list[dict[str, Any]] = []
        for index in kernel.inputs:
            if index == region.parameter:
                args += [{"structure": f"{identifier}/{one}"} for one in kernel.arrays]
                args.append({"values": region.weight, **spec})
            else:
                args.append({"input": index})
        self.out.kernels[identifier] = kernel
        self.out.structure |= {f"{identifier}/{one}": arrays[one] for one in kernel.arrays}
        self.out.rows.append(
            {
                "id": identifier,
                "region": region.name,
                "kind": "sparse",
                "format": {"kind": form.kind, "block": list(form.block)},
                "kernel": name,
                "args": args,
                "sizes": case.sizes,
                "nnz": structure.nnz,
                "stored": structure.stored,
                "density": structure.density,
            }
        )
        self.out.errors[identifier] = self.error(identifier, kernel, arrays, spec, case)

    def error(
        self,
        identifier: str,
        kernel: Kernel,
        arrays: Mapping[str, np.ndarray],
        spec: Mapping[str, Any],
        case: Case,
    ) -> float | None:
        """The kernel's error on this machine, None where it cannot run here. Raises: StageError
        when it is wrong."""
        if missing_here(self.target):
            return None
        packed = [arrays[one] for one in kernel.arrays]
        packed.append(pack_values(self.weights[self.region.parameter], arrays, spec))
        args: list[int | np.ndarray] = []
        for index in kernel.inputs:
            args += packed if index == self.region.parameter else [index]
        rows = min(case.rows[1], max(case.rows[0], CHECK_ROWS))
        error = relative_error(
            self.region, self.epilogue, kernel.func, args, self.weights, rows, self.target
        )
        if not error <= MAX_ERROR:
            raise StageError(message=f"{identifier}: {error:.1e} away from the dense product")
        return error
