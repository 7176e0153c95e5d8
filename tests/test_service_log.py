# SPDX-License-Identifier: GPL-3.0-or-later
"""Log lines: one write each on standard error, whatever mail puts into them."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from typing import Optional

HEAD = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d gatepost\[\d+\]: "


def logged(code: str, environment: Optional[Mapping[str, str]] = None) -> str:
    """Return what a process that runs *code*, after importing log, has written."""
    clean = {name: value for name, value in os.environ.items() if name != "JOURNAL_STREAM"}
    done = subprocess.run(
        [sys.executable, "-c", "from gatepost.service import log\n" + code],
        env={**clean, "PYTHONPATH": ":".join(sys.path), **(environment or {})},
        capture_output=True,
        check=True,
    )
    return done.stderr.decode("ascii" if not environment else "utf-8")


def journaled(code: str) -> str:
    """Return what a process writes whose standard error is the journal's, by device and inode."""
    with tempfile.TemporaryFile() as journal:
        status = os.fstat(journal.fileno())
        stream = f"{status.st_dev}:{status.st_ino}"
        environment = {**os.environ, "PYTHONPATH": ":".join(sys.path), "JOURNAL_STREAM": stream}
        command = [sys.executable, "-c", "from gatepost.service import log\n" + code]
        subprocess.run(command, env=environment, stderr=journal, check=True)
        journal.seek(0)
        return journal.read().decode()


def text(line: str) -> str:
    found = re.fullmatch(HEAD + "(.*)\n", line)
    assert found, line
    return found[1]


def test_line_begins_with_time_program_and_process() -> None:
    assert text(logged("log.info('4CgSNs5Q9s: action=pass')")) == "4CgSNs5Q9s: action=pass"


def test_daemon_stands_in_the_program_name() -> None:
    assert " gatepost/milter[" in logged("log.name_process('milter'); log.info('x')")


def test_warning_and_error_say_so() -> None:
    lines = logged("log.warning('slow'); log.error('gone')").splitlines(keepends=True)
    assert [text(line) for line in lines] == ["warning: slow", "error: gone"]


def test_level_stands_in_front_for_the_journal_and_time_and_process_do_not() -> None:
    assert journaled("log.info('a'); log.warning('b'); log.error('c')") == "<6>a\n<4>warning: b\n<3>error: c\n"


def test_level_is_left_out_where_the_journal_is_another_file() -> None:
    assert text(logged("log.info('a')", {"JOURNAL_STREAM": "8:1234"})) == "a"


def test_control_characters_cannot_begin_a_new_line_or_reach_a_terminal() -> None:
    assert text(logged(r"log.info('a\nb\rc\0d\x1b[1me\x7ff\x85g\x9bh\tz')")) == "a?b?c?d?[1me?f?g?h?z"


def test_octets_that_are_no_utf8_are_shown_escaped() -> None:
    assert text(logged(r"log.info('from=<caf\udce9@x>')")) == r"from=<caf\udce9@x>"


def test_utf8_is_kept() -> None:
    assert "<café@x>" in logged("log.info('<café@x>')", {"LC_ALL": "C"})


def test_fault_is_logged_with_its_traceback_each_line_as_an_error() -> None:
    code = "try:\n    {}['a\\nb']\nexcept KeyError as error:\n    log.fault('milter: rcpt: internal error', error)"
    lines = [text(line) for line in logged(code).splitlines(keepends=True)]
    assert lines[0] == "error: milter: rcpt: internal error"
    assert lines[1] == "error: Traceback (most recent call last):"
    assert lines[-1] == r"error: KeyError: 'a\nb'"


def test_closed_standard_error_stops_nothing() -> None:
    assert logged("import os; os.close(2); log.info('x')") == ""


def test_reader_that_is_slower_than_the_writer_gets_every_line() -> None:
    lines = logged("for number in range(20000): log.info(f'{number} ' + 200 * 'x')").splitlines(keepends=True)
    assert [text(line).partition(" ")[0] for line in lines] == list(map(str, range(20000)))


def test_socket_whose_reader_is_slow_gets_every_line() -> None:
    reader, writer = socket.socketpair()
    environment = {**os.environ, "PYTHONPATH": ":".join(sys.path)}
    code = "from gatepost.service import log\nfor number in range(20000): log.info(f'{number} ' + 200 * 'x')"
    with subprocess.Popen([sys.executable, "-c", code], env=environment, stderr=writer.fileno()), reader:
        writer.close()
        lines = reader.makefile().readlines()
    assert [text(line).partition(" ")[0] for line in lines] == list(map(str, range(20000)))


def test_line_that_a_full_pipe_took_in_part_is_not_run_into_by_the_next() -> None:
    code = """
import os
read, write = os.pipe()
os.dup2(write, 2)
os.set_blocking(write, False)
try:
    while True:
        os.write(write, 4096 * b".")
except BlockingIOError:
    os.read(read, 4096)
log.info(9000 * "x")
os.read(read, 1 << 20)
log.info("next")
print(os.read(read, 1 << 20).decode(), end="")
"""
    clean = {name: value for name, value in os.environ.items() if name != "JOURNAL_STREAM"}
    command = [sys.executable, "-c", "from gatepost.service import log\n" + code]
    environment = {**clean, "PYTHONPATH": ":".join(sys.path)}
    output = subprocess.run(command, env=environment, stdout=subprocess.PIPE, check=True, text=True).stdout
    rest, lack, line = output.splitlines(keepends=True)
    assert (rest, text(lack), text(line)) == ("\n", "warning: 1 lines could not be logged", "next")


def test_pipe_that_nobody_reads_is_waited_for_once_only() -> None:
    code = """
import os, time
read, write = os.pipe()
os.dup2(write, 2)
begun = time.monotonic()
for _ in range(20000):
    log.info(200 * "x")
print(time.monotonic() - begun)
"""
    command = [sys.executable, "-c", "from gatepost.service import log\n" + code]
    environment = {**os.environ, "PYTHONPATH": ":".join(sys.path)}
    output = subprocess.run(command, env=environment, stdout=subprocess.PIPE, check=True, timeout=60).stdout
    assert float(output) < 10.0


def test_full_pipe_without_reader_stops_nothing() -> None:
    code = "import os\nread, write = os.pipe()\nos.dup2(write, 2)\nos.close(read)\nlog.info('x')"
    assert logged(code) == ""
