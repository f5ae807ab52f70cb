"""Hostile projects from seeds: shipped recipes, mutated; what a stranger or a cat may write."""

from __future__ import annotations

import copy
import itertools
import json
import os
import random
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]
PWNED = "pwned"  # a file of this name appears where anything of a recipe runs

COMPOSED = """\
version: 1
name: composed
extends: base.yaml
vars: {density: 0.5, block: [16, 16], name: v1, deep: {er: [1, "${vars.name}"]}}
description: "${vars.name}"
tags: {team: "${vars.name}", who: "${env:TAPML_VAR_WHO:-nobody}"}
requires: {packages: [numpy]}
x-note: [anything, 1e3]
sparsity:
  prune: {density: "${vars.density}", block: "${vars.block}"}
matrix:
  sparsity.prune.density: [0.1, 0.5]
  sparsity.format: [{kind: csr}, {kind: bsr, block: [16, 16]}]
  exclude: [{sparsity.prune.density: 0.1, sparsity.format: {kind: csr}}]
  include: [{tuning.trials: 3}]
  limit: 16
validation: {gates: {max_error: 0.1, bundle_mib: 30, latency_vs: {run: peer, max_ratio: 2.0}}}
"""
PATHS = (
    "../../etc/passwd",
    "/etc/passwd",
    "/dev/zero",
    "/dev/stdin",
    "/proc/self/mem",
    "pipe",
    "zero",
    "outside",
    "loop",
    "folder",
    "no/such/file",
    "",
    ".",
    "..",
    "~root/.ssh/id_rsa",
    "a" * 300,
    "a/" * 3000,
    "x\0y",
    "file:///etc/passwd",
    "C:\\windows",
    "${package:os}",
    "${package:antigravity}/x",
    "${package:../x}/y",
    "${package:numpy}/../../../../etc/passwd",
    "${package:no_such_package}/m.onnx",
    "${package:}",
    "**",
    "**/x",
    "ring1/**",
    "*/*/*/*/*/*/*/*/*/*/*/*/*/*/*/*/x",
    "[a-z]*/../../*",
    "../*",
    "/**/*",
    "[",
    "pipe/x",
    "recipe.yaml",
    "self.yaml",
    "operator_sparse.py:linear",
    "../x.py:f",
    "broken.py:f",
    "pipe.py:f",
    "zero.py:f",
)
SECRET = "ghp_abcdefghijklmnopqrstuvwxyz0123"  # must not be repeated
TEXTS = (
    SECRET,
    f"https://me:{SECRET}@host/x",
    f"${{env:TAPML_VAR_X:-{SECRET}}}",
    "${env:TAPML_VAR_WHO}",
    "${env:TAPML_VAR_SECRET}",
    "\x1b[2J\x1b[31mred\x1b]0;title\x07",
    "\u202egnirts\u2066",
    "\ufeff",
    "<script>alert(1)</script>",
    "'; drop table runs; --",
    "\ud800",
    "\udfff\ud800",
    "\x00",
    "\x85\u2028\u2029",
    "a\rb\r\nc",
    "é" * 50,
    "漢字" * 200,
    "🦀" * 10,
    "e\u0301\u0323" * 400,
    "x" * 5000,
    "x" * 200_000,
    "- " * 500,
    "%s%n{0}{x!r}",
    "!!python/object/apply:os.system [touch pwned]",
    "!!python/name:os.system",
    "!include recipe.yaml",
    "${vars.a}",
    "${vars.}",
    "${vars.deep.er}",
    "${env:HOME}",
    "${env:TAPML_VAR_X:-1}",
    "${env:API_TOKEN:-x}",
    "${env:}",
    "${" * 500,
    "$${vars.x}",
    "__import__('os').system('touch pwned')",
)
NUMBERS = (
    "0", "-1", "1e3", "1e309", "-1e309", ".nan", ".inf", "-.inf", "1" + "0" * 30, "1" + "0" * 5000,
    "9223372036854775807", "9223372036854775808", "-9223372036854775808", "0x" + "f" * 40, "0o777",
    "012", "1_000", "12:30:45", "2020-01-01", "0.1e-400", "1.7976931348623157e308", "1e400000000",
)  # fmt: skip
VALUES: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 2**31, 2**63 - 1, 2**63, -(2**63), 10**40, 0.5, -0.0, 1e308,
    float("nan"), float("inf"), "", "x", "1", "no", [], {}, [[]], [{}], [None], {"": None},
    {"kind": "x"}, {"kind": ["a"]}, {"kind": {}}, {"python": 3}, {"python": "x.py:f", "reads": "x"},
    [1, "a", None, {}], list(range(300)), {str(i): i for i in range(300)}, {"a": {"b": {"c": {}}}},
)  # fmt: skip
SNIPPETS = (
    "<<: {name: x}",
    "a: &a [*a]",
    "b: *nowhere",
    "? [complex, key]\n: value",
    "1: 2",
    "null: x",
    "{}: x",
    "x-a: &a [1,1,1,1,1,1,1,1,1]\nx-b: &b [*a,*a,*a,*a,*a,*a,*a,*a,*a]\n"
    "x-c: &c [*b,*b,*b,*b,*b,*b,*b,*b,*b]\nx-d: &d [*c,*c,*c,*c,*c,*c,*c,*c,*c]\n"
    "x-e: &e [*d,*d,*d,*d,*d,*d,*d,*d,*d]\nx-f: [*e,*e,*e,*e,*e,*e,*e,*e,*e]",
    "---\nname: second",
    "...",
    "%YAML 9.9\n---",
    "%TAG ! tag:x,2000:\n---",
    "x-t: !!binary |\n  R0lGODlhDAAMAIQAAP",
    "x-s: !!set {a, b}",
    "x-o: !!python/object/apply:os.system ['touch pwned']",
    "x-l: |\n  text\n\ttab",
    "x-q: 'open",
    'x-q: "\\ud83d\\ude00 \\xff \\0 \\e[2J"',
    'x-q: "\\ud800"',
    "\tname: tab",
    "name: twice\nname: thrice",
    "version: 2",
    "version: 99999999999999999999",
    "version: one",
    "workflow: nothing",
    "workflow: {a: b}",
    "extends: self.yaml",
    "extends: [base.yaml, base.yaml, [base.yaml]]",
    "extends: [a.yaml, b.yaml]",
    "extends: chain0.yaml",
    "extends: zero",
    "extends: pipe",
    "extends: ../../../etc/passwd",
    "extends: [" + "base.yaml, " * 3000 + "]",
    "extends: huge.yaml",
    'vars: {a: "${vars.b}", b: "${vars.a}"}',
    'vars: {a: xxxxxxxxxx, b: "${vars.a}${vars.a}${vars.a}", c: "${vars.b}${vars.b}${vars.b}", '
    'd: "${vars.c}${vars.c}${vars.c}", e: "${vars.d}${vars.d}${vars.d}"}\ndescription: '
    '"${vars.e}${vars.e}${vars.e}"',
    'vars: {a: [1,1,1,1,1,1,1,1], b: ["${vars.a}","${vars.a}","${vars.a}","${vars.a}"], '
    'c: ["${vars.b}","${vars.b}","${vars.b}","${vars.b}"], d: ["${vars.c}","${vars.c}",'
    '"${vars.c}","${vars.c}"]}\nx-n: ["${vars.d}", "${vars.d}"]\ntags: "${vars.d}"',
    "vars: [1]",
    "vars: {}",
    "matrix: {}",
    "matrix: [a]",
    "matrix: {tuning.trials: [1, 2, 3], tuning.seed: [1, 2, 3]}",
    "matrix: {tuning.trials: [" + ",".join(map(str, range(600))) + "]}",
    "matrix: {" + ", ".join(f"x-{i}.y: [1, 2, 3, 4]" for i in range(20)) + "}",
    "matrix: {name: [a, b]}",
    "matrix: {'': [1]}",
    "matrix: {tuning..trials: [1]}",
    "matrix: {tuning.trials: []}",
    "matrix: {include: {a: b}, exclude: 3, limit: 0}",
    "matrix: {limit: 99999, include: [{model: null}]}",
    "matrix: {model: [1, null, {}], target: [[], {preset: cpu}]}",
    "matrix: {tuning.trials: [1, 2], exclude: [{tuning.trails: 1}]}",
    "requires: {packages: ['numpy>=99', '../x', '-r x', '']}",
    "requires: {devices: [cuda, '']}",
    "requires: [numpy]",
    'tags: {"\\e[2J": "\\e[2J"}',
    "tags: [a]",
    "validation: {gates: {metric: {min: .nan}, latency_vs: {run: ../../x, max_ratio: -1}}}",
    "validation: {inputs: ../../../etc/passwd}",
    "target: {preset: no, cores: 99999999999}",
    "target: {kind: llvm, mcpu: '-rm -rf', mtriple: ';', device: {threads: 0}}",
    "model: {source: onnx, path: zero}",
    "model: {source: onnx, path: pipe}",
    "model: {source: onnx, path: huge.bin}",
    "model: {source: operator, python: 'pipe.py:f'}",
    "model: {source: operator, python: 'zero.py:f'}",
    "model: {source: operator, python: 'broken.py:f'}",
    "model: {source: operator, python: 'nested.py:f'}",
    "model: {source: operator, python: {python: 'operator_sparse.py:linear', reads: ['/**']}}",
)


