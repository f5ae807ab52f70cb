"""Who wins a contest: the record of each kernel, the implementation of each region."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from ..measure import ratio
from ..records import Choices, KernelChoice, Record, RegionChoice
from .contest import Contests, Entry, Rivals
from .kernels import Kernel, Site
from .stage import Chooser

ALTERNATIVE = ("sparse", "library")  # kinds that replace a region as a whole
CLEARLY = 0.98  # a rival wins with at most this share of the other's time


@dataclass(frozen=True)
class Shipped:
    """What runs at the calls of a kernel in one clone."""

    kernel: Kernel
    site: Site
    entry: Entry
    label: str  # rule of the record, or id of the alternative

    @property
    def total_ms(self) -> float:
        return self.entry.timing.ms * self.site.count


@dataclass(frozen=True)
class Outcome:
    """Choices, the records that they name, what is shipped where, and why, in words."""

    choices: Choices
    records: tuple[Record, ...]
    shipped: tuple[Shipped, ...]
    notes: tuple[str, ...]


def decide(
    kernels: Sequence[Kernel], contests: Contests, rivals: Rivals, choose: Chooser
) -> Outcome:
    """The fastest of each contest, or for regions what `choose` demands.

    A rival wins only clearly, and the default otherwise: noise never replaces it.
    """
    records = {kernel.default.id: kernel.default for kernel in kernels}
    records |= {record.id: record for found in rivals.tuned.values() for record in found}
    kernel_choices, region_choices = [], []
    shipped: list[Shipped] = []
    notes: list[str] = []
    times: dict[str, float] = {}
    for kernel in kernels:
        main = max(kernel.sites, key=lambda s: contests[kernel.name, s][0].timing.ms * s.count)
        winner = dense_winner(contests[kernel.name, main])
        dense = [entry for entry in contests[kernel.name, main] if entry.kind not in ALTERNATIVE]
        times |= {entry.id: entry.timing.ms for entry in dense if not entry.timing.error}
        candidates = tuple(entry.candidate() for entry in dense)
        notes += _tuned(kernel.name, dense, winner)
        kernel_choices.append(KernelChoice(kernel.name, winner.id, candidates))
        for site in kernel.sites:
            entries = contests[kernel.name, site]
            here = next(entry for entry in entries if entry.id == winner.id)
            chosen = region_winner(entries, here, choose) if kernel.region else here
            label = chosen.id if chosen.kind in ALTERNATIVE else records[chosen.id].rule
            shipped.append(Shipped(kernel, site, chosen, label))
            if kernel.region:
                region_choices.append(
                    RegionChoice(
                        region=kernel.region,
                        clone=site.clone,
                        kernel=kernel.name,
                        chosen=chosen.id if chosen.kind in ALTERNATIVE else "dense",
                        candidates=tuple(entry.candidate() for entry in entries),
                    )
                )
                notes += _explain(kernel.region, site.clone, entries, here, chosen, choose)
    named = {c.id for choice in kernel_choices for c in choice.candidates}
    kept = (replace(r, ms=times.get(r.id)) for r in records.values() if r.id in named)
    choices = Choices(tuple(kernel_choices), tuple(region_choices))
    return Outcome(choices, tuple(kept), tuple(shipped), tuple(notes))


def dense_winner(entries: Sequence[Entry]) -> Entry:
    """The default, or the tuned record that is clearly faster."""
    best = entries[0]
    for entry in entries:
        if entry.kind == "tuned" and not entry.timing.error:
            limit = CLEARLY if best.kind == "default" else 1.0
            best = entry if ratio(entry.timing, best.timing) < limit else best
    return best


def region_winner(entries: Sequence[Entry], dense: Entry, choose: Chooser) -> Entry:
    """The best library where it is clearly faster than the kernel, then the best sparse
    implementation where it is clearly faster than that, or demanded.
    """
    best = dense
    for kind in ALTERNATIVE[::-1]:
        working = [entry for entry in entries if entry.kind == kind and not entry.timing.error]
        if not working or (kind == "sparse" and choose == "dense"):
            continue
        fastest = min(working, key=lambda entry: ratio(entry.timing, dense.timing))
        demanded = kind == "sparse" and choose == "sparse"
        if demanded or ratio(fastest.timing, best.timing) < CLEARLY:
            best = fastest
    return best


def _tuned(kernel: str, dense: Sequence[Entry], winner: Entry) -> list[str]:
    """What tuning brought to a kernel, in words; nothing where it was not tuned."""
    default, *tuned = dense
    wrong = [f"{kernel}: a tuned schedule {e.timing.error}" for e in tuned if e.timing.error]
    if winner.kind == "tuned":
        gain = 1 / ratio(winner.timing, default.timing)
        times = f"{winner.timing.ms:.4g} against {default.timing.ms:.4g} ms"
        return [*wrong, f"{kernel}: tuning brought {gain:.2f}x over the default rule, {times}"]
    return [*wrong, f"{kernel}: the default rule's schedule kept"] if tuned else []


def _explain(
    region: str,
    clone: str,
    entries: Sequence[Entry],
    dense: Entry,
    chosen: Entry,
    choose: Chooser,
) -> list[str]:
    """What sparsity and libraries brought to a region, in words; nothing where they had no say."""
    at = f"{region} in {clone}"
    library = [_library(at, entry, dense, chosen) for entry in entries if entry.kind == "library"]
    sparse = [entry for entry in entries if entry.kind == "sparse"]
    if not sparse:
        return library
    failed = [f"{at}: {entry.id} {entry.timing.error}" for entry in sparse if entry.timing.error]
    failed += library
    working = [entry for entry in sparse if not entry.timing.error]
    if not working:
        return [*failed, f"{at}: dense kept, no sparse implementation works"]
    best = min(working, key=lambda entry: ratio(entry.timing, dense.timing))
    gain = 1 / ratio(best.timing, dense.timing)
    forced = "" if choose == "measured" else f" (forced: choose is {choose})"
    times = f"{best.timing.ms:.4g} against {dense.timing.ms:.4g} ms"
    if chosen.kind == "sparse" and gain >= 1:
        return [*failed, f"{at}: sparsity brought {gain:.2f}x by {best.id}, {times}{forced}"]
    if chosen.kind == "sparse":
        return [*failed, f"{at}: {best.id} is {1 / gain:.2f}x SLOWER than dense, {times}{forced}"]
    if gain > 1 / CLEARLY:
        return [*failed, f"{at}: dense kept, {best.id} would be {gain:.2f}x faster{forced}"]
    return [*failed, f"{at}: dense kept, {best.id} takes {1 / gain:.2f}x its time, {times}{forced}"]


def _library(at: str, entry: Entry, dense: Entry, chosen: Entry) -> str:
    """How a library fared against the dense kernel, in words."""
    if entry.timing.error:
        return f"{at}: {entry.id} {entry.timing.error}"
    gain = 1 / ratio(entry.timing, dense.timing)
    times = f"{entry.timing.ms:.4g} against {dense.timing.ms:.4g} ms"
    shipped = "ships" if entry is chosen else "does not ship"
    return f"{at}: {entry.id} is {gain:.2f}x as fast as the kernel, {times}, and {shipped}"
