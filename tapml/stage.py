"""The contract between the engine and a stage: what a stage declares, what it gets and what it
gives back.

A stage *is* its parameters: a frozen model of the recipe fields that it reads. The engine computes
keys from them,
moves files named by digest, and calls `run` in a worker process. Nothing here imports TVM.
"""

from __future__ import annotations

import importlib.util
import logging
import os
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Protocol, Self, TypeVar, cast

from pydantic import BaseModel, ConfigDict, Field

from .errors import EnvironmentalError, RecipeError, StageError

Kind = str  # names what flows on an edge: "program", "weights", "records", "bundle", "facts", …
SectionT = TypeVar("SectionT", bound="Frozen")


class Frozen(BaseModel):
    """Base of every recipe section and stage: immutable, strict, no unknown keys, no NaN."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        strict=True,
        allow_inf_nan=False,
        validate_default=True,
        str_max_length=4096,
        protected_namespaces=(),
    )


class File(Frozen):
    """An input file of a stage: keyed by the digest of its bytes, never by its path."""

    path: str = Field(exclude=True)
    sha256: str


class Folder(Frozen):
    """Files of an input folder: keyed by the name and digest of each, never by the path."""

    path: str = Field(exclude=True)
    files: dict[str, File]


class PythonRef(Frozen):
    """Python of the recipe's author: `file.py:function`, with the data files that it reads."""

    python: str = Field(
        pattern=r"^.+\.py:[A-Za-z_]\w*$",
        description="`file.py:function`",
        examples=["inputs.py:files"],
    )
    reads: tuple[str, ...] = Field(
        default=(),
        description="Files (globs) that it reads; they enter the key",
        examples=[["files/**"]],
    )


