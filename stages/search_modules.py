"""Modules of the space that a search looks through: what packages offer it, by entry point.

An entry point of the group `tapml.search_modules` names one of two things. `ScheduleRules` are
MetaSchedule's own kind, and are composed with those of other modules to one space; `Variants` make
whole schedules from decisions of their own. `tuning.space` lists modules by name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import entry_points
from typing import Any

from tapml.errors import EnvironmentalError, RecipeError
from tapml.stage import Target

GROUP = "tapml.search_modules"

Value = int | str
Decisions = Mapping[str, Value]


@dataclass(frozen=True)
class Space:
    """The schedules of one PrimFunc that decisions lead to: the trace of one is its decisions.

    knobs:    decision → its options
    default:  the decisions of the default schedule; {} when it is none of these
    build:    the scheduled PrimFunc, the same for the same decisions; None when they do not fit
    legal:    whether decisions are worth building, told without building
    features: numbers that tell one schedule from another one, of any kernel, so that what was
              measured of one kernel says something of the next
    """

    knobs: Mapping[str, Sequence[Value]]
    default: Decisions
    build: Callable[[Decisions], Any | None]
    legal: Callable[[Decisions], bool]
    features: Callable[[Decisions], Sequence[float]]


@dataclass(frozen=True)
class Variants:
    """A module that makes whole schedules: the space of a PrimFunc, which may be symbolic, or None
    where it has nothing to offer.
    """

    space: Callable[[Any, Target], Space | None]


@dataclass(frozen=True)
class ScheduleRules:
    """A module of MetaSchedule's rules for a target, applied in the order of `tuning.space`; they
    schedule PrimFuncs of static sizes.
    """

    rules: Callable[[Target], Sequence[Any]]


Module = Variants | ScheduleRules


def names() -> tuple[str, ...]:
    """Names of the installed modules."""
    return tuple(sorted(entry.name for entry in entry_points(group=GROUP)))


def demand(space: Sequence[str]) -> None:
    """Raises: RecipeError for a module that is not installed, or is listed twice."""
    known = names()
    for number, name in enumerate(space):
        field = f"tuning.space.{number}"
        if name not in known:
            hint = f"installed: {', '.join(known)}"
            raise RecipeError(message=f"unknown search module {name!r}", field=field, hint=hint)
        if name in space[:number]:
            raise RecipeError(message=f"search module {name!r} is listed twice", field=field)


def load(space: Sequence[str]) -> dict[str, Module]:
    """The modules of a space by name, in its order.

    Raises: as `demand`; EnvironmentalError for a package whose module cannot be imported, or is
            none.
    """
    demand(space)
    entries = {entry.name: entry for entry in entry_points(group=GROUP)}
    found: dict[str, Module] = {}
    for name in space:
        entry = entries[name]
        try:
            module = entry.load()
        except (ImportError, AttributeError) as error:
            message = f"search module {name!r} ({entry.value}) cannot be loaded: {error}"
            raise EnvironmentalError(message=message) from error
        if not isinstance(module, Variants | ScheduleRules):
            message = f"{entry.value} is registered as a search module and is none"
            raise EnvironmentalError(message=message)
        found[name] = module
    return found
