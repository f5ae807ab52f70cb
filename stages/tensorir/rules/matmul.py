"""Products of plain matrices (no weight is packed), batched or not, and other reductions over columns."""

from __future__ import annotations

from typing import Any

from tapml.stage import Target

from ..kernel import read


def matmul(func: Any, target: Target) -> Any | None:
    return None
