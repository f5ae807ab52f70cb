"""The artifacts that flow between the rooms (docs/architecture.md §Artifacts): a program folder,
its io and provenance.

program/
  mod.json          TVM JSON of the IRModule; entry `main`; no float constant with ndim > 0
  io.json           inputs, outputs, params, states, dims, buckets, blocks
  provenance.jsonl  value → source nodes
  groups.json       (from tensorir on) call site → imported values that it covers
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from . import codec
from .quantization import Scheme

# names in an IRModule that several rooms read
TRANSFORM = "main_transform_params"  # the function that packs the weights
IMPORTED = "tapml.imported"  # of the module: the imported dataflow, value → what it reads
REGION = "tapml.region"  # of a function: the region it computes; also what `Composite` says there
QUANTIZED = "tapml.quantized"  # of a region: how its weight is stored (quantization.Scheme)
LOOKUP = "tapml.lookup"  # of a function: it gives rows of a weight stored so (quantization.Scheme)
CLONE = "tapml.clone"  # of a function: the copy of `main` that calls it
# copies of `main` (tensorir): for every size, and of a program with states for one token a call
DYNAMIC, PREFILL, DECODE = "main_dyn", "prefill", "decode"

Dim = int | str  # a size, or an expression over the recipe's dimension names ("batch", "2*batch")


@dataclass(frozen=True)
class TensorSpec:
    """Name, shape (sizes or expressions over the recipe's dims) and dtype of an input, output or
    parameter.
    """

    name: str
    shape: tuple[Dim, ...]
    dtype: str


@dataclass(frozen=True)
class Bounds:
    """Smallest and largest size of a symbolic dimension, both allowed."""

    min: int
    max: int


@dataclass(frozen=True)
class Io:
    """The signature of a program. `main` takes `inputs`, `states`, then `params`, in this order.

    `states` are tensors that the caller owns and a call updates in place (a key-value cache, what a
    recurrent layer holds): what one call leaves in them the next one reads. `context` is how many
    tokens they hold at most; None where they hold no token, but what all of them made.

    `params` carry SOURCE names (keys of weights.safetensors). After tensorir, `main` takes
    `inputs` and `states`, then the outputs of `main_transform_params`, which takes `params`.

    `blocks`: weights (source names) that the source keeps as small integers; the scales, and minima
    if any, are the parameters `scales_name` and `minima_name` of them.
    """

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    params: tuple[TensorSpec, ...]
    states: tuple[TensorSpec, ...] = ()
    dims: dict[str, Bounds] = field(default_factory=dict)
    buckets: tuple[dict[str, int], ...] = ()
    context: int | None = None
    blocks: dict[str, Scheme] = field(default_factory=dict)

    @property
    def arguments(self) -> tuple[TensorSpec, ...]:
        """What `main` takes before its weights."""
        return self.inputs + self.states

    @property
    def steps(self) -> tuple[str, ...]:
        """Dims that say how much a call adds to the states (tokens); no state has one of them."""
        held = {dim for spec in self.states for dim in spec.shape}
        return tuple(dim for dim in self.dims if dim not in held) if self.states else ()


@dataclass(frozen=True)
class Origin:
    """Where an imported value comes from: source node names, operator, the weights that the
    nodes read.
    """

    value: str
    nodes: tuple[str, ...]
    op: str
    weights: tuple[str, ...] = ()


@dataclass(frozen=True)
class Program:
    """An IRModule with its signature and provenance; the artifact that import, relax and
    tensorir write.
    """

    mod: Any
    io: Io
    provenance: tuple[Origin, ...] = ()
    groups: dict[str, Any] | None = None

    def with_mod(self, mod: Any) -> Program:
        return replace(self, mod=mod)

    def call_sites(self) -> dict[str, list[dict[str, Any]]]:
        """Rows of `groups` by clone of main, in the order of the calls; the symbolic clone last."""
        clones = {k: v for k, v in (self.groups or {}).items() if k not in ("folded", "transform")}
        return dict(sorted(clones.items(), key=lambda item: item[0] in (DYNAMIC, PREFILL)))

    def save(self, folder: Path) -> Path:
        folder.mkdir(parents=True, exist_ok=True)
        codec.save_module(folder / "mod.json", self.mod)
        codec.write_json(folder / "io.json", asdict(self.io))
        codec.write_jsonl(
            folder / "provenance.jsonl", (asdict(origin) for origin in self.provenance)
        )
        if self.groups is not None:
            codec.write_json(folder / "groups.json", self.groups)
        return folder


def load(folder: Path) -> Program:
    """The program in a folder, module included (imports TVM)."""
    groups = folder / "groups.json"
    return Program(
        mod=codec.load_module(folder / "mod.json"),
        io=load_io(folder),
        provenance=load_provenance(folder),
        groups=codec.read_json(groups) if groups.exists() else None,
    )


def load_io(folder: Path) -> Io:
    """The signature alone; imports no TVM."""
    return io_from_json(codec.read_json(folder / "io.json"))


def io_from_json(data: dict[str, Any]) -> Io:
    def specs(rows: list[dict[str, Any]]) -> tuple[TensorSpec, ...]:
        return tuple(TensorSpec(row["name"], tuple(row["shape"]), row["dtype"]) for row in rows)

    return Io(
        inputs=specs(data["inputs"]),
        outputs=specs(data["outputs"]),
        params=specs(data["params"]),
        states=specs(data["states"]),
        dims={name: Bounds(**bounds) for name, bounds in data["dims"].items()},
        buckets=tuple(data["buckets"]),
        context=data.get("context"),
        blocks={name: Scheme(**how) for name, how in data.get("blocks", {}).items()},
    )


def scales_name(weight: str) -> str:
    """The parameter that holds the scales of a weight's blocks."""
    return f"{weight}.scales"


def minima_name(weight: str) -> str:
    return f"{weight}.minima"


def source_names(mod: Any, io: Io) -> dict[str, str]:
    """Weight variable of `main` → its source name."""
    params = mod["main"].params[len(io.arguments) :]
    return {var.name: spec.name for var, spec in zip(params, io.params, strict=True)}


def load_provenance(folder: Path) -> tuple[Origin, ...]:
    rows = codec.read_jsonl(folder / "provenance.jsonl")
    return tuple(
        Origin(row["value"], tuple(row["nodes"]), row["op"], tuple(row["weights"])) for row in rows
    )


def concrete_shape(spec: TensorSpec, sizes: dict[str, int]) -> tuple[int, ...]:
    """The shape of `spec` at given sizes of the dims.

    Raises: KeyError when a dim has no size; ValueError when an expression holds more than names,
            integers, + - * // ( ).
    """
    return tuple(dim if isinstance(dim, int) else _evaluate(dim, sizes) for dim in spec.shape)


def _evaluate(expression: str, sizes: dict[str, int]) -> int:
    import ast
    import operator

    binary = {
        ast.Add: operator.add,
        ast.Sub: operator.sub,
        ast.Mult: operator.mul,
        ast.FloorDiv: operator.floordiv,
    }

    def walk(node: ast.expr) -> int:
        match node:
            case ast.Constant(value=int(value)):
                return value
            case ast.Name(id=name):
                return sizes[name]
            case ast.BinOp(left, op, right) if type(op) in binary:
                return binary[type(op)](walk(left), walk(right))
        raise ValueError(f"dimension {expression!r} is no expression over sizes")

    return walk(ast.parse(expression, mode="eval").body)
