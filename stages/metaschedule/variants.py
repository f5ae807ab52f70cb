"""The search through the space of a module that makes whole schedules from decisions."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator, Sequence
from itertools import product
from typing import Any

from ..records import workload_hash
from ..search_modules import Decisions, Space, Value
from .cost_model import CostModel
from .database import Trial
from .explorer import Proposal, decisions_of, made_by, trace_of

PARENTS = 4  # best trials whose decisions are changed
MUTANTS = 32  # of each, beside those that differ in one decision
STRANGERS = 256  # random decisions in a round, of which the model chooses
SHARE_RANDOM = 0.25  # of a round, whatever the model says
ENUMERATED = 4096  # so many decisions are listed rather than drawn

Point = tuple[Value, ...]  # decisions in the order of the knobs


class VariantSearch:
    """Proposes what the cost model likes best among changes of the best trials and random ones."""

    def __init__(
        self,
        module: str,
        space: Space,
        model: CostModel | None,
        seed: int,
        restore: Callable[[Any], Any],
    ) -> None:
        """In: `model` is shared by all searches of the module, and None where the seed alone
        decides the proposals; `restore` names a PrimFunc as the original is.
        """
        self._module, self._space, self._model, self._seed = module, space, model, seed
        self._restore = restore
        self._names = tuple(space.knobs)

    def propose(self, number: int, known: Sequence[Trial], count: int) -> list[Proposal]:
        rng = random.Random(f"{self._seed}/{self._module}/{number}")
        own = [trial for trial in known if self._is_own(trial)]
        tried = {self._point(decisions_of(trial)) for trial in own}
        if self._space.default:
            tried.add(self._point(self._space.default))
        keys = {trial.key for trial in known}
        proposals: list[Proposal] = []
        parents = own if self._model is not None else ()
        for point in self._ordered(parents, tried, count, rng):
            func = self._space.build(self._decisions(point))
            if func is None or (key := workload_hash(func)) in keys:
                continue
            keys.add(key)
            trace = trace_of(self._module, self._decisions(point))
            proposals.append(Proposal(key, self._restore(func), trace))
            if len(proposals) == count:
                break
        return proposals

    def observe(self, trial: Trial, relative: float | None) -> None:
        if self._model is not None and self._is_own(trial):
            self._model.add(self._space.features(decisions_of(trial)), relative)

    def scheduled(self, trial: Trial) -> Any | None:
        func = self._space.build(decisions_of(trial)) if self._is_own(trial) else None
        if func is None or workload_hash(func) != trial.key:
            return None
        return self._restore(func)

    def _is_own(self, trial: Trial) -> bool:
        """Whether the decisions are this module's, and those that it asks for today."""
        return made_by(trial) == self._module and decisions_of(trial).keys() == set(self._names)

    def _ordered(
        self, own: Sequence[Trial], tried: set[Point], count: int, rng: random.Random
    ) -> Iterator[Point]:
        """Points to try in turn, most promising first, a share of them random; of points that
        differ in one decision only the best, until the others have had their turn.
        """
        pool = list(dict.fromkeys(self._pool(own, rng)))
        pool = [p for p in pool if p not in tried and self._space.legal(self._decisions(p))]
        rng.shuffle(pool)
        features = [self._space.features(self._decisions(point)) for point in pool]
        expected = None if self._model is None else self._model.predict(features)
        if expected is None:  # nothing is known but that the rule's choices are no bad ones
            by_promise = sorted(pool, key=self._changes)
        else:
            by_promise = [pool[i] for i in expected.argsort(kind="stable")]
        wild = pool[: math.ceil(count * SHARE_RANDOM)]
        taken: list[Point] = []
        passed: list[Point] = []
        for point in by_promise:
            near = any(sum(a != b for a, b in zip(point, t, strict=True)) < 2 for t in taken)
            if near and len(taken) < count:
                passed.append(point)
            else:
                taken.append(point)
                yield point
                if len(taken) == count - len(wild):
                    yield from (one for one in wild if one not in taken)
        yield from passed

    def _changes(self, point: Point) -> int:
        """How many decisions are not the default's."""
        own = self._point(self._space.default) if self._space.default else ()
        return sum(a != b for a, b in zip(point, own, strict=False))

    def _pool(self, own: Sequence[Trial], rng: random.Random) -> Iterator[Point]:
        options = [self._space.knobs[name] for name in self._names]
        if math.prod(map(len, options)) <= ENUMERATED:
            yield from product(*options)
            return
        ranked = sorted((t for t in own if t.ms is not None), key=lambda t: t.ms or 0.0)
        parents = [self._point(decisions_of(trial)) for trial in ranked[:PARENTS]]
        if self._space.default:
            parents.append(self._point(self._space.default))
        for parent in parents:
            for place, choices in enumerate(options):
                for value in choices:
                    yield (*parent[:place], value, *parent[place + 1 :])
            for _ in range(MUTANTS):
                yield tuple(
                    rng.choice(choices) if rng.random() < 2 / len(options) else value
                    for value, choices in zip(parent, options, strict=True)
                )
        found = 0
        for _ in range(32 * STRANGERS):
            point = tuple(rng.choice(choices) for choices in options)
            if self._space.legal(self._decisions(point)):
                yield point
                found += 1
                if found == STRANGERS:
                    return

    def _point(self, decisions: Decisions) -> Point:
        return tuple(decisions[name] for name in self._names)

    def _decisions(self, point: Point) -> dict[str, Value]:
        return dict(zip(self._names, point, strict=True))
