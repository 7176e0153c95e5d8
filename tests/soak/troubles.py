# SPDX-License-Identifier: GPL-3.0-or-later
"""The troubles: each a thread with a random generator of its own, which does something to a host every few seconds."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import socket
import sqlite3
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Callable, NamedTuple

from milterclient import MilterClient, MilterError

from gatepost.admin.logfile import SandboxError
from gatepost.admin.stage import command
from soak.hosts import Host, hidden, read_only

DAEMONS = ("milter", "milter", "policyd", "policyd", "ledger", "metrics")
SINGLE = {"ledger": "ledger.policyd", "metrics": "metrics.policyd"}
_JUMPS_S = (-6 * 3600, -3600, -60, 60, 3 * 3600, 9 * 3600, 2 * 86400)
_BAD = (
    "[[organization]\n",
    "\xff\xfe not TOML",
    '[relay]\nmode = "enforced"\n',
    "[milter]\nworkers = 0\n",
    '[srs]\nsecret_file = "/nowhere/secret"\n',
    '[[organization]]\nname = "contoso"\n',
)


class Event(NamedTuple):
    """What was done; *begun* and *ended* in Unix seconds."""

    trouble: str
    host: str
    what: str
    begun: float
    ended: float


Do = Callable[[Host, random.Random], str]


@dataclass(frozen=True)
class Trouble:
    """every_s: how long it waits in between, on average; then it chooses one of the hosts.

    harmless: no mail may be put off because of it.
    """

    name: str
    does: Do
    every_s: float
    harmless: bool = False


# Processes


def kill(host: Host, choice: random.Random) -> str:
    pid, name = _worker(host, choice)
    if pid:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    return name


def pause(host: Host, choice: random.Random) -> str:
    """Stop a worker for a while that may be longer than the supervisor's patience."""
    pid, name = _worker(host, choice)
    pause_s = choice.choice((0.2, 1.0, 4.0))
    if pid:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGSTOP)
            time.sleep(pause_s)
            os.kill(pid, signal.SIGCONT)
    return f"{name} for {pause_s} s"


def _worker(host: Host, choice: random.Random) -> tuple[int, str]:
    name = choice.choice(DAEMONS)
    pids = host.workers(name) or host.workers(SINGLE.get(name, name))
    return (choice.choice(pids), name) if pids else (0, f"{name}: none is there")


def kill_supervisor(host: Host, choice: random.Random) -> str:
    with host.lock:  # it does not start without its secret
        host.kill_supervisor()
    return ""


def reload(host: Host, choice: random.Random) -> str:
    host.hang_up()
    return ""


# Configuration and keys


def good_configuration(host: Host, choice: random.Random) -> str:
    """Load other numbers of workers, and an organization more."""
    workers = choice.randint(1, 3)
    text = host.text.replace("\n[milter]\n", f"\n[milter]\nworkers = {workers}\n")
    text = text.replace("\n[policyd]\n", f"\n[policyd]\nworkers = {workers}\n")
    text += '\n[[organization]]\nname = "other"\n[[organization.accepted_domain]]\ndomain = "other.example"\n'
    with host.lock:
        _load(host, text)
        time.sleep(choice.uniform(0, 2))
        _load(host, host.text)
    return f"{workers} workers"


def bad_configuration(host: Host, choice: random.Random) -> str:
    bad = choice.choice((*_BAD, host.text[: choice.randrange(len(host.text))]))
    text = bad if choice.random() < 0.5 else host.text + bad
    with host.lock:
        _load(host, text)
        time.sleep(choice.uniform(0, 1))
        _load(host, host.text)
    return repr(bad[-60:])


def _load(host: Host, text: str) -> None:
    host.configuration.write_text(text, encoding="utf-8")
    host.hang_up()
    time.sleep(0.3)


def rotate(host: Host, choice: random.Random) -> str:
    options = ["--now"] if choice.random() < 0.6 else []
    with host.lock:
        status = host.gatepost("srs", "rotate", *options).returncode
        host.keys()
    return f"{' '.join(options)} status {status}".strip()


