# SPDX-License-Identifier: GPL-3.0-or-later
"""The doctor's checks of gatepost's sockets, on real ones: files of every mode, daemons of every kind."""

from __future__ import annotations

import grp
import os
import pwd
import re
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from doctorpostfix import Looked

Look = Callable[..., Looked]
SOCKET = "/var/spool/postfix/gatepost/policyd.sock"
MODES, ANSWERS, CHROOT = "socket-modes", "daemons-answer", "sockets-and-chroot"


def folder(looked: Looked, mode: int = 0o2750) -> Path:
    """Make the folder of the sockets as a package does."""
    path = looked.stage.postfix.queue_directory / "gatepost"
    path.mkdir(exist_ok=True)
    os.chown(path, 0, looked.stage.postfix.owner[1])
    path.chmod(mode)
    return path


@contextmanager
def listening(path: Path, mode: int = 0o660, answer: bytes = b"") -> Iterator[None]:
    """Listen at *path* and give everybody the same *answer*; none: hang up."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    path.chmod(mode)
    listener.listen()

    def serve() -> None:
        while True:
            try:
                client = listener.accept()[0]
            except OSError:
                return
            with client:
                client.recv(4096)
                client.sendall(answer)

    threading.Thread(target=serve, daemon=True).start()
    try:
        yield
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        path.unlink()


def owner(looked: Looked) -> tuple[str, str]:
    uid, gid = looked.stage.postfix.owner
    return pwd.getpwuid(uid).pw_name, grp.getgrgid(gid).gr_name


def test_a_socket_in_the_folder_of_the_packages_is_postfixs_alone(look: Look) -> None:
    looked = look("policy-only")
    with listening(folder(looked) / "policyd.sock"):
        assert looked.texts(MODES) == [f"ok: {SOCKET}: {owner(looked)[0]} may write to it"]


def test_a_folder_that_postfix_may_not_enter(look: Look) -> None:
    looked = look("policy-only")
    user, group = owner(looked)
    with listening(folder(looked, 0o700) / "policyd.sock"):
        assert looked.texts(MODES) == [
            f"error: policyd.listen: Postfix's user {user} may not enter /var/spool/postfix/gatepost "
            f"(drwx------ root:{group})"
        ]
        assert looked.commands(MODES) == [
            f"chgrp {group} /var/spool/postfix/gatepost",
            "chmod 2750 /var/spool/postfix/gatepost",
        ]


def test_a_socket_that_postfix_may_not_write_to(look: Look) -> None:
    looked = look("policy-only")
    user, group = owner(looked)
    with listening(folder(looked) / "policyd.sock", 0o600):
        assert looked.texts(MODES) == [
            f"error: policyd.listen: Postfix's user {user} may not write to {SOCKET} (srw------- root:{group})"
        ]
        assert looked.commands(MODES)[-1] == f"chmod 0660 {SOCKET}"


def test_a_socket_that_everybody_may_write_to(look: Look) -> None:
    looked = look("policy-only")
    group = owner(looked)[1]
    with listening(folder(looked, 0o2755) / "policyd.sock", 0o666):
        assert looked.texts(MODES) == [
            f"warning: policyd.listen: every user of this host may write to {SOCKET} (srw-rw-rw- root:{group})"
        ]


def test_a_socket_open_to_all_in_a_closed_folder_is_well(look: Look) -> None:
    looked = look("policy-only")
    with listening(folder(looked) / "policyd.sock", 0o666):
        assert [finding.severity.value for finding in looked.find(MODES)] == ["ok"]


# Within reach


def test_sockets_below_the_queue_folder_are_within_reach(look: Look) -> None:
    assert look("relay-hub").texts(CHROOT) == [
        "ok: within Postfix's reach: unix:gatepost/milter.sock, unix:gatepost/policyd.sock"
    ]


def test_a_socket_elsewhere_is_out_of_a_chrooted_daemons_reach(look: Look) -> None:
    looked = look(
        "policy-only", gatepost=lambda text: re.sub(r"unix:[^\"]*policyd.sock", "unix:/run/gatepost/policyd.sock", text)
    )
    (text,) = looked.texts(CHROOT)
    assert text.startswith("error: smtp/inet, ")
    assert "chrooted to /var/spool/postfix" in text
    assert "/run/gatepost/policyd.sock" in text


# Answers


def test_a_milter_alone_is_not_asked_for_where_only_policyd_is_used(look: Look) -> None:
    looked = look("policy-only")
    folder(looked)
    assert looked.texts(ANSWERS) == [f"error: policyd.listen: nobody listens at unix:{SOCKET}"]
    assert looked.commands(ANSWERS) == [
        "systemctl restart gatepost-policyd",
        "journalctl -u gatepost-policyd -n 50",
    ]


def test_without_the_folder_of_the_sockets_that_is_the_finding(look: Look) -> None:
    looked = look("policy-only")
    assert looked.texts(ANSWERS) == []
    assert looked.texts("socket-folders") == [
        "error: the folder of the sockets, /var/spool/postfix/gatepost, is not there"
    ]
    assert looked.commands("socket-folders") == [
        "install -d -m 2750 -o gatepost -g postfix /var/spool/postfix/gatepost",
        "systemctl restart gatepost.target",
    ]


def test_a_socket_that_a_dead_daemon_left(look: Look) -> None:
    looked = look("policy-only")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(folder(looked) / "policyd.sock"))
    assert looked.texts(ANSWERS) == [f"error: policyd.listen: nobody listens at unix:{SOCKET}"]


@pytest.mark.parametrize("answer", [b"", b"220 mail.contoso.com ESMTP\r\n"])
def test_another_program_at_the_socket(look: Look, answer: bytes) -> None:
    looked = look("policy-only")
    with listening(folder(looked) / "policyd.sock", answer=answer):
        assert looked.texts(ANSWERS) == [
            f"error: policyd.listen: what listens at unix:{SOCKET} does not answer as gatepost's policyd does: "
            f"{answer!r}"
        ]
