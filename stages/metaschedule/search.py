"""MetaSchedule's search over the schedule rules of all modules, for one PrimFunc.

Each round depends on nothing but those before: it starts MetaSchedule anew (its space, its
evolutionary search, its cost model trained on what was measured), with a seed made of the search's
seed and the round's number. So a search that was killed goes on as if it had not been, and nobody
keeps its state.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from tvm.s_tir import meta_schedule as ms

from ..compat import tvm
from ..records import workload_hash
from .database import Trial
from .explorer import RULES, Proposal, made_by
from .pretraining import FAILED_S, Lessons
from .transfer import plain

WARM_UP = 16  # trials before which the cost model draws lots


class RuleSearch:
    """The schedules that MetaSchedule proposes for a PrimFunc with static shapes."""

    def __init__(
        self,
        func: Any,
        rules: Callable[[], Sequence[Any]],
        target: Any,
        seed: int,
        restore: Callable[[Any], Any],
        logger: logging.Logger,
        *,
        learns: bool = True,
        lessons: Lessons | None = None,
    ) -> None:
        """In: `rules` makes the schedule rules; `restore` names a PrimFunc as `func` is; `learns`:
        what was measured decides the proposals, else the seed alone; `lessons`: of other searches.
        """
        self._lessons = lessons
        self._learns = learns
        self._rules = rules
        self._target = target
        self._seed = seed
        self._restore = restore
        self._logger = logger
        self._mod = tvm.IRModule({"main": func.with_attr("global_symbol", "main")})
        self._schedules: dict[str, Any] = {}  # of known trials, by key

    def propose(self, number: int, known: Sequence[Trial], count: int) -> list[Proposal]:
        own = [trial for trial in known if made_by(trial) == RULES]
        seed = _seed(self._seed, number)
        np.random.seed(seed)  # the cost model draws from it until it is trained
        context = ms.TuneContext(
            self._mod,
            target=self._target,
            space_generator=ms.space_generator.PostOrderApply(sch_rules=list(self._rules())),
            search_strategy=self._strategy(),
            rand_state=seed,
            num_threads=1,  # more, and the order is no longer a function of the seed
            logger=self._logger,
        )
        database, model = self._experience(context, own)
        # a fresh search may propose what is known again, so ask for more
        try:
            context.pre_tuning(1 << 20, count + len(own), database=database, cost_model=model)
        except tvm.s_tir.ScheduleError as error:  # of a rule that not every PrimFunc suits
            self._logger.warning("no space of schedule rules: %s", str(error).partition("\n")[0])
            return []
        candidates = context.generate_measure_candidates() or []
        context.post_tuning()
        proposals: dict[str, Proposal] = {}
        seen = {trial.key for trial in known}
        for candidate in candidates:
            func = candidate.sch.mod["main"]
            key = workload_hash(func)
            if key not in seen:
                self._schedules[key] = candidate.sch
                assert candidate.sch.trace is not None
                trace = json.dumps(plain(candidate.sch.trace.as_json()))
                proposals.setdefault(key, Proposal(key, self._restore(func), trace))
        return list(proposals.values())[:count]

    def observe(self, trial: Trial, relative: float | None) -> None:
        """Nothing: every round reads all trials again."""

    def scheduled(self, trial: Trial) -> Any | None:
        func = self._schedule(trial).mod["main"]
        return self._restore(func) if workload_hash(func) == trial.key else None

    def _strategy(self) -> Any:
        if not self._learns:
            return ms.search_strategy.ReplayTrace()
        return ms.search_strategy.EvolutionarySearch(
            population_size=64, init_min_unmeasured=32, genetic_num_iters=3
        )

    def _experience(self, context: Any, known: Sequence[Trial]) -> tuple[Any, Any]:
        """MetaSchedule's database and cost model, taught the trials known."""
        database = ms.database.MemoryDatabase()
        if not self._learns:
            return database, ms.cost_model.RandomModel(seed=self._seed)
        model = ms.cost_model.XGBModel(num_warmup_samples=WARM_UP, num_tuning_cores=1)
        if self._lessons is not None:
            self._lessons.teach(model)
        workload = database.commit_workload(self._mod)
        info = ms.arg_info.ArgInfo.from_entry_func(self._mod, remove_preproc=True)
        candidates, results = [], []
        for trial in known:
            schedule = self._schedule(trial)
            seconds = [FAILED_S if trial.ms is None else trial.ms / 1e3]
            database.commit_tuning_record(
                ms.database.TuningRecord(schedule.trace, workload, seconds, self._target, info)
            )
            candidates.append(ms.search_strategy.MeasureCandidate(schedule, info))
            results.append(ms.runner.RunnerResult(seconds, trial.error or None))
        model.update(context, candidates, results)
        return database, model

    def _schedule(self, trial: Trial) -> Any:
        if trial.key not in self._schedules:
            schedule = tvm.s_tir.Schedule(self._mod)
            tvm.s_tir.schedule.Trace.apply_json_to_schedule(json.loads(trial.trace), schedule)
            self._schedules[trial.key] = schedule
        return self._schedules[trial.key]


def _seed(seed: int, number: int) -> int:
    """In [1, 2^31 - 1], as MetaSchedule wants it."""
    digest = hashlib.sha256(f"{seed}/{number}".encode()).digest()
    return int.from_bytes(digest[:4], "little") % (2**31 - 1) + 1
