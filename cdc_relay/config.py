"""One frozen ``Settings`` for both programs: what each setting is for, what it takes, and what goes with what.

Where they come from: ``config_layers.py``. Secrets never leave through ``repr``, error texts or ``masked``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import UTC, tzinfo
from pathlib import Path
from typing import Annotated, Any, Literal
from zoneinfo import ZoneInfo

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError

from cdc_relay.masking import mask
from cdc_relay.outbox.parking import Ordering

#: Where the relay listens for its operators when ``admin.port`` is unset.
RELAY_ADMIN_PORT = 9464

Seconds = Annotated[float, Field(gt=0, le=86_400 * 365)]
Port = Annotated[int, Field(ge=0, le=65_535)]


class Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)

    def __repr_args__(self) -> Iterator[tuple[str | None, Any]]:
        # Behind repr, str, rich and pytest's assertion texts alike.
        for name, value in super().__repr_args__():
            yield name, mask(value)


class DatabaseSettings(Section):
    """The MySQL that holds the outbox."""

    url: str = Field("", description="mysql://user:password@host:3306/database; TLS by ?ssl_ca=…")
    table: str = Field(
        "agent_outbox_messages", pattern=r"^[0-9A-Za-z_$]{1,64}$", description="the outbox, in the URL's database"
    )
    timezone: str = Field("UTC", description="zone in which the application writes DATETIME columns")
    connect_timeout_s: Seconds = Field(5.0, description="longest wait for a connection")
    read_timeout_s: Seconds = Field(10.0, description="longest wait for the answer to one statement")

    @field_validator("url")
    @classmethod
    def _mysql_url(cls, value: str) -> str:
        if not value:
            raise ValueError("is required, e.g. mysql://user:password@host:3306/database")
        try:
            url = make_url(value)
        except (ArgumentError, ValueError):  # the latter for a port that is no number; it may quote the password
            raise ValueError("must be a URL like mysql://user:password@host:3306/database") from None
        if url.get_backend_name() not in ("mysql", "mariadb"):
            raise ValueError(f"must begin with mysql:// or mariadb://, not {url.drivername}://")
        if not url.database:
            raise ValueError("must name the database that holds the outbox, e.g. mysql://user@host:3306/shop")
        return value

    @field_validator("timezone")
    @classmethod
    def _known_zone(cls, value: str) -> str:
        try:
            ZoneInfo(value)
        except (ValueError, OSError, KeyError):  # ZoneInfoNotFoundError is a KeyError
            raise ValueError("must be an IANA zone name, e.g. UTC or Europe/Berlin") from None
        return value

    @property
    def zone(self) -> tzinfo:
        """The zone of the DATETIME columns."""
        return UTC if self.timezone == "UTC" else ZoneInfo(self.timezone)

    @property
    def parsed(self) -> URL:
        """The URL with the driver that cdc-relay uses."""
        return make_url(self.url).set(drivername="mysql+pymysql")


class KafkaSettings(Section):
    """The Kafka cluster, and any librdkafka property."""

    bootstrap_servers: str = Field("", description="host:port, several joined by commas")
    properties: dict[str, str | int | float | bool] = Field(
        default_factory=dict,
        description="any librdkafka property but those that the promise rests on; ours are defaults",
    )

    def client_properties(self, **defaults: str | int | float | bool) -> dict[str, Any]:
        """A librdkafka configuration: ``defaults`` (with ``_`` for ``.``), overridden by what the user has set."""
        ours = {name.replace("_", "."): value for name, value in defaults.items()}
        return ours | {"bootstrap.servers": self.bootstrap_servers} | self.properties

    @field_validator("properties", mode="before")
    @classmethod
    def _flat(cls, value: Any) -> Any:
        return dict(_dotted(value)) if isinstance(value, Mapping) else value

    @field_validator("bootstrap_servers")
    @classmethod
    def _given(cls, value: str) -> str:
        if not value:
            raise ValueError("is required, e.g. localhost:9092")
        return value


def _dotted(properties: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    # sasl.password = "…" without quotes is a table "sasl" to TOML.
    for name, value in properties.items():
        if isinstance(value, Mapping):
            yield from _dotted(value, f"{prefix}{name}.")
        elif isinstance(value, str | int | float):  # bool is an int
            yield prefix + name, value
        else:
            raise ValueError(f"{prefix}{name} must be text, a number, true or false")


class CheckpointSettings(Section):
    """Where the tailer's position is kept."""

    path: Path = Field(Path("checkpoints/relay.json"), description="the file; its folder is made when missing")
    interval_s: Seconds = Field(1.0, description="saved so often, and at a stop")


