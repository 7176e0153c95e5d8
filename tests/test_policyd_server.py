# SPDX-License-Identifier: GPL-3.0-or-later
"""policyd over real sockets: what a client sends, what comes back, and what a worker survives."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import fcntl
import os
import resource
import select
import signal
import socket
import sqlite3
import sys
import termios
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any, Optional

import pytest
from daemonprocess import free_ports
from nameserver import NameServer

from gatepost.policyd.daemon import Policyd
from gatepost.policyd.server import Connection
from gatepost.policyd.wire import netstring
from gatepost.policyd.worker import Worker
from gatepost.service.config import parse
from gatepost.service.fields import Listen
from gatepost.service.ledger import Bounced, record
from gatepost.service.metrics import ERRORS, LEDGER_RECORDS, MAP_LOOKUPS, POLICY_REQUESTS, SRS_REVERSALS, SRS_REWRITES
from gatepost.service.series import Series, SeriesError
from gatepost.service.snapshot import Snapshot, build
from gatepost.service.store import Store
from gatepost.srs import Address, Keys

EGRESS = netstring(b"egress bob@fabrikam.com")
EGRESS_ANSWER = netstring(b"OK gatepost-egress:[127.0.0.1]:10027")
RCPT = b"request=smtpd_access_policy\nprotocol_state=RCPT\nsender=\nrecipient=john@contoso.com\ninstance=1\n\n"
DUNNO = b"action=DUNNO\n\n"


FORWARD, REVERSE = 2, 3
"""Sockets of Service.connect that speak tcp_table; 0 and 1 speak policy and socketmap, by Unix and TCP."""


def snapshot(folder: Path, nameserver: str = "", **srs: object) -> Snapshot:
    policy, forward, reverse = free_ports(3)
    raw: dict[str, object] = {
        "state_directory": str(folder),
        "organization": [{"name": "contoso", "accepted_domain": [{"domain": "contoso.com"}]}],
        "relay": {"mode": "enforce"},
        "policyd": {
            "listen": [f"unix:{folder}/policyd.sock", f"inet:127.0.0.1:{policy}"],
            "tcp_table_forward": [f"inet:127.0.0.1:{forward}", f"unix:{folder}/forward.sock"],
            "tcp_table_reverse": [f"inet:127.0.0.1:{reverse}"],
        },
        "egress": {"transport": "gatepost-egress:[127.0.0.1]:10027"},
        "srs": srs,
        "dns": {"nameservers": [nameserver] if nameserver else []},
    }
    return build(parse(raw, Path("gatepost.toml")), Keys([b"the first key"]), 0.0)


def srs(snapshot: Snapshot, original: Address = Address("bob", "fabrikam.com")) -> bytes:  # noqa: B008
    return str(snapshot.exchange.forward(original, "bounces", "contoso.com", int(time.time()) // 86400)).encode()


class Service:
    """Worker processes of policyd that share their sockets, started as the supervisor starts them."""

    def __init__(self, folder: Path, snapshot: Snapshot, loop: str) -> None:
        self.folder = folder
        self.snapshot = snapshot
        self.loop = loop
        self.daemon = Policyd(snapshot.config)
        self.daemon.open()
        self.workers: list[int] = []
        self.start()

    def start(self, broken: Optional[Snapshot] = None) -> None:
        number = len(self.workers)
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
        pid = os.fork()
        if pid == 0:
            self._work(number, broken or self.snapshot)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGUSR1})
        self.workers.append(pid)

    def _work(self, number: int, snapshot: Snapshot) -> None:
        status = 1
        try:
            log = os.open(self.folder / "log", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
            os.dup2(log, 2)
            if self.loop == "asyncio":
                sys.modules["uvloop"] = None  # type: ignore[assignment]
            self.daemon.serve(snapshot, Series.create(self.folder / f"policyd-{number}.series"), number)
            status = 0
        finally:
            os._exit(status)

    def connect(self, listen: int = 0) -> socket.socket:
        policyd = self.snapshot.config.policyd
        address = (*policyd.listen, *policyd.tcp_table_forward[:1], *policyd.tcp_table_reverse)[listen]
        return self.connect_to(address)

    def connect_to(self, address: Listen) -> socket.socket:
        if not address.path:
            return socket.create_connection((address.host, address.port), timeout=20)
        client = socket.socket(socket.AF_UNIX)
        client.connect(address.path)  # waits for room in the backlog
        client.settimeout(20)
        return client

    def drain(self, number: int = 0) -> None:
        os.kill(self.workers[number], signal.SIGUSR1)

    def wait(self, number: int = 0) -> int:
        _, status = os.waitpid(self.workers[number], 0)
        self.workers[number] = 0
        return status

    def log(self) -> str:
        return (self.folder / "log").read_text()

    def count(self, metric: Any, *labels: str) -> float:
        totals: dict[Any, list[float]] = {}
        for path in self.folder.glob("policyd-*.series"):
            Series.attach(path).add_to(totals)
        return totals.get((metric, labels), [0.0])[0]

    def close(self) -> None:
        for pid in filter(None, self.workers):
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        self.daemon.close()


@pytest.fixture(params=["uvloop", "asyncio"])
def service(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Service]:
    if request.param == "uvloop":
        pytest.importorskip("uvloop")
    running = Service(tmp_path, snapshot(tmp_path), request.param)
    yield running
    running.close()


def read(client: socket.socket, size: int) -> bytes:
    """Return *size* octets, fewer where the connection ends before."""
    octets = b""
    while len(octets) < size:
        try:
            more = client.recv(size - len(octets))
        except ConnectionResetError:
            break
        if not more:
            break
        octets += more
    return octets


def ask(client: socket.socket, request: bytes, answer: bytes) -> None:
    client.sendall(request)
    assert read(client, len(answer)) == answer


def is_closed(client: socket.socket) -> bool:
    return read(client, 1) == b""


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)


# --- requests and answers


@pytest.mark.parametrize("listen", [0, 1], ids=["unix", "tcp"])
def test_each_socket_serves_both_protocols_one_a_connection(service: Service, listen: int) -> None:
    with service.connect(listen) as policy, service.connect(listen) as socketmap:
        for _ in range(2):
            ask(policy, RCPT, DUNNO)
            ask(socketmap, EGRESS, EGRESS_ANSWER)
            ask(socketmap, netstring(b"reverse " + srs(service.snapshot)), netstring(b"OK bob@fabrikam.com"))
            ask(socketmap, netstring(b"reverse john@contoso.com"), netstring(b"NOTFOUND "))
            ask(socketmap, netstring(b"egress <>"), netstring(b"NOTFOUND "))
            ask(
                socketmap,
                netstring(b"backward x"),
                netstring(b"PERM unknown map: only reverse, forward and egress are served"),
            )


def test_key_that_is_no_utf8_is_not_found(service: Service) -> None:
    with service.connect() as client:
        ask(client, netstring(b"reverse \xff\xfe@contoso.com"), netstring(b"NOTFOUND "))


def test_forged_recipient_is_refused_logged_and_counted(service: Service) -> None:
    forged = srs(service.snapshot).replace(b"=bob@", b"=eve@")
    with service.connect() as client:
        ask(
            client,
            RCPT.replace(b"john@contoso.com", forged),
            b"action=550 5.1.1 SRS address with a wrong hash\n\n",
        )
    assert f"NOQUEUE: action=reject, from=<>, to=<{forged.decode()}>, reason=srs-forged\n" in service.log()
    assert service.count(POLICY_REQUESTS, "RCPT", "reject") == 1
    assert service.count(SRS_REVERSALS, "forged") == 1


def test_rcpt_and_data_of_a_message_are_joined_on_their_connection(service: Service) -> None:
    rcpt = RCPT.replace(b"john@contoso.com", srs(service.snapshot)).replace(b"sender=", b"sender=eve@example.net")
    data = b"request=smtpd_access_policy\nprotocol_state=DATA\nsender=eve@example.net\nrecipient=\n"
    data += b"recipient_count=2\ninstance=1\n\n"
    with service.connect() as client, service.connect() as another:
        ask(client, rcpt, DUNNO)
        ask(client, data, b"action=550 5.7.1 This address takes only bounces (null sender)\n\n")
        ask(another, data, DUNNO)


def test_map_lookups_are_counted_and_not_logged(service: Service) -> None:
    with service.connect() as client:
        ask(client, netstring(b"reverse " + srs(service.snapshot)), netstring(b"OK bob@fabrikam.com"))
        ask(client, netstring(b"egress @fabrikam.com"), netstring(b"NOTFOUND "))
    assert service.log() == ""
    assert service.count(MAP_LOOKUPS, "reverse", "ok") == 1
    assert service.count(MAP_LOOKUPS, "egress", "notfound") == 1
    assert service.count(SRS_REVERSALS, "original") == 1


def test_an_original_in_a_domain_that_is_nobodys_is_answered_and_no_bounce(service: Service) -> None:
    address = srs(service.snapshot, Address("doctor", "gatepost.invalid"))
    with service.connect() as client:
        ask(client, netstring(b"reverse " + address), netstring(b"OK doctor@gatepost.invalid"))
        ask(client, netstring(b"reverse " + srs(service.snapshot)), netstring(b"OK bob@fabrikam.com"))
    assert service.count(SRS_REVERSALS, "original") == 1
    until(lambda: service.count(LEDGER_RECORDS, "spooled") == 1)


@pytest.mark.parametrize(("request_", "answer"), [(RCPT, DUNNO), (EGRESS, EGRESS_ANSWER)], ids=["policy", "socketmap"])
def test_pipelined_requests_are_answered_in_order(service: Service, request_: bytes, answer: bytes) -> None:
    with service.connect() as client:
        ask(client, request_ * 500, answer * 500)


@pytest.mark.parametrize(("request_", "answer"), [(RCPT, DUNNO), (EGRESS, EGRESS_ANSWER)], ids=["policy", "socketmap"])
def test_request_that_arrives_octet_by_octet_is_answered(service: Service, request_: bytes, answer: bytes) -> None:
    with service.connect(1) as client:
        for index in range(len(request_)):
            client.sendall(request_[index : index + 1])
        assert read(client, len(answer)) == answer


def test_client_that_closes_its_sending_side_still_gets_its_answer(service: Service) -> None:
    with service.connect() as client:
        client.sendall(EGRESS)
        client.shutdown(socket.SHUT_WR)
        assert read(client, 1000) == EGRESS_ANSWER


# --- the map forward, and tcp_table


def test_forward_map_is_served_by_socketmap_and_tcp_table(service: Service) -> None:
    made = srs(service.snapshot)
    with service.connect() as socketmap, service.connect(FORWARD) as table:
        ask(socketmap, netstring(b"forward bob@fabrikam.com"), netstring(b"OK " + made))
        ask(table, b"get bob@fabrikam.com\n", b"200 " + made + b"\n")
    assert service.count(MAP_LOOKUPS, "forward", "ok") == 2
    assert service.count(SRS_REWRITES, "bounces") == 2


def test_reverse_map_is_served_by_tcp_table(service: Service) -> None:
    with service.connect(REVERSE) as client:
        ask(client, b"get " + srs(service.snapshot).replace(b"+", b"%2B") + b"\n", b"200 bob@fabrikam.com\n")
        ask(client, b"get john@contoso.com\n", b"500 not%20found\n")
        forged = srs(service.snapshot).replace(b"bob", b"eve")
        ask(client, b"get " + forged + b"\n", b"500 not%20found\n")
    assert service.count(SRS_REVERSALS, "forged") == 1


def test_all_sockets_are_served_at_once(service: Service) -> None:
    policyd = service.snapshot.config.policyd
    with contextlib.ExitStack() as stack:
        clients = [(EGRESS, EGRESS_ANSWER, stack.enter_context(service.connect_to(item))) for item in policyd.listen]
        for item in (*policyd.tcp_table_forward, *policyd.tcp_table_reverse):
            clients.append((b"get x\n", b"500 not%20found\n", stack.enter_context(service.connect_to(item))))
        for _ in range(3):
            for request, answer, client in clients:
                ask(client, request, answer)


@pytest.mark.parametrize("key", [b"", b"<>", b"@contoso.com", b"john@contoso.com"])
def test_null_sender_and_own_senders_are_not_found_and_nothing_is_logged(service: Service, key: bytes) -> None:
    with service.connect() as socketmap, service.connect(FORWARD) as table:
        ask(socketmap, netstring(b"forward " + key), netstring(b"NOTFOUND "))
        ask(table, b"get " + key + b"\n", b"500 not%20found\n")
    assert service.log() == ""
    assert service.count(MAP_LOOKUPS, "forward", "notfound") == 2


def test_tcp_table_other_than_get_costs_its_connection_only(service: Service) -> None:
    with service.connect(FORWARD) as good, service.connect(FORWARD) as bad:
        ask(bad, b"get x\n", b"500 not%20found\n")
        bad.sendall(b"put bob@fabrikam.com x\n")
        assert is_closed(bad)
        ask(good, b"get x\n", b"500 not%20found\n")
    assert "tcp_table request other than get, from " in service.log()


def test_guessing_client_is_put_off(tmp_path: Path) -> None:
    request = RCPT.replace(b"instance=1", b"instance=1\nclient_address=198.51.100.7")
    made = snapshot(tmp_path, failures_per_hour=3)
    good = request.replace(b"john@contoso.com", srs(made))
    bad = good.replace(b"=bob@", b"=eve@")
    with running(tmp_path, made) as service, service.connect() as client:
        for _ in range(3):
            ask(client, good, DUNNO)
            ask(client, bad, b"action=550 5.1.1 SRS address with a wrong hash\n\n")
        for recipient in (bad, good):
            client.sendall(recipient)
            assert client.recv(1000).startswith(b"action=450 4.7.1 ")
        ask(client, good.replace(b"198.51.100.7", b"198.51.100.8"), DUNNO)


def test_vrfy_is_judged_as_rcpt_is_and_its_failures_count_too(tmp_path: Path) -> None:
    vrfy = RCPT.replace(b"RCPT", b"VRFY").replace(b"instance=1", b"instance=1\nclient_address=198.51.100.7")
    made = snapshot(tmp_path, failures_per_hour=2)
    good = vrfy.replace(b"john@contoso.com", srs(made))
    bad = good.replace(b"=bob@", b"=eve@")
    with running(tmp_path, made) as service, service.connect() as client:
        ask(client, vrfy, DUNNO)
        for _ in range(2):
            ask(client, good, DUNNO)
            ask(client, bad, b"action=550 5.1.1 SRS address with a wrong hash\n\n")
        for request in (good, good.replace(b"VRFY", b"RCPT")):
            client.sendall(request)
            assert client.recv(1000).startswith(b"action=450 4.7.1 ")
        ask(client, vrfy, DUNNO)
        assert service.count(POLICY_REQUESTS, "VRFY", "reject") == 2
        assert service.count(POLICY_REQUESTS, "VRFY", "defer") == 1
        assert service.count(SRS_REVERSALS, "forged") == 2


def test_unknown_token_is_no_guess(tmp_path: Path) -> None:
    request = RCPT.replace(b"instance=1", b"instance=1\nclient_address=198.51.100.7")
    unknown = request.replace(b"john@contoso.com", b"bounces+SRS=abcdefghijklmnop=RA@contoso.com")
    made = snapshot(tmp_path, failures_per_hour=1)
    with running(tmp_path, made) as service, service.connect() as client:
        for _ in range(3):
            ask(client, unknown, b"action=550 5.1.1 SRS address that is not known here\n\n")
        ask(client, request.replace(b"john@contoso.com", srs(made)), DUNNO)
        assert service.count(SRS_REVERSALS, "unknown") == 3


def test_sender_that_cannot_be_rewritten_is_itself_in_the_forward_map_counted_apart_and_logged(tmp_path: Path) -> None:
    sender = b"bob+" + b"b" * 240 + b"@fabrikam.com"
    with running(tmp_path, snapshot(tmp_path, form="long")) as service:
        with service.connect() as client, service.connect(FORWARD) as table:
            assert asked(client, b"forward " + sender) == b"OK " + sender
            assert asked(client, b"forward bob@") == b"OK bob@"
            ask(table, b"get " + sender + b"\n", b"200 " + sender + b"\n")
            for form in ("bounces", "forward", "long", "compact", "none"):
                assert service.count(SRS_REWRITES, form) == 0
            assert asked(client, b"forward bob@fabrikam.com") == b"OK " + srs(service.snapshot)
        assert service.count(SRS_REWRITES, "bounces") == 1
        assert service.count(MAP_LOOKUPS, "forward", "ok") == 1
        assert service.count(MAP_LOOKUPS, "forward", "unrewritable") == 3
        assert "map forward: <bob+" in service.log()


# --- the store


@contextlib.contextmanager
def running(folder: Path, made: Snapshot, loop: str = "asyncio") -> Iterator[Service]:
    service = Service(folder, made, loop)
    try:
        yield service
    finally:
        service.close()


@pytest.fixture(params=["uvloop", "asyncio"])
def compact(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Service]:
    if request.param == "uvloop":
        pytest.importorskip("uvloop")
    with running(tmp_path, snapshot(tmp_path, form="compact"), request.param) as service:
        yield service


FORWARD_REQUEST = netstring(b"forward bob@fabrikam.com")


def netstring_in(client: socket.socket) -> bytes:
    """Return the answer to one socketmap request."""
    size = b""
    while not size.endswith(b":"):
        octet = read(client, 1)
        assert octet
        size += octet
    return read(client, int(size[:-1]) + 1)[:-1]


def asked(client: socket.socket, request: bytes) -> bytes:
    client.sendall(netstring(request))
    return netstring_in(client)


@contextlib.contextmanager
def locked(service: Service) -> Iterator[None]:
    """Keep the store from being written."""
    with contextlib.closing(sqlite3.connect(service.folder / "gatepost.db", isolation_level=None)) as database:
        database.execute("BEGIN EXCLUSIVE")
        yield


@contextlib.contextmanager
def away(service: Service) -> Iterator[None]:
    """Put something in the place of the store's file that is no database."""
    files = {path: path.with_name(f"x{path.name}") for path in service.folder.glob("gatepost.db*")}
    for path, aside in files.items():
        path.rename(aside)
    (service.folder / "gatepost.db").mkdir()
    yield
    (service.folder / "gatepost.db").rmdir()
    for path, aside in files.items():
        aside.rename(path)


