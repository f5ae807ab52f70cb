"""The explorers of each workload: what the modules of `tuning.space` offer for it."""

from __future__ import annotations

from functools import partial
from typing import Any

from tapml.stage import Context, Target

from ..search_modules import ScheduleRules, Variants, load
from ..target import tvm_target
from .cost_model import CostModel
from .experience import Experience
from .explorer import REUSE, RULES, Explorer
from .kernels import Kernel
from .pretraining import Lessons, teach
from .reuse import Reuse, ReuseExplorer
from .search import RuleSearch
from .stage import Tuning
from .variants import VariantSearch


class Spaces:
    """What searches the spaces of all workloads: the modules of the recipe, and what is learned of
    one workload for the next.
    """

    def __init__(
        self, tuning: Tuning, target: Target, ctx: Context, past: Experience | None = None
    ) -> None:
        """In: `past`: searches that were reused."""
        modules = load(tuning.space)
        self._seed, self._target = tuning.seed, target
        self._learns = tuning.strategy == "learned"
        self._logger = ctx.logger.getChild("search")
        self._logger.setLevel("WARNING")
        self._variants = {n: one for n, one in modules.items() if isinstance(one, Variants)}
        self._rules = [one for one in modules.values() if isinstance(one, ScheduleRules)]
        self._models = {name: CostModel() if self._learns else None for name in self._variants}
        self._past = past
        self._lessons: Lessons | None = None
        if past is not None and past.pretrain and self._learns:
            teach(self._models, self._variants, past)
            if self._rules and tuning.trials:
                self._lessons = Lessons(past)

    def open(self, kernel: Kernel) -> dict[str, Explorer]:
        """An explorer for each space of a kernel; MetaSchedule's rules take static sizes only."""
        restore = partial(named_as, func=kernel.func)
        found: dict[str, Explorer] = {}
        spaces = {n: one.space(kernel.func, self._target) for n, one in self._variants.items()}
        for name, space in spaces.items():
            if space is not None:
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
                lessons=self._lessons,
            )
        if self._past is not None:
            reuse = Reuse(self._past, self._variants, self._models)
            if trials := reuse.trials(kernel.default.workload, kernel.func, spaces):
                found[REUSE] = ReuseExplorer(trials, found)
        return found


def named_as(made: Any, func: Any) -> Any:
    """A scheduled PrimFunc under the name that the original has, or none."""
    if func.attrs and "global_symbol" in func.attrs:
        return made.with_attr("global_symbol", func.attrs["global_symbol"])
    return made.without_attr("global_symbol")
