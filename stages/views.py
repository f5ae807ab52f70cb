"""Readable IR of `--dump-ir`: what each pass was given, what it made, and the difference."""

from __future__ import annotations

from collections.abc import Callable
from difflib import unified_diff
from pathlib import Path
from typing import Any

Watch = Callable[[str, Any], None]  # name of a pass, the module it made


class Views:
    """Writes `NN-<pass>.before.py`, `.after.py` and `.diff` for each module that it is shown.

    In: the folder (None: nothing is written), and the module before the first pass.
    """

    def __init__(self, folder: Path | None, mod: Any) -> None:
        self._folder, self._count = folder, 0
        self._before = "" if folder is None else _script(mod)

    def __call__(self, name: str, mod: Any) -> None:
        """Shows what the pass `name` made of the module that was shown before."""
        if self._folder is None:
            return
        before, after = self._before, _script(mod)
        self._folder.mkdir(parents=True, exist_ok=True)
        changed = unified_diff(
            before.splitlines(), after.splitlines(), "before", "after", lineterm="", n=2
        )
        stem = f"{self._count:02}-{name}"
        texts = {
            "before.py": before,
            "after.py": after,
            "diff": "\n".join(changed) or "nothing changed",
        }
        for suffix, text in texts.items():
            (self._folder / f"{stem}.{suffix}").write_text(f"{text.rstrip()}\n", encoding="utf-8")
        self._before, self._count = after, self._count + 1


def _script(mod: Any) -> str:
    """The module as TVMScript; in the forms that lie between two passes of the build, which have no
    script, as far as the printer gets."""
    return mod.script(show_meta=False)
