"""The worker's side of `measure`: builds and times kernels it is sent, and may die of any of them.

Started as `python -m tapml_stages.measure_worker FD PARENT`, FD being an end of a pipe that carries
JSON. The first message is the target; then each question `{do: build | time, groups}` is answered
by `{at: job}` before a job is touched, `{result}` for each job that is done with, and `{end}`.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import cache
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

from tapml.stage import Target

from . import codec
from .compat import load_json, tvm
from .measure import Arg, Job, Timing, interval
from .target import tvm_target
from .work_stealing import PIPELINE

BURST_S = 0.004  # of calls in a row of one candidate
MIN_BURSTS = 5
KEPT_BUILDS = 64
COLD_S = 0.2  # a first run may take this longer than the ones that follow
PATIENCE = 10  # times the time given, spent on slow kernels to get that many bursts
PR_SET_PDEATHSIG = 1


def _serve(fd: int, parent: int) -> None:
    """Answers until the pipe closes."""
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        return
    connection = Connection(fd)

    def say(**message: Any) -> None:
        connection.send_bytes(json.dumps(message).encode())

    target = tvm_target(Target.model_validate_json(connection.recv_bytes()))
    built: dict[str, Any] = {}
    builds: dict[tuple[str, str], Any] = {}
    while True:
        try:
            message = json.loads(connection.recv_bytes())
        except EOFError:
            return
        groups = [[_job(row) for row in group] for group in message["groups"]]
        if message["do"] == "build":
            built = _build([job for group in groups for job in group], target, builds, say)
        else:
            for group in groups:
                known = [job for job in group if job.id in built]
                _time(known, built, message["seconds"], message["bar"], say)
        say(end=True)


def _job(row: dict[str, Any]) -> Job:
    args = tuple(
        arg if isinstance(arg, int) else Arg(**{**arg, "shape": tuple(arg["shape"])})
        for arg in row["args"]
    )
    return Job(**{**row, "args": args})


def _build(
    jobs: list[Job], target: Any, builds: dict[tuple[str, str], Any], say: Callable[..., None]
) -> dict[str, Any]:
    """Runnable modules by job id; a job that does not build is answered here.

    builds: the last ones, by what was built, which this adds to: an incumbent comes again
    """
    built = {}
    for job in jobs:
        say(at=job.id)
        try:
            if job.shim:
                _offer(job.shim)
            name = job.kernel, job.module
            if name not in builds:
                func = load_json(job.module)[job.kernel].with_attr("global_symbol", job.kernel)
                mod = tvm.IRModule({job.kernel: func})
                builds[name] = tvm.compile(mod, target, tir_pipeline=PIPELINE).jit()
            built[job.id] = builds[name] = builds.pop(name)
            while len(builds) > KEPT_BUILDS:
                del builds[next(iter(builds))]
        except Exception as error:  # the process boundary: what the compiler throws is the result
            say(result=asdict(Timing(job.id, error=_one_line("does not build", error))))
    return built


@cache
def _offer(library: str) -> None:
    """Lets kernels call what a shared library exports; it stays loaded."""
    ctypes.CDLL(library, mode=ctypes.RTLD_GLOBAL)


@dataclass
class _Candidate:
    """A job that ran once, ready to be timed."""

    job: Job
    module: Any
    args: list[Any]
    deviation: float | None
    calls: int = 1  # in a burst
    bursts_ms: list[float] = field(default_factory=list)

    def burst(self) -> float:
        """Mean seconds of a call, over the calls of a burst, in a row; on one thread, only those
        that it had the core.
        """
        began, ran = time.perf_counter(), time.process_time()
        if self.calls == 1:
            self.module[self.job.kernel](*self.args)
            mean = time.perf_counter() - began
        else:
            evaluate = self.module.time_evaluator
            call = evaluate(self.job.kernel, tvm.cpu(), number=self.calls, repeat=1)
            mean = call(*self.args).mean
        if os.environ["TVM_NUM_THREADS"] != "1":
            return mean
        # neither is less than a call takes: a pause counts in the one, what is around the calls in
        # the other
        return min(mean, (time.process_time() - ran) / self.calls)

    def lowest_ratio(self, other: _Candidate) -> float:
        """The least share of the other's time that its own may be."""
        pairs = zip(self.bursts_ms, other.bursts_ms, strict=False)
        return interval([a / b for a, b in pairs])[0]

    def result(self) -> dict[str, Any]:
        return asdict(Timing(self.job.id, tuple(self.bursts_ms), "", self.deviation))