def test_compact_address_is_in_the_store_before_the_answer(compact: Service) -> None:
    with compact.connect() as client:
        answer = asked(client, b"forward bob@fabrikam.com")
        token = answer.partition(b"=")[2].partition(b"=")[0].decode()
        other = Store(compact.snapshot.config.store_url)
        try:
            assert other.found(token) == "bob@fabrikam.com"
        finally:
            other.close()
        assert asked(client, b"reverse " + answer[3:]) == b"OK bob@fabrikam.com"
    with compact.connect(FORWARD) as table, compact.connect(REVERSE) as back:
        ask(table, b"get bob@fabrikam.com\n", b"200 " + answer[3:] + b"\n")
        ask(back, b"get " + answer[3:] + b"\n", b"200 bob@fabrikam.com\n")
    assert compact.count(SRS_REWRITES, "compact") == 2


def test_another_worker_reverses_what_one_has_made(compact: Service) -> None:
    with compact.connect() as client:
        made = asked(client, b"forward bob@fabrikam.com")[3:]
    compact.start()
    compact.drain(0)
    compact.wait(0)
    with compact.connect() as client:
        assert asked(client, b"reverse " + made) == b"OK bob@fabrikam.com"


def test_policy_takes_a_compact_recipient_and_refuses_an_unknown_token(compact: Service) -> None:
    with compact.connect() as client, compact.connect() as policy:
        made = asked(client, b"forward bob@fabrikam.com")[3:]
        ask(policy, RCPT.replace(b"john@contoso.com", made), DUNNO)
        unknown = b"bounces+SRS=abcdefghijklmnop=RA@contoso.com"
        refused = b"action=550 5.1.1 SRS address that is not known here\n\n"
        ask(policy, RCPT.replace(b"john@contoso.com", unknown), refused)
    assert f"to=<{unknown.decode()}>, reason=srs-unknown\n" in compact.log()


