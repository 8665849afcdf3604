"""The admin server over real sockets: what it answers, and that no client can hold it up."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from http.client import HTTPConnection, HTTPResponse

import pytest
from prometheus_client import CollectorRegistry, Info, Metric
from prometheus_client.openmetrics import parser as openmetrics_parser
from prometheus_client.parser import text_string_to_metric_families as parse_text

from cdc_relay.admin import server as admin_server
from cdc_relay.admin.ask import labels
from cdc_relay.admin.server import AdminServer, Health
from cdc_relay.config import AdminSettings
from cdc_relay.errors import ConfigurationError
from cdc_relay.metrics import RelayMetrics, process_registry

#: The library says no types here.
parse_openmetrics: Callable[[str], Iterable[Metric]] = openmetrics_parser.text_string_to_metric_families

WELL = Health(True, {"mysql": "connected"})
ILL = Health(False, {"mysql": "away for 12 s", "kafka": "connected"})


@contextmanager
def serving(
    *,
    settings: AdminSettings | None = None,
    registry: CollectorRegistry | None = None,
    health: Callable[[], Health] = lambda: WELL,
    ready: Callable[[], Health] = lambda: WELL,
    state: Callable[[], Mapping[str, object]] = dict,
) -> Iterator[AdminServer]:
    with AdminServer(
        settings or AdminSettings(port=0),
        program="cdc-relay",
        default_port=0,
        registry=registry or CollectorRegistry(),
        health=health,
        ready=ready,
        state=state,
    ) as server:
        yield server


def ask(
    server: AdminServer, path: str, *, method: str = "GET", headers: Mapping[str, str] | None = None
) -> tuple[HTTPResponse, bytes]:
    assert server.port is not None
    connection = HTTPConnection("127.0.0.1", server.port, timeout=5)
    try:
        connection.request(method, path, headers=dict(headers or {}))
        response = connection.getresponse()
        return response, response.read()
    finally:
        connection.close()


@pytest.mark.parametrize(("path", "argument"), [("/healthz", "health"), ("/readyz", "ready")])
def test_a_verdict_is_200_when_well_and_503_when_not_and_names_its_checks(path: str, argument: str) -> None:
    for verdict, status in ((WELL, 200), (ILL, 503)):
        with serving(**{argument: lambda verdict=verdict: verdict}) as server:  # type: ignore[arg-type]
            response, body = ask(server, path)
        assert response.status == status
        assert response.getheader("Content-Type") == "application/json"
        assert json.loads(body) == {"ok": verdict.ok, "checks": verdict.checks}


def test_health_and_readiness_are_independent() -> None:
    with serving(health=lambda: WELL, ready=lambda: ILL) as server:
        assert ask(server, "/healthz")[0].status == 200
        assert ask(server, "/readyz")[0].status == 503


def test_metrics_come_as_text_or_as_openmetrics_as_the_client_wishes() -> None:
    registry = CollectorRegistry()
    RelayMetrics(registry).rows_published.labels(path="tail").inc(7)
    with serving(registry=registry) as server:
        plain, text = ask(server, "/metrics")
        wished, openmetrics = ask(server, "/metrics", headers={"Accept": "application/openmetrics-text;version=1.0.0"})
        odd, _ = ask(server, "/metrics", headers={"Accept": "application/openmetrics-text;version=latest"})
    assert (plain.getheader("Content-Type") or "").startswith("text/plain; version=0.0.4")
    assert (wished.getheader("Content-Type") or "").startswith("application/openmetrics-text; version=1.0.0")
    assert odd.status == 200
    assert openmetrics.endswith(b"# EOF\n")
    for families in (parse_text(text.decode()), parse_openmetrics(openmetrics.decode())):
        samples = {(s.name, s.labels.get("path")): s.value for family in families for s in family.samples}
        assert samples["cdc_relay_rows_published_total", "tail"] == 7
        assert samples["cdc_relay_rows_published_total", "sweep"] == 0


def test_the_page_shows_verdicts_state_and_links_and_escapes_what_it_shows() -> None:
    state = {"position": {"file": "binlog.000007", "offset": 1234567}, "leader": True, "last_error": "<script>&"}
    with serving(ready=lambda: ILL, state=lambda: state) as server:
        response, body = ask(server, "/?from=somewhere")
    html = body.decode()
    assert response.status == 200
    assert response.getheader("Content-Type") == "text/html; charset=utf-8"
    for shown in ("cdc-relay", "away for 12 s", "position.file", "binlog.000007", "1,234,567", "&lt;script&gt;&amp;"):
        assert shown in html
    assert "<script" not in html
    for link in ('href="/metrics"', 'href="/healthz"', 'href="/readyz"'):
        assert link in html
    assert "http://" not in html
    assert "https://" not in html


def test_the_page_masks_secrets() -> None:
    with serving(state=lambda: {"database": {"url": "mysql://relay:hunter2@db/shop"}}) as server:
        _, body = ask(server, "/")
    assert b"hunter2" not in body
    assert b"mysql://relay:***@db/shop" in body


def test_an_unknown_path_is_404_and_says_what_there_is() -> None:
    with serving() as server:
        response, body = ask(server, "/etc/passwd")
    assert response.status == 404
    assert b"/healthz" in body


def test_head_answers_like_get_without_a_body_and_nothing_can_be_posted() -> None:
    with serving() as server:
        got, body = ask(server, "/healthz")
        headed, nothing = ask(server, "/healthz", method="HEAD")
        posted, _ = ask(server, "/healthz", method="POST")
    assert headed.status == got.status == 200
    assert headed.getheader("Content-Length") == str(len(body))
    assert nothing == b""
    assert posted.status == 501


@pytest.mark.parametrize("broken", ["health", "ready", "state"])
def test_a_state_that_cannot_be_told_is_status_500_and_a_log_line(
    broken: str, caplog: pytest.LogCaptureFixture
) -> None:
    def fail() -> Health:
        raise FileNotFoundError("checkpoint folder is gone")

    with serving(**{broken: fail}) as server:  # type: ignore[arg-type]
        response, _ = ask(server, "/")
        assert ask(server, "/metrics")[0].status == 200
    assert response.status == 500
    failed = [record for record in caplog.records if record.fields["action"] == "admin_page_failed"]  # type: ignore[attr-defined]
    assert [record.levelname for record in failed] == ["ERROR"]


def test_a_metric_is_asked_for_by_its_name() -> None:
    registry = CollectorRegistry()
    Info("reader", "How.", registry=registry).info({"reader": "wire", "why": 'it "can"'})
    with serving(settings=AdminSettings(host="0.0.0.0", port=0), registry=registry) as server:
        assert server.port is not None
        assert labels("0.0.0.0", server.port, "reader_info") == {"reader": "wire", "why": 'it "can"'}
        assert labels("0.0.0.0", server.port, "another_info") == {}


@pytest.mark.parametrize("answer", [b"", b"SSH-2.0-x\r\n", b"HTTP/1.0 200 OK\r\n\r\n{not metrics", None])
def test_a_port_where_no_admin_server_answers_tells_nothing(answer: bytes | None) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]

        def serve() -> None:
            client, _ = server.accept()
            with client:
                if answer is not None:
                    client.recv(1000)
                    client.sendall(answer)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        assert labels("127.0.0.1", port, "reader_info") == {}
        thread.join(10)
    assert labels("127.0.0.1", port, "reader_info") == {}


def test_port_0_takes_any_free_port_and_two_servers_live_side_by_side() -> None:
    with serving() as one, serving() as other:
        assert one.port != other.port
        assert one.url == f"http://127.0.0.1:{one.port}/"
        assert ask(other, "/healthz")[0].status == 200


def test_the_default_port_is_used_when_none_is_set_and_only_then() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        default = free.getsockname()[1]

    def server(port: int | None) -> AdminServer:
        nothing = CollectorRegistry()
        return AdminServer(
            AdminSettings(port=port),
            program="cdc-relay",
            default_port=default,
            registry=nothing,
            health=lambda: WELL,
            ready=lambda: WELL,
            state=dict,
        )

    with server(None) as unset:
        assert unset.port == default
    with server(0) as any_free:
        assert any_free.port not in (None, 0, default)


def test_a_port_in_use_is_a_configuration_error_that_says_how_to_mend_it() -> None:
    with serving() as first:
        taken = first.port
        with pytest.raises(ConfigurationError) as refused, serving(settings=AdminSettings(port=taken)):
            pytest.fail("two servers on one port")
    assert refused.value.exit_code == 2
    assert f"admin.port {taken} on 127.0.0.1 is in use" in str(refused.value)
    assert "CDC_ADMIN__PORT" in str(refused.value)


@pytest.mark.parametrize("host", ["192.0.2.1", "no.such.host.invalid", "x" * 64])
def test_a_host_that_is_not_this_machine_is_a_configuration_error(host: str) -> None:
    with pytest.raises(ConfigurationError, match=r"admin\.host"), serving(settings=AdminSettings(host=host, port=0)):
        pytest.fail("bound to a foreign address")


def test_it_listens_on_the_configured_host_only() -> None:
    with serving(settings=AdminSettings(host="127.0.0.2", port=0)) as server:
        assert server.port is not None
        socket.create_connection(("127.0.0.2", server.port), timeout=5).close()
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", server.port), timeout=5)


def test_it_listens_on_ipv6_too() -> None:
    if not socket.has_ipv6:
        pytest.skip("no IPv6 here")
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        pytest.skip("no IPv6 loopback here")
    with serving(settings=AdminSettings(host="::1", port=0)) as server:
        assert server.url == f"http://[::1]:{server.port}/"
        socket.create_connection(("::1", server.port), timeout=5).close()


def test_a_disabled_server_listens_nowhere() -> None:
    with serving(settings=AdminSettings(enabled=False)) as server:
        assert server.port is None
        assert server.url is None


def test_after_leaving_the_port_is_closed_and_no_thread_is_left() -> None:
    before = set(threading.enumerate())
    with serving() as server:
        port = server.port
        silent = socket.create_connection(("127.0.0.1", port), timeout=5)
        ask(server, "/healthz")
    assert server.port is None
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port), timeout=5)
    assert silent.recv(1) == b""
    silent.close()
    _wait_until(lambda: set(threading.enumerate()) <= before, "threads of the server are left")


def test_clients_that_say_nothing_do_not_keep_others_from_an_answer() -> None:
    with serving() as server:
        silent = [
            socket.create_connection(("127.0.0.1", server.port), timeout=5) for _ in range(3 * admin_server.MAX_CLIENTS)
        ]
        try:
            for client in silent[::2]:
                client.sendall(b"GET /heal")
            began = time.monotonic()
            assert ask(server, "/healthz")[0].status == 200
            assert time.monotonic() - began < 2
            assert threading.active_count() <= 2 * admin_server.MAX_CLIENTS + 5
        finally:
            for client in silent:
                client.close()


def test_a_client_that_sends_byte_by_byte_is_cut_off_at_the_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(admin_server, "DEADLINE_S", 0.5)
    with serving() as server, socket.create_connection(("127.0.0.1", server.port), timeout=5) as slow:
        began = time.monotonic()
        with pytest.raises(ConnectionError):
            while time.monotonic() - began < 5:  # each byte resets a mere read timeout
                slow.sendall(b"G")
                time.sleep(0.05)
        assert time.monotonic() - began < 3


def test_an_answer_that_hangs_costs_a_bounded_number_of_threads() -> None:
    wake = threading.Event()

    def hang() -> Health:
        wake.wait(30)
        return WELL

    before = threading.active_count()
    with serving(health=hang) as server:
        waiting = []
        try:
            for _ in range(4 * admin_server.MAX_CLIENTS):
                client = socket.create_connection(("127.0.0.1", server.port), timeout=5)
                client.sendall(b"GET /healthz HTTP/1.0\r\n\r\n")
                waiting.append(client)
            assert _is_refused(waiting[-1])
            assert threading.active_count() - before <= 2 * admin_server.MAX_CLIENTS + 1
        finally:
            wake.set()
            for client in waiting:
                client.close()
        _wait_until(lambda: threading.active_count() <= before + 1, "threads are left")
        assert ask(server, "/healthz")[0].status == 200


def test_every_metric_has_the_prefix_a_help_text_and_a_unit_in_its_name() -> None:
    registry = process_registry()
    RelayMetrics(registry)
    ours = [family for family in registry.collect() if not family.name.startswith("process_")]
    assert len(ours) > 20
    for family in ours:
        assert family.name.startswith("cdc_relay_"), family.name
        assert family.documentation.endswith("."), family.name
    units = ("_seconds", "_bytes", "_rows", "_keys", "_number", "cdc_relay_leader")
    for family in ours:
        if family.type in ("gauge", "histogram"):
            assert family.name.endswith(units), f"{family.name} does not say what it counts"


def test_registries_are_independent_of_each_other() -> None:
    RelayMetrics(CollectorRegistry())
    RelayMetrics(CollectorRegistry())


def _is_refused(client: socket.socket) -> bool:
    try:
        return client.recv(1) == b""
    except ConnectionResetError:
        return True


def _wait_until(true: Callable[[], bool], complaint: str, timeout_s: float = 5.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not true():
        assert time.monotonic() < deadline, complaint
        time.sleep(0.02)
