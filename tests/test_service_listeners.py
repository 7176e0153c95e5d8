# SPDX-License-Identifier: GPL-3.0-or-later
"""Listening sockets: who may connect, and what is found at their path."""

from __future__ import annotations

import errno
import os
import socket
import stat
from pathlib import Path

import pytest
from daemonprocess import free_port

from gatepost.service.fields import Listen
from gatepost.service.listeners import AddressTakenError, clear_stale, open_listener, remove


def stale(path: Path) -> None:
    """Leave a socket file as a process that died does."""
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))


def test_unix_socket_may_be_used_by_owner_and_group_only(tmp_path: Path) -> None:
    with open_listener(Listen(path=str(tmp_path / "s"))):
        assert stat.S_IMODE((tmp_path / "s").stat().st_mode) == 0o660


def test_umask_is_as_before_afterwards(tmp_path: Path) -> None:
    before = os.umask(0o022)
    try:
        open_listener(Listen(path=str(tmp_path / "s"))).close()
        assert os.umask(0o022) == 0o022
    finally:
        os.umask(before)


def test_listener_does_not_block(tmp_path: Path) -> None:
    with open_listener(Listen(path=str(tmp_path / "s"))) as listener, pytest.raises(BlockingIOError):
        listener.accept()


def test_connections_to_a_tcp_listener_send_at_once() -> None:
    port = free_port()
    address = ("127.0.0.1", port)
    with open_listener(Listen(host="127.0.0.1", port=port)) as listener, socket.create_connection(address):
        listener.setblocking(True)
        accepted, _ = listener.accept()
        with accepted:
            assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


def test_ipv6_address_is_listened_on() -> None:
    with open_listener(Listen(host="::1", port=free_port())) as listener:
        assert listener.family == socket.AF_INET6


def test_taken_tcp_address_is_refused_by_name() -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(OSError, match=rf"^inet:127.0.0.1:{port}: another program listens there$"):
            open_listener(Listen(host="127.0.0.1", port=port))


def test_missing_folder_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(OSError, match=r"^unix:/.*/none/s: cannot listen: No such file or directory$"):
        open_listener(Listen(path=str(tmp_path / "none/s")))


def test_socket_of_a_dead_process_is_taken_over(tmp_path: Path) -> None:
    stale(tmp_path / "s")
    with open_listener(Listen(path=str(tmp_path / "s"))), socket.socket(socket.AF_UNIX) as client:
        client.connect(str(tmp_path / "s"))


def test_socket_of_a_living_process_is_refused_and_stays(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(tmp_path / "s"))
        other.listen()
        with pytest.raises(OSError, match="another process listens there") as refused:
            clear_stale(str(tmp_path / "s"))
        assert refused.value.errno == errno.EADDRINUSE
        assert (tmp_path / "s").exists()


def test_unix_socket_of_a_living_process_is_refused_by_name(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(tmp_path / "s"))
        other.listen()
        with pytest.raises(AddressTakenError, match=r"^unix:/.*/s: another program listens there$"):
            open_listener(Listen(path=str(tmp_path / "s")))


def test_living_process_that_is_too_busy_to_accept_is_not_waited_for(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as other, socket.socket(socket.AF_UNIX) as waiting:
        other.bind(str(tmp_path / "s"))
        other.listen(0)
        waiting.connect(str(tmp_path / "s"))  # which fills the backlog
        with pytest.raises(OSError, match="another process listens there"):
            clear_stale(str(tmp_path / "s"))


def test_regular_file_is_refused_and_stays(tmp_path: Path) -> None:
    (tmp_path / "s").write_text("keep me")
    with pytest.raises(OSError, match="exists and is no socket"):
        clear_stale(str(tmp_path / "s"))
    assert (tmp_path / "s").read_text() == "keep me"


def test_symbolic_link_is_refused_and_stays_even_to_a_stale_socket(tmp_path: Path) -> None:
    stale(tmp_path / "other")
    (tmp_path / "s").symlink_to("other")
    with pytest.raises(OSError, match="exists and is no socket"):
        clear_stale(str(tmp_path / "s"))
    assert (tmp_path / "s").is_symlink()
    assert (tmp_path / "other").exists()


def test_nothing_there_is_fine(tmp_path: Path) -> None:
    clear_stale(str(tmp_path / "s"))


def test_removing_takes_the_socket_file_away_and_a_second_time_nothing(tmp_path: Path) -> None:
    listen = Listen(path=str(tmp_path / "s"))
    open_listener(listen).close()
    remove(listen)
    remove(listen)
    assert not (tmp_path / "s").exists()
