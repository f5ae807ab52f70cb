"""What holds a recipe's model: the import reads it, the reference runs it."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from tapml.stage import Frozen

SourceName = Literal["onnx", "torch", "huggingface", "gguf", "relax", "operator"]


class ModelSource(Frozen):
    """The field of the section `model` that says how its other fields are read."""

    source: SourceName = Field(
        description="What holds the model: a file of a framework, a model hub, or Python of yours"
    )
