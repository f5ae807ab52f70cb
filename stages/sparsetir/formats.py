"""Formats: how a matrix [N, K] is stored, as an axes factory, a structure (NumPy) and figures to
judge it by.

Rows of the matrix are outputs of the product, whatever the source layout of the weight was;
`packing.py` packs the values.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from ..packing import block_view
from .language import Builder, Size

INT32_MAX = 2**31 - 1


class FormatError(ValueError):
    """A format cannot hold a matrix."""


@dataclass(frozen=True)
class Format:
    """CSR, or BSR with blocks of (outputs, inputs); CSR is BSR of single elements whose two unit
    axes are left out."""

    kind: Literal["csr", "bsr"]
    block: tuple[int, int] = (1, 1)

    @property
    def name(self) -> str:
        outputs, inputs = self.block
        return (
            "csr"
            if self.kind == "csr"
            else f"bsr{outputs}" + (f"x{inputs}" if inputs != outputs else "")
        )

    def blocks(self, n: int, k: int) -> tuple[int, int]:
        """Blocks over N and over K; the edges are padded."""
        return -(-n // self.block[0]), -(-k // self.block[1])

    def declare(self, builder: Builder, n: Size, k: Size) -> tuple[str, ...]:
        """Adds this format's axes to a program; returns those of the weight, in storage order."""
        if self.kind == "csr":
            rows = builder.axis("J", n)
            return rows, builder.axis("KS", k, rows, indptr="indptr", indices="indices")
        assert isinstance(n, int)
        assert isinstance(k, int)
        over_n, over_k = self.blocks(n, k)
        rows = builder.axis("JO", over_n)
        columns = builder.axis("KO", over_k, rows, indptr="indptr", indices="indices")
        return rows, columns, builder.axis("KI", self.block[1]), builder.axis("JI", self.block[0])


@dataclass(frozen=True)
class Structure:
    """Which blocks of a matrix are stored: compressed rows of block columns."""

    format: Format
    shape: tuple[int, int]
    nnz: int
    indptr: np.ndarray
    indices: np.ndarray

    @property
    def stored_blocks(self) -> int:
        return int(self.indptr[-1])

    @property
    def stored(self) -> int:
        """Stored elements, padding included."""
        return self.stored_blocks * self.format.block[0] * self.format.block[1]

    @property
    def padding(self) -> float:
        """Stored / nonzero elements."""
        return self.stored / self.nnz if self.nnz else 1.0

    @property
    def density(self) -> float:
        """Nonzero / all elements."""
        return self.nnz / max(1, self.shape[0] * self.shape[1])

    @property
    def stored_share(self) -> float:
        """Stored blocks / all blocks: the share of the dense product's work that is left."""
        over_n, over_k = self.format.blocks(*self.shape)
        return self.stored_blocks / max(1, over_n * over_k)

    def arrays(self, chunks: int) -> dict[str, np.ndarray]:
        """The arrays that kernels read; an empty structure has one dummy index, so that no array
        is empty."""
        return {
            "indptr": self.indptr,
            "indices": self.indices if len(self.indices) else np.zeros(1, np.int32),
            "splits": split_rows(self.indptr, chunks),
        }


def structure_of(mask: np.ndarray, form: Format) -> Structure:
    """The structure that stores every block of `mask` (bool [N, K]) with a nonzero in it.

    Raises: FormatError when positions would not fit 32 bits.
    """
    kept = block_view(mask, *form.block).any(axis=(2, 3)) if form.kind == "bsr" else mask
    check_positions(int(kept.sum(dtype=np.int64)) * form.block[0] * form.block[1])
    indptr = np.concatenate([[0], np.cumsum(kept.sum(axis=1))]).astype(np.int32)
    indices = np.nonzero(kept)[1].astype(np.int32)
    return Structure(form, (mask.shape[0], mask.shape[1]), int(mask.sum()), indptr, indices)


def check_positions(elements: int) -> None:
    """Raises FormatError when an element's offset would overflow the kernels' 32-bit positions."""
    if elements > INT32_MAX:
        raise FormatError(f"{elements} elements do not fit 32-bit positions")


def split_rows(indptr: np.ndarray, chunks: int) -> np.ndarray:
    """Borders [chunks + 1] that cut the compressed rows into runs of about equal work (blocks,
    plus one a row)."""
    rows = len(indptr) - 1
    work = indptr.astype(np.int64) + np.arange(rows + 1)
    goals = work[-1] * np.arange(1, chunks) / chunks
    inner = np.searchsorted(work, goals)
    return np.concatenate([[0], inner, [rows]]).astype(np.int32)
