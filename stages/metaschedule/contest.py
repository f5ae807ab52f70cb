"""Contests: the candidates of a kernel timed against each other."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from tapml.errors import StageError
from tapml.stage import Context

from ..alternatives import Alternative
from ..compat import tvm
from ..measure import Arg, Bench, Job, Timing
from ..records import Candidate, Record
from .kernels import Args, Kernel, Site, is_symbolic

BASELINE_S = 0.08  # of running, for each default schedule
CONTEST_S = 0.4  # of running, for each candidate where there is something to decide
DRIFT = 0.15  # of the default's time, begin to end of a contest: more, and it is held once more

CandidateKind = Literal["default", "tuned", "sparse", "library"]
Contender = tuple[CandidateKind, Job]


@dataclass(frozen=True)
class Entry:
    """A candidate, and how it fared beside the others of its contest."""

    kind: CandidateKind
    id: str
    timing: Timing

    def candidate(self) -> Candidate:
        if self.timing.error:
            return Candidate(self.kind, self.id, None, error=self.timing.error)
        spread = self.timing.high_ms - self.timing.low_ms
        return Candidate(self.kind, self.id, self.timing.ms, spread_ms=spread)


Contests = dict[tuple[str, Site], tuple[Entry, ...]]  # (kernel, site) → candidates, default first


@dataclass(frozen=True)
class Rivals:
    """What may replace a default schedule: tuned records by kernel, alternatives by id."""

    tuned: Mapping[str, Sequence[Record]] = field(default_factory=dict)
    alternatives: Mapping[str, Alternative] = field(default_factory=dict)
    structure: Path = Path()

    def alternative(self, kernel: Kernel, site: Site) -> Iterator[Contender]:
        """The alternatives that implement a region at these sizes, and at all others that it takes:
        a site of a symbolic kernel stands for every size.
        """
        for found in self.alternatives.values():
            if found.region != kernel.region:
                continue
            module = found.module()
            if kernel.symbolic and not is_symbolic(module[found.kernel]):
                continue
            if (args := self._args(found, module[found.kernel], site)) is not None:
                text = tvm.ir.save_json(module)
                job = Job(found.id, text, found.kernel, args, site.outputs)
                if found.kind == "library":
                    job = replace(job, shim=str(found.libraries[0]))
                yield found.kind, job

    def _args(self, found: Alternative, func: Any, site: Site) -> Args | None:
        """Arguments of an alternative's kernel at a site; None when it is made for other sizes."""
        buffers = [param.ty for param in func.params]
        args: list[Arg | int] = []
        for arg, buffer in zip(found.row["args"], buffers, strict=False):
            if "input" in arg:
                args.append(site.args[arg["input"]])
            elif "structure" in arg:
                array = found.structure[arg["structure"].removeprefix(f"{found.id}/")]
                key = arg["structure"]
                args.append(Arg(array.shape, str(array.dtype), str(self.structure), key))
            else:
                shape = tuple(int(dim) for dim in buffer.shape)
                args.append(Arg(shape, str(buffer.dtype)))
        args += site.args[len(site.args) - site.outputs :]
        fits = len(args) == len(buffers) and all(map(_fits, args, buffers))
        return tuple(args) if fits else None


def _fits(arg: Arg | int, buffer: Any) -> bool:
    return (
        isinstance(arg, Arg)
        and len(arg.shape) == len(buffer.shape)
        and all(
            not isinstance(dim, tvm.tirx.IntImm) or int(dim) == size
            for dim, size in zip(buffer.shape, arg.shape, strict=True)
        )
    )


