"""Default schedules: every PrimFunc is given to the rules in turn, until one takes it."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from importlib.metadata import entry_points
from typing import Any

from tapml.stage import Target

from .. import records
from ..compat import tvm
from .kernel import Unfit, as_int, read
from .stage import RULES

Rule = Callable[[Any, Target], Any]  # an unscheduled PrimFunc → a scheduled one, or None to decline

ORDER = (
    "cached_attention",
    "recurrence",
    "attention",
    "tensorize",
    "dense",
    "pointwise_depthwise",
    "conv",
    "depthwise",
    "pool",
    "matmul",
    "rows",
    "columns",
    "elementwise",
    "fallback",
)


@cache
def rules() -> tuple[tuple[str, Rule], ...]:
    """Installed rules by name: those of other packages first, then the built-in ones, the one that
    never declines last.
    """

    def place(name: str) -> int:
        return ORDER.index(name) if name in ORDER else -1

    found = sorted(entry_points(group=RULES), key=lambda entry: (place(entry.name), entry.name))
    return tuple((entry.name, entry.load()) for entry in found)


def schedule(func: Any, target: Target) -> tuple[Any, str]:
    """The scheduled PrimFunc and the name of the rule that made it."""
    for name, rule in rules():
        try:
            scheduled = rule(func, target)
        except (Unfit, tvm.s_tir.ScheduleError):
            continue
        if scheduled is not None:
            return scheduled, name
    raise AssertionError(f"the rule {ORDER[-1]!r} declined")


def default_records(mod: Any, target: Target) -> list[records.Record]:
    """One record for each PrimFunc of the program but those that only pack weights, in order of
    their names. Equal ones are scheduled once.
    """
    result: list[records.Record] = []
    known: dict[str, tuple[Any, str]] = {}
    functions = {var.name_hint: func for var, func in mod.functions.items()}
    for name in sorted(functions):
        func = functions[name]
        if not isinstance(func, tvm.tirx.PrimFunc) or "tapml.transform" in (func.attrs or {}):
            continue
        workload = records.workload_hash(func)
        if workload not in known:
            known[workload] = schedule(func, target)
        scheduled, rule = known[workload]
        scheduled = records.bare(scheduled).with_attrs(dict(func.attrs or {}))
        result.append(
            records.make(name, func, scheduled, kind="default", rule=rule, flops=flops(func))
        )
    return result


def flops(func: Any) -> float:
    """Operations of all reductions that multiply and add, symbolic sizes counted as one; 0 when the
    kernel is opaque.
    """
    kernel = read(func)
    if kernel is None:
        return 0.0
    total = 0.0
    for step in kernel.reductions:
        amount = 2.0 if isinstance(step.element, tvm.tirx.Mul) else 1.0
        for axis in (*step.axes, *step.reduce):
            size = as_int(axis.extent)
            amount *= size if isinstance(size, int) else 1
        total += amount
    return total
