"""pydantic's errors → one clear error per cause, at its place in the text."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, TypeVar, cast

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from ..errors import RecipeError, nearest
from ..stage import Frozen
from ..terminal import printable
from .loader import MAX_MISTAKES, error_at
from .positions import Node, Path, locate, shorten

ModelT = TypeVar("ModelT", bound=Frozen)
JsonSchema = Mapping[str, Any]

_KIND_OF = {
    "model_type": "a mapping",
    "dict_type": "a mapping",
    "tuple_type": "a list",
    "list_type": "a list",
    "string_type": "a string",
    "int_type": "an integer",
    "int_from_float": "an integer",
    "float_type": "a number",
    "bool_type": "true or false",
}


def validate(
    model: type[ModelT], root: Node, *, at: Path = (), broken: Sequence[Path] = ()
) -> tuple[ModelT | None, list[RecipeError]]:
    """The instance of `model` that a tree describes, or what is wrong with it.

    In: `at`, the path of `root` in its document; `broken`, paths of `root` below which errors were
        reported already, so that what is wrong there only follows from them.
    """
    try:
        # JSON, since strict python mode refuses lists for tuples
        return model.model_validate_json(json.dumps(root.data)), []
    except ValidationError as error:
        return None, explain(model, root, error, at=at, broken=broken)


def explain(
    model: type[Frozen],
    root: Node,
    error: ValidationError,
    *,
    at: Path = (),
    broken: Sequence[Path] = (),
) -> list[RecipeError]:
    """An error for each cause, as in `validate`."""
    details = error.errors(include_url=False)[:MAX_MISTAKES]
    told = set(broken)
    problems = [
        problem
        for problem in _of_best_arms([_Problem.of(root, detail) for detail in details])
        if not any(problem.path[:n] in told for n in range(len(problem.path) + 1))
    ]
    errors: list[RecipeError] = []
    misspelt: dict[Path, set[str]] = {}
    for problem in problems:
        if problem.type == "extra_forbidden":
            known = _fields(_json_schema(model), root, problem.path[:-1])
            hint = nearest(str(problem.path[-1]), known, noun="fields here")
            misspelt.setdefault(problem.path[:-1], set()).update(
                name for name in known if hint == f"did you mean {name!r}?"
            )
            if hint.startswith("did"):
                hint += f" (fields here: {', '.join(known)})"
            errors.append(_error(root, problem, at, "unknown key", hint))
    for problem in problems:
        if problem.type == "missing":
            if problem.path[-1] not in misspelt.get(problem.path[:-1], ()):
                what = "a value" if isinstance(problem.path[-1], int) else "required field"
                errors.append(_error(root, problem, at, f"{what} is missing"))
        elif problem.type != "extra_forbidden":
            message, hint = _message(problem)
            hint = hint or _from_schema(_at(_json_schema(model), root, problem.path), problem)
            errors.append(_error(root, problem, at, message, hint))
    return errors


@dataclass(frozen=True)
class _Problem:
    """An error of pydantic: its path in the data, and the union that it is in with the arm."""

    path: Path
    type: str
    text: str
    context: Mapping[str, Any]
    value: object
    is_key: bool
    arm: tuple[Path, str] | None

    @classmethod
    def of(cls, root: Node, detail: ErrorDetails) -> _Problem:
        node, path, arm = root, list[str | int](), None
        loc = detail["loc"]
        is_key = detail["type"] == "extra_forbidden"
        if loc[-1:] == ("[key]",):  # what pydantic adds for a key of a dict that is wrong itself
            loc, is_key = loc[:-1], True
        for i, part in enumerate(loc):
            below = node.child(part)
            if below is not None:
                path.append(part)
                node = below
            elif detail["type"] == "missing" and i == len(loc) - 1:
                path.append(part)
            elif arm is None:  # a part that the data lack names an arm of a union
                arm = tuple(path), str(part)
        context = cast("Mapping[str, Any]", detail.get("ctx", {}))
        value = path[-1] if is_key and path else node.data
        return cls(tuple(path), detail["type"], detail["msg"], context, value, is_key, arm)

    @property
    def is_wrong_type(self) -> bool:
        return self.arm is not None and self.path == self.arm[0] and self.type in _KIND_OF


def _of_best_arms(problems: list[_Problem]) -> list[_Problem]:
    """Of a union, only the errors of the arm that was meant: the right type, the fewest errors."""
    kept = [p for p in problems if p.arm is None]
    unions = dict.fromkeys(p.arm[0] for p in problems if p.arm is not None)
    for union in unions:
        arms: dict[str, list[_Problem]] = {}
        for problem in problems:
            if problem.arm is not None and problem.arm[0] == union:
                arms.setdefault(problem.arm[1], []).append(problem)
        fitting = [arm for arm in arms.values() if not any(p.is_wrong_type for p in arm)]
        if fitting:
            kept += min(fitting, key=len)
            continue
        deeper = [p for arm in arms.values() for p in arm if not p.is_wrong_type]
        first = next(iter(arms.values()))[0]
        kinds = dict.fromkeys(
            _KIND_OF[p.type] for arm in arms.values() for p in arm if p.is_wrong_type
        )
        text = f"expected {' or '.join(kinds)}, not {_kind(first.value)}"
        kept += deeper or [_Problem(first.path, "union", text, {}, first.value, False, None)]
    return kept


def _message(problem: _Problem) -> tuple[str, str]:
    """Message and hint of an error that is about a value."""
    value, context = problem.value, problem.context
    match problem.type:
        case "union":
            return problem.text, ""
        case kind if kind in _KIND_OF:
            return f"expected {_KIND_OF[kind]}, not {_kind(value)}", ""
        case "literal_error" | "enum":
            known = str(context["expected"])
            if not isinstance(value, str) or "'" not in known:  # no spelling of one of them
                return f"expected {known}, not {_kind(value)}", ""
            return _unknown_value(value, _alternatives(known))
        case "union_tag_invalid":
            known = _alternatives(str(context["expected_tags"]))
            return _unknown_value(context["tag"], known, str(context["discriminator"]))
        case "union_tag_not_found":
            return f"required field {context['discriminator']} is missing", ""
        case "string_pattern_mismatch":
            return f"{shorten(value)} does not have the form {context['pattern']}", ""
        case "too_short":
            return f"expected a length of at least {context['min_length']}", ""
        case "too_long":
            return f"expected a length of at most {context['max_length']}", ""
        case "value_error":
            return printable(problem.text.removeprefix("Value error, ")), ""
        case _:
            text = problem.text.removeprefix("Input ").removeprefix("Value ")
            text = text[:1].lower() + text[1:]
            is_scalar = isinstance(value, (str, int, float))
            return printable(f"{shorten(value)}: {text}" if is_scalar else text), ""


def _from_schema(arms: Sequence[JsonSchema], problem: _Problem) -> str:
    """The hint that the schema of a value gives: the alternatives' names, or an example."""
    if problem.type == "union_tag_not_found":
        tag = str(problem.context["discriminator"]).strip("'")
        fields = (arm.get("properties", {}).get(tag, {}) for arm in arms)
        return f"one of: {', '.join(str(one['const']) for one in fields if 'const' in one)}"
    if problem.type == "string_pattern_mismatch":
        return next((f"for instance: {one}" for arm in arms for one in arm.get("examples", ())), "")
    return ""


