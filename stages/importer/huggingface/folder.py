"""What a folder of a Hugging Face model holds, and what in it is refused before it is opened."""

from __future__ import annotations

import json
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from tapml.errors import StageError

from .files import CONFIG, INDEX, SHARDS, TOKENIZER, WEIGHTS

_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
_MAX_JSON = 64 << 20


def check(folder: Path, architecture: str | None) -> None:
    """Raises StageError where the folder is no model whose weights can be read without running
    anything that lies in it.
    """
    if not (folder / CONFIG).is_file():
        raise StageError(
            message=f"{folder} has no {CONFIG}",
            hint="model.path is a folder as transformers' save_pretrained writes it",
        )
    config = _read(folder / CONFIG)
    if code := config.get("auto_map"):
        names = ", ".join(sorted(map(str, code))) if isinstance(code, dict) else "auto_map"
        if architecture is None:
            raise StageError(
                message=f"{folder / CONFIG} asks to run Python of the model's own ({names}), "
                "which is never run",
                hint="if transformers has this model itself, name its class: model.architecture",
            )
    if method := (config.get("quantization_config") or {}).get("quant_method", ""):
        raise StageError(
            message=f"{folder}: weights quantised by {method!r} are not imported",
            hint="take the float weights that they were made of; `relax.quantize` quantises them",
        )
    if missing := missing_weights(folder):
        pickles = [p.name for p in sorted(folder.iterdir()) if _fits(p.name, _PICKLES)]
        if pickles and missing == [WEIGHTS]:
            raise StageError(
                message=f"{folder} has its weights as pickles ({', '.join(pickles[:3])}); "
                "one may run anything when it is loaded, so none is",
                hint="where you trust them: Model.from_pretrained(…).save_pretrained(folder) of "
                "transformers writes safetensors",
            )
        raise StageError(
            message=f"{folder} lacks {', '.join(missing[:4])}",
            hint="copy or download the folder again",
        )


def missing_weights(folder: Path) -> list[str]:
    """The files of weights that should be in a folder, and are not."""
    if (folder / WEIGHTS).is_file():
        return []
    if not (folder / INDEX).is_file():
        return [WEIGHTS]
    shards = _read(folder / INDEX).get("weight_map")
    if not isinstance(shards, dict) or not all(isinstance(one, str) for one in shards.values()):
        raise StageError(message=f"{folder / INDEX} has no weight_map of names and files")
    names = sorted(set(shards.values()))
    if outside := [name for name in names if Path(name).name != name]:
        raise StageError(message=f"{folder / INDEX} points out of its folder: {outside[0]!r}")
    if strange := [name for name in names if not fnmatchcase(name, SHARDS)]:
        raise StageError(  # it is in no key, and not downloaded
            message=f"{folder / INDEX} names weights that are no {SHARDS}: {strange[0]!r}",
            hint="rename the files, in the index too: model-00001-of-00002.safetensors …",
        )
    return [name for name in names if not (folder / name).is_file()]


def tokenizer(folder: Path) -> dict[str, Path]:
    """The files that turn text into the model's input and back, by name."""
    return {p.name: p for p in sorted(folder.iterdir()) if p.is_file() and _fits(p.name, TOKENIZER)}


def _fits(name: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatchcase(name, one) for one in patterns)


def _read(path: Path) -> dict[str, Any]:
    if path.stat().st_size > _MAX_JSON:
        raise StageError(message=f"{path} has more than {_MAX_JSON} bytes")
    try:
        value = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise StageError(message=f"{path} is no JSON: {error}") from error
    if not isinstance(value, dict):
        raise StageError(message=f"{path} holds a {type(value).__name__}, not an object")
    return value
