"""Secrets: what looks like one is refused in recipes, and blotted out of what tapml writes."""

from __future__ import annotations

import re

HINT = "recipes are recorded and shared: let the code that needs a secret read it"

_NAME = re.compile(r"token|secret|passw(?:or)?d|api_?key|credential|private_?key", re.IGNORECASE)
_KEYS = tuple(  # what every such text holds, which is quick to look for, and its form
    (mark, re.compile(form))
    for mark, form in (
        ("AKIA", r"\bAKIA[A-Z0-9]{16}\b"),  # AWS
        ("ASIA", r"\bASIA[A-Z0-9]{16}\b"),
        ("gh", r"\bgh[pousr]_[A-Za-z0-9]{20,}"),
        ("github_pat_", r"\bgithub_pat_[A-Za-z0-9_]{20,}"),
        ("hf_", r"\bhf_[A-Za-z0-9]{20,}"),  # Hugging Face
        ("sk-", r"\bsk-(?:(?:proj|ant|or|svcacct)-[A-Za-z0-9_-]{16,}|[A-Za-z0-9]{20,})"),  # OpenAI
        ("xox", r"\bxox[abeprs]-[A-Za-z0-9-]{10,}"),  # Slack
        ("glpat-", r"\bglpat-[A-Za-z0-9_-]{16,}"),
        ("AIza", r"\bAIza[A-Za-z0-9_-]{30,}"),  # Google
        ("eyJ", r"(?<![\w-])eyJ[\w-]{10,}\.[\w-]{10,}\.[\w-]*"),  # a signed web token
        ("-----BEGIN", r"-----BEGIN [A-Z ]*PRIVATE KEY-----"),
        ("://", r"(?<=://)[^/\s:@]*:[^/\s@]*(?=@)"),  # a password in a URL
    )
)
_ASSIGNED = re.compile(  # `token=…`, but no `tokenizer: …`, no `token_type_ids: [batch, 128]`
    r"((?:token|secret|passw(?:or)?d|(?:api|access|private)[_-]?key)[\"']?\s*[=:]\s*[\"']?)"
    r"([^\s\"',;&{}\[\]]{6,})",
    re.IGNORECASE,
)
_BLOT = "•••"


def is_secret_name(name: str) -> bool:
    """Whether a variable of this name holds a secret."""
    return _NAME.search(name) is not None


def is_secret(value: str) -> bool:
    """Whether a text holds what looks like a key: a known prefix, or a password in a URL."""
    return any(mark in value and form.search(value) for mark, form in _KEYS)


def without_keys(text: str) -> str:
    """The text with what `is_secret` sees blotted out."""
    for mark, form in _KEYS:
        if mark in text:
            text = form.sub(_BLOT, text)
    return text


def bare(url: str) -> str:
    """The URL without user, password, query and fragment."""
    scheme, separator, rest = url.partition("://")
    if not separator:
        return url
    host, slash, path = re.split(r"[?#]", rest, maxsplit=1)[0].partition("/")
    return f"{scheme}://{host.rpartition('@')[2]}{slash}{path}"


def mask(text: str) -> str:
    """The text with keys, passwords in URLs and values assigned to secret names blotted out."""
    return _ASSIGNED.sub(rf"\g<1>{_BLOT}", without_keys(text))
