"""torch.export → Relax through TVM's importer, with the names and shapes that it loses kept.

Own here: sizes come from torch's own shape inference (node.meta), so that symbolic ones are
right by construction; a converter that raises names the node, its operator and its line; weights
stay in torch's memory. `converters.py` replaces those of TVM's converters that are wrong.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import fx
from torch.export import ExportedProgram
from torch.export.graph_signature import ConstantArgument, InputKind, OutputKind

from tapml.errors import StageError

from ...compat import tvm
from ...program import Bounds, Program
from ..finish import Node, attribute, finish
from ..source import Unsupported, refuse
from . import converters as own
from . import rewrite
from .call import Call, dtype_of, is_number, name_of
from .export import decomposed
from .shapes import Shape, Sizes, symbols

from tvm.relax.frontend.torch import exported_program_translator as translator  # isort: skip

rx = tvm.relax
_MARK = "tapml_end_of_node"
Converter = Callable[[fx.Node, Any], Any]  # (node, importer) → Relax expressions


def convert(
    exported: ExportedProgram,
    *,
    inputs: Mapping[str, Shape],
    outputs: Sequence[str | None],
    dims: Mapping[str, Bounds],
    buckets: Sequence[Mapping[str, int]] = (),
    converters: Mapping[str, Converter] | None = None,
    states: Sequence[str] = (),
    where: str = "the torch program",
) -> tuple[Program, dict[str, np.ndarray]]:
    """Program and weights of an exported program.

    In:     `inputs`: name → shape with the recipe's dims, in the order of the program's tensors;
            `outputs`: names in the order of the program's, None for one that is dropped;
            `converters`: by torch's name of an operator ("attend.default"), before all others;
            `states`: inputs that the program may write to (a converter of theirs does it in place);
            `where`: what errors call the program
    Out:    weights under their state_dict names, as views of torch's memory.
    Raises: StageError for unsupported operators (all at once), anything written to but
            states, sizes that depend on data, a node that cannot be converted.
    """
    extra = converters or {}
    exported = decomposed(exported, lambda node: _is_known(node, extra))
    rewrite.run(exported.graph_module)
    importer = _Importer(exported, inputs, dims, extra)
    _refuse_mutations(exported, importer.input_names, states, where)
    importer.preflight(where)
    mod = importer.module([index for index, name in enumerate(outputs) if name is not None])
    return finish(
        mod,
        inputs=list(inputs),
        outputs=[name for name in outputs if name is not None],
        weights=importer.weights,
        params=importer.weight_of,
        sources=importer.sources,
        dims=dims,
        buckets=buckets,
        where=where,
    )


class _Importer(translator.ExportedProgramImporter):
    """TVM's importer; remembers the node of every binding, takes sizes from torch."""

    def __init__(
        self,
        exported: ExportedProgram,
        inputs: Mapping[str, Shape],
        dims: Mapping[str, Bounds],
        converters: Mapping[str, Converter],
    ) -> None:
        super().__init__()
        self._exported = exported
        self._graph = exported.graph_module.graph
        self._extra = converters
        self._order: list[Node] = []
        self.sources: dict[str, Node] = {}
        self.weights: dict[str, np.ndarray] = {}
        self.weight_of: dict[str, str] = {}  # parameter of `main` → source name of its weight
        placeholders = {node.name: node for node in self._graph.find_nodes(op="placeholder")}
        specs = exported.graph_signature.input_specs
        self._weight_specs = [
            (placeholders[one.arg.name], one.target)
            for one in specs
            if one.kind is not InputKind.USER_INPUT and one.target is not None
        ]
        users = [
            placeholders[one.arg.name]
            for one in specs
            if one.kind is InputKind.USER_INPUT and not isinstance(one.arg, ConstantArgument)
        ]
        self._inputs = dict(zip(inputs, users, strict=True))
        self.input_names = {node.name: name for name, node in self._inputs.items()}
        shapes = {name: node.meta["val"].shape for name, node in self._inputs.items()}
        self.sizes = Sizes(symbols(shapes, inputs), dims)

    def preflight(self, where: str) -> None:
        """Raises StageError that lists every operator that cannot be converted."""
        missing: dict[tuple[str, str], list[str]] = defaultdict(list)
        for node in self._calls():
            name = name_of(node)
            if self.sizes.depend_on_data(node.meta.get("val")):
                advice = own.DATA_DEPENDENT
            elif not _is_known(node, self._extra):
                advice = own.REFUSED.get(name, "")
            else:
                continue
            missing[name, advice].append(f"{node.name}{_place(node)}")
        refuse(
            where,
            [Unsupported(op, tuple(nodes), advice) for (op, advice), nodes in missing.items()],
        )

    def _calls(self) -> list[fx.Node]:
        return [node for node in self._graph.nodes if node.op == "call_function"]

    def module(self, kept: Sequence[int]) -> Any:
        """`main` of inputs, then weights; gives the outputs at the positions `kept`."""
        params = []
        for name, node in self._inputs.items():
            value = node.meta["val"]
            dtype = self._convert_data_type(str(value.dtype))
            self.env[node] = rx.Var(name, rx.TensorType(self.sizes.shape(value.shape), dtype))
            params.append(self.env[node])
        params += self._weight_params()
        self.block_builder = rx.BlockBuilder()
        with self.block_builder.function("main", params):
            with self.block_builder.dataflow():
                for node in self._calls():
                    self._convert(node)
                results = [self.env[node] for node in self._results(kept)]
                value = results[0] if len(results) == 1 else rx.Tuple(results)
                value = self.block_builder.emit_output(value)
            self.block_builder.emit_func_output(value)
        mod = self.block_builder.get()
        for block in mod["main"].body.blocks:
            attribute(block.bindings, _MARK, self._order, self.sources, Node("output", "output"))
        return mod

    def _weight_params(self) -> list[Any]:
        """Parameters for weights; what makes shapes, and scalars, stay constants of the program.

        Tied weights (one memory, two names) are one parameter, under the first name.
        """
        tensors = {**self._exported.state_dict, **self._exported.constants}
        tied: dict[Any, list[tuple[fx.Node, str]]] = defaultdict(list)
        for node, target in self._weight_specs:
            one = tensors[target]
            memory = (one.data_ptr(), tuple(one.shape), one.stride(), one.dtype)
            tied[memory if one.numel() else node].append((node, target))
        params: list[Any] = []
        for group in tied.values():
            if not any(node.users for node, _ in group):
                continue
            node, name = group[0]
            array = as_numpy(tensors[name], name)
            if is_weight(array):
                value = rx.Var(node.name, rx.TensorType(array.shape, str(array.dtype)))
                self.weight_of[value.name] = name
                self.weights[name] = array
                params.append(value)
            else:
                value = rx.const(np.array(array, order="C"), str(array.dtype))
            for node, _ in group:
                self.env[node] = value
        return params

    def _results(self, kept: Sequence[int]) -> list[fx.Node]:
        (output,) = self._graph.find_nodes(op="output")
        specs = self._exported.graph_signature.output_specs
        users = [
            value
            for value, spec in zip(output.args[0], specs, strict=True)
            if spec.kind is OutputKind.USER_OUTPUT and isinstance(value, fx.Node)
        ]
        return [users[index] for index in kept]

    def _convert(self, node: fx.Node) -> None:
        name = name_of(node)
        try:
            if is_number(value := node.meta.get("val")):
                if isinstance(value, int | torch.SymInt):
                    self.env[node] = self.sizes.size(value)
            elif (name := _bare(node)) in self._extra:
                self.env[node] = self._extra[name](node, self)
            elif name in own.CONVERTERS:
                self.env[node] = own.CONVERTERS[name](Call(node, self))
            else:
                self.env[node] = self.convert_map[name](node)
            if isinstance(value, torch.Tensor):
                self.env[node] = self._as_torch_says(self.env[node], value)
        except Exception as error:  # TVM's converters raise anything; the node must be named
            message = f"node {node.name} ({name}) cannot be imported: {error}"
            raise StageError(message=message, hint=_place(node).strip()) from error
        self.block_builder.emit(rx.const(len(self._order), "int32"), _MARK)
        self._order.append(Node(node.name, name.removesuffix(".default")))

    def _as_torch_says(self, value: Any, meta: torch.Tensor) -> Any:
        """The value in torch's dtype: TVM's converters give float32 for some of float16.

        Raises: ValueError for a size other than torch's.
        """
        if not isinstance(value, rx.Expr) or not isinstance(value.ty, rx.TensorType):
            return value
        if isinstance(value.ty.shape, rx.ShapeExpr):
            sizes, theirs = list(value.ty.shape.values), self.sizes.shape(meta.shape)
            pairs = zip(sizes, theirs, strict=False)
            if len(sizes) != len(theirs) or any(
                isinstance(own, tvm.tirx.IntImm) and isinstance(size, int) and int(own) != size
                for own, size in pairs
            ):
                raise ValueError(f"its shape is {sizes} here, {theirs} in torch")
        if str(value.ty.dtype) != (dtype := dtype_of(meta.dtype)):
            return self.block_builder.emit(rx.op.astype(value, dtype))
        return value


