# SPDX-License-Identifier: GPL-3.0-or-later
"""The milter under load, everything on, against a C milter that does nothing and against opendkim.

Each message has 12 headers and 4 kB, comes from a client with a certificate, is relayed, and gets another sender
(chgfrom). No header is added on this way; the row with tagged mail has one. After each turn the log must have a line,
and the ledger a row, for each message that the client sent.
"""

from __future__ import annotations

import signal
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Callable

from benchmarks.figures import AT_MOST, Effort, Figure, in_turn
from benchmarks.installation import CERTIFICATE, Installation
from benchmarks.programs import Program, answer, compiled, unpacked
from gatepost.admin.sandbox import free_port

FLOOR = "C milter on libmilter receiving the same callbacks without reply"
CONNECTIONS = (8, 32)
WARMUP_S = 0.5
LOADED_WITHIN_S = 60.0


def run(effort: Effort) -> Iterator[Figure]:
    """Yield the figures of the milter."""
    for connections in CONNECTIONS:
        yield from against_floor(effort, connections, headers=True, target=0.45)
        yield from against_floor(effort, connections, headers=False, target=0.55)
    for connections in CONNECTIONS:
        yield against_opendkim(effort, connections)
    yield from latency(effort)
    yield from tcp(effort)
    yield tagged(effort)


def against_floor(effort: Effort, connections: int, *, headers: bool, target: float) -> Iterator[Figure]:
    """Compare with the floor. No headers are asked for where the ledger is off, and nothing else needs them."""
    ours, floor, changing = in_turn(
        effort.rounds,
        lambda: rate(gatepost(effort, connections, ledger=headers)),
        lambda: rate(the_floor(effort, connections, headers=headers)),
        lambda: rate(the_floor(effort, connections, headers=headers, change_sender=True)),
    )
    what = f"{connections} connections, " + ("headers inspected" if headers else "no header callbacks (ledger off)")
    yield Figure(what, "msg/s", ours, FLOOR, floor, target)
    yield Figure(f"{what}, chgfrom in both", "msg/s", ours, "the same with chgfrom", changing)


def against_opendkim(effort: Effort, connections: int) -> Figure:
    """Compare with opendkim that verifies mail without a signature."""
    ours, theirs = in_turn(
        effort.rounds,
        lambda: rate(gatepost(effort, connections)),
        lambda: rate(opendkim(effort, connections)),
    )
    return Figure(f"{connections} connections, headers inspected", "msg/s", ours, "opendkim, unsigned mail", theirs, 5)


def latency(effort: Effort) -> Iterator[Figure]:
    """Say how long a message takes, from MAIL to the last answer, at 8 connections as fast as they can."""
    found = [gatepost(effort, 8)["message_ms"] for _ in range(effort.rounds)]
    yield Figure(
        "8 connections, p99 of the whole dialogue", "ms", [item["p99"] for item in found], target=3, bound=AT_MOST
    )
    yield Figure("8 connections, p50 of the whole dialogue", "ms", [item["p50"] for item in found])


def tcp(effort: Effort) -> Iterator[Figure]:
    """Compare TCP with a Unix socket, and say what the kernel and libmilter alone lose on TCP."""
    by_tcp, by_unix, floor_by_tcp, floor_by_unix = in_turn(
        effort.rounds,
        lambda: rate(gatepost(effort, 8, tcp=True)),
        lambda: rate(gatepost(effort, 8)),
        lambda: rate(the_floor(effort, 8, tcp=True, change_sender=True)),
        lambda: rate(the_floor(effort, 8, change_sender=True)),
    )
    yield Figure("8 connections, TCP", "msg/s", by_tcp, "gatepost on a Unix socket", by_unix, 0.9)
    yield Figure(
        "8 connections, TCP, C milter with chgfrom", "msg/s", floor_by_tcp, "itself on a Unix socket", floor_by_unix
    )


