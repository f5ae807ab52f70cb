"""What happens in a worker process: inputs become paths, the stage runs, outputs are stored.

Plain data goes in and comes out. This is the one place where any exception is caught.
"""

from __future__ import annotations

import ctypes
import json
import logging
import os
import signal
import sys
import sysconfig
import time
import traceback
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

from . import disk, errors, events, host, keys, store
from . import remote as remotes
from .errors import EnvironmentalError, StageError, TapmlError
from .explain import differences
from .mask import mask
from .stage import Context, Inputs, Outputs, Stage, sources
from .store import DamagedError, Durability, Record, Store

_PR_SET_PDEATHSIG = 1
THREADS = ("TVM_NUM_THREADS", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


@dataclass(frozen=True)
class Job:
    """One stage to run.

    threads:   of its numerical libraries; None: its share of the cores
    limit_s:   longest that it may run
    capture:   what the process prints goes to `log`
    remote:    the shared cache, for inputs that are not in the store
    replace:   publish a new generation of the result
    elsewhere: name of the worker of another machine that runs it; empty on this one
    recipes:   names of those that it is run for
    apart:     it runs on a store of that worker's own: all goes through the shared cache
    """

    step: str
    stage: Stage
    key: str
    preimage: Mapping[str, Any]
    inputs: Mapping[str, str]
    root: Path
    durability: Durability
    workdir: Path
    log: Path
    progress: Path
    views: Path | None = None
    threads: int | None = None
    limit_s: float | None = None
    replace: bool = False
    capture: bool = True
    remote: remotes.Link | None = None
    elsewhere: str = ""
    recipes: tuple[str, ...] = ()
    apart: bool = False


@dataclass(frozen=True)
class Done:
    """What comes back: a record, an error's data, or the name of the input that was damaged.

    The error of a worker that died is told by the pool: a `WorkerError`. `log` is the end of a log
    that lies on another machine.
    """

    record: Record | None = None
    error: dict[str, Any] | None = None
    damaged: str = ""
    seconds: float = 0.0
    rss_mib: float = 0.0
    log: str = ""


def initialise(parent: int) -> None:
    """Makes this process die with its parent, and leaves Ctrl-C and the terminal to the parent."""
    with suppress(PermissionError):  # already leads a session
        os.setsid()
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it died before the line above
        os._exit(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def tell(job: Job, note: str) -> None:
    """Says something of a job before its stage does, where the run looks for its progress."""
    with job.progress.open("a", encoding="utf-8") as out:
        out.write(json.dumps({"done": 0, "total": 0, "note": note}) + "\n")


def run_stage(job: Job) -> Done:
    """Runs one stage and stores what it gives. Raises nothing: errors come back as data."""
    try:
        return _run_watched(job)
    except OSError as error:  # of its log or its progress, on a disk that takes no more
        return Done(error=_data(_told(error, job)))


def _run_watched(job: Job) -> Done:
    with job.progress.open("a", encoding="utf-8") as out:
        out.write(json.dumps({"pid": os.getpid()}) + "\n")
    _reset_peak()
    started = time.perf_counter()
    with _captured(job):
        try:
            if job.elsewhere:
                _check_here(job)
            remote = None if job.remote is None else remotes.linked(job.remote)
            kept = Store(job.root, job.durability, remote=remote)
            record = _run(job, kept, started)
            if job.apart:
                assert remote is not None
                remote.hand_over(record, kept)
        except _DamagedInput as damaged:
            return Done(damaged=damaged.name)
        except KeyboardInterrupt:
            raise
        except (
            BaseException
        ) as error:  # the boundary; SystemExit too, which a stage's libraries may raise
            print(traceback.format_exc(), file=sys.stderr)
            _blot(job.log)
            facts = _data(_told(error, job))
            return Done(error=facts, seconds=time.perf_counter() - started, rss_mib=peak_mib())
        return Done(record=record, seconds=record.seconds, rss_mib=record.rss_mib)


def _data(error: TapmlError) -> dict[str, Any]:
    data = json.loads(json.dumps(errors.to_data(error), default=str))
    data["facts"] |= {name: mask(data["facts"][name]) for name in ("message", "hint")}
    return data


def _blot(log: Path) -> None:
    """Blots out what looks like a secret; whoever has the log open goes on at its end."""
    _flush()
    if log.exists():
        text = log.read_text(encoding="utf-8", errors="surrogateescape")
        if (masked := mask(text)) != text:
            log.write_text(masked, encoding="utf-8", errors="surrogateescape")


class _DamagedInput(Exception):
    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.name = name


def _run(job: Job, kept: Store, started: float) -> Record:
    paths: dict[str, Path] = {}
    for name, digest in job.inputs.items():
        try:
            paths[name] = kept.materialise(digest, job.workdir / "inputs" / name)
        except DamagedError as error:
            if job.apart:
                raise EnvironmentalError(
                    message=f"the shared cache does not give the input {name!r} to {job.elsewhere}",
                    hint="make the shared cache readable there, and writable for both",
                ) from error
            raise _DamagedInput(name) from error
    work = job.workdir / "work"
    work.mkdir(parents=True)
    if job.views is not None:
        job.views.mkdir(parents=True, exist_ok=True)
    kept.database.mkdir(parents=True, exist_ok=True)
    with _logger(job) as logger:
        context = Context(
            workdir=work,
            logger=logger,
            database=kept.database,
            views=job.views,
            progress_file=job.progress,
            memo_store=_memo(kept, job.workdir / "memo"),
        )
        outputs = job.stage.run(Inputs(paths), context)
    seconds = time.perf_counter() - started
    for name, digest in job.inputs.items():
        if not kept.intact(digest):
            raise StageError(
                message=f"the stage wrote to its input {name!r}",
                hint="inputs are read-only: copy it first",
            )
    artifacts = _checked(job.stage, outputs, work)
    _blot(job.log)
    record = Record(
        stage=job.stage.name,
        key=job.key,
        preimage=dict(job.preimage),
        outputs={name: kept.put(path) for name, path in artifacts.items()},
        report=events.report_to_data(outputs.report),
        seconds=round(seconds, 4),
        rss_mib=peak_mib(),
        made_at=store.now(),
        made_on={**host.fingerprint(), "machine": host.machine()},
        recipes=list(job.recipes),
        log=kept.put(job.log) if job.log.exists() and job.log.stat().st_size else "",
        views=kept.put(job.views) if job.views is not None else "",
        sources=sources(job.stage),
    )
    return kept.publish(record, force=job.replace)


def _check_here(job: Job) -> None:
    """Raises: EnvironmentalError when this machine lacks something, or would make something else
    than what was planned on the other: a record must not say so.
    """
    job.stage.check()
    ours = keys.preimage(job.stage, job.inputs)
    if differing := [str(change) for change in differences(job.preimage, ours)]:
        raise EnvironmentalError(
            message=f"worker {job.elsewhere} differs from where the run began: "
            + "; ".join(differing),
            hint="install the same there; a stage that times something needs an equal machine",
        )


def _memo(kept: Store, folder: Path) -> Callable[..., Path]:
    def memo(
        name: str, params: Mapping[str, Any], inputs: Mapping[str, str], fn: Callable[[Path], None]
    ) -> Path:
        return kept.materialise(kept.memo(name, params, inputs, fn), folder / uuid4().hex)

    return memo


def _checked(stage: Stage, outputs: Outputs, work: Path) -> dict[str, Path]:
    """The artifacts, exactly those that the stage declares, below its workdir."""
    given, declared = set(outputs.artifacts), set(stage.outputs)
    if given != declared:
        lacking, extra = ", ".join(sorted(declared - given)), ", ".join(sorted(given - declared))
        told = "; ".join(
            [f"declared but not given: {lacking}"] * bool(lacking)
            + [f"given but not declared: {extra}"] * bool(extra)
        )
        raise StageError(message=f"the stage's outputs are not what it declares ({told})")
    for name, path in outputs.artifacts.items():
        if not path.exists() or not path.resolve().is_relative_to(work.resolve()):
            raise StageError(message=f"the stage's output {name!r} is not in its workdir: {path}")
    return dict(outputs.artifacts)


def _told(error: BaseException, job: Job) -> TapmlError:
    """The error for the user: ours as it is, the disk's as EnvironmentalError, others in words."""
    if isinstance(error, TapmlError):
        return error
    if isinstance(error, OSError) and (told := disk.disk_error(error, job.workdir)) is not None:
        return told
    text = traceback.format_exception_only(error)[-1].strip()
    if isinstance(error, MemoryError):
        text = f"out of memory (peak {peak_mib():.0f} MiB)"
    frames = traceback.extract_tb(error.__traceback__)
    libraries = tuple({sysconfig.get_path(name) for name in ("stdlib", "purelib", "platlib")})
    here = os.path.dirname(__file__)
    own = [
        frame for frame in frames if not frame.filename.startswith((*libraries, here, "<"))
    ] or frames
    where = f"at {own[-1].filename}:{own[-1].lineno} in {own[-1].name}" if own else ""
    return StageError(message=text, hint=where)


@contextmanager
def _captured(job: Job) -> Generator[None]:
    """What this process and its children print goes to the log, from C++ too."""
    if not job.capture:
        yield
        return
    _flush()
    saved = [os.dup(1), os.dup(2)]
    log = os.open(job.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.close(log)
    try:
        yield
    finally:
        try:
            _flush()
        finally:
            for descriptor, before in zip((1, 2), saved, strict=True):
                os.dup2(before, descriptor)
                os.close(before)


@contextmanager
def _logger(job: Job) -> Generator[logging.Logger]:
    """The stage's own logger, into its log."""
    handler = logging.FileHandler(job.log, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    logger = logging.getLogger(f"tapml.stages.{job.step}")
    logger.propagate = False
    logger.setLevel(logging.INFO)
    logger.addHandler(handler)
    try:
        yield logger
    finally:
        logger.removeHandler(handler)
        handler.close()


def _flush() -> None:
    """Empties the buffers of Python and of C."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(ValueError):  # closed by somebody
            stream.flush()
    ctypes.CDLL(None).fflush(None)


def _reset_peak() -> None:
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def peak_mib(pid: int | str = "self") -> float:
    """Peak resident memory of a process since it was reset, to a tenth, so that it reads alike
    wherever it is told; 0 when it cannot be read.
    """
    try:
        text = Path(f"/proc/{pid}/status").read_text(encoding="ascii", errors="replace")
    except OSError:
        return 0.0
    lines = (line for line in text.splitlines() if line.startswith("VmHWM"))
    return next((round(int(line.split()[1]) / 1024, 1) for line in lines), 0.0)
