# SPDX-License-Identifier: GPL-3.0-or-later
"""What `gatepost setup postfix` leaves behind, whatever ends or hinders it: nothing lost, and always a way back."""

from __future__ import annotations

import errno
import fcntl
import os
import resource
import signal
import stat
import subprocess
import sys
from itertools import count
from pathlib import Path
from typing import Any, Callable

import pytest
from setuphost import SetupHost, setup_host

root_only = pytest.mark.skipif(os.geteuid() != 0, reason="main.cf is root's")
pytestmark = root_only

NO_SPACE = "No space left on device"


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SetupHost:
    return setup_host(tmp_path, monkeypatch, "relay-hub")


def in_a_child(host: SetupHost, *options: str, prepare: Callable[[], object] = lambda: None) -> tuple[int, str]:
    """Return how `gatepost setup postfix` ends in a process of its own, a signal being negative, and what it said."""
    told = host.root / "told"
    told.write_text("")
    child = os.fork()
    if not child:
        status = 99
        try:
            prepare()
            result = host.setup(*options)
            told.write_text(host.told(result))
            status = result.exit_code
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), told.read_text()


def at_steps(host: SetupHost, steps: range, act: Callable[[str], None]) -> Callable[[], None]:
    """Return what has this process *act* before these *steps*, from 1, of what it changes beside main.cf."""

    def prepare() -> None:
        number = count(1)

        def hook(event: str, arguments: tuple[object, ...]) -> None:
            path = str(arguments[0]) if event in ("os.rename", "os.remove", "os.mkdir") else ""
            temporary = event == "os.remove" and path.endswith(".gatepost")
            if path.startswith(str(host.directory)) and not temporary and next(number) in steps:
                act(path)

        sys.addaudithook(hook)

    return prepare


def kill(path: str) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def no_space(path: str) -> None:
    raise OSError(errno.ENOSPC, NO_SPACE, path)


def with_mounts(host: SetupHost, script: str, *options: str) -> subprocess.CompletedProcess[str]:
    """Run `gatepost setup postfix` where *script* has mounted something for it alone; skip the test where none may."""
    words = [sys.executable, "-m", "gatepost.admin", "-c", str(host.configuration), "setup", "postfix"]
    words += ["--config-directory", str(host.directory), *options]
    environment = {**os.environ, "PYTHONPATH": ":".join(sys.path), "HERE": str(host.directory)}
    unshared = ["unshare", "--mount", "sh", "-c"]
    if subprocess.run([*unshared, script], env=environment, capture_output=True, check=False).returncode:
        pytest.skip("nothing may be mounted here")
    return subprocess.run(
        [*unshared, f'{script} && exec "$@"', "sh", *words],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


def everything(host: SetupHost) -> dict[str, Any]:
    return {**host.files(), "folders": [path.name for path in host.directory.iterdir() if path.is_dir()]}


# Killed, or without power


@pytest.mark.parametrize("then", [(), ("--apply",)])
def test_after_an_apply_killed_at_any_step_undo_is_the_way_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, then: tuple[str, ...]
) -> None:
    for step in count(1):
        host = setup_host(tmp_path / str(step), monkeypatch, "forwarder")
        before = everything(host)
        status, _ = in_a_child(host, "--apply", prepare=at_steps(host, range(step, step + 1), kill))
        for option in then:
            assert host.setup(option).exit_code == 0, step
        result = host.setup("--undo")
        assert result.exit_code == 0 or "nothing to take back" in result.output, (step, result.output)
        after = everything(host)
        # What was killed before it had noted anything has left an empty folder, or copies.
        assert after == before or (not then and after == {**before, "folders": ["gatepost-setup"]}), step
        if status == 0:
            assert step > 9
            break
        assert status == -signal.SIGKILL


@pytest.mark.parametrize("edit", [b"", b"smtpd_banner = hello\n"])
def test_an_undo_killed_at_any_step_is_finished_by_the_next_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, edit: bytes
) -> None:
    for step in count(1):
        host = setup_host(tmp_path / str(step), monkeypatch, "forwarder")
        before = everything(host)
        host.setup("--apply")
        host.add(edit.decode())
        status, _ = in_a_child(host, "--undo", prepare=at_steps(host, range(step, step + 1), kill))
        result = host.setup("--undo")
        assert result.exit_code == 0 or "nothing to take back" in result.output, (step, result.output)
        after = host.files()
        assert after["main.cf"][0] == before["main.cf"][0] + edit, step
        assert set(after) | {"folders"} == set(before), step
        if status == 0:
            assert step > 6
            break
        assert status == -signal.SIGKILL


