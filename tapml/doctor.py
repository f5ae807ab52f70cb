"""Whether this machine can build, time and track: a line per need, each with the command that mends
it.
"""

from __future__ import annotations

import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from . import host, mask, registry, tracking
from .errors import EnvironmentalError, TapmlError

_FREE_GIB = 2.0
_NEEDED = {"onnx", "onnxruntime"}  # of the extras; the rest serve some recipes only


@dataclass(frozen=True)
class Finding:
    """One need. `mend` is a command; a need that is not `required` is a warning."""

    need: str
    found: str
    is_met: bool
    required: bool = True
    mend: str = ""


def examine(store: Path) -> list[Finding]:
    """All findings. Imports none of what it looks for."""
    checks: tuple[Callable[[Path], Iterator[Finding]], ...] = (
        _python,
        _packages,
        _compiler,
        _cpu,
        _disk,
        _stages,
        _tracking,
        _remote,
    )
    return [finding for check in checks for finding in check(store)]


def _python(store: Path) -> Iterator[Finding]:
    version = ".".join(map(str, sys.version_info[:3]))
    yield Finding(
        "Python ≥ 3.11",
        version,
        sys.version_info >= (3, 11),
        mend="apt-get install python3.11-venv",
    )


def _packages(store: Path) -> Iterator[Finding]:
    """Every requirement of tapml itself against what is installed, extras as warnings."""
    from packaging.requirements import Requirement

    for text in importlib.metadata.requires("tapml") or ():
        requirement = Requirement(text)
        extras = re.findall(r'extra == "(\w+)"', text)
        if requirement.name == "tapml" or "dev" in extras:
            continue
        try:
            version = importlib.metadata.version(requirement.name)
        except importlib.metadata.PackageNotFoundError:
            version = ""
        yield Finding(
            need=f"{requirement.name} {requirement.specifier}".strip(),
            found=version or "not installed",
            is_met=bool(version) and requirement.specifier.contains(version, prereleases=True),
            required=not extras or requirement.name in _NEEDED,
            mend=f"{sys.executable} -m pip install '{requirement.name}{requirement.specifier}'",
        )


def _compiler(store: Path) -> Iterator[Finding]:
    for name in ("g++", "c++", "clang++"):
        if path := shutil.which(name):
            done = subprocess.run([path, "--version"], capture_output=True, text=True, check=False)
            first = (done.stdout.splitlines() or ["does not run"])[0]
            yield Finding(
                "C++ compiler (links libraries)",
                first,
                done.returncode == 0,
                mend="apt-get install g++",
            )
            return
    yield Finding(
        "C++ compiler (links libraries)", "none on PATH", is_met=False, mend="apt-get install g++"
    )


def _cpu(store: Path) -> Iterator[Finding]:
    print_of = host.fingerprint()
    flags = _cpu_flags()
    vectors = [name for name in ("avx512f", "avx2", "fma", "avx", "asimd", "sve") if name in flags]
    has_vectors = bool({"avx2", "asimd"} & flags)
    mend = "results are right, but slow: the shipped schedules expect AVX2 or NEON"
    text = f"{print_of['cpu']}, {print_of['cores']} cores, {print_of['threads']} threads"
    yield Finding(
        "CPU",
        f"{text}; {' '.join(vectors) or 'no vectors'}",
        has_vectors,
        required=False,
        mend=mend,
    )


def _cpu_flags() -> set[str]:
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return set()
    found = re.search(r"^(?:flags|Features)\s*:\s*(.*)$", text, re.MULTILINE)
    return set(found[1].split()) if found else set()


def _disk(store: Path) -> Iterator[Finding]:
    there = next(folder for folder in (store, *store.parents) if folder.exists())
    free = shutil.disk_usage(there).free / 2**30
    is_writable = os.access(there, os.W_OK)
    found = f"{free:.1f} GiB free{'' if is_writable else ', not writable'}"
    mend = "TAPML_STORE=/a/larger/disk tapml run …"
    yield Finding(f"store {store}", found, is_writable and free >= _FREE_GIB, mend=mend)


def _stages(store: Path) -> Iterator[Finding]:
    """Each installed stage loads and finds what it needs on this machine."""
    for name in registry.stage_names():
        try:
            cls = registry.stage_class(name)
            for tool in cls.tools:
                importlib.metadata.version(tool)
            cls.tool_versions()
        except importlib.metadata.PackageNotFoundError as error:
            mend = f"{sys.executable} -m pip install {error.name}"
            yield Finding(
                f"stage {name}", f"{error.name} is not installed", is_met=False, mend=mend
            )
        except TapmlError as error:
            yield Finding(f"stage {name}", error.message, is_met=False, mend=error.hint)
        else:
            yield Finding(f"stage {name}", f"version {cls.version}", is_met=True)


def _tracking(store: Path) -> Iterator[Finding]:
    missed = tracking.missed(store)
    yield Finding(
        "MLflow",
        missed or "has all runs that were to go there",
        is_met=not missed,
        required=False,
        mend="tapml track sync",
    )


def _remote(store: Path) -> Iterator[Finding]:
    """The shared cache, where one is set, answers."""
    from . import remote, settings, workflow

    file = workflow.find(Path.cwd() / "recipe.yaml")
    cache = settings.remote_cache(workflow.load(file).file.engine, file)
    if cache is None:
        return
    need = f"shared cache {mask.bare(cache.url)}"
    try:
        place = remote.connect(cache, store, warn=lambda text: None)
    except TapmlError as error:
        yield Finding(need, error.message, is_met=False, required=False, mend=error.hint)
        return
    assert place is not None
    wrong = place.check()
    mend = "`TAPML_REMOTE`, or `engine: cache:` of workflows.yaml; runs go on without it"
    yield Finding(need, wrong or f"answers, {cache.mode}", not wrong, required=False, mend=mend)


def error(findings: list[Finding]) -> EnvironmentalError | None:
    """The error of the needs that are not met, or None."""
    missing = [finding for finding in findings if finding.required and not finding.is_met]
    if not missing:
        return None
    lines = "\n".join(f"  {finding.need}: {finding.found}   {finding.mend}" for finding in missing)
    return EnvironmentalError(message=f"{len(missing)} needs are not met\n{lines}")