@dataclass(frozen=True)
class Case:
    """Files to write into a project and arguments of the command, from one seed."""

    files: dict[str, bytes]
    arguments: tuple[str, ...]


@cache
def corpus() -> dict[str, str]:
    """Texts that mutations start from."""
    recipes = sorted((ROOT / "recipes").glob("*.yaml"))
    return {path.name: path.read_text() for path in recipes} | {"composed.yaml": COMPOSED}


@cache
def schema_paths() -> tuple[tuple[str, ...], ...]:
    """Every path of mappings in the recipe's JSON Schema."""
    from tapml.recipe.editor import model_schema

    schema = model_schema()
    found: list[tuple[str, ...]] = []

    def walk(node: Any, path: tuple[str, ...]) -> None:
        if not isinstance(node, dict) or len(path) > 6:
            return
        if ref := node.get("$ref"):
            walk(schema["$defs"][ref.rpartition("/")[2]], path)
        for arm in (*node.get("anyOf", ()), *node.get("oneOf", ()), *node.get("allOf", ())):
            walk(arm, path)
        for name, below in node.get("properties", {}).items():
            found.append((*path, name))
            walk(below, (*path, name))

    walk(schema, ())
    return tuple(dict.fromkeys(found))


def project(folder: Path) -> None:
    """A folder with the shipped recipes, whose Python tells when it runs, and traps beside them."""
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copy(ROOT / "workflows.yaml", folder / "workflows.yaml")
    for path in filter(Path.is_file, (ROOT / "recipes").iterdir()):  # no __pycache__
        text = path.read_text()
        if path.suffix == ".py":
            text += f"\nopen({str(folder / PWNED)!r}, 'w').close()\n"
        (folder / path.name).write_text(text)
    shutil.copy(folder / "operator_sparse.yaml", folder / "base.yaml")
    (folder / "self.yaml").write_text("extends: self.yaml\n")
    (folder / "a.yaml").write_text("extends: b.yaml\n")
    (folder / "b.yaml").write_text("extends: [base.yaml, a.yaml]\n")
    for i in range(12):
        (folder / f"chain{i}.yaml").write_text(f"extends: chain{i + 1}.yaml\n")
    nested = "".join(f"k{i}: {{a: 1, b: [1, 2, 3]}}\n" for i in range(8000))
    (folder / "huge.yaml").write_text(nested)
    (folder / "broken.py").write_text("def f(:\n")
    (folder / "nested.py").write_text("f = " + "(" * 5000 + ")" * 5000 + "\n")
    with (folder / "huge.bin").open("wb") as out:
        out.truncate(1 << 20)
    (folder / "folder").mkdir(exist_ok=True)
    for name, to in {
        "outside": "/etc/passwd",
        "loop": "loop",
        "ring1": ".",
        "ring2": ".",
        "zero": "/dev/zero",
        "zero.py": "/dev/zero",
    }.items():
        (folder / name).symlink_to(to)
    os.mkfifo(folder / "pipe")
    os.mkfifo(folder / "pipe.py")