def test_edit_after_an_apply_that_was_killed_is_not_lost(host: SetupHost) -> None:
    before = host.files()["main.cf"][0]
    (host.programs / "signal").write_text("KILL")
    assert in_a_child(host, "--apply")[0] == -signal.SIGKILL
    host.add("smtpd_banner = hello\n")
    assert host.setup("--undo").exit_code == 0
    assert host.files()["main.cf"][0] == before + b"smtpd_banner = hello\n"


# Interrupted


@pytest.mark.parametrize("name", ["INT", "TERM", "HUP"])
def test_apply_that_is_interrupted_has_changed_nothing(host: SetupHost, name: str) -> None:
    (host.programs / "signal").write_text(name)
    before = everything(host)
    status, told = in_a_child(host, "--apply")
    assert (status, told.splitlines()[-1]) == (1, "Interrupted. Everything is as it was before.")
    assert everything(host) == before


def test_second_apply_that_is_interrupted_leaves_what_the_first_has_done(host: SetupHost) -> None:
    before = host.files()
    host.setup("--apply")
    between = host.files()
    host.configuration.write_text(host.configuration.read_text().replace("milter.sock", "other.sock"))
    (host.programs / "signal").write_text("TERM")
    assert in_a_child(host, "--apply")[0] == 1
    assert host.files() == between
    assert host.setup("--undo").exit_code == 0
    assert host.files() == before


# Without room, or read-only


def test_without_room_at_any_step_of_apply_nothing_is_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for step in count(1):
        host = setup_host(tmp_path / str(step), monkeypatch, "forwarder")
        before = everything(host)
        status, told = in_a_child(host, "--apply", prepare=at_steps(host, range(step, step + 1), no_space))
        if status == 0:
            assert step > 9
            break
        assert status == os.EX_CANTCREAT, told
        assert told.splitlines()[-1].endswith(f"{NO_SPACE}. Everything is as it was before."), told
        assert everything(host) == before, step


def test_where_there_is_no_room_even_to_put_it_back_that_is_said_and_undo_does_it_later(host: SetupHost) -> None:
    before = host.files()
    status, told = in_a_child(host, "--apply", prepare=at_steps(host, range(10, 1000), no_space))
    assert (status, told.splitlines()[-1]) == (
        os.EX_CANTCREAT,
        f"/etc/postfix/gatepost_command_filter: {NO_SPACE}. Not everything could be put back: as soon as that is"
        " mended, gatepost setup postfix --undo does it.",
    )
    assert host.files() != before
    assert host.setup("--undo").exit_code == 0
    assert host.files() == before


def test_undo_without_room_says_so_and_can_be_repeated(host: SetupHost) -> None:
    before = host.files()
    host.setup("--apply")
    status, told = in_a_child(host, "--undo", prepare=at_steps(host, range(4, 5), no_space))
    assert (status, told) == (
        os.EX_CANTCREAT,
        f"/etc/postfix/main.cf: {NO_SPACE}. To have it whole, run it again.\n",
    )
    assert host.setup("--undo").exit_code == 0
    assert host.files() == before


READ_ONLY = 'mount --bind "$HERE" "$HERE" && mount -o remount,ro,bind "$HERE"'


def test_read_only_configuration_is_said(host: SetupHost) -> None:
    apply = with_mounts(host, READ_ONLY, "--apply")
    assert (apply.returncode, apply.stderr.replace(str(host.root), "")) == (
        os.EX_CANTCREAT,
        "/etc/postfix/gatepost-setup: Read-only file system. Everything is as it was before.\n",
    )
    host.setup("--apply")
    undo = with_mounts(host, READ_ONLY, "--undo")
    assert (undo.returncode, undo.stderr.replace(str(host.root), "")) == (
        os.EX_CANTCREAT,
        "/etc/postfix/main.cf: Read-only file system. To have it whole, run it again.\n",
    )


def test_file_that_may_not_grow_is_said_in_one_line(host: SetupHost) -> None:
    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (400, 400))

    before = everything(host)
    host.setup("--apply")
    status, told = in_a_child(host, "--undo", prepare=limit)
    assert (status, told) == (
        os.EX_CANTCREAT,
        "/etc/postfix/main.cf: File too large. To have it whole, run it again.\n",
    )
    assert host.setup("--undo").exit_code == 0
    assert everything(host) == before


