"""What in a folder of a Hugging Face model is refused before any of it is loaded."""

from __future__ import annotations

from fnmatch import fnmatchcase
from pathlib import Path

from tapml.errors import StageError
from tapml.formats import huggingface
from tapml.formats.bounded import mapping, shown

from .files import CONFIG, TOKENIZER


def check(folder: Path, architecture: str | None) -> None:
    """Raises StageError where the folder is no model whose weights can be read without running
    anything that lies in it, or whose weights are no floats.
    """
    found = huggingface.read(folder)
    if found.remote_code and architecture is None:
        names = ", ".join(found.remote_code)
        raise StageError(
            message=f"{folder / CONFIG} asks to run Python of the model's own ({names}), "
            "which is never run",
            hint="if transformers has this model itself, name its class: model.architecture",
        )
    where = "quantization_config"
    how = mapping(folder / CONFIG, found.config.get(where) or {}, where=where)
    if method := how.get("quant_method"):
        raise StageError(
            message=f"{folder}: weights quantised by {shown(method)} are not imported",
            hint="take the float weights that they were made of; `relax.quantize` quantises them",
        )
    _demand_depth(found)


def _demand_depth(found: huggingface.Folder) -> None:
    """Raises StageError for more layers than the files hold tensors: to build them would take
    minutes, and they would be found missing then.
    """
    held = len(found.tensors)
    for name, value in found.config.items():
        deep = name.endswith("layers") or name in ("n_layer", "depth")
        deep = deep and not name.startswith("max_")  # Qwen2's bounds which layers have a window
        if deep and isinstance(value, int) and value > held:
            raise StageError(
                message=f"{found.path / CONFIG} has {name} {value}; the weights are {held} tensors",
                hint="the configuration of another model?",
            )


def tokenizer(folder: Path) -> dict[str, Path]:
    """The files that turn text into the model's input and back, by name."""
    files = (path for path in sorted(folder.iterdir()) if path.is_file())
    return {path.name: path for path in files if any(fnmatchcase(path.name, t) for t in TOKENIZER)}