def case(seed: int) -> Case:
    """The case of a seed; the same one wherever the shipped recipes are the same."""
    rng = random.Random(seed)
    name = rng.choice(sorted(corpus()))
    body = corpus()[name]
    arguments: list[str] = []
    in_tree = rng.random() < 0.5
    if in_tree:
        body = _tree(rng, body)
    for _ in range(rng.choice((0, 0, 0, 1, 3) if in_tree else (0, 1, 1, 1, 2, 4))):
        body = rng.choice(_TEXT_STEPS)(rng, body)
    if rng.random() < 0.25:
        arguments += [_override(rng) for _ in range(rng.choice((1, 1, 3)))]
    if rng.random() < 0.05:
        option = rng.choice(("--to", "--force", "--from"))
        arguments += [f"{option}={rng.choice((*TEXTS, 'codegen', 'tensorir', ''))}"]
    content = body.encode("utf-8", "surrogatepass")
    if rng.random() < 0.2:
        content = _bytes(rng, content)
    files = {"recipe.yaml": content}
    if rng.random() < 0.1:
        above = rng.choice(SNIPPETS) if rng.random() < 0.5 else "name: x"
        child = f"extends: parent.yaml\n{above}\n"
        files = {"parent.yaml": content, "recipe.yaml": child.encode()}
    if rng.random() < 0.12:
        files["flows.yaml"] = _workflow(rng)
        arguments.append("--workflows=flows.yaml")
    cleaned = (one.replace("\0", "\\0") for one in arguments)  # an argument cannot hold one
    return Case(files, tuple(one.encode("utf-8", "replace").decode()[:100_000] for one in cleaned))


