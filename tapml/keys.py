"""Action keys: what a stage's result depends on, as canonical JSON, and its SHA-256."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import math
from collections.abc import Mapping
from functools import cache
from typing import Any, cast

from . import host, registry
from .errors import EnvironmentalError
from .stage import Stage

SCHEMA = 1  # of the preimage; a change makes every stored result a miss
Preimage = dict[str, Any]


def canonical_json(value: object) -> bytes:
    """One text for equal values: sorted keys, no spaces, UTF-8.

    Raises: TypeError for anything but None, bool, int, float, str, lists, tuples and dicts with
        str keys; ValueError for NaN and infinities.
    """
    _check(value, "$")
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def _check(value: object, where: str) -> None:
    match value:
        case None | bool() | int() | str():
            # a subclass (an enum, a numpy scalar) may print as something else than it compares
            if type(value) not in (type(None), bool, int, str):
                raise TypeError(f"{where}: {type(value).__name__} has no canonical form")
        case float():
            if type(value) is not float:
                raise TypeError(f"{where}: {type(value).__name__} has no canonical form")
            if not math.isfinite(value):
                raise ValueError(f"{where}: {value} has no canonical form")
        case list() | tuple():
            for index, one in enumerate(cast("list[object]", value)):
                _check(one, f"{where}[{index}]")
        case dict():
            for name, one in cast("dict[object, object]", value).items():
                if type(name) is not str:
                    raise TypeError(f"{where}: key {name!r} is no string")
                _check(one, f"{where}.{name}")
        case _:
            raise TypeError(f"{where}: {type(value).__name__} has no canonical form")


def digest(value: object) -> str:
    """SHA-256 of the canonical JSON, hex."""
    return hashlib.sha256(b"tapml.action\0" + canonical_json(value)).hexdigest()


def preimage(
    stage: Stage, inputs: Mapping[str, str], packages: dict[str, str] | None = None
) -> Preimage:
    """Everything that the result of `stage` depends on; `inputs` are digests by input name.

    In: `packages`: as `known` of `registry.package_digest`.
    """
    facts: Preimage = {
        "schema": SCHEMA,
        "stage": stage.name,
        "version": stage.version,
        "params": stage.model_dump(),
        "inputs": dict(inputs),
        "tools": {name: _version(name) for name in stage.uses()} | dict(stage.tool_versions()),
    }
    if (package := registry.package_digest(type(stage), packages)) is not None:
        facts["package"] = package
    if stage.measures:
        facts["host"] = host.fingerprint()
    return facts


def action_key(stage: Stage, inputs: Mapping[str, str]) -> str:
    """The name of the result of `stage` on `inputs`. tapml's own version is no part of it."""
    return digest(preimage(stage, inputs))


@cache
def _version(distribution: str) -> str:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError as error:
        raise EnvironmentalError(
            message=f"the package {distribution!r} is not installed",
            hint=f"install it: pip install {distribution}",
        ) from error