def _time(
    jobs: list[Job],
    built: dict[str, Any],
    seconds: float,
    bar: float | None,
    say: Callable[..., None],
) -> None:
    """Runs each job once on poisoned outputs, then all in alternating bursts; with a `bar`,
    no longer than until it is clear that they take more than this share of the first's time.
    """
    candidates = list(_warmed_up(jobs, built, seconds * PATIENCE, say))
    began = time.perf_counter()
    rounds, spent = 0, 0.0  # spent: of the time that these candidates are given
    running = candidates
    while running and (spent < 1 or rounds < MIN_BURSTS) and spent < PATIENCE:
        rounds += 1
        for candidate in running:
            say(at=candidate.job.id)
            candidate.bursts_ms.append(candidate.burst() * 1e3)
        spent = (time.perf_counter() - began) / (seconds * len(candidates))
        if bar is not None and rounds >= MIN_BURSTS:
            first, *others = running
            left = [one for one in others if one.lowest_ratio(first) <= bar]
            running = [first, *left] if left else []
    for candidate in candidates:
        say(result=candidate.result())


def _warmed_up(
    jobs: list[Job], built: dict[str, Any], limit_s: float, say: Callable[..., None]
) -> Iterator[_Candidate]:
    """Jobs whose outputs are right, their bursts sized; the others are answered here.

    So is a job that is alone and takes more than `limit_s`: the faster of two runs is its time.
    """
    outputs: dict[str, list[np.ndarray]] = {}
    for job in jobs:
        say(at=job.id)
        try:
            args = [_tensor(job, position) for position in range(len(job.args))]
            began = time.perf_counter()
            built[job.id][job.kernel](*args)
            once = time.perf_counter() - began
        except Exception as error:  # the process boundary: a refused argument is the job's result
            say(result=asdict(Timing(job.id, error=_one_line("does not run", error))))
            continue
        outputs[job.id] = [_array(tensor) for tensor in args[len(args) - job.outputs :]]
        if not _is_finite(outputs[job.id]) and not _writes_all(job, built[job.id], outputs[job.id]):
            say(result=asdict(Timing(job.id, error="does not write all of its output")))
            continue
        error, deviation = _check(job, outputs)
        if error:
            say(result=asdict(Timing(job.id, error=error, deviation=deviation)))
            continue
        candidate = _Candidate(job, built[job.id], args, deviation)
        if once < COLD_S:
            once = min(once, candidate.burst(), candidate.burst())
        elif once > limit_s and len(jobs) == 1:
            once = min(once, candidate.burst())  # one run may have been disturbed
            if once > limit_s:
                say(result=asdict(Timing(job.id, (once * 1e3,), "", deviation)))
                continue
        candidate.calls = max(1, min(10_000, int(BURST_S / max(once, 1e-7))))
        yield candidate


def _is_finite(arrays: Sequence[np.ndarray]) -> bool:
    return all(np.isfinite(array).all() for array in arrays)


def _writes_all(job: Job, module: Any, outputs: Sequence[np.ndarray]) -> bool:
    """Whether a kernel whose outputs hold NaN computes it (a logarithm of random values may), and
    does not just leave the poison there: another poison gives the same outputs.
    """
    args = [_tensor(job, position, poison=1.0) for position in range(len(job.args))]
    module[job.kernel](*args)
    again = [_array(tensor) for tensor in args[len(args) - job.outputs :]]
    return all(np.array_equal(a, b, equal_nan=True) for a, b in zip(outputs, again, strict=True))


