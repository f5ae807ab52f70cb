"""What benchmarks of rows leave: JSON of their results, and tables in the docs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from tapml import host

DOCS = Path(__file__).resolve().parents[1] / "docs"


def place(page: str, name: str, text: str) -> None:
    """Puts `text` into docs/`page` between `<!-- name: … -->` and `<!-- name: end -->`.

    Raises: ValueError for a page without these marks.
    """
    path = DOCS / page
    before, begin, rest = path.read_text(encoding="utf-8").partition(f"<!-- {name}: ")
    mark, close, rest = rest.partition(" -->\n")
    _, end, after = rest.partition(f"<!-- {name}: end -->")
    if not end:
        raise ValueError(f"{path}: no marks of {name!r}")
    path.write_text(f"{before}{begin}{mark}{close}{text}\n{end}{after}", encoding="utf-8")


def keep(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Writes rows with their date, machine and tools."""
    facts = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "host": host.fingerprint(),
        "tools": {tool: version(tool) for tool in ("apache-tvm", "torch", "transformers")},
        "rows": rows,
    }
    path.write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
