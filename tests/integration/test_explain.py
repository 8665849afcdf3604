"""``tail --explain-decoder`` on real servers: what it shows is what a relay runs."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
from typer.testing import CliRunner

from cdc_relay.binlog.explain import ExplainedDecoder, explain_decoder
from cdc_relay.commands import app
from cdc_relay.config_layers import load
from cdc_relay.errors import DatabaseError
from cdc_relay.outbox.table import OUTBOX_COLUMNS
from tests.harness import Outbox


@pytest.fixture
def outbox(either_database_url: str) -> Iterator[Outbox]:
    outbox = Outbox(either_database_url, "t")
    yield outbox
    outbox.engine.dispose()


def explained(outbox: Outbox) -> ExplainedDecoder:
    url = outbox.engine.url.render_as_string(hide_password=False)
    return explain_decoder(load({"database.url": url, "kafka.bootstrap_servers": "unused:9092"}, environ={}))


def test_the_command_needs_no_kafka_and_prints_both_functions_whole(outbox: Outbox) -> None:
    row_id = outbox.add("k", 1)
    url = outbox.engine.url.render_as_string(hide_password=False)
    result = CliRunner().invoke(app, ["tail", "--explain-decoder", "--database-url", url])
    assert result.exit_code == 0, result.output
    found = explained(outbox)
    assert found.general in result.output
    assert found.plan is not None
    assert found.plan in result.output
    assert f"inserted row {row_id}." in result.output
    assert "read by the wire reader" in result.output


def test_what_is_shown_is_python_that_reads_the_columns_of_the_table(outbox: Outbox) -> None:
    outbox.add("k", 1)
    found = explained(outbox)
    assert found.plan is not None
    for source in (found.general, found.plan):
        compile(source, "shown", "exec")
    assert [column.name for column in found.columns] == list(OUTBOX_COLUMNS)
    assert found.complete
    assert found.absent == ()
    stepped_over = {column.name for column in found.columns if column.use == "stepped over"}
    assert stepped_over == {"max_retry", "last_error", "published_at", "consumed_at", "updated_at"}


def test_a_row_in_an_older_file_is_found_and_the_newest_form_is_shown(outbox: Outbox) -> None:
    outbox.add("k", 1)
    outbox.run("ALTER TABLE agent_outbox_messages ADD COLUMN tenant INT")
    newest = outbox.add("k", 2)
    outbox.run("FLUSH BINARY LOGS", "FLUSH BINARY LOGS")
    found = explained(outbox)
    assert found.row_id == newest
    assert found.columns[-1].name == "tenant"
    assert found.columns[-1].use == "stepped over"


def test_columns_that_the_image_leaves_out_are_named(outbox: Outbox) -> None:
    outbox.run(
        "SET SESSION binlog_row_image = 'MINIMAL'",
        "INSERT INTO agent_outbox_messages (biz_type, topic, message_key, payload) VALUES ('b', 't', 'k', '{}')",
    )
    found = explained(outbox)
    assert {"last_error", "published_at", "retry_count"} <= set(found.absent)
    assert not found.complete
    assert found.plan is None


def test_a_table_that_cannot_be_decoded_says_so(outbox: Outbox) -> None:
    outbox.run("ALTER TABLE agent_outbox_messages MODIFY payload LONGTEXT CHARACTER SET utf16")
    outbox.add("k", 1)
    url = outbox.engine.url.render_as_string(hide_password=False)
    told = CliRunner().invoke(app, ["tail", "--explain-decoder", "--database-url", url]).output
    assert "rows are read from the table by their ids" in told
    assert "There is no plan" in told
    assert "def plan" not in told


def test_without_a_row_it_says_what_to_do(outbox: Outbox) -> None:
    with pytest.raises(DatabaseError, match=r"no row of .* was inserted") as caught:
        explained(outbox)
    assert "insert one" in (caught.value.hint or "")


def test_rows_of_other_tables_are_not_taken_for_it(outbox: Outbox) -> None:
    row_id = outbox.add("k", json.dumps({"a": 1}))
    outbox.run(
        "CREATE TABLE lookalike LIKE agent_outbox_messages",
        "ALTER TABLE lookalike ADD COLUMN other INT",
        "INSERT INTO lookalike (id, biz_type, topic, message_key, payload) VALUES (77, 'b', 't', 'k', '{}')",
    )
    found = explained(outbox)
    assert found.row_id == row_id
    assert "other" not in {column.name for column in found.columns}
