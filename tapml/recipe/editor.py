"""The recipe's JSON Schema, for editors: the models' own, with what composition allows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

from ..registry import Registry, installed
from .schema import NOTE, compose

Json = dict[str, Any]
_FILLED = {"type": "string", "pattern": r"^\$\{(vars\.|env:)[^{}]*\}$"}
_SCALARS = {"integer", "number", "boolean"}
_PARTIAL = ".partial"  # of definitions whose fields may come from another recipe
_TOLD = ("title", "description", "examples")  # of a key, whatever its value is checked against
_COMBINATION = {"type": "object", "description": "Dotted field → value", "minProperties": 1}


def json_schema(registry: Registry | None = None) -> Json:
    """The JSON Schema (draft 2020-12) of a recipe as its author writes it.

    What another recipe (`extends`) or the matrix may give is not required; a number or a choice may
    be filled in from a variable.
    """
    schema = model_schema(registry)
    properties, models = schema["properties"], schema.pop("$defs")
    for model in (schema, *models.values()):
        for field in model.get("properties", {}).values():
            _tell_unit(field)
            _may_be_filled_in(field)
    properties["matrix"] = _matrix(properties["matrix"])
    partial = {f"{name}{_PARTIAL}": _partial(model) for name, model in models.items()}
    required = schema.pop("required")
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "tapml recipe",
        "description": schema["description"],
        "type": "object",
        "properties": {name: _brief(field) for name, field in properties.items()},
        "patternProperties": {f"^{NOTE}": {"description": "A note; ignored"}},
        "additionalProperties": False,
        "if": {"anyOf": [{"required": ["extends"]}, {"required": ["matrix"]}]},
        "then": {"properties": {name: _partial(one) for name, one in properties.items()}},
        "else": {"properties": properties, "required": required},
        "$defs": {**models, **partial},
    }


def model_schema(registry: Registry | None = None) -> Json:
    """The JSON Schema of the composed model: a recipe after composition."""
    schema = compose(registry or installed()).root.model_json_schema()
    _drop_null(schema["properties"])
    return schema


def _brief(field: Json) -> Json:
    """What an editor shows of a key."""
    return {name: one for name, one in field.items() if name in _TOLD}


def _tell_unit(field: Json) -> None:
    """Editors show no keyword of ours: the unit joins the description."""
    if (unit := field.pop("unit", "none")) != "none":
        field["description"] = f"{field['description']} ({unit})"


def _may_be_filled_in(field: Json) -> None:
    """A scalar may be a reference to a variable, whose value is checked when tapml reads it."""
    if "const" in field or "$ref" in field or "anyOf" in field:
        return
    if field.get("type") in _SCALARS or "enum" in field:
        kept = {name: field[name] for name in (*_TOLD, "default") if name in field}
        own = {name: one for name, one in field.items() if name not in kept}
        field.clear()
        field.update(kept, anyOf=[own, dict(_FILLED)])


def _matrix(field: Json) -> Json:
    combinations = {"type": "array", "items": _COMBINATION}
    return {
        **_brief(field),
        "type": "object",
        "minProperties": 1,
        "properties": {
            "include": {**combinations, "description": "Combinations beside the product"},
            "exclude": {**combinations, "description": "Combinations that are left out"},
            "limit": {
                "type": "integer",
                "minimum": 1,
                "maximum": 512,
                "description": "The most recipes that the matrix may make",
            },
        },
        "additionalProperties": {"type": "array", "minItems": 1, "description": "Values"},
    }


def _partial(value: Any) -> Any:
    """A copy that requires no field, not even what tells the arms of a union apart."""
    if isinstance(value, list):
        return [_partial(one) for one in cast("list[Any]", value)]
    if not isinstance(value, dict):
        return value
    data = cast("Mapping[str, Any]", value)
    copy = {name: _partial(one) for name, one in data.items() if name not in ("required", "oneOf")}
    if isinstance(arms := data.get("oneOf"), list):  # without what tells them apart, several fit
        copy["anyOf"] = _partial(arms)
    if isinstance(ref := data.get("$ref"), str):
        copy["$ref"] = ref + _PARTIAL
    if "discriminator" in data and "mapping" in data["discriminator"]:
        mapping = cast("dict[str, str]", data["discriminator"]["mapping"])
        copy["discriminator"]["mapping"] = {k: v + _PARTIAL for k, v in mapping.items()}
    return copy


def _drop_null(properties: dict[str, Json]) -> None:
    """A section may be left out, but `section: null` means nothing: editors need not offer it."""
    for value in properties.values():
        arms = [arm for arm in value.get("anyOf", ()) if arm != {"type": "null"}]
        if len(arms) < len(value.get("anyOf", ())):
            del value["anyOf"]
            value.pop("default", None)
            value.update(arms[0] if len(arms) == 1 else {"anyOf": arms})
