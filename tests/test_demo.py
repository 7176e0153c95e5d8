# SPDX-License-Identifier: GPL-3.0-or-later
"""`gatepost demo`, run as a person runs it."""

from __future__ import annotations

import io
import os
import re
import signal
import smtplib
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from rich.console import Console

from gatepost.admin.demo import report
from gatepost.admin.demo_scenes import Row, raise_interruption
from gatepost.admin.sandbox import temporary_root

root_only = pytest.mark.skipif(os.getuid() != 0, reason="a chrooted Postfix can only be run by root")


@pytest.fixture
def folder() -> Iterator[Path]:
    with temporary_root() as root:
        yield root


def demo(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    """Start the demo, which makes its own folder in *folder*."""
    path = os.pathsep.join(entry for entry in sys.path if Path(entry, "gatepost").is_dir())
    return subprocess.Popen(
        [sys.executable, "-m", "gatepost.admin", "demo", *arguments],
        env={**os.environ, "PYTHONPATH": path, "TMPDIR": str(folder), "COLUMNS": "120"},
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def processes_of(folder: Path) -> list[str]:
    """Command lines of the processes that work in *folder* or name it, but for the demo itself."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            place, command = os.readlink(process / "cwd"), (process / "cmdline").read_text(errors="replace")
        except OSError:
            continue
        if place.startswith(f"{folder}/") or str(folder) in command:
            found.append(command)
    return found


@root_only
def test_demo_prints_each_scene_as_it_must_be_and_leaves_nothing_behind(folder: Path) -> None:
    process = demo(folder)
    output, errors = process.communicate(timeout=100)
    assert (process.returncode, errors) == (0, "")
    assert "15 of 15 scenes went as they must" in output
    assert output.count("refused: 550 5.7.64 TenantAttribution; Relay Access Denied") == 3
    assert output.count("refused: 550 5.1.1") == 2
    assert len(re.findall(r"P1 now bounces\+SRS=\w{8}=\w\w=fabrikam\.com=news@contoso\.com", output)) == 2
    for mailbox in ("john.work", "john.sales", "john.lab"):
        assert re.search(rf"P1 now {mailbox}\+SRS=\w{{8}}=\w\w=fabrikam\.com=bob@contoso\.com", output)
    assert output.count("P1 now bob@fabrikam.com, untouched") == 3
    assert output.count("ended  outside, at bob@fabrikam.com") == 3
    assert "\x1b" not in output
    assert max(map(len, output.splitlines())) <= 120
    assert (list(folder.iterdir()), processes_of(folder)) == ([], [])


@root_only
@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 0), (signal.SIGTERM, 143)])
def test_keep_serves_until_a_signal_comes_and_leaves_nothing_behind(
    folder: Path, number: signal.Signals, status: int
) -> None:
    process = demo(folder, "--keep")
    assert process.stdout
    output = ""
    for line in process.stdout:
        output += line
        if line.startswith("Ctrl-C stops"):
            break
    port = re.search(r"SMTP +127\.0\.0\.1:(\d+)", output)
    assert port
    with smtplib.SMTP("127.0.0.1", int(port[1])) as client:
        client.sendmail("app@contoso.com", ["by.hand@example.net"], b"From: app@contoso.com\r\n\r\nhello\r\n")
    for line in process.stdout:
        output += line
        if "by.hand" in line:
            break
    process.send_signal(number)
    errors = process.communicate(timeout=60)[1]
    assert "P1 app@contoso.com, to by.hand@example.net" in output
    assert (process.returncode, errors) == (status, "")
    assert (list(folder.iterdir()), processes_of(folder)) == ([], [])


@root_only
def test_signal_amid_the_scenes_leaves_nothing_behind(folder: Path) -> None:
    process = demo(folder)
    assert process.stdout
    for line in process.stdout:
        if line.startswith("  2 "):
            break
    process.terminate()
    assert process.communicate(timeout=60)[1] == ""
    assert process.returncode == 143
    assert (list(folder.iterdir()), processes_of(folder)) == ([], [])


def test_signal_amid_an_smtp_command_is_not_lost_when_quit_gets_the_reply_to_that_command() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        threading.Thread(target=slow_mta, args=(server,), daemon=True).start()
        with pytest.raises(smtplib.SMTPResponseException) as caught:
            stopped_amid_a_command(*server.getsockname())
    with pytest.raises(SystemExit) as stopped:
        raise_interruption(caught.value)
    assert stopped.value.code == 143


def test_failure_without_a_signal_is_no_interruption() -> None:
    raise_interruption(OSError("connection refused"))


def stopped_amid_a_command(host: str, port: int) -> None:
    with smtplib.SMTP(host, port) as smtp:
        smtp.putcmd("NOOP")
        raise SystemExit(143)


def slow_mta(server: socket.socket) -> None:
    """Answer two commands at once, as an MTA whose first reply came late."""
    client, _ = server.accept()
    with client, client.makefile("rb") as lines:
        client.sendall(b"220 mx.example.com\r\n")
        lines.readline()
        lines.readline()
        client.sendall(b"250 2.0.0 OK\r\n221 2.0.0 Bye\r\n")


def test_without_root_the_demo_says_so_and_ends_with_77(folder: Path) -> None:
    path = os.pathsep.join(entry for entry in sys.path if Path(entry, "gatepost").is_dir())
    code = "import os; os.getuid = lambda: 1000; from gatepost.admin.demo import run; raise SystemExit(run(keep=False))"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": path},
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 77
    assert done.stderr == "gatepost demo: a chrooted Postfix can only be run by root: run this with sudo\n"


def test_scene_that_went_differently_is_marked_and_makes_the_status_1() -> None:
    wrong = Row("A forged address", sent=[("to", "x@contoso.com")], told=[("ended", "taken")])
    wrong.must(False, "550 5.1.1")
    output = io.StringIO()
    status = report(Console(file=output, width=80), [Row("Another"), wrong], 1.0)
    assert status == 1
    lines = [" ".join(line.split()) for line in output.getvalue().splitlines()]
    assert "2 A forged address NOT AS EXPECTED" in lines
    assert "expected: 550 5.1.1" in lines
    assert "1 of 2 scenes went as they must, in 1.0 s." in lines
