"""Options that several commands share, and the settings that come of them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from cdc_relay.config import Settings

ConfigFile = Annotated[Path | None, typer.Option("--config", help="TOML file with settings; or CDC_CONFIG.")]
DatabaseUrl = Annotated[
    str | None,
    typer.Option(
        "--database-url",
        help="mysql://user:password@host:3306/database; or CDC_DATABASE__URL, which ps(1) does not show to others.",
    ),
]
BootstrapServers = Annotated[
    str | None,
    typer.Option(
        "--bootstrap-servers", help="Kafka brokers, host:port joined by commas; or CDC_KAFKA__BOOTSTRAP_SERVERS."
    ),
]
CheckpointPath = Annotated[
    Path | None, typer.Option("--checkpoint", help="File that keeps the binlog position; or CDC_CHECKPOINT__PATH.")
]
Name = Annotated[str | None, typer.Option("--name", help="One relay of a name is active at a time; or CDC_NAME.")]
AdminPort = Annotated[
    int | None, typer.Option("--admin-port", help="Port of /metrics, /healthz and /readyz; 0: any free one.")
]
DrainTimeout = Annotated[float, typer.Option("--drain-timeout", min=0.1, help="Seconds that an orderly stop may take.")]
LogLevel = Annotated[str | None, typer.Option("--log-level", help="debug, info, warning or error.")]
#: Read by cli.py from the command line itself; declared so that it is known and shown.
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]

#: In place of an address that the command does not use.
_UNUSED = {"database.url": "mysql://unused/unused", "kafka.bootstrap_servers": "unused:9092"}


def load_settings(config: Path | None, *, unused: tuple[str, ...] = (), **flags: Any) -> Settings:
    """The settings from file, environment and ``flags`` (``section__setting=value``, None when not given).

    ``unused`` are required addresses that this command can do without.
    Raises ConfigurationError.
    """
    from cdc_relay.config_layers import load  # pydantic: not needed for --help

    given = {name.replace("__", "."): value for name, value in flags.items()}
    return load({**given, **{name: _UNUSED[name] for name in unused}}, config=config, environ=os.environ)
