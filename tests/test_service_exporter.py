# SPDX-License-Identifier: GPL-3.0-or-later
"""Says what the metrics port answers: /metrics, /healthz, nothing else, and whatever a client does."""

from __future__ import annotations

import gzip
import http.client
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text

from gatepost.service import metrics
from gatepost.service.exporter import CONNECTIONS, Server, application, beating, collect, notes, problems
from gatepost.service.series import Series, attached


class Running:
    """A server on a free port, served by a thread."""

    def __init__(self, folder: Path, host: str = "127.0.0.1", port: int = 0) -> None:
        self.server = Server((host, port), application(folder, folder / "bypass"))
        self.host, self.port = self.server.server_address[:2]
        self.server.timeout = 0.02
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        while not self._ended.is_set():
            self.server.handle_request()

    def stop(self) -> None:
        self._ended.set()
        self._thread.join()
        self.server.server_close()

    def ask(self, path: str, method: str = "GET", **headers: str) -> tuple[http.client.HTTPResponse, bytes]:
        connection = http.client.HTTPConnection(self.host, self.port, timeout=4)
        connection.request(method, path, headers={name.replace("_", "-"): text for name, text in headers.items()})
        response = connection.getresponse()
        body = response.read()
        connection.close()
        return response, body


@pytest.fixture
def running(tmp_path: Path) -> Iterator[Running]:
    server = Running(tmp_path)
    yield server
    server.stop()


@pytest.fixture
def supervisor(tmp_path: Path) -> Series:
    series = Series.create(tmp_path / "supervisor.run-0.series")
    series.set(metrics.WORKERS_WANTED, ("milter",), 2)
    series.set(metrics.LAST_RELOAD_OK, ("run",), 1)
    return series


@pytest.fixture
def workers(tmp_path: Path) -> list[Series]:
    found = [Series.create(tmp_path / f"milter-{number}.series") for number in (1, 2)]
    for series in found:
        series.ready = True
    return found


def _samples(families) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in families
        for sample in family.samples
    }


def test_metrics_shows_all_workers_as_one(running: Running, workers: list[Series]) -> None:
    for series in workers:
        series.add(metrics.SRS_REWRITES, ("forward",), 3.0)
        series.observer(metrics.STAGE_DURATION, ("rcpt",))(0.0002)
        series.observer(metrics.STAGE_DURATION, ("rcpt",))(7.0)
    response, body = running.ask("/metrics")
    assert response.status == 200
    assert response.headers["Content-Type"].startswith("text/plain; version=")
    samples = _samples(parse_text(body.decode()))
    assert samples["gatepost_srs_rewrites_total", (("form", "forward"),)] == 6.0
    name = "gatepost_stage_duration_seconds"
    assert samples[f"{name}_bucket", (("le", "0.0001"), ("stage", "rcpt"))] == 0.0
    assert samples[f"{name}_bucket", (("le", "0.00025"), ("stage", "rcpt"))] == 2.0
    assert samples[f"{name}_bucket", (("le", "+Inf"), ("stage", "rcpt"))] == 4.0
    assert samples[f"{name}_count", (("stage", "rcpt"),)] == 4.0
    assert samples[f"{name}_sum", (("stage", "rcpt"),)] == 14.0004


def test_metrics_speaks_openmetrics_where_asked(running: Running, workers: list[Series]) -> None:
    workers[0].add(metrics.DECISIONS, ('the "big" one', "relay", "p1-accepted"))
    workers[0].observer(metrics.STAGE_DURATION, ("rcpt",))(0.0002)
    response, body = running.ask("/metrics", Accept="application/openmetrics-text; version=1.0.0")
    assert response.headers["Content-Type"].startswith("application/openmetrics-text; ")
    labels = (("organization", 'the "big" one'), ("reason", "p1-accepted"), ("verdict", "relay"))
    assert _samples(parse_openmetrics(body.decode()))["gatepost_relay_decisions_total", labels] == 1.0


def test_metrics_comes_compressed_where_asked(running: Running) -> None:
    response, body = running.ask("/metrics", Accept_Encoding="gzip")
    assert response.headers["Content-Encoding"] == "gzip"
    assert b"# EOF" not in gzip.decompress(body)


def test_metrics_describes_the_whole_catalogue_and_nothing_of_the_exporter_itself(running: Running) -> None:
    _, body = running.ask("/metrics")
    described = {line.split()[2] for line in body.decode().splitlines() if line.startswith("# TYPE")}
    assert described == {metric.name for metric in metrics.CATALOGUE}


