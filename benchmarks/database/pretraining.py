"""What pre-training brings: `benchmarks/database/pretraining.py [MODEL...]`.

The dearest kernels of each model get a pool of random schedules of the space `tiles`, all timed
beside their default. Then each model is held back: a search picks from the pools of its kernels in
rounds, by the cost model, once taught the trials of the other models before and once not. Told is
the number of trials until one of them reaches 95 % of the speed of the pool's best, as a mean over
seeds, and for comparison that of picking at random. Picking measures nothing: pools are kept in
--folder, and a second run gives the same numbers.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import statistics
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import page
import tuning
from tuning import Model

MODELS = ("minilm@1x64", "ocr_turn@1x192", "efficientnet_lite0@1x224")
ROUND = 8
REACHED = 0.95  # of the speed of the pool's best
SEEDS = 10
SECONDS = 0.1  # of running, for each schedule, in bursts between those of all others


@dataclass(frozen=True)
class Timed:
    """A schedule of a pool: what the cost model sees, and its time relative to the default's."""

    features: tuple[float, ...]
    relative: float | None


@dataclass(frozen=True)
class Pool:
    """The schedules of one kernel."""

    model: str
    kernel: str
    default_ms: float
    timed: tuple[Timed, ...]

    @property
    def best(self) -> float:
        return min(one.relative for one in self.timed if one.relative is not None)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="*", default=MODELS)
    parser.add_argument("--kernels", type=int, default=3, help="of each model")
    parser.add_argument("--pool", type=int, default=48, help="schedules of each kernel")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--folder", type=Path, help="keeps programs and pools; resumes")
    options = parser.parse_args()
    folder = (options.folder or Path(tempfile.mkdtemp())).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    pools = [pool for text in options.models for pool in pools_of(text, folder, options)]
    rows = [row(pool, [one for one in pools if one.model != pool.model]) for pool in pools]
    titles = ("held back", "kernel", "best / default", "random", "without", "pre-trained")
    cells = [
        (
            one["model"],
            one["kernel"],
            f"{one['best_relative']:.2f}",
            *(f"{one[how]:.1f}" for how in ("random", "without", "pretrained")),
        )
        for one in rows
    ]
    means = {
        name: tuning.geomean([float(one[name]) for one in rows])
        for name in ("random", "without", "pretrained")
    }
    cells.append(("geomean", "", "", *(f"{n:.1f}" for n in means.values())))
    text = tuning.table(titles, cells)
    print(text)
    page.place("tuning-database.md", "pretraining", text)
    page.keep(tuning.RESULTS / "database_pretraining.json", rows)
    return 0 if means["pretrained"] < means["without"] else 1


def pools_of(text: str, folder: Path, options: argparse.Namespace) -> Iterator[Pool]:
    """The pools of a model's dearest kernels, from the folder or measured now."""
    kept = folder / f"pools-{text}-{options.kernels}x{options.pool}-{options.threads}t.json"
    if not kept.exists():
        found = [asdict(pool) for pool in measured(text, folder, options)]
        kept.write_text(json.dumps(found), encoding="utf-8")
    for data in json.loads(kept.read_text(encoding="utf-8")):
        timed = tuple(Timed(tuple(one["features"]), one["relative"]) for one in data["timed"])
        yield Pool(data["model"], data["kernel"], data["default_ms"], timed)


def measured(text: str, folder: Path, options: argparse.Namespace) -> Iterator[Pool]:
    from tapml_stages import program, records, search_modules
    from tapml_stages.measure import Bench
    from tapml_stages.metaschedule.kernels import find_kernels

    target = tuning.here(options.threads)
    place = Model.of(text).prepared(folder, target)
    defaults = records.load(place / "records.jsonl")
    kernels = find_kernels(program.load(place / "program"), defaults)
    tiles = search_modules.load(["tiles"])["tiles"]
    assert isinstance(tiles, search_modules.Variants)
    spaces = {one.name: tiles.space(one.func, target) for one in kernels}
    able = [one for one in kernels if spaces[one.name] is not None and spaces[one.name].default]
    able.sort(key=lambda one: one.calls * one.default.flops, reverse=True)
    distinct = list({one.default.workload: one for one in able}.values())
    with Bench(target) as bench:
        for kernel in distinct[: options.kernels]:
            print(f"{text}: {kernel.name}", file=sys.stderr)
            yield _pool(text, kernel, spaces[kernel.name], bench, options.pool)


