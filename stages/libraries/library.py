"""What a library offers: patterns of products that it computes, a shim in C, files to ship.

A package of its own registers one: an entry point of the group `tapml.libraries` names a `Library`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.metadata import entry_points, version
from pathlib import Path
from typing import Any

from tapml.errors import EnvironmentalError

GROUP = "tapml.libraries"


@dataclass(frozen=True)
class Parts:
    """What a library is built from: folders of headers, shared libraries to link and to ship."""

    include: tuple[Path, ...]
    files: tuple[Path, ...]


@dataclass(frozen=True)
class Library:
    """A library that may compute the products of regions.

    pattern:      the product that it computes, a pattern of `tvm.relax.dpl`, made when it is needed
    function:     what the shim exports: void f(const float* x, const float* w, float* y, and as
                  int64_t m, k, n, transposed, share, shares), for X [M, K], W as in the source
                  (`transposed` is 1 when that is [N, K]) and Y [M, N], rows without gaps. It writes
                  that share of Y's columns (or rows); it is called once per thread, at one time
    source:       the shim, in C
    parts:        headers and shared libraries; raises ImportError when the package is missing
    distribution: the package that they come from; its version enters the key
    extra:        what to install
    """

    pattern: Callable[[], Any]
    function: str
    source: Path
    parts: Callable[[], Parts]
    distribution: str
    extra: str

    def found(self) -> Parts:
        """Its parts. Raises: EnvironmentalError, with the command that mends it."""
        try:
            return self.parts()
        except ImportError as error:
            raise EnvironmentalError(
                message=f"the library {self.distribution} is not installed",
                hint=f"pip install '{self.extra}'",
            ) from error


@cache
def libraries() -> Mapping[str, Library]:
    """The registered libraries by name."""
    found = sorted(entry_points(group=GROUP), key=lambda entry: entry.name)
    return {entry.name: entry.load() for entry in found}


def versions() -> dict[str, str]:
    """Versions of the registered libraries that are installed."""
    known = {}
    for name, library in libraries().items():
        try:
            known[name] = version(library.distribution)
        except ModuleNotFoundError:  # importlib.metadata's error for what is not installed
            known[name] = "missing"
    return known
