"""`requires`: packages and devices that a recipe needs on the machine that runs it."""

from __future__ import annotations

import shlex
import shutil
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from .errors import EnvironmentalError
from .stage import Frozen

_PROBE_S = 10.0


def _requirement(text: str) -> str:
    from packaging.requirements import InvalidRequirement, Requirement

    try:
        Requirement(text)
    except InvalidRequirement as error:
        reason = str(error).partition("\n")[0]
        raise ValueError(
            f"{text!r:.60} is no requirement such as `onnx>=1.19`: {reason}"
        ) from error
    return text


class Requires(Frozen):
    """What must be there before anything runs; missing is exit 3 with the command that mends it."""

    packages: tuple[Annotated[str, AfterValidator(_requirement)], ...] = Field(
        default=(),
        description="Python packages, as pip names them with versions",
        examples=[["scikit-image>=0.25"]],
    )
    devices: tuple[Literal["cpu", "cuda"], ...] = Field(
        default=(), description="Kinds of device that this machine must have", examples=[["cuda"]]
    )


def check(requires: Requires) -> None:
    """Raises: EnvironmentalError that names everything this machine lacks, with one command that
    installs all that pip can.
    """
    lacking, wanted = list[str](), list[str]()
    for text in requires.packages:
        if found := _package(text):
            lacking.append(found)
            wanted.append(text.partition(";")[0].strip())
    hints = [f"pip install {shlex.join(wanted)}"] if wanted else []
    if "cuda" in requires.devices and not _has_cuda():
        lacking.append("a CUDA device")
        hints.append("run on a machine where `nvidia-smi -L` lists a GPU")
    if lacking:
        message = f"this machine lacks what the recipe requires: {'; '.join(lacking)}"
        raise EnvironmentalError(message=message, hint="\n  ".join(hints))


def _package(text: str) -> str:
    """What this machine lacks of a requirement; empty when it has it, or needs it not."""
    from packaging.requirements import Requirement

    wanted = Requirement(text)
    if wanted.marker is not None and not wanted.marker.evaluate():
        return ""
    try:
        version = metadata.version(wanted.name)
    except metadata.PackageNotFoundError:
        return f"{wanted.name}{wanted.specifier}"
    if wanted.specifier.contains(version, prereleases=True):
        return ""
    return f"{wanted.name}{wanted.specifier} ({version} is installed)"


def _has_cuda() -> bool:
    """Whether the driver lists a GPU; without the tool, whether the kernel has a device."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return Path("/dev/nvidia0").exists()
    try:
        done = subprocess.run(
            [tool, "-L"], capture_output=True, text=True, timeout=_PROBE_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.returncode == 0 and "GPU" in done.stdout
