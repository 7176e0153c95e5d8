# SPDX-License-Identifier: GPL-3.0-or-later
"""What Exchange Online says of mail that this host sends it: the relay rule once more, with this host as the client.

Pure. Decided by `relay.attribute`, under the rule set 2023-11-01 whatever this host's own is.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Optional

from gatepost.relay import Client, Connector, Mail, Organization, Reason, Result, Rules, RuleSet, Verdict, attribute


@dataclass(frozen=True)
class UpstreamConfig:
    """[upstream]: this host's *connector* in the tenant of *organization*, and the names in its certificate.

    refuse: what would be refused there, and SRS can't mend, is refused here at once.
    """

    organization: str
    connector: Connector
    certificate_names: tuple[str, ...] = ()
    refuse: bool = False


@dataclass(frozen=True)
class Upstream:
    """The tenant, with this host as its *client*. Made by `build`.

    takes_all: this host's certificate is good for every sender, the null one, too. Else P1 must be in one of the
    accepted domains *taken*, or in what these cover. refuse: see UpstreamConfig.
    """

    organization: Organization
    client: Client
    takes_all: bool
    taken: frozenset[str]
    refuse: bool
    rules: Rules = field(repr=False, compare=False)

    def takes(self, domain: Optional[str]) -> bool:
        """Tell whether mail to outside is taken for its P1 in *domain*, in normal form (R1, R4, R11)."""
        accepted = self.rules.accepted(domain) if domain else None
        return accepted is not None and self.rules.counts(accepted) and accepted.accepted_domain.domain in self.taken

    def verdict(self, mail: Mail, rcpt_domain: Optional[str]) -> Verdict:
        """Return what is said of *mail*, as it leaves here, to a recipient in *rcpt_domain*, in normal form."""
        return attribute(self.client, mail, rcpt_domain, self.rules, RuleSet.CURRENT)


def build(config: UpstreamConfig, accepted: Organization, *, subdomains_relay: bool) -> Upstream:
    """Return the tenant that has the accepted domains of *accepted* and this host's connector."""
    organization = Organization(accepted.name, accepted.accepted_domains, (config.connector,))
    rules = Rules([organization], subdomains_relay=subdomains_relay)
    addresses = config.connector.sender_ip_addresses
    client = rules.client(str(addresses[0].network_address) if addresses else None, config.certificate_names)

    def relayed(reverse_path: str) -> bool:
        verdict = attribute(client, Mail(reverse_path), None, rules, RuleSet.CURRENT)
        return verdict.result is Result.RELAY

    domains = (item.domain for item in organization.accepted_domains)
    return Upstream(
        organization=organization,
        client=client,
        takes_all=relayed(""),  # by certificate, for nothing else helps a null sender (R5)
        taken=frozenset(domain for domain in domains if relayed(f"postmaster@{domain}")),
        refuse=config.refuse,
        rules=rules,
    )


def why_refused(verdict: Verdict) -> str:
    """Return the reason, for log and ledger, of a refusal here of what would be refused there."""
    null = verdict.reason is Reason.NULL_SENDER
    return f"upstream-{'null-sender' if null else verdict.reason.value}"


def refuses(verdict: Optional[Verdict]) -> bool:
    """Tell whether Exchange Online will refuse the mail; None: it is not asked."""
    return verdict is not None and verdict.result is Result.REFUSE


def log_fields(verdict: Optional[Verdict]) -> dict[str, str]:
    """Return what a log line says of a refusal there."""
    return {"upstream": "refuse", "upstream_reason": verdict.reason.value} if verdict and refuses(verdict) else {}


def upstream_labels(verdict: Verdict) -> tuple[str, str]:
    """Return verdict and reason as the metric of decisions upstream has them."""
    return verdict.result.value, verdict.reason.value


def outcome(verdict: Verdict) -> str:
    """Return what the ledger has of a verdict: relay, inside, exempt, or why it is refused."""
    return verdict.reason.value if verdict.result is Result.REFUSE else verdict.result.value
