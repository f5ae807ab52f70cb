"""`requires`: packages and devices that a recipe needs on the machine that runs it."""

from __future__ import annotations

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
        raise ValueError(f"no requirement such as `onnx>=1.19`: {error}") from error
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


def missing(requires: Requires) -> list[EnvironmentalError]:
    """What this machine lacks, each with what mends it."""
    found = [error for text in requires.packages if (error := _package(text)) is not None]
    if "cuda" in requires.devices and not _has_cuda():
        hint = "run on a machine where `nvidia-smi -L` lists a GPU"
        found.append(EnvironmentalError(message="the recipe requires a CUDA device", hint=hint))
    return found


def check(requires: Requires) -> None:
    """Raises: EnvironmentalError that names everything this machine lacks, in one."""
    errors = missing(requires)
    if len(errors) == 1:
        raise errors[0]
    if errors:
        told = "\n".join(f"  {error.message}: {error.hint}" for error in errors)
        raise EnvironmentalError(message=f"{len(errors)} requirements are missing\n{told}")


def _package(text: str) -> EnvironmentalError | None:
    from packaging.requirements import Requirement

    wanted = Requirement(text)
    if wanted.marker is not None and not wanted.marker.evaluate():
        return None
    hint = f"pip install '{wanted.name}{wanted.specifier}'"
    try:
        version = metadata.version(wanted.name)
    except metadata.PackageNotFoundError:
        message = f"the recipe requires the package {wanted.name}, which is not installed"
        return EnvironmentalError(message=message, hint=hint)
    if wanted.specifier.contains(version, prereleases=True):
        return None
    message = f"the recipe requires {wanted.name}{wanted.specifier}; {version} is installed"
    return EnvironmentalError(message=message, hint=hint)


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
