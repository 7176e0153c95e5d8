# SPDX-License-Identifier: GPL-3.0-or-later
"""A Postfix with gatepost as milter, policy service and both maps, against the same Postfix without; the egress hop.

The Postfix is Debian's, in a sandbox, with the configuration of examples/postfix/forwarder. Postfix's own smtp-source
sends, a connection for each message, its smtp-sink receives. Both queues are on the disk of /tmp, unless said.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Callable, NamedTuple, Optional

from benchmarks.figures import Effort, Figure, in_turn
from benchmarks.installation import TOP
from benchmarks.programs import Program, compiled, cpu_s, tree
from gatepost.admin.sandbox import Postfix, find_programs, free_port
from gatepost.admin.stage import Stage

EXAMPLE = TOP / "examples/postfix/forwarder"
SESSIONS = 10
MESSAGES = 2000
SHORT_MESSAGES = 100
SIZE_BYTES = 4096
TIMEOUT_S = 300.0
POLL_S = 0.005
TARGET = 0.8
HOP_TARGET = 0.5

SERVER = """
mydestination = mail.contoso.com, localhost, contoso.com
mynetworks = 127.0.0.0/8
local_recipient_maps =
"""
ALIAS = "inline:{fwd@contoso.com=someone@customer.example}"
PLAIN = f"virtual_alias_maps = {ALIAS}\nvirtual_alias_domains =\n"


class Mail(NamedTuple):
    """What smtp-source sends."""

    sender: str
    recipient: str


ACCEPTED = Mail("app@contoso.com", "someone@customer.example")
FOREIGN = Mail("app@vendor.example", "someone@customer.example")
FORWARDED = Mail("bob@fabrikam.example", "fwd@contoso.com")


class Turn(NamedTuple):
    """How many messages a second smtp-source got rid of, and how many reached the sink; CPU a message, gatepost's."""

    accepted_s: float
    delivered_s: float
    gatepost_ms: float


class Sink:
    """Postfix's smtp-sink, which counts what it gets. A context manager."""

    def __init__(self, folder: Path) -> None:
        self._counts = folder / "sink.log"
        self.port = free_port()
        self._process: Optional[subprocess.Popen[bytes]] = None

    def __enter__(self) -> Sink:
        command = [program("smtp-sink"), "-u", "nobody", "-c", f"127.0.0.1:{self.port}", "256"]
        with self._counts.open("wb") as counts:
            self._process = subprocess.Popen(command, env=environment(), stdout=counts, stderr=counts)
        return self

    def __exit__(self, *_: object) -> None:
        if self._process:
            self._process.kill()
            self._process.wait()

    def count(self) -> int:
        """Return how many messages it has got since it was started."""
        with self._counts.open("rb") as counts:
            counts.seek(max(0, os.fstat(counts.fileno()).st_size - 200))
            found = re.findall(rb"mesg=(\d+)\r", counts.read())
        return int(found[-1]) if found else 0


def program(name: str) -> str:
    return str(find_programs().commands / name)


def environment() -> dict[str, str]:
    libraries = find_programs().libraries
    return {**os.environ, **({"LD_LIBRARY_PATH": str(libraries)} if libraries else {})}


class Site:
    """A Postfix that sends everything on to *sink*, with or without gatepost beside it. A context manager."""

    def __init__(self, mta: Postfix, running: contextlib.AbstractContextManager[object], sink: Sink) -> None:
        self.mta = mta
        self._running = running
        self._sink = sink
        self.gatepost: Callable[[], float] = lambda: 0.0

    def __enter__(self) -> Site:
        self._running.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self._running.__exit__(None, None, None)

    def turn(self, mail: Mail, messages: int) -> Turn:
        """Send, and wait until all has arrived. Raises RuntimeError."""
        self.mta.wait_until_idle()
        before, cpu = self._sink.count(), self.gatepost()
        command = [program("smtp-source"), "-s", str(SESSIONS), "-m", str(messages), "-l", str(SIZE_BYTES)]
        command += ["-f", mail.sender, "-t", mail.recipient, f"{self.mta.smtp[0]}:{self.mta.smtp[1]}"]
        began = time.monotonic()
        subprocess.run(command, env=environment(), check=True, timeout=TIMEOUT_S)
        accepted = time.monotonic()
        while self._sink.count() < before + messages:
            if time.monotonic() > began + TIMEOUT_S:
                arrived = self._sink.count() - before
                raise RuntimeError(f"{arrived} of {messages} have arrived\n{self.mta.log()[-2000:]}")
            time.sleep(POLL_S)
        delivered = time.monotonic()
        gatepost_ms = (self.gatepost() - cpu) / messages * 1000
        return Turn(messages / (accepted - began), messages / (delivered - began), gatepost_ms)


def plain(folder: Path, sink: Sink, more: str = "", master_cf: str = "") -> Site:
    """Return a Postfix without gatepost."""
    mta = Postfix(folder, main_cf=f"{SERVER}{PLAIN}relayhost = [127.0.0.1]:{sink.port}\n{more}", master_cf=master_cf)
    return Site(mta, mta, sink)


def with_gatepost(folder: Path, sink: Sink, more: str = "") -> Site:
    """Return the example's Postfix, and gatepost."""
    stage = Stage(
        EXAMPLE,
        folder,
        before=SERVER,
        after=f"relayhost = [127.0.0.1]:{sink.port}\n{more}",
        configuration=configured,
        replacing={"hash:/etc/postfix/virtual": ALIAS},
    )
    site = Site(stage.postfix, stage, sink)
    site.gatepost = lambda: cpu_s(tree(stage.pid))
    return site


