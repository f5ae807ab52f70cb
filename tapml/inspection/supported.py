"""Operators that the importers take, by a table that a script of the importer makes."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any, Literal, cast

TABLE = Path(__file__).with_name("operators.json")


@cache
def table() -> dict[str, Any]:
    """Versions of the packages that the table was made with and, by source, operators."""
    return cast("dict[str, Any]", json.loads(TABLE.read_text(encoding="utf-8")))


def supported(source: Literal["onnx", "torch"]) -> frozenset[str]:
    return frozenset(cast("str", table()[source]).split())
