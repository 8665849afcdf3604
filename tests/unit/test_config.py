"""Settings: which source wins, what a wrong value is told, and that no secret is ever shown."""

from __future__ import annotations

import json
import traceback
from collections.abc import Mapping
from datetime import UTC
from io import StringIO
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest
import rich.console
import rich.pretty

from cdc_relay.config import (
    AdminSettings,
    CheckpointSettings,
    ConsumerSettings,
    DatabaseSettings,
    KafkaSettings,
    LogSettings,
    RetrySettings,
    Settings,
    SweepSettings,
    TailSettings,
    WritebackSettings,
)
from cdc_relay.config_layers import load
from cdc_relay.errors import ConfigurationError
from cdc_relay.outbox.parking import Ordering

URL = "mysql://relay:hunter2@db:3306/shop"
REQUIRED = {"CDC_DATABASE__URL": URL, "CDC_KAFKA__BOOTSTRAP_SERVERS": "kafka:9092"}


def loaded(
    environ: Mapping[str, str] | None = None, flags: Mapping[str, Any] | None = None, config: Path | None = None
) -> Settings:
    return load(flags, config=config, environ={**REQUIRED, **(environ or {})})


def refused(
    environ: Mapping[str, str] | None = None, flags: Mapping[str, Any] | None = None, config: Path | None = None
) -> str:
    with pytest.raises(ConfigurationError) as caught:
        loaded(environ, flags, config)
    assert caught.value.exit_code == 2
    whole = "".join(traceback.format_exception(caught.value))
    assert "hunter2" not in whole, "the traceback shows a secret"
    text = str(caught.value)
    assert "\n" not in text
    return text


def toml(folder: Path, text: str) -> Path:
    path = folder / "relay.toml"
    path.write_text(text, "utf-8")
    return path


# --- which source wins ----------------------------------------------------------------------------------------------


def test_two_settings_are_enough_and_the_rest_has_defaults() -> None:
    settings = loaded()
    assert settings.database.url == URL
    assert settings.kafka.bootstrap_servers == "kafka:9092"
    assert (settings.name, settings.database.table, settings.database.timezone) == (
        "relay",
        "agent_outbox_messages",
        "UTC",
    )
    assert (settings.retry.base_s, settings.retry.cap_s) == (1.0, 32.0)
    assert (settings.admin.host, settings.admin.port) == ("127.0.0.1", None)
    assert settings.checkpoint.path == Path("checkpoints/relay.json")


def test_flags_win_over_the_environment_and_the_environment_over_the_file(tmp_path: Path) -> None:
    file = toml(tmp_path, 'name = "file"\n[sweep]\nbatch_rows = 1\ninterval_s = 1.5\nlease_s = 11\n')
    settings = loaded(
        {"CDC_SWEEP__BATCH_ROWS": "2", "CDC_SWEEP__INTERVAL_S": "2.5"}, {"sweep.batch_rows": 3}, config=file
    )
    assert settings.name == "file"
    assert (settings.sweep.batch_rows, settings.sweep.interval_s, settings.sweep.lease_s) == (3, 2.5, 11)


def test_a_flag_that_was_not_given_changes_nothing() -> None:
    assert loaded({"CDC_ADMIN__PORT": "9000"}, {"admin.port": None}).admin.port == 9000


