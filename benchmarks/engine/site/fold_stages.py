"""Stages with a trivial body, as a plug-in package brings them: found by their entry points."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from tapml.stage import Context, Inputs, Kind, Outputs, Stage

_SIZE = 1024


class Fold(Stage):
    """number: salt and inputs folded into one, as text of 1 KB."""

    name: ClassVar[str] = "fold"
    version: ClassVar[int] = 1
    inputs: ClassVar[Mapping[str, Kind]] = {"a": "number", "b": "number"}
    optional: ClassVar[frozenset[str]] = frozenset({"a", "b"})
    outputs: ClassVar[Mapping[str, Kind]] = {"number": "number"}

    salt: int = 0

    def run(self, inputs: Inputs, ctx: Context) -> Outputs:
        total = self.salt
        for path in inputs.values():
            total = (total * 131 + int(path.read_text()) + 7) % 1000003
        path = ctx.workdir / "number"
        path.write_text(f"{total:<{_SIZE - 1}}\n")
        return Outputs({"number": path})


class Join(Fold):
    """The same for many inputs."""

    name: ClassVar[str] = "join"
    inputs: ClassVar[Mapping[str, Kind]] = {f"i{index:05}": "number" for index in range(1000)}
    optional: ClassVar[frozenset[str]] = frozenset(inputs)
