"""Local functions of a model, inlined; what they would become is bounded first."""

from __future__ import annotations

from pathlib import Path

import onnx
import onnx.inliner
from onnx import ModelProto

from tapml.errors import StageError
from tapml.formats.functions import demand_bounded


def inline(model: ModelProto, path: str) -> ModelProto:
    """The model without local functions. StageError where these cannot be inlined."""
    if not model.functions:
        return model
    demand_bounded(Path(path), model)
    try:
        return onnx.inliner.inline_local_functions(model, convert_version=True)
    except (onnx.checker.ValidationError, RuntimeError, ValueError) as error:
        raise StageError(
            message=f"{path}: its local functions cannot be inlined: {error}",
            hint="write them and the model for one version of the operator set",
        ) from error