def _pool(text: str, kernel: Any, space: Any, bench: Any, size: int) -> Pool:
    from tapml_stages.compat import tvm
    from tapml_stages.measure import Job, ratio

    site = kernel.sites[0]
    base = Job("default", kernel.default.func, kernel.name, site.args, site.outputs, "pool")
    jobs, features = [base], {}
    for number, (decisions, func) in enumerate(_schedules(space, size)):
        module = tvm.ir.save_json(tvm.IRModule({kernel.name: func}))
        jobs.append(replace(base, id=f"{number}", module=module, like=base.id))
        features[jobs[-1].id] = tuple(map(float, space.features(decisions)))
    times = {one.id: one for one in bench.run(jobs, seconds=SECONDS)}
    default = times[base.id]
    if default.error:
        raise RuntimeError(f"{text}: {kernel.name}: {default.error}")
    timed = tuple(
        Timed(seen, None if times[name].error else ratio(times[name], default))
        for name, seen in features.items()
    )
    return Pool(text, kernel.name, default.ms, timed)


def _schedules(space: Any, size: int) -> Iterator[tuple[dict[str, Any], Any]]:
    """Random decisions that are legal and build to schedules unlike each other."""
    from tapml_stages.records import workload_hash

    rng, seen, keys = random.Random(0), set[tuple[Any, ...]](), set[str]()
    for _ in range(1000 * size):
        decisions = {name: rng.choice(options) for name, options in space.knobs.items()}
        point = tuple(decisions.values())
        if point in seen or not space.legal(decisions):
            continue
        seen.add(point)
        func = space.build(decisions)
        if func is None or (key := workload_hash(func)) in keys:
            continue
        keys.add(key)
        yield decisions, func
        if len(keys) == size:
            return


def row(pool: Pool, others: Sequence[Pool]) -> dict[str, Any]:
    def mean(how: str) -> float:
        return statistics.fmean(trials(pool, others, how, seed) for seed in range(SEEDS))

    return {
        "model": pool.model,
        "kernel": pool.kernel,
        "default_ms": pool.default_ms,
        "best_relative": pool.best,
        "pool": len(pool.timed),
        **{how: mean(how) for how in ("random", "without", "pretrained")},
    }


def trials(pool: Pool, others: Sequence[Pool], how: str, seed: int) -> int:
    """Trials until one is nearly as fast as the pool's best, picked as a search picks them: a
    quarter of each round at random, the others by the model once it knows enough.
    """
    from tapml_stages.metaschedule.cost_model import CostModel
    from tapml_stages.metaschedule.variants import SHARE_RANDOM

    model = CostModel()
    if how == "pretrained":
        for other in others:
            for one in other.timed:
                model.add(one.features, one.relative)
    rng = random.Random(seed)
    left = list(pool.timed)
    rng.shuffle(left)
    tried = 0
    while left:
        expected = None if how == "random" else model.predict([one.features for one in left])
        ranked = left if expected is None else [left[i] for i in expected.argsort(kind="stable")]
        wild = left[: math.ceil(ROUND * SHARE_RANDOM)] if expected is not None else []
        picked = list(dict.fromkeys([*ranked[: ROUND - len(wild)], *wild]))
        for one in picked:
            tried += 1
            if one.relative is not None and one.relative <= pool.best / REACHED:
                return tried
            model.add(one.features, one.relative)
        left = [one for one in left if one not in set(picked)]
    return tried


if __name__ == "__main__":
    sys.exit(main())
