"""The recipe's target, resolved to full text from tables: no TVM, no LLVM."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Literal

from pydantic import Field

from .errors import RecipeError, nearest
from .stage import Device, Frozen, Target

ARCHES = ("x86_64", "aarch64", "riscv64")

# preset → (architecture, LLVM CPU name)
PRESETS: Mapping[str, tuple[str, str]] = {
    "x86-64": ("x86_64", "x86-64"),
    "x86-64-v2": ("x86_64", "x86-64-v2"),
    "x86-64-v3": ("x86_64", "x86-64-v3"),
    "x86-64-v4": ("x86_64", "x86-64-v4"),
    "aarch64": ("aarch64", "generic"),
    "riscv64": ("riscv64", "generic-rv64"),
}


class DeviceSection(Frozen):
    """Where the library is run and measured."""

    kind: Literal["local"] = Field("local", description="`local`: this machine")
    threads: int | None = Field(
        None, ge=1, description="Threads of the library and its peer; all cores when left out"
    )


class TargetSection(Frozen):
    """What to compile for, and where to run it."""

    preset: str | None = Field(
        None, description="`cpu` (this machine; the default) or an architecture level such as x86-64-v3"
    )
    kind: Literal["llvm"] = Field("llvm", description="Code generator")
    mcpu: str | None = Field(None, description="LLVM's name of the CPU, such as znver3; over the preset's")
    mtriple: str | None = Field(None, description="LLVM's target triple; the preset's when left out")
    cores: int | None = Field(None, ge=1, description="Cores to compile for; this machine's when left out")
    device: DeviceSection = Field(default_factory=DeviceSection, description="Where it is run")


def resolve(section: TargetSection) -> Target:
    """The full target of a recipe.

    Raises: RecipeError for an unknown preset, CPU or triple, with the nearest name.
    """
    raise NotImplementedError
