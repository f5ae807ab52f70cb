"""What the machine code of a scheduled kernel looks like: shared by the rules' tests and the
recipes' end-to-end test.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from tapml.stage import Target
from tapml_stages.codegen.build import compile_kernels
from tapml_stages.codegen.scratch import Scratch, scratch
from tapml_stages.compat import tvm
from tapml_stages.target import tvm_target

_LABEL = re.compile(r"^(\.?L?[\w$.]+):")
_JUMP = re.compile(r"^\s+j\w+\s+(\.L\w+)")
_FMA = re.compile(r"\bvfn?m(?:add|sub)\w*ps\b[^#]*%ymm")


@dataclass(frozen=True)
class Facts:
    """innermost_fma: most FMA instructions on ymm registers in one innermost loop · fma: all of
    them
    · parallel: it launches tasks · repeated: allocations that a loop of a chunk repeats."""

    innermost_fma: int
    fma: int
    parallel: bool
    repeated: int


def facts(func: Any, target: Target) -> Facts:
    """Facts about a scheduled PrimFunc, built for `target`."""
    text = assembly(func, target)
    return Facts(
        innermost_fma=max((_count_fma(body) for body in innermost_loops(text)), default=0),
        fma=_count_fma(text.splitlines()),
        parallel="TVMBackendParallelLaunch@" in text,
        repeated=sum(bool(one.loop) for one in allocations(func, target)),
    )


def assembly(func: Any, target: Target) -> str:
    mod = tvm.IRModule({"kernel": func.with_attr("global_symbol", "kernel")})
    return tvm.compile(mod, tvm_target(target)).mod.inspect_source("asm")


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


def allocations(func: Any, target: Target) -> list[Scratch]:
    """What a kernel allocates while it runs."""
    functions = _lowered(func, target).functions_items()
    return [one for gvar, func in functions for one in scratch(gvar.name_hint, func)]


def _lowered(func: Any, target: Target) -> Any:
    """The kernel as codegen looks at it."""
    mod = tvm.IRModule({"kernel": func.with_attr("global_symbol", "kernel")})
    host = tvm_target(target)
    mod = tvm.tirx.transform.BindTarget(host.with_host(host))(mod)
    pipeline, *_ = compile_kernels()
    return tvm.tirx.transform.LowerTVMBuiltin()(pipeline(mod))
