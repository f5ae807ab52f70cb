"""Half of the kernels, built by a process beside: `python -m tapml_stages.codegen.objects`.

LLVM and the passes before it use one core. Objects of both processes are linked into one library,
in which the virtual machine finds kernels by their names.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tapml.errors import StageError, WorkerError

from .. import codec
from ..compat import tvm

LEAST = 16  # kernels: a process takes seconds to start

ELSEWHERE: ContextVar[frozenset[str]] = ContextVar("kernels built elsewhere", default=frozenset())


@dataclass(frozen=True)
class Beside:
    """Kernels that another process builds, as one object file."""

    names: frozenset[str]
    process: subprocess.Popen[str] | None = None
    file: Path = Path()

    def objects(self) -> list[str]:
        """The object file, once it is there. Raises: StageError in the words of the process."""
        if self.process is None:
            return []
        answer, words = self.process.communicate()
        if self.process.returncode:
            message = f"the process that builds kernels ended with {self.process.returncode}"
            raise WorkerError(message=f"{message}\n{words.strip()[-500:]}")
        if error := json.loads(answer)["error"]:
            raise StageError(message=error)
        return [str(self.file)]


@contextmanager
def beside(mod: Any, target: Any) -> Iterator[Beside]:
    """Every second kernel of a lowered module in the making elsewhere; none when they are few.

    Within, `ELSEWHERE` names them, so that they are not built here as well.
    """
    kernels = {
        gv.name_hint: func
        for gv, func in mod.functions_items()
        if isinstance(func, tvm.tirx.PrimFunc)
    }
    if len(kernels) < LEAST:
        yield Beside(frozenset())
        return
    by_size = sorted(kernels, key=lambda name: (-len(tvm.ir.save_json(kernels[name])), name))
    names = frozenset(by_size[1::2])
    part = tvm.IRModule({n: kernels[n].with_attr("global_symbol", n) for n in sorted(names)})
    with tempfile.TemporaryDirectory(prefix="tapml-objects-") as folder:
        module, file = Path(folder) / "kernels.json", Path(folder) / "kernels.o"
        codec.save_module(module, part)
        arguments = [str(module), tvm.ir.save_json(target), str(file)]
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "tapml_stages.codegen.objects", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        token = ELSEWHERE.set(names)
        try:
            yield Beside(names, process, file)
        finally:
            ELSEWHERE.reset(token)
            process.kill()
            process.wait()
            for stream in (process.stdout, process.stderr):
                if stream is not None:
                    stream.close()


def main(module: str, target: str, file: str) -> None:
    """Builds the kernels of a module into an object file, and says how that went."""
    import ctypes
    import signal

    from .build import PIPELINE

    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
    error = ""
    try:
        built = tvm.tirx.build(
            codec.load_module(Path(module)), target=tvm.ir.load_json(target), pipeline=PIPELINE
        )
        built.write_to_file(file, "o")
    except StageError as failure:
        error = failure.message
    print(json.dumps({"error": error}), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
