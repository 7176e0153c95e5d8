# SPDX-License-Identifier: GPL-3.0-or-later
"""Every remedy, done to the letter, leaves a right configuration that lets the refused message through."""

from __future__ import annotations

import copy
import itertools
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Optional

from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from snapshots import KEYS, Raw

from gatepost.relay import Client, Explanation, Mail, Organization, Reason, Result, RuleSet, Verdict, attribute, explain
from gatepost.service.config import parse
from gatepost.service.snapshot import build

DOMAINS = ["contoso.com", "corp.contoso.com", "a.corp.contoso.com", "fabrikam.com", "crm.fabrikam.com", "x.example"]
SENDERS = ["", "root", "root@localhost", "a@[1.2.3.4]", "a@bounces.vendor.example", "a@q.w.contoso.com"]
ADDRESSES = ["192.0.2.5", "198.51.100.7", "2001:db8::1", "::ffff:203.0.113.9", None]
NETWORKS = ["192.0.2.0/28", "198.51.100.7", "2001:db8::/32", "203.0.113.0/24"]
NAMES = [
    *("crm.contoso.com", "*.contoso.com", "a.b.c.contoso.com", "mail.fabrikam.com", "contoso.com", "x", "A B", "crm"),
    *("*.crm.fabrikam.com", "x.corp.contoso.com", "host.x.example", "mail.vendor.example"),
    *("no name known: fingerprint 46:06", "no name known"),
]
CONNECTOR_NAMES = ["*.contoso.com", "crm.contoso.com", "*.fabrikam.com", "mail.fabrikam.com", "*.corp.contoso.com"]
CONNECTOR_NAMES += ["*.x.example", "mail.vendor.example"]
OWNER = r"under (?:organization\[)?(\w+)"
"""`your`, of "your organization", or a name."""
KEY = r"organization\[(\w+)\]\.connector\[([\w ]+)\]"
EXPORTED = "exported"
LEFT_TO_READ = ("Put the client's certificate", "Connectors of several organizations match")


Match = re.Match[str]
Change = Callable[["Situation"], None]


@dataclass
class Situation:
    """A configuration and a message; what a remedy changes."""

    raw: Raw
    ip: Optional[str]
    names: list[str]
    reverse_path: str
    header_from: tuple[str, ...] = ()

    def organization(self, name: str) -> Raw:
        return next(table for table in self.raw["organization"] if table["name"] == name)

    def connector(self, organization: str, name: str) -> Raw:
        return next(table for table in self.organization(organization)["connector"] if table["name"] == name)

    def declare(self, owner: str, **connector: object) -> None:
        connectors = self.organization(owner).setdefault("connector", [])
        connectors.append({"name": f"declared {len(connectors)}", **connector})

    def judged(self, rule_set: RuleSet = RuleSet.CURRENT) -> tuple[Verdict, Client, Mail]:
        config = parse(copy.deepcopy(self.raw), Path("gatepost.toml"))
        organizations = {name: with_exported(item) for name, item in config.organizations.items()}
        made = build(replace(config, organizations=organizations), KEYS, 0.0)
        client, mail = made.rules.client(self.ip, self.names), Mail(self.reverse_path, self.header_from)
        return attribute(client, mail, "gmail.com", made.rules, rule_set), client, mail


def with_exported(organization: Organization) -> Organization:
    """Return *organization* with the connectors that are called so as if they came from an export."""
    connectors = (replace(item, declared=not item.name.startswith(EXPORTED)) for item in organization.connectors)
    return replace(organization, connectors=tuple(connectors))


@st.composite
def connectors(draw: st.DrawFn, name: str, domains: list[str]) -> Raw:
    known_by = draw(st.sampled_from(["address", "name", "both"]))
    made: Raw = {"name": name, "enabled": draw(st.sampled_from([True, True, True, False]))}
    if known_by != "name":
        made["sender_ip_addresses"] = [draw(st.sampled_from(NETWORKS))]
    if known_by != "address":
        made["tls_sender_certificate_name"] = draw(st.sampled_from(CONNECTOR_NAMES))
    if draw(st.integers(0, 2)) == 0:
        made["associated_accepted_domains"] = [draw(st.sampled_from(domains))]
    return made