def test_file_in_the_place_of_the_copies_is_said(host: SetupHost) -> None:
    (host.directory / "gatepost-setup").write_text("mine")
    before = host.files()
    result = host.setup("--apply")
    assert (result.exit_code, host.told(result).splitlines()[-1]) == (
        os.EX_CANTCREAT,
        "/etc/postfix/gatepost-setup/setup.json: Not a directory. Everything is as it was before.",
    )
    assert host.files() == before


@pytest.mark.parametrize("text", ["", "[]", '{"topology": "relay-hub", "known": 1, "edits": "", "adopted": {}}', "\0"])
@pytest.mark.parametrize("option", ["--apply", "--undo"])
def test_damaged_record_is_said(host: SetupHost, option: str, text: str) -> None:
    host.setup("--apply")
    host.configuration.write_text(host.configuration.read_text().replace("milter.sock", "other.sock"))
    (host.directory / "gatepost-setup/setup.json").write_text(text)
    before = host.files()
    result = host.setup(option)
    assert (result.exit_code, host.told(result).splitlines()[-1]) == (
        1,
        "/etc/postfix/gatepost-setup/setup.json is damaged. The files as they were before setup are beside it: compare"
        " them with those in /etc/postfix, put back what you want, and move /etc/postfix/gatepost-setup away.",
    )
    assert host.files() == before


def test_undo_without_its_copies_deletes_nothing(host: SetupHost) -> None:
    host.setup("--apply")
    (host.directory / "gatepost-setup/main.cf").unlink()
    before = host.files()
    result = host.setup("--undo", "--force")
    assert (result.exit_code, host.told(result)) == (
        1,
        "/etc/postfix/gatepost-setup/main.cf, the file as it was before setup, has been deleted.\n",
    )
    assert host.files() == before


