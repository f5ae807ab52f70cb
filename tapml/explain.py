"""Why a stage is stale: what differs between its key's preimage and an earlier one's."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from operator import ne
from typing import Any, Literal, cast

from . import host
from .progress import duration
from .stage import Amount, Stage
from .store import DamagedError, Record, Store

ChangeKind = Literal["version", "param", "python", "file", "input", "tool", "package", "host"]
Sources = Mapping[str, Mapping[str, str]]  # dotted field of a function → its files → digests
_CANDIDATES = 256  # newest earlier records that a stage is compared with
_DIGEST = 12  # characters that people see of one


@dataclass(frozen=True)
class Change:
    """One difference from an earlier result of the same stage; `old` and `new` are short texts."""

    kind: ChangeKind
    field: str
    old: str
    new: str

    def __str__(self) -> str:
        match self.kind:
            case "input":
                return f"input {self.field} changed"
            case "python":
                return f"{self.field}: its Python changed"
            case "file":
                return f"{self.field}: the file changed"
            case "package":
                return "the stage's own package changed"
            case _:
                return f"{self.field} {self.old} → {self.new}"


@dataclass(frozen=True)
class Expected:
    """What a stage took on this machine when it last ran in its nearest form."""

    seconds: float
    rss_mib: float
    disk_mib: float


@dataclass(frozen=True)
class Counted:
    """What the counted work of a stage will take: `tuning: 64 trials, about 1 min 50 s, …`.

    done:     of `amount.count`, by an earlier run
    rate:     a second; `measured`: the day on which this machine did so, "" where it is assumed
    before_s: of the earlier run that the stage's other time is known from
    """

    amount: Amount
    done: int
    rate: float
    measured: str
    before_s: float

    @property
    def left(self) -> int:
        return max(self.amount.count - self.done, 0)

    @property
    def seconds(self) -> float:
        limit = self.amount.limit_s
        return min(self.left / self.rate, math.inf if limit is None else limit)

    def __str__(self) -> str:
        one = self.amount
        words = f"{one.what}: {one.count} {one.noun}"
        if self.done:
            words += f", {min(self.done, one.count)} of them done before"
        if not self.left:
            return words
        words += f", about {duration(self.seconds)}"
        rate = f"at {self.rate:.2g} {one.noun}/s"
        how = f"measured on {self.measured}" if self.measured else "assumed: none measured here yet"
        if one.limit_s is not None and self.seconds < self.left / self.rate:
            fit = int(self.seconds * self.rate)
            return f"{words} (max_seconds), enough for about {fit} {rate} {how}"
        return f"{words} {rate} {how}"


@dataclass(frozen=True)
class Nearest:
    """The earlier result with the fewest differences, if any, and what a run will take.

    beside: the recipe that it was made for, where it was for none of the asking ones
    here:   the nearest that was made on this machine
    """

    changes: tuple[Change, ...] = ()
    record: Record | None = None
    beside: str = ""
    expected: Expected | None = None
    here: Record | None = None


class Past:
    """The earlier results in a store, those of each stage read once.

    packages: digests of the packages that stages come from, each read once too
    """

    def __init__(self, store: Store) -> None:
        self.store = store
        self.packages: dict[str, str] = {}
        self._earlier: dict[str, _Earlier] = {}
        self._expected: dict[str, Expected] = {}

    def nearest(
        self,
        preimage: Mapping[str, Any],
        sources: Sources,
        recipes: Collection[str] = (),
        *,
        unknown: Collection[str] = (),
    ) -> Nearest:
        """The nearest earlier result of a stage; of several, the newest.

        In: `recipes`: what was made for one of them goes before all else; `unknown`: inputs whose
            digests are not known yet, and do not count.
        """
        earlier = self._of(str(preimage["stage"]))
        if not earlier.records:
            return Nearest()
        far = earlier.distances(
            dict(_facts(preimage)), frozenset(f"inputs.{name}" for name in unknown)
        )
        own = earlier.of(recipes)
        record = earlier.records[min(own or range(len(far)), key=far.__getitem__)]
        local = None
        if earlier.here:
            local = earlier.records[min(earlier.here, key=far.__getitem__)]
        partial = set(preimage["inputs"]) if unknown else None
        return Nearest(
            tuple(differences(record.preimage, preimage, record.sources, sources, partial)),
            record,
            "" if own else ", ".join(record.recipes),
            None if local is None else self._expect(local),
            local,
        )

    def counted(self, stage: Stage, earlier: Nearest, *, inputs_known: bool) -> Counted | None:
        """What the counted work of a stage will take, by the rate that its nearest result has
        measured here, or the newest that measured any.
        """
        if (amount := stage.amount()) is None:
            return None
        same = {f"{amount.what}.{amount.noun}", f"{amount.what}.max_seconds"}
        resumes = (
            inputs_known
            and earlier.here is not None
            and earlier.here is earlier.record
            and {change.field for change in earlier.changes} <= same
        )
        local = self._of(stage.name)
        known = [local.records[index] for index in local.here]
        known = known if earlier.here is None else [earlier.here, *known]
        rated = [(_figure(one, f"{amount.what}/{amount.noun}_per_s"), one) for one in known]
        rate, source = next(((rate, one) for rate, one in rated if rate), (amount.assumed, None))
        return Counted(
            amount=amount,
            done=int(_figure(earlier.here, f"{amount.what}/{amount.noun}")) if resumes else 0,
            rate=rate,
            measured="" if source is None else source.made_at.partition("T")[0],
            before_s=_figure(earlier.here, f"{amount.what}/seconds"),
        )

    def _of(self, stage: str) -> _Earlier:
        if stage not in self._earlier:
            self._earlier[stage] = _Earlier(self.store.newest(stage, _CANDIDATES))
        return self._earlier[stage]

    def _expect(self, record: Record) -> Expected:
        if record.key not in self._expected:
            size = 0
            for digest in record.outputs.values():
                with suppress(DamagedError):
                    size += self.store.size(digest)
            self._expected[record.key] = Expected(record.seconds, record.rss_mib, size / 2**20)
        return self._expected[record.key]


def _figure(record: Record | None, name: str) -> float:
    """A figure of a result's report; 0 where it has none."""
    if record is None:
        return 0.0
    metrics = cast("Mapping[str, float | None]", record.report.get("metrics") or {})
    return metrics.get(name) or 0.0


