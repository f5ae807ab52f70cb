"""A process that runs one library and answers commands, so that two runtimes never share a thread
pool.

`Runner` starts it: `python -m tapml_stages.platforms.runner bundle|onnx PATH THREADS`. While one
runner
is timed the others are stopped by signal, spinning threads included.
"""

from __future__ import annotations

import functools
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

import numpy as np

from tapml.errors import StageError, WorkerError

Arrays = Mapping[str, np.ndarray]
Kind = Literal["bundle", "onnx"]


class Runner:
    """A library in a process of its own: `outputs` runs it, `time` times it, `paused` stops its
    threads.

    Raises: StageError with the process's own words when it fails; WorkerError when it dies.
    """

    def __init__(self, kind: Kind, path: Path, threads: int) -> None:
        self.what = f"{kind} {path.name}"
        self._folder = tempfile.TemporaryDirectory(prefix="tapml-runner-")
        self._stderr = (Path(self._folder.name) / "stderr").open("w+")
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tapml_stages.platforms.runner", kind, str(path), str(threads)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            text=True,
            env={**os.environ, "TVM_NUM_THREADS": str(threads), "OMP_NUM_THREADS": str(threads)},
        )
        self._receive()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout, self._stderr):
            if stream is not None:
                stream.close()
        self._folder.cleanup()

    def outputs(self, arrays: Arrays, *, goes_on: bool = False) -> dict[str, np.ndarray]:
        """Outputs by name for inputs by name. A call that `goes_on` finds the states as the one
        before has left them; else they are poisoned.
        """
        path = self._inputs(arrays)
        files = {"inputs": path, "outputs": f"{path}.out.npz"}
        answer = self._ask({"do": "outputs", "goes_on": goes_on, **files})
        with np.load(answer["outputs"], allow_pickle=False) as data:
            return {name: data[name] for name in data.files}

    @property
    def pid(self) -> int:
        return self._process.pid

    def prepare(self, arrays: Arrays, warmup: int = 2, before: Arrays | None = None) -> None:
        """Sets the inputs that `time` uses, and warms up by so many calls. They go on from a call
        on `before`, if it is given.
        """
        earlier = None if before is None else self._inputs(before)
        inputs = self._inputs(arrays)
        self._ask({"do": "prepare", "inputs": inputs, "before": earlier, "warmup": warmup})

    def time(self, calls: int) -> list[float]:
        """Milliseconds of each of `calls` calls on the prepared inputs."""
        return self._ask({"do": "time", "calls": calls})["ms"]

    def pause(self) -> None:
        """Stops every thread of the process until `resume`."""
        self._process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        self._process.send_signal(signal.SIGCONT)

    def _inputs(self, arrays: Arrays) -> str:
        path = Path(self._folder.name) / f"{time.monotonic_ns()}.npz"
        np.savez(path, allow_pickle=False, **dict(arrays))
        return str(path)

    def _ask(self, command: Mapping[str, Any]) -> dict[str, Any]:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(command) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            self._died()
        return self._receive()

    def _receive(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            self._died()
        answer = json.loads(line)
        if "error" in answer:
            raise StageError(message=f"{self.what}: {answer['error']}")
        return answer

    def _died(self) -> None:
        code = self._process.wait()
        self._stderr.seek(0)
        tail = "".join(self._stderr.readlines()[-5:]).strip()
        name = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        raise WorkerError(message=f"{self.what}: its process died of {name}\n{tail}", signal=name)


class _BundleLibrary:
    """A bundle, through its own `run.py`."""

    def __init__(self, path: str, threads: int) -> None:
        import importlib.util

        spec = importlib.util.spec_from_file_location("bundle_run", Path(path) / "run.py")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        self._bundle = module.load(path, threads=threads)
        self._sizes = functools.partial(module.check_inputs, self._bundle.manifest)
        self._session: Any = None

    def outputs(self, arrays: Arrays, goes_on: bool) -> dict[str, np.ndarray]:
        if not self._bundle.manifest["states"]:
            return self._bundle(**arrays)
        if not goes_on:
            self._session = self._bundle.session(fill=np.nan, **self._sizes(arrays))
        return self._session(**arrays)

    def prepare(self, arrays: Arrays, before: Arrays | None) -> Callable[[], Any]:
        if before is None:
            return self._bundle.prepare(**arrays)
        session = self._bundle.session(**self._sizes(before))
        session(**before)
        return session.prepare(**arrays)


class _OnnxLibrary:
    """An ONNX model in onnxruntime: all optimisations, inputs and outputs bound once."""

    def __init__(self, path: str, threads: int) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        self._session = onnxruntime.InferenceSession(path, options, ["CPUExecutionProvider"])

    def outputs(self, arrays: Arrays, goes_on: bool) -> dict[str, np.ndarray]:
        names = [output.name for output in self._session.get_outputs()]
        results = self._session.run(names, dict(arrays))
        return {name: np.asarray(result) for name, result in zip(names, results, strict=True)}

    def prepare(self, arrays: Arrays, before: Arrays | None) -> Callable[[], Any]:
        if before is not None:
            raise ValueError("an ONNX model keeps no states")
        binding = self._session.io_binding()
        for name, array in arrays.items():
            binding.bind_cpu_input(name, np.ascontiguousarray(array))
        for output in self._session.get_outputs():
            binding.bind_output(output.name)
        return lambda: self._session.run_with_iobinding(binding)


def _serve(library: _BundleLibrary | _OnnxLibrary) -> None:
    call: Callable[[], Any] | None = None
    for line in sys.stdin:
        command = json.loads(line)
        answer: dict[str, Any] = {}
        try:
            if command["do"] == "outputs":
                result = library.outputs(_load(command["inputs"]), command["goes_on"])
                np.savez(command["outputs"], allow_pickle=False, **result)
                answer["outputs"] = command["outputs"]
            elif command["do"] == "prepare":
                before = _load(command["before"]) if command["before"] else None
                call = library.prepare(_load(command["inputs"]), before)
                for _ in range(command["warmup"]):
                    call()
            else:
                assert call is not None
                answer["ms"] = [_timed(call) for _ in range(command["calls"])]
        except Exception as error:  # the process boundary: the parent raises it again
            answer = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer), flush=True)


def _load(path: str) -> dict[str, np.ndarray]:
    with np.load(path, allow_pickle=False) as data:
        return {name: data[name] for name in data.files}


def _timed(call: Callable[[], Any]) -> float:
    start = time.perf_counter()
    call()
    return (time.perf_counter() - start) * 1e3


def main(kind: str, path: str, threads: str) -> None:
    """Serves one library until stdin ends or the parent dies."""
    import ctypes

    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
    try:
        library = {"bundle": _BundleLibrary, "onnx": _OnnxLibrary}[kind](path, int(threads))
    except Exception as error:  # the process boundary
        print(json.dumps({"error": f"{type(error).__name__}: {error}"}), flush=True)
        return
    print(json.dumps({}), flush=True)
    _serve(library)


if __name__ == "__main__":
    main(*sys.argv[1:])
