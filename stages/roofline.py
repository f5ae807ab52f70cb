"""What this machine allows a kernel: multiply-adds in registers, and reading from its caches and
memory; and how much of that a kernel reaches.

Source: Williams, Waterman, Patterson, "Roofline" (2009); with a slope for each size that is read.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, Literal

import tvm_ffi

from tapml.errors import StageError
from tapml.stage import Target

from .compat import tvm
from .measure import Arg, Bench, Job
from .opaque import buffer, floating, integer

tirx = tvm.tirx

READS = (256 * 2**10, 4 * 2**20, 32 * 2**20)  # bytes a thread: its own cache, a shared one, memory
SECONDS = 0.06  # of running, for each limit
_CHAINS, _STEPS = 12, 50_000  # independent multiply-adds: latency times units, on any CPU of today
_STREAMS = 8  # vectors that are summed side by side
_WIDE, _NARROW = ("float64", "int64", "uint64"), ("bool", "int8", "uint8")


@dataclass(frozen=True)
class Work:
    """What a call has to do: operations, and bytes of what it reads and writes, each once."""

    operations: float
    bytes: float

    @property
    def intensity(self) -> float:
        """Operations a byte."""
        return self.operations / self.bytes if self.bytes else 0.0


@dataclass(frozen=True)
class Limits:
    """What the machine does at best.

    operations: a second, in float32
    reads:      (bytes read over and over, bytes a second), the smallest first
    """

    operations: float
    reads: tuple[tuple[int, float], ...]

    def __str__(self) -> str:
        reads = (f"{size / 2**20:.3g} MiB at {rate / 1e9:.3g} GB/s" for size, rate in self.reads)
        return f"FMA {self.operations / 1e9:.3g} GFLOP/s; reading {', '.join(reads)}"

    def read(self, size: float) -> float:
        """Bytes a second, of work on so many bytes."""
        return next((rate for held, rate in self.reads if size <= held), self.reads[-1][1])

    def least_ms(self, work: Work) -> float:
        """The time below which no kernel gets: that of the limit which binds."""
        return 1e3 * max(work.operations / self.operations, work.bytes / self.read(work.bytes))

    def binds(self, work: Work) -> Literal["FMA", "read"]:
        """Which of the two limits it meets first."""
        computing = work.operations / self.operations
        return "FMA" if computing > work.bytes / self.read(work.bytes) else "read"


def measure(bench: Bench, target: Target) -> Limits:
    """The limits of this machine now, at the threads of the target, in a fraction of a second.

    Raises: StageError when one of its kernels does not run.
    """
    threads, width = target.device.threads, target.vector_bits // 32
    sizes = [size * threads for size in READS]
    jobs = [_multiply_adds(threads, width), *(_sums(threads, size, width) for size in sizes)]
    found = {timing.id: timing for timing in bench.run(jobs, seconds=SECONDS)}
    if wrong := [f"{one.id} {one.error}" for one in found.values() if one.error]:
        raise StageError(message=f"the limits of this machine: {'; '.join(wrong)}")
    # the shortest burst: neighbours make one longer, nothing makes it shorter
    fma_s, *read_s = (min(found[job.id].bursts_ms) / 1e3 for job in jobs)
    reads = zip(sizes, read_s, strict=True)
    return Limits(
        operations=2.0 * _CHAINS * _STEPS * width * threads / fma_s,
        reads=tuple((size, size / seconds) for size, seconds in reads),
    )


def work(func: Any, args: Sequence[Arg | int]) -> Work:
    """What an unscheduled PrimFunc does with such arguments.

    A loop whose end is data counts once. Of an input that is read at places which are data, such as
    the table of a gather, as many bytes count as the largest other argument has.
    """
    sizes: dict[int, Any] = {}
    for param, arg in zip(func.params, args, strict=True):
        if isinstance(arg, int):
            sizes[_key(param)] = tirx.const(arg, str(param.ty.dtype))
            continue
        for dim, size in zip(param.ty.shape, arg.shape, strict=True):
            if isinstance(dim, tirx.Var):
                sizes[_key(dim)] = tirx.const(size, str(dim.ty.dtype))
    body = tvm_ffi.structural_map(func.body, (tirx.Var, lambda var: sizes.get(_key(var), var)))
    looked_up = _looked_up(func)
    tensors = [
        (prod(arg.shape) * _width(arg.dtype), _key(param) in looked_up)
        for param, arg in zip(func.params, args, strict=True)
        if isinstance(arg, Arg)
    ]
    most = max((size for size, chosen in tensors if not chosen), default=0)
    moved = sum(min(size, most) if chosen else size for size, chosen in tensors)
    return Work(float(tvm.s_tir.analysis.estimate_tir_flops(body)), float(moved))


def _looked_up(func: Any) -> set[int]:
    """The parameters that are read at places which are data."""
    loads: list[Any] = []
    tvm_ffi.structural_walk(func.body, (tvm.ir.TensorLoad, loads.append))
    found: dict[int, bool] = {}
    for load in loads:
        inner: list[Any] = []
        for index in load.indices:
            tvm_ffi.structural_walk(index, (tvm.ir.TensorLoad, inner.append))
        key = _key(load.source)
        found[key] = found.get(key, True) and bool(inner)
    return {key for key, chosen in found.items() if chosen}


def _key(node: Any) -> int:
    return int(node.__chandle__())


def _width(dtype: str) -> int:
    return 8 if dtype in _WIDE else 1 if dtype in _NARROW else 2 if dtype.endswith("16") else 4


def _multiply_adds(threads: int, width: int) -> Job:
    """Nothing but multiply-adds in registers, in as many chains as hide their latency."""
    from tvm.script.ir_builder import IRBuilder
    from tvm.script.ir_builder import tirx as T

    with IRBuilder() as builder, T.prim_func(is_private=True, s_tir=True):
        source = buffer("source", (3, width))
        out = buffer("out", (threads, _CHAINS, width))
        with T.parallel(integer(threads)) as thread:
            chains = [T.alloc_buffer((width,), "float32") for _ in range(_CHAINS)]
            for chain in chains:
                with T.vectorized(integer(width)) as lane:
                    T.buffer_store(chain, source[0, lane], [lane])
            with T.serial(integer(_STEPS)):
                for chain in chains:
                    with T.vectorized(integer(width)) as lane:
                        value = chain[lane] * source[1, lane] + source[2, lane]
                        T.buffer_store(chain, value, [lane])
            for number, chain in enumerate(chains):
                with T.vectorized(integer(width)) as lane:
                    T.buffer_store(out, chain[lane], [thread, number, lane])
    return _job("fma", builder.get(), Arg((3, width), "float32"), (threads, _CHAINS, width))


def _sums(threads: int, size: int, width: int) -> Job:
    """Reads `size` bytes, each thread its own, and does the least with them: sums of vectors."""
    from tvm.script.ir_builder import IRBuilder
    from tvm.script.ir_builder import tirx as T

    own = size // (4 * threads)
    with IRBuilder() as builder, T.prim_func(is_private=True, s_tir=True):
        source = buffer("source", (threads, own // (_STREAMS * width), _STREAMS, width))
        out = buffer("out", (threads, _STREAMS, width))
        with T.parallel(integer(threads)) as thread:
            sums = [T.alloc_buffer((width,), "float32") for _ in range(_STREAMS)]
            for one in sums:
                with T.vectorized(integer(width)) as lane:
                    T.buffer_store(one, floating(0.0), [lane])
            with T.serial(integer(own // (_STREAMS * width))) as step:
                for number, one in enumerate(sums):
                    with T.vectorized(integer(width)) as lane:
                        value = one[lane] + source[thread, step, number, lane]
                        T.buffer_store(one, value, [lane])
            for number, one in enumerate(sums):
                with T.vectorized(integer(width)) as lane:
                    T.buffer_store(out, one[lane], [thread, number, lane])
    read = Arg((threads, own // (_STREAMS * width), _STREAMS, width), "float32", fill=1)
    return _job(f"read {size}", builder.get(), read, (threads, _STREAMS, width))


def _job(name: str, func: Any, source: Arg, out: tuple[int, ...]) -> Job:
    module = tvm.ir.save_json(tvm.IRModule({"kernel": func}))
    return Job(id=name, module=module, kernel="kernel", args=(source, Arg(out, "float32")))
