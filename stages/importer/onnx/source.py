"""ONNX files: what is wrong with file or recipe is told before TVM takes its seconds to load."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from ... import onnx_file
from ...program import Bounds
from ..signature import Wanted, match_inputs
from ..source import Imported, refuse
from . import model as onnx_model
from .functions import inline
from .preflight import CONTROL, has_body, unsupported

if TYPE_CHECKING:
    from tapml.stage import Context

    from ..stage import Import


def load(stage: Import, ctx: Context) -> Imported:
    """The model of an ONNX file.

    Raises: RecipeError when inputs or dims do not fit; StageError when the model is not valid,
            holds unsupported operators or values of unknown shape.
    """
    assert stage.file is not None
    path = stage.file.path
    read = onnx_model.read(path)
    model = inline(read.proto, path)
    matched = match_inputs(
        onnx_model.signature_of(model),
        {name: Wanted(spec.shape, spec.dtype) for name, spec in stage.signature.items()},
        dims=stage.dims,
        free={name for name, spec in stage.signature.items() if spec.override},
        hint="with `override: true`, where those are only the sizes of the export",
    )
    signature = {
        name: (tuple(dim for dim in one.shape if dim is not None), one.dtype)
        for name, one in matched.items()
    }
    fixed = {n: one.value for n, one in stage.signature.items() if one.value is not None}

    from . import convert

    early = [node for node in model.graph.node if not has_body(node, onnx_model.opset(model))]
    refuse(path, unsupported(model, {*convert.known(), *CONTROL}, early))
    onnx_model.check(model, path)
    dims = {name: Bounds(bounds.min, bounds.max) for name, bounds in stage.dims.items()}
    source = replace(read, proto=onnx_model.canonical(model, signature, fixed))
    source = convert.without_control(source, dims)
    program, weights = convert.convert(source, dims, stage.buckets, path)
    onnx_file.write(source, ctx.workdir / "source")
    return Imported(program, weights, {"kind": "onnx", "model": "model.onnx"})
