# SPDX-License-Identifier: GPL-3.0-or-later
"""Check of the mailbox bounces: it gets what comes in for SRS addresses and is no bounce of this host's (S9)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Optional

from gatepost.admin.doctor import postfix_entries as entries
from gatepost.admin.doctor.dns import srs_domains
from gatepost.admin.doctor.model import Check, Circumstances, Finding, info, ok, unknown, warning
from gatepost.admin.postfix.config import PostfixError, split
from gatepost.admin.postfix.tables import Tables, domain_list
from gatepost.service.rewriting import BOUNCES
from gatepost.service.snapshot import mint_domain
from gatepost.service.srs_config import COMPACT, Format

_MAPS = {
    "mydestination": "local_recipient_maps",
    "virtual_mailbox_domains": "virtual_mailbox_maps",
    "relay_domains": "relay_recipient_maps",
}
"""Which parameter says who is there, by the one that has the domain."""
_WHY = (
    "Mail to it gets no such user, and so do bounces to bounces+SRS=… that this host has not made, as Exchange Online "
    "makes them in its domain."
)


def mailbox(circumstances: Circumstances) -> Iterator[Finding]:
    """Whether bounces@ takes mail in every domain that relayed mail is rewritten to."""
    config = circumstances.config
    if config.srs.format is not Format.EXCHANGE and not config.srs.reverses(COMPACT):
        return  # only these have the mailbox in them
    minting = {mint_domain(config, item) for item in config.organizations.values()}
    for domain in srs_domains(circumstances.snapshot):
        if domain in minting:
            yield _mailbox(circumstances, domain)


def _mailbox(circumstances: Circumstances, domain: str) -> Finding:
    postfix, address = circumstances.postfix, f"{BOUNCES}@{domain}"
    tables = Tables(postfix)
    alias = f"inline:{{ {{{address} = postmaster@{postfix.expanded('myhostname')}}} }}"
    maps = ", ".join([*split(postfix.value("virtual_alias_maps")), alias])
    remedy = entries.postconf(circumstances, "virtual_alias_maps", maps)
    try:
        goal = _goal(circumstances, tables, "virtual_alias_maps", [address, f"@{domain}"])
        if goal:
            return ok(f"{address} leads to {goal}")
        listed = domain_list(tables, domain)
        if listed is None:
            return info(f"{address} is not in Postfix, for {domain} is none of its domains", _WHY)
        name = _MAPS.get(listed)
        if name is None:
            what = f"{address} does not exist: {listed} has {domain}, virtual_alias_maps not {BOUNCES}"
            return warning(what, _WHY, *remedy)
        if not postfix.expanded(name):
            return ok(f"{address} is taken: {name} is empty, so that Postfix takes every recipient in {domain}")
        keys = [address, f"@{domain}", *([BOUNCES] if listed == "mydestination" else [])]
        if _goal(circumstances, tables, name, keys):
            return ok(f"{address} is in {name}")
    except PostfixError as failure:
        return unknown(f"whether {address} exists is not known: {failure}")
    return warning(f"{address} does not exist: it is in neither virtual_alias_maps nor {name}", _WHY, *remedy)


def _goal(circumstances: Circumstances, tables: Tables, name: str, keys: Sequence[str]) -> Optional[str]:
    """Return the first answer of a parameter's tables, but gatepost's own. Raises PostfixError."""
    for table in split(circumstances.postfix.expanded(name)):
        if any(entries.is_map(circumstances, item, entries.REVERSE) for item in entries.lookups(table)):
            continue
        for key in keys:
            found = tables.query(table, key)
            if found is not None:
                return found
    return None


CHECKS = (Check("bounces-mailbox", "Postfix", mailbox),)