# The store and its disk


def lock_store(host: Host, choice: random.Random) -> str:
    lock_s = choice.choice((0.5, 2.0, 5.0))
    with host.lock, contextlib.suppress(sqlite3.Error), _database(host) as database:
        database.execute("BEGIN EXCLUSIVE")
        time.sleep(lock_s)
        database.execute("ROLLBACK")
    return f"{lock_s} s"


@contextlib.contextmanager
def _database(host: Host) -> Iterator[sqlite3.Connection]:
    uri = f"file:{host.state_directory}/gatepost.db?mode=rw"
    with contextlib.closing(sqlite3.connect(uri, uri=True, timeout=2, isolation_level=None)) as database:
        yield database


def read_only_disk(host: Host, choice: random.Random) -> str:
    with host.lock, read_only(host.disk):
        time.sleep(choice.uniform(1, 4))
    return ""


def full_disk(host: Host, choice: random.Random) -> str:
    if not host.mounted:
        return "not a disk of its own"
    ballast = host.disk / "ballast"
    with host.lock:
        try:
            with ballast.open("wb", 0) as file, contextlib.suppress(OSError):
                for size in (1 << 16, 1 << 12, 1):
                    with contextlib.suppress(OSError):
                        while file.write(bytes(size)):
                            pass
            time.sleep(choice.uniform(1, 4))
        finally:
            ballast.unlink()
    return ""


def hide_state(host: Host, choice: random.Random) -> str:
    """Hide the state folder, as where a file system is no more mounted; what is open stays so."""
    with host.lock, hidden(host.state_directory):
        time.sleep(choice.uniform(1, 4))
    return ""


def take_state_away(host: Host, choice: random.Random) -> str:
    """Rename the state folder, and give it back."""
    away = host.state_directory.with_name("away")
    with host.lock:
        host.state_directory.rename(away)
        time.sleep(choice.uniform(1, 4))
        if host.state_directory.exists():
            host.state_directory.rename(away.with_name(f"meanwhile-{time.time_ns()}"))
        away.rename(host.state_directory)
    return ""


def jump(host: Host, choice: random.Random) -> str:
    offset_s = choice.choice(_JUMPS_S)
    host.clock.jump(offset_s)
    time.sleep(choice.uniform(2, 6))
    host.clock.jump(0)
    return f"{offset_s:+d} s"


# Connections


def flood_metrics(host: Host, choice: random.Random) -> str:
    """Open 200 connections, as far as seconds will do; one in four asks as it should, as many half a question."""
    address = ("127.0.0.1", int(host.ports["9797"]))
    count, until = 0, time.monotonic() + 4
    with contextlib.ExitStack() as stack:
        for number in range(200):
            if time.monotonic() > until:
                break
            with contextlib.suppress(OSError):
                connection = stack.enter_context(socket.create_connection(address, 1))
                if number % 2:
                    connection.sendall(b"GET /metrics HTTP/1.1\r\nHost: x\r\n" + (b"\r\n" if number % 4 == 1 else b""))
                count += 1
        time.sleep(choice.uniform(0, 1))
    return f"{count} connections"


_SMTP = (
    "EHLO cut.example",
    "MAIL FROM:<bob@fabrikam.com>",
    "RCPT TO:<fwd@contoso.com>",
    "DATA",
    "Subject: cut\r\n\r\nhalf a mess",
)


def cut_smtp(host: Host, choice: random.Random) -> str:
    """Leave a session of SMTP after each of its commands, once with an answer and once without."""
    for last in range(len(_SMTP)):
        for waits in (True, False):
            with contextlib.suppress(OSError), host.session(client="198.51.100.99") as smtp:
                for line in _SMTP[1:last]:
                    command(smtp, line)
                smtp.send((_SMTP[last] + ("\r\n" if last < 4 else "")).encode())
                if waits and last < 4:
                    smtp.getreply()
                assert smtp.sock
                smtp.sock.close()
                smtp.close()
    return ""


