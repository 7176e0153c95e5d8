# SPDX-License-Identifier: GPL-3.0-or-later
"""The table of what each topology needs in main.cf, and why: setup writes it, doctor compares with it.

postfix_hop has the same for master.cf. The files in examples/postfix say the same, as a test insists.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Optional

OLDEST = (3, 4)
"""The oldest Postfix that it is tried with: braces with a default action of their own came with 3.0."""

AWAY = "451 4.3.0 Service unavailable, try again later"
FILTER_FILE = "gatepost_command_filter"
"""The table of smtpd_command_filter, in the configuration directory; postsrsd-replacement has three."""


class Topology(Enum):
    RELAY_HUB = "relay-hub"
    FORWARDER = "forwarder"
    EXCHANGE_ONLINE = "exchange-online"
    POLICY_ONLY = "policy-only"
    POSTSRSD_REPLACEMENT = "postsrsd-replacement"

    @property
    def has_milter(self) -> bool:
        """Whether the milter decides in it, and the reverse map stands in virtual_alias_maps."""
        return self in (Topology.RELAY_HUB, Topology.FORWARDER, Topology.EXCHANGE_ONLINE)


class Kind(Enum):
    """How a value combines with what is there.

    VALUE: it takes its place. UNLESS_SET: only where main.cf says nothing. MAP: it is first in the list. LAST_MAP: it
    is in the list, behind what is there: an address that another table changes is looked up again. TABLE: there can be
    no other. MILTER,
    POLICY: the same, and it may stand in braces with a default action of its own. DEFAULT_ACTION: the value, unless
    others depend on the parameter, too. RELAY: a policy service, and a list that ends in reject_unauth_destination.
    ALIAS_DOMAINS: as it was, without the maps that gatepost answers. PROBES: as the list that it follows was.
    """

    VALUE = "value"
    UNLESS_SET = "unless set"
    MAP = "map"
    LAST_MAP = "last map"
    TABLE = "table"
    MILTER = "milter"
    POLICY = "policy"
    DEFAULT_ACTION = "default action"
    RELAY = "relay"
    ALIAS_DOMAINS = "alias domains"
    PROBES = "probes"


@dataclass(frozen=True)
class Wire:
    """One parameter of main.cf: *value* is gatepost's part of it.

    for_certificates: wanted only where a connector has a certificate name. suffice: other values that do as well.
    """

    parameter: str
    kind: Kind
    value: str
    why: str
    for_certificates: bool = False
    suffice: tuple[str, ...] = ()


@dataclass(frozen=True)
class Sockets:
    """How Postfix is to call gatepost's sockets: `unix:gatepost/milter.sock`, `inet:127.0.0.1:10041`."""

    milter: str = "unix:gatepost/milter.sock"
    policyd: str = "unix:gatepost/policyd.sock"
    forward: Optional[str] = None
    reverse: Optional[str] = None

    def map(self, name: str) -> str:
        """Return the table *name* (forward, reverse, egress) for main.cf."""
        instead = {"forward": self.forward, "reverse": self.reverse}.get(name)
        return instead or f"socketmap:{self.policyd}:{name}"


@dataclass(frozen=True)
class Hop:
    """Where the egress hop is: what [egress] in gatepost.toml says."""

    transport: str = "gatepost-egress"
    listen: str = "127.0.0.1:10027"
    daemon_name: str = "gatepost-egress"

    @property
    def cleanup(self) -> str:
        return f"{self.transport.partition('-egress')[0]}-cleanup"

    @staticmethod
    def of(transport: str, daemon_name: str) -> Hop:
        """Return the hop that `name:[address]:port` leads to."""
        name, _, nexthop = transport.partition(":")
        host, _, port = nexthop.rpartition(":")
        host = host.strip("[]")
        return Hop(name, f"[{host}]:{port}" if ":" in host else f"{host}:{port}", daemon_name)


# The rules of smtpd_command_filter, as in regexp_table(5).

