# SPDX-License-Identifier: GPL-3.0-or-later
"""Shows the metrics of all processes as one, and their health, over HTTP: /metrics and /healthz.

Several exporters may listen on one port and serve one folder: each answers for all.
"""

from __future__ import annotations

import contextlib
import http.client
import io
import math
import os
import signal
import socket
import sys
import threading
import time
from collections import Counter as Counts
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from socketserver import TCPServer, ThreadingMixIn
from typing import TYPE_CHECKING, Any, NamedTuple, Optional
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

from prometheus_client import CollectorRegistry, make_wsgi_app
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.core import Metric as Family
from prometheus_client.registry import Collector

from gatepost.service import log, metrics
from gatepost.service.loader_daemon import LedgerDaemon
from gatepost.service.metrics import Counter, Gauge, Histogram, Metric
from gatepost.service.series import Labels, Series, Totals, attached

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

SILENT_S = 5.0
"""A process without a heartbeat for longer than this is unhealthy."""
BEHIND_S = 300.0
"""The store of the ledger is behind, by so much, when /healthz mentions it."""
CONNECTIONS = 16
"""One more, and the oldest connection is dropped."""
CONNECTION_S = 10.0
"""No connection lives longer, whatever its client does."""
_READ_S = 5.0
_PROBE_S = 2.0
_TICK_S = 0.25
_GRACE_S = 0.05
DRAIN_S = 2.0
_PLAIN = [("Content-Type", "text/plain; charset=utf-8")]
_POINTER = b"gatepost: /metrics for Prometheus, /healthz for a health check\n"


@dataclass(frozen=True)
class Process:
    """One process that has a series file; *heartbeat* in seconds of CLOCK_MONOTONIC."""

    daemon: str
    pid: int
    heartbeat: float
    ready: bool


@dataclass(frozen=True)
class State:
    """What all processes together have counted, and who they are."""

    totals: Totals
    processes: tuple[Process, ...]

    def gauge(self, metric: Gauge) -> dict[Labels, float]:
        """Return the values of *metric* by labels."""
        return {labels: values[0] for (known, labels), values in self.totals.items() if known is metric}


def collect(folder: Path) -> State:
    """Sum the series files in *folder*; files that cannot be read are left out."""
    living = [path for path in folder.glob("*.series") if not path.stem.endswith("-retired")]
    opened = [(path.stem.rpartition("-")[0], series) for path in living for series in attached([path])]
    # After the others: a worker folded in between is listed here, and so left out there.
    retired = attached(list(folder.glob("*-retired.series")))
    folded = {life for series in retired for life in series.folded()}
    totals: Totals = {}
    processes = []
    for series in retired:
        series.add_to(totals)
    for daemon, series in opened:
        if series.life not in folded:
            series.add_to(totals)
            processes.append(Process(daemon, series.pid, series.heartbeat, series.ready))
    return State(totals, tuple(sorted(processes, key=lambda process: (process.daemon, process.pid))))


def beating(state: State, now: float) -> dict[str, int]:
    """Return how many processes are ready and alive, by daemon; *now* in seconds of CLOCK_MONOTONIC."""
    ready = [item.daemon for item in state.processes if item.ready and _silence_s(item, now) <= SILENT_S]
    return dict(Counts(ready))


def _silence_s(process: Process, now: float) -> float:
    # A heartbeat of the future was written before the last boot.
    silence_s = now - process.heartbeat
    return silence_s if silence_s >= 0 else math.inf


def _limit_s(daemon: str) -> float:
    """Return for how long a process may be silent. A loader waits for the store, and no mail waits for a loader."""
    return LedgerDaemon.silence_s if daemon.partition(".")[0] == "ledger" else SILENT_S


def problems(state: State, now: float) -> list[str]:
    """Return one line for each thing that is wrong; *now* in seconds of CLOCK_MONOTONIC."""
    found = []
    for process in state.processes:
        if _silence_s(process, now) > _limit_s(process.daemon):
            found.append(f"{process.daemon}: process {process.pid} is silent for {abs(now - process.heartbeat):.1f} s")
    there = Counts(
        item.daemon for item in state.processes if item.ready and _silence_s(item, now) <= _limit_s(item.daemon)
    )
    wanted_by_daemon = state.gauge(metrics.WORKERS_WANTED)
    for (daemon,), wanted in sorted(wanted_by_daemon.items()):
        if there[daemon] < wanted:
            found.append(f"{daemon}: {there[daemon]} of {wanted:.0f} workers are ready")
    for (name,), ok in sorted(state.gauge(metrics.LAST_RELOAD_OK).items()):
        if not ok:
            found.append(f"{name}: the last reload failed, the previous configuration is in use")
    if not wanted_by_daemon:
        found.append("no daemon reports here")
    return found


