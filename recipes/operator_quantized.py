"""Rows for the layer of operator_sparse.py, and what rounding its weight does to the outputs."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

Arrays = Mapping[str, np.ndarray]


def rows() -> list[dict[str, np.ndarray]]:
    """Rows of standard normal numbers: many at once, then a single one."""
    rng = np.random.default_rng(1)
    return [{"x": rng.standard_normal((m, 768), dtype=np.float32)} for m in (128, 1)]


def cosine(outputs: Arrays, reference: Arrays, inputs: Arrays) -> float:
    """The smallest cosine between a row of outputs and that of the original weight."""
    ours, theirs = outputs["output"], reference["output"]
    lengths = np.linalg.norm(ours, axis=-1) * np.linalg.norm(theirs, axis=-1)
    return float(np.min(np.sum(ours * theirs, axis=-1) / lengths))
