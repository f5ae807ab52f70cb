"""Hostile files from seeds through the import stage, which loads what the checks let pass."""

from __future__ import annotations

import logging
import resource
import tempfile
import time
from pathlib import Path

from fuzz import models, onnx_files

from tapml.errors import TapmlError
from tapml.stage import Context, File, Inputs
from tapml_stages.importer.stage import DimBounds, Import, InputSpec

FORMATS = ("onnx", "pt2")
WARM = {"onnx": 4711 * 6 + 4, "pt2": 1}  # seeds of files that are imported


def write(kind: str, seed: int, folder: Path) -> Path:
    """The file of a seed, with what it points at."""
    if kind == "onnx":
        return onnx_files.write(seed, folder)
    ((name, data),) = models.case(kind, seed).items()
    (folder / name).write_bytes(data)
    return folder / name


def importer(kind: str, file: File) -> Import:
    """The stage for the sound file of a kind."""
    if kind == "onnx":
        return Import(source="onnx", file=file)
    shape = InputSpec(shape=("batch", 3, 16, 16), dtype="float32")
    return Import(
        source="torch", file=file, signature={"x": shape}, dims={"batch": DimBounds(min=1, max=64)}
    )


def examine(which: tuple[str, int]) -> tuple[str, float, float]:
    """What became of a seed: refused, imported, or an exception; seconds, and MiB at the peak."""
    kind, seed = which
    Path("/proc/self/clear_refs").write_text("5")
    before = _mib("VmRSS")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        path = write(kind, seed, folder)
        (work := folder / "work").mkdir()
        stage = importer(kind, File(path=str(path), sha256="0"))
        context = Context(workdir=work, logger=logging.getLogger("fuzz"), database=work)
        start = time.process_time()
        try:
            stage.run(Inputs({}), context)
            result = "imported"
        except TapmlError as error:
            result = "refused" if str(error) else "refused without a word"
        except Exception as error:
            result = f"{type(error).__name__}: {error}"[:300]
        return result, time.process_time() - start, _mib("VmHWM") - before


def _mib(field: str) -> float:
    status = Path("/proc/self/status").read_text()
    return int(next(x for x in status.splitlines() if x.startswith(field)).split()[1]) / 1024


def start(kind: str) -> None:
    """Warms this process up: what is imported is imported."""
    resource.setrlimit(resource.RLIMIT_AS, (8 << 30, 8 << 30))
    examine((kind, WARM[kind]))
