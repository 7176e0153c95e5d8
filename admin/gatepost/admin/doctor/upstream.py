# SPDX-License-Identifier: GPL-3.0-or-later
"""Checks of [upstream]: whether Exchange Online takes this host for the one that its inbound connector names."""

from __future__ import annotations

from collections.abc import Iterator

from gatepost.admin.doctor.addresses import is_own, outgoing, telling
from gatepost.admin.doctor.dns import EXCHANGE_ONLINE, addresses_of, each, exchanges, here_of
from gatepost.admin.doctor.model import Check, Circumstances, Edit, Finding, error, info, ok, unknown, warning
from gatepost.admin.doctor.postfix_entries import postconf
from gatepost.relay import enumeration
from gatepost.service.spf import Lookups


def tenant_exchangers(circumstances: Circumstances) -> Iterator[Finding]:
    """Whether mail for the tenant's default domain gets to Exchange Online, or to this host."""
    upstream = circumstances.snapshot.upstream
    if upstream is None:
        return
    here = here_of(circumstances)

    def ask(domain: str, lookups: Lookups) -> list[Finding]:
        hosts = exchanges(domain, lookups)
        if any(host.endswith(EXCHANGE_ONLINE) for host in hosts):
            return [ok(f"{domain}: its MX {enumeration(hosts)} is Exchange Online")]
        if any(here.is_called(host, addresses_of(host, lookups)) for host in hosts):
            return [ok(f"{domain}: its MX {enumeration(hosts)} is this host")]
        return [
            info(
                f"{domain}: its MX {enumeration(hosts) or '(none)'} is neither Exchange Online nor this host",
                "Mail for the tenant's mailboxes takes a way that [upstream] says nothing of.",
            )
        ]

    yield from each(circumstances, [upstream.organization.default_domain], ask)


def connector_address(circumstances: Circumstances) -> Iterator[Finding]:
    """Whether this host sends from an address that its connector at Exchange Online has."""
    upstream = circumstances.snapshot.upstream
    if upstream is None:
        return
    (connector,) = upstream.organization.connectors
    networks = connector.sender_ip_addresses
    if not networks:
        return
    sending = outgoing(circumstances)
    listed = ", ".join(map(str, networks))
    wrong = [address for address in sending.addresses if not upstream.rules.client(address).enabled]
    if wrong:
        finding = warning if len(wrong) < len(sending.addresses) else error
        yield finding(
            f"this host sends from {', '.join(wrong)}, and upstream.sender_ip_addresses has {listed}",
            "Exchange Online takes it for a stranger, and refuses mail to outside: 550 5.7.64 TenantAttribution.",
            *_binding(circumstances, str(networks[0].network_address)),
            Edit(
                "in Exchange Online: Set-InboundConnector -Identity NAME -SenderIPAddresses "
                f"{','.join([*map(str, networks), *wrong])}"
            ),
        )
    elif sending.addresses:
        yield ok(f"{', '.join(sending.addresses)} is in upstream.sender_ip_addresses")
    if sending.hidden:
        yield unknown(
            f"whether {listed} is what Exchange Online sees of this host is not known: {sending.hidden}",
            "",
            *telling(circumstances),
        )


def _binding(circumstances: Circumstances, address: str) -> list[str]:
    """Return the commands that have mail leave from *address*, where this host has it."""
    name = "smtp_bind_address6" if ":" in address else "smtp_bind_address"
    return postconf(circumstances, name, address) if circumstances.has_postfix and is_own(address) else []


CHECKS = (
    Check("upstream-mx", "DNS", tenant_exchangers),
    Check("upstream-address", "DNS", connector_address),
)
