# SPDX-License-Identifier: GPL-3.0-or-later
"""Where a Postfix hands mail to a content filter, and whether what it calls a filter leads outside."""

from __future__ import annotations

import re
from collections.abc import Iterator

from gatepost.admin.postfix.config import PostfixConfig, Service
from gatepost.admin.postfix.relaying import restrictions
from gatepost.admin.postfix.tables import Tables

FILTERS = ("content_filter", "smtpd_proxy_filter")
"""The parameters that hand mail to a filter."""
RESTRICTION_LISTS = (
    *("smtpd_client_restrictions", "smtpd_helo_restrictions", "smtpd_sender_restrictions"),
    *("smtpd_relay_restrictions", "smtpd_recipient_restrictions", "smtpd_data_restrictions"),
    *("smtpd_end_of_data_restrictions", "smtpd_etrn_restrictions"),
)
_CHECKS = ("header_checks", "mime_header_checks", "nested_header_checks", "body_checks", "milter_header_checks")
_ACTION = re.compile(r"\bFILTER\s+([^\s{}]+)", re.IGNORECASE)
_LOOPBACK = re.compile(r"^\[?(127\.|localhost\b|::1\b|ipv6:::1\b)", re.IGNORECASE)
_CLEANUP = Service("", "", "", "", "", "", "", "cleanup")


def filter_actions(config: PostfixConfig) -> Iterator[tuple[str, str]]:
    """Yield the FILTER actions of tables: `parameter: table`, and where mail goes. LDAP, SQL and such are not read."""
    tables = Tables(config)
    for name, table in dict.fromkeys(_tables(config)):
        for found in _ACTION.finditer(tables.text(table)):
            yield f"{name}: {table}", found[1]


def _tables(config: PostfixConfig) -> Iterator[tuple[str, str]]:
    for service in config.smtpds:
        for name in RESTRICTION_LISTS:
            for item in restrictions(config, service, name):
                if item.table:
                    yield name, item.table
    for service in [_CLEANUP, *(item for item in config.services if item.command == "cleanup")]:
        for name in _CHECKS:
            for table in config.effective_entries(service, name):
                yield name, table


def leads_outside(config: PostfixConfig, destination: str) -> bool:
    """Say whether a `transport:nexthop` hands mail on by SMTP, whatever the transport's name is."""
    transport, _, nexthop = destination.partition(":")
    if not transport:
        return bool(nexthop)
    service = config.service(transport, "unix")
    return service is not None and service.command == "smtp"


def is_loopback(destination: str) -> bool:
    """Say whether a `transport:nexthop`, or a `host:port`, is on this host."""
    return any(_LOOPBACK.match(text) for text in (destination, destination.partition(":")[2]))