def cut_milter(host: Host, choice: random.Random) -> str:
    """Leave the milter protocol after each stage, as a smtpd that is killed does."""
    path = host.postfix.queue_directory / "gatepost/milter.sock"
    if not path.exists():
        return "no milter"
    stages: tuple[Callable[[MilterClient], object], ...] = (
        lambda client: client.connect("198.51.100.98"),
        lambda client: client.helo(),
        lambda client: client.mail(b"<bob@fabrikam.com>"),
        lambda client: client.rcpt(b"<fwd@contoso.com>"),
        lambda client: client.data(),
        lambda client: client.header(b"From", b"bob@fabrikam.com"),
        lambda client: client.end_of_headers(),
        lambda client: client.packet(b"E"),
        lambda client: client.abort(),
    )
    for last in range(len(stages) + 1):
        with contextlib.suppress(OSError, MilterError), MilterClient(str(path)) as client:
            for stage in stages[:last]:
                stage(client)
            if choice.random() < 0.5:
                client.socket.sendall(b"\x00\x00\x01")  # and a packet that never ends
    return ""


_LOOKUPS = (
    b"request=smtpd_access_policy\nprotocol_state=RCPT\nsender=bob@fabrikam.com\nrecipient=fwd@contoso.com\n\n",
    b"31:reverse bounces+SRS=a=b=c=d@x.org,",
    b"23:egress bob@fabrikam.com,",
)


def cut_policyd(host: Host, choice: random.Random) -> str:
    """Leave policyd within a request and before its answer."""
    path = host.postfix.queue_directory / "gatepost/policyd.sock"
    for request in _LOOKUPS * 5:
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as client:
            client.settimeout(2)
            client.connect(str(path))
            client.sendall(request[: choice.randrange(len(request) + 1)])
    return ""


TROUBLES = (
    Trouble("kill", kill, 1.5),
    Trouble("pause", pause, 4.0),
    Trouble("kill-supervisor", kill_supervisor, 40.0),
    Trouble("reload", reload, 1.7, harmless=True),
    Trouble("good-configuration", good_configuration, 13.0, harmless=True),
    Trouble("bad-configuration", bad_configuration, 11.0, harmless=True),
    Trouble("rotate", rotate, 25.0, harmless=True),
    Trouble("lock-store", lock_store, 17.0, harmless=True),
    Trouble("read-only-disk", read_only_disk, 29.0),
    Trouble("full-disk", full_disk, 23.0),
    Trouble("state-hidden", hide_state, 31.0),
    Trouble("state-away", take_state_away, 37.0),
    Trouble("clock", jump, 19.0),
    Trouble("flood-metrics", flood_metrics, 7.0, harmless=True),
    Trouble("cut-smtp", cut_smtp, 9.0, harmless=True),
    Trouble("cut-milter", cut_milter, 8.0, harmless=True),
    Trouble("cut-policyd", cut_policyd, 8.0, harmless=True),
)


@dataclass
class Makers:
    """All that make trouble, until `stop`. pace: 2 waits half as long. failed: what a trouble could not do itself."""

    hosts: Sequence[Host]
    seed: int
    troubles: Sequence[Trouble]
    pace: float = 1.0
    events: list[Event] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._stopped = threading.Event()
        self._threads = [
            threading.Thread(target=self._make, args=(trouble,), daemon=True, name=trouble.name)
            for trouble in self.troubles
        ]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Return when all has been put back."""
        self._stopped.set()
        for thread in self._threads:
            thread.join()

    def _make(self, trouble: Trouble) -> None:
        choice = random.Random(f"{self.seed}-{trouble.name}")
        every_s = trouble.every_s / self.pace
        while not self._stopped.wait(every_s * choice.uniform(0.5, 1.5)):
            host = choice.choice(self.hosts)
            begun = time.time()
            try:
                what = trouble.does(host, choice)
            except (OSError, SandboxError, AssertionError) as error:
                what = f"failed: {str(error).partition(chr(10))[0]}"
                self.failed.append(f"{trouble.name} on {host.name}: {what}")
            self.events.append(Event(trouble.name, host.name, what, begun, time.time()))
