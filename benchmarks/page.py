"""Tables of the docs: what a benchmark writes between its marks."""

from __future__ import annotations

from pathlib import Path

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
