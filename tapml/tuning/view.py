"""A search as people and programs are shown it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any, cast

from ..stage import Target
from .search import Identity, Search


def row(search: Search) -> dict[str, Any]:
    """The facts of a search as plain data."""
    header = search.header
    return {
        "workload": header.identity.workload,
        "kernel": header.kernel,
        "target": _data(header.identity.target),
        "toolchain": header.identity.toolchain,
        "space": header.identity.space,
        "seed": header.identity.seed,
        "learned": header.identity.learned,
        "trials": len(search.trials),
        "failed": len(search.trials) - len(search.ranked),
        "best_ms": search.best_ms,
        "default_ms": header.default_ms,
        "host": dict(header.host),
        "began": _moment(header.time),
        "latest": _moment(search.latest),
    }


def best(search: Search) -> dict[str, Any] | None:
    """The fastest trial as plain data; None when none worked."""
    if not search.ranked:
        return None
    trial = search.ranked[0]
    return {"ms": trial.ms, "round": trial.round, "key": trial.key, "trace": _data(trial.trace)}


def target(identity: Identity) -> str:
    """`znver3, 2 threads`."""
    try:
        found = Target.model_validate_json(identity.target)
    except ValueError:
        return identity.target[:20]
    threads = found.device.threads
    return f"{found.mcpu or found.kind}, {threads} thread{'s' * (threads > 1)}"


def toolchain(identity: Identity) -> str:
    """The first of the tools, which builds."""
    return " ".join(identity.toolchain.split()[:2])


def steps(trace: str) -> Iterator[str]:
    """A trace line by line: instructions of TVM with the decisions that they took, or the fields
    of what another space wrote.
    """
    match data := _data(trace):
        case [list(), list()]:
            insts, decisions = cast("list[list[Any]]", data)
            taken = {one[0]: one[1] for one in decisions}
            for number, inst in enumerate(insts):
                kind, inputs, attrs, outputs = inst
                made = f"{', '.join(outputs)} = " if outputs else ""
                given = [*map(str, inputs), *map(json.dumps, attrs)]
                chosen = f"  → {json.dumps(taken[number])}" if number in taken else ""
                yield f"{made}{kind}({', '.join(given)}){chosen}"
        case dict():
            for name, value in cast("dict[str, Any]", data).items():
                yield f"{name}: {json.dumps(value)}"
        case _:
            yield trace


def _data(text: str) -> Any:
    """What JSON says; the text itself when it is none."""
    try:
        return json.loads(text)
    except ValueError:
        return text


def _moment(when: int) -> str:
    return datetime.fromtimestamp(when, UTC).isoformat()
