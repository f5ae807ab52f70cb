"""Parallel loops whose threads take turns from a share of their own, then from those of others.

TVM cuts a parallel loop into equal parts beforehand, so that the slowest core decides: one that a
neighbour or the system uses as well, or that is a slower one of a phone. Here each core begins with
an equal part too, which keeps what it wrote for the next kernel in its cache, but takes one turn
after the other from it by an atomic counter, and what the others have left in the end.
Source: Blumofe and Leiserson 1999 (work stealing), with shares of a loop for queues of tasks.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import tvm_ffi

from .compat import tvm

tirx = tvm.tirx

PIPELINE = "tapml.stealing"  # what TVM's build of kernels knows this one by
MOST_VICTIMS = 8  # shares that one core looks into: each is a line of memory of another core
LINE = 8  # counters that a line of memory holds, at least: two never share one
INDEX = "int64"
TAKE = "tapml_take_turn"  # the next turn of a share; `end` or more where none is left
_TAKE = f"""
define linkonce_odr i64 @{TAKE}(ptr %counter, i64 %end) {{
  %seen = load atomic i64, ptr %counter monotonic, align 8
  %left = icmp slt i64 %seen, %end
  br i1 %left, label %take, label %none
take:
  %turn = atomicrmw add ptr %counter, i64 1 monotonic
  ret i64 %turn
none:
  ret i64 %seen
}}
"""


def steal_work(mod: Any) -> Any:
    """`mod` with its parallel loops shared out while they run.

    In:  functions of the host after LowerIntrin, each with the target it is built for
    Out: loops of more turns than `num-cores` are changed, on LLVM targets of two cores and more;
         such a kernel uses `num-cores` threads at most
    """
    changed = {gvar: _changed(func) for gvar, func in mod.functions_items()}
    return tvm.IRModule(changed, attrs=mod.attrs)


def _changed(func: Any) -> Any:
    target = (func.attrs or {}).get("target") if isinstance(func, tirx.PrimFunc) else None
    if target is None or target.kind.name != "llvm":
        return func
    cores = int(target.attrs.get("num-cores", 1))
    if cores < 2:
        return func

    def visit(loop: Any) -> Any:
        extent = loop.extent
        few = isinstance(extent, tirx.IntImm) and int(extent) <= cores
        if few or int(loop.kind) != int(tirx.ForKind.PARALLEL):
            return loop
        return _shared_out(loop, cores)

    return func.with_body(tvm_ffi.structural_map(func.body, (tirx.For, visit)))


def _shared_out(loop: Any, cores: int) -> Any:
    """A parallel loop over cores, each with turns of `loop`."""
    counters = tirx.decl_buffer((cores * LINE,), INDEX, "counters")
    count = loop.extent.astype(INDEX)

    def begin(share: Any) -> Any:
        return tirx.Div(share * count, _index(cores))

    def start(share: Any) -> Any:
        return tirx.BufferStore(counters, begin(share), [share * LINE])

    def work(core: Any) -> Any:
        return _for("victim", min(cores, MOST_VICTIMS), lambda by: empty(core + by))

    def empty(at: Any) -> Any:
        """All that is left of a share."""
        share = tirx.Select(at >= cores, at - cores, at)
        turn = tirx.decl_buffer((1,), INDEX, "turn")
        now, end = tirx.BufferLoad(turn, [_index(0)]), begin(share + 1)
        counter = tirx.address_of(tirx.BufferLoad(counters, [share * LINE]))
        take = tirx.BufferStore(turn, tirx.call_extern(INDEX, TAKE, counter, end), [_index(0)])
        this = tirx.Bind(loop.loop_var, now.astype(str(loop.loop_var.ty.dtype)))
        turns = tirx.While(now < end, tirx.SeqStmt([this, loop.body, take]))
        return tirx.SeqStmt([tirx.AllocBuffer(turn), take, turns])

    shared = tirx.SeqStmt(
        [
            tirx.AllocBuffer(counters),
            _for("share", cores, start),
            _for("core", cores, work, tirx.ForKind.PARALLEL),
        ]
    )
    return tirx.AttrStmt(_index(0), "pragma_import_llvm", tvm.ir.StringImm(_TAKE), shared)


def _index(value: int) -> Any:
    return tirx.const(value, INDEX)


def _for(
    name: str, extent: int, body: Callable[[Any], Any], kind: Any = tirx.ForKind.SERIAL
) -> Any:
    var = tirx.Var(name, INDEX)
    return tirx.For(var, _index(0), _index(extent), kind, body(var))


def compile_kernels(
    check: Callable[[Any], None] = lambda mod: None,
) -> tuple[Any, Callable[[], Any], Callable[[], Any]]:
    """TVM's own pipeline, and what it does to kernels of the host and of the device at its end,
    work stealing included. `check` sees those of the host where it is decided what they allocate.
    """
    from tvm.s_tir.pipeline import default_s_tir_pipeline

    pipeline, _, finish_device = default_s_tir_pipeline()

    def finish_host(mod: Any) -> Any:
        mod = tirx.transform.LowerTVMBuiltin()(mod)
        check(mod)
        return steal_work(tirx.transform.LowerIntrin()(mod))

    return pipeline, lambda: finish_host, finish_device


tirx.register_tir_pipeline(PIPELINE, compile_kernels)
