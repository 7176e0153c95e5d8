# SPDX-License-Identifier: GPL-3.0-or-later
"""Reloads a configuration of 10,000 organizations while the milter is under load.

A reload lasts from SIGHUP to the line "configuration reloaded" in the log: from then on new connections meet the new
configuration only. One organization has changed, or all have. Beside it stands the longest dialogue of a message, from
MAIL to the answer at its end, of a turn with a reload in it, and of one without in the same round.

Two loads: two connections leave a part of both CPUs idle, as a host does that keeps up with its mail; eight leave
nothing, so that the reload has to take its time from the mail, and each dialogue waits for the others'.
"""

from __future__ import annotations

import os
import re
import signal
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import NamedTuple, Optional

from benchmarks.figures import AT_MOST, Effort, Figure, in_turn
from benchmarks.installation import CLIENT, TOP, Installation
from benchmarks.organizations import organizations
from benchmarks.programs import POLL_S, TIMEOUT_S, answer, compiled, cpu_s
from gatepost.service.config import read, uncollected

SIZE = 10_000
RELOAD_S = 2.0
DELAY_MS = 50.0
CONNECTIONS = (2, 8)
_LOADED = b"configuration reloaded\n"


class Reload(NamedTuple):
    """How long a reload took, and the supervisor's CPU time for it."""

    seconds: float
    cpu_s: float


def run(effort: Effort, top: Path = TOP) -> Iterable[Figure]:
    with Installation("run", top=top, more=organizations(SIZE)) as installed:
        for connections in CONNECTIONS:
            yield from under_load(installed, connections, effort)
        for what, every in ((f"one of {SIZE:,} organizations", False), ("every organization", True)):
            found = [reload(installed, every=every) for _ in range(effort.rounds)]
            target = None if every else RELOAD_S
            yield Figure(
                f"reload, {what} changed, no mail", "s", [one.seconds for one in found], "", (), target, AT_MOST
            )
            yield Figure("CPU time of the supervisor for it", "s", [one.cpu_s for one in found])
        parsed = [parse_s(installed.configuration) for _ in range(effort.rounds)]
        yield Figure("CPU time of tomllib alone for this file", "s", parsed)


def under_load(installed: Installation, connections: int, effort: Effort) -> Iterable[Figure]:
    """Yield what a reload takes, and what it takes from mail on so many connections."""
    reloads: list[Reload] = []
    quiet, disturbed = in_turn(
        effort.rounds,
        partial(longest_ms, installed, connections, effort.seconds),
        partial(longest_ms, installed, connections, effort.seconds, reloads),
    )
    took, used = zip(*reloads)
    what = f"mail on {connections} connections"
    yield Figure(f"reload, one of {SIZE:,} organizations changed, {what}", "s", took, "", (), RELOAD_S, AT_MOST)
    yield Figure("CPU time of the supervisor for it", "s", used)
    yield Figure(f"longest dialogue in a turn with that reload, {what}", "ms", disturbed, "", (), DELAY_MS, AT_MOST)
    yield Figure(f"longest dialogue in a turn without, {what}", "ms", quiet)


def longest_ms(
    installed: Installation, connections: int, seconds: float, reloads: Optional[list[Reload]] = None
) -> float:
    """Send mail; return how long the longest dialogue of a message was. With *reloads*, reload meanwhile, and note it.

    A connection has 20 messages: so the old workers lose theirs to the new ones while mail flows.
    """
    words = ["--address", installed.milter_address, "--connections", str(connections), "--seconds", str(seconds)]
    words += ["--messages", "20", "--warmup", "0.2", "--client", CLIENT]
    words += ["--sender", "app%d@contoso.com", "--rcpt", "bob%d@example.com"]
    with ThreadPoolExecutor(1) as pool:
        load = pool.submit(answer, [str(compiled("load_milter")), *words])
        if reloads is not None:
            time.sleep(seconds / 6)
            reloads.append(reload(installed, every=False))
        return float(load.result()["message_ms"]["max"])


def reload(installed: Installation, *, every: bool) -> Reload:
    """Change one organization, or every one; return what the reload took."""
    file, supervisor = installed.configuration, installed.program.pid
    changed = f'name = "networks {time.monotonic_ns()}"'
    file.write_text(re.sub('name = "networks[ 0-9]*"', changed, file.read_text(), count=0 if every else 1))
    with installed.program.log_file.open("rb") as log:
        log.seek(0, os.SEEK_END)
        cpu_before, began = cpu_s([supervisor]), time.monotonic()
        os.kill(supervisor, signal.SIGHUP)
        new = b""
        while _LOADED not in new:
            if time.monotonic() > began + TIMEOUT_S:
                raise RuntimeError(f"no reload within {TIMEOUT_S:.0f} s")
            time.sleep(POLL_S)
            new = new[-len(_LOADED) :] + log.read()
        return Reload(time.monotonic() - began, cpu_s([supervisor]) - cpu_before)


def parse_s(file: Path) -> float:
    """Return the CPU time that reading the file as TOML takes."""
    began = time.process_time()
    with uncollected():
        read(file)
    return time.process_time() - began
