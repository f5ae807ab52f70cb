"""The program of a model of transformers without its weights, for `tapml inspect --trace`.

It is traced on torch's meta device, where a tensor has a shape and no memory.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from tapml.errors import StageError

from ..pretrained import without_cache

_DIMS = ("batch", "n")
_EXAMPLE = (2, 16)


def of_folder(path: Path) -> str:
    """JSON of the exported program (torch's schema) of a folder with a config.json.

    Raises: StageError when transformers does not have the model, or torch cannot export it.
    """
    return _trace(path, {})


def of_gguf(path: Path) -> str:
    """JSON of the exported program of a GGUF file. Raises: StageError."""
    return _trace(path.parent, {"gguf_file": path.name})


def _trace(folder: Path, options: dict[str, str]) -> str:
    import torch
    import transformers

    try:
        config = transformers.AutoConfig.from_pretrained(
            folder, trust_remote_code=False, local_files_only=True, **options
        )
        named = config.architectures or []
        cls = getattr(transformers, named[0], None) if named else transformers.AutoModelForCausalLM
        if cls is None:
            raise ValueError(f"transformers has no {named[0]}")
        make = getattr(cls, "_from_config", None) or cls.from_config
        with torch.device("meta"):
            model = make(config, attn_implementation="eager", dtype=torch.float32).eval()
        without_cache(model)
        exported = _export(torch, model)
    except Exception as error:  # the model's own code, on a configuration out of a file
        reason = f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
        raise StageError(message=f"{folder} cannot be traced: {reason}") from error
    return _to_json(exported)


def _export(torch: Any, model: Any) -> Any:
    """The program of the model for token ids of any batch and length."""
    longest = getattr(model.config, "max_position_embeddings", None) or 4096
    ids = torch.zeros(_EXAMPLE, dtype=torch.int64, device="meta")
    dims = {
        0: torch.export.Dim("batch", min=1, max=64),
        1: torch.export.Dim("n", min=2, max=longest),
    }
    return torch.export.export(
        model,
        (),
        {model.main_input_name: ids},
        dynamic_shapes={model.main_input_name: dims},
        strict=False,
    )


def _to_json(exported: Any) -> str:
    """The program as JSON, its dims called what the model's inputs call them."""
    from torch._export.serde import serialize

    program = serialize.ExportedProgramSerializer().serialize(exported).exported_program
    text = json.dumps(serialize._dataclass_to_dict(program), cls=serialize.EnumEncoder)
    (ids,) = (
        node.meta["val"]
        for node in exported.graph.find_nodes(op="placeholder")
        if node.name in exported.graph_signature.user_inputs
    )
    for size, name in zip(ids.shape, _DIMS, strict=True):
        text = re.sub(rf"\b{size}\b", name, text)
    return text
