"""What of an ONNX model cannot be imported, all of it at once, with what can be done about it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator
from typing import Any

from onnx import ModelProto, NodeProto, TensorProto, defs, helper

from ..source import Unsupported
from . import model as onnx_model

CONTROL = ("If", "Loop", "Scan")  # what folding may still take away
STANDARD = ("", "ai.onnx", "com.microsoft")
_WIDTHS = [f"{kind}{bits}" for kind in ("INT", "UINT") for bits in (8, 16, 32, 64)]
TYPES = frozenset(
    TensorProto.DataType.Value(name)
    for name in ("BOOL", *_WIDTHS, "FLOAT16", "BFLOAT16", "FLOAT", "DOUBLE")
)

_ON_HOST = "end the model before it (onnx.utils.extract_model) and run it on the host"
_DATA_SIZED = f"the size of what it gives depends on data: {_ON_HOST}"
_CONTROL = (
    "what decides is computed from data: export the model without it, fix the sizes in "
    f"model.inputs so that it folds, or {_ON_HOST}"
)
# converted, to values of unknown shape or to nothing at all
_DATA_SIZED_OPS = ("AllClassNMS", "Compress", "NonMaxSuppression", "NonZero", "Unique")
_ADVICE: dict[str, str] = {
    "If": _CONTROL,
    "Loop": _CONTROL,
    "Scan": f"export the steps one by one, or {_ON_HOST}",
    **dict.fromkeys(_DATA_SIZED_OPS, _DATA_SIZED),
    **dict.fromkeys(
        ("Bernoulli", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform",
         "RandomUniformLike"),
        "random: make the numbers on the host and pass them as an input",
    ),
    **dict.fromkeys(
        ("ImageDecoder", "RegexFullMatch", "StringConcat", "StringNormalizer", "StringSplit",
         "TfIdfVectorizer"),
        "text or files: prepare the input on the host, begin the model behind it",
    ),
}  # fmt: skip
_DEFAULT = f"write it with other operators in the exporter, or {_ON_HOST}"
_ML = (
    "of classical machine learning: for a classifier end the model at its tensor `probabilities` "
    "(onnx.utils.extract_model); scalers and trees run on the host"
)


def unsupported(
    model: ModelProto, known: Collection[str], nodes: Iterable[NodeProto] | None = None
) -> list[Unsupported]:
    """Rows for every operator that is not `known`, for attributes that are not handled, and for
    types that no kernel has.

    In: `nodes`: those to look at; all, subgraphs' too, if left out
    """
    rows: dict[tuple[str, str], list[str]] = defaultdict(list)
    opset = onnx_model.opset(model)
    for node in onnx_model.walk(model.graph) if nodes is None else nodes:
        for what, advice in _wrong(node, known, opset):
            rows[what, advice].append(node.name or ", ".join(node.output))
    for what, name in _odd_types(model):
        rows[what, f"a compiled model takes tensors of numbers; {_DEFAULT}"].append(name)
    return [Unsupported(op, tuple(names), advice) for (op, advice), names in rows.items()]


def is_standard(node: NodeProto) -> bool:
    return node.domain in STANDARD


def has_body(node: NodeProto, opset: int) -> bool:
    """Whether ONNX itself says how to write an operator with others."""
    if node.domain not in ("", "ai.onnx"):
        return False
    try:
        schema = defs.get_schema(node.op_type, opset, "")
    except defs.SchemaError:
        return False
    return bool(schema.has_function or schema.has_context_dependent_function)  # pyright: ignore[reportAttributeAccessIssue]  # missing in its stub


def _wrong(node: NodeProto, known: Collection[str], opset: int) -> Iterator[tuple[str, str]]:
    name = node.op_type
    if node.domain == "ai.onnx.ml":
        yield f"{node.domain}.{name}", _ML
    elif not is_standard(node):
        yield (
            f"{node.domain}.{name}",
            f"of domain {node.domain}, which is no part of ONNX: export with standard operators "
            "(or with local functions, which are inlined)",
        )
    elif name not in known or name in _DATA_SIZED_OPS:
        yield f"{node.domain}.{name}" if node.domain else name, _ADVICE.get(name, _DEFAULT)
    elif (rule := _RULES.get(name)) is not None:
        attributes = {one.name: helper.get_attribute_value(one) for one in node.attribute}
        if why := rule(node, attributes, opset):
            yield f"{name} ({why})", _DEFAULT


def _odd_types(model: ModelProto) -> Iterable[tuple[str, str]]:
    for value in model.graph.input:
        if not value.type.HasField("tensor_type"):
            yield f"input of type {value.type.WhichOneof('value')}", value.name
        elif value.type.tensor_type.elem_type not in TYPES:
            yield f"input of {_type_name(value.type.tensor_type.elem_type)}", value.name
    for tensor in model.graph.initializer:
        if tensor.data_type not in TYPES:
            yield f"weight of {_type_name(tensor.data_type)}", tensor.name


def _type_name(number: int) -> str:
    known = number in TensorProto.DataType.values()
    return TensorProto.DataType.Name(number).lower() if known else f"type {number}"


Rule = Callable[[NodeProto, dict[str, Any], int], str]


def _casts(_node: NodeProto, attributes: dict[str, Any], _opset: int) -> str:
    to = attributes.get("to", TensorProto.FLOAT)
    return "" if to in TYPES else f"to {_type_name(to)}"


def _second_output(what: str) -> Rule:
    return lambda node, _attributes, _opset: (
        what if len([one for one in node.output if one]) > 1 else ""
    )


def _attribute(name: str, allowed: tuple[Any, ...], default: Any) -> Rule:
    def rule(_node: NodeProto, attributes: dict[str, Any], _opset: int) -> str:
        value = attributes.get(name, default)
        value = value.decode("utf-8", "replace") if isinstance(value, bytes) else value
        return "" if value in allowed else f"{name} {value}"

    return rule


def _training(node: NodeProto, attributes: dict[str, Any], opset: int) -> str:
    if attributes.get("training_mode", 0) or len([one for one in node.output if one]) > 1:
        return "training_mode"
    return "spatial 0" if opset < 9 and not attributes.get("spatial", 1) else ""


_RULES: dict[str, Rule] = {
    "BatchNormalization": _training,
    "Cast": _casts,
    "Constant": lambda node, *_: "" if node.attribute else "without a value",
    "MaxPool": _second_output("with indices"),
    "RoiAlign": _attribute("mode", ("avg",), "avg"),
    "SpaceToDepth": _attribute("mode", ("DCR",), "DCR"),
}