def _is_known(node: fx.Node, extra: Mapping[str, Converter]) -> bool:
    """Whether an operator has a converter: given, ours, or one of TVM's that is right."""
    name = name_of(node)
    return (
        is_number(node.meta.get("val"))
        or _bare(node) in extra
        or name in own.CONVERTERS
        or (name in _tvms() and name not in own.REFUSED)
    )


@cache
def _tvms() -> frozenset[str]:
    return frozenset(map(str, translator.ExportedProgramImporter().convert_map))


def _bare(node: fx.Node) -> str:
    """Name of an operator without its library, as the converters given to us have it."""
    return getattr(node.target, "__name__", str(node.target))


def is_weight(array: np.ndarray) -> bool:
    """Whether a constant travels beside the IR: floats with dimensions, large tables."""
    return array.ndim > 0 and array.size > 0 and (array.dtype.kind in "fV" or array.size > 4096)


def as_numpy(tensor: torch.Tensor, name: str) -> np.ndarray:
    """The tensor's memory as an array, nothing copied; bfloat16 by ml_dtypes."""
    if tensor.layout is not torch.strided or tensor.is_quantized:
        raise StageError(
            message=f"weight {name!r} is stored as {tensor.layout}, quantized: "
            f"{tensor.is_quantized}",
            hint="make it a plain tensor before the export: .to_dense() or .dequantize()",
        )
    tensor = tensor.detach().resolve_conj().resolve_neg().cpu()
    if tensor.dtype is torch.bfloat16:
        import ml_dtypes

        return tensor.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
    return tensor.numpy()


