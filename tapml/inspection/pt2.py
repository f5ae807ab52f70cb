"""A look into a `.pt2` of torch.export, without torch: its graph is JSON."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from math import prod
from pathlib import Path
from typing import Any

from ..formats import bounded, expression, pt2
from ..formats.bounded import Tensor, listing, mapping, short, shown, text, whole
from . import macs
from .model import Bounds, Dim, Layer, Model, Operation, Value, peak, tally
from .supported import supported

_MATRIX = ("linear", "conv1d", "conv2d", "conv3d", "convolution", "mm", "addmm", "matmul")
_VIEWS = frozenset(
    [
        "view",
        "reshape",
        "flatten",
        "squeeze",
        "unsqueeze",
        "unflatten",
        "alias",
        "detach",
        "dropout",
    ]
)
_DEFAULT = 128  # largest size counted at where the user gives none

Shapes = Mapping[str, tuple[int, ...]]


def look(path: Path, name: str, sizes: Mapping[str, int]) -> Model:
    """What the archive holds, sizes counted at `sizes`. Raises: StageError."""
    archive = pt2.read(path)
    return program(path, name, archive.program, tuple(archive.tensors.values()), sizes)


def program(
    path: Path,
    name: str,
    exported: Mapping[str, Any],
    tensors: tuple[Tensor, ...],
    sizes: Mapping[str, int],
) -> Model:
    """What an exported program holds. Raises: StageError where it is not as torch writes it."""
    return _Program(path, exported).model(name, tensors, sizes)


class _Program:
    """Reads the JSON of torch's schema.ExportedProgram, distrusting all of it."""

    def __init__(self, path: Path, exported: Mapping[str, Any]) -> None:
        self.path, self.exported = path, exported
        module = self.fields(exported, "graph_module")
        self.graph = self.fields(module, "graph")
        self.signature = self.fields(module, "signature")
        self.values = self.fields(self.graph, "tensor_values")
        self.nodes = [self.fields(one) for one in self.rows(self.graph, "nodes")]

    def model(self, name: str, tensors: tuple[Tensor, ...], sizes: Mapping[str, int]) -> Model:
        weights = dict(self.weight_inputs())
        inputs = tuple(self.value(one) for one in self.user_inputs())
        outputs = tuple(self.value(one) for one in self.user_outputs())
        known = self.bounds()
        named = [dim for one in inputs for dim in one.shape if isinstance(dim, str)]
        dims = {dim: known.get(dim, Bounds()) for dim in named}
        first = {one.shape[0] for one in inputs if one.shape}
        chosen = {
            dim: sizes.get(dim, self.default(bounds, is_first=dim in first))
            for dim, bounds in dims.items()
        }
        shapes, nbytes = self.sizes(chosen)
        operations = [one for node in self.nodes for one in self.operation(node, shapes)]
        held = {key: size for key, size in nbytes.items() if key not in weights}
        below = [one for node in self.nodes for one in self.bodies(node)]
        version = self.exported.get("torch_version")
        notes = [f"writes to {short(one)}" for one in self.mutations()]
        return Model(
            kind="torch",
            name=name,
            path=self.path,
            tensors=tensors,
            facts={"torch": short(version)} if version else {},
            inputs=inputs,
            outputs=outputs,
            dims=dims,
            operators=tally([*operations, *below], supported("torch")),
            sizes=chosen,
            activations=peak(operations, held, [one.name for one in outputs]),
            prunable=tuple(self.layers(weights, {one.name: one for one in tensors})),
            notes=tuple(notes),
        )

    # --- JSON

    def fields(self, value: Any, name: str = "") -> dict[str, Any]:
        value = value.get(name) if name else value
        return mapping(self.path, value, where=f"the program's {name or 'graph'}")

    def rows(self, value: Mapping[str, Any], name: str) -> list[Any]:
        return listing(self.path, value.get(name, []), where=f"the program's {name}")

    def name(self, value: Any) -> str:
        """The name of a tensor argument."""
        return text(self.path, self.fields(value).get("name"), where="a tensor's name")

    # --- what goes in and out

    def weight_inputs(self) -> Iterator[tuple[str, str]]:
        """Names in the graph, and in the state dict, of parameters, buffers and constants."""
        for spec in self.rows(self.signature, "input_specs"):
            for kind in ("parameter", "buffer", "tensor_constant"):
                if one := self.fields(spec).get(kind):
                    target = self.fields(one).get(f"{kind}_name")
                    yield (
                        self.name(one.get("arg")),
                        text(self.path, target, where="a weight's name"),
                    )

    def user_inputs(self) -> Iterator[str]:
        for spec in self.rows(self.signature, "input_specs"):
            one = self.fields(spec).get("user_input")
            if one and (tensor := self.fields(one, "arg").get("as_tensor")):
                yield self.name(tensor)

    def user_outputs(self) -> Iterator[str]:
        for spec in self.rows(self.signature, "output_specs"):
            one = self.fields(spec).get("user_output")
            if one and (tensor := self.fields(one, "arg").get("as_tensor")):
                yield self.name(tensor)

    def mutations(self) -> Iterator[str]:
        for spec in self.rows(self.signature, "output_specs"):
            for kind, field in (
                ("buffer_mutation", "buffer_name"),
                ("parameter_mutation", "parameter_name"),
                ("user_input_mutation", "user_input_name"),
            ):
                if one := self.fields(spec).get(kind):
                    yield str(self.fields(one).get(field))

    def value(self, name: str) -> Value:
        meta = self.fields(self.values.get(name))
        dtype, _ = pt2.dtype_of(self.path, meta, f"value {shown(name)}")
        return Value(name, tuple(self.dim(one) for one in self.rows(meta, "sizes")), dtype)

    def dim(self, size: Any) -> Dim:
        found = self.size(size)
        if isinstance(found, int):
            return found
        return expression.symbol(found) or expression.plain(found)

    def size(self, size: Any) -> int | str:
        """A size, or the text of one that depends on others."""
        fields = self.fields(size)
        if (found := fields.get("as_int")) is not None:
            return whole(self.path, found, where="a size")
        expr = mapping(self.path, fields.get("as_expr"), where="a size")
        return text(self.path, expr.get("expr_str"), where="a size")

    def bounds(self) -> dict[str, Bounds]:
        found: dict[str, Bounds] = {}
        for name, one in self.fields(self.exported, "range_constraints").items():
            low, high = (self.fields(one).get(key) for key in ("min_val", "max_val"))
            found[name] = Bounds(*(v if type(v) is int else None for v in (low, high)))
        return found

    @staticmethod
    def default(bounds: Bounds, *, is_first: bool) -> int:
        """The size that is counted at: the smallest batch, a usual length."""
        low = max(bounds.min or 1, 1)
        return low if is_first else max(low, min(_DEFAULT, bounds.max or _DEFAULT))

    def sizes(
        self, chosen: Mapping[str, int]
    ) -> tuple[dict[str, tuple[int, ...]], dict[str, int | None]]:
        """Shapes of values where known, and bytes of all."""
        shapes: dict[str, tuple[int, ...]] = {}
        nbytes: dict[str, int | None] = {}
        for name, meta in self.values.items():
            where = f"value {shown(name)}"
            meta = mapping(self.path, meta, where=where)
            _, itemsize = pt2.dtype_of(self.path, meta, where)
            shape = [
                one if isinstance(one, int) else expression.size(one, chosen)
                for one in map(self.size, self.rows(meta, "sizes"))
            ]
            nbytes[name] = None
            if None not in shape:
                found = [max(one or 0, 0) for one in shape]
                shapes[name] = bounded.sizes(self.path, found, where=where)
                nbytes[name] = prod(shapes[name]) * itemsize
        return shapes, nbytes

    # --- nodes

    def operation(self, node: Mapping[str, Any], shapes: Shapes) -> Iterator[Operation]:
        target = text(self.path, node.get("target"), where="a node's target")
        operator = target.removeprefix("torch.ops.").removeprefix("aten.")
        stem = operator.partition(".")[0]
        arguments = [self.fields(one) for one in self.rows(node, "inputs")]
        inputs = [name for one in arguments for name in self.tensors(one.get("arg"))]
        outputs = [name for one in self.rows(node, "outputs") for name in self.tensors(one)]
        count = macs.known(lambda: self.macs(stem, arguments, inputs, outputs, shapes))
        if not outputs and not inputs:
            return
        name = str(node.get("name") or (outputs[0] if outputs else operator))
        yield Operation(operator, name, tuple(inputs), tuple(outputs), count, stem in _VIEWS)

    def tensors(self, argument: Any) -> Iterator[str]:
        """Names of the tensors of an argument."""
        match argument:
            case {"as_tensor": one} | {"as_optional_tensor": {"as_tensor": one}}:
                yield self.name(one)
            case {"as_tensors": [*many]} | {"as_optional_tensors": [*many]}:
                for one in many:
                    if inner := self.fields(one).get("as_tensor", one if "name" in one else None):
                        yield self.name(inner)
            case _:
                pass

    def bodies(self, node: Mapping[str, Any]) -> Iterator[Operation]:
        """Nodes of the graphs within a node."""
        for one in self.rows(node, "inputs"):
            match self.fields(one).get("arg"):
                case {"as_graph": {"graph": graph}}:
                    for inner in self.rows(self.fields(graph), "nodes"):
                        yield from self.operation(self.fields(inner), {})
                        yield from self.bodies(self.fields(inner))
                case _:
                    pass

    def macs(
        self,
        stem: str,
        arguments: list[dict[str, Any]],
        inputs: list[str],
        outputs: list[str],
        shapes: Shapes,
    ) -> int | None:
        """Multiply-adds of a node. Raises: what `macs.known` takes for unknown."""
        match stem:
            case "linear" | "matmul" | "mm" | "bmm":
                return macs.matmul(shapes[inputs[0]], shapes[outputs[0]])
            case "addmm" | "baddbmm":
                return macs.matmul(shapes[inputs[1]], shapes[outputs[0]])
            case "conv1d" | "conv2d" | "conv3d":
                return macs.conv(shapes[inputs[1]], shapes[outputs[0]])
            case "conv_transpose1d" | "conv_transpose2d" | "conv_transpose3d":
                return macs.conv_transpose(shapes[inputs[1]], shapes[inputs[0]])
            case "convolution":
                flags = {one.get("name"): one.get("arg") for one in arguments}
                if flags.get("transposed") == {"as_bool": True}:
                    return macs.conv_transpose(shapes[inputs[1]], shapes[inputs[0]])
                return macs.conv(shapes[inputs[1]], shapes[outputs[0]])
            case "scaled_dot_product_attention":
                return macs.attention(*(shapes[name] for name in inputs[:3]))
            case "lstm" | "gru":
                data = shapes[inputs[0]]
                weights = [shapes[name] for name in inputs[1:]]
                hidden = [one for one in weights if len(one) == 2]
                return macs.recurrent(hidden, prod(data[:-1]))
            case "einsum":
                (equation,) = [
                    one["arg"]["as_string"] for one in arguments if one.get("name") == "equation"
                ]
                return macs.einsum(str(equation), [shapes[name] for name in inputs])
            case "higher_order":
                return None
            case _:
                return 0

    def layers(self, weights: Mapping[str, str], tensors: Mapping[str, Tensor]) -> Iterator[Layer]:
        for node in self.nodes:
            for one in self.operation(node, {}):
                if one.op.partition(".")[0] not in _MATRIX:
                    continue
                for name in one.inputs:
                    weight = weights.get(name, "")
                    if weight in tensors and len(tensors[weight].shape) >= 2:
                        yield Layer(one.name, one.op, weight, tensors[weight].shape)
