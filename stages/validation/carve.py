"""Tests carved from a run of the unscheduled program: each shipped kernel on the inputs it really
gets.

The unscheduled program is the trusted side: what Relax legalized, compiled as it stands. Its
virtual
machine calls us back after every kernel with the arguments; the kernel that ships then runs on the
same inputs into a poisoned output, and the two outputs are compared.

Source: TapML (arXiv 2404.09151) §test carving; TVM's `VirtualMachine.set_instrument`.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tapml.errors import StageError

from .. import codec
from ..compat import tvm
from ..dataflow import kernel_of, op_name
from ..program import Program
from .compare import FLOOR, relative_error, within_a_step

_NAME = 100  # characters of a kernel's name in a file's; a fused one may be of thousands
BUDGET_BYTES = 64 * 2**20  # of carved inputs and outputs kept on disk
Arrays = Mapping[str, np.ndarray]
Spec = tuple[tuple[int, ...], str]  # shape, dtype


@dataclass(frozen=True)
class Carved:
    """One call site: how far the shipped kernel is from the unscheduled one on its real inputs.

    `relative` is inf when an output is not finite or was not written; `file` is empty when the
    budget was spent. `rounded`: the kernel rounds, and the outputs are at most a step apart.
    """

    case: str
    call: int
    kernel: str
    shipped: str
    nodes: tuple[str, ...]
    relative: float
    file: str = ""
    rounded: bool = False

    @property
    def passed(self) -> bool:
        return self.relative <= FLOOR or self.rounded


@dataclass(frozen=True)
class Substitute:
    """The shipped form of a region: an alternative's kernel and how its arguments come about."""

    kernel: str
    arguments: tuple[int | np.ndarray, ...]  # index of the region's input, or a packed array


class Shipped:
    """A kernel as it ships. It may take workspaces that the unscheduled one allocates itself."""

    def __init__(self, func: Any) -> None:
        self.func = func
        self.calls: set[tuple[Spec | None, ...]] = set()  # arguments that it was seen to be given

    def __call__(self, *args: Any) -> None:
        given = specs(args)
        seen = next((one for one in self.calls if one[: len(given)] == given), given)
        more = [np.zeros(*one) for one in seen[len(given) :] if one is not None]
        self.func(*args, *(tvm.runtime.tensor(poisoned(array)) for array in more))


def specs(args: Sequence[Any]) -> tuple[Spec | None, ...]:
    """Shape and dtype of each tensor among the arguments of a kernel."""
    return tuple((tuple(a.shape), str(a.dtype)) if hasattr(a, "numpy") else None for a in args)


def shipped_kernels(library: Path, runs: Sequence[Callable[[Any], None]]) -> dict[str, Shipped]:
    """The kernels inside a bundle's library by name, caught while each of `runs` drives its
    machine.
    """
    kernels: dict[str, Shipped] = {}
    machine = tvm.relax.VirtualMachine(tvm.runtime.load_module(str(library)), tvm.cpu())

    def catch(func: Any, name: str, before_run: bool, _result: Any, *args: Any) -> None:
        if before_run and not name.startswith("vm."):
            kernels.setdefault(name, Shipped(func)).calls.add(specs(args))

    machine.set_instrument(catch)
    for run in runs:
        run(machine)
    return kernels


