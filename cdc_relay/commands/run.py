"""``run``, ``tail`` and ``sweep``: the relay itself."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from cdc_relay.commands import options
from cdc_relay.commands.signals import run_until_stopped, stop_on_signal

if TYPE_CHECKING:
    from cdc_relay.config import Settings
    from cdc_relay.service import RelayService
    from cdc_relay.sweeper import SweepCounts


def add_to(app: typer.Typer) -> None:
    """Give ``app`` these commands."""
    for command in (run, tail, sweep):
        app.command()(command)


def run(
    config: options.ConfigFile = None,
    database_url: options.DatabaseUrl = None,
    bootstrap_servers: options.BootstrapServers = None,
    checkpoint: options.CheckpointPath = None,
    name: options.Name = None,
    admin_port: options.AdminPort = None,
    drain_timeout: options.DrainTimeout = 30.0,
    log_level: options.LogLevel = None,
    debug: options.Debug = False,
) -> None:
    """Run the relay: follow the binlog and sweep the table, until SIGTERM or SIGINT.

    New rows reach Kafka within milliseconds by the binlog. The sweep sends what must be retried, what is scheduled for
    later, and whatever the binlog did not bring. A second relay of the same name waits as a hot standby.

    \b
    Example:
        cdc-relay run --database-url mysql://relay:secret@db/shop --bootstrap-servers kafka:9092

    SIGTERM or SIGINT: it takes no more rows, waits for Kafka's answers, writes statuses and checkpoint, and exits 0.
    A second signal ends it at once, exit code 1; that loses nothing, but rows in flight are sent again.

    \b
    Exit codes: 0 stopped, 1 unexpected, 2 a setting, 3 MySQL, 4 Kafka, 6 the checkpoint file.
    """
    with stop_on_signal() as stop:
        settings = options.load_settings(
            config,
            database__url=database_url,
            kafka__bootstrap_servers=bootstrap_servers,
            checkpoint__path=checkpoint,
            name=name,
            admin__port=admin_port,
            log__level=log_level,
        )
        service = _service(settings, drain_timeout, tail=True, sweep=True)
        run_until_stopped(lambda: service.run(stop), stop, drain_timeout)


def tail(
    explain_decoder: Annotated[
        bool,
        typer.Option(
            "--explain-decoder", help="Print how rows of the outbox are decoded, and exit. Kafka is not needed."
        ),
    ] = False,
    config: options.ConfigFile = None,
    database_url: options.DatabaseUrl = None,
    bootstrap_servers: options.BootstrapServers = None,
    checkpoint: options.CheckpointPath = None,
    name: options.Name = None,
    admin_port: options.AdminPort = None,
    drain_timeout: options.DrainTimeout = 30.0,
    log_level: options.LogLevel = None,
    debug: options.Debug = False,
) -> None:
    """Only follow the binlog; something else must run `cdc-relay sweep`.

    For those who want the two in processes of their own. Without a sweep no failed, scheduled or missed row is ever
    sent again: `cdc-relay run` does both.

    \b
    Examples:
        cdc-relay tail --config relay.toml
        cdc-relay tail --explain-decoder --config relay.toml

    Signals and exit codes are those of `cdc-relay run`.
    """
    if explain_decoder:
        from cdc_relay.commands.explain import show_decoder

        show_decoder(options.load_settings(config, unused=("kafka.bootstrap_servers",), database__url=database_url))
        return
    with stop_on_signal() as stop:
        settings = options.load_settings(
            config,
            database__url=database_url,
            kafka__bootstrap_servers=bootstrap_servers,
            checkpoint__path=checkpoint,
            name=name,
            admin__port=admin_port,
            log__level=log_level,
        )
        service = _service(settings, drain_timeout, tail=True, sweep=False)
        run_until_stopped(lambda: service.run(stop), stop, drain_timeout)


def sweep(
    once: Annotated[bool, typer.Option("--once", help="Sweep until nothing more is due, print counts, exit.")] = False,
    config: options.ConfigFile = None,
    database_url: options.DatabaseUrl = None,
    bootstrap_servers: options.BootstrapServers = None,
    checkpoint: options.CheckpointPath = None,
    name: options.Name = None,
    admin_port: options.AdminPort = None,
    drain_timeout: options.DrainTimeout = 30.0,
    log_level: options.LogLevel = None,
    debug: options.Debug = False,
) -> None:
    """Only sweep the table for rows that are due: retries, scheduled rows, rows that the tailer has missed.

    Fresh rows are left to the tailer as long as its checkpoint file (--checkpoint, the same as the tailer's) shows that
    it lives. With no such file the sweep sends them too, so that it also works alone, as a poller.

    \b
    Examples:
        cdc-relay sweep --config relay.toml
        cdc-relay sweep --once --config relay.toml

    With --once it exits 3 when another relay of this name sweeps already.
    Signals and exit codes are otherwise those of `cdc-relay run`.
    """
    with stop_on_signal() as stop:
        settings = options.load_settings(
            config,
            database__url=database_url,
            kafka__bootstrap_servers=bootstrap_servers,
            checkpoint__path=checkpoint,
            name=name,
            admin__port=admin_port,
            admin__enabled=False if once else None,  # a short run beside a long one that has the port
            log__level=log_level,
        )
        service = _service(settings, drain_timeout, tail=False, sweep=True)
        if once:
            run_until_stopped(lambda: _tell(service.sweep_once(stop)), stop, drain_timeout)
        else:
            run_until_stopped(lambda: service.run(stop), stop, drain_timeout)


def _tell(counts: SweepCounts) -> None:
    typer.echo(
        f"sent {counts.sent}, held back behind an earlier row of their key {counts.held_back}, "
        f"left to the tailer {counts.left_to_tailer}"
    )


def _service(settings: Settings, drain_timeout_s: float, *, tail: bool, sweep: bool) -> RelayService:
    from cdc_relay import logs
    from cdc_relay.interpreter import tune_interpreter
    from cdc_relay.kafka.publisher import KafkaPublisher

    logs.configure(settings.log, program="cdc-relay")
    # Its own threads connect to Kafka while this one imports the rest, which takes as long.
    publisher = KafkaPublisher(settings.kafka)
    from cdc_relay.service import RelayService

    service = RelayService(settings, publisher, tail=tail, sweep=sweep, drain_timeout_s=drain_timeout_s)
    tune_interpreter()
    return service
