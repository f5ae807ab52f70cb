"""The explorers of each workload: what the modules of `tuning.space` offer for it."""

from __future__ import annotations

from functools import partial
from typing import Any

from tapml.stage import Context, Target

from ..search_modules import ScheduleRules, Variants, load
from ..target import tvm_target
from .cost_model import CostModel
from .explorer import RULES, Explorer
from .kernels import Kernel
from .search import RuleSearch
from .stage import Tuning
from .variants import VariantSearch


class Spaces:
    """What searches the spaces of all workloads: the modules of the recipe, and what is learned of
    one workload for the next.
    """

    def __init__(self, tuning: Tuning, target: Target, ctx: Context) -> None:
        modules = load(tuning.space)
        self._seed, self._target = tuning.seed, target
        self._learns = tuning.strategy == "learned"
        self._logger = ctx.logger.getChild("search")
        self._logger.setLevel("WARNING")
        self._variants = {n: one for n, one in modules.items() if isinstance(one, Variants)}
        self._rules = [one for one in modules.values() if isinstance(one, ScheduleRules)]
        self._models = {name: CostModel() if self._learns else None for name in self._variants}

    def open(self, kernel: Kernel) -> dict[str, Explorer]:
        """An explorer for each space of a kernel; MetaSchedule's rules take static sizes only."""
        restore = partial(named_as, func=kernel.func)
        found: dict[str, Explorer] = {}
        for name, module in self._variants.items():
            if (space := module.space(kernel.func, self._target)) is not None:
                found[name] = VariantSearch(name, space, self._models[name], self._seed, restore)
        if self._rules and not kernel.symbolic:
            found[RULES] = RuleSearch(
                kernel.func,
                lambda: [rule for module in self._rules for rule in module.rules(self._target)],
                tvm_target(self._target),
                self._seed,
                restore,
                self._logger,
                learns=self._learns,
            )
        return found


def named_as(made: Any, func: Any) -> Any:
    """A scheduled PrimFunc under the name that the original has, or none."""
    if func.attrs and "global_symbol" in func.attrs:
        return made.with_attr("global_symbol", func.attrs["global_symbol"])
    return made.without_attr("global_symbol")