def test_without_its_store_long_forms_are_made_and_tokens_are_a_temporary_failure(compact: Service) -> None:
    with compact.connect() as client:
        made = asked(client, b"forward bob@fabrikam.com")[3:]
    compact.drain(0)
    compact.wait(0)
    with away(compact):
        compact.start()
        with compact.connect() as client, compact.connect(REVERSE) as back, compact.connect(FORWARD) as table:
            assert asked(client, b"forward bob@fabrikam.com") == b"OK " + srs(compact.snapshot)
            assert asked(client, b"forward " + b"b" * 240 + b"@x.example").startswith(b"TEMP ")
            assert asked(client, b"reverse " + made).startswith(b"TEMP ")
            back.sendall(b"get " + made + b"\n")
            assert back.recv(1000).startswith(b"400 ")
            table.sendall(b"get " + b"b" * 240 + b"@x.example\n")
            assert table.recv(1000).startswith(b"400 ")
            assert asked(client, b"reverse " + srs(compact.snapshot)) == b"OK bob@fabrikam.com"
        with compact.connect() as policy:
            deferred = b"action=451 4.3.0 gatepost: its store cannot be asked now, please try again later\n\n"
            ask(policy, RCPT.replace(b"john@contoso.com", made), deferred)
    assert "warning: store" in compact.log()
    assert compact.count(ERRORS, "policyd", "store") == 6
    with compact.connect() as client:
        until(lambda: asked(client, b"reverse " + made) == b"OK bob@fabrikam.com")
        until(lambda: asked(client, b"forward bob@fabrikam.com") == b"OK " + made)


