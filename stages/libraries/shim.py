"""The C that stands between a kernel and a library, compiled and put beside what it links to."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

from tapml.errors import StageError

from ..toolchain import compiler
from .library import Library


def build_shim(name: str, library: Library, folder: Path) -> list[str]:
    """Compiles a library's shim into `folder`, with the shared libraries that it needs.

    Out:    names of the files, the shim first; all find each other wherever the folder lies.
    Raises: StageError with the compiler's words.
    """
    folder.mkdir(exist_ok=True)
    parts = library.found()
    for file in parts.files:
        shutil.copyfile(file, folder / file.name)
    shim = folder / f"lib{name}_shim.so"
    command = [
        *(compiler() or "cc", "-x", "c", "-O2", "-shared", "-fPIC", "-fvisibility=hidden"),
        *(f"-I{header}" for header in parts.include),
        *(str(library.source), "-o", str(shim), "-x", "none"),
        *(f"-L{folder}", f"-Wl,-soname,{shim.name}", "-Wl,-rpath,$ORIGIN"),
        *(f"-l:{file.name}" for file in parts.files),
    ]
    answer = subprocess.run(command, capture_output=True, text=True, check=False)
    if answer.returncode:
        raise StageError(
            message=f"library {name}: its shim {library.source} does not compile",
            hint=answer.stderr.strip()[-2000:],
        )
    return [shim.name, *(file.name for file in parts.files)]