class _Earlier:
    """Earlier results of one stage, newest first, and how far another one is from each.

    here: which of them were made on this machine
    """

    def __init__(self, records: list[Record]) -> None:
        self.records = records
        self.here = [
            index
            for index, record in enumerate(records)
            if record.made_on.get("machine") == host.machine()
        ]
        self._facts = [dict(_facts(record.preimage)) for record in records]
        self._shared = dict(
            set[tuple[str, str]].intersection(*(set(facts.items()) for facts in self._facts))
            if records
            else ()
        )
        self._varying = {name for facts in self._facts for name in facts} - self._shared.keys()
        self._rows: dict[tuple[str, ...], list[tuple[str | None, ...]]] = {}

    def of(self, recipes: Collection[str]) -> list[int]:
        """Which of them were made for one of the recipes, or may have been."""
        return [
            index
            for index, record in enumerate(self.records)
            if not record.recipes or not recipes or not {*recipes}.isdisjoint(record.recipes)
        ]

    def distances(self, facts: Mapping[str, str], unknown: frozenset[str]) -> list[int]:
        """How many facts are others than in each of the results; `unknown` ones do not count.

        What all results share is compared once: a plan of thousands of stages asks for each.
        """
        shared = sum(
            self._shared.get(name) != facts.get(name)
            for name in (self._shared.keys() | facts.keys()) - self._varying - unknown
        )
        names = tuple(sorted(self._varying - unknown))
        if names not in self._rows:
            self._rows[names] = [tuple(map(one.get, names)) for one in self._facts]
        own = tuple(map(facts.get, names))
        return [shared + sum(map(ne, row, own)) for row in self._rows[names]]


def differences(
    old: Mapping[str, Any],
    new: Mapping[str, Any],
    old_sources: Sources | None = None,
    new_sources: Sources | None = None,
    known_inputs: Collection[str] | None = None,
) -> Iterator[Change]:
    """What differs between the preimages of two results of one stage.

    In: `…_sources`: files of the recipe's Python; `known_inputs`: only these inputs count.
    """
    if old["version"] != new["version"]:
        yield Change(
            "version", f"{new['stage']}'s version", str(old["version"]), str(new["version"])
        )
    before, after = dict(_flat(old["params"])), dict(_flat(new["params"]))
    for name in sorted(before.keys() | after.keys()):
        if (a := before.get(name, "–")) == (b := after.get(name, "–")):
            continue
        owner, _, last = name.rpartition(".")
        if last != "sha256":  # else it is a File or a PythonFunction of tapml.stage
            yield Change("param", name, a, b)
        elif f"{owner}.function" not in (after if name in after else before):
            yield Change("file", owner, a[:_DIGEST], b[:_DIGEST])
        else:
            files = (old_sources or {}).get(owner, {}), (new_sources or {}).get(owner, {})
            yield from _python_changes(owner, *files) or [
                Change("python", owner, a[:_DIGEST], b[:_DIGEST])
            ]
    sections: tuple[tuple[ChangeKind, str], ...] = (
        ("input", "inputs"),
        ("tool", "tools"),
        ("host", "host"),
    )
    for kind, section in sections:
        rows, others = old.get(section, {}), new.get(section, {})
        names = rows.keys() | others.keys()
        if kind == "input" and known_inputs is not None:
            names = set(known_inputs)
        for name in sorted(names):
            if (a := str(rows.get(name, "–"))) != (b := str(others.get(name, "–"))):
                short = _DIGEST if kind == "input" else None
                yield Change(kind, name, a[:short], b[:short])
    if (a := old.get("package", "–")) != (b := new.get("package", "–")):
        yield Change("package", "package", a[:_DIGEST], b[:_DIGEST])


def _python_changes(owner: str, old: Mapping[str, str], new: Mapping[str, str]) -> list[Change]:
    """The files of a function that differ: its own, the modules beside it, what it reads."""
    if not old or not new:  # made before files were recorded
        return []
    return [
        Change(
            "python", f"{owner}: {name}", old.get(name, "–")[:_DIGEST], new.get(name, "–")[:_DIGEST]
        )
        for name in sorted(old.keys() | new.keys())
        if old.get(name) != new.get(name)
    ]


def _facts(preimage: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """What a preimage says, flat."""
    for section, value in preimage.items():
        yield from _flat(value, section)


def _flat(value: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """Dotted fields of plain data, scalars as text; a list of scalars is one field."""
    match value:
        case dict() if value:
            for name, one in cast("dict[str, Any]", value).items():
                yield from _flat(one, f"{path}.{name}" if path else name)
        case list() | tuple():
            rows = cast("list[Any]", value)
            if any(isinstance(one, dict) for one in rows):
                for index, one in enumerate(rows):
                    yield from _flat(one, f"{path}[{index}]")
            else:
                yield path, "[" + ", ".join(map(str, rows)) + "]"
        case _:
            yield path, str(value)
