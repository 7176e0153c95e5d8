# SPDX-License-Identifier: GPL-3.0-or-later
"""Adds up the memory of a whole installation: `gatepost run` after mail, look-ups, ledger rows and a scrape.

Two workers of each daemon, the ledger's loader, the metrics and the supervisor. What these share counts once. PSS also
divides the pages of a library by the other programs that have it in memory; so that none of them flatters the sum,
pages of files count in full.
"""

from __future__ import annotations

import re
import subprocess
import time
import urllib.request
from collections.abc import Iterable, Iterator
from pathlib import Path

from benchmarks.figures import AT_MOST, Effort, Figure
from benchmarks.installation import CERTIFICATE, Installation
from benchmarks.organizations import organizations
from benchmarks.programs import TIMEOUT_S, answer, compiled
from gatepost.service.config import load
from gatepost.service.exporter import collect
from gatepost.service.supervisor import series_folder

TARGET_MIB = 100
SIZE = 10_000
POLICY_REQUEST = (
    "request=smtpd_access_policy\nprotocol_state=RCPT\nclient_address=192.0.2.5\nsender=app@contoso.com\n"
    "recipient=bob@example.com\ninstance=1.2.3\n\n"
)
EGRESS_REQUEST = "25:egress app@vendor.example,"
SETTLE_S = 2.0
_EGRESS = "[egress]\n"


def run(effort: Effort) -> Iterable[Figure]:
    measured = [installation(effort, _EGRESS) for _ in range(effort.rounds)]
    whole = [sum(parts.values()) for parts in measured]
    yield Figure("all processes together", "MiB", whole, target=TARGET_MIB, bound=AT_MOST)
    for name in measured[0]:
        yield Figure(f"of this: {name}", "MiB", [parts[name] for parts in measured])
    many = [sum(installation(effort, _EGRESS + organizations(SIZE)).values())]
    yield Figure(f"all processes together, {SIZE:,} organizations", "MiB", many)


def installation(effort: Effort, more: str) -> dict[str, float]:
    """Return the `parts` of an installation after some load."""
    with Installation("run", more=more) as installed:
        sent = mail(installed, effort.seconds)
        look_up(installed, "policy", POLICY_REQUEST, "action=", effort.seconds)
        look_up(installed, "socketmap", EGRESS_REQUEST, "OK ", effort.seconds)
        until = time.monotonic() + TIMEOUT_S
        while installed.rows() < sent and time.monotonic() < until:
            time.sleep(0.1)
        with urllib.request.urlopen(f"http://127.0.0.1:{installed.metrics_port}/metrics") as scraped:
            scraped.read()
        time.sleep(SETTLE_S)
        return parts(installed)


def mail(installed: Installation, seconds: float) -> int:
    """Send messages, some with addresses of their own; return how many."""
    words = ["--address", installed.milter_address, "--connections", "8", "--messages", "20", "--seconds", str(seconds)]
    words += ["--sender", "app%d@vendor.example", "--rcpt", "x%d@example.com", "--certificate", CERTIFICATE]
    return int(answer([str(compiled("load_milter")), *words])["total"])


def look_up(installed: Installation, protocol: str, request: str, expected: str, seconds: float) -> None:
    file = installed.folder / "requests"
    file.write_text(request)
    words = ["--protocol", protocol, "--address", str(installed.policyd_socket), "--requests", str(file)]
    words += ["--expect", expected, "--connections", "8", "--seconds", str(seconds)]
    subprocess.run([str(compiled("load_lookups")), *words], check=True, stdout=subprocess.DEVNULL)


def parts(installed: Installation) -> dict[str, float]:
    """Return what each daemon has written into its memory, and the pages of the files that they map, in MiB."""
    running = collect(series_folder(load(installed.configuration))).processes
    daemons = {process.pid: process.daemon for process in running}
    found: dict[str, float] = {}
    files: dict[str, int] = {}
    for pid in installed.program.processes():
        name = daemons.get(pid, "")
        found[name] = found.get(name, 0.0) + written_kib(pid) / 1024
        for mapping, kib in mapped_kib(pid):
            files[mapping] = max(kib, files.get(mapping, 0))
    return {**found, "files mapped": sum(files.values()) / 1024}


def written_kib(pid: int) -> int:
    """Return what is a process's own of its memory, files apart; its part of what it shares."""
    text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    return sum(map(int, re.findall(r"^Pss_(?:Anon|Shmem): +(\d+) kB", text, re.MULTILINE)))


def mapped_kib(pid: int) -> Iterator[tuple[str, int]]:
    """Yield each file that a process has mapped, with the place in it, and how much of that is in memory."""
    for text in re.split(r"^(?=[0-9a-f]+-)", Path(f"/proc/{pid}/smaps").read_text(), flags=re.MULTILINE)[1:]:
        _, _, place, _, inode, *path = text.partition("\n")[0].split(None, 5)
        sizes = dict(re.findall(r"^(\w+): +(\d+) kB", text, re.MULTILINE))
        if inode != "0":
            yield f"{path} {place}", int(sizes["Rss"]) - int(sizes["Anonymous"])