def notes(state: State, now: float) -> list[str]:
    """Return one line for what is wrong and keeps no mail from flowing; *now* in Unix seconds.

    A balancer must not take a host out of service for a store that is away: its mail waits in the spool.
    """
    loaded = state.gauge(metrics.LEDGER_LOADED).values()
    behind_s = now - max(loaded, default=now)
    if behind_s <= BEHIND_S:
        return []
    waiting_bytes = max(state.gauge(metrics.LEDGER_BACKLOG).values(), default=0.0)
    return [f"ledger: the store is {behind_s:.0f} s behind, {waiting_bytes:.0f} bytes wait"]


class FolderCollector(Collector):
    """The collector of prometheus_client for a folder of series files."""

    def __init__(self, folder: Path, bypass: Path) -> None:
        self._folder = folder
        self._bypass = bypass

    def describe(self) -> Iterable[Family]:
        """Return the families without samples: prometheus_client filters by name[] with their help."""
        return [_family(metric, []) for metric in metrics.CATALOGUE]

    def collect(self) -> Iterable[Family]:
        """Return all families with their samples of this moment."""
        state = collect(self._folder)
        totals = state.totals
        totals[metrics.BYPASS, ()] = [float(os.path.exists(self._bypass))]
        totals[metrics.HEALTHY, ()] = [float(not problems(state, time.monotonic()))]
        series: dict[Metric, list[tuple[Labels, list[float]]]] = {metric: [] for metric in metrics.CATALOGUE}
        for (metric, labels), values in totals.items():
            series[metric].append((labels, values))
        return [_family(metric, samples) for metric, samples in series.items()]


def _family(metric: Metric, samples: Iterable[tuple[Labels, list[float]]]) -> Family:
    if isinstance(metric, Histogram):
        histogram = HistogramMetricFamily(metric.name, metric.help, labels=metric.labels)
        bounds = [*map(repr, metric.buckets), "+Inf"]
        for labels, values in samples:
            histogram.add_metric(labels, list(zip(bounds, accumulate(values[:-1]))), values[-1])
        return histogram
    make = CounterMetricFamily if isinstance(metric, Counter) else GaugeMetricFamily
    family = make(metric.name, metric.help, labels=metric.labels)
    for labels, values in samples:
        family.add_metric(labels, values[0])
    return family


class Response(NamedTuple):
    """What is answered over HTTP."""

    status: str
    body: bytes
    headers: list[tuple[str, str]] = _PLAIN


