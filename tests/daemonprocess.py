# SPDX-License-Identifier: GPL-3.0-or-later
"""A real gatepost process for tests: its configuration, its sockets, its log as it comes."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Optional

from gatepost.admin.sandbox import free_port

TOP = Path(__file__).parent.parent
ROOTS = [str(TOP / name) for name in ("srs", "relay", "service", "milter", "policyd", "admin")]
TIMEOUT_S = 20.0

CONTOSO = """
[[organization]]
name = "contoso"
[[organization.accepted_domain]]
domain = "contoso.com"
[[organization.connector]]
name = "head office"
sender_ip_addresses = ["192.0.2.0/28"]
[[organization.connector]]
name = "crm"
tls_sender_certificate_name = "mail.contoso.com"
"""


def free_ports(count: int) -> list[int]:
    """Return *count* TCP ports that nobody uses, no two alike."""
    return [free_port() for _ in range(count)]


class Gatepost:
    """`gatepost -c CONFIGURATION COMMAND` with sockets and state in *folder*; a context manager: started, then stopped.

    top: lines before the tables; organizations and more: TOML. milter: "" for the Unix socket milter.sock.
    metrics: with the exporter, at metrics_port. program: Python's arguments, where it is not the gatepost command.
    """

    def __init__(
        self,
        folder: Path,
        *,
        command: str = "milter",
        organizations: str = CONTOSO,
        relay: str = 'mode = "enforce"',
        more: str = "",
        milter: str = "",
        workers: int = 1,
        policyd: str = "",
        metrics: bool = False,
        program: Sequence[str] = (),
    ) -> None:
        self.folder = folder
        self.program = program
        self.command = command
        self.configuration = folder / "gatepost.toml"
        self.socket = str(folder / "milter.sock")
        self.policyd_socket = str(folder / "policyd.sock")
        self.state = folder / "state"
        self.metrics_port = free_port() if metrics else 0
        self._lines: list[str] = []
        self._news = threading.Condition()
        self._process: Optional[subprocess.Popen[bytes]] = None
        self._reader: Optional[threading.Thread] = None
        self.configure(
            organizations=organizations,
            relay=relay,
            more=more,
            milter=milter,
            workers=workers,
            policyd=policyd,
        )

    def configure(
        self,
        *,
        organizations: str = CONTOSO,
        relay: str = 'mode = "enforce"',
        more: str = "",
        milter: str = "",
        workers: int = 1,
        policyd: str = "",
    ) -> None:
        """Write the configuration file anew."""
        listen = f"127.0.0.1:{self.metrics_port}" if self.metrics_port else ""
        self.configuration.write_text(
            f'state_directory = "{self.state}"\n'
            f"[relay]\n{relay}\n"
            f'[milter]\nlisten = "{milter or "unix:" + self.socket}"\nworkers = {workers}\n'
            f'[policyd]\nlisten = ["{policyd or "unix:" + self.policyd_socket}"]\nworkers = 1\n'
            f'[metrics]\nlisten = "{listen}"\n{more}\n{organizations}'
        )

    def __enter__(self) -> Gatepost:
        self.start()
        self.wait_for_log(r" ready$")
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self, environment: Optional[Mapping[str, str]] = None) -> None:
        """Start the process; return at once."""
        self._lines.clear()
        self._process = subprocess.Popen(
            [sys.executable, *(self.program or ("-m", "gatepost.admin", "-c", str(self.configuration), self.command))],
            env={"PATH": os.environ["PATH"], "PYTHONPATH": ":".join(ROOTS), **(environment or {})},
            cwd=self.folder,
            stdin=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
        self._reader = threading.Thread(target=self._read, args=(self._process,), daemon=True)
        self._reader.start()

    def _read(self, process: subprocess.Popen[bytes]) -> None:
        assert process.stderr
        for line in process.stderr:
            with self._news:
                self._lines.append(line.decode().rstrip("\n"))
                self._news.notify_all()
        with self._news:
            self._news.notify_all()

    @property
    def pid(self) -> int:
        assert self._process
        return self._process.pid

    def signal(self, number: signal.Signals) -> None:
        os.kill(self.pid, number)

    def wait(self) -> int:
        """Return the exit status once the process and all its workers have ended, with the whole log read."""
        assert self._process
        assert self._reader
        status = self._process.wait(TIMEOUT_S)
        self._reader.join(TIMEOUT_S)
        assert not self._reader.is_alive(), "a worker has outlived its supervisor"
        return status

    def stop(self) -> None:
        """Terminate it; whatever is left of it then is killed."""
        assert self._process
        try:
            if self._process.poll() is None:
                self._process.terminate()
                self._process.wait(TIMEOUT_S)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait(TIMEOUT_S)

    def run(self) -> int:
        """Start it and return its exit status."""
        self.start()
        try:
            return self.wait()
        finally:
            self.stop()

    @property
    def log(self) -> list[str]:
        """The lines so far, each without its time, program and process."""
        with self._news:
            return [line.split(": ", 1)[1] if ": " in line else line for line in self._lines]

    def mark(self) -> int:
        """Return how many lines there are, for wait_for_log."""
        with self._news:
            return len(self._lines)

    def wait_for_log(self, pattern: str, *, after: int = 0, count: int = 1) -> list[str]:
        """Return the first *count* lines that match, of those after the first *after*. Fails where they don't come."""
        deadline = time.monotonic() + TIMEOUT_S
        with self._news:
            while True:
                found = [line for line in self._lines[after:] if re.search(pattern, line)]
                if len(found) >= count:
                    return found[:count]
                alive = self._reader is not None and self._reader.is_alive()
                if not alive or not self._news.wait(max(0.0, deadline - time.monotonic())):
                    raise AssertionError(f"no line {pattern!r} in the log:\n" + "\n".join(self._lines))

    @contextlib.contextmanager
    def unread(self) -> Iterator[None]:
        """Leave the log unread inside the block, as a journal that hangs does."""
        with self._news:
            yield

    def workers(self, name: str) -> list[int]:
        """Return the process IDs of the workers of this supervisor that have a series file *name*-N."""
        from gatepost.service.exporter import collect

        return [process.pid for process in collect(self.state / "metrics").processes if process.daemon == name]

    def metric(self, sample: str) -> float:
        """Return the value of *sample*, its name with its labels as the exporter writes them; 0 where it is not."""
        for line in self.get("/metrics")[1].splitlines():
            name, _, value = line.rpartition(" ")
            if name == sample:
                return float(value)
        return 0.0

    def get(self, path: str) -> tuple[int, str]:
        """Return status and body of a page of the exporter."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.metrics_port}{path}", timeout=5) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()


def poll(condition: Callable[[], object], what: str, timeout_s: float = TIMEOUT_S) -> None:
    """Return when *condition* holds, of something that tells nobody when it changes."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"{what}: not within {timeout_s} s"
        time.sleep(0.02)


def gone(pids: Sequence[int]) -> bool:
    """Tell whether none of the processes *pids* is alive; a zombie is not."""
    for pid in pids:
        try:
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX":
                return False
        except (FileNotFoundError, ProcessLookupError):
            continue
    return True
