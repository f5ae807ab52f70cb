"""The one tree of errors, and the exit code that each branch stands for.

TapmlError                      1   base; facts are fields, `__str__` is the message
├── StageError                  1   a stage failed on its input (broken model, NaN)
│   ├── WorkerError             1   the worker died or ran out of time
│   └── CancelledError          1   not run, because of another stage
├── RecipeError                 2   recipe, workflow, usage, missing file named in them
├── EnvironmentalError          3   package, compiler, device, disk; names what mends it
├── GateError                   4   a gate of the recipe failed
└── TrackingError               5   tracking was required and failed

Errors cross process boundaries as plain data: `to_data` in the worker, `from_data` in the parent.
Room-specific errors subclass these anywhere; an unknown class is rebuilt as its nearest known base.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Any, ClassVar

from .mask import without_keys

_LONG, _LISTED, _MANY = 160, 40, 1000  # characters, names told, names compared


@dataclass(eq=False, kw_only=True)
class TapmlError(Exception):
    """An error that a user can act on. `message` says what; `hint` says what to do next.

    As text it repeats no key and no password, wherever they came from.
    """

    exit_code: ClassVar[int] = 1
    message: str = ""
    hint: str = ""

    def __str__(self) -> str:
        return without_keys(f"{self.message}\n  {self.hint}" if self.hint else self.message)

    def __reduce__(self) -> tuple[Any, ...]:
        return from_data, (to_data(self),)


@dataclass(eq=False, kw_only=True)
class StageError(TapmlError):
    """A stage failed on its input. `stage` and `log` are filled in by the parent."""

    stage: str = ""
    log: str = ""


@dataclass(eq=False, kw_only=True)
class WorkerError(StageError):
    """The worker process of a stage died (`signal`), or ran out of time (signal "timeout")."""

    signal: str = ""


@dataclass(eq=False, kw_only=True)
class CancelledError(StageError):
    """A stage was not run; `because` names the stage that failed above it."""

    because: str = ""


@dataclass(eq=False, kw_only=True)
class RecipeError(TapmlError):
    """A mistake in a recipe, a workflow or a command line.

    `where` is `file:line:col` once known. A stage raises it with `field` (dotted path of the
    recipe) only; the parent looks the position up. `excerpt` is the offending line with a caret
    below it.
    """

    exit_code: ClassVar[int] = 2
    where: str = ""
    field: str = ""
    excerpt: str = ""

    def __str__(self) -> str:
        place = self.field if len(self.field) <= _LONG else f"{self.field[:_LONG]}…"
        head = ": ".join(part for part in (self.where, place, self.message) if part)
        lines = [head, self.excerpt, f"  {self.hint}" if self.hint else ""]
        return without_keys("\n".join(line for line in lines if line))


@dataclass(eq=False, kw_only=True)
class RecipeErrors(RecipeError):
    """Several independent mistakes, reported together."""

    errors: tuple[RecipeError, ...] = field(default=())

    def __str__(self) -> str:
        return "\n".join(str(error) for error in self.errors)


@dataclass(eq=False, kw_only=True)
class EnvironmentalError(TapmlError):
    """Something outside the recipe is missing: a package, a compiler, a device, disk space."""

    exit_code: ClassVar[int] = 3


@dataclass(eq=False, kw_only=True)
class GateError(TapmlError):
    """One or more gates failed; each line of `message` gives figure, limit and how far."""

    exit_code: ClassVar[int] = 4


@dataclass(eq=False, kw_only=True)
class TrackingError(TapmlError):
    """Tracking was required (`--track=required`) and could not be done."""

    exit_code: ClassVar[int] = 5


def nearest(name: str, known: list[str] | tuple[str, ...], *, noun: str = "known") -> str:
    """A hint that offers the closest of `known`, or lists them; short, whatever a recipe names."""
    close = get_close_matches(name[:_LONG], [one for one in known[:_MANY] if len(one) < _LONG], n=1)
    if close:
        return f"did you mean {close[0]!r}?"
    listed = [one if len(one) <= _LONG else f"{one[:_LONG]}…" for one in known[:_LISTED]]
    more = ", …" if len(known) > _LISTED else ""
    return f"{noun}: {', '.join(listed) or 'none'}{more}"


def to_data(error: TapmlError) -> dict[str, Any]:
    """Plain data of an error: the names of its class and bases, and its fields."""
    bases = [cls.__name__ for cls in type(error).__mro__ if issubclass(cls, TapmlError)]
    facts = {k: v for k, v in vars(error).items() if not k.startswith("__")}
    if isinstance(error, RecipeErrors):
        facts["errors"] = tuple(to_data(one) for one in error.errors)
    elif (
        bases[0] not in _KNOWN
    ):  # a room's own class: its prose survives, its extra fields stay plain
        facts["message"], facts["hint"] = str(error), ""
    return {"bases": bases, "facts": facts}


def from_data(data: dict[str, Any]) -> TapmlError:
    """The error that `to_data` described; an unknown class becomes its nearest known base."""
    cls = next(_KNOWN[name] for name in data["bases"] if name in _KNOWN)
    facts = dict(data["facts"])
    if cls is RecipeErrors:
        facts["errors"] = tuple(from_data(one) for one in facts["errors"])
    error = cls(**{k: v for k, v in facts.items() if k in cls.__dataclass_fields__})
    vars(error).update(facts)
    return error


_KNOWN: dict[str, type[TapmlError]] = {
    cls.__name__: cls
    for cls in (
        TapmlError,
        StageError,
        WorkerError,
        CancelledError,
        RecipeError,
        RecipeErrors,
        EnvironmentalError,
        GateError,
        TrackingError,
    )
}
