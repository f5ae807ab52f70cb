"""A look into files that hold weights and a configuration, and no graph."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..formats import gguf, huggingface, safetensors
from ..formats.bounded import Tensor, short
from . import pt2
from .language import classes, context_of, generates, of_gguf, of_transformers
from .model import Bounds, Layer, Model, Value

_NO_GRAPH = "operators and activations: `tapml inspect --trace` (extra `huggingface`)"
_EMBEDDINGS = re.compile(r"embe?d|\bw[tp]e\b|lm_head|^output\.weight$")
_TOKENS = Value("input_ids", ("batch", "n"), "int64")


def of_folder(path: Path, name: str) -> Model:
    """A folder of transformers. Raises: StageError."""
    folder = huggingface.read(path)
    config, tensors = folder.config, tuple(folder.tensors.values())
    cache = of_transformers(config)
    named = classes(config)
    facts = {"model type": short(config["model_type"])}
    if named:
        facts["architecture"] = short(named[0])
    facts["files"] = f"{len(folder.shards)} of safetensors"
    if context := cache.context if cache else context_of(config):
        facts["context"] = f"{context} tokens"
    notes = [_NO_GRAPH]
    if folder.remote_code:
        code = short(", ".join(folder.remote_code))
        notes.append(f"the repository's own Python ({code}) is never run; transformers' is used")
    if generates(config) and cache is None:
        notes.append("no cache of keys and values is known for this kind of model")
    return Model(
        kind="huggingface",
        name=name,
        path=path,
        tensors=tensors,
        facts=facts,
        inputs=(_TOKENS,) if "vocab_size" in config else (),
        dims={"batch": Bounds(1), "n": Bounds(1, context)} if "vocab_size" in config else {},
        cache=cache,
        prunable=tuple(_layers(tensors)),
        notes=tuple(notes),
    )


def of_gguf_file(path: Path, name: str) -> Model:
    """A GGUF file. Raises: StageError."""
    header = gguf.read(path)
    meta, tensors = header.metadata, tuple(header.tensors.values())
    cache = of_gguf(meta)
    facts = {"GGUF": f"version {header.version}"}
    for title, key in (("architecture", "general.architecture"), ("named", "general.name")):
        if value := meta.get(key):
            facts[title] = short(value)
    if tokens := meta.get("tokenizer.ggml.tokens"):
        facts["vocabulary"] = f"{len(tokens) if isinstance(tokens, tuple) else 0} tokens"
    if cache and cache.context:
        facts["context"] = f"{cache.context} tokens"
    as_float = sum(one.count for one in tensors) * 4
    return Model(
        kind="gguf",
        name=name,
        path=path,
        tensors=tensors,
        facts=facts,
        inputs=(_TOKENS,),
        dims={"batch": Bounds(1), "n": Bounds(1, cache.context if cache else None)},
        cache=cache,
        prunable=tuple(_layers(tensors)),
        notes=(
            f"import keeps matrices of {', '.join(gguf.INTEGERS)}, and dequantises the rest; "
            f"all in float32: {as_float / 2**20:.1f} MiB of weights",
            _NO_GRAPH,
        ),
    )


def of_safetensors(path: Path, name: str) -> Model:
    """A file of weights alone. Raises: StageError."""
    header = safetensors.read(path)
    tensors = tuple(header.tensors.values())
    beside = (path.parent / huggingface.CONFIG).is_file()
    note = f"weights alone: name {path.parent}, its folder" if beside else "weights alone: no graph"
    return Model(
        kind="safetensors",
        name=name,
        path=path,
        tensors=tensors,
        facts={short(k): short(v) for k, v in [*header.metadata.items()][:8]},
        prunable=tuple(_layers(tensors)),
        notes=(note,),
    )


def _layers(tensors: Iterable[Tensor]) -> Iterator[Layer]:
    """Matrices that are multiplied with, by their names."""
    for one in tensors:
        is_matrix = len(one.shape) >= 2 and min(one.shape[:2]) > 1
        if is_matrix and one.dtype != "int64" and not _EMBEDDINGS.search(one.name):
            yield Layer("", "", one.name, one.shape)


def with_program(found: Model, program: Mapping[str, Any], sizes: Mapping[str, int]) -> Model:
    """A model of weights with what a traced program of it says: operators, sizes, activations."""
    traced = pt2.program(found.path, found.name, program, found.tensors, sizes)
    return replace(
        found,
        inputs=traced.inputs,
        outputs=traced.outputs,
        dims=traced.dims,
        operators=traced.operators,
        sizes=traced.sizes,
        activations=traced.activations,
        notes=tuple(one for one in found.notes if one != _NO_GRAPH),
    )
