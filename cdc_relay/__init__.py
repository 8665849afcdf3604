"""cdc-relay: the transactional outbox from MySQL's binlog to Kafka."""

__version__ = "0.1.0"