_ENCODED = (
    r"/^(RCPT[[:space:]]+TO:<[^>]*)([+]|%2B)SRS%3D([^%>]+)%3D([^%>]+)%3D([^%>]+)%3D([^%>]+>).*$/ $1+SRS=$3=$4=$5=$6",
    r"/^(RCPT[[:space:]]+TO:<[^>]*)([+]|%2B)SRS%3D([^%>]+)%3D([^%>]+)%3D([^%>]+)%3D([^%>]*)%2B([^%>]+>).*$/"
    " $1+SRS=$3=$4=$5=$6+$7",
    r"/^(RCPT[[:space:]]+TO:<[^>]*)([+]|%2B)SRS%3D([^%>]+)%3D([^%>]+)%3D([^%>]+)%3D([^%>]*)%3D([^%>]+>).*$/"
    " $1+SRS=$3=$4=$5=$6=$7",
    r"/^(RCPT[[:space:]]+TO:<[^>]*)([+]|%2B)SRS%3D([^%>]+)%3D([^%>]+>).*$/ $1+SRS=$3=$4",
)
_ORCPT = (
    "/^RCPT[[:space:]].*[[:space:]]ORCPT=.*[[:space:]]ORCPT=/ RCPT",
    r"/^(RCPT[[:space:]].*)[[:space:]]ORCPT=[^[:space:]]*(.*)$/ $1$2",
)
_ANY_PERCENT = (r"/^(RCPT[[:space:]]+TO:[^>]*%[^>]*>.*)$/ $1",)
_ANY_SRS = (r"/^(RCPT[[:space:]]+TO:[[:space:]]*<(SRS[01]|[^>]*([+]|%2B)SRS)([=+-]|%3D|%2B).*)$/ $1",)
_ONE_ENCODED = (
    "/^(RCPT[[:space:]]+TO:[^>]*)%3D([^>]*>.*)$/ $1=$2",
    "/^(RCPT[[:space:]]+TO:[^>]*)%2B([^>]*>.*)$/ $1+$2",
    "/^(RCPT[[:space:]]+TO:[^>]*)%2F([^>]*>.*)$/ $1/$2",
    "/(.*)/ $1",
)
_ENCODED_UP_TO = 10

_DECODING = (
    "Some sites write %2B and %3D for the + and = of an SRS address when they send a bounce, and % is a route to"
    " elsewhere for Postfix, so such a recipient is written as it was."
)


def filter_files(topology: Topology) -> dict[str, tuple[str, ...]]:
    """Return the tables of smtpd_command_filter: the rules by the file's name."""
    if topology is Topology.POLICY_ONLY:
        return {}
    if topology is Topology.POSTSRSD_REPLACEMENT:
        return {f"{FILTER_FILE}_1": _ANY_PERCENT, f"{FILTER_FILE}_2": _ANY_SRS, f"{FILTER_FILE}_3": _ONE_ENCODED}
    return {FILTER_FILE: (*_ENCODED, *(_ORCPT if topology is Topology.FORWARDER else ()))}


def _command_filter(topology: Topology) -> str:
    tables = [f"regexp:$config_directory/{name}" for name in filter_files(topology)]
    if topology is not Topology.POSTSRSD_REPLACEMENT:
        return tables[0]
    return f"pipemap:{{{', '.join([*tables[:2], *tables[2:] * _ENCODED_UP_TO])}}}"


def main_cf(topology: Topology, sockets: Sockets, hop: Hop) -> tuple[Wire, ...]:
    """Return what main.cf needs, in the order in which a person would read it."""
    if topology is Topology.POLICY_ONLY:
        return _policy_only(sockets)
    if topology is Topology.POSTSRSD_REPLACEMENT:
        return _postsrsd_replacement(sockets)
    return (*_ingress(topology, sockets), *(_egress(sockets, hop) if topology is Topology.FORWARDER else ()))


def _ingress(topology: Topology, sockets: Sockets) -> tuple[Wire, ...]:
    forwarder = topology is Topology.FORWARDER
    why_filter = _DECODING
    if forwarder:
        why_filter += (
            " ORCPT of a client is taken out, whether an organization is declared or not: the hop learns the forwarding"
            " mailbox from it, and a client's own would choose in whose name its mail is forwarded."
        )
    return (
        Wire(
            "smtpd_milters",
            Kind.MILTER,
            sockets.milter,
            "The milter applies the relay rule to what comes in by SMTP, and "
            + (
                "notes for the egress hop what it has seen." if forwarder else "gives a foreign sender its SRS address."
            ),
        ),
        Wire(
            "non_smtpd_milters",
            Kind.MILTER,
            sockets.milter,
            "The same for mail from sendmail(1): the rule leaves it alone, but "
            + ("its forwarded copies need their mailbox." if forwarder else "a foreign sender must be rewritten."),
        ),
        Wire(
            "milter_default_action",
            Kind.DEFAULT_ACTION,
            "tempfail",
            "While the milter is away clients are asked to try again later: `accept` would let mail out unjudged and"
            " unrewritten, `reject` would lose it.",
        ),
        Wire(
            "virtual_alias_maps",
            Kind.MAP,
            sockets.map("reverse"),
            "Bounces come back: an SRS address becomes the original sender again. Here rather than in smtpd, which"
            " bounces of this Postfix itself never pass.",
        ),
        Wire(
            "virtual_alias_domains",
            Kind.ALIAS_DOMAINS,
            "",
            "The default is $virtual_alias_maps, and gatepost would be asked about every domain, in vain.",
        ),
        Wire("smtpd_command_filter", Kind.TABLE, _command_filter(topology), why_filter),
        Wire(
            "smtpd_recipient_restrictions",
            Kind.POLICY,
            sockets.policyd,
            "policyd refuses SRS addresses that are forged or expired, and tells the milter with which certificate a"
            " client comes. First: behind permit_mynetworks your own hosts would never be asked.",
        ),
        Wire(
            "smtpd_data_restrictions",
            Kind.POLICY,
            sockets.policyd,
            "An SRS address gets bounces and nothing else. At DATA and not at RCPT, where other sites probe whether"
            " it exists.",
        ),
        *_policy_default(),
        *_certificates(),
        Wire(
            "smtpd_tls_loglevel",
            Kind.VALUE,
            "1,peercert",
            "Whose certificate it is, in the log: for gatepost replay.",
            for_certificates=True,
            suffice=("2", "3", "4"),
        ),
    )


