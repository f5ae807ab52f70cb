"""What the tuning database is told of a search, and what of it serves another one.

The files themselves are `tapml.tuning`'s: anybody can read them without TVM.
"""

from __future__ import annotations

from importlib.metadata import version

from tapml.stage import Target
from tapml.tuning.search import Header, Identity, SearchFile, Trial

from ..compat import tvm
from ..records import bare
from .kernels import Kernel
from .stage import MetaSchedule

__all__ = ["Header", "SearchFile", "Trial", "describe", "toolchain"]


def toolchain() -> str:
    """Names and versions of the tools that build and search."""
    return " ".join(f"{tool} {version(tool)}" for tool in MetaSchedule.tools)


def describe(
    kernel: Kernel, target: Target, space: str, seed: int, default_ms: float, learned: str = ""
) -> Header:
    """What the search of a kernel's workload is, for those that did not run it."""
    func = bare(kernel.func)
    return Header(
        identity=Identity(
            workload=kernel.default.workload,
            target=target.model_dump_json(),
            toolchain=toolchain(),
            space=space,
            seed=seed,
            learned=learned,
        ),
        kernel=kernel.name,
        func=tvm.ir.save_json(tvm.IRModule({"main": func.with_attr("global_symbol", "main")})),
        tir=func.script(),
        default_ms=default_ms,
    )
