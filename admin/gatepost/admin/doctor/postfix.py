# SPDX-License-Identifier: GPL-3.0-or-later
"""Checks of whether Postfix knows gatepost, and what the other checks of it share: topology, table, entries."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Optional

from gatepost.admin.doctor import postfix_entries as entries
from gatepost.admin.doctor.model import (
    Check,
    Circumstances,
    Finding,
    Run,
    command,
    error,
    info,
    installing,
    instance,
    ok,
    warning,
)
from gatepost.admin.doctor.postfix_entries import EGRESS, FORWARD, REVERSE, Entry, postconf
from gatepost.admin.postfix import wiring as postfix_wiring
from gatepost.admin.postfix.config import NoPostfixError, PostfixConfig, Service
from gatepost.admin.postfix.relaying import restrictions
from gatepost.admin.postfix.wiring import Hop, Sockets, Topology, Wire
from gatepost.admin.setup import sockets as setup_sockets
from gatepost.admin.setup.plan import Plan, Planner, derived_topology, hop_of
from gatepost.admin.setup.sockets import UnreachableError
from gatepost.service import config as service_config
from gatepost.service.tables import ConfigError


def topology(circumstances: Circumstances) -> Topology:
    """Return which topology gatepost.toml describes; that canonical maps alone are used main.cf tells, too."""
    derived = _derived(circumstances)
    maps = {name: list(lists_with(circumstances, name)) for name in (FORWARD, REVERSE)}
    canonical = maps[FORWARD] or "recipient_canonical_maps" in maps[REVERSE]
    if derived is not Topology.RELAY_HUB or not canonical:
        return derived
    milter = any(our_milter(circumstances, service) for service in circumstances.postfix.smtpds)
    return Topology.RELAY_HUB if milter else Topology.POSTSRSD_REPLACEMENT


def _derived(circumstances: Circumstances) -> Topology:
    """Return the topology that setup would choose."""
    try:
        given: Mapping[str, object] = service_config.read(circumstances.config.path)
    except ConfigError:
        given = {"milter": {}}
    return derived_topology(circumstances.config, given)


def setup(circumstances: Circumstances) -> str:
    """Return the command that wires gatepost into the Postfix that is looked at."""
    where = instance(circumstances, "--config-directory")
    wanted = topology(circumstances)
    option = "" if wanted is _derived(circumstances) else f" --topology {wanted.value}"
    note = "   # without --apply it only says what it would do"
    return command(circumstances, f"setup postfix{where}{option} --apply{note}")


@lru_cache(maxsize=1)
def plan(circumstances: Circumstances) -> Plan:
    """Return what setup would change."""
    postfix, config = circumstances.postfix, circumstances.config
    return Planner(postfix, config, topology(circumstances), sockets(circumstances)).plan()


def mended(circumstances: Circumstances, name: str, value: str, service: Optional[Service] = None) -> list[str]:
    """Return the commands that set a parameter as setup would; to *value* where that leaves it alone."""
    where = service.key if service and name in service.overrides else ""
    for change in plan(circumstances).changes:
        if (change.service, change.parameter) == (where, name):
            blanks = where and re.search(r"\s", change.new)
            return [setup(circumstances)] if blanks else postconf(circumstances, name, change.new, service)
    return postconf(circumstances, name, value, service)


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
                f"postconf{instance(circumstances)} -n >/dev/null",
            )
        version = postfix.defaults.get("mail_version", "")
        yield ok(f"Postfix {version}, {postfix.config_directory}")
        for other in postfix.instances[1:]:
            yield info(
                f"another Postfix instance, {other.name}, was not looked at",
                "Each instance has a configuration of its own.",
                _looking_at(circumstances, other.directory),
            )
    elif not isinstance(circumstances.postfix_problem, NoPostfixError):
        yield error(
            f"Postfix cannot read its configuration: {circumstances.postfix_problem}",
            "It does not start with it. While it runs it goes on, and its daemons fail as they are started anew.",
            f"postfix{instance(circumstances)} check",
        )
    elif not circumstances.sendmail_cf.exists():
        yield error(
            f"neither Postfix nor Sendmail: {circumstances.postfix_problem}",
            "gatepost judges what an MTA hands to it; without one it does nothing.",
            installing("postfix"),
            "systemctl restart gatepost.target   # makes the folder of the sockets, too",
        )


def _looking_at(circumstances: Circumstances, directory: Path) -> str:
    return command(circumstances, f"doctor --config-directory {shlex.quote(str(directory))}")


def _names_gatepost(directory: Path) -> bool:
    """Tell whether the instance in *directory* has gatepost in main.cf or master.cf. Raises PostfixError."""
    other = PostfixConfig.read(directory)
    overrides = (value for service in other.services for value in service.overrides.values())
    return any("gatepost" in value for value in (*(other.value(name) for name in other.names), *overrides))


def wired(circumstances: Circumstances) -> Iterator[Finding]:
    """Whether Postfix knows gatepost at all."""
    known = _known(circumstances)
    if known:
        yield ok(f"Postfix uses of gatepost: {', '.join(known)}")
        return
    directory = circumstances.postfix.config_directory
    others = [item for item in circumstances.postfix.instances[1:] if _names_gatepost(item.directory)]
    if others:
        yield info(
            f"Postfix in {directory} does not know gatepost; {', '.join(item.name for item in others)} does",
            "What this instance takes passes as if gatepost were not there.",
            *(_looking_at(circumstances, item.directory) for item in others),
        )
    else:
        yield error(
            f"Postfix does not know gatepost: no milter, no policy service, no map in {directory}",
            "Mail passes as if gatepost were not there.",
            setup(circumstances),
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
    for item in restrictions(circumstances.postfix, service, name):
        if entries.is_policy(circumstances, item, chrooted=chrooted):
            return entries.policy(item)
    return None


# What no other check looks at

_BY_SMTPD = (
    *("smtpd_milters", "smtpd_command_filter", "smtpd_policy_service_default_action", *_LISTS),
    *("smtpd_tls_ask_ccert", "smtpd_tls_fingerprint_digest", "smtpd_tls_loglevel"),
)
_BY_OTHERS = (
    *("milter_default_action", "non_smtpd_milters", "virtual_alias_maps", "virtual_alias_domains"),
    *("sender_dependent_default_transport_maps", "address_verify_sender_dependent_default_transport_maps"),
    "recipient_canonical_maps",
)
"""Parameters that checks of their own look at, which know more than whether the text is the same."""


def wiring(circumstances: Circumstances) -> Iterator[Finding]:
    """Whether the rest of what the table has is there: what setup would change and no other check looks at."""
    wanted = topology(circumstances)
    rest = 0
    for change in plan(circumstances).changes:
        name, value = change.parameter, change.old or ""
        if _is_looked_at(circumstances, name, change.service):
            continue
        rest += 1
        where = f"{change.service}: " if change.service else ""
        # What slows forwarded mail down does not lose it.
        kind = warning if name.endswith(("_delay", "_concurrency_limit")) else error
        current = f'"{value}"' if change.old is not None else "not set"
        text = f'{where}{name} is {current}; topology {wanted.value} needs "{change.new}"'
        yield kind(text, change.why, setup(circumstances))
    if not rest:
        yield ok(f"the rest of what topology {wanted.value} needs is there")


def _is_looked_at(circumstances: Circumstances, name: str, key: str) -> bool:
    """Tell whether a check looks at the parameter *name* of main.cf, or of the service *key*."""
    if name in _BY_SMTPD:
        return True
    if not key:
        return name in _BY_OTHERS or (name == "sender_canonical_maps" and any(lists_with(circumstances, FORWARD)))
    service = next(item for item in circumstances.postfix.services if item.key == key)
    there = hop(circumstances)
    if service.name in (there.transport, there.cleanup) or entries.is_hop(circumstances, service):
        return True
    return service.command == "cleanup" and name in _BY_OTHERS


CHECKS = (
    Check("postfix", "Postfix", found),
    Check("wired-in", "Postfix", wired),
    Check("wiring", "Postfix", once_wired(wiring)),
)