def test_requests_behind_one_that_waits_for_the_store_are_answered_in_order(compact: Service) -> None:
    with compact.connect() as client, compact.connect() as other:
        made = asked(client, b"forward bob@fabrikam.com")
        with locked(compact):
            client.sendall(EGRESS + netstring(b"forward ann@fabrikam.com") + EGRESS + FORWARD_REQUEST + EGRESS)
            assert b"OK " + netstring_in(client)[3:] == EGRESS_ANSWER[3:-1]
            began = time.monotonic()
            ask(other, EGRESS * 50, EGRESS_ANSWER * 50)
            assert time.monotonic() - began < 1
        second = netstring_in(client)
        assert second.startswith(b"OK bounces+SRS=")
        assert second != made
        assert [netstring_in(client) for _ in range(3)] == [EGRESS_ANSWER[3:-1], made, EGRESS_ANSWER[3:-1]]


def test_forward_waits_bounded_for_a_store_that_hangs_and_the_egress_map_not_at_all(compact: Service) -> None:
    with compact.connect() as client, compact.connect() as other:
        assert asked(client, b"forward bob@fabrikam.com").startswith(b"OK ")
        with locked(compact):
            began = time.monotonic()
            client.sendall(netstring(b"forward ann@fabrikam.com"))
            while not select.select([client], [], [], 0)[0]:
                asked_at = time.monotonic()
                ask(other, EGRESS, EGRESS_ANSWER)
                assert time.monotonic() - asked_at < 0.5
            assert time.monotonic() - began < 4
            assert netstring_in(client).endswith(b"=fabrikam.com=ann@contoso.com")


