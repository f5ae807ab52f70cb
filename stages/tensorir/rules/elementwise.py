"""Kernels without a reduction: elementwise chains, transposes, concatenations, resizes, gathers."""

from __future__ import annotations

from typing import Any

from tapml.stage import Target

from ..kernel import read
from ..loops import scheduled, seq
from ..nests import elementwise as nest_of


def elementwise(func: Any, target: Target) -> Any | None:
    """Every output in one pass, vectors over its last axis, what is before it inlined."""
    kernel = read(func)
    if kernel is None or kernel.reductions or not kernel.outputs:
        return None
    held = {}
    return scheduled(func, seq(nest_of(kernel, step, held, target) for step in kernel.outputs))
