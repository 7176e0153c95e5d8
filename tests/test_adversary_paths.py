# SPDX-License-Identifier: GPL-3.0-or-later
"""Local users who put links, pipes and devices where gatepost looks for files, or come by its sockets and tables.

Most need root: the attacker is another user. See docs/reliability.md for where the other attacks on paths are tested.
"""

from __future__ import annotations

import os
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner
from daemonprocess import Gatepost, poll
from milterclient import MilterClient

from gatepost.admin.command import main
from gatepost.admin.sandbox import temporary_root

NOBODY = 65534
OUTSIDE = b"<x@gmail.example>"
root_only = pytest.mark.skipif(os.geteuid() != 0, reason="only root can be two users")


def refuses(gatepost: Gatepost) -> bool:
    """Tell whether a foreign P1 from a connector's address is refused, as the rules say."""
    with MilterClient(gatepost.socket) as client:
        (reply,) = client.open().send(b"<app@vendor.example>", [OUTSIDE]).rcpt
    return reply.startswith("550 5.7.64 ")


def as_nobody(program: str) -> subprocess.CompletedProcess[str]:
    """Run Python's *program* as a user who owns nothing here."""
    return subprocess.run(
        [sys.executable, "-c", program], user=NOBODY, group=NOBODY, extra_groups=[], capture_output=True, text=True
    )


@pytest.fixture
def public() -> Iterator[Path]:
    """A folder that every user may enter."""
    with temporary_root() as folder:
        yield folder


# What is no file in the place of the configuration


@pytest.mark.parametrize("kind", ["pipe", "device"])
def test_start_with_no_file_in_the_place_of_the_configuration_is_refused_at_once(tmp_path: Path, kind: str) -> None:
    gatepost = Gatepost(tmp_path)
    replace(gatepost.configuration, kind)
    assert gatepost.run() == os.EX_CONFIG
    assert gatepost.log == [f"error: {gatepost.configuration}: cannot be read: is no regular file"]


@pytest.mark.parametrize("kind", ["pipe", "device"])
def test_reload_of_no_file_in_the_place_of_the_configuration_leaves_the_old_one_in_force(
    tmp_path: Path, kind: str
) -> None:
    with Gatepost(tmp_path) as gatepost:
        mark = gatepost.mark()
        replace(gatepost.configuration, kind)
        gatepost.signal(signal.SIGHUP)
        gatepost.wait_for_log(f"{gatepost.configuration}: cannot be read: is no regular file$", after=mark)
        gatepost.wait_for_log("configuration not reloaded, the one loaded before stays in force$", after=mark)
        assert refuses(gatepost)


def replace(file: Path, kind: str) -> None:
    file.unlink()
    if kind == "pipe":
        os.mkfifo(file)
    else:
        file.symlink_to("/dev/zero")


# Another user at the sockets and in the state directory


@root_only
def test_started_with_umask_000_nothing_can_be_written_and_no_socket_be_used_by_another_user(public: Path) -> None:
    gatepost = Gatepost(public, command="run", metrics=True)
    before = os.umask(0)
    try:
        with gatepost:
            assert refuses(gatepost)
            open_to_others = [
                str(path.relative_to(public))
                for path in (gatepost.state, *gatepost.state.rglob("*"), *public.glob("*.sock"))
                if path.lstat().st_mode & (stat.S_IWOTH | stat.S_IWGRP) and not path.is_socket()
            ]
            assert open_to_others == []
            done = as_nobody(f"open({str(gatepost.state / 'bypass')!r}, 'w')")
            assert "PermissionError" in done.stderr
            assert refuses(gatepost)
            for path in (gatepost.socket, gatepost.policyd_socket):
                done = as_nobody(f"import socket; socket.socket(socket.AF_UNIX).connect({path!r})")
                assert "PermissionError" in done.stderr
    finally:
        os.umask(before)


@root_only
def test_tables_that_workers_share_cannot_be_read_or_written_by_another_user(public: Path) -> None:
    with Gatepost(public, command="run") as gatepost:
        for table in ("presented", "hops", "guesses"):
            path = gatepost.state / table
            poll(path.exists, table)
            assert "PermissionError" in as_nobody(f"open({str(path)!r}, 'rb')").stderr
            assert "PermissionError" in as_nobody(f"open({str(path)!r}, 'r+b')").stderr


# Links in the state directory, planted by whoever has taken over the daemons' user


def test_links_in_the_state_directory_lead_no_daemon_to_what_they_name(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("precious\n")
    gatepost = Gatepost(tmp_path, command="run")
    gatepost.state.mkdir()
    names = ("presented", "hops", "guesses", "notes", "last-errors", "ledger/loader.lock", "ledger/loaded")
    (gatepost.state / "ledger").mkdir()
    for name in names:
        (gatepost.state / name).symlink_to(victim)
    with gatepost:
        assert refuses(gatepost)
    assert victim.read_text() == "precious\n"


@root_only
def test_key_rotation_by_root_does_not_follow_a_link_of_the_daemons_user_to_a_file_of_roots(public: Path) -> None:
    """The lines of /etc/shadow would pass for keys, and the old ones be dropped."""
    shadow = public / "shadow"
    shadow.write_text("root:*:19000:0:99999:7:::\n")
    shadow.chmod(0o600)
    os.utime(shadow, (time.time() - 40 * 86400,) * 2)
    state = public / "state"
    state.mkdir()
    (state / "srs.secret").symlink_to(shadow)
    os.lchown(state / "srs.secret", NOBODY, NOBODY)
    os.chown(state, NOBODY, NOBODY)
    configuration = public / "gatepost.toml"
    configuration.write_text(
        f'state_directory = "{state}"\n[[organization]]\nname = "contoso"\n'
        '[[organization.accepted_domain]]\ndomain = "contoso.com"\n'
    )
    result = CliRunner().invoke(main, ["-c", str(configuration), "srs", "rotate"])
    assert shadow.read_text() == "root:*:19000:0:99999:7:::\n"
    assert result.output == (
        f"{state}/srs.secret: is a link in a folder that is not root's; srs.secret_file must name its target\n"
    )
    assert result.exit_code == os.EX_CONFIG


@root_only
def test_hard_link_to_a_secret_cannot_be_made_by_another_user(public: Path) -> None:
    """The kernel's protected_hardlinks is on wherever systemd is; the folder's mode is what gatepost itself has."""
    with Gatepost(public) as gatepost:
        secret = gatepost.state / "srs.secret"
        done = as_nobody(f"import os; os.link({str(secret)!r}, {str(public / 'mine')!r})")
        assert "PermissionError" in done.stderr


def test_socket_that_takes_the_place_of_a_stale_one_between_two_starts_is_not_removed(tmp_path: Path) -> None:
    """A neighbour listens at the path that gatepost has left: it is not shut out silently, and gatepost says why."""
    with socket.socket(socket.AF_UNIX) as neighbour:
        gatepost = Gatepost(tmp_path)
        with gatepost:
            pass
        neighbour.bind(gatepost.socket)
        neighbour.listen()
        assert gatepost.run() == os.EX_OSERR
        assert gatepost.log[-1] == f"error: [Errno 98] another process listens there: '{gatepost.socket}'"
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(gatepost.socket)
