"""The passes of the relax room, in order."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from typing import Any

from ..dataflow import bindings, is_operator_call, op_name, operands, remove_dead_code, rx
from ..noops import remove_noops
from ..program import IMPORTED
from .arithmetic import canonicalize
from .batch_norm import fold_batch_norm
from .gather import elementwise_before_take, one_hot_to_take
from .norms import fuse_rms_norm
from .padding import fold_padding
from .regions import mark_regions
from .shapes import fold_shapes

Pass = Callable[[Any], Any]
Named = tuple[str, Pass]


def passes(
    *, reciprocal: bool = True, user: Sequence[Named] = (), kept: Collection[str] = ()
) -> list[Named]:
    """Name and function of each pass.

    In: `user`: those of the recipe's author, run before regions are marked; `kept`: weights that
        stay as the source stores them
    """
    return [
        ("remember_imported", remember_imported),
        ("fold_shapes", fold_shapes),
        ("canonicalize", lambda mod: remove_dead_code(canonicalize(mod, reciprocal=reciprocal))),
        ("remove_noops", lambda mod: remove_dead_code(remove_noops(mod))),
        ("fold_padding", lambda mod: remove_dead_code(fold_padding(mod))),
        ("one_hot_to_take", lambda mod: remove_dead_code(one_hot_to_take(mod))),
        (
            "elementwise_before_take",
            lambda mod: remove_dead_code(elementwise_before_take(mod, kept)),
        ),
        ("fold_batch_norm", lambda mod: remove_dead_code(fold_batch_norm(mod))),
        ("fuse_rms_norm", lambda mod: remove_dead_code(fuse_rms_norm(mod))),
        ("decompose", lambda mod: rx.transform.DecomposeOpsForInference()(mod)),
        ("remove_noops_again", lambda mod: remove_dead_code(remove_noops(mod))),
        *user,
        ("mark_regions", mark_regions),
    ]


def remember_imported(mod: Any) -> Any:
    """`mod` with the imported dataflow as an attribute: value → values and parameters it reads."""
    reads = {
        var.name: list(
            dict.fromkeys(leaf.name for leaf in operands(value) if isinstance(leaf, rx.Var))
        )
        for var, value in bindings(mod["main"])
    }
    return mod.with_attr(IMPORTED, json.dumps(reads))


def operator_counts(mod: Any) -> Counter[str]:
    """How often each operator is called, in all Relax functions."""
    counts: Counter[str] = Counter()
    for func in mod.functions.values():
        if isinstance(func, rx.Function):
            counts.update(op_name(call) for _, call in bindings(func) if is_operator_call(call))
    return counts
