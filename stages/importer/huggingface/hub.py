"""Models on the Hugging Face hub, by its own loader: a pinned commit, the local cache first."""

from __future__ import annotations

from pathlib import Path

from huggingface_hub import constants, errors, snapshot_download

from tapml.errors import EnvironmentalError
from tapml.formats.huggingface import missing

from .files import READ

_HTTPError = errors.HTTPError  # pyright: ignore[reportPrivateImportUsage]  # of its HTTP client


def snapshot(model: str, revision: str) -> Path:
    """The folder of the hub's cache that holds the files of a model at a commit.

    Nothing is asked of the network when they are there.
    Raises: EnvironmentalError that names the command which mends it: no network, unknown model or
            commit, no permission, a download that was cut off.
    """
    found, partial = _cached(model, revision)
    if found is not None and not partial:
        return found
    try:
        return Path(snapshot_download(model, revision=revision, allow_patterns=[*READ]))
    except (OSError, _HTTPError) as error:
        message, hint = _told(error, model, revision, partial=partial)
        raise EnvironmentalError(
            message=f"{model} at {revision[:12]}: {message}", hint=hint
        ) from error


def _cached(model: str, revision: str) -> tuple[Path | None, bool]:
    """The folder of the cache, and whether only a part of the model is there."""
    try:
        found = snapshot_download(
            model, revision=revision, allow_patterns=[*READ], local_files_only=True
        )
    except errors.IncompleteSnapshotError:
        return None, True
    except errors.LocalEntryNotFoundError:
        return None, False
    return Path(found), bool(missing(Path(found)))


def _told(error: Exception, model: str, revision: str, *, partial: bool) -> tuple[str, str]:
    """What went wrong, and what mends it."""
    page = f"{constants.ENDPOINT}/{model}"
    download = f"hf download {model} --revision {revision}"
    wrapped = isinstance(error, errors.LocalEntryNotFoundError) and error.__cause__ is not None
    cause = error.__cause__ if wrapped else error
    match cause:
        case errors.GatedRepoError():
            message = "the hub gives it only to those who were granted access"
            return message, f"ask for it at {page}, then: hf auth login"
        case errors.RevisionNotFoundError():
            message = "the hub has no such commit of it"
            return message, f"take one of {page}/commits/main for model.revision"
        case errors.RepositoryNotFoundError():
            message = "the hub has no such model, or shows it only to some"
            return message, f"look at {page}; if it is private: hf auth login"
        case errors.HfHubHTTPError() if cause.response.status_code in (401, 403):
            message = f"the hub refused it ({cause.response.status_code})"
            return message, f"hf auth login, with a token that may read {page}"
    reason = str(error.__cause__ or error).strip().partition("\n")[0]
    if partial:
        message = f"only a part of it is in the cache, and the rest could not be fetched: {reason}"
    else:
        message = f"it is not in the cache, and could not be fetched: {reason}"
    if constants.is_offline_mode():
        return message, f"HF_HUB_OFFLINE is set; without it: {download}"
    hint = f"where there is a network: {download} (goes on where it stopped); the cache is "
    return message, f"{hint}{constants.HF_HUB_CACHE}"
