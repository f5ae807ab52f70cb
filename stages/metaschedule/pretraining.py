"""Cost models taught what other searches measured, before a search has measured anything.

Both kinds foretell times relative to a workload's own, from features that any schedule has: so the
trials of one workload say something of the next. What is taught is an input by digest, and the
order is that of the database: an equal digest gives an equal model.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from tvm.s_tir import meta_schedule as ms
from tvm.s_tir.meta_schedule.cost_model.xgb_model import FeatureGroup

from ..compat import tvm
from ..records import workload_hash
from ..search_modules import Variants
from ..target import tvm_target
from .cost_model import CostModel
from .database import Trial
from .experience import Experience, Past
from .explorer import RULES, decisions_of, made_by

MOST_TRIALS = 96  # of a search
FAILED_S = 1e10  # what MetaSchedule takes for the time of a schedule that failed


def teach(
    models: Mapping[str, CostModel | None],
    modules: Mapping[str, Variants],
    experience: Experience,
) -> int:
    """Teaches the models of modules the trials of each one's own making. Out: their number."""
    count = 0
    for name, model in models.items():
        if model is None:
            continue
        for past, space in experience.spaces(name, modules[name]):
            for trial in _of(past, name):
                decisions = decisions_of(trial)
                if decisions.keys() == space.knobs.keys():
                    model.add(space.features(decisions), past.relative(trial.ms))
                    count += 1
    return count


class Lessons:
    """MetaSchedule's features of past trials of its rules, and a model that learnt from them."""

    def __init__(self, experience: Experience) -> None:
        self._teacher = ms.cost_model.XGBModel(num_warmup_samples=1, num_tuning_cores=1)
        target = tvm_target(experience.target)
        for past in experience.pasts:
            if trials := _of(past, RULES):
                self._learn(past, trials, target)

    @property
    def count(self) -> int:
        return self._teacher.data_size

    def teach(self, model: Any) -> None:
        """Gives a fresh XGBModel all of it. What it is taught next, of its
        own workload, it learns beside this.
        """
        for key, group in self._teacher.data.items():
            model.data[key] = FeatureGroup(key, list(group.features), group.costs.copy())
        model.data_size = self._teacher.data_size
        model.booster = self._teacher.booster

    def _learn(self, past: Past, trials: Sequence[Trial], target: Any) -> None:
        assert past.func is not None
        mod = tvm.IRModule({"main": past.func.with_attr("global_symbol", "main")})
        info = ms.arg_info.ArgInfo.from_entry_func(mod, remove_preproc=True)
        candidates, results = [], []
        for trial in trials:
            if (schedule := _replayed(mod, trial)) is not None:
                candidates.append(ms.search_strategy.MeasureCandidate(schedule, info))
                seconds = FAILED_S if trial.ms is None else trial.ms / 1e3
                results.append(ms.runner.RunnerResult([seconds], trial.error or None))
        context = ms.TuneContext(mod, target=target, num_threads=1)
        self._teacher.update(context, candidates, results)


def _of(past: Past, name: str) -> list[Trial]:
    return [trial for trial in past.search.trials if made_by(trial) == name][:MOST_TRIALS]


def _replayed(mod: Any, trial: Trial) -> Any | None:
    """The schedule of a trial; None when its trace leads elsewhere today."""
    schedule = tvm.s_tir.Schedule(mod)
    try:
        tvm.s_tir.schedule.Trace.apply_json_to_schedule(json.loads(trial.trace), schedule)
    except Exception:  # a trace is a stranger's: TVM raises whatever it likes where it does not fit
        return None
    return schedule if workload_hash(schedule.mod["main"]) == trial.key else None
