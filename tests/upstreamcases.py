# SPDX-License-Identifier: GPL-3.0-or-later
"""Configurations with [upstream], each with the tenant at Exchange Online that it describes; both in random variety."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from exchangeonline import InboundConnector, Tenant
from hypothesis import strategies as st
from snapshots import KEYS, OFFICE, SRS_SETTINGS, Raw

from gatepost.service.config import parse
from gatepost.service.snapshot import Snapshot, build

HUB = "203.0.113.5"
CONTOSO = ["contoso.com", "corp.contoso.com", "contoso.net", "bücher.example"]
SRS_DOMAINS = ["srs.contoso.com", "s.corp.contoso.com", "srs.example"]


@dataclass(frozen=True)
class Case:
    """What the hub does, and the tenant to which it is a client with this address and certificate."""

    snapshot: Snapshot
    tenant: Tenant
    names: tuple[str, ...]
    refuse: bool


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """Any hub of up to three organisations in front of contoso's tenant, by address or by certificate."""
    srs_domain = draw(st.sampled_from([*SRS_DOMAINS, *SRS_DOMAINS, ""]))
    domains = ["contoso.com", *draw(st.lists(st.sampled_from(CONTOSO[1:]), unique=True))]
    domains += [srs_domain] if srs_domain else []
    accepted = {domain: draw(st.sampled_from([False, False, True])) for domain in domains}
    known_by = draw(st.sampled_from(["address", "address", "certificate", "useless certificate", "both"]))
    if not srs_domain:
        known_by = "certificate"
    associated = draw(st.lists(st.sampled_from(domains), unique=True, max_size=2)) if draw(st.booleans()) else []
    if associated and srs_domain:
        associated = list(dict.fromkeys([*associated, srs_domain]))
    connector, names = draw(connectors(known_by, associated))
    subdomains_relay = draw(st.booleans())
    refuse = draw(st.sampled_from([True, True, False]))
    organizations = [_organization("contoso", accepted, draw(_modes()), srs_domain)]
    if draw(st.booleans()):
        covered = draw(st.booleans())
        organizations.append(_organization("fabrikam", {"fabrikam.example": covered}, draw(_modes())))
    if draw(st.booleans()):
        northwind = {"northwind.example": False, "sub.contoso.com": False}
        organizations.append(
            _organization("northwind", northwind, draw(_modes()), draw(st.sampled_from(["", "n.example"])))
        )
    raw: Raw = {
        "organization": draw(st.permutations(organizations)),
        "relay": {
            "requirements": draw(st.sampled_from(["2023-11-01", "2023-11-01", "legacy"])),
            "mode": draw(_modes()),
            "local_domains": ["mail.contoso.org"],
            "subdomains_relay": subdomains_relay,
            "action": draw(st.sampled_from(["reject", "rewrite", "rewrite", "tag", "quarantine", "tempfail"])),
        },
        "srs": {
            **draw(SRS_SETTINGS),
            **draw(st.sampled_from([{}, {}, {"exclude": ["fabrikam.com", "*.example"]}, {"include": ["*.example"]}])),
        },
        "upstream": {"organization": "contoso", "refuse": refuse, **connector},
    }
    if draw(st.booleans()):
        raw["egress"] = {}
    tenant = Tenant(
        {domain.encode("idna").decode(): covered for domain, covered in accepted.items()},
        [
            InboundConnector(
                connector.get("sender_ip_addresses", []),
                str(connector.get("tls_sender_certificate_name", "")),
                [domain.encode("idna").decode() for domain in associated],
            ),
            InboundConnector([HUB], "", enabled=False),
            InboundConnector(["198.51.100.0/24"], "hub.fabrikam.example"),
        ],
        subdomains_relay,
    )
    return Case(build(parse(raw, Path("gatepost.toml")), KEYS, 0.0), tenant, tuple(names), refuse)


@st.composite
def connectors(draw: st.DrawFn, known_by: str, associated: list[str]) -> tuple[dict[str, object], list[str]]:
    """Return what [upstream] has of the connector, and the names in the hub's certificate.

    A useless certificate matches the connector, and none of its names is in an accepted domain (R3, R9).
    """
    raw: dict[str, object] = {"associated_accepted_domains": associated} if associated else {}
    names: list[str] = []
    if known_by in ("address", "both"):
        raw["sender_ip_addresses"] = [draw(st.sampled_from([HUB, f"{HUB}/28", f"{HUB}/24"]))]
    if known_by == "certificate":
        base = associated[0].encode("idna").decode() if associated else "contoso.com"
        name, names = draw(
            st.sampled_from(
                [
                    (f"hub.{base}", [f"hub.{base}"]),
                    (base, ["other.example", base]),
                    (f"*.{base}", [f"hub.{base}", "x"]),
                    (f"*.{base}", [f"*.{base}"]),
                    ("hub.hoster.example", ["hub.hoster.example", base]),
                ]
            )
        )
        raw["tls_sender_certificate_name"] = name
    elif known_by == "useless certificate":
        name = draw(st.sampled_from(["hub.hoster.example", "a.b.srs2.contoso.org"]))
        raw["tls_sender_certificate_name"], names = name, [name]
    elif known_by == "both" and draw(st.booleans()):
        names = draw(
            st.sampled_from([["hub.contoso.com"], ["a.b.hoster.example"], ["hub.contoso.com", "*.contoso.net"]])
        )
    if names:
        raw["certificate_names"] = names
    return raw, names


def _modes() -> st.SearchStrategy[str]:
    return st.sampled_from(["enforce", "enforce", "enforce", "monitor"])


def _organization(name: str, accepted: dict[str, bool], mode: str, srs_domain: str = "") -> Raw:
    first = next(iter(accepted))
    raw: Raw = {
        "name": name,
        "mode": mode,
        "accepted_domain": [
            {
                "domain": domain,
                "default": domain == first,
                **({"type": "InternalRelay", "match_subdomains": True} if covered else {}),
            }
            for domain, covered in accepted.items()
        ],
        "connector": [
            {"name": "office", "sender_ip_addresses": [OFFICE if name == "contoso" else "192.0.2.64/28"]},
            {"name": "certificate", "tls_sender_certificate_name": f"mail.{first}"},
        ],
    }
    return {**raw, "srs_domain": srs_domain} if srs_domain else raw
