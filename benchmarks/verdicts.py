# SPDX-License-Identifier: GPL-3.0-or-later
"""Times the relay verdict with 10,000 organizations, and with one.

First the same organization again and again: the work of a verdict does not grow with the tables. Then 500 organizations
in turn, with nothing between two verdicts: what the processor's caches hold of one organization they do not hold of
500. The last rows show what of this is the price of any look-up in a dictionary of that size, and how little of it is
left in all that the milter does for a recipient.
"""

from __future__ import annotations

import gc
import random
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Callable

from benchmarks.figures import AT_MOST, Effort, Figure, in_turn
from benchmarks.organizations import SHARED, address, organizations
from gatepost.relay import Client, Mail, RuleSet, attribute
from gatepost.service.config import load
from gatepost.service.flow import judge
from gatepost.service.snapshot import Snapshot, build
from gatepost.srs import Keys

SIZE = 10_000
CALLS = 500
TURNS = 12
"""How often each is timed in a round: so few calls take 3 ms."""
TARGET = 1.1

Case = Callable[[], object]


def run(effort: Effort) -> Iterable[Figure]:
    one, many = snapshot(1), snapshot(SIZE)
    numbers = list(range(0, SIZE, SIZE // CALLS))
    random.Random(1).shuffle(numbers)
    same = [cases(0, one)] * CALLS, [cases(SIZE - 1, many)] * CALLS
    turn = [cases(0, one) for _ in numbers], [cases(number, many) for number in numbers]
    gc.collect()
    gc.freeze()
    gc.disable()  # a collection would walk the tables of both sizes, at the cost of whichever call it hits
    try:
        for name in same[0][0]:
            yield _figure(f"{name}, the same organization again and again", name, same, effort, TARGET)
        for name in turn[0][0]:
            yield _figure(f"{name}, {CALLS} organizations in turn", name, turn, effort)
        floor = [[{"look-up": look_up} for look_up in look_ups(snapshot)] for snapshot in (one, many)]
        yield _figure(f"dict.get() of {CALLS} accepted domains in turn, nothing else", "look-up", floor, effort)
    finally:
        gc.enable()
        gc.unfreeze()


def look_ups(snapshot: Snapshot) -> Iterator[Case]:
    """Yield look-ups in a dictionary of all accepted domains, which is the least that any verdict takes."""
    domains = [
        item.domain for organization in snapshot.rules.organizations.values() for item in organization.accepted_domains
    ]
    table = {domain: [domain] for domain in domains}
    for domain in random.Random(1).choices(domains, k=CALLS):
        yield partial(table.get, domain.encode().decode())  # a string of its own, as one from a message


def _figure(what: str, name: str, tables: Sequence[list[dict[str, Case]]], effort: Effort, target: float = 0) -> Figure:
    few, many = ([case[name] for case in table] for table in tables)
    theirs, ours = in_turn(TURNS * effort.rounds, partial(microseconds, few), partial(microseconds, many))
    return Figure(what, "µs", ours, "with one", theirs, target or None, AT_MOST)


def microseconds(calls: Sequence[Case]) -> float:
    start = time.perf_counter_ns()
    for call in calls:
        call()
    return (time.perf_counter_ns() - start) / len(calls) / 1000


def snapshot(size: int) -> Snapshot:
    """Return the snapshot of a configuration with *size* organizations."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "gatepost.toml")
        file.write_text(f'[relay]\nmode = "enforce"\n{organizations(size)}')
        return build(load(file), Keys([b"benchmark"]), time.time())


def cases(number: int, snapshot: Snapshot) -> dict[str, Case]:
    """Return what is timed, for organization *number*."""
    rules = snapshot.rules
    names = [f"host.d2.org{number}.example"]
    own, outside = address(number), "203.0.113.9"
    own_client, shared_client = rules.client(own), rules.client(SHARED)
    certified, unknown = rules.client(outside, names), rules.client(outside)
    mail, foreign = Mail(f"bob@d5.org{number}.example"), Mail("bob@vendor.example")
    subdomain = Mail(f"bob@a.b.wide.org{number}.example")
    inside, rcpt = f"d3.org{number}.example", "alice@gmail.com"

    def verdict(client: Client, mail: Mail, rcpt_domain: str = "gmail.com") -> Case:
        return partial(attribute, client, mail, rcpt_domain, rules, RuleSet.CURRENT)

    return {
        "client() by address": partial(rules.client, own),
        "client() by certificate": partial(rules.client, outside, names),
        "client() unknown": partial(rules.client, outside),
        "attribute() inside": verdict(unknown, foreign, inside),
        "attribute() relayed by P1 and address": verdict(own_client, mail),
        "attribute() relayed by P1 and shared address": verdict(shared_client, mail),
        "attribute() relayed by P1 in a subdomain": verdict(own_client, subdomain),
        "attribute() relayed by certificate": verdict(certified, foreign),
        "attribute() refused": verdict(own_client, foreign),
        "judge() relayed by P1 and address": partial(judge, snapshot, own_client, mail, rcpt),
        "judge() relayed by certificate, to be rewritten": partial(judge, snapshot, certified, foreign, rcpt),
    }
