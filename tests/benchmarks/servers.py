"""The servers that are measured on."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from sqlalchemy import make_url

from cdc_relay.config import Settings
from cdc_relay.config_layers import load
from cdc_relay.embedded.kafka import KafkaBroker
from cdc_relay.embedded.mysql import MysqlServer

#: A binlog that is filled fast, and a table that fits in memory: the server is not what is measured.
_MYSQL: dict[str, str | int | bool | None] = {
    "sync_binlog": 0,
    "innodb_flush_log_at_trx_commit": 0,
    "innodb_buffer_pool_size": "1G",
    "loose_innodb_redo_log_capacity": "1G",
    "binlog_cache_size": "1M",
}
_KAFKA: dict[str, str | int] = {"log.segment.bytes": 256 * 2**20}


@contextmanager
def servers(mysql_url: str | None = None, bootstrap_servers: str | None = None) -> Iterator[Settings]:
    """Settings for those given, and for throwaway ones where none is given; without TLS."""
    with ExitStack() as stack:
        if mysql_url is None:
            mysql_url = stack.enter_context(MysqlServer(flavour="mysql", options=_MYSQL)).url
        if bootstrap_servers is None:
            bootstrap_servers = stack.enter_context(KafkaBroker(tuned=True, options=_KAFKA)).bootstrap_servers
        # PyMySQL uses TLS wherever the server has it.
        url = make_url(mysql_url).update_query_dict({"ssl_disabled": "true"}).render_as_string(hide_password=False)
        yield load({"database.url": url, "kafka.bootstrap_servers": bootstrap_servers}, environ={})


def with_tls(settings: Settings) -> Settings:
    """The same with TLS to MySQL."""
    url = settings.database.parsed.difference_update_query(["ssl_disabled"])
    database = settings.database.model_copy(update={"url": url.render_as_string(hide_password=False)})
    return settings.model_copy(update={"database": database})
