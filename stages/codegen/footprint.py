"""How much memory a program's calls hold: the VM's allocator, replayed over what is built."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from ..compat import tvm
from ..dataflow import op_name

relax = tvm.relax
PAGE = 4096  # of the VM's allocator: sizes are rounded up, and a freed block serves its size only


def held_bytes(mod: Any, sizes: Mapping[str, int]) -> dict[str, int]:
    """Function → bytes that the allocator holds after a call: what was freed stays in its pool.

    In:     after KillAfterLastUse; sizes of the dims. A tensor whose size data decides counts as
            none, and so does what a function that is called holds.
    Source: PooledAllocator of TVM's runtime.
    """
    functions = [(g, f) for g, f in mod.functions_items() if isinstance(f, relax.Function)]
    return {gvar.name_hint: _replay(func, sizes) for gvar, func in functions}


def _replay(func: Any, sizes: Mapping[str, int]) -> int:
    symbols = relax.analysis.defined_symbolic_vars(func)  # two may have one name: after casts
    func = func.bind_symbolic_vars({one: sizes[one.name] for one in symbols if one.name in sizes})
    pool, held = Counter[int](), 0
    references: dict[Any, int] = {}  # storage → how many variables keep it
    size_of: dict[Any, int] = {}
    storages: dict[Any, Any] = {}  # variable → the storage that it keeps

    def release(var: Any) -> None:
        storage = storages.pop(var, None)
        if storage is not None:
            references[storage] -= 1
            if not references[storage]:
                pool[size_of[storage]] += 1

    for block in func.body.blocks:
        for binding in block.bindings:
            var, value = binding.var, binding.value
            match op_name(value):
                case "relax.memory.alloc_storage":
                    size = value.args[0].values[0]
                    known = int(size) if isinstance(size, tvm.tirx.IntImm) else 0
                    pages = -(-known // PAGE) * PAGE
                    if pool[pages]:
                        pool[pages] -= 1
                    else:
                        held += pages
                    size_of[var], references[var], storages[var] = pages, 1, var
                case (
                    "relax.memory.kill_storage"
                    | "relax.memory.kill_tensor"
                    | "relax.vm.kill_object"
                ):
                    release(value.args[0])
                case "relax.memory.alloc_tensor" | "relax.reshape":  # share the storage
                    source = storages.get(value.args[0])
                    if source is not None:
                        storages[var] = source
                        references[source] += 1
                case _:
                    pass
    return held
