"""Secrets: what looks like one is refused in recipes, and blotted out of what tapml writes."""

from __future__ import annotations

import re

_NAME = re.compile(r"token|secret|passw(?:or)?d|api_?key|credential|private_?key", re.IGNORECASE)
_VALUE = re.compile(
    r"\b(?:AKIA|ASIA)[A-Z0-9]{16}\b"  # AWS
    r"|\bgh[pousr]_[A-Za-z0-9]{20,}|\bgithub_pat_[A-Za-z0-9_]{20,}"
    r"|\bhf_[A-Za-z0-9]{20,}"  # Hugging Face
    r"|\bsk-(?:(?:proj|ant|or|svcacct)-[A-Za-z0-9_-]{16,}|[A-Za-z0-9]{20,})"  # OpenAI and others
    r"|\bxox[abeprs]-[A-Za-z0-9-]{10,}"  # Slack
    r"|\bglpat-[A-Za-z0-9_-]{16,}"
    r"|\bAIza[A-Za-z0-9_-]{30,}"  # Google
    r"|\beyJ[A-Za-z0-9_-]{10,}\.[A-Za-z0-9_-]{10,}\.[A-Za-z0-9_-]*"  # a signed web token
    r"|-----BEGIN [A-Z ]*PRIVATE KEY-----"
)
_IN_URL = re.compile(r"(?<=://)[^/\s:@]*:[^/\s@]*(?=@)")
_ASSIGNED = re.compile(  # `token=…`, but no `tokenizer: …`, no `token_type_ids: [batch, 128]`
    r"((?:token|secret|passw(?:or)?d|(?:api|access|private)[_-]?key)[\"']?\s*[=:]\s*[\"']?)"
    r"([^\s\"',;&{}\[\]]{6,})",
    re.IGNORECASE,
)
_BLOT = "•••"
HINT = "recipes are recorded and shared: let the code that needs a secret read it"


def is_secret_name(name: str) -> bool:
    """Whether a variable of this name holds a secret."""
    return _NAME.search(name) is not None


def is_secret(value: str) -> bool:
    """Whether a text holds what looks like a key: a known prefix, or a password in a URL."""
    return _VALUE.search(value) is not None or _IN_URL.search(value) is not None


def mask(text: str) -> str:
    """The text with keys, passwords in URLs and values assigned to secret names blotted out."""
    text = _IN_URL.sub(_BLOT, _VALUE.sub(_BLOT, text))
    return _ASSIGNED.sub(rf"\g<1>{_BLOT}", text)