class PythonFunction(Frozen):
    """A resolved `PythonRef`: keyed by the digest of the file, the modules beside it and what it
    reads; `files` has the digest of each.
    """

    path: str = Field(exclude=True)
    function: str
    sha256: str
    files: dict[str, str] = Field(default_factory=dict, exclude=True)

    def load(self, field_name: str = "") -> Callable[..., Any]:
        """The function itself, its folder on `sys.path` so that it can import its neighbours.

        Raises: RecipeError when the file has no such function; StageError when the file itself
                raises.
        """
        folder = os.path.dirname(self.path)
        if folder not in sys.path:
            sys.path.insert(0, folder)
        spec = importlib.util.spec_from_file_location(f"tapml_recipe_{self.sha256[:12]}", self.path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        try:
            spec.loader.exec_module(module)
        except Exception as error:  # the user's code: anything may come out of it
            raise self.told(error, self.path) from error
        if not callable(found := getattr(module, self.function, None)):
            raise RecipeError(
                field=field_name, message=f"{self.path} has no function {self.function!r}"
            )
        return found

    def told(self, error: Exception, origin: str = "") -> StageError | EnvironmentalError:
        """What to tell of an error that came out of it: the last line of its own that was run.

        A package that it lacks is the environment's fault, named with the command that installs it.
        """
        origin = origin or f"{self.path}: {self.function}()"
        if isinstance(error, ModuleNotFoundError) and error.name:
            package = error.name.partition(".")[0]
            return EnvironmentalError(
                message=f"{origin} needs the package {package!r}, which is not installed",
                hint=f"pip install {package}",
            )
        own = [
            frame
            for frame in traceback.extract_tb(error.__traceback__)
            if frame.filename.startswith(os.path.dirname(self.path))
        ]
        place = f"at {own[-1].filename}:{own[-1].lineno} in {own[-1].name}" if own else ""
        return StageError(message=f"{origin} raised {type(error).__name__}: {error}", hint=place)


class Device(Frozen):
    """Where the library is run and measured."""

    kind: str = "local"
    threads: int = Field(ge=1, description="Threads that the library and its peer use")


class Target(Frozen):
    """A target resolved to full text, so that a library for another CPU has another key.

    `features` are the CPU features that code may use (LLVM's names, sorted); `vector_bits` and
    `vector_registers` follow from them and size the register tiles.
    """

    kind: str
    mcpu: str
    mtriple: str = ""
    features: tuple[str, ...] = ()
    cores: int = Field(ge=1)
    vector_bits: int = 128
    vector_registers: int = 16
    device: Device


class Recipe(Protocol):
    """What a stage sees of a recipe when it builds itself. Implemented by `tapml.recipe`."""

    @property
    def name(self) -> str: ...
    @property
    def target(self) -> Target: ...
    def has(self, path: str) -> bool:
        """Whether the recipe has this top-level section, or sets this field of one
        (`relax.quantize`) to more than false or null.
        """
        ...

    def section(self, name: str, cls: type[SectionT]) -> SectionT:
        """The section, as an instance of `cls` (its defaults when the recipe leaves it out)."""
        ...

    def file(self, path: str, *, field: str) -> File:
        """The file at `path` (relative to the recipe), with its digest. RecipeError when it is
        missing.
        """
        ...

    def folder(self, path: str, *, names: Sequence[str], field: str) -> Folder:
        """The folder at `path`, with the digests of its files whose name one of the wildcards
        `names` fits. RecipeError when there is no folder, or no such file.
        """
        ...

    def python(self, ref: PythonRef, *, field: str) -> PythonFunction:
        """The function of `ref`, resolved and digested, not imported. RecipeError when it is
        missing.
        """
        ...


@dataclass(frozen=True)
class Resources:
    """What a stage needs while it runs; it starts when this much is free.

    cpu, gpu, memory_mib: cores, GPUs, MiB
    exclusive:            it times something, so it runs alone on the machine
    fresh_process:        in a process that has run nothing
    timeout_s:            longest that it may run
    """

    cpu: int = 1
    gpu: int = 0
    memory_mib: int = 0
    exclusive: bool = False
    fresh_process: bool = False
    timeout_s: float | None = None


@dataclass(frozen=True)
class Amount:
    """Work inside a stage that takes as long as there is of it, such as trials of a search.

    The figures of the stage's report tell how it went: `WHAT/NOUN`, `WHAT/NOUN_per_s` (of those
    that took time) and `WHAT/seconds`.
    what, noun: as in `tuning` and `trials`; the parameters `WHAT.NOUN` and `WHAT.max_seconds` bound
                it, and a result that differs in these alone has done its part of it already
    count:      at most so many
    limit_s:    it ends then at the latest
    assumed:    so many a second, on a machine that has measured none
    """

    what: str
    noun: str
    count: int
    limit_s: float | None
    assumed: float


@dataclass(frozen=True)
class Table:
    """A table of a stage's report."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str | int | float | bool | None, ...], ...]


@dataclass(frozen=True)
class Curve:
    """A plot of a stage's report: named lines of (x, y) points."""

    title: str
    x_label: str
    y_label: str
    lines: Mapping[str, tuple[tuple[float, float], ...]]


class Bar(NamedTuple):
    """One bar: `least` is where it could end at best; bars of a group have one colour."""

    name: str
    value: float
    least: float | None = None
    note: str = ""
    group: str = ""


@dataclass(frozen=True)
class Bars:
    """Horizontal bars of a stage's report, on one scale from zero."""

    title: str
    unit: str
    bars: tuple[Bar, ...]


class Dot(NamedTuple):
    """One dot of a scatter: `share` (0 to 1) is its area, `note` what it tells beside its name."""

    name: str
    x: float
    y: float
    share: float
    note: str = ""
    group: str = ""


@dataclass(frozen=True)
class Scatter:
    """Dots of a stage's report over logarithmic axes, and the lines that bound them."""

    title: str
    x_label: str
    y_label: str
    dots: tuple[Dot, ...]
    lines: Mapping[str, tuple[tuple[float, float], ...]]


@dataclass(frozen=True)
class Report:
    """What a stage tells people; a side output, on no edge. The engine draws it without knowing
    the room.

    `summary`: one line for the terminal. `metrics`: `section/name_unit` → number, sent to MLflow.
    `advice`: what is most worth doing next, each in a line, the best first.
    """

    summary: str = ""
    metrics: Mapping[str, float] = field(default_factory=dict[str, float])
    notes: tuple[str, ...] = ()
    tables: tuple[Table, ...] = ()
    curves: tuple[Curve, ...] = ()
    bars: tuple[Bars, ...] = ()
    scatters: tuple[Scatter, ...] = ()
    advice: tuple[str, ...] = ()


@dataclass(frozen=True)
class Outputs:
    """Artifacts by output name (files or folders below `ctx.workdir`), and the report."""

    artifacts: Mapping[str, Path]
    report: Report = Report()


class Inputs(Mapping[str, Path]):
    """Read-only paths of a stage's inputs. What a stage left out by `when` would give is absent."""

    def __init__(self, paths: Mapping[str, Path]) -> None:
        self._paths = dict(paths)

    def __getitem__(self, name: str) -> Path:
        return self._paths[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._paths)

    def __len__(self) -> int:
        return len(self._paths)


@dataclass(frozen=True)
class Context:
    """What a running stage may use besides its inputs.

    workdir:   an empty folder; artifacts are written here.
    views:     a folder for human-readable side outputs (IR before and after passes), or None when
    not asked for.
    database:  a folder that outlives runs (tuning records); in no key.
    """

    workdir: Path
    logger: logging.Logger
    database: Path
    views: Path | None = None
    progress_file: Path | None = None
    memo_store: (
        Callable[[str, Mapping[str, Any], Mapping[str, str], Callable[[Path], None]], Path] | None
    ) = None

    def progress(self, done: int, total: int, note: str = "") -> None:
        """Tells the parent how far the stage is. Cheap; call it as often as there is news."""
        if self.progress_file is not None:
            import json

            with self.progress_file.open("a", encoding="utf-8") as out:
                out.write(json.dumps({"done": done, "total": total, "note": note}) + "\n")

    def memo(
        self,
        name: str,
        params: Mapping[str, Any],
        inputs: Mapping[str, str],
        fn: Callable[[Path], None],
    ) -> Path:
        """A cached file of work inside the stage (a tuning task, a probe).

        In: name and version of the work, its plain parameters, digests of its inputs; `fn` writes
            the file it is given.
        Out: path of the file, taken from the store when it is there.
        """
        if self.memo_store is None:
            path = self.workdir / f"memo-{name}"
            fn(path)
            return path
        return self.memo_store(name, params, inputs, fn)


class Stage(Frozen):
    """One step of a build. A subclass's fields are its parameters; they and nothing else enter its
    key.

    Class variables declare the stage to the engine:
    name, version    bump `version` when equal inputs may give other output
    sections         recipe sections whose fields this room brings: section → model
    inputs, outputs  input or output name → kind of artifact
    optional         inputs that may be absent (their stage was left out by `when`)
    tools            distributions whose versions enter the key
    uses()           the same for one instance; `tools` unless a stage says otherwise
    tool_versions()  further versions that enter the key (a linker)
    amount()         work inside it whose time follows from how much there is
    resources        what it needs while it runs
    measures         it times something: the host's fingerprint enters its key
    """

    name: ClassVar[str]
    version: ClassVar[int]
    sections: ClassVar[Mapping[str, type[Frozen]]] = {}
    inputs: ClassVar[Mapping[str, Kind]] = {}
    optional: ClassVar[frozenset[str]] = frozenset()
    outputs: ClassVar[Mapping[str, Kind]] = {}
    tools: ClassVar[tuple[str, ...]] = ()
    resources: ClassVar[Resources] = Resources()
    measures: ClassVar[bool] = False

    @classmethod
    def from_recipe(cls, recipe: Recipe) -> Self:
        """The stage with its parameters taken from the recipe. Reads no file but through
        `recipe`.
        """
        return cls()

    @classmethod
    def tool_versions(cls) -> Mapping[str, str]:
        """Versions of tools that are no Python distribution, such as the linker. In the key."""
        return {}

    def uses(self) -> tuple[str, ...]:
        """Distributions whose versions enter the key, for these parameters."""
        return self.tools

    def amount(self) -> Amount | None:
        """The work inside it whose time can be told from its amount before it runs, if any."""
        return None

    def check(self) -> None:
        """Raises EnvironmentalError when this machine lacks what `run` needs; called before any
        stage runs, no TVM.
        """

    def run(self, inputs: Inputs, ctx: Context) -> Outputs:
        """Does the work, in a worker process. Imports heavy packages here."""
        raise NotImplementedError


def functions(stage: Stage) -> dict[str, PythonFunction]:
    """The functions of the recipe's author in a stage's parameters, by dotted field."""
    return dict(_functions(stage, ""))


def sources(stage: Stage) -> dict[str, dict[str, str]]:
    """The files of those functions and their digests: no part of the key, but of its reasons."""
    return {name: dict(one.files) for name, one in functions(stage).items()}


def _functions(value: object, path: str) -> Iterator[tuple[str, PythonFunction]]:
    match value:
        case PythonFunction():
            yield path, value
        case BaseModel():
            for name in type(value).model_fields:
                yield from _functions(getattr(value, name), f"{path}.{name}" if path else name)
        case tuple() | list():
            for index, one in enumerate(cast("tuple[object, ...]", value)):
                yield from _functions(one, f"{path}[{index}]")
        case dict():
            for name, one in cast("dict[str, object]", value).items():
                yield from _functions(one, f"{path}.{name}")
        case _:
            pass