class TailSettings(Section):
    """Following the binlog."""

    reader: Literal["auto", "wire", "library"] = Field(
        "auto",
        description="wire: read the socket; library: read by mysql-replication; auto: wire where that can be done",
    )
    server_id: Annotated[int, Field(ge=1, le=2**32 - 1)] | None = Field(
        None, description="must differ from every replica's; chosen at random when unset"
    )
    heartbeat_s: Seconds = Field(1.0, description="the server speaks at least this often")
    read_timeout_s: Seconds = Field(10.0, description="silence after which the connection counts as dead")
    max_in_flight_rows: Annotated[int, Field(ge=1)] = Field(
        100_000, description="rows read and not yet settled; at this many reading pauses"
    )
    max_in_flight_bytes: Annotated[int, Field(ge=1)] = Field(
        64 * 2**20, description="the same, by bytes of payload and key"
    )
    max_unacknowledged_rows: Annotated[int, Field(ge=1)] = Field(
        500, description="rows sent and not acknowledged by Kafka at which sending pauses; a kill doubles about so many"
    )
    jump_behind_bytes: Annotated[int, Field(ge=0)] = Field(
        1 * 2**30, description="further behind than this, catch up from the table instead; 0 = never"
    )

    @model_validator(mode="after")
    def _heartbeat_below_timeout(self) -> TailSettings:
        if self.heartbeat_s * 2 > self.read_timeout_s:
            raise ValueError("heartbeat_s must be at most half of read_timeout_s, or a quiet stream looks dead")
        return self


class SweepSettings(Section):
    """The fallback over the table."""

    interval_s: Seconds = Field(1.0, description="pause between two looks at the table")
    batch_rows: Annotated[int, Field(ge=1, le=10_000)] = Field(500, description="rows leased and sent together")
    lease_s: Seconds = Field(20.0, description="how long leased rows are kept from other sweeps")
    takeover_after_s: Seconds = Field(
        30.0, description="publish fresh rows too when the tailer has made no progress for so long"
    )
    redeliver_published_after_s: Annotated[float, Field(ge=0, le=86_400 * 365)] = Field(
        900.0, description="send published rows again that are not consumed after so long; 0 = never"
    )


class RetrySettings(Section):
    """Backoff of failed rows: base, doubled at every failure, up to the cap."""

    base_s: Seconds = Field(1.0, description="wait after the first failure; doubled at each further one")
    cap_s: Seconds = Field(32.0, description="longest wait")

    @model_validator(mode="after")
    def _cap_above_base(self) -> RetrySettings:
        if self.cap_s < self.base_s:
            raise ValueError("cap_s must be at least base_s")
        return self


class OrderingSettings(Section):
    """Order per message_key; both programs must be told the same."""

    mode: Literal["key", "none"] = Field(
        "key", description="key: behind a row that waits for its next attempt its key waits; none: nobody waits"
    )
    on_dead: Literal["skip", "block"] = Field(
        "skip", description="skip: later rows of its key go on; block: they wait until it is requeued or discarded"
    )

    @model_validator(mode="after")
    def _blocks_what_waits(self) -> OrderingSettings:
        if self.mode == "none" and self.on_dead == "block":
            raise ValueError("on_dead = block needs mode = key: without an order nobody waits for a dead row")
        return self

    @property
    def rule(self) -> Ordering:
        """Both settings in one."""
        if self.mode == "none":
            return Ordering.NONE
        return Ordering.BLOCK_ON_DEAD if self.on_dead == "block" else Ordering.SKIP_DEAD


