"""The C compiler of this machine: it links libraries, and compiles what users bring in C."""

from __future__ import annotations

import os
import shutil
import subprocess

from tapml.errors import EnvironmentalError


def compiler() -> str | None:
    """The compiler driver: `$CXX`, `$CC`, or the first of the usual names on PATH."""
    named = os.environ.get("CXX") or os.environ.get("CC")
    usual = ("g++", "gcc", "clang++", "clang", "c++", "cc")
    return next((found for name in (named, *usual) if name and (found := shutil.which(name))), None)


def compiler_version() -> str:
    """Its first line on itself; `missing` when there is none."""
    path = compiler()
    if path is None:
        return "missing"
    answer = subprocess.run([path, "--version"], capture_output=True, text=True, check=False)
    return answer.stdout.partition("\n")[0]


def demand_compiler(why: str) -> None:
    """Raises EnvironmentalError when there is no compiler."""
    if compiler() is None:
        raise EnvironmentalError(
            message=f"no C compiler on PATH; {why}",
            hint="install one (Debian: apt-get install g++), or name one in CXX",
        )
