"""Places to start from: a copy of a shipped recipe with what it needs, or a recipe drafted from a
model file.
"""

from __future__ import annotations

import ast
import importlib
import os
import shutil
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from . import shipped
from .errors import EnvironmentalError, RecipeError, StageError

_MATRIX_OPS = frozenset({"MatMul", "Gemm", "Conv", "ConvTranspose"})
_MAX_DIM = 64
_PATH_KEYS = frozenset({"path", "python", "reads", "inputs"})


# --- a copy of a shipped recipe


def copy_recipe(name: str, folder: Path) -> list[Path]:
    """Copies a shipped recipe and the files it needs into `folder`; the recipe is the first of the
    paths.

    Raises: RecipeError when none has this name, or a file is there already; EnvironmentalError when
            it cannot be written.
    """
    source = shipped.recipe(name)
    files = [source, *needed_files(source)]
    targets = [folder / path.relative_to(source.parent) for path in files]
    if there := [str(path) for path in targets if path.exists()]:
        raise RecipeError(message=f"already there: {', '.join(there)}", hint="name another folder")
    try:
        for path, target in zip(files, targets, strict=True):
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target)
    except OSError as error:
        hint = "name a folder that can be written"
        raise EnvironmentalError(
            message=f"cannot write {folder}: {error.strerror}", hint=hint
        ) from error
    return targets


def needed_files(recipe: Path) -> list[Path]:
    """Files beside a recipe that it names (Python, what that reads, models), modules that the
    Python imports, and the schema for editors.
    """
    import yaml

    folder = recipe.parent
    found: dict[Path, None] = {}
    for text in _paths(yaml.safe_load(recipe.read_text(encoding="utf-8"))):
        name = text.rpartition(":")[0] if ".py:" in text else text
        if name and not os.path.isabs(name) and "${" not in name:
            found |= dict.fromkeys(path for path in sorted(folder.glob(name)) if path.is_file())
    todo = list(found)
    while todo:
        for path in _local_modules(todo.pop()):
            if path not in found:
                found[path] = None
                todo.append(path)
    if (schema := folder / "recipe.schema.json").is_file():
        found[schema] = None
    return list(found)


def _paths(value: Any, key: str = "") -> Iterator[str]:
    """The strings of a recipe that stand where paths do."""
    match value:
        case str() if key in _PATH_KEYS:
            yield value
        case dict():
            for name, one in cast("dict[str, Any]", value).items():
                yield from _paths(one, name)
        case list():
            for one in cast("list[Any]", value):
                yield from _paths(one, key)
        case _:
            pass


def _local_modules(path: Path) -> Iterator[Path]:
    """Modules beside a Python file that it imports."""
    if path.suffix != ".py":
        return
    for node in ast.walk(ast.parse(path.read_bytes())):
        match node:
            case ast.Import(names=aliases):
                names = [alias.name for alias in aliases]
            case ast.ImportFrom(module=str(module)):
                names = [module]
            case _:
                continue
        for name in names:
            beside = path.with_name(f"{name.partition('.')[0]}.py")
            if beside.is_file():
                yield beside


# --- a look into a model file


@dataclass(frozen=True)
class Tensor:
    """An input or output; a dim is a size or a name."""

    name: str
    shape: tuple[int | str, ...]
    dtype: str


@dataclass(frozen=True)
class Layer:
    """A node whose weight can be pruned. `layers` patterns match its name or its weight's."""

    node: str
    op: str
    weight: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Model:
    """What an ONNX file holds."""

    path: Path
    opset: int
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    parameters: int
    mib: float
    operators: dict[str, int]
    prunable: tuple[Layer, ...]