def _refuse_mutations(
    exported: ExportedProgram, inputs: Mapping[str, str], states: Sequence[str], where: str
) -> None:
    """Raises StageError naming what the program writes to, other than its outputs and `states`."""
    written: list[str] = []
    for spec in exported.graph_signature.output_specs:
        target = inputs.get(spec.target or "", spec.target)
        if spec.kind is OutputKind.USER_OUTPUT:
            continue
        if spec.kind is OutputKind.USER_INPUT_MUTATION and target in states:
            continue
        kind = spec.kind.name.removesuffix("_MUTATION").removeprefix("USER_")
        written.append(f"{kind.lower().replace('_', ' ')} {target!r}")
    if written:
        raise StageError(
            message=f"{where} writes to {', '.join(written)}: a library keeps no state of its own",
            hint="return the new value as an output and take the old one as an input; "
            "for a language model, `task: generate` keeps its cache",
        )


def _place(node: fx.Node) -> str:
    """ " (file.py:12)": the innermost line of the model's own code that made the node."""
    lines = re.findall(r'File "([^"]+)", line (\d+)', node.meta.get("stack_trace") or "")
    theirs = [one for one in lines if "/torch/" not in one[0]] or lines
    return f" ({theirs[-1][0]}:{theirs[-1][1]})" if theirs else ""