def _policy_default() -> tuple[Wire, ...]:
    return (
        Wire(
            "smtpd_policy_service_default_action",
            Kind.DEFAULT_ACTION,
            AWAY,
            "While policyd is away the client is asked to try again later; DUNNO would let mail pass unjudged.",
        ),
    )


def _certificates() -> tuple[Wire, ...]:
    return (
        Wire(
            "smtpd_tls_ask_ccert",
            Kind.VALUE,
            "yes",
            "A connector of yours has a certificate name, and clients show a certificate only where they are asked"
            " for one.",
            for_certificates=True,
        ),
        Wire(
            "smtpd_tls_fingerprint_digest",
            Kind.UNLESS_SET,
            "sha256",
            "By the fingerprint gatepost finds the certificate's other names; MD5, the default before Postfix 3.6, is"
            " weak.",
            for_certificates=True,
        ),
    )


def _egress(sockets: Sockets, hop: Hop) -> tuple[Wire, ...]:
    return (
        Wire(
            "sender_dependent_default_transport_maps",
            Kind.MAP,
            sockets.map("egress"),
            "Mail to other sites whose sender must be rewritten takes the egress hop; for all else the answer is no.",
        ),
        Wire(
            "address_verify_sender_dependent_default_transport_maps",
            Kind.PROBES,
            "",
            "Probes of reject_unverified_recipient ask the real next hop. The hop on loopback says yes to every"
            " address.",
        ),
        Wire(
            f"{hop.transport}_destination_recipient_limit",
            Kind.VALUE,
            "1",
            "One recipient a message on the hop, for each has a forwarding mailbox of its own.",
        ),
        Wire(
            f"{hop.transport}_destination_concurrency_limit",
            Kind.VALUE,
            "20",
            "All forwarded mail shares the hop: what slows down your other deliveries must not slow down this one.",
        ),
        Wire(f"{hop.transport}_destination_rate_delay", Kind.VALUE, "0s", "No pause between messages on the hop."),
        Wire(f"{hop.transport}_transport_rate_delay", Kind.VALUE, "0s", "No pause between messages on the hop."),
    )


def _policy_only(sockets: Sockets) -> tuple[Wire, ...]:
    return (
        Wire(
            "smtpd_relay_restrictions",
            Kind.RELAY,
            sockets.policyd,
            "policyd answers OK for what a connector lets relay, refuses what an organization's rule does not, and"
            " has no opinion on the rest, which the entries behind it decide as before. So it stands before"
            " permit_mynetworks, behind which your own hosts would never be asked, and before"
            " reject_unauth_destination.",
        ),
        Wire(
            "smtpd_data_restrictions",
            Kind.POLICY,
            sockets.policyd,
            "Bounces to SRS addresses that another host of yours made with the same secret: policyd redirects them to"
            " the original sender once all recipients are known.",
        ),
        *_policy_default(),
        *_certificates(),
    )


def _postsrsd_replacement(sockets: Sockets) -> tuple[Wire, ...]:
    return (
        Wire(
            "sender_canonical_maps",
            Kind.LAST_MAP,
            sockets.map("forward"),
            "A sender that is neither in an accepted domain nor excluded becomes an SRS address.",
        ),
        Wire(
            "sender_canonical_classes",
            Kind.VALUE,
            "envelope_sender",
            "Not the From header, which would break DKIM and show the SRS address to the reader.",
        ),
        Wire(
            "recipient_canonical_maps",
            Kind.MAP,
            sockets.map("reverse"),
            "Bounces: an SRS address becomes the original sender again, and is a valid recipient.",
        ),
        Wire(
            "recipient_canonical_classes",
            Kind.VALUE,
            "envelope_recipient, header_recipient",
            "The To header too, in mail of this host's own programs: out-of-office replies show the original address"
            " again.",
        ),
        Wire("smtpd_command_filter", Kind.TABLE, _command_filter(Topology.POSTSRSD_REPLACEMENT), _DECODING),
    )


DECIDED_BY_HAND = {
    Topology.RELAY_HUB: ("relay_clientcerts", "smtpd_relay_restrictions"),
    Topology.EXCHANGE_ONLINE: ("relay_clientcerts", "smtpd_relay_restrictions", "relayhost", "relay_domains"),
}
"""Parameters in the examples that nobody but the administrator can fill in."""