def test_the_file_is_named_by_the_argument_or_else_by_the_environment(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    named, other = toml(tmp_path / "a", 'name = "argument"'), toml(tmp_path, 'name = "variable"')
    assert loaded({"CDC_CONFIG": str(other)}).name == "variable"
    assert loaded({"CDC_CONFIG": str(other)}, config=named).name == "argument"


def test_a_section_may_be_given_whole_as_json_and_single_settings_win_over_it() -> None:
    kafka = {"bootstrap_servers": "whole:9092", "properties": {"acks": "all", "linger.ms": 5, "debug": True}}
    settings = load(environ={"CDC_DATABASE": json.dumps({"url": URL}), "CDC_KAFKA": json.dumps(kafka)})
    assert settings.database.url == URL
    assert settings.kafka.bootstrap_servers == "whole:9092"
    assert settings.kafka.properties == {"acks": "all", "linger.ms": 5, "debug": True}
    assert loaded({"CDC_KAFKA": json.dumps(kafka)}).kafka.bootstrap_servers == "kafka:9092"


def test_properties_and_topics_are_json_in_the_environment() -> None:
    settings = loaded(
        {"CDC_KAFKA__PROPERTIES": '{"sasl.username": "relay"}', "CDC_CONSUMER__TOPICS": '["a", "对话"]'},
    )
    assert settings.kafka.properties == {"sasl.username": "relay"}
    assert settings.consumer.topics == ["a", "对话"]


def test_a_single_property_may_be_a_variable_of_its_own() -> None:
    settings = loaded({"CDC_KAFKA__PROPERTIES__SASL__USERNAME": "relay", "CDC_KAFKA__PROPERTIES__ACKS": "1"})
    assert settings.kafka.properties == {"sasl.username": "relay", "acks": "1"}


def test_properties_of_file_and_environment_are_joined(tmp_path: Path) -> None:
    file = toml(tmp_path, '[kafka.properties]\nacks = "1"\n"linger.ms" = 7\n')
    settings = loaded({"CDC_KAFKA__PROPERTIES": '{"acks": "all"}'}, config=file)
    assert settings.kafka.properties == {"acks": "all", "linger.ms": 7}


def test_dotted_properties_need_no_quotes_in_the_file(tmp_path: Path) -> None:
    file = toml(tmp_path, '[kafka.properties]\nsasl.password = "file"\nsasl.oauthbearer.scope = "s"\nlinger.ms = 0.5\n')
    settings = loaded({"CDC_KAFKA__PROPERTIES": '{"sasl.password": "environment"}'}, config=file)
    assert settings.kafka.properties == {
        "sasl.password": "environment",
        "sasl.oauthbearer.scope": "s",
        "linger.ms": 0.5,
    }


def test_an_empty_variable_counts_as_not_given() -> None:
    assert loaded({"CDC_ADMIN__PORT": "", "CDC_CONSUMER__TOPICS": ""}).admin.port is None


def test_names_of_variables_may_be_written_small() -> None:
    assert loaded({"cdc_admin__port": "9000"}).admin.port == 9000


@pytest.mark.parametrize(
    "name", ["CDC_RELAY_SERVICE_HOST", "CDC_ADMIN_PORT", "CDC_SOMETHING", "CDCX__Y", "XCDC_KAFKA__Y", "CDC"]
)
def test_variables_of_others_are_left_alone(name: str) -> None:
    assert loaded({name: "tcp://10.0.0.1:9464"}) == loaded()


def test_settings_cannot_be_changed_and_are_equal_when_their_values_are() -> None:
    settings = loaded()
    with pytest.raises(ValueError, match="frozen"):
        settings.name = "other"  # type: ignore[misc]
    with pytest.raises(ValueError, match="frozen"):
        settings.admin.port = 1  # type: ignore[misc]
    assert settings == loaded()


# --- what the values become -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("scheme", ["mysql", "mysql+pymysql", "mariadb", "mysql+mysqldb"])
def test_every_mysql_scheme_gets_our_driver(scheme: str) -> None:
    database = DatabaseSettings(url=f"{scheme}://relay:p%40ss@db/shop?ssl_ca=/etc/ca.pem")
    assert database.parsed.drivername == "mysql+pymysql"
    assert database.parsed.password == "p@ss"
    assert database.parsed.query["ssl_ca"] == "/etc/ca.pem"


def test_the_zone_is_a_zone() -> None:
    assert DatabaseSettings(url=URL).zone is UTC
    assert DatabaseSettings(url=URL, timezone="Europe/Berlin").zone == ZoneInfo("Europe/Berlin")


def test_client_properties_are_ours_below_and_the_users_above() -> None:
    kafka = KafkaSettings(bootstrap_servers="kafka:9092", properties={"linger.ms": 9, "sasl.password": "hunter2"})
    assert kafka.client_properties(linger_ms=2, enable_idempotence=True) == {
        "linger.ms": 9,
        "enable.idempotence": True,
        "bootstrap.servers": "kafka:9092",
        "sasl.password": "hunter2",
    }


# --- what a wrong value is told -------------------------------------------------------------------------------------

WRONG: list[tuple[str, str, str]] = [
    # variable, value, what the message must say
    ("CDC_NAME", "two words", "name: "),
    ("CDC_NAME", "x" * 41, "name: "),
    ("CDC_DATABASE__URL", "postgresql://relay:hunter2@db/shop", "must begin with mysql:// or mariadb://"),
    ("CDC_DATABASE__URL", "relay:hunter2@db/shop", "must be a URL like mysql://"),
    ("CDC_DATABASE__URL", "mysql://relay:hunter2@db", "must name the database that holds the outbox"),
    ("CDC_DATABASE__URL", "mysql://relay:hunter2@db:hunter2/shop", "must be a URL like mysql://"),
    ("CDC_DATABASE__TABLE", "a`b", "database.table: "),
    ("CDC_DATABASE__TIMEZONE", "Mars/Olympus", "must be an IANA zone name"),
    ("CDC_DATABASE__TIMEZONE", "../../etc/passwd", "must be an IANA zone name"),
    ("CDC_DATABASE__CONNECT_TIMEOUT_S", "0", "must be greater than 0, not '0'"),
    ("CDC_DATABASE__CONNECT_TIMEOUT_S", "-1", "must be greater than 0"),
    ("CDC_DATABASE__READ_TIMEOUT_S", "soon", "must be a valid number"),
    ("CDC_DATABASE__READ_TIMEOUT_S", "nan", "database.read_timeout_s: must be"),
    ("CDC_DATABASE__READ_TIMEOUT_S", "inf", "database.read_timeout_s: must be"),
    ("CDC_DATABASE__PASSWORD", "hunter2", "there is no such setting"),
    ("CDC_KAFKA__SASL_PASSWORD", "hunter2", "there is no such setting"),
    ("CDC_KAFKA__PROPERTIES", "acks=all", "must hold JSON"),
    ("CDC_KAFKA__PROPERTIES", '{"sasl.password": "hunter2"', "must hold JSON"),
    ("CDC_KAFKA__PROPERTIES", "[1]", "kafka.properties: "),
    ("CDC_KAFKA__PROPERTIES", '{"sasl.password": ["hunter2"]}', "must be text, a number, true or false"),
    ("CDC_KAFKA__PROPERTIES", '{"acks": null}', "kafka.properties: acks must be text"),
    ("CDC_KAFKA", "hunter2", "must hold JSON"),
    ("CDC_KAFKA", '["hunter2"]', "must hold a JSON object"),
    ("CDC_KAFKA", "7", "must hold a JSON object"),
    ("CDC_KAFKA", '{"brokers": "hunter2"}', "kafka.brokers: there is no such setting"),
    ("CDC_DATABASE", f'"{URL}"', "must hold a JSON object"),
    ("CDC_CHECKPOINT__INTERVAL_S", "0", "must be greater than 0"),
    ("CDC_TAIL__SERVER_ID", "0", "tail.server_id: must be"),
    ("CDC_TAIL__SERVER_ID", str(2**32), "tail.server_id: must be"),
    ("CDC_TAIL__HEARTBEAT_S", "6", "heartbeat_s must be at most half of read_timeout_s"),
    ("CDC_TAIL__MAX_IN_FLIGHT_ROWS", "0", "must be greater than or equal to 1"),
    ("CDC_TAIL__MAX_IN_FLIGHT_BYTES", "1.5", "must be a valid integer"),
    ("CDC_TAIL__JUMP_BEHIND_BYTES", "-1", "must be greater than or equal to 0"),
    ("CDC_SWEEP__BATCH_ROWS", "10001", "must be less than or equal to 10000"),
    ("CDC_SWEEP__INTERVALS", "1", "there is no such setting"),
    ("CDC_RETRY__CAP_S", "0.5", "cap_s must be at least base_s"),
    ("CDC_ORDERING__MODE", "partition", "ordering.mode: must be 'key' or 'none', not 'partition'"),
    ("CDC_ORDERING__ON_DEAD", "wait", "ordering.on_dead: must be 'skip' or 'block', not 'wait'"),
    ("CDC_WRITEBACK__BATCH_ROWS", "many", "must be a valid integer"),
    ("CDC_CONSUMER__TOPICS", "chat-history", "must hold JSON"),
    ("CDC_CONSUMER__TOPICS", '["a", 7]', "consumer.topics: must be a valid string, not '7'"),
    ("CDC_CONSUMER__TOPICS", '"a"', "consumer.topics: must be a valid list"),
    ("CDC_CONSUMER__DEAD_LETTER_SUFFIX", "/dlq", "consumer.dead_letter_suffix: "),
    ("CDC_CONSUMER__CREATE_TOPICS", "perhaps", "must be a valid boolean"),
    ("CDC_ADMIN__PORT", "65536", "must be less than or equal to 65535, not '65536'"),
    ("CDC_ADMIN__PORT", "http", "must be a valid integer"),
    ("CDC_ADMIN__PORT__X", "1", "admin.port: must be a valid integer"),
    ("CDC_NAME__X", "1", "name: must be a valid string"),
    ("CDC_LOG__LEVEL", "loud", "must be 'debug', 'info', 'warning' or 'error', not 'loud'"),
    ("CDC_LOG__FORMAT", "xml", "must be 'auto', 'json' or 'console'"),
    ("CDC_SWEEPER__BATCH_ROWS", "1", "there is no section sweeper"),
]


@pytest.mark.parametrize(("variable", "value", "says"), WRONG)
def test_a_wrong_variable_is_named_with_the_value_it_must_have(variable: str, value: str, says: str) -> None:
    text = refused({variable: value})
    assert says in text
    assert variable in text


def test_every_section_has_a_wrong_value_above() -> None:
    named = {variable.removeprefix("CDC_").partition("__")[0].lower() for variable, _, _ in WRONG}
    assert set(Settings.model_fields) <= named


@pytest.mark.parametrize(
    ("environ", "rule"),
    [
        ({}, Ordering.SKIP_DEAD),
        ({"CDC_ORDERING__ON_DEAD": "block"}, Ordering.BLOCK_ON_DEAD),
        ({"CDC_ORDERING__MODE": "none"}, Ordering.NONE),
    ],
)
def test_the_two_settings_of_order_make_one_rule(environ: dict[str, str], rule: Ordering) -> None:
    assert loaded(environ).ordering.rule is rule


def test_a_dead_row_cannot_block_where_there_is_no_order() -> None:
    text = refused({"CDC_ORDERING": '{"mode": "none", "on_dead": "block"}'})
    assert "ordering: on_dead = block needs mode = key" in text
    assert "CDC_ORDERING" in text


@pytest.mark.parametrize("setting", ["database.url", "kafka.bootstrap_servers"])
def test_a_missing_setting_is_named_with_every_place_where_it_can_be_set(setting: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        load(environ={})
    variable = "CDC_" + setting.upper().replace(".", "__")
    assert f"{setting} is required" in str(caught.value)
    assert f"not set: use {variable}, the TOML file or a flag" in str(caught.value)


def test_a_variable_with_one_underscore_too_few_is_pointed_out() -> None:
    with pytest.raises(ConfigurationError, match="CDC_DATABASE_URL is set, did you mean CDC_DATABASE__URL"):
        load(environ={"CDC_DATABASE_URL": URL, "CDC_KAFKA__BOOTSTRAP_SERVERS": "kafka:9092"})


def test_each_wrong_setting_is_told_once_and_all_of_them_at_once(tmp_path: Path) -> None:
    file = toml(tmp_path, "[sweep]\nbatch_rows = 0\n")
    text = refused(
        {"CDC_ADMIN__PORT": "-1", "CDC_KAFKA__PROPERTIES": '{"acks": []}'}, {"log.level": "loud"}, config=file
    )
    for setting, source in (
        ("sweep.batch_rows", f"file {file}"),
        ("admin.port", "CDC_ADMIN__PORT"),
        ("kafka.properties", "CDC_KAFKA__PROPERTIES"),
        ("log.level", "flag for log.level"),
    ):
        assert text.count(f"{setting}: ") == 1
        line = next(line for line in text.split("; ") if line.startswith(f"{setting}: "))
        assert line.endswith(f"(from {source})")


def test_the_source_named_is_the_one_that_won(tmp_path: Path) -> None:
    file = toml(tmp_path, "[admin]\nport = 1\n")
    assert "(from CDC_ADMIN)" in refused({"CDC_ADMIN": '{"port": 65536}'}, config=file)
    assert "(from CDC_ADMIN__PORT)" in refused({"CDC_ADMIN": '{"port": 1}', "CDC_ADMIN__PORT": "65536"}, config=file)
    assert "(from flag for admin.port)" in refused({"CDC_ADMIN__PORT": "1"}, {"admin.port": 65536}, config=file)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("name = ", "is not TOML"),
        ("name = 7", "name: must be a valid string, not '7' (from file"),
        ("[databse]\nurl = 'hunter2'", "databse: there is no such setting (from file"),
        ("database = 'mysql://relay:hunter2@db/shop'\n", "database: "),
        ("[database]\nurl = 'pg://relay:hunter2@db/shop'\npassword = 'hunter2'\n", "database.password: "),
        ("[kafka.sasl]\npassword = 'hunter2'\n", "kafka.sasl: there is no such setting"),
        ("[kafka.properties]\nsasl.password = ['hunter2']\n", "sasl.password must be text"),
    ],
)
def test_a_wrong_file_is_named_and_quotes_no_secret(tmp_path: Path, text: str, says: str) -> None:
    file = toml(tmp_path, text)
    with pytest.raises(ConfigurationError) as caught:
        load(config=file, environ={"CDC_KAFKA__BOOTSTRAP_SERVERS": "kafka:9092"})
    assert says in str(caught.value)
    assert str(file) in str(caught.value)
    assert "hunter2" not in "".join(traceback.format_exception(caught.value))


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    assert "does not exist" in refused(config=tmp_path / "none.toml")
    assert "does not exist" in refused({"CDC_CONFIG": str(tmp_path / "none.toml")})
    assert "cannot be read" in refused(config=tmp_path)
    (tmp_path / "latin1.toml").write_bytes(b"name = '\xe4'")
    assert "is not TOML" in refused(config=tmp_path / "latin1.toml")