def test_client_that_leaves_while_its_request_waits_disturbs_nobody(compact: Service) -> None:
    with compact.connect() as other:
        assert asked(other, b"forward bob@fabrikam.com").startswith(b"OK ")
        with locked(compact):
            for number in range(5):
                with compact.connect() as client:
                    client.sendall(netstring(b"forward u%d@fabrikam.com" % number) + EGRESS)
            ask(other, EGRESS, EGRESS_ANSWER)
        assert asked(other, b"forward bob@fabrikam.com").startswith(b"OK ")
        compact.drain()
        assert compact.wait() == 0
    assert "error" not in compact.log()


def test_drain_answers_a_request_that_waits_for_the_store(compact: Service) -> None:
    with compact.connect() as client, compact.connect() as idle:
        assert asked(client, b"forward bob@fabrikam.com").startswith(b"OK ")
        ask(idle, EGRESS, EGRESS_ANSWER)
        with locked(compact):
            client.sendall(netstring(b"forward ann@fabrikam.com") + EGRESS)
            ask(idle, EGRESS, EGRESS_ANSWER)
            compact.drain()
            assert is_closed(idle)
        assert netstring_in(client).startswith(b"OK bounces+SRS=")
        assert netstring_in(client) == EGRESS_ANSWER[3:-1]
        assert is_closed(client)
        assert compact.wait() == 0


def rows(folder: Path, token: str) -> int:
    with contextlib.closing(sqlite3.connect(folder / "gatepost.db")) as database:
        found = database.execute("SELECT count(*) FROM srs_token WHERE token = ?", (token,)).fetchone()
    return int(found[0])


def test_first_worker_alone_clears_the_store_of_what_has_expired(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    defaults = Store.__init__.__kwdefaults__
    assert defaults
    monkeypatch.setitem(defaults, "expire_after_s", 0.0)
    made = snapshot(tmp_path, form="compact")
    store = Store(made.config.store_url)
    store.stored("old", "bob@fabrikam.com", 1)
    store.close()
    with running(tmp_path, made) as service:
        service.drain(0)
        service.wait(0)
        service.start()
        with service.connect() as client:
            for number in range(20):
                assert asked(client, b"forward u%d@fabrikam.com" % number).startswith(b"OK bounces+SRS=")
        assert rows(tmp_path, "old") == 1
    with running(tmp_path, made) as service, service.connect() as client:
        assert asked(client, b"forward bob@fabrikam.com").startswith(b"OK bounces+SRS=")
        until(lambda: rows(tmp_path, "old") == 0)


class Pair:
    """A client of a worker in this very process, and the worker's end of its socket."""

    def __init__(self, send_octets: int = 0) -> None:
        self.client, self.served = socket.socketpair()
        self.client.setblocking(False)
        if send_octets:
            self.served.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, send_octets)

    async def connect(self, worker: Worker) -> Pair:
        await asyncio.get_running_loop().connect_accepted_socket(lambda: Connection(worker), self.served)
        return self

    def send(self, octets: bytes) -> None:
        assert self.client.send(octets) == len(octets)

    async def read(self, size: int) -> bytes:
        octets = b""
        while len(octets) < size:
            octets += await asyncio.get_running_loop().sock_recv(self.client, size - len(octets))
        return octets

    async def ask(self, request: bytes, answer: bytes) -> None:
        self.send(request)
        assert await self.read(len(answer)) == answer

    def unread(self) -> int:
        """Return how many octets the worker has not read."""
        return int.from_bytes(fcntl.ioctl(self.served.fileno(), termios.FIONREAD, bytes(4)), sys.byteorder)


@contextlib.asynccontextmanager
async def worker_whose_store_is_locked(folder: Path) -> AsyncIterator[tuple[Worker, sqlite3.Connection]]:
    """Yield a worker that has opened its store, and what unlocks that by its rollback()."""
    worker = Worker(snapshot(folder, form="compact"), Series.create(folder / "policyd-0.series"))
    await asyncio.wrap_future(worker.store.put("first", "bob@fabrikam.com", 1))
    with contextlib.closing(sqlite3.connect(folder / "gatepost.db", isolation_level=None)) as database:
        database.execute("BEGIN EXCLUSIVE")
        yield worker, database
    worker.store.close()


