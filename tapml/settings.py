"""Settings of the engine: where results go, on what stages run, what tracks them. In no key.

Precedence: a flag of the command line, the environment, `engine:` of `workflows.yaml`, the default.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Annotated, Literal, cast, get_args

from pydantic import Field, ValidationError

from .errors import RecipeError, nearest
from .stage import Frozen

Track = Literal["off", "auto", "required"]


class Local(Frozen):
    """Worker processes on this machine."""

    kind: Literal["local"] = "local"


class Joblib(Frozen):
    """A backend that is registered with joblib, such as `loky`, `threading`, `ray` or `spark`."""

    kind: Literal["joblib"] = "joblib"
    backend: str = Field(default="loky", description="Name of the backend")
    register_with: str | None = Field(
        default=None,
        pattern=r"^[\w.]+:\w+$",
        description="`module:function` that registers it, such as ray.util.joblib:register_ray",
    )


class Security(Frozen):
    """TLS files of a dask cluster. Without them its protocol lets anyone who connects run code."""

    ca_file: str = Field(description="Certificate of the authority, PEM")
    cert: str = Field(description="Certificate of this client, PEM")
    key: str = Field(description="Key of this client, PEM")


class Dask(Frozen):
    """A dask cluster whose workers were started by `tapml worker`."""

    kind: Literal["dask"] = "dask"
    address: str = Field(description="Of the scheduler, such as tcp://127.0.0.1:8786")
    security: Security | None = Field(default=None, description="TLS files")


class RemoteCache(Frozen):
    """A cache that machines share, read through and written behind."""

    url: str = Field(
        repr=False, description="A folder, or a URL of fsspec such as s3://bucket/prefix"
    )
    mode: Literal["read-only", "read-write"] = Field(
        default="read-write", description="Whether results made here are uploaded"
    )


class Tracking(Frozen):
    """Where MLflow is."""

    uri: str | None = Field(default=None, description="MLflow's tracking URI; default: embedded")
    experiment: str | None = Field(
        default=None, description="Name of the experiment; default: the recipe's name"
    )
    mode: Track = Field(default="auto", description="Not at all, in the background, or required")


class Engine(Frozen):
    """The section `engine:` of a workflow file."""

    store: str | None = Field(default=None, description="Folder of results; relative to this file")
    durability: Literal["group", "each"] = Field(
        default="group",
        description="Results reach the disk together at the run's end, or each when it is made",
    )
    jobs: int | None = Field(default=None, ge=0, description="Worker processes")
    executor: Annotated[Local | Joblib | Dask, Field(discriminator="kind")] = Field(
        default_factory=Local, description="What stages run on"
    )
    cache: RemoteCache | None = Field(default=None, description="The shared cache")
    tracking: Tracking = Field(default_factory=Tracking, description="MLflow")
    env: tuple[str, ...] = Field(
        default=(), description="Environment variables that recipes may read as ${env:NAME}"
    )


def with_environment(engine: Engine) -> Engine:
    """The settings of a file, with what `TAPML_JOBS` and `TAPML_EXECUTOR` say instead.

    The latter is `local`, `joblib:BACKEND`, the address of a dask scheduler, or JSON.

    Raises: RecipeError when one of them says nothing that can be done.
    """
    fields: dict[str, str] = {}
    if jobs := os.environ.get("TAPML_JOBS"):
        fields["jobs"] = jobs
    if text := os.environ.get("TAPML_EXECUTOR"):
        kind, _, rest = text.partition(":")
        if rest.startswith("//"):
            text = json.dumps({"kind": "dask", "address": text})
        elif not text.startswith("{"):
            text = json.dumps({"kind": kind} | ({"backend": rest} if rest else {}))
        fields["executor"] = text
    for name, text in fields.items():
        try:
            told = Engine.model_validate_json(f'{{"{name}": {text}}}')
        except ValidationError as error:
            variable = f"TAPML_{name.upper()}"
            raise RecipeError(
                message=f"{variable}: {os.environ[variable][:80]!r}: {error.errors()[0]['msg']}",
                hint="a number of processes"
                if name == "jobs"
                else "local, joblib:BACKEND, tcp://HOST:PORT of a dask scheduler, or JSON",
            ) from error
        engine = engine.model_copy(update={name: getattr(told, name)})
    return engine


def remote_cache(engine: Engine, workflows: Path) -> RemoteCache | None:
    """The shared cache: `TAPML_REMOTE` (with `TAPML_REMOTE_MODE`), else the file's. A folder is
    absolute.

    Raises: RecipeError when there is no such mode.
    """
    url = os.environ.get("TAPML_REMOTE")
    if not url:
        if engine.cache is None:
            return None
        url = _cache_url(engine.cache.url, workflows.resolve().parent)
        return engine.cache.model_copy(update={"url": url})
    mode = os.environ.get("TAPML_REMOTE_MODE") or "read-write"
    if mode not in (known := get_args(RemoteCache.model_fields["mode"].annotation)):
        raise RecipeError(
            message=f"TAPML_REMOTE_MODE: unknown value {mode[:40]!r}", hint=nearest(mode, known)
        )
    return RemoteCache.model_validate({"url": _cache_url(url, Path.cwd()), "mode": mode})


def _cache_url(url: str, folder: Path) -> str:
    return url if "://" in url else str((folder / Path(url).expanduser()).resolve())


def store_root(engine: Engine, workflows: Path) -> Path | None:
    """The folder of results that a workflow file names, absolute."""
    return None if engine.store is None else (workflows.resolve().parent / engine.store).resolve()


def tracking(engine: Engine, workflows: Path, mode: Track | None = None) -> Tracking:
    """How to track: `mode` of the command line, then `TAPML_TRACK`, `TAPML_TRACKING_URI`, MLflow's
    own `MLFLOW_TRACKING_URI` and `MLFLOW_EXPERIMENT_NAME`, then the file. No `uri` is the embedded
    database; that of a file is absolute.

    Raises: RecipeError when `TAPML_TRACK` is no mode.
    """
    said, file = os.environ, engine.tracking
    named = said.get("TAPML_TRACKING_URI") or said.get("MLFLOW_TRACKING_URI")
    chosen = mode or said.get("TAPML_TRACK") or file.mode
    if chosen not in get_args(Track):
        raise RecipeError(message=f"TAPML_TRACK is {chosen!r}", hint="off, auto or required")
    folder = Path.cwd() if named else workflows.resolve().parent
    return Tracking(
        uri=_absolute(named or file.uri, folder),
        experiment=said.get("MLFLOW_EXPERIMENT_NAME") or file.experiment,
        mode=cast("Track", chosen),
    )


def _absolute(uri: str | None, folder: Path) -> str | None:
    """The same URI; the file of an SQLite database made absolute."""
    if uri is None or not uri.startswith("sqlite:///"):
        return uri or None
    return f"sqlite:///{(folder / uri.removeprefix('sqlite:///')).resolve()}"