def application(folder: Path, bypass: Path) -> WSGIApplication:
    """Return the WSGI application; while the file *bypass* exists, gatepost is out of the way of mail."""
    registry = CollectorRegistry()
    registry.register(FolderCollector(folder, bypass))
    metrics_app = make_wsgi_app(registry)

    def route(environ: WSGIEnvironment) -> Response:
        path = environ["PATH_INFO"]
        if environ["REQUEST_METHOD"] not in ("GET", "HEAD"):
            allow = ("Allow", "GET, HEAD")
            return Response("405 Method Not Allowed", b"only GET and HEAD\n", [*_PLAIN, allow])
        if path == "/metrics":
            return _run(metrics_app, {**environ, "REQUEST_METHOD": "GET"})
        if path == "/healthz":
            return _healthz(folder, bypass)
        return Response("200 OK" if path == "/" else "404 Not Found", _POINTER)

    def answer(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        try:
            response = route(environ)
        except Exception as error:  # noqa: BLE001  the outermost shell
            log.fault("metrics request failed", error)
            response = Response("500 Internal Server Error", b"see gatepost's log\n")
        length = ("Content-Length", str(len(response.body)))
        start_response(response.status, [*response.headers, length])
        return [] if environ["REQUEST_METHOD"] == "HEAD" else [response.body]

    return answer


def _run(app: WSGIApplication, environ: WSGIEnvironment) -> Response:
    started: list[tuple[str, list[tuple[str, str]]]] = []

    def start_response(status: str, headers: list[tuple[str, str]], *_: object) -> Any:
        started.append((status, headers))

    body = b"".join(app(environ, start_response))
    status, headers = started[0]
    return Response(status, body, headers)


def _healthz(folder: Path, bypass: Path) -> Response:
    state = collect(folder)
    wrong = problems(state, time.monotonic())
    lines = [*(wrong or ["ok"]), *notes(state, time.time())]
    if os.path.exists(bypass):
        lines = [*lines, "bypass is on: mail passes without gatepost"]
    body = "".join(f"{line}\n" for line in lines).encode("utf-8", "replace")
    return Response("503 Service Unavailable" if wrong else "200 OK", body)


class _Handler(WSGIRequestHandler):
    timeout = _READ_S
    server_version = "gatepost"
    sys_version = ""

    def log_message(self, format: str, *args: object) -> None:
        """Log nothing: scrapes come every few seconds."""

    def get_stderr(self) -> Any:
        """Take what wsgiref has to say of clients that went away or fell silent, and drop it."""
        return io.StringIO()


class Server(ThreadingMixIn, WSGIServer):
    """A thread a connection, at most CONNECTIONS at once, none for longer than CONNECTION_S."""

    daemon_threads = True
    request_queue_size = 64
    timeout = _TICK_S

    def __init__(self, listen: tuple[str, int], app: WSGIApplication) -> None:
        """Listen on host and port; the host may be a name, an IPv4 or an IPv6 address. Raises OSError."""
        found = socket.getaddrinfo(listen[0], listen[1], type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        self.address_family, address = found[0][0], found[0][4]
        self._slots = threading.BoundedSemaphore(CONNECTIONS)
        self._deadlines: dict[Any, float] = {}
        super().__init__(address, _Handler)  # type: ignore[arg-type]
        self.set_app(app)

    def server_bind(self) -> None:
        """Bind without HTTPServer's look-up of the host's name, which may ask the DNS."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        TCPServer.server_bind(self)
        self.server_name, self.server_port = self.server_address[0], self.server_address[1]  # type: ignore[assignment]
        self.setup_environ()

    def process_request(self, request: Any, client_address: Any) -> None:
        """Give the connection a thread, if need be that of the oldest one."""
        if not self._slots.acquire(blocking=False):
            self.hang_up(min([*self._deadlines.values()], default=0.0))
            if not self._slots.acquire(timeout=1.0):
                self.shutdown_request(request)
                return
        self._deadlines[request] = time.monotonic() + CONNECTION_S
        try:
            super().process_request(request, client_address)
        except RuntimeError:
            self._end(request)
            raise

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._end(request)

    def _end(self, request: Any) -> None:
        del self._deadlines[request]
        self._slots.release()

    def hang_up(self, deadline: float) -> None:
        """Hang up on connections that had to end by *deadline*; their threads then end by themselves."""
        for request, ends in list(self._deadlines.items()):
            if ends <= deadline:
                with contextlib.suppress(OSError):
                    request.shutdown(socket.SHUT_RDWR)

    def drain(self) -> None:
        """Answer what has arrived, for DRAIN_S at most: a scrape that meets a reload must not fail."""
        end = time.monotonic() + DRAIN_S
        self.timeout = _GRACE_S
        idle = False
        while not idle and time.monotonic() < end:
            idle = not self._deadlines
            self.handle_request()
            idle = idle and not self._deadlines

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Log what is our own fault; a client that went away is not."""
        error = sys.exc_info()[1]
        if error is not None and not isinstance(error, OSError):
            log.fault("metrics request failed", error)


def probe(listen: tuple[str, int]) -> None:
    """Raise OSError where *listen* can't be had, or a program has it that is no exporter of gatepost's.

    Exporters share an address by SO_REUSEPORT, and would with any program of their user that asks for that, as Postfix
    does: each would get half of the other's connections.
    """
    with Server(listen, lambda environ, start: []) as server:
        family, address = server.address_family, server.server_address
    with socket.socket(family) as alone:
        alone.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            alone.bind(address)
        except OSError:
            if not _is_exporter(*address[:2]):
                raise


def _is_exporter(host: Any, port: int) -> bool:
    connection = http.client.HTTPConnection(str(host), port, timeout=_PROBE_S)
    try:
        connection.request("GET", "/metrics")
        return b"gatepost_" in connection.getresponse().read()
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def serve(listen: tuple[str, int], folder: Path, bypass: Path, series: Optional[Series] = None) -> None:
    """Serve until SIGTERM, SIGINT or SIGUSR1; one that the caller ignores stays ignored. Raises OSError.

    series: this process's own, in which it shows itself ready and alive.
    """
    caught: list[int] = []
    stops = {signal.SIGTERM, signal.SIGINT, signal.SIGUSR1}
    for number in stops:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, lambda number, _: caught.append(number))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, stops)
    with Server(listen, application(folder, bypass)) as server:
        if series:
            series.ready = True
        while not caught:
            server.handle_request()
            server.hang_up(time.monotonic())
            if series:
                series.beat(time.monotonic())
        server.drain()
