"""A GGUF file as transformers' model in float32, by transformers' own names, permutations and
configurations.
"""

from __future__ import annotations

from collections.abc import Container, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import transformers
from transformers import modeling_gguf_pytorch_utils as theirs

from tapml.errors import StageError
from tapml.formats import gguf as headers

from ...pretrained import build, fill, reason
from ..huggingface.model import PLAIN, Loaded
from .blocks import KEPT, Blocks, blocks_of
from .reader import reading


@dataclass(frozen=True)
class Read(Loaded):
    """`blocks`: of the parameters that can stay integers, by every name that they have."""

    blocks: Mapping[str, Blocks]


def load(path: Path, *, keep: bool = False) -> Read:
    """The model of a file, each tensor dequantised by itself; `keep`: with the blocks of those that
    can stay integers.

    Raises: StageError for a damaged file, an architecture or a type of block that is not known, and
            for tensors or scalings of positions that would be left out.
    """
    header = headers.read(path)
    _refuse_scaling(header)
    try:
        with reading(header):
            values = theirs.load_gguf_checkpoint(str(path))["config"]
            model_type = values.pop("model_type")
            config = transformers.AutoConfig.for_model(model_type, **values)
            cls: Any = transformers.AutoModelForCausalLM._model_mapping[type(config)]
            model = build(cls, config, **PLAIN)
            _refuse_unknown(header, model, values)
            given = theirs.load_gguf_checkpoint(str(path), return_tensors=True, model_to_load=model)
        blocks = _blocks(header, model, given["tensors"]) if keep else {}
    except StageError:
        raise
    except Exception as error:  # transformers and gguf have no errors of their own
        raise StageError(message=f"{path}: {reason(error)}") from error
    tensors = {name: one.float() for name, one in given["tensors"].items()}
    held = dict(model.named_parameters(remove_duplicate=False))
    _demand_shapes(path, tensors, held)
    fill(model, tensors)
    filled = {id(held[name]) for name in tensors.keys() & held.keys()}
    model.config.architectures = [cls.__name__]
    missing = frozenset(name for name, one in held.items() if id(one) not in filled)
    same = {id(held[name]): one for name, one in blocks.items()}
    aliases = {name: same[id(one)] for name, one in held.items() if id(one) in same}
    return Read(model, missing, aliases)


def _blocks(header: headers.Header, model: Any, tensors: dict[str, Any]) -> dict[str, Blocks]:
    """Blocks by the name of the parameter. transformers, which has put the elements in order, does
    the same with the numbers of their blocks.
    """

    def numbers(place: int, kinds: Container[str]) -> dict[str, Any]:
        try:
            with reading(header, place, kinds):
                read = theirs.load_gguf_checkpoint(
                    str(header.path), return_tensors=True, model_to_load=model
                )
        except Exception:  # an order that takes whole rows: nothing is kept then
            return {}
        return {name: one.numpy() for name, one in read["tensors"].items()}

    found: dict[str, Blocks] = {}
    for kind, how in KEPT.items():
        scales = numbers(0, (kind,))
        minima = numbers(1, (kind,)) if how.minima else {}
        for name in scales.keys() & tensors.keys():
            one = blocks_of(tensors[name].numpy(), kind, scales[name], minima.get(name))
            if one is not None:
                found[name] = one
    return found


def write_tokenizer(path: Path, folder: Path) -> None:
    """tokenizer.json and its settings, of the vocabulary in the file, if it has one.

    Raises: StageError for a kind of vocabulary that is not known.
    """
    from transformers.integrations.gguf.gguf_tokenizer_mapping import (
        convert_gguf_tokenizer,
        get_gguf_tokenizer,
    )

    folder.mkdir()
    if "tokenizer.ggml.model" not in headers.read(path).metadata:
        return
    try:
        architecture, vocabulary, settings = get_gguf_tokenizer(str(path))
        backend, more = convert_gguf_tokenizer(architecture, vocabulary)
        tokenizer = transformers.PreTrainedTokenizerFast(
            tokenizer_object=backend, **settings, **more
        )
        tokenizer.save_pretrained(folder)
    except Exception as error:  # as above
        raise StageError(message=f"{path}: its tokenizer: {reason(error)}") from error


def _refuse_scaling(header: headers.Header) -> None:
    """Raises StageError for positions that transformers would not scale as the file says."""
    named = header.metadata.get("general.architecture")
    kind = header.metadata.get(f"{named}.rope.scaling.type", "none")
    if kind != "none" and named != "gpt-oss":
        raise StageError(
            message=f"{header.path}: rope scaling {kind!r} is not read from GGUF files",
            hint="take the model's folder of config.json and safetensors: source: huggingface",
        )


def _refuse_unknown(header: headers.Header, model: Any, values: dict[str, Any]) -> None:
    """Raises StageError that lists tensors which have no place in the model."""
    architecture = str(header.metadata["general.architecture"])
    processor = theirs.TENSOR_PROCESSORS.get(architecture, theirs.TensorProcessor)(config=values)
    known = theirs.get_gguf_hf_weights_map(model, processor)
    kept = {"output.weight"} if architecture == "gpt2" else set()
    unknown = [name for name in header.tensors if name not in known and name not in kept]
    if unknown:
        raise StageError(
            message=f"{header.path}: {len(unknown)} tensors have no place in "
            f"{type(model).__name__}: {', '.join(unknown[:6])}",
            hint="take the model's folder of config.json and safetensors: source: huggingface",
        )


def _demand_shapes(path: Path, tensors: dict[str, Any], held: dict[str, Any]) -> None:
    for name in tensors.keys() & held.keys():
        if tensors[name].shape != held[name].shape:
            raise StageError(
                message=f"{path}: {name} is {list(tensors[name].shape)}, "
                f"its configuration says {list(held[name].shape)}"
            )
