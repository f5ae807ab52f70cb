"""MetaSchedule's search over one PrimFunc, in rounds that depend on nothing but those before.

Each round starts MetaSchedule anew (its space, its evolutionary search, its cost model trained on
what was measured), with a seed made of the search's seed and the round's number. So a search that
was killed goes on as if it had not been, and nobody keeps its state.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from tvm.s_tir import meta_schedule as ms

from ..compat import tvm
from ..records import workload_hash
from .database import Trial

BATCH = 16  # schedules proposed in a round
SPACE = "metaschedule cpu, evolutionary 64x3, xgb, rounds of 16, 1"  # what decides the proposals
FAILED_S = 1e10  # what MetaSchedule takes for the time of a schedule that failed


@dataclass(frozen=True)
class Proposal:
    """A schedule to be measured: its PrimFunc, its structural hash and its trace as JSON."""

    key: str
    func: Any
    trace: str


class Search:
    """The schedules that MetaSchedule proposes for a PrimFunc with static shapes."""

    def __init__(self, func: Any, target: Any, seed: int, logger: logging.Logger) -> None:
        self._func = func
        self._target = target
        self._seed = seed
        self._logger = logger
        self._mod = tvm.IRModule({"main": func.with_attr("global_symbol", "main")})
        self._schedules: dict[str, Any] = {}  # of known trials, by key

    def propose(self, number: int, known: Sequence[Trial]) -> list[Proposal]:
        """Up to BATCH schedules that are not among `known`, the trials of the rounds before
        `number`; fewer when the space is exhausted."""
        seed = _seed(self._seed, number)
        np.random.seed(seed)  # the cost model draws from it until it is trained
        context = ms.TuneContext(
            self._mod,
            target=self._target,
            space_generator="post-order-apply",
            search_strategy=ms.search_strategy.EvolutionarySearch(
                population_size=64, init_min_unmeasured=32, genetic_num_iters=3
            ),
            rand_state=seed,
            num_threads=1,  # more, and the order is no longer a function of the seed
            logger=self._logger,
        )
        database, model = self._experience(context, known)
        # a fresh search may propose what is known again, so ask for more
        context.pre_tuning(1 << 20, BATCH + len(known), database=database, cost_model=model)
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
                trace = json.dumps(_plain(candidate.sch.trace.as_json()))
                proposals.setdefault(key, Proposal(key, self._restored(func), trace))
        return list(proposals.values())[:BATCH]

    def scheduled(self, trial: Trial) -> Any:
        """The PrimFunc of a trial."""
        return self._restored(self._schedule(trial).mod["main"])

    def _experience(self, context: Any, known: Sequence[Trial]) -> tuple[Any, Any]:
        """MetaSchedule's database and cost model, taught the trials known."""
        database = ms.database.MemoryDatabase()
        model = ms.cost_model.XGBModel(num_warmup_samples=BATCH, num_tuning_cores=1)
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

    def _restored(self, func: Any) -> Any:
        """A scheduled PrimFunc under the name that the original has, or none."""
        attrs = self._func.attrs
        if attrs and "global_symbol" in attrs:
            return func.with_attr("global_symbol", attrs["global_symbol"])
        return func.without_attr("global_symbol")


def _seed(seed: int, number: int) -> int:
    """In [1, 2^31 - 1], as MetaSchedule wants it."""
    digest = hashlib.sha256(f"{seed}/{number}".encode()).digest()
    return int.from_bytes(digest[:4], "little") % (2**31 - 1) + 1


def _plain(value: Any) -> Any:
    """TVM's containers as lists and numbers."""
    match value:
        case None | bool() | int() | float() | str():
            return value
        case _ if isinstance(value, tvm.tirx.IntImm | tvm.tirx.FloatImm):
            return value.value
    return [_plain(one) for one in value]
