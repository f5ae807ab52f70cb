"""A recipe to start from, with what is left to fill in as comments."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from ..formats.bounded import short
from .model import Model, Value

_MAX_DIM, _BUCKET, _CONTEXT = 64, 32, 2048
_SYMBOL = re.compile(r"[A-Za-z_]\w*")

_VALIDATION = """\
# Random inputs are used until you give real ones, and no quality is measured until you say how;
# in `validation`:
#   inputs: {python: inputs.py:samples, reads: ["samples/**"]}  # samples() -> {input: array}
#   metric: {python: inputs.py:score}        # score(outputs, reference, inputs) -> float
#   gates: {metric: {min: 0.95}}
"""
_GENERATE_VALIDATION = """\
# Real prompts, and what must hold of what is written; in `validation`:
#   inputs: {python: inputs.py:prompts}
#   metric: {python: inputs.py:score}
"""


def draft(model: Model, place: str | None = None, name: str = "") -> str:
    """The recipe as YAML; empty for what cannot be imported (a bundle, weights alone).

    In: `place`: the model's path as the recipe is to have it; else its name, and that it lies there
        `name`: of the recipe and its runs; else the model's
    """
    if model.kind in ("bundle", "safetensors"):
        return ""
    import yaml

    section: dict[str, Any] = {"source": model.kind, **_place(model, place)}
    comments: list[str] = []
    validation: dict[str, Any] = {}
    if model.cache is not None:
        section |= {"task": "generate", "context": min(model.cache.context or _CONTEXT, _CONTEXT)}
        comments.append("# `context`: tokens that the cache holds, prompt included")
        tail = _GENERATE_VALIDATION
    else:
        section |= _inputs(model)
        if section.get("dims"):
            guessed = [name for name in section["dims"] if model.dims[name].max is None]
            if guessed:
                comments.append(f"# `dims`: how large {', '.join(guessed)} may get is a guess")
            comments.append("# `buckets`: sizes tuned exactly; every other size runs too, slower")
        whole = [one.name for one in model.inputs if one.dtype.startswith(("int", "uint"))]
        if whole:
            validation = {"random": {name: [0, 1] for name in whole}}
            comments.append("# `random`: least and largest whole number that is valid; a guess")
        tail = _VALIDATION
    data = {
        "version": 1,
        "name": _name(name) or _name(_stem(model)) or "model",
        "workflow": "deploy",
        "model": section,
        "target": {"preset": "cpu"},
        "tuning": {"trials": 0},
        **({"validation": validation} if validation else {}),
    }
    text = yaml.safe_dump(data, sort_keys=False, default_flow_style=None, width=100)
    if section.get("dims"):
        text = text.replace("\n  dims:", f"\n{_fixed(section)}\n  dims:", 1)
    notes = [f"# {short(one.op)} ×{one.count} cannot be imported yet" for one in model.unsupported]
    head = [*notes, *comments, "# `tuning.trials: 0` ships the default schedules; raise it to tune"]
    return "\n".join(head) + f"\n{text}{tail}"


def _place(model: Model, place: str | None) -> dict[str, str]:
    """Where the model is; by its commit where it comes from the hub's cache."""
    path = model.path
    if is_in_hub(model):
        name = path.parent.parent.name.removeprefix("models--").replace("--", "/", 1)
        return {"id": name, "revision": path.name}
    return {"path": place or path.name or str(path)}


def is_in_hub(model: Model) -> bool:
    """Whether the model is a commit in the hub's cache."""
    folder = model.path.parent
    return folder.name == "snapshots" and folder.parent.name.startswith("models--")


def _inputs(model: Model) -> dict[str, Any]:
    inputs = {one.name: _spec(one) for one in model.inputs}
    named = {d for one in model.inputs for d in one.shape if isinstance(d, str) and _is_symbol(d)}
    first = {one.shape[0] for one in model.inputs if one.shape}
    dims: dict[str, Any] = {}
    bucket: dict[str, int] = {}
    for name in sorted(named, key=list(model.dims).index):
        low = max(model.dims[name].min or 1, 1)
        dims[name] = {"min": low, "max": max(model.dims[name].max or _MAX_DIM, low)}
        bucket[name] = low if name in first else min(max(_BUCKET, low), dims[name]["max"])
    found: dict[str, Any] = {"inputs": inputs}
    if dims:
        found |= {"dims": dims, "buckets": [bucket]}
    return found


def _fixed(section: dict[str, Any]) -> str:
    """What to write where import loses a size that differs from call to call, as a comment."""
    import yaml

    (sizes,) = section["buckets"]
    inputs = {
        name: {**spec, "shape": [sizes.get(dim, dim) for dim in spec["shape"]]}
        for name, spec in section["inputs"].items()
    }
    line = yaml.safe_dump(
        {"inputs": inputs}, sort_keys=False, default_flow_style=True, width=10**6
    ).strip()
    names = ", ".join(sizes)
    return (
        f"  # where import refuses {names} as a size that differs from call to call:\n"
        f"  # without `dims` and `buckets`, {line[1:-1]}"
    )


def _spec(value: Value) -> dict[str, Any]:
    """Shape and dtype; a dim that is computed from others is left at 1 for the user to fill in."""
    shape = [d if isinstance(d, int) or _is_symbol(d) else 1 for d in value.shape]
    return {"shape": shape, "dtype": value.dtype}


def _is_symbol(text: str) -> bool:
    return _SYMBOL.fullmatch(text) is not None


def _stem(model: Model) -> str:
    if model.path.is_file():
        return Path(model.name).stem
    return Path(model.name.partition("@")[0]).name


def _name(text: str) -> str:
    """As much of a text as may be a recipe's name."""
    return re.sub(r"[^A-Za-z0-9_.-]", "-", text).strip("-_.")
