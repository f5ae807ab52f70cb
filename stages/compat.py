"""The one door to TVM: every module of ours that needs it imports `tvm` after this one.

Fixes traps of the apache-tvm 0.27.0.post1 wheel, in one place:
- importing `tvm.s_tir.tensor_intrin` (MetaSchedule does) takes 28 s, because `inspect.getmodule`
walks all of
  `sys.modules` for each frozen frame; frozen files have no module, so they are answered at once (3
  s).
- `tvm_ffi` imports torch where it is installed (2.5 s a worker). tapml hands TVM no torch tensors,
so it is hidden
  for the time of the import, unless torch is already loaded.
- legalizing `full` of an infinity looks for "float" in a type that is no text.
"""

from __future__ import annotations

import inspect
import sys
from types import ModuleType
from typing import Any

_getmodule = inspect.getmodule


def _getmodule_fast(obj: Any, _filename: str | None = None) -> ModuleType | None:
    if _filename is not None and _filename.startswith("<"):
        return None
    return _getmodule(obj, _filename)


def _import_tvm() -> ModuleType:
    inspect.getmodule = _getmodule_fast
    hide_torch = "torch" not in sys.modules
    if hide_torch:
        sys.modules["torch"] = None  # pyright: ignore[reportArgumentType]  # None makes `import torch` raise
    try:
        import tvm
    finally:
        if hide_torch:
            del sys.modules["torch"]
    return tvm


tvm = _import_tvm()


def _full(shape: Any, dtype: Any, fill_value: Any) -> Any:
    return _topi_full(shape, str(dtype), fill_value)


_topi_full, tvm.topi.full = tvm.topi.full, _full


def load_json(text: str) -> Any:
    """The object that this version of TVM wrote. `tvm.ir.load_json` also reads what older ones
    did, which takes ten times as long.
    """
    from tvm_ffi.serialization import from_json_graph_str

    return from_json_graph_str(text)