def tagged(effort: Effort) -> Figure:
    """Compare with the floor where mail gets a sender and a header: mail that the rule refuses, action "tag"."""
    ours, floor = in_turn(
        effort.rounds,
        lambda: rate(gatepost(effort, 8, action="tag")),
        lambda: rate(the_floor(effort, 8)),
    )
    return Figure("8 connections, headers inspected, chgfrom and addheader (tagged mail)", "msg/s", ours, FLOOR, floor)


def rate(found: dict[str, Any]) -> float:
    """Return the messages a second of what the load generator found."""
    return float(found["messages_s"])


def load(effort: Effort, address: str, connections: int, *, certificate: str = CERTIFICATE) -> dict[str, Any]:
    """Return what the load generator finds at *address*."""
    command = [str(compiled("load_milter")), "--address", address, "--connections", str(connections)]
    durations = ["--seconds", str(effort.seconds), "--warmup", str(WARMUP_S)]
    return answer([*command, *durations, "--certificate", certificate], effort.seconds + 60)


def gatepost(
    effort: Effort, connections: int, *, ledger: bool = True, tcp: bool = False, action: str = "reject"
) -> dict[str, Any]:
    """Run gatepost under load, and see that it has done all of its work. Raises AssertionError."""
    relay = f'mode = "enforce"\naction = "{action}"'
    with Installation(ledger=ledger, tcp=tcp, relay=relay) as installation:
        refused = action == "tag"  # the rule lets this client relay with its certificate only
        found = load(effort, installation.milter_address, connections, certificate="" if refused else CERTIFICATE)
        total = found["total"]
        _expect(found["refused"], 0, "refused")
        _expect(found["chgfrom"], total, "senders changed")
        _expect(found["addheader"], total if refused else 0, "headers added")
        lines = installation.program.log.count(f": action={'tag' if refused else 'rewrite'}, ")
        _expect(lines, total, "lines in the log")
        if ledger:
            _wait(lambda: installation.rows() >= total)
        _expect(installation.rows(), total if ledger else 0, "rows in the ledger")
    return found


def the_floor(
    effort: Effort, connections: int, *, headers: bool = True, tcp: bool = False, change_sender: bool = False
) -> dict[str, Any]:
    """Run the C milter under load."""
    options = [*([] if headers else ["-H"]), *(["-s"] if change_sender else [])]
    with tempfile.TemporaryDirectory(prefix="gatepost-benchmark-", dir="/tmp") as name:
        folder, port = Path(name), free_port()
        path = folder / "milter.sock"
        listen, address = (f"inet:{port}@127.0.0.1", f"inet:127.0.0.1:{port}") if tcp else (f"unix:{path}",) * 2
        command = [str(compiled("floor_milter", "milter")), "-p", listen, *options]
        with Program(command, folder / "log", address=port if tcp else path, ended_by=signal.SIGKILL):
            return load(effort, address, connections)


def opendkim(effort: Effort, connections: int) -> dict[str, Any]:
    """Run opendkim under load, as a verifier. There is no DNS to ask for mail without a signature."""
    with tempfile.TemporaryDirectory(prefix="gatepost-benchmark-", dir="/tmp") as name:
        folder = Path(name)
        path = folder / "milter.sock"
        program = unpacked("milters") / "usr/sbin/opendkim"
        configuration = folder / "opendkim.conf"
        configuration.write_text(f"Mode v\nSocket local:{path}\nSyslog no\nUMask 007\n")
        command = [str(program), "-f", "-x", str(configuration)]
        with Program(command, folder / "log", address=path, ended_by=signal.SIGKILL):
            found = load(effort, f"unix:{path}", connections)
    _expect(found["refused"], 0, "refused")
    return found


def _expect(got: int, wanted: int, what: str) -> None:
    if got != wanted:
        raise AssertionError(f"{what}: {got}, not {wanted}")


def _wait(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + LOADED_WITHIN_S
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.05)
