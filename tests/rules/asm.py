"""What the machine code of a scheduled kernel looks like: shared by the rules' tests and the
recipes' end-to-end test.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from tapml.stage import Target
from tapml_stages.compat import tvm
from tapml_stages.target import tvm_target

_LABEL = re.compile(r"^(\.?L?[\w$.]+):")
_JUMP = re.compile(r"^\s+j\w+\s+(\.L\w+)")
_FMA = re.compile(r"\bvfn?m(?:add|sub)\w*ps\b[^#]*%ymm")


@dataclass(frozen=True)
class Facts:
    """innermost_fma: most FMA instructions on ymm registers in one innermost loop · fma: all of
    them
    · parallel: it launches tasks · allocations: workspace allocations inside loops of a parallel
    body."""

    innermost_fma: int
    fma: int
    parallel: bool
    allocations: int


def facts(func: Any, target: Target) -> Facts:
    """Facts about a scheduled PrimFunc, built for `target`."""
    mod = tvm.IRModule({"kernel": func.with_attr("global_symbol", "kernel")})
    text = tvm.compile(mod, tvm_target(target)).mod.inspect_source("asm")
    return Facts(
        innermost_fma=max((_count_fma(body) for body in innermost_loops(text)), default=0),
        fma=_count_fma(text.splitlines()),
        parallel="TVMBackendParallelLaunch@" in text,
        allocations=allocations_in_loops(func, target),
    )


def innermost_loops(text: str) -> list[list[str]]:
    """Lines of every loop that holds no other: from a label to the jump back to it."""
    lines = text.splitlines()
    labels = {found[1]: at for at, line in enumerate(lines) if (found := _LABEL.match(line))}
    spans = []
    for at, line in enumerate(lines):
        found = _JUMP.match(line)
        if found and labels.get(found[1], at + 1) <= at:
            spans.append((labels[found[1]], at))
    inner = [
        (start, end)
        for start, end in spans
        if not any((s, e) != (start, end) and start <= s and e <= end for s, e in spans)
    ]
    return [lines[start : end + 1] for start, end in inner]


def _count_fma(body: list[str]) -> int:
    return sum(bool(_FMA.search(line)) for line in body)


def allocations_in_loops(func: Any, target: Target) -> int:
    """Workspace allocations that a serial loop within a parallel one repeats, as LLVM gets them."""
    return sum(repeated_allocations(one.body) for one in _lowered(func, target).functions.values())


def repeated_allocations(node: Any, parallel: bool = False, repeated: bool = False) -> int:
    """The same, in a lowered statement."""
    inside = (parallel, repeated)
    if isinstance(node, tvm.tirx.For):
        is_parallel = int(node.kind) == int(tvm.tirx.ForKind.PARALLEL)
        inside = (parallel or is_parallel, repeated or (parallel and not is_parallel))
    if isinstance(node, (tvm.tirx.For, tvm.tirx.AttrStmt)):
        return repeated_allocations(node.body, *inside)
    if isinstance(node, tvm.tirx.SeqStmt):
        return sum(repeated_allocations(one, *inside) for one in node.seq)
    if isinstance(node, tvm.tirx.IfThenElse):
        branches = [node.then_case, *([node.else_case] if node.else_case is not None else [])]
        return sum(repeated_allocations(one, *inside) for one in branches)
    if isinstance(node, tvm.tirx.DeclBuffer):
        return int(repeated and "TVMBackendAllocWorkspace" in str(node.data))
    return 0


def _lowered(func: Any, target: Target) -> Any:
    """The kernel as LLVM gets it."""
    from tvm.s_tir.pipeline import default_s_tir_pipeline

    mod = tvm.IRModule({"kernel": func.with_attr("global_symbol", "kernel")})
    host = tvm_target(target)
    mod = tvm.tirx.transform.BindTarget(host.with_host(host))(mod)
    passes, finalize_host, _ = default_s_tir_pipeline()
    return tvm.ir.transform.Sequential([passes, finalize_host()])(mod)
