"""Declaration of `import`: a model file or a user's operator becomes a program and its weights."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from re import fullmatch
from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, PositiveInt, field_validator, model_validator

from tapml.errors import EnvironmentalError, RecipeError, RecipeErrors, StageError, nearest
from tapml.stage import (
    Context,
    File,
    Folder,
    Frozen,
    Inputs,
    Kind,
    Outputs,
    PythonFunction,
    PythonRef,
    Recipe,
    Report,
    Stage,
    Table,
)

from ..model_source import ModelSource, SourceName
from .huggingface.files import READ
from .source import UnknownShapeError, find, no_input

DType = Literal[
    "bool", "float16", "float32", "float64", "int8", "int16", "int32", "int64",
    "uint8", "uint16", "uint32", "uint64",
]  # fmt: skip
SymbolName = Annotated[str, Field(pattern=r"^[A-Za-z_]\w*$")]
_COMMIT = (
    "write the 40 hex digits of the commit to build from, as the model's page lists them (or: "
    "git ls-remote https://huggingface.co/ID HEAD), so that every build is of the same weights"
)
_PLACES = ("path", "python", "id", "revision")


@dataclass(frozen=True)
class _Source:
    """Fields that say where a source's model is (one of the sets), and further fields it takes;
    the distributions that it needs and the extra that brings them.
    """

    places: tuple[frozenset[str], ...]
    options: frozenset[str] = frozenset()
    needs: tuple[str, ...] = ()
    extra: str = ""


def _either(*places: str) -> tuple[frozenset[str], ...]:
    return tuple(frozenset(one.split()) for one in places)


_SOURCES: dict[str, _Source] = {
    "onnx": _Source(_either("path"), needs=("onnx",), extra="onnx"),
    "torch": _Source(
        _either("path", "python"), frozenset({"outputs"}), needs=("torch",), extra="torch"
    ),
    "huggingface": _Source(
        _either("path", "id revision"),
        frozenset({"architecture", "task", "context", "outputs"}),
        needs=("torch", "transformers"),
        extra="huggingface",
    ),
    "gguf": _Source(
        _either("path"),
        frozenset({"task", "context", "blocks"}),
        needs=("torch", "transformers", "gguf"),
        extra="gguf",
    ),
    "relax": _Source(_either("path")),
    "operator": _Source(_either("python")),
}


class InputSpec(Frozen):
    """One input: sizes, and names of dims where the size may differ from call to call."""

    shape: tuple[PositiveInt | SymbolName, ...] = Field(
        description="Size of each axis; a name where it may differ from call to call",
        examples=[["batch", 2048]],
        json_schema_extra={"unit": "elements"},
    )
    dtype: DType = Field(description="NumPy's name of it", examples=["int32"])
    value: int | float | bool | None = Field(
        None,
        description="A constant instead of the input: what depends on it alone is folded, branches "
        "that it decides too (source: onnx)",
        examples=[16000],
        json_schema_extra={"unit": "the input's"},
    )
    override: bool = Field(
        False,
        description="The file's own sizes are those of its export; take these (source: onnx)",
    )

    @model_validator(mode="after")
    def _fixed(self) -> Self:
        if self.value is not None and any(isinstance(dim, str) for dim in self.shape):
            raise ValueError("an input with a value has fixed sizes")
        return self


class DimBounds(Frozen):
    """Smallest and largest size that a dim may take; the library refuses others."""

    min: PositiveInt = Field(
        default=1, description="Smallest size", examples=[1], json_schema_extra={"unit": "elements"}
    )
    max: PositiveInt = Field(
        description="Largest size", examples=[64], json_schema_extra={"unit": "elements"}
    )

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.min > self.max:
            raise ValueError(f"min {self.min} is above max {self.max}")
        return self


class Model(ModelSource):
    """What is compiled, and at which sizes."""

    path: str | None = Field(
        None,
        description="The model file (Relax: its weights in a .safetensors of its name), or the "
        "folder of a Hugging Face model",
        examples=["${package:magika}/models/standard_v3_3/model.onnx"],
    )
    python: str | None = Field(
        None,
        pattern=r"^[^:]+\.py:[A-Za-z_]\w*$",
        description="`file.py:function` that returns an Operator (source: operator), or a torch "
        "module and example inputs (source: torch)",
        examples=["operator_sparse.py:linear"],
    )
    reads: tuple[str, ...] = Field(
        (),
        description="Files (globs) that the function reads, such as weights; they enter the key",
        examples=[["weights.pth"]],
    )
    id: str | None = Field(
        None,
        pattern=r"^[\w.-]+/[\w.-]+$",
        description="Name of the model on the Hugging Face hub",
        examples=["HuggingFaceTB/SmolLM2-135M-Instruct"],
    )
    revision: str | None = Field(
        None,
        description="Commit of the model on the hub, so that every build is of the same weights",
        examples=["12fd25f77366fa6b3b4b768ec3050bf629380bac"],
    )
    architecture: str | None = Field(
        None,
        pattern=r"^[A-Za-z_]\w*$",
        description="Class of transformers to load the weights into; else as config.json says",
        examples=["BertModel"],
    )
    task: Literal["generate"] | None = Field(
        None,
        description="`generate`: a language model that decodes, with states for what it has read",
    )
    context: PositiveInt | None = Field(
        None,
        description="Tokens that the cache holds, prompt included; without a cache, those of one "
        "call at most (task: generate)",
        examples=[2048],
        json_schema_extra={"unit": "tokens"},
    )
    blocks: Literal["keep", "dequantize"] | None = Field(
        None,
        description="Matrices of type Q4_0, Q4_1 and Q8_0 stay integers with their scales (`keep`, "
        "the default but where weights are pruned), or become floats (source: gguf)",
        examples=["dequantize"],
    )
    outputs: tuple[str, ...] = Field(
        (),
        description="Which outputs to keep, by name (source: torch, huggingface); all if left out",
        examples=[["last_hidden_state"]],
    )
    inputs: dict[str, InputSpec] = Field(
        {},
        description="By name; as the file has them if left out",
        examples=[{"bytes": {"shape": ["batch", 2048], "dtype": "int32"}}],
    )
    dims: dict[SymbolName, DimBounds] = Field(
        {}, description="Bounds of each symbolic dim", examples=[{"batch": {"min": 1, "max": 64}}]
    )
    buckets: tuple[dict[str, PositiveInt], ...] = Field(
        (),
        description="Sizes compiled exactly; every other size runs the symbolic program",
        examples=[[{"batch": 1}, {"batch": 16}]],
        json_schema_extra={"unit": "elements"},
    )

    @field_validator("revision")
    @classmethod
    def _is_a_commit(cls, revision: str | None) -> str | None:
        if revision is not None and not fullmatch(r"[0-9a-f]{40}", revision):
            raise ValueError(f"{revision!r} is no commit; {_COMMIT}")
        return revision

    @model_validator(mode="after")
    def _has_its_source(self) -> Self:
        if self.id is not None and self.revision is None:
            raise ValueError(f"`id` needs `revision` beside it; {_COMMIT}")
        named = {one for one in _PLACES if getattr(self, one) is not None}
        if named not in (choices := _SOURCES[self.source].places):
            wanted = " or ".join(" + ".join(f"`{n}`" for n in sorted(one)) for one in choices)
            extra = ", ".join(f"`{one}`" for one in sorted(named)) or "none"
            raise ValueError(f"source: {self.source} needs {wanted}; there: {extra}")
        for name, spec in self.inputs.items():
            if self.source != "onnx" and (spec.value is not None or spec.override):
                raise ValueError(f"inputs.{name}: `value` and `override` are of source: onnx")
        for one in ("architecture", "task", "context", "blocks", "outputs"):
            if getattr(self, one) and one not in _SOURCES[self.source].options:
                raise ValueError(f"source: {self.source} takes no `{one}`")
        if self.reads and self.python is None:
            raise ValueError("`reads` names what `python` reads, and there is no `python`")
        if (self.task == "generate") != (self.context is not None):
            raise ValueError("`task: generate` and `context` (size of the cache) go together")
        return self


class Import(Stage):
    """Program of Relax ops with its weights beside it, and the model that the reference runs.

    Out:    program: bindings named after their source nodes, weights as parameters, shapes known;
            weights.safetensors under source names; source: the model, runnable with other weights;
            files: what lies beside the bundle (a tokenizer).
    Raises: RecipeError for inputs, dims and buckets that do not fit the model; StageError for
            what cannot be imported.
    """

    name: ClassVar[str] = "import"
    version: ClassVar[int] = 3
    sections: ClassVar[Mapping[str, type[Frozen]]] = {"model": Model}
    outputs: ClassVar[Mapping[str, Kind]] = {
        "source": "source",
        "program": "program",
        "weights": "weights",
        "files": "files",
    }
    tools: ClassVar[tuple[str, ...]] = ("apache-tvm",)

    source: SourceName
    file: File | None = None
    files: dict[str, File] = Field(default_factory=dict)  # beside `file`, by the name it has there
    folder: Folder | None = None
    python: PythonFunction | None = None
    id: str | None = None
    revision: str | None = None
    architecture: str | None = None
    task: Literal["generate"] | None = None
    context: int | None = None
    blocks: Literal["keep", "dequantize"] = "dequantize"
    keep: tuple[str, ...] = ()
    signature: dict[str, InputSpec] = Field(default_factory=dict)
    dims: dict[str, DimBounds] = Field(default_factory=dict)
    buckets: tuple[dict[str, int], ...] = ()

    @classmethod
    def from_recipe(cls, recipe: Recipe) -> Self:
        model = recipe.section("model", Model)
        check_dims(model)
        file, folder, python = None, None, None
        files: dict[str, File] = {}
        if model.path is not None and model.source == "huggingface":
            folder = recipe.folder(model.path, names=READ, field="model.path")
        elif model.path is not None:
            file = recipe.file(model.path, field="model.path")
            if model.source == "onnx":
                files = _of_onnx(recipe, model, file)
            elif model.source == "relax":
                files = _weights_of(recipe, model.path, file)
        if model.python is not None:
            python = recipe.python(
                PythonRef(python=model.python, reads=model.reads), field="model.python"
            )
        return cls(
            source=model.source,
            file=file,
            files=files,
            folder=folder,
            python=python,
            id=model.id,
            revision=model.revision,
            architecture=model.architecture,
            task=model.task,
            context=model.context,
            blocks=blocks(model, pruned=recipe.has("sparsity")),
            keep=model.outputs,
            signature=model.inputs,
            dims=model.dims,
            buckets=model.buckets,
        )

    def uses(self) -> tuple[str, ...]:
        return (*self.tools, *_SOURCES[self.source].needs)

    def check(self) -> None:
        kind = _SOURCES[self.source]
        if missing := [name for name in kind.needs if find_spec(name) is None]:
            raise EnvironmentalError(
                message=f"source: {self.source} needs {', '.join(missing)}, not installed here",
                hint=f"pip install 'tapml[{kind.extra}]'",
            )

    def fixed_sizes(self) -> str:
        """What to write in the recipe where a size that differs from call to call is in the way."""
        if not self.dims:
            return "simplify the model first, so that its shapes are written in it"
        import yaml

        sizes = {name: bounds.min for name, bounds in self.dims.items()}
        sizes |= self.buckets[0] if self.buckets else {}
        fixed = {
            name: {**spec.model_dump(mode="json", exclude_defaults=True), "shape": shape}
            for name, spec in self.signature.items()
            for shape in [[sizes.get(str(dim), dim) for dim in spec.shape]]
        }
        line = yaml.safe_dump(
            {"inputs": fixed}, default_flow_style=True, sort_keys=False, width=10**6
        )
        return f"fix the sizes: in `model`, without `dims` and `buckets`, {line.strip()[1:-1]}"

    def run(self, inputs: Inputs, ctx: Context) -> Outputs:
        from collections import Counter
        from dataclasses import asdict

        from .. import codec

        try:
            imported = find(self.source).load(self, ctx)
        except UnknownShapeError as error:
            raise replace(error, hint=self.fixed_sizes()) from error
        program, weights = imported.program, imported.weights
        folders = {name: ctx.workdir / name for name in ("source", "program", "files")}
        program.save(folders["program"])
        io = asdict(program.io)
        del io["params"]  # the source has its own idea of them
        codec.write_json(folders["source"] / "source.json", {**imported.facts, "io": io})
        codec.write_weights(ctx.workdir / "weights.safetensors", weights)
        folders["files"].mkdir()
        for name, path in (imported.files or {}).items():
            shutil.copyfile(path, folders["files"] / name)
        if ctx.views is not None:
            ctx.views.mkdir(parents=True, exist_ok=True)
            (ctx.views / "imported.py").write_text(program.mod.script(), encoding="utf-8")
        mib = sum(weight.nbytes for weight in weights.values()) / 2**20
        nodes = {(node, row.op) for row in program.provenance for node in row.nodes}
        operators = Counter(op for _, op in nodes).most_common()
        report = Report(
            summary=f"{len(nodes)} nodes, {len(weights)} weights, {mib:.1f} MiB",
            metrics={"program/nodes": len(nodes), "size/weights_mib": mib},
            tables=(
                Table("Imported operators", ("operator", "nodes"), tuple(operators)),
                *imported.tables,
            ),
        )
        return Outputs({**folders, "weights": ctx.workdir / "weights.safetensors"}, report)


def blocks(model: Model, *, pruned: bool) -> Literal["keep", "dequantize"]:
    """What becomes of matrices that the source has as integers.

    Raises: RecipeError for integers that are to be pruned: zero need not be one of their values.
    """
    if model.source != "gguf":
        return "dequantize"
    if pruned and model.blocks == "keep":
        raise RecipeError(
            field="model.blocks",
            message="weights that are pruned can not stay the integers of the file",
            hint="leave out `blocks`, or `sparsity`",
        )
    return model.blocks or ("dequantize" if pruned else "keep")


def _of_onnx(recipe: Recipe, model: Model, file: File) -> dict[str, File]:
    """The files that an ONNX file keeps weights in, by the name that it has for them.

    Raises: RecipeError naming tensor and file for one that is not there, or out of bounds; for an
            input that the model does not have. What else is wrong with the model, `run` tells.
    """
    from tapml.formats import onnx_wire
    from tapml.formats.bounded import inside, opened

    assert model.path is not None
    path = Path(file.path)
    try:
        buffer = onnx_wire.mapped(path)
        named = onnx_wire.external_files(path, buffer)
        inputs = onnx_wire.input_names(path, buffer)
    except StageError:
        return {}
    if wrong := [no_input(name, inputs) for name in model.inputs if inputs and name not in inputs]:
        raise (
            wrong[0]
            if len(wrong) == 1
            else RecipeErrors(errors=tuple(wrong), message=f"{len(wrong)} mistakes in model.inputs")
        )
    folder, files = model.path.rpartition("/")[0], dict[str, File]()
    for name, tensor in named.items():
        try:
            with opened(inside(path.parent, name)):
                pass
        except StageError as error:
            message = f"tensor {tensor!r} of the model has its data in {name!r}: {error.message}"
            raise RecipeError(field="model.path", message=message, hint=onnx_wire.ADVICE) from error
        text = f"{folder}/{name}" if folder else name
        files[name] = recipe.file(text, field="model.path")
    return files


def check_dims(model: Model) -> None:
    """Raises RecipeErrors: symbols without bounds, dims without use, buckets out of bounds."""
    errors: list[RecipeError] = []
    used = {dim for spec in model.inputs.values() for dim in spec.shape if isinstance(dim, str)}
    for name, spec in model.inputs.items():
        for axis, dim in enumerate(spec.shape):
            if isinstance(dim, str) and dim not in model.dims:
                errors.append(
                    RecipeError(
                        field=f"model.inputs.{name}.shape.{axis}",
                        message=f"dim {dim!r} has no bounds",
                        hint=f"add model.dims: {{{dim}: {{min: 1, max: …}}}}, or "
                        + nearest(dim, list(model.dims), noun="dims"),
                    )
                )
    for name in model.dims if model.inputs else ():
        if name not in used:
            hint = nearest(name, sorted(used), noun="dims in shapes")
            errors.append(
                RecipeError(field=f"model.dims.{name}", message="no input has this dim", hint=hint)
            )
    for index, bucket in enumerate(model.buckets):
        for name, size in bucket.items():
            field = f"model.buckets.{index}.{name}"
            if (bounds := model.dims.get(name)) is None:
                hint = nearest(name, list(model.dims), noun="dims")
                errors.append(RecipeError(field=field, message=f"{name!r} is no dim", hint=hint))
            elif not bounds.min <= size <= bounds.max:
                message = f"size {size} is outside its bounds {bounds.min}..{bounds.max}"
                errors.append(RecipeError(field=field, message=message))
    if len(errors) == 1:
        raise errors[0]
    if errors:
        raise RecipeErrors(errors=tuple(errors), message=f"{len(errors)} mistakes in model")


def _weights_of(recipe: Recipe, path: str, file: File) -> dict[str, File]:
    """The weights of a Relax module: the .safetensors of its name beside it, if there is one."""
    weights = Path(file.path).with_suffix(".safetensors")
    if not weights.is_file():
        return {}
    beside = str(Path(path).with_suffix(weights.suffix))
    return {weights.name: recipe.file(beside, field="model.path")}