def baseline(bench: Bench, kernels: Sequence[Kernel], ctx: Context) -> Contests:
    """Every default schedule alone; equal kernels at equal sizes once for all.

    Raises: StageError, naming the default schedules that do not build or run.
    """
    sites = [(kernel, site) for kernel in kernels for site in kernel.sites]
    first: dict[tuple[str, Args], tuple[Kernel, Site]] = {}
    for kernel, site in sites:
        first.setdefault((kernel.default.workload, site.args), (kernel, site))
    entries = [(kernel, site, [contest_job(kernel, site)]) for kernel, site in first.values()]
    held = _hold(bench, entries, BASELINE_S, ctx, "default schedules")
    contests: Contests = {}
    for kernel, site in sites:
        twin, at = first[kernel.default.workload, site.args]
        contests[kernel.name, site] = tuple(
            replace(entry, id=kernel.default.id) for entry in held[twin.name, at]
        )
    broken = [
        f"{kernel} in {site.clone} {entry.timing.error}"
        for (kernel, site), (entry,) in contests.items()
        if entry.timing.error
    ]
    if broken:
        raise StageError(message="default schedules fail: " + "; ".join(broken))
    return contests


def contest(bench: Bench, kernels: Sequence[Kernel], rivals: Rivals, ctx: Context) -> Contests:
    """Default, tuned and alternatives side by side, where there is a rival at all.

    A kernel whose default, which ran alone before, fails here has no contest: it is kept.
    """
    entries: list[tuple[Kernel, Site, list[Contender]]] = []
    for kernel in kernels:
        for site in kernel.sites:
            default = contest_job(kernel, site)
            tuned = [
                contest_job(kernel, site, record) for record in rivals.tuned.get(kernel.name, ())
            ]
            others = list(rivals.alternative(kernel, site))
            if tuned or others:
                entries.append((kernel, site, [default, *tuned, *others]))
    held = hold(bench, entries, ctx, "contests")
    failed = {
        name: ones[0].timing.error for (name, _), ones in held.items() if ones[0].timing.error
    }
    for name, error in failed.items():
        ctx.logger.warning("%s: its default schedule %s in a contest, and is kept", name, error)
    return {key: ones for key, ones in held.items() if key[0] not in failed}


def contest_job(kernel: Kernel, site: Site, record: Record | None = None) -> Contender:
    """The default schedule of a kernel, or a tuned record that must give what it gives."""
    default = kernel.default
    job = Job(default.id, default.func, kernel.name, site.args, site.outputs)
    if record is None:
        return "default", job
    return "tuned", replace(job, id=record.id, module=record.func, like=job.id)


def hold(
    bench: Bench,
    entries: Sequence[tuple[Kernel, Site, list[Contender]]],
    ctx: Context,
    note: str,
) -> Contests:
    """Contests among candidates, default first; those during which the machine's speed changed are
    held once more.
    """
    held = _hold(bench, entries, CONTEST_S, ctx, note)
    again = [entry for entry in entries if _drifted(held[entry[0].name, entry[1]][0].timing)]
    return {**held, **_hold(bench, again, CONTEST_S, ctx, f"{note} again")} if again else held


def _drifted(timing: Timing) -> bool:
    """Whether a candidate became clearly faster or slower while it was timed."""
    third = len(timing.bursts_ms) // 3
    if timing.error or not third:
        return False
    begin, end = timing.bursts_ms[:third], timing.bursts_ms[-third:]
    return abs(statistics.median(end) / statistics.median(begin) - 1) > DRIFT


def _hold(
    bench: Bench,
    entries: Iterable[tuple[Kernel, Site, list[Contender]]],
    seconds: float,
    ctx: Context,
    note: str,
) -> Contests:
    jobs: list[Job] = []
    order: dict[tuple[str, Site], list[tuple[CandidateKind, str, str]]] = {}
    for number, (kernel, site, candidates) in enumerate(entries):
        group = f"{number}:{kernel.name}"  # a record's id is not unique: it is timed once a site
        places = order.setdefault((kernel.name, site), [])
        for kind, job in candidates:
            like = f"{group}:{job.like}" if job.like else ""
            jobs.append(replace(job, id=f"{group}:{job.id}", group=group, like=like))
            places.append((kind, job.id, jobs[-1].id))
    timings: dict[str, Timing] = {}
    for timing in bench.run(jobs, seconds=seconds):
        timings[timing.id] = timing
        ctx.progress(len(timings), len(jobs), note)
    return {
        key: tuple(Entry(kind, name, timings[job]) for kind, name, job in places)
        for key, places in order.items()
    }
