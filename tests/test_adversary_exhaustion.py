# SPDX-License-Identifier: GPL-3.0-or-later
"""Clients who want to use up what gatepost has: connections, memory, time, file descriptors.

Real daemons. Who can reach the sockets of milter and policyd is Postfix, or a local user where they listen on a port;
what strangers can send to Postfix comes last.
"""

from __future__ import annotations

import contextlib
import resource
import socket
import struct
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Union

import pytest
from daemonprocess import Gatepost, free_port, poll
from milterclient import MilterClient

Address = Union[str, tuple[str, int]]
MANY = 2000
POLICY = b"request=smtpd_access_policy\nprotocol_state=RCPT\nsender=\nrecipient=john@contoso.com\ninstance=1\n\n"
LOOK_UP, NOT_FOUND = b"29:reverse nobody@vendor.example,", b"9:NOTFOUND ,"
CODED_LOOK_UP, CODED_NOT_FOUND = b"get nobody@contoso.com\n", b"500 not%20found\n"
SOON_S = 10.0


class Target:
    """A daemon with all of its sockets; *honest* asks each in the way of a client that it is for."""

    def __init__(self, gatepost: Gatepost, table_port: int) -> None:
        self.gatepost = gatepost
        self.addresses: dict[str, Address] = {
            "milter": gatepost.socket,
            "policyd": gatepost.policyd_socket,
            "tcp_table": ("127.0.0.1", table_port),
            "metrics": ("127.0.0.1", gatepost.metrics_port),
        }

    def connect(self, name: str) -> socket.socket:
        address = self.addresses[name]
        found = socket.socket(socket.AF_UNIX if isinstance(address, str) else socket.AF_INET)
        found.connect(address)
        found.settimeout(SOON_S)
        return found

    def begin(self, name: str) -> socket.socket:
        """Connect without waiting until that is done: where too many are in a port's queue, it may take seconds."""
        address = self.addresses[name]
        if isinstance(address, str):
            return self.connect(name)
        found = socket.socket()
        found.setblocking(False)
        found.connect_ex(address)
        return found

    def honest(self, name: str) -> float:
        """Return how long an honest client waits for its right answer."""
        began = time.monotonic()
        if name == "milter":
            with MilterClient(self.gatepost.socket) as client:
                assert client.open().send(b"<app@contoso.com>", [b"<x@gmail.example>"]).eom == "continue"
        elif name == "metrics":
            poll(self._scraped, "a page of metrics", SOON_S)
        else:
            request, answer = (LOOK_UP, NOT_FOUND) if name == "policyd" else (CODED_LOOK_UP, CODED_NOT_FOUND)
            with self.connect(name) as client:
                client.sendall(request)
                assert client.recv(100) == answer
        return time.monotonic() - began

    def _scraped(self) -> bool:
        """Ask once: where many connect at this very moment, an honest client may be the oldest, and hung up on."""
        try:
            return self.gatepost.get("/healthz") == (200, "ok\n")
        except OSError:
            return False

    def pids(self) -> list[int]:
        return [pid for name in ("milter", "policyd", "metrics") for pid in self.gatepost.workers(name)]

    def resident_bytes(self) -> int:
        """Return what all workers together have in memory."""
        pages = sum(int(Path(f"/proc/{pid}/statm").read_text().split()[1]) for pid in self.pids())
        return pages * resource.getpagesize()

    def descriptors(self) -> int:
        return sum(len(list(Path(f"/proc/{pid}/fd").iterdir())) for pid in self.pids())


@pytest.fixture(scope="module", autouse=True)
def _many_descriptors() -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < 2 * MANY:
        pytest.skip(f"no more than {hard} open files are allowed here")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 2 * MANY), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Target]:
    folder, port = tmp_path_factory.mktemp("gatepost"), free_port()
    sockets = f'unix:{folder}/policyd.sock"]\ntcp_table_forward = ["inet:127.0.0.1:{port}'
    with Gatepost(folder, command="run", metrics=True, policyd=sockets) as gatepost:
        yield Target(gatepost, port)


SOCKETS = pytest.mark.parametrize("name", ["milter", "policyd", "tcp_table", "metrics"])


@SOCKETS
def test_2000_silent_connections_at_once_keep_no_honest_client_waiting(target: Target, name: str) -> None:
    target.honest(name)
    before, descriptors = target.resident_bytes(), target.descriptors()
    with contextlib.ExitStack() as stack:
        for _ in range(MANY):
            stack.enter_context(target.begin(name))
        assert max(target.honest(name) for _ in range(5)) < SOON_S
        print(name, target.resident_bytes() - before)
        assert target.resident_bytes() - before < 100 << 20
    poll(lambda: target.descriptors() <= descriptors + 5, "the connections are gone")


@SOCKETS
@pytest.mark.parametrize("octets", [b"a", b"9", b"\xff", b"get ", b"a=b\n"])
def test_client_that_sends_without_end_is_cut_off_and_costs_no_memory(target: Target, name: str, octets: bytes) -> None:
    target.honest(name)
    before = target.resident_bytes()
    with target.connect(name) as client, contextlib.suppress(ConnectionError):
        for _ in range(1 << 10):
            client.sendall(octets * ((1 << 20) // len(octets)))
        pytest.fail("it has taken 1 GB")
    assert target.honest(name) < SOON_S
    assert target.resident_bytes() - before < 20 << 20


def test_milter_packet_of_4_gb_that_is_announced_costs_its_connection_only(target: Target) -> None:
    before = target.resident_bytes()
    with target.connect("milter") as client, contextlib.suppress(ConnectionError):
        client.sendall(struct.pack(">I", 0xFFFFFFFF) + b"O")
        assert client.recv(1) == b""
    assert target.honest("milter") < SOON_S
    assert target.resident_bytes() - before < 20 << 20


def flood(client: socket.socket, request: bytes) -> None:
    """Send *request* again and again, until the daemon reads no more of it for a moment."""
    octets = memoryview(request * (1 + 4096 // len(request)) * 64)
    client.settimeout(0.02)
    sent = 0
    with contextlib.suppress(socket.timeout):
        while True:
            sent = (sent + client.send(octets[sent:])) % len(octets)


@pytest.mark.parametrize(
    ("name", "request_"),
    [("policyd", LOOK_UP), ("policyd", POLICY), ("policyd", b"3:x y,"), ("tcp_table", CODED_LOOK_UP)],
    ids=["socketmap", "policy", "shortest", "tcp_table"],
)
def test_clients_that_ask_on_and_on_and_read_no_answer_cost_little_memory_and_keep_nobody_waiting(
    target: Target, name: str, request_: bytes
) -> None:
    target.honest(name)
    before = target.resident_bytes()
    with contextlib.ExitStack() as stack:
        waits = []
        for _ in range(8):
            flood(stack.enter_context(target.connect(name)), request_)
            waits.append(target.honest(name))
        print(name, max(waits), target.resident_bytes() - before)
        assert max(waits) < SOON_S
        assert target.resident_bytes() - before < 100 << 20