def test_client_that_goes_on_asking_while_its_request_waits_is_not_read_from(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with worker_whose_store_is_locked(tmp_path) as (worker, database):
            waiting, other = await Pair().connect(worker), await Pair().connect(worker)
            waiting.send(FORWARD_REQUEST)
            await other.ask(EGRESS, EGRESS_ANSWER)
            waiting.send(EGRESS * 1000)
            for _ in range(3):
                await other.ask(EGRESS, EGRESS_ANSWER)
            assert waiting.unread() == 1000 * len(EGRESS)
            database.rollback()
            assert b"=" in await waiting.read(len(netstring(b"OK bounces+SRS=abcdefghijklmnop=RA@contoso.com")))
            assert await waiting.read(1000 * len(EGRESS_ANSWER)) == EGRESS_ANSWER * 1000
            assert worker.half_sent == {}

    asyncio.run(scenario())


MANY = 4000
"""So many answers are more than a connection with a small socket buffer holds before it stops to read."""


def test_client_that_reads_its_answers_while_a_request_waits_is_not_read_from_either(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with worker_whose_store_is_locked(tmp_path) as (worker, _):
            waiting, other = await Pair(send_octets=4096).connect(worker), await Pair().connect(worker)
            waiting.send(EGRESS * MANY + FORWARD_REQUEST)
            await other.ask(EGRESS, EGRESS_ANSWER)
            assert waiting.unread() == 0
            waiting.send(EGRESS * 10)
            assert await waiting.read(MANY * len(EGRESS_ANSWER)) == EGRESS_ANSWER * MANY
            for _ in range(3):
                await other.ask(EGRESS, EGRESS_ANSWER)
            assert waiting.unread() == 10 * len(EGRESS)

    asyncio.run(scenario())


def test_client_that_does_not_read_is_not_read_from_after_its_request_that_waited_either(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with worker_whose_store_is_locked(tmp_path) as (worker, database):
            waiting, other = await Pair(send_octets=4096).connect(worker), await Pair().connect(worker)
            waiting.send(EGRESS * MANY + FORWARD_REQUEST)
            await other.ask(EGRESS, EGRESS_ANSWER)
            assert len(worker.half_sent) == 1
            database.rollback()
            waiting.send(EGRESS * 10)
            for _ in range(100):  # more turns than its requests would take
                await other.ask(EGRESS, EGRESS_ANSWER)
            assert waiting.unread() == 10 * len(EGRESS)
            await waiting.read(MANY * len(EGRESS_ANSWER))
            made = len(netstring(b"OK bounces+SRS=abcdefghijklmnop=RA@contoso.com"))
            assert (await waiting.read(made + 10 * len(EGRESS_ANSWER))).endswith(EGRESS_ANSWER * 10)

    asyncio.run(scenario())


def test_each_answer_gives_what_follows_it_on_a_connection_30_seconds_of_its_own(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with worker_whose_store_is_locked(tmp_path) as (worker, _):
            client, other = await Pair().connect(worker), await Pair().connect(worker)
            client.send(FORWARD_REQUEST + EGRESS[:5])
            await other.ask(EGRESS, EGRESS_ANSWER)
            (first,) = worker.half_sent.values()
            answer = netstring(b"OK " + srs(worker.snapshot))
            assert await client.read(len(answer)) == answer  # the long form, after a second, for the store is locked
            (second,) = worker.half_sent.values()
            assert second > first
            worker.tick(first + 30.001)
            await client.ask(EGRESS[5:], EGRESS_ANSWER)
            assert worker.half_sent == {}

    asyncio.run(scenario())


# --- only_spf


PUBLISHED = {
    "covers.example": {"TXT": ['"v=spf1 ip4:192.0.2.1 -all"']},
    "fabrikam.com": {"TXT": ['"v=spf1 ip4:198.51.100.1 -all"']},
}


@contextlib.contextmanager
def with_spf(folder: Path, dns: NameServer, form: str = "auto") -> Iterator[Service]:
    address = f"127.0.0.1:{dns.address[1]}"
    made = snapshot(folder, address, form=form, only_spf=True, outgoing_addresses=["192.0.2.1"])
    with running(folder, made) as service:
        yield service


def test_forward_map_rewrites_only_where_spf_is_in_the_way(tmp_path: Path) -> None:
    with NameServer(PUBLISHED) as dns, with_spf(tmp_path, dns) as service, service.connect() as client:
        assert asked(client, b"forward bob@covers.example") == b"NOTFOUND "
        assert asked(client, b"forward bob@fabrikam.com") == b"OK " + srs(service.snapshot)
        assert asked(client, b"egress bob@covers.example") == b"NOTFOUND "
        assert netstring(asked(client, b"egress bob@fabrikam.com")) == EGRESS_ANSWER


def test_egress_map_answers_at_once_while_dns_is_silent_and_forward_waits_bounded(tmp_path: Path) -> None:
    with NameServer(PUBLISHED) as dns, with_spf(tmp_path, dns) as service, contextlib.ExitStack() as stack:
        dns.open.clear()
        egress = stack.enter_context(service.connect())
        began = time.monotonic()
        assert netstring(asked(egress, b"egress bob@covers.example")) == EGRESS_ANSWER
        assert time.monotonic() - began < 1
        clients = [stack.enter_context(service.connect()) for _ in range(40)]
        for number, client in enumerate(clients):
            client.sendall(netstring(b"forward bob@d%d.example" % number))
        began = time.monotonic()
        assert netstring(asked(egress, b"egress bob@covers.example")) == EGRESS_ANSWER
        assert time.monotonic() - began < 1
        for client in clients:
            assert netstring_in(client).startswith(b"OK bounces+SRS=")
        assert time.monotonic() - began < 6
        dns.open.set()


def test_forward_map_answers_from_what_spf_knows_while_slow_domains_are_waited_for(tmp_path: Path) -> None:
    with NameServer(PUBLISHED) as dns, with_spf(tmp_path, dns) as service, contextlib.ExitStack() as stack:
        known = stack.enter_context(service.connect())
        answers = {b"bob@covers.example": b"NOTFOUND ", b"bob@fabrikam.com": b"OK " + srs(service.snapshot)}
        for sender, answer in answers.items():
            assert asked(known, b"forward " + sender) == answer
        dns.open.clear()
        clients = [stack.enter_context(service.connect()) for _ in range(40)]
        before = len(dns.questions)
        for number, client in enumerate(clients):
            client.sendall(netstring(b"forward bob@d%d.example" % number))
        dns.wait_for_questions(before + 1)
        for sender, answer in answers.items():
            assert asked(known, b"forward " + sender) == answer
        assert select.select(clients, [], [], 0)[0] == []
        dns.open.set()
        for client in clients:
            assert netstring_in(client).startswith((b"OK bounces+SRS=", b"NOTFOUND "))


def test_sender_that_cannot_be_rewritten_waits_in_the_queue_until_spf_is_known(tmp_path: Path) -> None:
    later = b"OK retry:4.4.3 gatepost: the SPF record of the sender's domain is not known yet"
    bounced = b"OK error:5.1.7 Sender address is too long or malformed, so it can't be rewritten for relaying"
    spared, not_spared = (b"egress " + b"b" * 240 + domain for domain in (b"@covers.example", b"@fabrikam.com"))
    with NameServer(PUBLISHED) as dns, with_spf(tmp_path, dns, form="long") as service, service.connect() as client:
        dns.open.clear()
        assert [asked(client, spared), asked(client, not_spared)] == [later, later]
        assert netstring(asked(client, b"egress bob@x.example")) == EGRESS_ANSWER
        dns.open.set()
        until(lambda: asked(client, spared) == b"NOTFOUND ")
        until(lambda: asked(client, not_spared) != later)
        assert asked(client, not_spared) == bounced


def test_sender_without_a_domain_is_bounced_at_once_for_spf_can_never_know_it(tmp_path: Path) -> None:
    with NameServer(PUBLISHED) as dns, with_spf(tmp_path, dns) as service, service.connect() as client:
        assert asked(client, b"egress bob@").startswith(b"OK error:5.1.7 ")
        assert dns.questions == []


# --- clients that misbehave


@pytest.mark.parametrize(
    "junk",
    [
        b"\0",
        b"EHLO x\n\n",
        b"5:a",
        b"99999:",
        b"3:abc,",
        b"x" * 70000,
        RCPT[:-1] + b"NUL=\0\n\n",
        b"GET / HTTP/1.1\r\n",
    ],
    ids=["NUL", "SMTP", "bad netstring", "endless netstring", "no key", "endless line", "NUL inside", "HTTP"],
)
def test_broken_protocol_costs_only_its_own_connection(service: Service, junk: bytes) -> None:
    with service.connect() as good, service.connect() as bad:
        ask(good, EGRESS, EGRESS_ANSWER)
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            bad.sendall(junk)
        bad.shutdown(socket.SHUT_WR) if junk in (b"5:a", b"GET / HTTP/1.1\r\n") else None
        assert is_closed(bad)
        ask(good, EGRESS, EGRESS_ANSWER)


def test_many_broken_connections_are_counted_each_and_logged_once_a_second(service: Service) -> None:
    begun = time.monotonic()
    for _ in range(200):
        with service.connect() as bad:
            bad.sendall(b"\0")
            assert is_closed(bad)
    assert service.count(ERRORS, "policyd", "protocol") == 200
    lines = service.log().splitlines()
    assert "neither a policy nor a socketmap request, from a Unix socket, connection closed" in lines[0]
    assert len(lines) <= 1 + time.monotonic() - begun


def test_half_sent_request_is_cut_off_after_30_seconds_and_an_idle_connection_is_not(tmp_path: Path) -> None:
    async def scenario() -> None:
        loop = asyncio.get_running_loop()
        worker = Worker(snapshot(tmp_path), Series.create(tmp_path / "policyd-0.series"))
        clients = []
        for _ in range(2):
            client, served = socket.socketpair()
            client.setblocking(False)
            await loop.connect_accepted_socket(lambda: Connection(worker), served)
            await loop.sock_sendall(client, EGRESS)
            assert await loop.sock_recv(client, 1000) == EGRESS_ANSWER
            clients.append(client)
        idle, half = clients
        await loop.sock_sendall(half, EGRESS + EGRESS[:5])
        assert await loop.sock_recv(half, 1000) == EGRESS_ANSWER
        now = time.monotonic()
        worker.tick(now + 29)
        await loop.sock_sendall(half, EGRESS[5:8])
        await loop.sock_sendall(idle, EGRESS)
        assert await loop.sock_recv(idle, 1000) == EGRESS_ANSWER
        worker.tick(now + 29)
        assert len(worker.half_sent) == 1
        worker.tick(now + 31)
        assert await loop.sock_recv(half, 1000) == b""
        await loop.sock_sendall(idle, EGRESS)
        assert await loop.sock_recv(idle, 1000) == EGRESS_ANSWER
        assert worker.half_sent == {}
        idle.close()
        half.close()

    asyncio.run(scenario())


def test_client_that_does_not_read_is_read_from_no_more_until_it_does(service: Service) -> None:
    with service.connect() as client, service.connect() as other:
        client.setblocking(False)
        sent = 0
        while select.select([], [client], [], 0.5)[1]:
            sent += client.send((EGRESS * 1000)[sent % len(EGRESS) :])
            assert sent < 20_000_000
        ask(other, EGRESS, EGRESS_ANSWER)
        client.settimeout(20)
        complete = sent // len(EGRESS)
        assert read(client, complete * len(EGRESS_ANSWER)) == EGRESS_ANSWER * complete


@pytest.fixture
def descriptors() -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < 6000:
        pytest.skip("needs 6,000 descriptors")
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


@pytest.mark.usefixtures("descriptors")
def test_a_thousand_idle_connections_hold_nobody_up(service: Service) -> None:
    with contextlib.ExitStack() as stack:
        idle = [stack.enter_context(service.connect()) for _ in range(1000)]
        client = stack.enter_context(service.connect())
        begun = time.monotonic()
        ask(client, EGRESS * 100, EGRESS_ANSWER * 100)
        assert time.monotonic() - begun < 5
        for connection in idle:
            ask(connection, EGRESS, EGRESS_ANSWER)


@pytest.mark.usefixtures("descriptors")
def test_connection_beyond_5000_is_closed_and_the_others_are_served(service: Service) -> None:
    with contextlib.ExitStack() as stack:
        held = [stack.enter_context(service.connect()) for _ in range(5000)]
        ask(held[-1], EGRESS, EGRESS_ANSWER)
        with service.connect() as excess:
            assert is_closed(excess)
        ask(held[0], EGRESS, EGRESS_ANSWER)
    assert "more than 5000 connections in one worker, connection closed" in service.log()


# --- faults inside gatepost


@pytest.fixture
def faulty(service: Service) -> Service:
    """A worker that raises on whatever looks like an SRS address."""
    service.drain()
    service.wait()
    service.start(dataclasses.replace(service.snapshot, exchange=None))  # type: ignore[arg-type]
    return service


def test_fault_in_a_map_is_temp_logged_counted_and_over(faulty: Service) -> None:
    with faulty.connect() as client:
        ask(client, netstring(b"reverse " + srs(faulty.snapshot)), netstring(b"TEMP gatepost: internal error"))
        ask(client, netstring(b"reverse john@contoso.com"), netstring(b"NOTFOUND "))
    assert "error: internal error in a map look-up\n" in faulty.log()
    assert "AttributeError" in faulty.log()
    assert faulty.count(ERRORS, "policyd", "socketmap") == 1


def test_fault_in_a_policy_request_closes_without_an_answer_to_it(faulty: Service) -> None:
    with faulty.connect() as client, faulty.connect() as other:
        client.sendall(RCPT + RCPT.replace(b"john@contoso.com", srs(faulty.snapshot)) + RCPT)
        assert read(client, 1000) == DUNNO
        ask(other, RCPT, DUNNO)
    assert faulty.count(ERRORS, "policyd", "policy") == 1


# --- drain


def test_drain_closes_idle_connections_leaves_the_socket_file_and_returns(service: Service) -> None:
    path = service.snapshot.config.policyd.listen[0].path
    with service.connect() as idle, service.connect(1) as used:
        ask(idle, EGRESS, EGRESS_ANSWER)
        ask(used, RCPT, DUNNO)
        service.drain()
        assert is_closed(idle)
        assert is_closed(used)
        assert service.wait() == 0
    assert os.path.exists(path)


def test_drain_answers_every_request_that_was_sent_before_it(service: Service) -> None:
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(service.connect(number % 2)) for number in range(200)]
        for client in clients:
            ask(client, EGRESS, EGRESS_ANSWER)
        for client in clients:
            client.sendall(EGRESS)
        service.drain()
        assert [read(client, 1000) for client in clients] == [EGRESS_ANSWER] * 200
        assert service.wait() == 0


def test_drain_waits_for_the_rest_of_a_request_and_answers_it(service: Service) -> None:
    with service.connect() as idle, service.connect() as half:
        ask(idle, EGRESS, EGRESS_ANSWER)
        ask(half, EGRESS, EGRESS_ANSWER)
        half.sendall(EGRESS[:5])
        service.drain()
        assert is_closed(idle)
        half.sendall(EGRESS[5:])
        assert read(half, 1000) == EGRESS_ANSWER
        assert service.wait() == 0


def test_drain_ends_within_seconds_though_a_request_stays_half_sent(service: Service) -> None:
    with service.connect() as half:
        ask(half, EGRESS, EGRESS_ANSWER)
        half.sendall(EGRESS[:5])
        begun = time.monotonic()
        service.drain()
        assert service.wait() == 0
        assert time.monotonic() - begun < 7
        assert is_closed(half)


def test_rolling_replacement_under_load_loses_no_request_of_a_client_that_tries_twice(
    service: Service,
) -> None:
    def asked(number: int) -> None:
        for attempt in range(2):  # a connection that was closed while idle: Postfix opens another
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                clients[number].sendall(EGRESS)
                answer = read(clients[number], len(EGRESS_ANSWER))
                if answer == EGRESS_ANSWER:
                    return
                assert answer == b""
            assert attempt == 0
            clients[number].close()
            clients[number] = service.connect(number % 2)

    clients = [service.connect(number % 2) for number in range(20)]
    for generation in range(3):
        service.start()
        service.drain(generation)
        while os.waitpid(service.workers[generation], os.WNOHANG) == (0, 0):
            for number in range(20):
                asked(number)
        service.workers[generation] = 0
        for number in range(20):
            asked(number)
    for client in clients:
        client.close()


def ready(service: Service, number: int) -> bool:
    with contextlib.suppress(OSError, SeriesError):  # not there, or not all of it
        return Series.attach(service.folder / f"policyd-{number}.series").ready
    return False


@pytest.mark.parametrize("listen", [0, 1, FORWARD], ids=["unix", "tcp", "tcp_table"])
def test_all_connections_are_answered_while_one_of_two_workers_is_stopped(service: Service, listen: int) -> None:
    service.start()
    until(lambda: ready(service, 0) and ready(service, 1))
    os.kill(service.workers[0], signal.SIGSTOP)
    os.waitpid(service.workers[0], os.WUNTRACED)
    request, answer = (b"get @\n", b"500 not%20found\n") if listen == FORWARD else (EGRESS, EGRESS_ANSWER)
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(service.connect(listen)) for _ in range(100)]
        for client in clients:
            client.sendall(request)
        assert [read(client, len(answer)) for client in clients] == [answer] * 100


def test_all_connections_are_answered_after_one_of_two_workers_was_killed(service: Service) -> None:
    service.start()
    until(lambda: ready(service, 0) and ready(service, 1))
    os.kill(service.workers[0], signal.SIGKILL)
    service.wait(0)
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(service.connect(number % 2)) for number in range(100)]
        for client in clients:
            ask(client, EGRESS, EGRESS_ANSWER)


def test_connections_that_wait_to_be_taken_are_answered_where_the_only_worker_drains(service: Service) -> None:
    until(lambda: ready(service, 0))
    os.kill(service.workers[0], signal.SIGSTOP)
    os.waitpid(service.workers[0], os.WUNTRACED)
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(service.connect(number % 2)) for number in range(100)]
        for client in clients:
            client.sendall(EGRESS)
        service.drain()
        os.kill(service.workers[0], signal.SIGCONT)
        assert [read(client, 1000) for client in clients] == [EGRESS_ANSWER] * 100
        assert service.wait() == 0