def _tree(rng: random.Random, body: str) -> str:
    """The text with values of other types, unknown keys, hostile texts and paths in its tree."""
    tree = yaml.safe_load(body)
    for _ in range(rng.choice((1, 1, 1, 1, 2, 5))):
        step = rng.randrange(6)
        if step < 3:  # some field of the schema or of the text, whether it is there or not
            path = rng.choice(schema_paths()) if step else rng.choice(_leaves(tree))
            _put(tree, path, rng.choice((_value, _value, _text, _path))(rng))
        elif step == 3:
            spot = rng.choice(_mappings(tree))
            spot[str(_text(rng))] = _value(rng)
        elif step == 4:
            spot = rng.choice([one for one in _mappings(tree) if one] or [tree])
            if spot:
                spot.pop(rng.choice(list(spot)))
        else:
            spot = rng.choice([one for one in _mappings(tree) if one] or [tree])
            if spot:
                key = rng.choice(list(spot))
                spot[_misspelt(rng, str(key))] = spot.pop(key)
    if rng.random() < 0.5:
        return json.dumps(tree, ensure_ascii=rng.random() < 0.5)
    return str(yaml.safe_dump(tree, sort_keys=False, allow_unicode=True))


def _leaves(tree: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    rows = tree.items() if isinstance(tree, dict) else enumerate(tree)
    found: list[tuple[Any, ...]] = []
    for key, value in rows:
        found.append((*path, key))
        if isinstance(value, dict | list):
            found += _leaves(value, (*path, key))
    return found or [("name",)]


def _mappings(tree: Any) -> list[dict[Any, Any]]:
    if isinstance(tree, list):
        return [one for row in tree for one in _mappings(row)]
    if not isinstance(tree, dict):
        return []
    return [tree, *(one for row in tree.values() for one in _mappings(row))]


def _put(tree: Any, path: tuple[Any, ...], value: Any) -> None:
    spot = tree
    for part, following in itertools.pairwise(path):
        try:
            below = spot[part]
        except (KeyError, IndexError, TypeError):
            below = None
        if not isinstance(below, list if isinstance(following, int) else dict):
            if not isinstance(spot, dict):
                return
            below = spot[part] = {}
        spot = below
    if isinstance(spot, dict) or (isinstance(path[-1], int) and path[-1] < len(spot)):
        spot[path[-1]] = value


def _value(rng: random.Random) -> Any:
    return copy.deepcopy(rng.choice(VALUES))


def _text(rng: random.Random) -> Any:
    return rng.choice((*TEXTS, *NUMBERS))


def _path(rng: random.Random) -> Any:
    found = rng.choice(PATHS)
    return {"python": found, "reads": [rng.choice(PATHS)]} if rng.random() < 0.2 else found


def _misspelt(rng: random.Random, key: str) -> str:
    at = rng.randrange(len(key) + 1)
    return key[:at] + rng.choice(("", "x", ".", " ", "\t", "É", "\x1b")) + key[at + 1 :]


def _override(rng: random.Random) -> str:
    key = ".".join(map(str, rng.choice(schema_paths())))
    if rng.random() < 0.2:
        key = rng.choice((*TEXTS[:12], "", ".", "a..b", "matrix.tuning.trials", "vars.a", "x-n.a"))
    value = rng.choice(
        (_text, _path, lambda r: json.dumps(_value(r)), lambda r: r.choice(SNIPPETS))
    )
    return f"--set={key}={value(rng)}" if rng.random() < 0.95 else f"--set={value(rng)}"


def _workflow(rng: random.Random) -> bytes:
    body = (ROOT / "workflows.yaml").read_text()
    if rng.random() < 0.5:
        tree = yaml.safe_load(body)
        spot = rng.choice(_mappings(tree))
        known = ("import", "prune", "relax", "codegen", "nothing", "", {"weights": "import"}, [])
        node = {"stage": rng.choice(known), "needs": rng.choice((known, [*known[:3]], _value(rng)))}
        key = rng.choice((*known[:5], "when", "with", "needs", "engine", _text(rng)))
        spot[str(key)] = rng.choice((node, _value(rng), _text(rng), {"a": node, "b": node}))
        body = str(yaml.safe_dump(tree, sort_keys=False))
    else:
        body = rng.choice(_TEXT_STEPS)(rng, body)
    content = body.encode("utf-8", "surrogatepass")
    return _bytes(rng, content) if rng.random() < 0.2 else content


def _bytes(rng: random.Random, content: bytes) -> bytes:
    match rng.randrange(6):
        case 0 | 1 | 2:
            flipped = bytearray(content)
            for _ in range(rng.choice((1, 1, 3, 16)) if flipped else 0):
                flipped[rng.randrange(len(flipped))] = rng.randrange(256)
            return bytes(flipped)
        case 3:
            return content.decode("utf-8", "replace").encode(rng.choice(("utf-16", "utf-32")))
        case 4:
            return b"\xef\xbb\xbf" * rng.choice((1, 2)) + content
        case _:
            return content[: rng.randrange(len(content) + 1)]


def _lines(step: Callable[[random.Random, list[str]], None]) -> Callable[[random.Random, str], str]:
    def changed(rng: random.Random, body: str) -> str:
        lines = body.split("\n")
        step(rng, lines)
        return "\n".join(lines)

    return changed


def _swap_lines(rng: random.Random, lines: list[str]) -> None:
    a, b = rng.randrange(len(lines)), rng.randrange(len(lines))
    lines[a], lines[b] = lines[b], lines[a]


def _duplicate_line(rng: random.Random, lines: list[str]) -> None:
    lines.insert(rng.randrange(len(lines) + 1), rng.choice(lines))


def _delete_line(rng: random.Random, lines: list[str]) -> None:
    lines.pop(rng.randrange(len(lines)))
    lines.append("")


def _indent_line(rng: random.Random, lines: list[str]) -> None:
    at = rng.randrange(len(lines))
    lines[at] = rng.choice((" ", "  ", "\t", " " * 200)) + lines[at]


def _insert_snippet(rng: random.Random, lines: list[str]) -> None:
    lines.insert(rng.choice((0, len(lines), rng.randrange(len(lines) + 1))), rng.choice(SNIPPETS))


def _insert_nesting(rng: random.Random, lines: list[str]) -> None:
    depth = rng.choice((10, 39, 41, 1000, 100_000))
    opening = rng.choice(("[", "{a: ", "- ", "? ", "[{a: "))
    closing = {"[": "]", "{a: ": "}", "[{a: ": "}]"}.get(opening, "") * rng.randrange(2)
    lines.append(f"x-deep: {opening * depth}{closing * depth}")


def _insert_many(rng: random.Random, lines: list[str]) -> None:
    count = rng.choice((100, 5000, 60_000))
    kind = rng.choice(("x-{}: 1", "k{}: 1", "x-{}: &a{} [1]", "{}: {{}}"))
    lines += [kind.replace("{}", str(i)) for i in range(count)]


def _replace_token(rng: random.Random, body: str) -> str:
    tokens = body.split(" ")
    at = rng.randrange(len(tokens))
    other = rng.choice(
        (rng.choice(tokens), rng.choice(TEXTS), rng.choice(NUMBERS), *"[]{}:,&*!|>'")
    )
    tokens[at] = other
    return " ".join(tokens)


def _insert_text(rng: random.Random, body: str) -> str:
    at = rng.randrange(len(body) + 1)
    new = rng.choice((rng.choice(TEXTS), rng.choice(PATHS), chr(rng.randrange(0x250)), "\n", ": "))
    return body[:at] + new + body[at + rng.choice((0, 0, 1, 8)) :]


def _insert_noise(rng: random.Random, body: str) -> str:
    at = rng.randrange(len(body) + 1)
    noise = "".join(rng.choice("{}[]:,-?#&*!|>'\"%@` \n\tab0.~<\\$é\x07\u202e") for _ in range(8))
    return body[:at] + noise + body[at + rng.randrange(6) :]


def _huge(rng: random.Random, body: str) -> str:
    quote = rng.choice(("", "'", '"'))
    size = rng.choice((4000, 5000, 100_000, 900_000, 1_200_000))
    return f"{body}\ndescription: {quote}{rng.choice('x é0') * size}{quote}\n"


_TEXT_STEPS: tuple[Callable[[random.Random, str], str], ...] = (
    *map(_lines, (_swap_lines, _duplicate_line, _delete_line, _indent_line)),
    *[_lines(_insert_snippet)] * 5,
    _lines(_insert_nesting),
    _lines(_insert_many),
    *[_replace_token] * 2,
    *[_insert_text] * 2,
    _insert_noise,
    _huge,
)
