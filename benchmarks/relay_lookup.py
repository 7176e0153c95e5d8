# SPDX-License-Identifier: GPL-3.0-or-later
"""Times the relay verdict with 1, 100 and 10,000 organisations: a verdict costs the same with each.

Each organisation has 10 accepted domains, one of them with MatchSubDomains, 5 networks (one shared by all, the
others of its own, of the same prefix lengths everywhere) and 2 certificate names. The first table repeats one
organisation's calls: it shows that the work is the same. The second goes round 500 organisations, where there are as
many: it adds the cache misses of large tables. Sizes are timed in turn, round after round, so that a busy machine
slows all of them alike; shown are medians, and the ratio to one organisation.
"""

from __future__ import annotations

import gc
import random
import statistics
import sys
import time
from functools import partial
from ipaddress import IPv4Network, ip_network
from pathlib import Path
from typing import Callable

sys.path[:0] = [str(Path(__file__).resolve().parent.parent / "relay")]

from gatepost.relay import AcceptedDomain, Client, Connector, Mail, Organization, Rules, RuleSet, attribute  # noqa: E402

SIZES = (1, 100, 10_000)
ROUNDS = 61
CALLS = 500
FIRST = 10 << 24  # each organisation owns 1,024 addresses from 10.0.0.0 on
SHARED = ip_network("198.51.100.0/24")


def organization(number: int) -> Organization:
    domains = [AcceptedDomain(f"d{index}.org{number}.example", default=index == 0) for index in range(9)]
    domains.append(AcceptedDomain(f"wide.org{number}.example", match_subdomains=True))
    first = FIRST + number * 1024
    offsets = {24: 0, 25: 256, 28: 512, 32: 768}
    own = [IPv4Network((first + offset, length)) for length, offset in offsets.items()]
    connectors = (
        Connector("networks", sender_ip_addresses=(*own, SHARED)),
        Connector("exact", tls_sender_certificate_name=f"mail.d1.org{number}.example"),
        Connector("wildcard", tls_sender_certificate_name=f"*.d2.org{number}.example"),
    )
    return Organization(f"org{number}", tuple(domains), connectors)


def cases(number: int, rules: Rules) -> dict[str, Callable[[], object]]:
    """Return what is timed, for organisation *number*."""
    own = str(IPv4Network((FIRST + number * 1024 + 768, 32)).network_address)
    shared = "198.51.100.7"
    outside = "203.0.113.9"
    names = [f"host.d2.org{number}.example"]
    own_client, shared_client = rules.client(own), rules.client(shared)
    certified, unknown = rules.client(outside, names), rules.client(outside)
    mail, foreign = Mail(f"bob@d5.org{number}.example"), Mail("bob@vendor.example")
    subdomain, inside = Mail(f"bob@a.b.wide.org{number}.example"), f"d3.org{number}.example"

    def verdict(client: Client, mail: Mail, rcpt_domain: str = "gmail.com") -> Callable[[], object]:
        return partial(attribute, client, mail, rcpt_domain, rules, RuleSet.CURRENT)

    return {
        "client(): address": partial(rules.client, own),
        "client(): shared address": partial(rules.client, shared),
        "client(): certificate": partial(rules.client, outside, names),
        "client(): unknown": partial(rules.client, outside),
        "attribute(): inside": verdict(unknown, foreign, inside),
        "attribute(): P1, address": verdict(own_client, mail),
        "attribute(): P1, shared address": verdict(shared_client, mail),
        "attribute(): P1's subdomain, address": verdict(own_client, subdomain),
        "attribute(): certificate": verdict(certified, foreign),
        "attribute(): refused": verdict(own_client, foreign),
        "attribute(): refused, unknown": verdict(unknown, foreign),
    }


def microseconds(calls: list[Callable[[], object]]) -> float:
    start = time.perf_counter_ns()
    for call in calls:
        call()
    return (time.perf_counter_ns() - start) / len(calls) / 1000


def show(title: str, tables: dict[int, list[dict[str, Callable[[], object]]]]) -> None:
    """Time each case of *tables*, by size, and print a line for it."""
    print(f"\n{title}: µs a call (ratio to 1 organization)\n{'':36}" + "".join(f"{size:>18,}" for size in SIZES))
    for name in tables[1][0]:
        calls = {size: [case[name] for case in tables[size]] for size in SIZES}
        times: dict[int, list[float]] = {size: [] for size in SIZES}
        for _ in range(ROUNDS):
            for size in SIZES:
                times[size].append(microseconds(calls[size]))
        medians = {size: statistics.median(times[size]) for size in SIZES}
        shown = "".join(f"{medians[size]:>9.2f}  (×{medians[size] / medians[1]:.2f})" for size in SIZES)
        print(f"{name:36}{shown}", flush=True)


def main() -> None:
    same, spread = {}, {}
    for size in SIZES:
        start = time.perf_counter()
        rules = Rules(organization(number) for number in range(size))
        print(f"{size:>6,} organizations: tables built in {time.perf_counter() - start:.2f} s")
        same[size] = [cases(size - 1, rules)] * CALLS
        numbers = [call * size // CALLS for call in range(CALLS)]
        random.Random(1).shuffle(numbers)
        spread[size] = [cases(number, rules) for number in numbers]
    gc.freeze()
    gc.disable()  # a collection would walk the tables of all sizes, at the cost of whichever call it hits
    show("The same organization again and again", same)
    show(f"{CALLS} organizations in turn, cache misses included", spread)


if __name__ == "__main__":
    main()