def carve(
    program: Program,
    packed: Sequence[np.ndarray],
    cases: Mapping[str, Sequence[Any]],
    kernels: Mapping[str, Any],
    substitutes: Mapping[str, Substitute],
    target: Any,
    folder: Path,
) -> list[Carved]:
    """Runs the unscheduled program on each case and compares every kernel that ships.

    In:  packed weights in the order of main's parameters; of each case the tensors that come before
         them, inputs and states.
    Out: one entry per call of a shipped kernel, in order of the calls; files below `folder`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tensors = [tvm.runtime.tensor(array) for array in packed]
    main_only = tvm.relax.transform.DeadCodeElimination(["main"])(program.mod)
    machine = tvm.relax.VirtualMachine(tvm.relax.build(main_only, target), tvm.cpu())
    written, nodes = _written_by_kernel(program.mod), _nodes_by_kernel(program)
    recorder = Recorder(kernels, substitutes, written, nodes, folder, program.mod)
    machine.set_instrument(recorder)
    for case, inputs in cases.items():
        recorder.start(case)
        machine["main"](*inputs, *tensors)
    return recorder.found


class Recorder:
    """The instrument: compares after each kernel and keeps the inputs."""

    def __init__(
        self,
        kernels: Mapping[str, Any],
        substitutes: Mapping[str, Substitute],
        written: Mapping[str, tuple[int, ...]],
        nodes: Mapping[str, Sequence[Sequence[str]]],
        folder: Path,
        mod: Any,
    ) -> None:
        self.mod = mod
        self.kernels, self.substitutes = kernels, substitutes
        self.written, self.nodes, self.folder = written, nodes, folder
        self.found: list[Carved] = []
        self.spent = 0
        self.start("")

    def start(self, case: str) -> None:
        self.case, self.call = case, 0
        self.before: dict[int, np.ndarray] = {}  # what the kernel is about to update in place
        self.seen: Counter[str] = Counter()

    def __call__(self, _func: Any, name: str, before_run: bool, _result: Any, *args: Any) -> None:
        substitute = self.substitutes.get(name)
        shipped = substitute.kernel if substitute else name
        if name not in self.written or shipped not in self.kernels:
            return
        tensors = [at for at, arg in enumerate(args) if hasattr(arg, "numpy")]
        # scalars, such as sizes, stand among the inputs
        written = [tensors[place] for place in self.written[name]]
        if before_run:
            in_place = [tensors[place] for place in self.written[name] if place >= 0]
            self.before = {at: args[at].numpy() for at in in_place}
            return
        expected = {at: args[at].numpy() for at in written}
        got = [
            tvm.runtime.tensor(self.before.get(at, poisoned(array)))
            for at, array in expected.items()
        ]
        if substitute:
            inputs = [
                args[a] if isinstance(a, int) else tvm.runtime.tensor(a)
                for a in substitute.arguments
            ]
            self.kernels[shipped](*inputs, *got)
        else:
            outputs = dict(zip(written, got, strict=True))
            self.kernels[shipped](*(outputs.get(at, arg) for at, arg in enumerate(args)))
        sites = self.nodes.get(name, ())
        nodes = tuple(sites[self.seen[name] % len(sites)]) if sites else ()
        pairs = [(a.numpy(), b) for a, b in zip(got, expected.values(), strict=True)]
        apart = [pair for pair in pairs if _error(*pair) > FLOOR]
        self.found.append(
            Carved(
                case=self.case,
                call=self.call,
                kernel=name,
                shipped=shipped,
                nodes=nodes,
                relative=max(_error(*pair) for pair in pairs),
                file=self._keep(name, args),
                rounded=bool(apart)
                and rounds(self.mod[name])
                and all(within_a_step(*pair) for pair in apart),
            )
        )
        self.call += 1
        self.seen[name] += 1

    def _keep(self, name: str, args: Sequence[Any]) -> str:
        tensors = {i: arg.numpy() for i, arg in enumerate(args) if hasattr(arg, "numpy")}
        arrays = {f"arg{i}": array for i, array in (tensors | self.before).items()}
        size = sum(array.nbytes for array in arrays.values())
        if self.spent + size > BUDGET_BYTES:
            return ""
        self.spent += size
        file = f"{self.case.replace('/', '_')}-{self.call:04d}-{name[:_NAME]}.npz"
        codec.write_npz(self.folder / file, arrays)
        return file


def poisoned(like: np.ndarray) -> np.ndarray:
    """An array of the same shape and dtype whose every element is wrong: NaN, or the largest
    integer.
    """
    wrong = np.nan if like.dtype.kind == "f" else like.dtype.type(1) if like.dtype == bool else None
    if wrong is None:
        wrong = np.iinfo(like.dtype).max
    return np.full_like(like, wrong)


def _error(got: np.ndarray, expected: np.ndarray) -> float:
    try:
        return relative_error(got, expected, "")[1]
    except StageError:
        return math.inf


def _written_by_kernel(mod: Any) -> dict[str, tuple[int, ...]]:
    """Which of its tensors each kernel writes: its last ones (-1, …), or those it updates in place
    (0, …).
    """
    relax = tvm.relax
    found: dict[str, tuple[int, ...]] = {}

    def visit(node: Any) -> None:
        if op_name(node) == "relax.call_tir_inplace":
            found[kernel_of(node)] = tuple(int(place) for place in node.attrs.inplace_indices)
        elif kernel := kernel_of(node):
            out = node.ty
            count = len(out.fields) if isinstance(out, relax.TupleType) else 1
            found[kernel] = tuple(range(-count, 0))

    for _, func in mod.functions_items():
        if isinstance(func, relax.Function):
            relax.analysis.post_order_visit(func.body, visit)
    return found


def rounds(func: Any) -> bool:
    """Whether a kernel rounds to whole numbers."""
    text = tvm.ir.save_json(func)
    return any(f'"tirx.{name}"' in text for name in ("round", "nearbyint"))


def _nodes_by_kernel(program: Program) -> dict[str, list[Sequence[str]]]:
    """Source nodes of each kernel's call sites, in order."""
    found: dict[str, list[Sequence[str]]] = {}
    for sites in program.call_sites().values():
        for site in sites:
            found.setdefault(site["kernel"], []).append(site["nodes"])
    return found


def write_index(folder: Path, found: Sequence[Carved]) -> None:
    """`index.json`: every carved test, worst first; inf is written as null."""
    rows = [asdict(one) for one in worst(found, len(found))]
    for row in rows:
        row["relative"] = row["relative"] if math.isfinite(row["relative"]) else None
    codec.write_json(folder / "index.json", {"tolerance": FLOOR, "tests": rows})


def worst(found: Sequence[Carved], count: int) -> list[Carved]:
    """The `count` carved tests with the largest errors, the largest first."""
    return sorted(found, key=lambda one: -one.relative)[:count]
