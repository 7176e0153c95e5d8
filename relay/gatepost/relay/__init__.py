# SPDX-License-Identifier: GPL-3.0-or-later
"""The relay rule of Exchange Online: who may relay through this host, in whose name, and why.

Pure: no clock, file, socket or logger. `Rules` holds the organisations, `Rules.client` looks a connection up
once, `attribute` decides on each recipient, `explain` puts a verdict in words.
"""

from gatepost.relay.attribution import attribute
from gatepost.relay.names import domain_of, normalize_domain
from gatepost.relay.organization import AcceptedDomain, Connector, DomainType, Network, Organization
from gatepost.relay.patterns import Patterns
from gatepost.relay.rules import Accepted, Client, Rules, known_client
from gatepost.relay.verdict import Condition, Mail, Reason, Result, RuleSet, Step, Verdict
from gatepost.relay.words import Explanation, decision, enumeration, explain

__all__ = [
    "Accepted",
    "AcceptedDomain",
    "Client",
    "Condition",
    "Connector",
    "DomainType",
    "Explanation",
    "Mail",
    "Network",
    "Organization",
    "Patterns",
    "Reason",
    "Result",
    "RuleSet",
    "Rules",
    "Step",
    "Verdict",
    "attribute",
    "decision",
    "domain_of",
    "enumeration",
    "explain",
    "known_client",
    "normalize_domain",
]
