"""Values of a sparse weight, laid out as its kernel reads them. NumPy only: measuring, codegen and
validation share it.

Structure (which blocks are stored) and values (what is in them) are apart: the structure comes
from a mask and is fixed when kernels are generated; values are packed once, from whatever weights
have that structure.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np


def pack_values(
    weight: np.ndarray, structure: Mapping[str, np.ndarray], spec: Mapping[str, Any]
) -> np.ndarray:
    """The stored blocks of `weight` in the order of `structure`.

    In:     weight [rows, columns] in source layout; structure with `indptr` and `indices` over the
            blocks of Wᵀ or W (`spec["transpose"]`: the weight is read as [K, N], so that
            compressed rows run over its columns); `spec["block"]` = (outputs, inputs) of one block.
    Out:    csr: [max(nnz, 1)]; bsr: [max(blocks, 1), inputs, outputs]. Padding is 0.0, and so is
            the dummy entry of an empty structure. source: the weight as it is.
    Raises: ValueError when the weight has a nonzero that the structure does not store, or does not
            fit it.
    """
    if spec["packer"] == "source":
        return weight
    outputs, inputs = spec["block"]
    matrix = weight.T if spec["transpose"] else weight
    blocks = block_view(matrix, outputs, inputs)
    indptr, indices = structure["indptr"], structure["indices"]
    if len(indptr) != blocks.shape[0] + 1:
        raise ValueError(f"{len(indptr) - 1} compressed rows do not fit a weight of {weight.shape}")
    count = int(indptr[-1])
    rows = np.repeat(np.arange(blocks.shape[0]), np.diff(indptr))
    columns = indices[:count]
    missed = np.asarray(blocks.any(axis=(2, 3)))
    missed[rows, columns] = False
    if missed.any():
        raise ValueError(f"{int(missed.sum())} blocks of the weight are not in its structure")
    packed = np.zeros((max(count, 1), inputs, outputs), weight.dtype)
    packed[:count] = blocks[rows, columns].transpose(0, 2, 1)
    return packed.reshape(-1) if spec["packer"] == "csr" else packed


def unpack_values(
    values: np.ndarray,
    structure: Mapping[str, np.ndarray],
    spec: Mapping[str, Any],
    shape: tuple[int, int],
) -> np.ndarray:
    """The dense weight [rows, columns], in source layout, of packed values: the inverse of
    `pack_values`."""
    outputs, inputs = spec["block"]
    height, width = shape[::-1] if spec["transpose"] else shape
    indptr, indices = structure["indptr"], structure["indices"]
    count, over = int(indptr[-1]), -(-width // inputs)
    blocks = np.zeros((len(indptr) - 1, over, outputs, inputs), values.dtype)
    rows = np.repeat(np.arange(len(indptr) - 1), np.diff(indptr))
    packed = values.reshape(-1, inputs, outputs)[:count]
    blocks[rows, indices[:count]] = packed.transpose(0, 2, 1)
    matrix = blocks.transpose(0, 2, 1, 3).reshape(len(blocks) * outputs, over * inputs)
    matrix = matrix[:height, :width]
    return np.ascontiguousarray(matrix.T if spec["transpose"] else matrix)


def block_view(matrix: np.ndarray, outputs: int, inputs: int) -> np.ndarray:
    """`matrix` [N, K] as blocks [⌈N/outputs⌉, ⌈K/inputs⌉, outputs, inputs]; edges are padded with
    zeros."""
    height, width = matrix.shape
    padded = np.pad(matrix, ((0, -height % outputs), (0, -width % inputs)))
    blocks = padded.reshape(padded.shape[0] // outputs, outputs, padded.shape[1] // inputs, inputs)
    return blocks.transpose(0, 2, 1, 3)
