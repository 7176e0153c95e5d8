# SPDX-License-Identifier: GPL-3.0-or-later
"""The load: clients that send, and try again as real ones do; what the next hops got; smtp-source in between."""

from __future__ import annotations

import itertools
import os
import random
import re
import smtplib
import subprocess
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Optional

from gatepost.admin.logfile import SandboxError
from gatepost.admin.nexthop import Received
from gatepost.admin.sandbox import find_programs
from gatepost.admin.stage import Transcript
from gatepost.srs import Address, Exchange
from soak import mail
from soak.clock import DAY_S
from soak.hosts import Host
from soak.mail import KINDS, Message

RETRY_S = 1.5
BATCH = 10
_BOUNCE_SHARE = 0.35
_POLL_S = 0.05


class Arrived(NamedTuple):
    """One copy that a next hop took; *at* in Unix seconds, a moment late."""

    host: Host
    number: int
    notification: bool
    at: float
    mail: Received


@dataclass
class Batch:
    """What smtp-source sent: *subject* is in each message. whole: all of it was taken."""

    subject: str
    whole: bool


@dataclass
class Load:
    """All that was sent and what arrived. rate: messages a second."""

    hosts: Sequence[Host]
    seed: int
    rate: float
    messages: list[Message] = field(default_factory=list)
    arrived: list[Arrived] = field(default_factory=list)
    batches: list[Batch] = field(default_factory=list)
    stopped: threading.Event = field(default_factory=threading.Event)
    put_off: list[tuple[float, str, str]] = field(default_factory=list)
    """When, on which host and with which reply a client was told to come again, or the connection broke."""

    def __post_init__(self) -> None:
        self._numbers = itertools.count(1)
        self._lock = threading.Lock()
        self._to_bounce: dict[str, list[tuple[str, str]]] = {host.name: [] for host in self.hosts}
        self._threads: list[threading.Thread] = []
        self._going = threading.Event()
        self._going.set()
        self._sourcing = False
        self._sink_ended = threading.Event()

    def start(self) -> None:
        for host in self.hosts:
            senders = 3 if host.name == "forwarder" else 1
            for index in range(senders):
                self._thread(self._send, host, random.Random(f"{self.seed}-{host.name}-{index}"))
        self._thread(self._source, self.hosts[0])
        self._sink = threading.Thread(target=self._watch, daemon=True)
        self._sink.start()

    def _thread(self, target: object, *arguments: object) -> None:
        thread = threading.Thread(target=target, args=arguments, daemon=True)  # type: ignore[arg-type]
        self._threads.append(thread)
        thread.start()

    def pause(self) -> None:
        """Begin nothing new; return when what was begun has ended."""
        self._going.clear()
        while any(item.pending for item in list(self.messages)) or self._sourcing:
            time.sleep(_POLL_S)

    def resume(self) -> None:
        self._going.set()

    def stop(self, timeout_s: float) -> bool:
        """Send nothing new; return whether all that was begun has ended in time."""
        self.stopped.set()
        deadline = time.monotonic() + timeout_s
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        return not any(thread.is_alive() for thread in self._threads)

    def close(self) -> None:
        """Stop looking at what arrives."""
        self._sink_ended.set()
        self._sink.join()

    # Clients

    def _send(self, host: Host, choice: random.Random) -> None:
        waiting: list[Message] = []
        senders = 5
        kinds = [kind for kind in KINDS if kind.host == host.name]
        while waiting or not self.stopped.is_set():
            waiting.sort(key=lambda item: item.due)
            if waiting and waiting[0].due <= time.monotonic():
                item = waiting.pop(0)
            elif self.stopped.is_set():
                time.sleep(_POLL_S)
                continue
            else:
                time.sleep(choice.expovariate(self.rate / senders))
                if not self._going.is_set():
                    continue
                item = self._next(host, kinds, choice)
            self._attempt(host, item)
            if item.pending:
                item.due = time.monotonic() + RETRY_S * choice.uniform(0.5, 1.5)
                waiting.append(item)

    def _next(self, host: Host, kinds: Sequence[mail.Kind], choice: random.Random) -> Message:
        client = f"198.51.100.{choice.randrange(1, 255)}" if choice.random() < 0.5 else _any_address(choice)
        with self._lock:
            number = next(self._numbers)
            known = self._to_bounce[host.name]
            pair = known.pop(choice.randrange(len(known))) if known and choice.random() < _BOUNCE_SHARE else None
        if pair is None and host.name == "policy-only" and choice.random() < _BOUNCE_SHARE:
            pair = _made_elsewhere(host, number)
        if pair is None:
            item = mail.message(number, choice.choices(kinds, [kind.weight for kind in kinds])[0], client)
        elif choice.random() < 0.25:
            item = mail.forged(number, host.name, pair[0], client)
        else:
            item = mail.bounce(number, host.name, pair[0], pair[1], client)
        self.messages.append(item)
        return item

    def _attempt(self, host: Host, item: Message) -> None:
        now = time.time()
        item.begun = item.begun or now
        rcpts = item.pending
        certificate = host.certificate(item.kind.certificate) if item.kind.certificate else None
        try:
            told = host.send(item.mail_from, rcpts, item.octets, client=item.client, certificate=certificate)
        except (OSError, smtplib.SMTPException, SandboxError) as error:
            # A reply before MAIL, as to STARTTLS, or a connection that broke: then the message may have been taken.
            item.unclear += not isinstance(error, (SandboxError, smtplib.SMTPResponseException))
            self._put_off(host, item, f"{type(error).__name__}: {error}")
        else:
            self._take(host, item, rcpts, told)
        item.ended = time.time()

    def _take(self, host: Host, item: Message, rcpts: Sequence[str], told: Transcript) -> None:
        if told.mail.code != 250:
            replies = dict.fromkeys(rcpts, told.mail)
        else:
            replies = dict(zip(rcpts, told.rcpt))
            last = told.end or told.data
            if last and last.code != 250:
                replies = {rcpt: last if reply.code == 250 else reply for rcpt, reply in replies.items()}
        for rcpt, reply in replies.items():
            if reply.code == 250:
                item.accepted[rcpt] = told.queue_id
            elif reply.code >= 500:
                item.refused[rcpt] = str(reply)
            else:
                self._put_off(host, item, str(reply))

    def _put_off(self, host: Host, item: Message, reply: str) -> None:
        item.put_off += 1
        self.put_off.append((time.time(), host.name, reply))

    # What arrives

    def _watch(self) -> None:
        seen: dict[int, int] = {}
        while not self._sink_ended.is_set():
            time.sleep(_POLL_S)
            now = time.time()
            for host in self.hosts:
                for hop in (host.internet, host.inside):
                    key = id(hop)
                    new = hop.messages[seen.get(key, 0) :]
                    seen[key] = seen.get(key, 0) + len(new)
                    for received in new:
                        number, notification = mail.number_of(received.content)
                        self.arrived.append(Arrived(host, number, notification, now, received))
                        self._remember(host, received)

    def _remember(self, host: Host, received: Received) -> None:
        original = re.search(rb"(?m)^From: (.*@.*fabrikam\.com)\r?$", received.content)
        if "+SRS=" in received.mail_from and original:
            with self._lock:
                self._to_bounce[host.name].append((received.mail_from, original[1].decode()))

    # smtp-source

    def _source(self, host: Host) -> None:
        """Send batches by Postfix's own load generator, to a mailbox inside and to one that is forwarded."""
        programs = find_programs()
        libraries = {"LD_LIBRARY_PATH": str(programs.libraries)} if programs.libraries else {}
        choice = random.Random(f"{self.seed}-source")
        for number in itertools.count(1):
            if self.stopped.wait(choice.expovariate(self.rate / 4 / BATCH)):
                return
            if not self._going.is_set():
                continue
            self._sourcing = True
            subject = f"source-{number}-"
            rcpt = choice.choice(("mary@contoso.com", "fwd@contoso.com"))
            command = [str(programs.commands / "smtp-source"), "-s", "3", "-m", str(BATCH), "-l", "2000"]
            command += ["-f", "bob@fabrikam.com", "-t", rcpt, "-S", subject, f"127.0.0.1:{host.postfix.smtp[1]}"]
            done = subprocess.run(command, env={**os.environ, **libraries}, capture_output=True, check=False)
            self.batches.append(Batch(subject, done.returncode == 0))
            self._sourcing = False


def _any_address(choice: random.Random) -> str:
    return f"203.0.113.{choice.randrange(1, 255)}"


def _made_elsewhere(host: Host, number: int) -> Optional[tuple[str, str]]:
    """Return an SRS address that another host with the same keys made today, and its original."""
    original = f"Bob{number}@fabrikam.com"
    day = int(time.time()) // DAY_S
    made = Exchange(host.keys()).forward(Address.parse(original), "bounces", "contoso.com", day)
    return str(made), original