def configured(text: str) -> str:
    """Return the example's gatepost.toml with a rule that mends what smtp-source sends under a foreign name."""
    return text.replace('mode = "enforce"', 'mode = "enforce"\naction = "rewrite"')


def hop_alone(folder: Path, sink: Sink) -> Site:
    """Return a Postfix without gatepost whose mail takes the egress hop all the same: what the hop itself costs."""
    port = free_port()
    master_cf = (EXAMPLE / "master.cf").read_text().replace("127.0.0.1:10027", f"127.0.0.1:{port}")
    master_cf = master_cf.replace("-o smtpd_milters=unix:gatepost/milter.sock", "-o smtpd_milters=")
    # Else the same map would lead it into the hop again.
    master_cf = master_cf.replace("-o content_filter=", f"-o content_filter=smtp:[127.0.0.1]:{sink.port}")
    lines = (EXAMPLE / "main.cf").read_text().splitlines(keepends=True)
    limits = "".join(line for line in lines if line.startswith("gatepost-egress_"))
    into = f"sender_dependent_default_transport_maps = static:{{gatepost-egress:[127.0.0.1]:{port}}}\n"
    return plain(folder, sink, into + limits, master_cf)


def with_idle_milter(folder: Path, sink: Sink, port: int) -> Site:
    """Return a Postfix with a C milter alone, at *port*, which does nothing: what Postfix's own half of it costs."""
    return plain(folder, sink, f"smtpd_milters = inet:127.0.0.1:{port}\n")


def run(effort: Effort) -> Iterator[Figure]:
    root = Path(tempfile.mkdtemp(prefix="gatepost-benchmark-", dir="/tmp"))
    root.chmod(0o755)  # Postfix has users of its own
    try:
        with contextlib.ExitStack() as stack:
            sink = stack.enter_context(Sink(root))
            port = free_port()
            idle = [str(compiled("floor_milter", "milter")), "-p", f"inet:{port}@127.0.0.1"]
            stack.enter_context(Program(idle, root / "floor.log", address=port))
            gatepost = stack.enter_context(with_gatepost(root / "gatepost", sink))
            without = stack.enter_context(plain(root / "plain", sink))
            hop = stack.enter_context(hop_alone(root / "hop", sink))
            milter = stack.enter_context(with_idle_milter(root / "milter", sink, port))
            yield from relayed(effort, gatepost, without, milter)
            yield from forwarded(effort, gatepost, without, hop)
    finally:
        shutil.rmtree(root)


def relayed(effort: Effort, gatepost: Site, without: Site, milter: Site) -> Iterator[Figure]:
    """Yield what gatepost costs on relayed mail. What counts is when all has arrived: the queue may not grow."""
    theirs, accepted, rewritten, idle = in_rounds(
        effort, (without, ACCEPTED), (gatepost, ACCEPTED), (gatepost, FOREIGN), (milter, ACCEPTED)
    )
    for what, turns in (("P1 accepted", accepted), ("rewritten at ingress", rewritten)):
        yield compared(f"relayed, {what}, until all has arrived", turns, "without", theirs, TARGET)
        taken, taken_without = ([turn.accepted_s for turn in each] for each in (turns, theirs))
        yield Figure(f"relayed, {what}, until Postfix has taken all", "msg/s", taken, "without", taken_without)
        yield Figure(f"relayed, {what}: CPU of gatepost", "ms/msg", [turn.gatepost_ms for turn in turns])
        yield compared(f"relayed, {what}", turns, "with an idle C milter alone", idle)
    yield compared("relayed, with an idle C milter alone", idle, "without", theirs)


def forwarded(effort: Effort, gatepost: Site, without: Site, hop: Site) -> Iterator[Figure]:
    """Yield what the egress hop costs: a second smtpd and queue file, and gatepost's part in it."""
    theirs, ours, alone = in_rounds(effort, (without, FORWARDED), (gatepost, FORWARDED), (hop, FORWARDED))
    yield compared("forwarded through the egress hop", ours, "without SRS", theirs, HOP_TARGET)
    yield compared("the hop without gatepost", alone, "without hop", theirs)
    yield compared("forwarded through the egress hop", ours, "the hop without gatepost", alone)
    yield Figure("forwarded: CPU of gatepost, both hops", "ms/msg", [turn.gatepost_ms for turn in ours])


def in_rounds(effort: Effort, *sites: tuple[Site, Mail]) -> list[list[Turn]]:
    """Give each site its turn with its mail, round by round; return the turns of each."""
    messages = MESSAGES if effort.seconds >= 1 else SHORT_MESSAGES
    found: list[list[Turn]] = [[] for _ in sites]

    def turn(index: int) -> float:
        site, mail = sites[index]
        found[index].append(site.turn(mail, messages))
        return found[index][-1].delivered_s

    in_turn(effort.rounds, *(partial(turn, index) for index in range(len(sites))))
    return found


def compared(
    what: str, ours: Sequence[Turn], peer: str, theirs: Sequence[Turn], target: Optional[float] = None
) -> Figure:
    values, others = ([turn.delivered_s for turn in turns] for turns in (ours, theirs))
    return Figure(what, "msg/s", values, peer, others, target)
