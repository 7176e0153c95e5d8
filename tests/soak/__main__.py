# SPDX-License-Identifier: GPL-3.0-or-later
"""The command: start the site, send, make trouble, put everything back, count; print a table and write JSON."""

from __future__ import annotations

import argparse
import faulthandler
import json
import os
import re
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console
from rich.table import Table

from gatepost.admin.sandbox import temporary_root
from soak import verdict
from soak.hosts import Host, descendants, site
from soak.load import Load
from soak.troubles import TROUBLES, Event, Makers, Trouble
from soak.verdict import Books
from soak.watch import SUPERVISOR, Memory, Rest, at_rest, sockets

CALM_SHARE = 0.2
DELIVERY_S = 120.0
SHOWN = 20
_CLOSED_S = 1.5
"""Within this gatepost has seen that Postfix has gone."""
_POLL_S = 0.1
_LATE = ("its store cannot be asked now", "Temporary lookup failure", "queue file write error")
"""What a client hears where the store does not answer in time, as on a machine that others keep busy."""


class Spans(NamedTuple):
    """How long each part takes, in seconds. settled: so long all is healthy before calm is taken for calm."""

    trouble: float
    warm_up: float = 6.0
    settled: float = 4.0
    calm: float = 6.0


@dataclass
class Result:
    """broken: the invariants that do not hold, by name; figures: what was counted."""

    broken: dict[str, list[str]] = field(default_factory=dict)
    figures: dict[str, Any] = field(default_factory=dict)

    def check(self, name: str, problems: Iterator[str]) -> None:
        self.broken[name] = list(problems)

    @property
    def good(self) -> bool:
        return not any(self.broken.values())


def soak(
    spans: Spans, seed: int, rate: float, troubles: Sequence[Trouble], pace: float, note: Callable[[str], object]
) -> Result:
    """Run it all once. *note* is told what comes next."""
    with ExitStack() as stack:
        hosts = [stack.enter_context(host) for host in site(stack.enter_context(temporary_root()))]
        memory = stack.enter_context(Memory(hosts))
        load, makers = Load(hosts, seed, rate), Makers(hosts, seed, troubles, pace)
        result = Result({}, {"seed": seed, "seconds of trouble": spans.trouble})
        note("warming up …")
        load.start()
        time.sleep(spans.warm_up)
        load.pause()
        before = _rest(hosts, restart=True)
        load.resume()
        note(f"trouble for {spans.trouble:g} s …")
        trouble = _Moments()
        makers.start()
        time.sleep(spans.trouble)
        makers.stop()
        trouble.end()
        _settle(hosts, spans.settled)
        note(f"calm for {spans.calm:g} s …")
        calm = _Moments()
        time.sleep(spans.calm)
        calm.end()
        _finish(result, load)
        after = _rest(hosts, restart=False)
        note("counting …")
        _count_mail(result, load, makers.events)
        harmful = any(not _is_harmless(event.trouble) for event in makers.events)
        broken = (trouble.begun, calm.begun) if harmful else (0.0, 0.0)
        result.check("put off only while something was broken", _put_off_in_calm(load, broken))
        _count_rest(result, hosts, before, after)
        _count_troubles(result, makers)
        _count_memory(result, memory, trouble, calm)
        _stop(result, hosts)
    return result


class _Moments:
    """When something began and ended: in Unix seconds, and by the monotonic clock."""

    def __init__(self) -> None:
        self.begun, self.span = time.time(), (time.monotonic(), 0.0)

    def end(self) -> None:
        self.span = (self.span[0], time.monotonic())


def _finish(result: Result, load: Load) -> None:
    """Let all that is under way come to its end."""
    ended = load.stop(DELIVERY_S)
    result.check("all was decided in time", iter([] if ended else [f"not within {DELIVERY_S:g} s"]))
    result.check("all left the queue", _emptied(load.hosts))
    load.close()
    result.check("the ledger has taken in its spool", _loaded(load.hosts))


def _is_harmless(name: str) -> bool:
    return next(trouble for trouble in TROUBLES if trouble.name == name).harmless


def _settle(hosts: Sequence[Host], settled_s: float) -> None:
    """Return when every host has been healthy for a while."""
    deadline = time.monotonic() + DELIVERY_S
    healthy_since = time.monotonic()
    while time.monotonic() < min(healthy_since + settled_s, deadline):
        time.sleep(_POLL_S)
        if not all(_is_healthy(host) for host in hosts):
            healthy_since = time.monotonic()


