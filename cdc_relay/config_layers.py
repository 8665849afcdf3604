"""Settings as they are given: TOML file < environment < command-line flags, the last one winning.

Environment names are ``CDC_`` + section + ``__`` + setting, e.g. ``CDC_KAFKA__BOOTSTRAP_SERVERS``; sections may also
be given whole as JSON. ``load`` reads all three, validates at once and, where a value is wrong, names the setting, the
value it must have and the source it came from.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, get_origin

from pydantic import BaseModel, ValidationError

from cdc_relay.config import Section, Settings
from cdc_relay.errors import ConfigurationError
from cdc_relay.masking import mask_text

ENV_PREFIX = "CDC_"
CONFIG_VARIABLE = "CDC_CONFIG"


class _Layer(NamedTuple):
    """What one source says."""

    source: str
    values: Mapping[str, Any]


def load(flags: Mapping[str, Any] | None = None, *, config: Path | None = None, environ: Mapping[str, str]) -> Settings:
    """Settings from a TOML file (``config``, else ``CDC_CONFIG``), ``environ`` and ``flags``, the last one winning.

    Flags are "section.setting": value; those that are None were not given.
    Raises ConfigurationError that names each wrong setting, the value it must have, and its source.
    """
    path = config or (Path(environ[CONFIG_VARIABLE]) if environ.get(CONFIG_VARIABLE) else None)
    given = {name: value for name, value in (flags or {}).items() if value is not None}
    layers = [
        *([_Layer(f"file {path}", _from_toml(path))] if path else []),
        *_from_environment(environ),
        *(_Layer(f"flag for {name}", _nested(name, value)) for name, value in given.items()),
    ]
    merged: dict[str, Any] = {"database": {}, "kafka": {}}
    for layer in layers:
        merged = _merge(merged, layer.values)
    try:
        return Settings.model_validate(merged)
    except ValidationError as invalid:
        lines = [_explain(problem, layers, environ) for problem in invalid.errors()]
        raise ConfigurationError("; ".join(lines)) from None  # the cause would quote secrets


def _from_toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        raise ConfigurationError(f"the configuration file {path} does not exist") from None
    except OSError as error:
        raise ConfigurationError(f"the configuration file {path} cannot be read: {error.strerror}") from error
    except ValueError as error:  # not UTF-8, or tomllib.TOMLDecodeError
        raise ConfigurationError(f"the configuration file {path} is not TOML: {error}") from error


def _from_environment(environ: Mapping[str, str]) -> list[_Layer]:
    """One layer a variable, so that whatever is wrong with it can name it; a section before the settings in it."""
    layers = []
    for name in sorted(environ):
        section, nested, _ = name.upper().removeprefix(ENV_PREFIX).partition("__")
        if not name.upper().startswith(ENV_PREFIX) or not environ[name]:
            continue
        if section.lower() in Settings.model_fields:
            layers.append(_Layer(name, _from_variable(name, environ[name])))
        elif nested:  # other programs may have CDC_… variables too, but hardly with two underscores
            raise ConfigurationError(
                f"{name} is set, but there is no section {section.lower()}",
                hint=f"The sections are {', '.join(n for n in Settings.model_fields if n != 'name')}",
            )
    return layers


def _from_variable(name: str, value: str) -> dict[str, Any]:
    path = name.lower().removeprefix(ENV_PREFIX.lower()).split("__")
    if not _is_json(path):
        return _nested(".".join(path), value)
    hint = 'A list is written ["a", "b"], several settings {"name": "value"}'
    try:
        given = json.loads(value)
    except ValueError as error:
        # Without the cause: it holds the value, which may be a secret.
        raise ConfigurationError(f"{name} must hold JSON: {error}", hint=hint) from None
    if len(path) == 1 and not isinstance(given, Mapping):
        raise ConfigurationError(f"{name} must hold a JSON object with the settings of the section", hint=hint)
    return _nested(".".join(path), given)


def _is_json(path: list[str]) -> bool:
    """Whether a variable holds JSON: that of a whole section does, and that of a list or of properties."""
    section = Settings.model_fields[path[0]].annotation
    if not (isinstance(section, type) and issubclass(section, Section)):
        return False
    setting = section.model_fields.get(path[1]) if len(path) == 2 else None
    return len(path) == 1 or (setting is not None and get_origin(setting.annotation) in (list, dict))


def _nested(dotted: str, value: Any) -> dict[str, Any]:
    for name in reversed(dotted.split(".")):
        value = {name: value}
    return dict(value)


def _merge(below: dict[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(below)
    for name, value in above.items():
        if isinstance(value, Mapping) and isinstance(merged.get(name), Mapping):
            merged[name] = _merge(merged[name], value)
        else:
            merged[name] = value
    return merged


def _explain(problem: Any, layers: list[_Layer], environ: Mapping[str, str]) -> str:
    found = next((given for layer in reversed(layers) if (given := _given(layer, problem["loc"]))), None)
    path = found[0] if found else [str(part) for part in problem["loc"]]
    setting = ".".join(path)
    message = problem["msg"].removeprefix("Value error, ").replace("Input should be", "must be", 1)
    if problem["type"] == "extra_forbidden":
        return f"{setting}: there is no such setting (from {found[1] if found else 'nowhere'})"
    if found is None:
        variable = ENV_PREFIX + "__".join(path).upper()
        lookalike = ENV_PREFIX + "_".join(path).upper()
        hint = f"; {lookalike} is set, did you mean {variable}?" if lookalike in environ else ""
        return f"{setting} {message} (not set: use {variable}, the TOML file or a flag){hint}"
    where = f"{setting}: " if setting else ""  # a rule between sections names its settings itself
    return f"{where}{message}{_shown(path, problem['input'])} (from {found[1]})"


def _given(layer: _Layer, location: tuple[str | int, ...]) -> tuple[list[str], str] | None:
    """The setting in ``layer`` that ``location`` is in, with the layer's name; None where the layer does not set it.

    A location may go deeper than settings do: into a list.
    """
    at: Any = layer.values
    path: list[str] = []
    for part in location:
        if not isinstance(at, Mapping):
            return path, layer.source
        if part not in at:
            return None
        at = at[part]
        path.append(str(part))
    return path, layer.source


def _shown(path: list[str], value: Any) -> str:
    # A URL may hold a password, and so may any property: they are never quoted, nor is a section that has them.
    if path[:2] in (["database"], ["database", "url"], ["kafka"], ["kafka", "properties"]):
        return ""
    return "" if isinstance(value, Mapping | BaseModel) else f", not {mask_text(str(value))[:80]!r}"
