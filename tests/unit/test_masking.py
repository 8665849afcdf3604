"""What counts as a secret, and that nothing else is taken for one."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cdc_relay.masking import MASK, is_secret, mask, mask_text

SECRET = "hunter2"


@pytest.mark.parametrize(
    "text",
    [
        "mysql://relay:hunter2@db:3306/shop",
        "mysql+pymysql://relay:hunter2@db/shop?charset=utf8mb4",
        "mysql://:hunter2@db/shop",
        "mysql://relay:hun:hunter2@db/shop",
        "mysql://relay:with@hunter2@db/shop",
        "mysql://relay:with/hunter2@db/shop",
        "mysql://relay:it's-hunter2@db/shop",
        "first mysql://a:hunter2@db/x then mysql://b:hunter2@db/y",
        '{"url":"mysql://relay:hunter2@db/shop","mail":"ops@example.com"}',
        "sasl.password=hunter2",
        "sasl.password = 'hunter2'",
        '{"sasl.password": "hunter2", "acks": "all"}',
        "connect(user='relay', password='hunter2 with spaces', host='db')",
        "mysql://db/shop?user=relay&password=hunter2&charset=utf8",
        "MYSQL_PWD=hunter2 mysqld",
        "client_secret: hunter2",
        "SSL.KEY.PASSWORD=hunter2",
        "-----BEGIN RSA PRIVATE KEY-----\nhunter2\n-----END RSA PRIVATE KEY-----",
        "-----BEGIN PRIVATE KEY-----\nhunter2 and cut off her",
    ],
)
def test_a_secret_in_a_text_is_masked(text: str) -> None:
    assert SECRET not in mask_text(text)
    assert MASK in mask_text(text)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "http://127.0.0.1:9464/metrics",
        "mysql://relay@db:3306/shop",
        "write to ops@example.com, see https://example.com/path?x=1",
        "Access denied for user 'relay'@'localhost' (using password: YES)",
        "Access denied for user 'relay'@'localhost' (using password: NO)",
        "check user and password in database.url",
        "binlog.000007:1234 at 2026-01-02T03:04:05Z",
        "-----BEGIN CERTIFICATE-----\nabc\n-----END CERTIFICATE-----",
    ],
)
def test_what_is_no_secret_stays_as_it_is(text: str) -> None:
    assert mask_text(text) == text


def test_the_rest_of_a_url_stays_readable() -> None:
    assert mask_text("to mysql://relay:hunter2@db:3306/shop?a=1") == "to mysql://relay:***@db:3306/shop?a=1"


@pytest.mark.parametrize(
    "name",
    [
        *("sasl.password", "ssl.key.password", "ssl.key.pem", "ssl.keystore.password"),
        *("sasl.oauthbearer.client.secret", "sasl.oauthbearer.config", "sasl.jaas.config"),
        *("SASL_PASSWORD", "passwd", "private_key", "access_token"),
    ],
)
def test_a_name_that_holds_a_secret_is_known(name: str) -> None:
    assert is_secret(name)
    assert mask({name: SECRET}) == {name: MASK}


@pytest.mark.parametrize("name", ["sasl.username", "ssl.ca.location", "ssl.key.location", "bootstrap.servers", "acks"])
def test_a_name_that_holds_none_is_left(name: str) -> None:
    assert mask({name: "value"}) == {name: "value"}


def test_masking_reaches_into_nested_values_and_keeps_their_shape() -> None:
    value = {"a": [{"password": SECRET}, "mysql://u:hunter2@h/d", 7, None, True], "secret": {"inner": SECRET}}
    assert mask(value) == {"a": [{"password": MASK}, "mysql://u:***@h/d", 7, None, True], "secret": MASK}


def test_an_unset_secret_shows_that_it_is_unset() -> None:
    assert mask({"password": None, "secret": "", "use_password": False}) == {
        "password": None,
        "secret": "",
        "use_password": False,
    }


# Without "*", which is in the mask itself, and "@", which ends a password.
_WORDS = st.text(st.characters(codec="ascii", categories=["L", "N", "P", "S"], exclude_characters="*@"), min_size=4)


@given(_WORDS, st.text(max_size=20), st.text(max_size=20))
def test_no_url_shows_its_password_whatever_stands_around_it(password: str, before: str, after: str) -> None:
    masked = mask_text(f"{before} mysql://relay:{password}@db/shop {after}")
    assert f":{password}@" not in masked


def test_masking_a_long_text_takes_no_time() -> None:
    # A pattern that tries every start of every run of letters would take minutes here.
    for text in ("a" * 200_000, "a-" * 100_000, "://" * 70_000, "x:" * 100_000, "passw" * 40_000, "://a:" * 40_000):
        mask_text(text)
