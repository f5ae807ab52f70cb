"""`docs/recipes.md`: every field of a recipe, drawn from the models that check it; and the table of
the engine's settings in `docs/engine.md`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, cast

from ..registry import Registry
from ..settings import Engine
from .editor import model_schema

Json = Mapping[str, Any]
_LANGUAGE = Path(__file__).with_name("language.md")  # what no model says
_LONGEST = 80  # characters of a default or an example that is shown
_BOUNDS = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}


def markdown(registry: Registry | None = None) -> str:
    """The reference as Markdown: the language, then a table of dotted fields for each section."""
    schema = model_schema(registry)
    models: dict[str, Json] = schema["$defs"]
    fields: dict[str, Json] = schema["properties"]
    sections = {name: field for name, field in fields.items() if "$ref" in field}
    required = set(schema["required"])
    top = {name: field for name, field in fields.items() if name not in sections}
    parts = [_LANGUAGE.read_text(encoding="utf-8"), _table(_rows(top, required, models, ""))]
    for name, field in sections.items():
        model = _model(field, models)
        needed = " Required." if name in required else ""
        rows = _rows(model["properties"], set(model.get("required", ())), models, f"{name}.")
        parts.append(f"## {name}\n\n{_text(field)}{needed}\n\n{_table(rows)}")
    return "\n".join(parts)


def settings() -> str:
    """A table of the engine's settings, which are no recipe."""
    schema = Engine.model_json_schema()
    return _table(_rows(schema["properties"], set(), schema["$defs"], "engine."))


_COLUMNS = ("field", "values", "unit", "default", "example", "meaning")
Row = tuple[str, ...]  # a cell for each column


def _rows(
    fields: Mapping[str, Json], required: set[str], models: Mapping[str, Json], path: str
) -> Iterator[Row]:
    """A row per field, and those of the models in it below."""
    for name, field in fields.items():
        yield (
            f"`{path}{name}`",
            _values(field, models),
            str(field.get("unit", "")),
            "**required**" if name in required else _literal(field.get("default")),
            _literal(_example(field)),
            _meaning(field, models),
        )
        for kind, model in _below(field, models):
            inner = set(model.get("required", ()))
            below = {key: one for key, one in model["properties"].items() if "const" not in one}
            yield from _rows(below, inner, models, f"{path}{name}{kind}.")


def _example(field: Json) -> Any:
    """The field's own example, else the first of its fixed values that is not the default."""
    for example in field.get("examples", ()):
        return example
    for arm in _arms(field):
        given = [False, True] if arm.get("type") == "boolean" else [arm.get("const")]
        for value in arm.get("enum", given):
            if value is not None and (value != field.get("default") or "const" in arm):
                return value
    return None


def _below(field: Json, models: Mapping[str, Json]) -> Iterator[tuple[str, Json]]:
    """The models that a field's value may be, with what tells them apart in a dotted name."""
    for arm in _arms(field):
        if (inner := _named(arm)) is not None:
            yield from ((f".NAME{kind}", one) for kind, one in _below(inner, models))
        elif "$ref" in arm and "properties" in (model := _model(arm, models)):
            tag = _tag(model)
            yield (f" ({tag})" if tag else ""), model


def _values(field: Json, models: Mapping[str, Json]) -> str:
    """What a field may hold, in words."""
    return " or ".join(dict.fromkeys(_kind(arm, models) for arm in _arms(field)))


def _kind(arm: Json, models: Mapping[str, Json]) -> str:
    if "$ref" in arm:
        model = _model(arm, models)
        tag = _tag(model)
        return f"`{{{tag}}}`" if tag else "fields"
    if "const" in arm:
        return f"`{arm['const']}`"
    if "enum" in arm:
        return " or ".join(f"`{one}`" for one in arm["enum"])
    match arm.get("type"):
        case "array" if "prefixItems" in arm:
            return "[" + ", ".join(_values(one, models) for one in arm["prefixItems"]) + "]"
        case "array":
            return f"list of {_values(arm['items'], models)}"
        case "object":
            inner = _named(arm)
            return "fields" if inner is None else f"name: {_values(inner, models)}"
        case str(name):
            bounds = [f"{sign} {arm[key]}" for key, sign in _BOUNDS.items() if key in arm]
            return " ".join(
                [{"string": "text", "integer": "whole number"}.get(name, name), *bounds]
            )
        case _:
            return "any"


def _named(arm: Json) -> Json | None:
    """What the values of a mapping with free names are."""
    by_pattern = cast("Json", arm.get("patternProperties", {}))
    inner = next(iter(by_pattern.values()), arm.get("additionalProperties"))
    return cast("Json", inner) if isinstance(inner, dict) else None


def _arms(field: Json) -> list[Json]:
    """The alternatives of a field; absence is none."""
    arms: list[Json] = field.get("anyOf") or field.get("oneOf") or [field]
    flat = [one for arm in arms for one in ([arm] if arm is field else _arms(arm))]
    return [arm for arm in flat if arm.get("type") != "null"]


def _model(field: Json, models: Mapping[str, Json]) -> Json:
    return models[field["$ref"].rpartition("/")[2]]


def _tag(model: Json) -> str:
    """`kind: csr` of a model that such a field tells from its neighbours."""
    fixed = [(k, v["const"]) for k, v in model.get("properties", {}).items() if "const" in v]
    return f"{fixed[0][0]}: {fixed[0][1]}" if fixed else ""


def _meaning(field: Json, models: Mapping[str, Json]) -> str:
    """What a field says of itself, else what the models that it may hold say."""
    if text := _text(field):
        return text
    held = [_model(arm, models) for arm in _arms(field) if "$ref" in arm]
    return " ".join(f"`{tag}`: {_text(m)}" if (tag := _tag(m)) else _text(m) for m in held)


def _literal(value: Any) -> str:
    """A default; absence has none to show."""
    if value in (None, "", {}):
        return ""
    text = json.dumps(value, ensure_ascii=False)
    return f"`{text}`" if len(text) <= _LONGEST else ""


def _text(field: Json) -> str:
    return " ".join(str(field.get("description", "")).split())


def _table(rows: Iterator[Row]) -> str:
    lines = [f"| {' | '.join(_COLUMNS)} |", "|---" * len(_COLUMNS) + "|"]
    for cells in rows:
        lines.append(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |")
    return "\n".join(lines) + "\n"
