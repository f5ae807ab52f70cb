"""A room whose code changed must get a new version, or its fingerprint must be accepted by hand.

The fingerprint covers the syntax trees (no comments, no docstrings) of the room and of the shared
files that it imports. `make golden` accepts: do so only when equal inputs still give equal output.
"""

from __future__ import annotations

import ast
import hashlib
import json
import os
from functools import cache
from pathlib import Path

import pytest

from tapml import registry

ROOT = Path(__file__).parents[2]
STAGES = ROOT / "stages"
RECORD = ROOT / "tests" / "golden" / "fingerprints.json"
ROOMS = {p.parent.name: p.parent for p in sorted(STAGES.glob("*/stage.py"))}


@cache
def syntax(path: Path) -> str:
    """The syntax tree of a file without docstrings; the text of one in C."""
    if path.suffix != ".py":
        return path.read_text(encoding="utf-8")
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list) and body and isinstance(body[0], ast.Expr):
            value = body[0].value
            if isinstance(value, ast.Constant) and isinstance(value.value, str):
                body[0].value = ast.Constant(value="")
    return ast.dump(tree)


@cache
def shared_imports(path: Path) -> set[Path]:
    """Files directly below stages/ (and platforms/) that a file imports relatively."""
    found = set()
    depth = len(path.relative_to(STAGES).parts)
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.level == depth:
            module = node.module.split(".") if node.module else []
            for alias in node.names:
                for stem in ([*module, alias.name], module):
                    candidate = STAGES.joinpath(*stem).with_suffix(".py") if stem else STAGES
                    if candidate.is_file():
                        found.add(candidate)
    return found


def fingerprint(room: Path) -> str:
    files = set(room.rglob("*.py"))
    todo = list(files)
    files |= {*room.rglob("*.c"), *room.rglob("*.h")}
    while todo:
        for found in shared_imports(todo.pop()) - files:
            files.add(found)
            todo.append(found)
    digest = hashlib.sha256()
    for path in sorted(files):
        digest.update(f"{path.relative_to(STAGES)}\0{syntax(path)}\0".encode())
    return digest.hexdigest()[:16]


@pytest.mark.parametrize("room", sorted(ROOMS))
def test_golden_fingerprint_of_a_room_changes_only_with_its_version(room: str) -> None:
    classes = {
        cls.__module__.split(".")[1]: cls
        for cls in map(registry.stage_class, registry.stage_names())
        if cls.__module__.startswith("tapml_stages.")
    }
    now = {"version": classes[room].version, "fingerprint": fingerprint(ROOMS[room])}
    recorded = json.loads(RECORD.read_text()) if RECORD.exists() else {}
    if os.environ.get("TAPML_UPDATE_GOLDEN"):
        RECORD.parent.mkdir(exist_ok=True)
        recorded[room] = now
        RECORD.write_text(json.dumps(recorded, indent=1, sort_keys=True) + "\n")
    assert recorded.get(room) == now, (
        f"the code of {room} changed: raise `version` in stages/{room}/stage.py if equal inputs "
        "may give other output, then accept with `make golden`"
    )
