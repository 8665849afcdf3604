"""Secrets out of everything that people read: logs, error texts, ``repr`` and printed settings.

Masking errs on the side of hiding: a word too many behind ``***`` costs nothing, a password in a log file does.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

MASK = "***"

_SECRET_NAME = re.compile(r"passw|pwd|secret|private|\.key\.pem|jaas|oauthbearer\.config|token", re.IGNORECASE)

# Every repetition is bounded, so that a long text costs time in proportion to its length, whatever it holds.
# The last @ ends a password, so that one with a raw @ in it is hidden whole; quotes bound the URL where there are any.
_URL_PASSWORD = re.compile(r"(://[^:/?#\s@]{0,128}):(?:[^\s\"'<>]{0,512}|[^\s@]{0,512})@")
# "(using password: YES)" in MySQL's own words is no secret and tells the operator what is wrong.
_ASSIGNED = re.compile(
    r"((?:passw|pwd|secret)[\w.-]{0,64}[\"']?\s{0,8}[=:]\s{0,8})(?!(?:YES|NO)\b)"
    r"(\"[^\"]*\"|'[^']*'|[^\s,;&)}\]]+)",
    re.IGNORECASE,
)
_PRIVATE_KEY = re.compile(r"-----BEGIN ([A-Z ]*PRIVATE KEY)-----.*?(?:-----END \1-----|\Z)", re.DOTALL)


def is_secret(name: str) -> bool:
    """Whether a setting or property called ``name`` holds a secret."""
    return _SECRET_NAME.search(name) is not None


def mask_text(text: str) -> str:
    """``text`` without the passwords of URLs, values assigned to secret names, and private keys."""
    if "://" in text:
        text = _URL_PASSWORD.sub(rf"\1:{MASK}@", text)
    text = _ASSIGNED.sub(rf"\g<1>{MASK}", text)
    return _PRIVATE_KEY.sub(MASK, text) if "PRIVATE KEY" in text else text


def mask(value: Any) -> Any:
    """A plain value with every secret in it masked, by the name that it stands under and by what it looks like."""
    if isinstance(value, str):
        return mask_text(value)
    if isinstance(value, Mapping):
        return {
            name: MASK if isinstance(name, str) and is_secret(name) and _says_something(inner) else mask(inner)
            for name, inner in value.items()
        }
    if isinstance(value, list | tuple):
        return [mask(inner) for inner in value]
    return value


def _says_something(value: Any) -> bool:
    return value not in (None, "") and not isinstance(value, bool)