def test_metrics_can_be_narrowed_by_name(running: Running, workers: list[Series]) -> None:
    workers[0].add(metrics.SRS_REWRITES, ("forward",))
    workers[0].add(metrics.SRS_REVERSALS, ("forged",))
    _, body = running.ask("/metrics?name[]=gatepost_srs_rewrites_total")
    assert _samples(parse_text(body.decode())) == {("gatepost_srs_rewrites_total", (("form", "forward"),)): 1.0}


@pytest.mark.parametrize(("on", "shown"), [(False, 0.0), (True, 1.0)])
def test_metrics_shows_bypass(running: Running, tmp_path: Path, on: bool, shown: float) -> None:
    if on:
        (tmp_path / "bypass").touch()
    _, body = running.ask("/metrics")
    assert _samples(parse_text(body.decode()))["gatepost_bypass", ()] == shown


@pytest.mark.usefixtures("supervisor")
def test_metrics_shows_whether_all_is_well(running: Running, workers: list[Series]) -> None:
    def healthy() -> float:
        return _samples(parse_text(running.ask("/metrics")[1].decode()))["gatepost_healthy", ()]

    assert healthy() == 1.0
    workers[0].ready = False
    assert healthy() == 0.0


def test_a_gauge_that_is_no_number_is_not_shown(running: Running, supervisor: Series) -> None:
    supervisor.set(metrics.CERTIFICATE_END, ("run", "contoso"), 1e9)
    supervisor.set(metrics.CERTIFICATE_END, ("run", "fabrikam"), 2e9)
    supervisor.set(metrics.CERTIFICATE_END, ("run", "contoso"), float("nan"))
    _, body = running.ask("/metrics?name[]=gatepost_certificate_not_after_timestamp_seconds")
    labels = (("daemon", "run"), ("organization", "fabrikam"))
    assert _samples(parse_text(body.decode())) == {("gatepost_certificate_not_after_timestamp_seconds", labels): 2e9}


@pytest.mark.usefixtures("supervisor", "workers")
def test_healthz_mentions_a_store_that_is_behind_and_stays_200(running: Running, tmp_path: Path) -> None:
    loader = Series.create(tmp_path / "ledger-1.series")
    loader.set(metrics.LEDGER_LOADED, ("ledger",), time.time() - 400.0)
    loader.set(metrics.LEDGER_BACKLOG, ("ledger",), 4096)
    response, body = running.ask("/healthz")
    assert response.status == 200
    assert re.fullmatch(r"ok\nledger: the store is 40[0-9] s behind, 4096 bytes wait\n", body.decode())


def test_of_two_loaders_the_one_that_works_says_how_far_the_store_is(tmp_path: Path) -> None:
    for daemon, loaded in (("ledger.milter", 1000.0), ("ledger.policyd", 2000.0)):
        Series.create(tmp_path / f"{daemon}-1.series").set(metrics.LEDGER_LOADED, (daemon,), loaded)
    assert notes(collect(tmp_path), 2300.0) == []
    assert notes(collect(tmp_path), 2301.0) == ["ledger: the store is 301 s behind, 0 bytes wait"]


@pytest.mark.usefixtures("supervisor", "workers")
def test_healthz_is_ok_while_all_is_well(running: Running) -> None:
    response, body = running.ask("/healthz")
    assert (response.status, body) == (200, b"ok\n")


@pytest.mark.usefixtures("supervisor", "workers")
def test_healthz_mentions_bypass_and_stays_200(running: Running, tmp_path: Path) -> None:
    (tmp_path / "bypass").touch()
    response, body = running.ask("/healthz")
    assert (response.status, body) == (200, b"ok\nbypass is on: mail passes without gatepost\n")


def test_healthz_is_503_with_a_line_for_each_problem(
    running: Running, supervisor: Series, workers: list[Series]
) -> None:
    workers[0].ready = False
    supervisor.set(metrics.LAST_RELOAD_OK, ("run",), 0)
    response, body = running.ask("/healthz")
    assert response.status == 503
    assert body.decode().splitlines() == [
        "milter: 1 of 2 workers are ready",
        "run: the last reload failed, the previous configuration is in use",
    ]


def test_healthz_is_503_where_nothing_runs(running: Running) -> None:
    response, body = running.ask("/healthz")
    assert (response.status, body) == (503, b"no daemon reports here\n")


@pytest.mark.usefixtures("supervisor")
def test_a_heartbeat_of_more_than_five_seconds_ago_is_a_problem(tmp_path: Path, workers: list[Series]) -> None:
    now = time.monotonic()
    workers[0].beat(now - 4.0)
    assert problems(collect(tmp_path), now) == []
    workers[0].beat(now - 7.25)
    assert problems(collect(tmp_path), now) == [
        f"milter: process {os.getpid()} is silent for 7.2 s",
        "milter: 1 of 2 workers are ready",
    ]


