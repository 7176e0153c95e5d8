# SPDX-License-Identifier: GPL-3.0-or-later
"""How workers of policyd share connections: who leaves one to whom, and that none is left waiting or lost."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Iterator
from contextlib import ExitStack, closing

import pytest

from gatepost.policyd.accepting import ASIDE_S, Acceptor, Shares


class Greeter(asyncio.Protocol):
    """Sends one octet to whoever connects."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.WriteTransport)
        transport.write(b"!")


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as made:
        made.setblocking(False)
        yield made


class Known(Shares):
    """Shares of a worker with any number of connections."""

    def pretend(self, count: int) -> None:
        """Have exactly *count* connections."""
        for number in range(max(count, self.count)):
            (self.taken if number < count else self.left)(number)


def other_worker(shares: Known, index: int, count: int) -> None:
    """Have another process, which is gone then, show that it has *count* connections."""
    pid = os.fork()
    if pid == 0:
        shares.join(index)
        shares.pretend(count)
        os._exit(0)
    os.waitpid(pid, 0)


@pytest.fixture
def shares() -> Known:
    made = Known()
    made.join(0)
    return made


def test_worker_alone_never_has_too_many(shares: Known) -> None:
    shares.pretend(5000)
    assert not shares.too_many()


def test_worker_has_too_many_where_another_has_four_fewer(shares: Known) -> None:
    other_worker(shares, 1, 2)
    shares.pretend(5)
    assert not shares.too_many()
    shares.pretend(6)
    assert shares.too_many()


def test_worker_that_is_behind_has_not_too_many(shares: Known) -> None:
    other_worker(shares, 1, 100)
    shares.pretend(10)
    assert not shares.too_many()


def test_worker_that_has_left_counts_no_more(shares: Known) -> None:
    pid = os.fork()
    if pid == 0:
        shares.join(1)
        shares.leave()
        os._exit(0)
    os.waitpid(pid, 0)
    shares.pretend(100)
    assert not shares.too_many()
    assert shares.others() == set()


def test_worker_does_not_write_over_its_successor() -> None:
    shares = Known()
    shares.join(1)
    other_worker(shares, 1, 2)
    shares.pretend(50)
    shares.leave()
    shares.join(0)
    shares.pretend(6)
    assert shares.too_many()
    shares.pretend(5)
    assert not shares.too_many()


def test_worker_that_is_passed_over_counts_again_once_its_number_changes(shares: Known) -> None:
    other_worker(shares, 1, 2)
    shares.pretend(100)
    shares.pass_over(shares.others())
    assert not shares.too_many()
    other_worker(shares, 1, 3)
    assert shares.too_many()


def test_worker_whose_number_has_changed_meanwhile_is_not_passed_over(shares: Known) -> None:
    other_worker(shares, 1, 2)
    before = shares.others()
    other_worker(shares, 1, 3)
    shares.pretend(100)
    shares.pass_over(before)
    assert shares.too_many()


def ask(listener: socket.socket, shares: Shares, clients: int = 1) -> tuple[list[bytes], list[str]]:
    """Return what clients read that connect to *listener* at once, and what was complained of."""
    complaints: list[str] = []

    async def scenario() -> list[bytes]:
        acceptor = Acceptor(listener, Greeter, shares, complaints.append)
        read = await greeted(listener, clients)
        acceptor.close()
        return read

    return asyncio.run(scenario()), complaints


async def greeted(listener: socket.socket, clients: int) -> list[bytes]:
    async def one() -> bytes:
        with closing(socket.socket()) as client:
            client.setblocking(False)
            await loop.sock_connect(client, listener.getsockname())
            return await asyncio.wait_for(loop.sock_recv(client, 10), 20)

    loop = asyncio.get_running_loop()
    return await asyncio.gather(*(one() for _ in range(clients)))


def test_connection_is_taken_at_once_by_who_has_not_too_many(listener: socket.socket, shares: Known) -> None:
    assert ask(listener, shares) == ([b"!"], [])
    assert shares.count == 1


def test_connection_that_nobody_else_takes_is_taken_by_who_has_too_many(listener: socket.socket, shares: Known) -> None:
    other_worker(shares, 1, 0)
    shares.pretend(100)
    assert ask(listener, shares) == ([b"!"], [])


def test_who_has_too_many_waits_once_for_another_that_is_dead_and_not_for_each_connection(
    listener: socket.socket, shares: Known
) -> None:
    pauses = []

    class Counting(Acceptor):
        def _pause(self, seconds: float) -> None:
            pauses.append(seconds)
            super()._pause(seconds)

    async def scenario() -> list[bytes]:
        acceptor = Counting(listener, Greeter, shares, pytest.fail)
        read = await greeted(listener, 200)
        acceptor.close()
        return read

    other_worker(shares, 1, 0)
    shares.pretend(100)
    assert asyncio.run(scenario()) == [b"!"] * 200
    assert pauses == [ASIDE_S]


@pytest.mark.parametrize("last", [True, False], ids=["last worker", "another is left"])
def test_who_closes_takes_what_waits_only_where_nobody_else_is_left(
    listener: socket.socket, shares: Known, last: bool
) -> None:
    async def scenario() -> int:
        acceptor = Acceptor(listener, Greeter, shares, pytest.fail)
        for client in clients:
            client.connect(address)  # into the backlog: the loop does not turn meanwhile
        acceptor.close()
        return shares.count

    if not last:
        other_worker(shares, 1, 0)
    address = listener.getsockname()
    with ExitStack() as stack, listener.dup() as another:
        clients = [stack.enter_context(closing(socket.socket())) for _ in range(20)]
        assert asyncio.run(scenario()) == (20 if last else 0)
        if not last:
            for _ in clients:
                another.accept()[0].close()


def test_closed_acceptor_has_closed_its_socket(listener: socket.socket, shares: Known) -> None:
    ask(listener, shares)
    assert listener.fileno() == -1


def test_connection_that_cannot_be_served_is_nobodys_and_said(listener: socket.socket, shares: Known) -> None:
    async def scenario() -> None:
        async def refuse(*_: object) -> None:
            raise OSError("the client has gone")

        loop = asyncio.get_running_loop()
        complained = loop.create_future()
        loop.connect_accepted_socket = refuse  # type: ignore[method-assign, assignment]
        acceptor = Acceptor(listener, Greeter, shares, complained.set_result)
        with socket.create_connection(listener.getsockname()):
            assert await asyncio.wait_for(complained, 20) == "a connection was lost at once: the client has gone"
        acceptor.close()

    asyncio.run(scenario())
    assert shares.count == 0
