# SPDX-License-Identifier: GPL-3.0-or-later
"""The verdict on one recipient of one message, with every condition that was tried on the way to it."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple, Optional

from gatepost.relay.organization import AcceptedDomain, Connector, Organization


class RuleSet(Enum):
    """Which rules hold (R1): since 2023-11-01, or before, when P2 counted like P1."""

    CURRENT = "2023-11-01"
    LEGACY = "legacy"


class Result(Enum):
    """What the relay rule says about a recipient."""

    INSIDE = "inside"
    """The recipient is ours: no relay (R2)."""
    EXEMPT = "exempt"
    """The client may relay by what it is: authenticated, or on this host."""
    RELAY = "relay"
    REFUSE = "refuse"


class Reason(Enum):
    """Why; short, for log lines and metric labels."""

    RECIPIENT_ACCEPTED = "recipient-accepted"
    RECIPIENT_LOCAL = "recipient-local"
    AUTHENTICATED = "authenticated"
    LOCAL_SUBMISSION = "local-submission"
    CERTIFICATE_ACCEPTED = "certificate-accepted"
    P1_ACCEPTED = "p1-accepted"
    P2_ACCEPTED = "p2-accepted"
    NOTHING_ACCEPTED = "nothing-accepted"
    """Condition (1) failed: neither certificate nor P1 (nor, under legacy, P2) is accepted."""
    NULL_SENDER = "null-sender-without-certificate"
    """Condition (1) failed for the null reverse-path, which only a certificate can help (R5)."""
    NO_CONNECTOR = "no-connector"
    """Condition (2) failed: no enabled connector of an organisation that met (1) matches the client."""
    CONNECTOR_FOR_OTHER_DOMAINS = "connector-for-other-domains"
    """Condition (2) failed: the connector that matches is limited to other accepted domains (R11)."""


class Condition(Enum):
    """What a step of the trace tested."""

    RECIPIENT_INSIDE = "recipient-inside"
    AUTHENTICATED = "authenticated"
    LOCAL_SUBMISSION = "local-submission"
    CERTIFICATE_ACCEPTED = "certificate-accepted"
    P1_ACCEPTED = "p1-accepted"
    P2_ACCEPTED = "p2-accepted"
    CONNECTOR_CERTIFICATE = "connector-certificate"
    """The connector matches the client's certificate name."""
    CONNECTOR_ADDRESS = "connector-address"
    """The connector matches the client's IP address."""
    CONNECTOR_ANY = "connector-any"
    """Any enabled connector of the organisation (None: of any) matches the client."""
    CONNECTOR_ENABLED = "connector-enabled"
    """The connector, which covers the client, is enabled (R6)."""
    CONNECTOR_DOMAINS = "connector-domains"
    """The connector, which matches the client, counts for the accepted domain (R11)."""


class Step(NamedTuple):
    """One condition tried: what was *looked_at* (domain, IP address or name) and what it was compared with.

    A sender without a domain is looked at as `<address>`, the null reverse-path as `<>`. An accepted domain with
    *held* False covers the domain looked at, but by MatchSubDomains, which is set not to count (R4). A connector
    match without organisation means connectors of several.
    """

    condition: Condition
    looked_at: str
    organization: Optional[Organization]
    connector: Optional[Connector]
    accepted_domain: Optional[AcceptedDomain]
    held: bool


class Verdict(NamedTuple):
    """The decision on one recipient.

    organization: the recipient's (INSIDE, None for a local domain), else the one that the mail is attributed
    to; for REFUSE the one that is meant: the first that met condition (1), else the only one with a connector
    for the client. connector, accepted_domain: what met the conditions; for REFUSE what met one of them.
    meant: some organisation is meant: a connector matches the client, or the certificate, P1 or P2 asked for
    is accepted. False for INSIDE, where nothing is relayed.
    """

    result: Result
    reason: Reason
    organization: Optional[Organization]
    connector: Optional[Connector]
    accepted_domain: Optional[AcceptedDomain]
    trace: tuple[Step, ...]
    meant: bool


@dataclass(frozen=True)
class Mail:
    """The sender addresses of a message.

    reverse_path: P1 without angle brackets, "" for the null reverse-path. header_from: the addr-specs of P2.
    """

    reverse_path: str
    header_from: tuple[str, ...] = ()
