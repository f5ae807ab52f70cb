"""Schedules of one PrimFunc carried over to another one that is like it but for its sizes.

What was decided is kept where it fits, and else replaced by what is next to it: an option of the
space, a divisor of the loop.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from tvm.s_tir import meta_schedule as ms

from ..compat import tvm
from ..search_modules import Decisions, Space, Value

_NUMBER = re.compile(r"\b\d+\b")


def fitted(decisions: Decisions, space: Space) -> dict[str, Value] | None:
    """The decisions of another space of the same module, in this one; None when they do not fit."""
    if decisions.keys() != space.knobs.keys():
        return None
    near = {name: _nearest(decisions[name], options) for name, options in space.knobs.items()}
    return near if space.legal(near) else None


def _nearest(value: Value, options: Sequence[Value]) -> Value:
    """The option itself, the next one of numbers, or of names the first."""
    if value in options or not isinstance(value, int):
        return value if value in options else options[0]
    numbers = [one for one in options if isinstance(one, int)]
    return min(numbers, key=lambda one: abs(math.log((one + 1) / (value + 1))))


def skeleton(func: Any) -> tuple[str, tuple[int, ...]]:
    """A PrimFunc without its sizes, as a hash, and its sizes: those that differ in sizes only
    give the same hash.
    """
    text = func.script()
    sizes = tuple(int(one) for one in _NUMBER.findall(text))
    return hashlib.sha256(_NUMBER.sub("#", text).encode()).hexdigest()[:16], sizes


def distance(one: Sequence[int], other: Sequence[int]) -> float:
    """How unlike the sizes of two PrimFuncs of one skeleton are."""
    return sum(abs(math.log((a + 1) / (b + 1))) for a, b in zip(one, other, strict=True))


def replayed(trace: str, past: Any, func: Any, target: Any) -> tuple[Any, str] | None:
    """The schedule of `func` by a trace of `past`, and its own trace; None when it does not apply.

    Sampled tiles are fitted to the loops that there are; what follows the sampling is done anew.
    """
    old = tvm.s_tir.Schedule(_module(past))
    new = tvm.s_tir.Schedule(_module(func))

    def decide(inst: Any, inputs: Any, attrs: Any, decision: Any) -> Any:
        if decision is None or inst.kind.name != "SamplePerfectTile":
            return decision
        extent = int(new.get(inputs[0]).extent)
        return _tiles(extent, [int(size) for size in decision], int(attrs[1]))

    try:
        tvm.s_tir.schedule.Trace.apply_json_to_schedule(json.loads(trace), old)
        assert old.trace is not None
        old.trace.apply_to_schedule(new, remove_postproc=True, decision_provider=decide)
        new.enter_postproc()
        applied = all(one.apply(new) for one in _context(func, target).space_generator.postprocs)
    except Exception:  # a trace is a stranger's: TVM raises whatever it likes where it does not fit
        return None
    if not applied or new.trace is None:
        return None
    return new.mod["main"], json.dumps(plain(new.trace.as_json()))


def plain(value: Any) -> Any:
    """TVM's containers as lists and numbers."""
    match value:
        case None | bool() | int() | float() | str():
            return value
        case _ if isinstance(value, tvm.tirx.IntImm | tvm.tirx.FloatImm):
            return value.value
    return [plain(one) for one in value]


def _tiles(extent: int, sizes: list[int], innermost: int) -> list[int]:
    """Sizes of tiles, outermost first, whose product is the extent, each near what it was."""
    left, fit = extent, []
    for place, size in enumerate(reversed(sizes[1:])):
        most = innermost if place == 0 else left
        divisors = [one for one in range(1, min(left, most) + 1) if left % one == 0]
        fit.append(min(divisors, key=lambda one: abs(math.log(one / size))))
        left //= fit[-1]
    return [left, *reversed(fit)]


def _module(func: Any) -> Any:
    return tvm.IRModule({"main": func.with_attr("global_symbol", "main")})


@lru_cache(maxsize=1)
def _context(func: Any, target: Any) -> Any:
    """What MetaSchedule's postprocessors ask; the rules of the space do not matter."""
    return ms.TuneContext(
        _module(func),
        target=target,
        space_generator=ms.space_generator.PostOrderApply(sch_rules=[]),
        search_strategy=ms.search_strategy.ReplayTrace(),
        num_threads=1,
    )
