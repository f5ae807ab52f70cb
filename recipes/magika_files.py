"""Writes magika_files.txt: digest, package and path of files that tapml[recipes] depends on.

    python recipes/magika_files.py

Run it after the lock changed. It takes some files of every extension, spread over the packages, and
fills up with common ones; nothing that is compiled or differs between platforms.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from importlib import metadata
from pathlib import Path

from magika_inputs import MANIFEST

TOTAL, PER_EXTENSION = 560, 10
# compiled, or written while a package is built or installed
SKIPPED = re.compile(
    r"\.(so|pyc|a|lib|dll|exe|dylib)(\.|$)|dist-info|__pycache__|config|version|^\.\."
)
COMMON = frozenset({".py", ".js", ".h", ".json", ".md", ".txt"})


def packages(name: str = "tapml", extra: str = "recipes") -> set[str]:
    """The package's dependencies with an extra, and theirs; itself not included."""
    found: set[str] = set()
    waiting = [(name, frozenset({extra}))]
    while waiting:
        package, extras = waiting.pop()
        for text in metadata.requires(package) or []:
            requirement, _, marker = text.partition(";")
            wanted = re.search(r"extra == ['\"]([\w-]+)", marker)
            match = re.match(r"([\w.-]+)(?:\[([\w,-]+)\])?", requirement)
            if match is None or (wanted and wanted[1] not in extras):
                continue
            child = re.sub(r"[-_.]+", "-", match[1]).lower()
            more = frozenset((match[2] or "").split(",")) - {""}
            if child == name and more:
                waiting.append((name, more))
            elif child != name and child not in found and _installed(child):
                found.add(child)
                waiting.append((child, more))
    return found


def _installed(package: str) -> bool:
    try:
        metadata.distribution(package)
    except metadata.PackageNotFoundError:
        return False
    return True


def candidates() -> list[tuple[str, str, Path]]:
    """(package, path in it, file) of everything that may be listed, in an order that mixes them."""
    rows: list[tuple[str, str, Path]] = []
    for package in sorted(packages()):
        distribution = metadata.distribution(package)
        for file in distribution.files or []:
            path = Path(str(distribution.locate_file(file)))
            if file.suffix and not SKIPPED.search(str(file)) and _fits(path):
                rows.append((package, file.as_posix(), path))
    return sorted(rows, key=lambda row: hashlib.sha256(row[1].encode()).digest())


def _fits(path: Path) -> bool:
    return path.is_file() and 64 <= path.stat().st_size <= 2**20


def choose() -> list[tuple[str, str, Path]]:
    """At most PER_EXTENSION of each extension, then common ones until there are TOTAL."""
    count: Counter[str] = Counter()
    chosen, spare = [], []
    for row in candidates():
        extension = row[2].suffix.lower()
        (chosen if count[extension] < PER_EXTENSION else spare).append(row)
        count[extension] += 1
    more = [row for row in spare if row[2].suffix in COMMON]
    return sorted([*chosen, *more[: max(0, TOTAL - len(chosen))]])


def main() -> None:
    chosen = choose()
    lines = [
        f"{hashlib.sha256(path.read_bytes()).hexdigest()} {package} {name}\n"
        for package, name, path in chosen
    ]
    MANIFEST.write_text("".join(lines), encoding="utf-8")
    extensions = {path.suffix.lower() for _, _, path in chosen}
    owners = {package for package, _, _ in chosen}
    print(f"{len(lines)} files of {len(extensions)} extensions from {len(owners)} packages")


if __name__ == "__main__":
    main()
