"""OpenBLAS, from the wheel that SciPy links against."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from .library import Library, Parts


def _product() -> Any:
    from ..compat import tvm

    dpl = tvm.relax.dpl
    weight = dpl.wildcard()
    transposed = dpl.is_op("relax.permute_dims")(weight)
    return dpl.is_op("relax.matmul")(dpl.wildcard(), transposed | weight)


def _parts() -> Parts:
    import scipy_openblas32 as wheel

    folder = Path(wheel.get_lib_dir())
    return Parts((Path(wheel.get_include_dir()),), (folder / wheel.get_library(fullname=True),))


BLAS = Library(
    pattern=_product,
    function="tapml_blas_dense",
    source=Path(__file__).with_name("blas.c"),
    parts=_parts,
    distribution="scipy-openblas32",
    extra="tapml[blas]",
)