def _is_healthy(host: Host) -> bool:
    try:
        return host.http("/healthz")[0] == 200
    except OSError:
        return False


def _rest(hosts: Sequence[Host], *, restart: bool) -> dict[str, Rest]:
    """Return what there is while no Postfix runs, of workers that have been replaced once."""
    for host in hosts:
        host.postfix.wait_until_idle(60)
        host.postfix.stop()
        host.reload()
    time.sleep(_CLOSED_S)
    found = {host.name: at_rest(host) for host in hosts}
    if restart:
        for host in hosts:
            host.postfix.start()
    return found


def _emptied(hosts: Sequence[Host]) -> Iterator[str]:
    deadline = time.monotonic() + DELIVERY_S
    for host in hosts:
        while (queue := host.postfix.queue()) and time.monotonic() < deadline:
            time.sleep(0.5)
        for mail in queue:
            yield f"{host.name}: {mail}"


def _loaded(hosts: Sequence[Host]) -> Iterator[str]:
    now, deadline = time.time(), time.monotonic() + DELIVERY_S
    for host in hosts:
        loaded = host.state_directory / "ledger/loaded"
        while not (loaded.exists() and loaded.stat().st_mtime > now):
            if time.monotonic() > deadline:
                yield f"{host.name}: not within {DELIVERY_S:g} s"
                break
            time.sleep(0.1)


def _count_mail(result: Result, load: Load, events: Sequence[Event]) -> None:
    books = {host.name: Books(host) for host in load.hosts}
    result.check("accepted and refused as the rules say", verdict.replies(load))
    result.check("accepted = delivered once = rewritten rightly", verdict.copies(load, books))
    result.check("the same of what smtp-source sent", verdict.sources(load))
    result.check("one row in the ledger each", verdict.ledger(load, books, events))
    result.figures.update(_counted(load, books))


def _count_rest(result: Result, hosts: Sequence[Host], before: Mapping[str, Rest], after: Mapping[str, Rest]) -> None:
    for host in hosts:
        result.check(f"at rest: {host.name}", verdict.rest(host, before[host.name], after[host.name]))
        result.check(f"logs: {host.name}", verdict.logs(host))
    result.figures["errors in the logs"] = {host.name: dict(_errors(host)) for host in hosts}


def _count_troubles(result: Result, makers: Makers) -> None:
    result.figures["troubles"] = dict(Counter(event.trouble for event in makers.events))
    result.figures["troubles that could not be made"] = dict(Counter(makers.failed))
    result.figures["events"] = [event._asdict() for event in makers.events]


def _put_off_in_calm(load: Load, broken: tuple[float, float]) -> Iterator[str]:
    busy = os.getloadavg()[0] > 2 * (os.cpu_count() or 1)
    for at, host, reply in load.put_off:
        if not broken[0] <= at <= broken[1] and not (busy and any(text in reply for text in _LATE)):
            yield f"{host}: {time.strftime('%H:%M:%S', time.localtime(at))}: {reply}"


def _counted(load: Load, books: dict[str, Books]) -> dict[str, Any]:
    messages = load.messages
    return {
        "messages": len(messages),
        "of smtp-source": 10 * len(load.batches),
        "accepted": sum(len(item.accepted) for item in messages),
        "refused": sum(len(item.refused) for item in messages),
        "copies delivered": len(load.arrived),
        "rewritten": sum("+SRS=" in copy.mail.mail_from for copy in load.arrived),
        "bounces taken back": sum(bool(item.srs and item.accepted) for item in messages),
        "notifications by Postfix": sum(copy.notification for copy in load.arrived),
        "forwarded in the name of bounces": verdict.unnamed(load),
        "put off": len(load.put_off),
        "connections that broke": sum(item.unclear for item in messages),
        "rows in the ledger": sum(len(book.rows) for book in books.values()),
        "of them in a store that stood in": sum(book.meanwhile for book in books.values()),
        "rows of what was put off": verdict.surplus_rows(load, books),
        "put off, by reply": dict(Counter(re.sub(r"\d{5,}|<[^>]*>", "…", reply) for _, _, reply in load.put_off)),
        "by kind": dict(Counter(f"{item.kind.host} {item.kind.name}" for item in messages)),
    }


