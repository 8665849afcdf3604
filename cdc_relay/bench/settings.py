"""Settings for what is measured: the user's, some of them changed, handed to a process of its own."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from typing import Any

from cdc_relay.config import Settings
from cdc_relay.config_layers import ENV_PREFIX


def altered(settings: Settings, changes: Mapping[str, Any]) -> Settings:
    """``settings`` with some of them ("section.setting") changed."""
    plain = settings.model_dump(exclude_unset=True)
    for name, value in changes.items():
        section, _, setting = name.rpartition(".")
        (plain.setdefault(section, {}) if section else plain)[setting] = value
    return Settings.model_validate(plain)


def inherited() -> dict[str, str]:
    """This process's variables for another one, without settings."""
    # An installed program is compiled already; its start is not that of one which compiles itself each time.
    unwanted = (ENV_PREFIX, "PYTHONDONTWRITEBYTECODE")
    return {name: value for name, value in os.environ.items() if not name.startswith(unwanted)}


def as_environment(settings: Settings) -> dict[str, str]:
    """The variables from which another process has these settings. What was never set is left out: another version
    may not know it."""
    plain = settings.model_dump(mode="json", exclude_unset=True)
    return {
        ENV_PREFIX + name.upper(): value if isinstance(value, str) else json.dumps(value)
        for name, value in plain.items()
    }