def _unknown_value(value: object, known: list[str], of: str = "") -> tuple[str, str]:
    name = f" of {of.strip(chr(39))}" if of else ""
    hint = nearest(str(value), known, noun="one of")
    if hint.startswith("did"):
        hint += f" (one of {', '.join(known)})"
    return f"unknown value {shorten(value)}{name}", hint


def _alternatives(text: str) -> list[str]:
    quoted = re.findall(r"'([^']*)'", text)
    return quoted or [part.strip() for part in re.split(r",| or ", text) if part.strip()]


def _kind(value: object) -> str:
    match value:
        case None:
            return "nothing"
        case dict():
            return "a mapping"
        case list():
            return "a list"
        case bool():
            return str(value).lower()
        case str():
            return f"the string {shorten(value)}"
        case _:
            return shorten(value)


def _error(root: Node, problem: _Problem, at: Path, message: str, hint: str = "") -> RecipeError:
    path = problem.path
    if problem.type == "union_tag_invalid":
        discriminator = str(problem.context["discriminator"]).strip("'")
        path = (*path, discriminator)
        message = message.partition(" of ")[0]
    return error_at(locate(root, path, key=problem.is_key), (*at, *path), message, hint)


@cache
def _json_schema(model: type[Frozen]) -> JsonSchema:
    return model.model_json_schema()


def takes_text(model: type[Frozen], root: Node, path: Path) -> bool:
    """Whether the field at `path` holds text and nothing else, by the model's JSON Schema."""
    return {arm.get("type") for arm in _at(_json_schema(model), root, path)} - {"null"} == {
        "string"
    }


def _fields(schema: JsonSchema, root: Node, path: Path) -> list[str]:
    """Names of the fields that the mapping at `path` may have, by the model's JSON Schema."""
    return sorted({name for arm in _at(schema, root, path) for name in arm.get("properties", {})})


def _at(schema: JsonSchema, root: Node, path: Path) -> list[JsonSchema]:
    """The schemas that a value at `path` may follow."""
    arms = [schema]
    node: Node | None = root
    for part in path:
        arms = [below for arm in _arms(schema, arms, node) for below in _below(arm, part)]
        node = node.child(part) if node is not None else None
    return _arms(schema, arms, node)


def _arms(schema: JsonSchema, arms: list[JsonSchema], node: Node | None) -> list[JsonSchema]:
    """The schemas behind references and unions; with a discriminator, only the chosen one."""
    found: list[JsonSchema] = []
    for arm in arms:
        if "$ref" in arm:
            name = str(arm["$ref"]).rpartition("/")[2]
            found += _arms(schema, [schema["$defs"][name]], node)
        elif "discriminator" in arm:
            tag = node.child(arm["discriminator"]["propertyName"]) if node is not None else None
            mapping = arm["discriminator"]["mapping"]
            chosen = (
                mapping.get(tag.value) if tag is not None and isinstance(tag.value, str) else None
            )
            refs = [chosen] if chosen else list(mapping.values())
            found += _arms(schema, [{"$ref": ref} for ref in refs], node)
        elif "anyOf" in arm or "oneOf" in arm:
            found += _arms(schema, [*arm.get("anyOf", ()), *arm.get("oneOf", ())], node)
        elif "allOf" in arm:
            found += _arms(schema, list(arm["allOf"]), node)
        else:
            found.append(arm)
    return found


def _below(arm: JsonSchema, part: str | int) -> list[JsonSchema]:
    if isinstance(part, int):
        prefix = arm.get("prefixItems", ())
        item = prefix[part] if part < len(prefix) else arm.get("items")
        return [item] if isinstance(item, dict) else []
    if part in arm.get("properties", {}):
        return [arm["properties"][part]]
    extra = arm.get("additionalProperties")
    return [extra] if isinstance(extra, dict) else []