@pytest.mark.usefixtures("supervisor")
def test_workers_that_beat_are_counted_by_daemon(tmp_path: Path, workers: list[Series]) -> None:
    now = time.monotonic()
    assert beating(collect(tmp_path), now) == {"milter": 2}
    workers[0].beat(now - 7.25)
    workers[1].beat(now + 1e6)
    assert beating(collect(tmp_path), now) == {}


def test_a_heartbeat_from_before_the_last_boot_is_a_problem(tmp_path: Path, workers: list[Series]) -> None:
    workers[0].beat(time.monotonic() + 1e6)
    assert "is silent" in problems(collect(tmp_path), time.monotonic())[0]


@pytest.mark.usefixtures("supervisor", "workers")
@pytest.mark.parametrize("path", ["/", "/metrics", "/healthz", "/nothing"])
def test_head_is_answered_as_get_without_the_body(running: Running, path: str) -> None:
    got, body = running.ask(path)
    head, nothing = running.ask(path, "HEAD")
    assert (head.status, nothing) == (got.status, b"")
    assert head.headers["Content-Length"] == got.headers["Content-Length"] == str(len(body))


def test_the_root_points_to_the_two_pages(running: Running) -> None:
    response, body = running.ask("/")
    assert (response.status, body) == (200, b"gatepost: /metrics for Prometheus, /healthz for a health check\n")


@pytest.mark.parametrize("path", ["/metrics/", "/admin", "/../etc/passwd", "/%2e%2e/metrics"])
def test_any_other_path_is_404(running: Running, path: str) -> None:
    assert running.ask(path)[0].status == 404


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS", "BREW"])
def test_any_other_method_is_405(running: Running, method: str) -> None:
    response, _ = running.ask("/metrics", method)
    assert (response.status, response.headers["Allow"]) == (405, "GET, HEAD")


@pytest.mark.parametrize("sent", [b"", b"GET /metrics HTTP/1.1\r\nHost:"])
def test_more_silent_clients_than_threads_keep_nobody_waiting(running: Running, sent: bytes) -> None:
    clients = [socket.create_connection((running.host, running.port)) for _ in range(CONNECTIONS + 4)]
    for client in clients:
        client.sendall(sent)
    started = time.monotonic()
    assert running.ask("/metrics")[0].status == 200
    assert time.monotonic() - started < 3.0
    threads = [thread for thread in threading.enumerate() if "process_request_thread" in thread.name]
    assert len(threads) <= CONNECTIONS
    for client in clients:
        client.close()


def test_a_client_that_sends_on_and_on_is_cut_off_when_its_time_is_up(running: Running) -> None:
    client = socket.create_connection((running.host, running.port), timeout=4)
    client.sendall(b"GET /metrics HTTP/1.1\r\n")
    running.ask("/")
    running.server.hang_up(float("inf"))
    assert client.recv(100) == b""
    client.close()


def test_junk_instead_of_http_costs_its_connection_only(running: Running) -> None:
    with socket.create_connection((running.host, running.port), timeout=4) as client:
        client.sendall(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\r\n\r\n")
        client.recv(1000)
    assert running.ask("/metrics")[0].status == 200


def test_an_ipv6_address_is_listened_on(tmp_path: Path) -> None:
    server = Running(tmp_path, "::1")
    try:
        assert server.ask("/metrics")[0].status == 200
    finally:
        server.stop()


@pytest.mark.usefixtures("supervisor", "workers")
def test_two_exporters_on_one_port_answer_alike(tmp_path: Path, running: Running) -> None:
    second = Running(tmp_path, port=running.port)
    try:
        assert {running.ask("/healthz")[1] for _ in range(40)} == {b"ok\n"}
        second.stop()
        assert {running.ask("/healthz")[1] for _ in range(10)} == {b"ok\n"}
    finally:
        second.server.server_close()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_serve_shows_itself_ready_and_ends_on_a_signal_even_one_that_arrives_blocked(
    tmp_path: Path, number: signal.Signals
) -> None:
    path = tmp_path / "metrics-1.series"
    program = (
        "import pathlib, signal, sys\n"
        "from gatepost.service.exporter import serve\n"
        "from gatepost.service.series import Series\n"
        "signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGUSR1})\n"
        "folder = pathlib.Path(sys.argv[1])\n"
        "serve(('127.0.0.1', 0), folder, folder / 'bypass', Series.create(folder / 'metrics-1.series'))\n"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path)], env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    )
    try:
        while child.poll() is None and not any(series.ready for series in attached([path])):
            time.sleep(0.01)
        child.send_signal(number)
        assert child.wait(5) == 0
    finally:
        child.kill()
