"""Schedules that other searches found, as trials of a workload: of the equal workload those that
were fastest, else of similar ones what they decided. Their times are expectations until they are
measured here.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

from ..records import workload_hash
from ..search_modules import Space, Variants
from ..target import tvm_target
from .cost_model import CostModel
from .database import Trial
from .experience import Experience, Past
from .explorer import DEFAULT, RULES, Explorer, Proposal, decisions_of, made_by, trace_of
from .transfer import distance, fitted, replayed, skeleton

MOST = 4  # schedules taken for a workload
NEIGHBOURS = 8  # similar workloads that are asked
CLEARLY = 0.98  # of the default's time: what gained less is not worth carrying over


class Reuse:
    """The trials of a database that serve the kernels of a program."""

    def __init__(
        self,
        past: Experience,
        modules: Mapping[str, Variants],
        models: Mapping[str, CostModel | None],
    ) -> None:
        """In: `modules` of the search's space, and their cost models, which foretell what is best
        carried over.
        """
        self._experience, self._modules, self._models = past, modules, models

    def trials(self, workload: str, func: Any, spaces: Mapping[str, Space | None]) -> list[Trial]:
        """Up to MOST schedules, the most promising first; their times are relative to the
        default's, as they were or are foretold. Traces are those that the explorers of `spaces`
        and of MetaSchedule's rules write.
        """
        equal = [past for past in self._experience.pasts if past.workload == workload]
        found = [trial for past in equal for trial in _best(past, MOST)]
        if not equal:
            found = [*self._decided(spaces), *self._replayed(func)]
        found.sort(key=_expected, reverse=True)
        return sorted({trial.key: trial for trial in found}.values(), key=_expected)[:MOST]

    def _decided(self, spaces: Mapping[str, Space | None]) -> Iterator[Trial]:
        """What similar workloads decided, in the spaces of modules."""
        for name, space in spaces.items():
            if space is None or not space.default:
                continue
            here = space.features(space.default)
            others = [
                (math.dist(here, there.features(there.default)), number, past)
                for number, (past, there) in enumerate(
                    self._experience.spaces(name, self._modules[name])
                )
                if there.default and there.knobs.keys() == space.knobs.keys()
            ]
            made: dict[str, tuple[dict[str, Any], float]] = {}
            for _, _, past in sorted(others)[:NEIGHBOURS]:
                for trial in _best(past, 2, made_by=name):
                    decisions = fitted(decisions_of(trial), space)
                    if decisions is not None and decisions != space.default:
                        made.setdefault(trace_of(name, decisions), (decisions, trial.ms or 1.0))
            for trace, (decisions, expected) in self._ranked(name, space, made):
                if (scheduled := space.build(decisions)) is not None:
                    yield Trial(0, workload_hash(scheduled), trace, expected)

    def _ranked(
        self, name: str, space: Space, made: dict[str, tuple[dict[str, Any], float]]
    ) -> list[tuple[str, tuple[dict[str, Any], float]]]:
        """Decisions with the time that is expected: half what it was there, half what the cost
        model foretells of it here, where it knows enough.
        """
        model = self._models[name]
        rows = [space.features(decisions) for decisions, _ in made.values()]
        foretold = None if model is None else model.predict(rows)
        if foretold is None:
            return list(made.items())[:MOST]
        told = [
            (trace, (decisions, math.sqrt(there * math.exp(float(here)))))
            for (trace, (decisions, there)), here in zip(made.items(), foretold, strict=True)
        ]
        return sorted(told, key=lambda item: item[1][1])[:MOST]

    def _replayed(self, func: Any) -> Iterator[Trial]:
        """What MetaSchedule's rules sampled for workloads that differ in sizes only."""
        able = [p for p in self._experience.pasts if any(True for _ in _best(p, 1, made_by=RULES))]
        if not able:
            return
        kind, sizes = skeleton(func)
        others = [
            (distance(sizes, past.skeleton[1]), number, past)
            for number, past in enumerate(able)
            if past.skeleton[0] == kind
        ]
        pairs = (
            (past, trial)
            for _, _, past in sorted(others)[:NEIGHBOURS]
            for trial in _best(past, 2, made_by=RULES)
        )
        target = tvm_target(self._experience.target)
        made = ((replayed(t.trace, past.func, func, target), t) for past, t in pairs)
        good = ((one, trial) for one, trial in made if one is not None)
        for (scheduled, trace), trial in islice(good, MOST):
            yield Trial(0, workload_hash(scheduled), trace, trial.ms)


class ReuseExplorer:
    """Proposes what was taken from a database, once."""

    def __init__(self, trials: Sequence[Trial], makers: Mapping[str, Explorer]) -> None:
        """In: `makers`: explorers by name, which make the schedules of their own trials."""
        self.trials, self._makers = trials, makers

    def propose(self, number: int, known: Sequence[Trial], count: int) -> list[Proposal]:
        seen = {trial.key for trial in known}
        made = ((trial, self.scheduled(trial)) for trial in self.trials if trial.key not in seen)
        good = (Proposal(trial.key, func, trial.trace) for trial, func in made if func is not None)
        return list(islice(good, count))

    def observe(self, trial: Trial, relative: float | None) -> None:
        """Nothing: a trial is its module's, which learns of it."""

    def scheduled(self, trial: Trial) -> Any | None:
        maker = self._makers.get(made_by(trial))
        return None if maker is None else maker.scheduled(trial)


def _best(past: Past, count: int, made_by: str = "") -> Iterator[Trial]:
    """The fastest trials that beat the default clearly, with times relative to it."""
    for trial in islice(_made(past, made_by), count):
        relative = past.relative(trial.ms)
        if relative is not None and relative < CLEARLY:
            yield Trial(0, trial.key, trial.trace, relative)


def _made(past: Past, maker: str) -> Iterator[Trial]:
    for trial in past.search.ranked:
        by = made_by(trial)
        if by == maker or (not maker and by != DEFAULT):
            yield trial


def _expected(trial: Trial) -> float:
    return math.inf if trial.ms is None else trial.ms
