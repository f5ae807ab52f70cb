"""Writes tapml/inspection/operators.json: the operators that the importers take.

`tapml inspect` reads it, so that it needs neither TVM nor torch. Run it after a new wheel, a new
torch or a new converter: `python -m tapml_stages.importer.operator_table`.
"""

from __future__ import annotations

import json
import re
from importlib import metadata
from typing import Any

from tapml.inspection.supported import TABLE

from ..compat import tvm as tvm


def table() -> dict[str, Any]:
    """Versions, and by source the names of operators (sorted, in one string)."""
    return {
        **{name: metadata.version(name) for name in ("apache-tvm", "torch", "onnx")},
        "onnx": " ".join(sorted(_onnx())),
        "torch": " ".join(sorted(_torch())),
    }


def _onnx() -> set[str]:
    from .onnx import convert

    return {*convert.known(), "Constant"}


def _torch() -> set[str]:
    """Operators with a converter, and those that torch takes apart (into such, as a rule)."""
    import torch
    from torch._decomp import decomposition_table

    from .torch import convert, converters

    found = {*convert.translator.ExportedProgramImporter().create_convert_map()}
    found |= converters.CONVERTERS.keys()
    taken_apart = [one for one in decomposition_table if isinstance(one, torch._ops.OpOverload)]
    found |= {one.name().removeprefix("aten::") for one in taken_apart if one.namespace == "aten"}
    composite = "CompositeImplicitAutograd"
    for name in torch._C._dispatch_get_all_op_names():
        if torch._C._dispatch_has_kernel_for_dispatch_key(name, composite):
            found.add(name.removeprefix("aten::"))
    names = {name if "." in name else f"{name}.default" for name in found if "::" not in name}
    names = {name for name in names if not re.search(r"[._]out$|backward", name)}
    return (names | _SIZES | _WRAPPED) - converters.REFUSED.keys()


# operators on sizes, which shapes take in, and those whose graph is written where they stand
_SIZES = {
    f"_operator.{name}"
    for name in ("add", "sub", "mul", "floordiv", "mod", "neg", "eq", "ne", "lt", "le", "gt", "ge",
                 "getitem")
} | {"sym_size.int", "sym_numel.default", "sym_constrain_range.default"}  # fmt: skip
_WRAPPED = {"higher_order.wrap_with_set_grad_enabled", "higher_order.wrap_with_autocast"}


def main() -> None:
    TABLE.write_text(json.dumps(table(), indent=1) + "\n", encoding="utf-8")
    print(f"{TABLE}: {TABLE.stat().st_size} bytes")


if __name__ == "__main__":
    main()
