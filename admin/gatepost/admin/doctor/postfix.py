# SPDX-License-Identifier: GPL-3.0-or-later
"""Checks of whether Postfix knows gatepost, and what the other checks of it share: topology, table, entries."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Optional

from gatepost.admin.doctor import postfix_entries as entries
from gatepost.admin.doctor.model import Check, Circumstances, Finding, Run, command, error, info, ok, warning
from gatepost.admin.doctor.postfix_entries import EGRESS, FORWARD, REVERSE, Entry
from gatepost.admin.postfix import wiring as postfix_wiring
from gatepost.admin.postfix.config import Service
from gatepost.admin.postfix.wiring import Hop, Sockets, Topology, Wire
from gatepost.admin.setup import sockets as setup_sockets
from gatepost.admin.setup.plan import derived_topology, hop_of
from gatepost.admin.setup.sockets import UnreachableError

SETUP = "setup postfix --apply   # without --apply it only says what it would do"


def topology(circumstances: Circumstances) -> Topology:
    """Return which topology gatepost.toml describes; that canonical maps alone are used main.cf tells."""
    derived = derived_topology(circumstances.config, {"milter": {}})
    lists = (circumstances.postfix.expanded(name) for name in ("sender_canonical_maps", "canonical_maps"))
    forward = (entries.is_map(circumstances, item, FORWARD) for value in lists for item in entries.lookups(value))
    return Topology.POSTSRSD_REPLACEMENT if derived is Topology.RELAY_HUB and any(forward) else derived


def sockets(circumstances: Circumstances) -> Sockets:
    """Return how this Postfix is to call gatepost's sockets, as in the examples where it cannot reach them."""
    try:
        return setup_sockets.sockets(circumstances.postfix, circumstances.config, topology(circumstances))
    except UnreachableError:  # a check of its own says so
        return Sockets()


def hop(circumstances: Circumstances) -> Hop:
    """Return where the egress hop is."""
    return hop_of(circumstances.config)


def wire(circumstances: Circumstances, parameter: str) -> Optional[Wire]:
    """Return what the table says of a parameter of main.cf, None where this topology does not need it."""
    table = postfix_wiring.main_cf(topology(circumstances), sockets(circumstances), hop(circumstances))
    return next((item for item in table if item.parameter == parameter), None)


# Is there a Postfix, and does it know gatepost


def found(circumstances: Circumstances) -> Iterator[Finding]:
    """Whether there is a Postfix whose configuration can be read, and what it complains of."""
    if circumstances.has_postfix:
        postfix = circumstances.postfix
        for complaint in postfix.complaints:
            yield warning(
                f"postconf says: {complaint}",
                "What is misspelled has no effect, and Postfix goes by the default.",
                f"postconf{entries.directory(circumstances)} -n >/dev/null",
            )
        version = postfix.defaults.get("mail_version", "")
        yield ok(f"Postfix {version}, {postfix.config_directory}")
        for other in postfix.instances[1:]:
            yield info(
                f"another Postfix instance, {other.name}, was not looked at",
                "Each instance has a configuration of its own.",
                command(circumstances, f"doctor --config-directory {other.directory}"),
            )
    elif not circumstances.sendmail_cf.exists():
        yield error(
            f"neither Postfix nor Sendmail: {circumstances.postfix_problem}",
            "gatepost judges what an MTA hands to it; without one it does nothing.",
            "apt-get install postfix",
        )


def wired(circumstances: Circumstances) -> Iterator[Finding]:
    """Whether Postfix knows gatepost at all."""
    known = _known(circumstances)
    if known:
        yield ok(f"Postfix uses of gatepost: {', '.join(known)}")
    else:
        directory = circumstances.postfix.config_directory
        yield error(
            f"Postfix does not know gatepost: no milter, no policy service, no map in {directory}",
            "Mail passes as if gatepost were not there.",
            command(circumstances, SETUP),
        )


def _known(circumstances: Circumstances) -> list[str]:
    """Return what Postfix uses of gatepost."""
    known = []
    smtpds = circumstances.postfix.smtpds
    if any(our_milter(circumstances, service) for service in smtpds):
        known.append("milter")
    if any(asks(circumstances, service, name) for service in smtpds for name in _LISTS):
        known.append("policy service")
    return known + [f"map {name}" for name in (REVERSE, EGRESS, FORWARD) if list(lists_with(circumstances, name))]


def once_wired(run: Run) -> Run:
    """Return a check that has nothing to say where Postfix does not know gatepost: one finding is enough then."""
    return lambda circumstances: run(circumstances) if _known(circumstances) else iter(())


_LISTS = ("smtpd_relay_restrictions", "smtpd_recipient_restrictions", "smtpd_data_restrictions")
_MAP_LISTS = (
    *("virtual_alias_maps", "recipient_canonical_maps", "canonical_maps", "sender_canonical_maps"),
    "sender_dependent_default_transport_maps",
)


def lists_with(circumstances: Circumstances, name: str) -> Iterator[str]:
    """Yield the parameters that have gatepost's map *name*."""
    for parameter in _MAP_LISTS:
        tables = entries.lookups(circumstances.postfix.expanded(parameter))
        if any(entries.is_map(circumstances, table, name) for table in tables):
            yield parameter


def our_milter(circumstances: Circumstances, service: Service) -> Optional[Entry]:
    """Return gatepost's entry in smtpd_milters as *service* has it."""
    chrooted = circumstances.postfix.is_chrooted(service)
    milters = entries.milters(circumstances.postfix.effective(service, "smtpd_milters"))
    return next((item for item in milters if entries.is_milter(circumstances, item, chrooted=chrooted)), None)


def asks(circumstances: Circumstances, service: Service, name: str) -> Optional[Entry]:
    """Return how *service* asks policyd in the list *name*, None where it does not."""
    chrooted = circumstances.postfix.is_chrooted(service)
    for item in entries.restrictions(circumstances.postfix, service, name):
        if entries.is_policy(circumstances, item, chrooted=chrooted):
            return item.policy
    return None


CHECKS = (
    Check("postfix", "Postfix", found),
    Check("wired-in", "Postfix", wired),
)
