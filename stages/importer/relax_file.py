"""Relax modules in files: TVMScript (`.py`) or TVM's JSON, weights in a safetensors file beside it.

TVMScript is Python that is evaluated: it is trusted as the recipe's own. JSON and weights are data.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from tapml.errors import StageError
from tapml.stage import Context

from .. import codec
from ..compat import load_json, tvm
from .finish import outputs_of
from .operator import finished
from .source import Imported
from .stage import Import

rx = tvm.relax


def load(stage: Import, ctx: Context) -> Imported:
    """The module's `main`; parameters named in the weights file are weights, the others inputs.

    Raises: RecipeError when inputs or dims do not fit; StageError when the file is no module with a
            Relax function `main`, or when weights do not fit.
    """
    assert stage.file is not None
    path = Path(stage.file.path)
    mod = read(path)
    folder = ctx.workdir / "source"
    folder.mkdir()
    shutil.copyfile(path, folder / path.name)
    weights = {}
    for name, file in stage.files.items():
        weights = codec.read_weights(Path(file.path))
        shutil.copyfile(file.path, folder / name)
    order = [param.name for param in mod["main"].params]
    count = len(outputs_of(mod["main"]))
    outputs = [f"output_{k}" if count > 1 else "output" for k in range(count)]
    program, used = finished(stage, mod, weights, outputs, str(path))
    return Imported(program, used, {"kind": "relax", "module": path.name, "params": order})


def read(path: Path) -> Any:
    """The module in a file. StageError when it is none, or has no Relax function `main`."""
    try:
        text = path.read_text(encoding="utf-8")
        mod = tvm.script.from_source(text) if path.suffix == ".py" else load_json(text)
    except Exception as error:  # TVM's readers raise anything
        kind = "TVMScript" if path.suffix == ".py" else "TVM JSON"
        told = " ".join(str(error).split())[:300]
        raise StageError(
            message=f"{path} is no readable {kind}: {told}",
            hint="write it with mod.script(), or with tvm.ir.save_json(mod)",
        ) from error
    is_module = isinstance(mod, tvm.IRModule)
    names = [gvar.name_hint for gvar in mod.get_global_vars()] if is_module else []
    if "main" not in names or not isinstance(mod["main"], rx.Function):
        raise StageError(
            message=f"{path} has no Relax function `main`; it has {', '.join(names) or 'none'}"
        )
    return mod
