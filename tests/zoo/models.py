"""A row of the zoo as a folder that Hugging Face would write, inputs for it, and transformers' own
answer.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from zoo.rows import Row

Arrays = dict[str, np.ndarray]
_KEPT = ("A_log", "D", "dt_bias", "time_decay", "time_first", "position_ids", "inv_freq")


def build(row: Row) -> Any:
    """The model with random weights that make every layer count, in evaluation mode."""
    cls = getattr(transformers, row.model)
    torch.manual_seed(zlib.crc32(row.name.encode()))
    model = cls(cls.config_class(**row.config, **row.sub_configs)).eval()
    randomize(model)
    return model


def randomize(model: Any) -> None:
    """Weights of unit gain, scales near 1 and statistics that are no identity: the small weights
    of an untrained model make attention uniform and outputs vanish, and then no error shows.
    """
    parameters, saved = dict(model.named_parameters()), model.state_dict().keys()
    for name, value in [*parameters.items(), *model.named_buffers()]:
        last = name.rpartition(".")[2]
        if last in _KEPT or name not in saved or not value.is_floating_point():
            continue
        with torch.no_grad():
            if last == "running_var":
                value.uniform_(0.5, 1.5)
            elif last == "running_mean":
                value.normal_(std=0.1)
            elif value.ndim >= 2:
                value.normal_(std=float(value[0].numel()) ** -0.5)
            elif name in parameters:
                value.add_(torch.randn_like(value), alpha=0.1)


def save(row: Row, folder: Path) -> Path:
    """config.json and model.safetensors."""
    build(row).save_pretrained(folder, safe_serialization=True)
    return folder


def inputs(row: Row, sizes: Mapping[str, int], seed: int) -> Arrays:
    rng = np.random.default_rng([zlib.crc32(row.name.encode()), seed])
    arrays: Arrays = {}
    for name, tensor in row.inputs.items():
        shape = [sizes[dim] if isinstance(dim, str) else dim for dim in tensor.shape]
        if tensor.below is None:
            arrays[name] = rng.standard_normal(shape, dtype=np.float32)
        elif tensor.below == 0:
            arrays[name] = np.ones(shape, np.int64)
        else:
            arrays[name] = rng.integers(3, tensor.below, shape)
        arrays[name][..., : len(tensor.first)] = tensor.first
    return arrays


def answer(row: Row, model: Any, arrays: Arrays) -> np.ndarray:
    """transformers' own output, eager, without cache."""
    with torch.inference_mode():
        given = {name: torch.from_numpy(array) for name, array in arrays.items()}
        return model(**given)[row.output].numpy()