def inspect(path: Path) -> Model:
    """The contents of an ONNX file; reads it with the `onnx` package alone.

    Raises: RecipeError when there is no such file; StageError when it is no ONNX;
            EnvironmentalError without `onnx`.
    """
    if not path.is_file():
        raise RecipeError(message=f"no file {path}")
    try:
        onnx: Any = importlib.import_module("onnx")
    except ImportError as error:
        hint = "pip install 'tapml[onnx]'"
        raise EnvironmentalError(message="package 'onnx' is not installed", hint=hint) from error
    decode_error: Any = importlib.import_module("google.protobuf.message").DecodeError
    try:
        model = onnx.load(str(path), load_external_data=False)  # shapes are enough
    except decode_error as error:
        raise StageError(
            message=f"{path} is no ONNX model, or is cut off", hint=str(error)
        ) from error
    graph = model.graph
    if not graph.node:
        raise StageError(message=f"{path} is no ONNX model: it has no nodes")
    weights = dict(_weights(graph))
    return Model(
        path=path,
        opset=max(
            (o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), default=0
        ),
        inputs=tuple(_tensor(onnx, value) for value in graph.input if value.name not in weights),
        outputs=tuple(_tensor(onnx, value) for value in graph.output),
        parameters=sum(_count(shape) for shape in weights.values()),
        mib=path.stat().st_size / 2**20,
        operators=dict(Counter(node.op_type for node in graph.node).most_common()),
        prunable=tuple(_layers(graph, weights)),
    )


def draft(model: Model) -> str:
    """A recipe to start from, as YAML."""
    import yaml

    dims = {
        d: {"min": 1, "max": _MAX_DIM} for t in model.inputs for d in t.shape if isinstance(d, str)
    }
    section: dict[str, Any] = {
        "source": "onnx",
        "path": model.path.name,
        "inputs": {t.name: {"shape": list(t.shape), "dtype": t.dtype} for t in model.inputs},
    }
    if dims:
        section |= {"dims": dims, "buckets": [dict.fromkeys(dims, 1)]}
    data = {
        "version": 1,
        "name": "".join(c if c.isalnum() or c in "-_." else "-" for c in model.path.stem).lstrip(
            "-_."
        ),
        "workflow": "deploy",
        "model": section,
        "target": {"preset": "cpu"},
        "tuning": {"trials": 0},
    }
    text = yaml.safe_dump(data, sort_keys=False, default_flow_style=None, width=100)
    return f"# save this beside {model.path.name}\n{text}"


def _weights(graph: Any) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Name → shape of initializers, and of Constant nodes (where Paddle keeps weights)."""
    for one in graph.initializer:
        yield one.name, tuple(one.dims)
    for node in graph.node:
        if node.op_type == "Constant":
            for attribute in node.attribute:
                if attribute.name == "value":
                    yield node.output[0], tuple(attribute.t.dims)


def _layers(graph: Any, weights: dict[str, tuple[int, ...]]) -> Iterator[Layer]:
    for node in graph.node:
        if node.op_type in _MATRIX_OPS:
            named = [name for name in node.input if len(weights.get(name, ())) >= 2]
            yield from (Layer(node.name, node.op_type, name, weights[name]) for name in named)


def _tensor(onnx: Any, value: Any) -> Tensor:
    kind = value.type.tensor_type
    shape = tuple(
        dim.dim_value if dim.dim_value > 0 else _symbol(dim.dim_param, value.name, index)
        for index, dim in enumerate(kind.shape.dim)
    )
    return Tensor(value.name, shape, str(onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type)))


def _symbol(name: str, tensor: str, index: int) -> str:
    """A name for a dim: the file's own, unless an exporter made it up (`unk__214`, `?`)."""
    if name.startswith("unk") or not any(c.isalnum() for c in name):
        name = "batch" if index == 0 else f"{tensor}_{index}"
    text = "".join(c if c.isalnum() else "_" for c in name).strip("_")
    return text if text[:1].isalpha() else f"n_{text}"


def _count(shape: tuple[int, ...]) -> int:
    total = 1
    for size in shape:
        total *= size
    return total