@pytest.mark.parametrize("count", [1, 250])
def test_bounces_are_in_the_spool_once_a_worker_has_drained(service: Service, count: int) -> None:
    senders = [Address(f"bob{number}", "fabrikam.com") for number in range(count)]
    rcpts = [srs(service.snapshot, sender) for sender in senders]
    with service.connect() as client:
        client.sendall(b"".join(netstring(b"reverse " + rcpt) for rcpt in rcpts))
        answers = b"".join(netstring(b"OK " + str(sender).encode()) for sender in senders)
        assert read(client, len(answers)) == answers
        service.drain()
        assert service.wait() == 0
    lines = b"".join(path.read_bytes() for path in service.folder.glob("ledger/*.spool")).splitlines()
    bounces = [found.address.encode() for found in map(record, lines) if isinstance(found, Bounced)]
    assert sorted(bounces) == sorted(rcpt.lower() for rcpt in rcpts)


def test_worker_shows_that_it_is_ready_and_alive(service: Service) -> None:
    with service.connect() as client:
        ask(client, EGRESS, EGRESS_ANSWER)
    series = Series.attach(service.folder / "policyd-0.series")
    until(lambda: series.ready)  # after the last of its sockets, where the first may answer already
    before = series.heartbeat
    until(lambda: series.heartbeat > before)