def _count_memory(result: Result, memory: Memory, trouble: _Moments, calm: _Moments) -> None:
    """Note slopes in KiB a minute. In trouble no worker grows old, so that each is compared with those before it."""
    second_half = (sum(calm.span) / 2, calm.span[1])
    in_calm = memory.slopes(*second_half)
    result.check("memory is flat", verdict.flat(in_calm, second_half[1] - second_half[0]))
    supervisors = {name: kib for name, kib in memory.slopes(*trouble.span).items() if name.endswith(SUPERVISOR)}
    result.figures["KiB a minute, in trouble, all processes of a host"] = memory.together(*trouble.span)
    result.figures["KiB a minute, in trouble, supervisor"] = supervisors
    result.figures["KiB a minute, in trouble, a worker to the one before"] = memory.generations(*trouble.span)
    result.figures["KiB a minute, in the second half of calm"] = in_calm


def _errors(host: Host) -> Counter[str]:
    """Return how often each error stands in the log, its numbers left out."""
    found = re.findall(r"(?m)^\S+ (gatepost/\S+?)\[\d+\]: (error: .*)$", host.log())
    return Counter(f"{program} {re.sub(r'[0-9]+', 'N', text)[:160]}" for program, text in found)


def _stop(result: Result, hosts: Sequence[Host]) -> None:
    """Stop gatepost; nothing of it may be left."""
    problems = []
    for host in hosts:
        processes = descendants(host.pid)
        status = host.stop_gatepost()
        alive = [pid for pid in processes if Path(f"/proc/{pid}").exists()]
        left = [path.name for path in host.state_directory.glob("metrics/*.series") if "retired" not in path.name]
        if status or alive or sockets(host) or left:
            problems.append(f"{host.name}: status {status}, processes {alive}, sockets {sockets(host)}, files {left}")
    result.check("nothing is left after the end", iter(problems))


def table(result: Result) -> Table:
    shown = Table(title="soak", title_justify="left")
    shown.add_column("what", ratio=1)
    shown.add_column("")
    for name, problems in result.broken.items():
        shown.add_row(name, "holds" if not problems else f"BROKEN {len(problems)} times")
    shown.add_section()
    for name, value in result.figures.items():
        if name not in ("events", "by kind", "errors in the logs"):
            shown.add_row(name, _words(value))
    return shown


def _words(value: Any) -> str:
    if isinstance(value, dict):
        return "\n".join(f"{name}: {_words(item)}" for name, item in value.items())
    return f"{value:.1f}" if isinstance(value, float) else str(value)


def main() -> int:
    names = [trouble.name for trouble in TROUBLES]
    parser = argparse.ArgumentParser(
        prog="tests/soak/run", description="Mail through gatepost while everything around it breaks."
    )
    parser.add_argument("--minutes", type=float, default=10.0, help="of trouble (default: 10)")
    parser.add_argument("--seed", type=int, default=1, help="what each trouble and client decides by (default: 1)")
    parser.add_argument("--rate", type=float, default=25.0, help="messages a second (default: 25)")
    parser.add_argument("--pace", type=float, default=1.0, help="how much faster trouble comes (default: 1)")
    parser.add_argument(
        "--only", default=",".join(names), metavar="NAME,...", help="which troubles (default: %(default)s)"
    )
    parser.add_argument("--json", type=Path, default=Path("dist/soak.json"), metavar="FILE", help="%(default)s")
    arguments = parser.parse_args()
    chosen = [name for name in arguments.only.split(",") if name]
    unknown = sorted(set(chosen) - set(names))
    if unknown:
        parser.error(f"no trouble {', '.join(unknown)}: there are {', '.join(names)}")
    troubles = [trouble for trouble in TROUBLES if trouble.name in chosen]
    faulthandler.register(signal.SIGUSR1)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # what was started is stopped, what was mounted unmounted
    spans = Spans(arguments.minutes * 60, calm=max(6.0, arguments.minutes * 60 * CALM_SHARE))
    result = soak(spans, arguments.seed, arguments.rate, troubles, arguments.pace, print)
    Console(width=None if sys.stdout.isatty() else 160).print(table(result))
    for name, problems in result.broken.items():
        for problem in problems[:SHOWN]:
            print(f"{name}: {problem}")
    arguments.json.parent.mkdir(parents=True, exist_ok=True)
    arguments.json.write_text(json.dumps({"broken": result.broken, **result.figures}, indent=2) + "\n")
    return 0 if result.good else 1


if __name__ == "__main__":
    sys.exit(main())
