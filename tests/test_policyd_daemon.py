# SPDX-License-Identifier: GPL-3.0-or-later
"""Real processes of `gatepost policyd`: no connection and no bounce is lost while workers are stopped or replaced."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sqlite3
from pathlib import Path

import pytest
from daemonprocess import Gatepost, gone, poll

NOTFOUND = b"9:NOTFOUND ,"


@pytest.fixture
def gatepost(tmp_path: Path) -> Gatepost:
    """policyd with two workers, not started."""
    made = Gatepost(tmp_path, command="policyd", more='[egress]\ntransport = "gatepost-egress:[127.0.0.1]:10027"\n')
    text = made.configuration.read_text()
    listen = f'[policyd]\nlisten = ["unix:{made.policyd_socket}"]\nworkers = '
    assert f"{listen}1" in text
    made.configuration.write_text(text.replace(f"{listen}1", f"{listen}2"))
    return made


def connect(gatepost: Gatepost) -> socket.socket:
    client = socket.socket(socket.AF_UNIX)
    client.settimeout(20)
    client.connect(gatepost.policyd_socket)
    return client


def ask(client: socket.socket, request: str) -> bytes:
    client.sendall(b"%d:%b," % (len(request), request.encode()))
    return client.recv(1000)


def come_back(client: socket.socket, count: int, name: str) -> list[str]:
    """Have mail come back to *count* rewritten senders, and return their addresses as the ledger has them."""
    found = []
    for number in range(count):
        sender = f"{name}{number}@fabrikam.com"
        address = ask(client, f"forward {sender}").decode().partition("OK ")[2].rstrip(",")
        assert ask(client, f"reverse {address}").endswith(f":OK {sender},".encode())
        found.append(address.lower())
    return found


def bounces(gatepost: Gatepost) -> list[str]:
    with contextlib.closing(sqlite3.connect(gatepost.state / "gatepost.db")) as store:
        return [address for (address,) in store.execute("SELECT address FROM bounce")]


def test_bounces_are_in_the_store_after_a_termination(gatepost: Gatepost) -> None:
    with gatepost, connect(gatepost) as client:
        expected = come_back(client, 130, "bob")
    assert sorted(bounces(gatepost)) == sorted(expected)


def test_bounces_are_in_the_store_after_a_reload(gatepost: Gatepost) -> None:
    with gatepost:
        before = gatepost.workers("policyd")
        with connect(gatepost) as client:
            expected = come_back(client, 20, "bob")
            gatepost.signal(signal.SIGHUP)
            gatepost.wait_for_log("configuration reloaded$")
        poll(lambda: gone(before), "the workers from before have ended")
        with connect(gatepost) as client:
            expected += come_back(client, 20, "eve")
    assert sorted(bounces(gatepost)) == sorted(expected)


def test_connections_are_answered_while_one_worker_is_stopped_and_it_is_replaced(gatepost: Gatepost) -> None:
    with gatepost, contextlib.ExitStack() as stack:
        first, second = gatepost.workers("policyd")
        os.kill(first, signal.SIGSTOP)
        for _ in range(50):
            assert ask(stack.enter_context(connect(gatepost)), "egress ann@contoso.com") == NOTFOUND
        gatepost.wait_for_log(f"policyd worker {first} silent")
        poll(lambda: len(gatepost.workers("policyd")) == 2, "there are two workers again")
        for _ in range(50):
            assert ask(stack.enter_context(connect(gatepost)), "egress ann@contoso.com") == NOTFOUND
        assert second in gatepost.workers("policyd")