@st.composite
def situations(draw: st.DrawFn) -> Situation:
    left = draw(st.permutations(DOMAINS))
    organizations = []
    for name in ["contoso", "fabrikam"][: draw(st.integers(1, 2))]:
        domains, left = left[: draw(st.integers(1, 2))], left[2:]
        accepted: list[Raw] = [{"domain": domain} for domain in domains]
        for table in accepted:
            if draw(st.integers(0, 2)) == 0:
                table.update(type="InternalRelay", match_subdomains=True)
        if len(domains) > 1 or draw(st.booleans()):
            accepted[0]["default"] = True
        names = draw(st.lists(st.sampled_from(["c", EXPORTED]), max_size=3))
        found = [draw(connectors(f"{name}{index}", domains)) for index, name in enumerate(names)]
        organizations.append({"name": name, "accepted_domain": accepted, "connector": found})
    return Situation(
        {
            "organization": organizations,
            "relay": {"mode": "enforce", "subdomains_relay": draw(st.booleans())},
        },
        draw(st.sampled_from(ADDRESSES)),
        draw(st.lists(st.sampled_from(NAMES), max_size=2, unique=True)),
        draw(st.sampled_from([*SENDERS, *(f"a@{domain}" for domain in DOMAINS)])),
        draw(st.sampled_from([(), *((f"b@{domain}",) for domain in DOMAINS[:4])])),
    )


@dataclass(frozen=True)
class Reader:
    """Somebody who does what he reads; "your organization" is his *owner*, "an accepted domain" his *domain*."""

    owner: str
    domain: str

    def named(self, found: str) -> str:
        return self.owner if found == "your" else found

    def alternatives(self, text: str) -> Iterator[Change]:
        """Yield each change that a remedy offers."""
        for pattern, do in READING:
            if pattern in CONNECTORS and "[[organization.accepted_domain]]" in text:
                continue  # declare_domain reads it, too
            for found in re.finditer(pattern, text):
                yield partial(do, self, text, found)

    def declare_domain(self, text: str, found: Match, case: Situation) -> None:
        domains = case.organization(self.named(found[2]))["accepted_domain"]
        domains.append({"domain": found[1]})
        default = re.search(r"and set default = true for ([\w.-]+\w)", text)
        if default and not any("default" in table for table in domains):
            next(table for table in domains if default[1] in (table["domain"], "one"))["default"] = True
        for domain, owner, name in re.findall(rf'and add "(\S+)" to {KEY}\.associated_accepted_domains', text):
            case.connector(owner, name)["associated_accepted_domains"].append(domain)
        for domain in re.findall(r'and add "(\S+)" to your connector\.associated_accepted_domains', text):
            for connector in case.organization(self.owner)["connector"]:
                connector.setdefault("associated_accepted_domains", [domain]).append(domain)
        for pattern, do in CONNECTORS.items():
            for connector in re.finditer(pattern, text):
                do(self, text, connector, case)

    def count_subdomains(self, _: str, found: Match, case: Situation) -> None:
        case.raw["relay"]["subdomains_relay"] = True

    def match_subdomains(self, _: str, found: Match, case: Situation) -> None:
        for organization in case.raw["organization"]:
            for table in organization["accepted_domain"]:
                if table["domain"] == found[1]:
                    table.update(type="InternalRelay", match_subdomains=True)

    def use_p1(self, _: str, found: Match, case: Situation) -> None:
        case.reverse_path = f"a@{found[1] or self.domain}"

    def associate(self, _: str, found: Match, case: Situation) -> None:
        case.connector(found[2], found[3])["associated_accepted_domains"].append(found[1])

    def limit_no_more(self, _: str, found: Match, case: Situation) -> None:
        del case.connector(found[2], found[3])["associated_accepted_domains"]

    def enable(self, _: str, found: Match, case: Situation) -> None:
        case.connector(found[1], found[2])["enabled"] = True

    def add_address(self, _: str, found: Match, case: Situation) -> None:
        case.connector(found[2], found[3])["sender_ip_addresses"].append(found[1])

    def declare_address(self, _: str, found: Match, case: Situation) -> None:
        case.declare(self.named(found[2]), sender_ip_addresses=[found[1]])

    def declare_name(self, _: str, found: Match, case: Situation) -> None:
        case.declare(self.named(found[2]), tls_sender_certificate_name=found[1])

    def declare_any(self, _: str, found: Match, case: Situation) -> None:
        case.ip = case.ip or "203.0.113.77"
        case.declare(self.named(found[1]), sender_ip_addresses=[case.ip])

    def set_name(self, _: str, found: Match, case: Situation) -> None:
        case.connector(found[1], found[2])["tls_sender_certificate_name"] = found[3]

    def present_what_matches(self, _: str, found: Match, case: Situation) -> None:
        case.names = [found[3].replace("*", "host")]

    def present(self, text: str, found: Match, case: Situation) -> None:
        """Present a certificate that is accepted, and see to its connector as the sentence says."""
        name = found[1] or f"mail.{self.domain}"
        case.names = [name]
        for owner, connector in re.findall(rf"and set {KEY}\.tls_sender_certificate_name to it", text):
            case.connector(owner, connector)["tls_sender_certificate_name"] = name
        for owner in re.findall(rf"tls_sender_certificate_name = that name {OWNER}", text):
            case.declare(self.named(owner), tls_sender_certificate_name=name)


