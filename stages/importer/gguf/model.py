"""A GGUF file as transformers' model in float32, by transformers' own names, permutations and
configurations.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import transformers
from transformers import modeling_gguf_pytorch_utils as theirs

from tapml.errors import StageError
from tapml.formats import gguf as headers

from ...pretrained import build, fill, reason
from ..huggingface.model import PLAIN, Loaded
from .reader import reading


def load(path: Path) -> Loaded:
    """The model of a file, each tensor dequantised by itself.

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
    return Loaded(model, frozenset(name for name, one in held.items() if id(one) not in filled))


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
