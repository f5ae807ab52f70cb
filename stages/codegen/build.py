"""From an applied module to machine code, pass by pass."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .. import work_stealing
from ..compat import tvm
from ..views import Watch
from .memory import plan_memory
from .objects import ELSEWHERE, beside
from .scratch import demand_bounded
from .tuples import open_tuples
from .workspace import lift_workspaces

relax = tvm.relax


CUDA_GRAPH = "relax.backend.use_cuda_graph"
PIPELINE = "tapml"  # what TVM's build of kernels knows ours by


@dataclass(frozen=True)
class Linking:
    """What links, and what is linked besides the kernels: shared libraries, which are looked for
    beside the library at run time.
    """

    compiler: str | None
    libraries: tuple[Path, ...] = ()


Pass = Callable[[Any], Any]


def lower(
    mod: Any,
    target: Any,
    *,
    plan: Pass | None = plan_memory,
    watch: Watch = lambda name, mod: None,
) -> Any:
    """The applied module as the virtual machine runs it, its memory planned by `plan`.

    Source: `relax.pipeline.default_build_pipeline`, with our own memory plan; on CUDA launches that
            can be captured are put into CUDA graphs.
    """
    transform = relax.transform
    steps: list[tuple[str, Pass]] = [
        ("lift_workspaces", lift_workspaces),
        ("rewrite_reshape", transform.RewriteDataflowReshape()),
        ("to_non_dataflow", transform.ToNonDataflow()),
        ("remove_purity", transform.RemovePurityChecking()),
        ("rewrite_call_tir", transform.CallTIRRewrite()),
        ("open_tuples", open_tuples),
    ]
    steps += [("plan_memory", plan)] if plan else []
    steps += [
        ("cuda_graph", transform.RewriteCUDAGraph()),
        ("lower_alloc", transform.LowerAllocTensor()),
        ("kill_after_last_use", transform.KillAfterLastUse()),
    ]
    options = {CUDA_GRAPH: target.kind.name == "cuda"}
    with target, tvm.transform.PassContext(opt_level=3, config=options):
        for name, step in steps:
            mod = step(mod)
            watch(name, mod)
    return mod


def finish() -> Any:
    """What the virtual machine needs of a lowered module besides."""
    transform = relax.transform
    return tvm.transform.Sequential(
        [
            transform.LowerRuntimeBuiltin(),
            transform.ComputePrimValue(),
            transform.VMShapeLower(),
            transform.AttachGlobalSymbol(),
        ]
    )


def compile_kernels() -> tuple[Any, Callable[[], Pass], Callable[[], Pass]]:
    """The pipeline of kernels (`stages/work_stealing.py`), without those that are built elsewhere;
    what the others allocate is looked at.
    """
    pipeline, finish_host, finish_device = work_stealing.compile_kernels(demand_bounded)
    return tvm.transform.Sequential([_left_here(), pipeline]), finish_host, finish_device


def _left_here() -> Pass:
    """A pass that leaves out the kernels that another process builds."""

    def without(mod: Any, _: Any) -> Any:
        left = tvm.IRModule({}, attrs=mod.attrs)
        for gv, func in mod.functions_items():
            if gv.name_hint not in ELSEWHERE.get():
                left.update_func(gv, func)
        return left

    return tvm.transform.module_pass(without, opt_level=0)


tvm.tirx.register_tir_pipeline(PIPELINE, compile_kernels)


def build_executable(lowered: Any, target: Any) -> Any:
    """What the virtual machine runs of a lowered module.

    Raises: StageError for a kernel that allocates more than bounded scratch of a chunk.
    """
    return relax.build(lowered, target, relax_pipeline=finish(), tir_pipeline=PIPELINE)


def build_library(lowered: Any, target: Any, path: Path, linking: Linking) -> None:
    """Builds a lowered module and links it as a shared library at `path`."""
    with beside(lowered, target) as others:
        executable = build_executable(lowered, target)
        _link(executable, path, linking, others.objects())


def _link(executable: Any, path: Path, linking: Linking, objects: Sequence[str]) -> None:
    from tvm.support import cc

    def link(output: str, files: Sequence[str], **options: Any) -> None:
        cc.create_shared(output, [*files, *objects], cc=linking.compiler, **options)

    if linking.libraries:  # nothing refers to them but names that the runtime looks up
        needed = ["-Wl,-rpath,$ORIGIN", "-Wl,--no-as-needed", f"-L{path.parent}"]
        needed += [f"-l:{one.name}" for one in linking.libraries]
        link = functools.partial(link, options=needed)
    executable.export_library(str(path), fcompile=link)