CONNECTORS: dict[str, Callable[[Reader, str, Match, Situation], None]] = {
    rf'add "(\S+)" to {KEY}\.sender_ip_addresses': Reader.add_address,
    rf'name = "…", sender_ip_addresses = \["(\S+)"\] {OWNER}': Reader.declare_address,
    rf'name = "…", tls_sender_certificate_name = "(\S+)" {OWNER}': Reader.declare_name,
    rf"declare an \[\[organization\.connector\]\] {OWNER}.* that matches it": Reader.declare_any,
}
READING: list[tuple[str, Callable[[Reader, str, Match, Situation], None]]] = [
    (rf'\[\[organization\.accepted_domain\]\] domain = "([^"]+)" {OWNER}', Reader.declare_domain),
    (r"set relay\.subdomains_relay = true", Reader.count_subdomains),
    (r'set match_subdomains = true \(with type = "InternalRelay"\) for ([\w.-]+\w)', Reader.match_subdomains),
    (r"use an accepted P1(?:, such as one in ([\w.-]+\w))?", Reader.use_p1),
    (r"rewrite it into an address in ([\w.-]+\w)", Reader.use_p1),
    (rf'^Add "(\S+)" to {KEY}\.associated_accepted_domains', Reader.associate),
    (rf'^Add "(\S+)" to {KEY}\.associated_accepted_domains, or leave that list empty', Reader.limit_no_more),
    (rf"^Set {KEY}\.enabled = true", Reader.enable),
    *CONNECTORS.items(),
    (rf'got a new certificate, set {KEY}\.tls_sender_certificate_name = "(\S+)"', Reader.set_name),
    (rf"{KEY}\.tls_sender_certificate_name matches, (\S+) ", Reader.present_what_matches),
    (r"trusted certificate .*in an accepted domain(?:, such as ([\w.-]+\w))?", Reader.present),
]


def passes(case: Situation, reader: Reader, number: int, remedy: str, also: str) -> bool:
    """Tell whether the *number*-th change that *remedy* offers, with the first of *also*, lets the message through."""
    changed = copy.deepcopy(case)
    list(reader.alternatives(remedy))[number](changed)
    for change in itertools.islice(reader.alternatives(also), 1):
        change(changed)
    verdict, _, _ = changed.judged()  # raises ConfigError where the configuration is not right any more
    return verdict.result is Result.RELAY


def readers(case: Situation) -> list[Reader]:
    return [
        Reader(organization["name"], table["domain"])
        for organization in case.raw["organization"]
        for table in organization["accepted_domain"]
    ]


@settings(max_examples=300, deadline=None)
@given(situations())
def test_each_remedy_done_to_the_letter_lets_the_message_through(case: Situation) -> None:
    verdict, client, mail = case.judged()
    assume(verdict.result is Result.REFUSE)
    check_each_remedy(case, explain(verdict, client, mail, "x@gmail.com", RuleSet.CURRENT))


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.filter_too_much])
@given(situations())
def test_each_remedy_for_what_p2_alone_lets_through_makes_it_pass_without(case: Situation) -> None:
    verdict, client, mail = case.judged(RuleSet.LEGACY)
    assume(verdict.reason is Reason.P2_ACCEPTED)
    check_each_remedy(case, explain(verdict, client, mail, "x@gmail.com", RuleSet.LEGACY))


def check_each_remedy(case: Situation, explanation: Explanation) -> None:
    everybody = readers(case)
    remedies = [text for text in explanation.remedies if not text.startswith(LEFT_TO_READ)]
    assert remedies
    changes = [text for text in (*remedies, *explanation.also) if "matching organization" not in text]
    assert not any(f"connector[{EXPORTED}" in text for text in changes)
    for remedy, also in itertools.product(remedies, explanation.also or ("",)):
        offered = len(list(everybody[0].alternatives(remedy)))
        assert offered, remedy
        assert not also or list(everybody[0].alternatives(also)), also
        for number in range(offered):
            assert any(passes(case, reader, number, remedy, also) for reader in everybody), (remedy, also)
