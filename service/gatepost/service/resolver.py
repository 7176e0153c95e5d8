# SPDX-License-Identifier: GPL-3.0-or-later
"""A resolver for look-ups beside the mail, bounded in time."""

from __future__ import annotations

from collections.abc import Sequence

import dns.resolver

_EDNS_OCTETS = 1232
_TRIES = 4


def resolver(nameservers: Sequence[tuple[str, int]], timeout_s: float) -> dns.resolver.Resolver:
    """Return one that asks *nameservers*, addresses and ports, the system's where none is given.

    timeout_s: for all that is asked together; a silent name server leaves time for the next one.
    """
    try:
        made = dns.resolver.Resolver(configure=not nameservers)
    except dns.resolver.NoResolverConfiguration:
        made = dns.resolver.Resolver(configure=False)  # has no name server: every look-up fails
    if nameservers:
        made.nameservers = [host for host, _ in nameservers]
        made.nameserver_ports = dict(nameservers)
    made.timeout = timeout_s / _TRIES
    made.use_edns(0, 0, _EDNS_OCTETS)
    return made
