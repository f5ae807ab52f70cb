"""A row of the zoo as its source would write it, inputs for it, and the source's own answer."""

from __future__ import annotations

import shutil
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
import transformers
from zoo import networks
from zoo.rows import Row

Arrays = dict[str, np.ndarray]
_KEPT = ("A_log", "D", "dt_bias", "time_decay", "time_first", "position_ids", "inv_freq")


def build(row: Row) -> Any:
    """The model with random weights that make every layer count, in evaluation mode."""
    if row.source == "onnx":
        return onnxruntime.InferenceSession(getattr(networks, row.model)().SerializeToString())
    if row.source == "torch":
        return getattr(networks, row.model)()[0]
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


def save(row: Row, folder: Path) -> dict[str, Any]:
    """Writes the model into `folder`; where a recipe there says that it is."""
    if row.source == "onnx":
        onnx.save(getattr(networks, row.model)(), folder / "model.onnx")
        return {"path": "model.onnx"}
    if row.source == "torch":
        shutil.copy(Path(networks.__file__), folder / "networks.py")
        return {"python": f"networks.py:{row.model}"}
    build(row).save_pretrained(folder / "model", safe_serialization=True)
    return {"path": "model", "architecture": row.model, "outputs": [row.output]}


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
    """The source's own output: transformers' eager and without cache."""
    if row.source == "onnx":
        return model.run([row.output], arrays)[0]
    with torch.inference_mode():
        given = {name: torch.from_numpy(array) for name, array in arrays.items()}
        return model(**given)[row.output].numpy()