# --- secrets --------------------------------------------------------------------------------------------------------


def _secretive() -> Settings:
    return loaded(
        {
            "CDC_DATABASE__URL": "mysql://relay:hunter2@db/shop?ssl_ca=/ca.pem&password=hunter2",
            "CDC_KAFKA__PROPERTIES": json.dumps(
                {
                    "sasl.username": "relay",
                    "sasl.password": "hunter2",
                    "ssl.key.password": "hunter2",
                    "ssl.key.pem": "-----BEGIN PRIVATE KEY-----hunter2",
                    "sasl.oauthbearer.client.secret": "hunter2",
                    "sasl.oauthbearer.config": "principal=hunter2",
                }
            ),
        }
    )


def test_no_way_of_showing_settings_shows_a_secret() -> None:
    settings = _secretive()
    pretty = StringIO()
    rich.console.Console(file=pretty, width=500).print(settings, settings.database, settings.kafka)
    shown = [
        *(repr(part) for part in (settings, settings.database, settings.kafka, [settings])),
        *(str(part) for part in (settings, settings.database, settings.kafka)),
        f"{settings} {settings.kafka!r}",
        str(settings.masked()),
        pretty.getvalue(),
        rich.pretty.pretty_repr(settings),
    ]
    for text in shown:
        assert "hunter2" not in text
        assert "***" in text


def test_what_is_masked_keeps_everything_else() -> None:
    masked = _secretive().masked()
    assert masked["database"]["url"] == "mysql://relay:***@db/shop?ssl_ca=/ca.pem&password=***"
    assert masked["kafka"]["bootstrap_servers"] == "kafka:9092"
    assert masked["kafka"]["properties"]["sasl.username"] == "relay"
    assert set(masked["kafka"]["properties"].values()) == {"relay", "***"}
    assert json.loads(json.dumps(masked)) == masked


def test_masking_does_not_touch_the_settings_themselves() -> None:
    settings = _secretive()
    settings.masked()
    repr(settings)
    assert settings.database.parsed.password == "hunter2"
    assert settings.kafka.properties["sasl.password"] == "hunter2"


def test_every_default_is_valid_by_itself() -> None:
    for section in (
        *(CheckpointSettings, TailSettings, SweepSettings, RetrySettings, WritebackSettings),
        *(ConsumerSettings, AdminSettings, LogSettings),
    ):
        section()