class WritebackSettings(Section):
    """Writing `published` back to the table."""

    mode: Literal["status", "lazy", "none"] = Field(
        "status",
        description="status: mark every row; lazy: after delay_ms, those that the consumer has not marked by then; "
        "none: leave what the binlog brought to the consumer, which marks it",
    )
    delay_ms: Annotated[int, Field(ge=1, le=10_000)] = Field(
        500, description="with lazy: how long after Kafka's acknowledgement a row is left to the consumer"
    )
    batch_rows: Annotated[int, Field(ge=1, le=10_000)] = Field(1_000, description="rows marked by one UPDATE")
    row_image: Literal["minimal", "server"] = Field(
        "minimal",
        description="of the relay's UPDATEs in the binlog: minimal: key and changed columns, where the account may "
        "set that; server: as the server's binlog_row_image says, for other readers that need whole rows",
    )


class ConsumerSettings(Section):
    """The consumer program."""

    topics: list[str] = Field(
        default_factory=list, description='what to read; JSON in the environment: ["chat-history"]'
    )
    group_id: str = Field("cdc-consumer", min_length=1, description="its members share the partitions")
    workers: Annotated[int, Field(ge=1, le=64)] = Field(
        2, description="members of the group in this process, each with its own connection to MySQL"
    )
    batch_rows: Annotated[int, Field(ge=1, le=10_000)] = Field(1_000, description="records applied in one transaction")
    batch_bytes: Annotated[int, Field(ge=1)] = Field(
        16 * 2**20, description="a batch of this size takes no more records"
    )
    batch_wait_s: Seconds = Field(0.05, description="longest wait for a batch to fill once it has a record")
    row_image: Literal["minimal", "server"] = Field(
        "minimal",
        description="of the consumer's writes in the binlog, as writeback.row_image is of the relay's",
    )
    dead_letter_suffix: str = Field(
        ".dlq", min_length=1, pattern=r"^[a-zA-Z0-9._-]+$", description="a topic's dead letters go to topic + suffix"
    )
    create_topics: bool = Field(True, description="create missing topics and their dead-letter topics at start")


class AdminSettings(Section):
    """/metrics, /healthz, /readyz."""

    host: str = Field("127.0.0.1", description="address to listen on; 0.0.0.0 for every interface")
    port: Port | None = Field(None, description="unset: 9464 for the relay, 9465 for the consumer; 0: any free one")
    enabled: bool = Field(True, description="whether to listen at all")


class LogSettings(Section):
    """Structured logs on stderr."""

    level: Literal["debug", "info", "warning", "error"] = Field("info", description="the least that is told")
    format: Literal["auto", "json", "console"] = Field("auto", description="auto: console on a terminal, else json")


class Settings(Section):
    """Everything that both programs can be told."""

    name: str = Field("relay", pattern=r"^[A-Za-z0-9._-]{1,40}$", description="one active relay per name and server")
    database: DatabaseSettings
    kafka: KafkaSettings
    checkpoint: CheckpointSettings = CheckpointSettings()
    tail: TailSettings = TailSettings()
    sweep: SweepSettings = SweepSettings()
    retry: RetrySettings = RetrySettings()
    ordering: OrderingSettings = OrderingSettings()
    writeback: WritebackSettings = WritebackSettings()
    consumer: ConsumerSettings = ConsumerSettings()
    admin: AdminSettings = AdminSettings()
    log: LogSettings = LogSettings()

    @model_validator(mode="after")
    def _rows_left_pending_come_back(self) -> Settings:
        if self.writeback.mode == "none" and not self.sweep.redeliver_published_after_s:
            raise ValueError(
                "writeback.mode = none needs sweep.redeliver_published_after_s, or missed rows stay unsent"
            )
        return self

    def masked(self) -> dict[str, Any]:
        """The settings as plain values with every secret replaced by ``***``: for logs and ``--print``."""
        plain: dict[str, Any] = mask(self.model_dump(mode="json"))
        return plain