def test_two_at_once_are_not_let_in(host: SetupHost) -> None:
    descriptor = os.open(host.directory, os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    result = host.setup("--apply")
    os.close(descriptor)
    assert (result.exit_code, host.told(result).splitlines()[-1]) == (
        1,
        "/etc/postfix: another gatepost setup is at work here",
    )


# Whose the files are


def test_owner_mode_and_attributes_stay(host: SetupHost) -> None:
    main_cf = host.directory / "main.cf"
    os.chown(main_cf, 1, 2)
    main_cf.chmod(0o640)
    os.setxattr(main_cf, "user.managed", b"by us")

    def look() -> tuple[object, ...]:
        status = main_cf.stat()
        return status.st_uid, status.st_gid, stat.S_IMODE(status.st_mode), os.getxattr(main_cf, "user.managed")

    before = (1, 2, 0o640, b"by us")
    host.setup("--apply")
    assert look() == before
    host.setup("--undo")
    assert look() == before


def test_access_control_list_stays(host: SetupHost) -> None:
    main_cf = host.directory / "main.cf"
    # user::rw-, user:1:r--, group::r--, mask::r--, other::---
    entries = [(1, 6, -1), (2, 4, 1), (4, 4, -1), (16, 4, -1), (32, 0, -1)]
    octets = b"\x02\0\0\0" + b"".join(
        tag.to_bytes(2, "little") + bits.to_bytes(2, "little") + (who % 2**32).to_bytes(4, "little")
        for tag, bits, who in entries
    )
    os.setxattr(main_cf, "system.posix_acl_access", octets)
    for option in ("--apply", "--undo"):
        host.setup(option)
        assert os.getxattr(main_cf, "system.posix_acl_access") == octets
        assert stat.S_IMODE(main_cf.stat().st_mode) == 0o640


def test_mode_that_was_made_stricter_after_apply_stays_after_undo(host: SetupHost) -> None:
    host.setup("--apply")
    (host.directory / "main.cf").chmod(0o600)
    assert host.setup("--undo").exit_code == 0
    assert stat.S_IMODE((host.directory / "main.cf").stat().st_mode) == 0o600


def test_link_stays_and_the_file_that_it_leads_to_is_changed(host: SetupHost) -> None:
    main_cf, elsewhere = host.directory / "main.cf", host.root / "common/main.cf"
    elsewhere.parent.mkdir()
    main_cf.rename(elsewhere)
    main_cf.symlink_to("../../common/main.cf")
    before = elsewhere.read_bytes()
    host.setup("--apply")
    assert os.readlink(main_cf) == "../../common/main.cf"
    assert b"unix:gatepost/milter.sock" in elsewhere.read_bytes()
    host.setup("--undo")
    assert (os.readlink(main_cf), elsewhere.read_bytes()) == ("../../common/main.cf", before)


def test_edit_of_the_file_that_a_link_leads_to_is_not_lost(host: SetupHost) -> None:
    main_cf, elsewhere = host.directory / "main.cf", host.root / "main.cf"
    main_cf.rename(elsewhere)
    main_cf.symlink_to(elsewhere)
    before = elsewhere.read_text()
    host.setup("--apply")
    with elsewhere.open("a") as file:
        file.write("# by configuration management\n")
    assert host.setup("--undo").exit_code == 0
    assert (main_cf.is_symlink(), elsewhere.read_text()) == (True, before + "# by configuration management\n")


def test_file_of_the_tables_name_that_was_there_before_is_given_back(host: SetupHost) -> None:
    table = host.directory / "gatepost_command_filter"
    table.write_text("# by hand\n")
    before = host.files()
    assert host.setup("--apply").exit_code == 0
    assert table.read_text() != "# by hand\n"
    assert host.setup("--undo").exit_code == 0
    assert host.files() == before


def test_files_of_somebody_else_in_the_folder_of_the_copies_stay(host: SetupHost) -> None:
    (host.directory / "gatepost-setup").mkdir()
    (host.directory / "gatepost-setup/mine").write_text("mine")
    host.setup("--apply")
    host.setup("--undo")
    assert [path.name for path in (host.directory / "gatepost-setup").iterdir()] == ["mine"]


def test_file_that_is_put_back_by_hand_is_no_edit(host: SetupHost) -> None:
    before = host.files()
    host.setup("--apply")
    (host.directory / "main.cf").write_bytes(before["main.cf"][0])
    assert host.setup("--undo").exit_code == 0
    assert host.files() == before


def test_edit_that_a_run_found_which_was_interrupted_is_made_once(host: SetupHost) -> None:
    before = host.files()["main.cf"][0]
    host.setup("--apply")
    host.add("smtpd_banner = hello\n")
    host.configuration.write_text(host.configuration.read_text().replace("milter.sock", "other.sock"))
    (host.programs / "signal").write_text("TERM")
    assert in_a_child(host, "--apply")[0] == 1
    (host.programs / "signal").unlink()
    assert host.setup("--apply").exit_code == 0
    assert host.setup("--undo").exit_code == 0
    assert host.files()["main.cf"][0] == before + b"smtpd_banner = hello\n"


# Postfix itself


def test_postfix_that_ends_of_the_result_is_put_back_and_started(host: SetupHost) -> None:
    host.run_postfix()
    (host.programs / "fatal").touch()
    before = everything(host)
    result = host.setup("--apply", "--force")
    assert (result.exit_code, result.output.splitlines()[-1]) == (
        1,
        "Postfix has ended when it read the result, and was started again as it was: see its log",
    )
    assert everything(host) == before
    assert host.actions[-2:] == ["reload", "start"]


def test_reload_that_fails_is_said_with_status_75(host: SetupHost) -> None:
    host.run_postfix()
    (host.programs / "unwilling").touch()
    result = host.setup("--apply", "--force")
    assert (result.exit_code, result.output.splitlines()[-1]) == (
        75,
        "Postfix has not read it (postfix reload: postfix: fatal: not today)",
    )


def test_what_postfix_check_complained_of_before_is_said(host: SetupHost) -> None:
    (host.programs / "always").write_text("postfix: fatal: no such address")
    result = host.setup("--apply")
    assert (result.exit_code, result.output.splitlines()[-3:]) == (
        0,
        [
            "As before, too: postfix: fatal: no such address",
            "As before, too: postfix check: exit status 1",
            "Postfix does not run; it reads this when it starts.",
        ],
    )


def test_without_a_terminal_for_it_postfix_is_asked_all_the_same(host: SetupHost) -> None:
    """A chroot without /dev/pts has none; here an empty folder is mounted over it."""
    (host.programs / "complaint").write_text("postfix: fatal: no such thing\n")
    done = with_mounts(host, "mount -t tmpfs none /dev/pts", "--apply")
    assert (done.returncode, done.stderr.splitlines()[-2:]) == (
        1,
        ["postfix: fatal: no such thing", "postfix check: exit status 1"],
    )