def _tensor(job: Job, position: int, poison: float = np.nan) -> Any:
    """The argument at a position: a scalar, a poisoned output, a stored array or random values."""
    match job.args[position]:
        case int(size):
            return size
        case Arg() as arg if position >= len(job.args) - job.outputs:
            values = np.full(arg.shape, poison if _is_float(arg.dtype) else 0).astype(
                _numpy_dtype(arg.dtype)
            )
        case Arg(fill=int(value)) as arg:
            values = np.full(arg.shape, value, _numpy_dtype(arg.dtype))
        case Arg(file="") as arg:
            values = random_values(arg.shape, arg.dtype, below=_smallest_extent(job), seed=position)
        case Arg() as arg:
            values = _stored(arg.file)[arg.key]
            if values.shape != arg.shape or values.dtype != _numpy_dtype(arg.dtype):
                raise ValueError(
                    f"{arg.key}: {values.dtype}{values.shape} is not {arg.dtype}{arg.shape}"
                )
    return tvm.runtime.tensor(values)


def random_values(shape: tuple[int, ...], dtype: str, *, below: int, seed: int) -> np.ndarray:
    """Values that no kernel chokes on.

    Floats in [0.1, 1]: roots and logarithms stay finite, nothing is denormal. Integers in
    [0, below): in range whatever axis they index, when `below` is the smallest extent.
    """
    rng = np.random.default_rng(seed)
    if _is_float(dtype):
        return rng.uniform(0.1, 1.0, shape).astype(np.float32).astype(_numpy_dtype(dtype))
    limit = 2 if dtype == "bool" else min(below, 128)
    return rng.integers(0, limit, shape).astype(_numpy_dtype(dtype))


def _smallest_extent(job: Job) -> int:
    """The smallest extent that an integer argument of a job may index."""
    extents = [
        extent
        for arg in job.args
        if isinstance(arg, Arg) and _is_float(arg.dtype)
        for extent in arg.shape
    ]
    return max(1, min(extents, default=1))


def _check(job: Job, outputs: dict[str, list[np.ndarray]]) -> tuple[str, float | None]:
    """What is wrong with the outputs ("": nothing), and how far off they are, where known."""
    got = outputs[job.id]
    expected = [
        _stored(arg.file)[arg.key]
        for arg in job.args[len(job.args) - job.outputs :]
        if isinstance(arg, Arg) and arg.file
    ]
    expected = expected or outputs.get(job.like, [])
    if not expected:
        return "", None
    if not all(map(_agree_where_not_finite, got, expected)):
        return "gives NaN or infinite values where others do not", None
    deviation = max(map(_deviation, got, expected))
    wrong = (
        f"is wrong: off by {deviation:.1e} of the largest value"
        if deviation > job.tolerance
        else ""
    )
    return wrong, deviation


def _agree_where_not_finite(a: np.ndarray, b: np.ndarray) -> bool:
    return np.array_equal(*(np.where(np.isfinite(one), 0, one) for one in (a, b)), equal_nan=True)


def _deviation(got: np.ndarray, expected: np.ndarray) -> float:
    """Largest difference of the finite values, relative to their largest magnitude."""
    finite = np.isfinite(expected)
    a, b = got[finite], expected[finite].astype(got.dtype)
    return float(np.max(np.abs(a - b), initial=0.0)) / max(
        float(np.max(np.abs(b), initial=0.0)), 1e-30
    )


def _array(tensor: Any) -> np.ndarray:
    """A tensor's values; narrow floats and integers widened, so that differences are exact."""
    values = tensor.numpy()
    return values if values.dtype in (np.float32, np.float64) else values.astype(np.float64)


@cache
def _stored(file: str) -> dict[str, np.ndarray]:
    return codec.read_npz(Path(file))


def _is_float(dtype: str) -> bool:
    return "float" in dtype


def _numpy_dtype(dtype: str) -> np.dtype[Any]:
    import ml_dtypes  # noqa: F401  # registers bfloat16 and the 8-bit floats with NumPy

    return np.dtype(dtype)


def _one_line(what: str, error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{what}: {type(error).__name__}: {lines[-1][:300] if lines else ''}"


if __name__ == "__main__":
    _serve(int(sys.argv[1]), int(sys.argv[2]))
