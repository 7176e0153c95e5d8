# SPDX-License-Identifier: GPL-3.0-or-later
"""Snapshots for tests of decisions: organisations in one line each, any settings of [srs], a store that is a dict."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Optional

from hypothesis import strategies as st

from gatepost.service.config import parse
from gatepost.service.rewriting import Rewritten
from gatepost.service.snapshot import Snapshot, build
from gatepost.srs import Keys

DAY = 20_000
NOW = DAY * 86400
KEYS = Keys([b"the first key"])
OFFICE = "192.0.2.5"
OUTSIDE = "x@example.com"
Raw = dict[str, object]


class Shelf:
    """What stands in for the store: knows the tokens of all that was made with it."""

    def __init__(self) -> None:
        self.originals: dict[str, str] = {}

    def put(self, rewritten: Rewritten) -> str:
        """Do what an MTA's front does with a new sender, and return its address."""
        if rewritten.token:
            self.originals[rewritten.token] = rewritten.original
        return rewritten.address

    def get(self, token: str) -> Optional[str]:
        return self.originals.get(token)


def nothing(token: str) -> Optional[str]:
    """Stand in for a store that knows no token."""
    return None


def organization(name: str, *domains: str, mode: str = "enforce", srs_domain: str = "", **srs_domains: str) -> Raw:
    """Return an [[organization]]; "*.contoso.com" stands for contoso.com with its subdomains.

    srs_domains: that of an accepted domain, by its first label.
    """
    accepted: list[Raw] = []
    for domain in domains:
        entry: Raw = {"domain": domain.replace("*.", "")}
        if domain.startswith("*."):
            entry.update(type="InternalRelay", match_subdomains=True)
        own = srs_domains.get(str(entry["domain"]).partition(".")[0])
        if own:
            entry["srs_domain"] = own
        accepted.append(entry)
    accepted[0]["default"] = True
    raw: Raw = {
        "name": name,
        "mode": mode,
        "accepted_domain": accepted,
        "connector": [
            {"name": "office", "sender_ip_addresses": [f"{OFFICE}/32" if name == "contoso" else "203.0.113.0/24"]},
            {"name": "crm", "tls_sender_certificate_name": f"mail.{accepted[0]['domain']}"},
        ],
    }
    return {**raw, "srs_domain": srs_domain} if srs_domain else raw


def snapshot(
    *organizations: Raw,
    requirements: str = "2023-11-01",
    mode: str = "enforce",
    keys: Keys = KEYS,
    upstream: Optional[Raw] = None,
    **srs: object,
) -> Snapshot:
    """Return a snapshot with an egress hop; upstream: [upstream]; srs: the keys of [srs]."""
    return _snapshot(organizations, mode, srs, requirements, keys, upstream)


def _snapshot(
    organizations: Sequence[Raw],
    mode: str,
    srs: Raw,
    requirements: str = "2023-11-01",
    keys: Keys = KEYS,
    upstream: Optional[Raw] = None,
) -> Snapshot:
    raw: Raw = {
        "organization": list(organizations),
        "relay": {"requirements": requirements, "mode": mode, "local_domains": ["mail.contoso.net"]},
        "egress": {},
        "srs": srs,
    }
    if upstream is not None:
        raw["upstream"] = upstream
    return build(parse(raw, Path("gatepost.toml")), keys, 0.0)


CONTOSO = snapshot(organization("contoso", "contoso.com"))
TWO = snapshot(
    organization("contoso", "contoso.com", "*.corp.contoso.com", srs_domain="srs.contoso.com"),
    organization("fabrikam", "fabrikam.example", mode="monitor"),
)

# What other hosts' layers, and layers that claim to be ours, look like.
_LAYERS = [
    "x+SRS=aaaaaaaa=AA=y.example=z",
    "bounces+SRS=AbCdE=AA",
    "x+SRS=aaaaaaaa=AA=y.example=w+SRS=bbbbbbbb=AA=v.example=z",
    "x+SRS=aaaaaaaa=AA=contoso.com=ceo+SRS=bbbbbbbb=AA=v.example=z",
    "x+SRS=aaaaaaaa=AA=srs.contoso.com=SRS0=bbbb=AA=v.example=z",
    "SRS0=abcd=AA=y.example=z",
    "SRS0+abcd=AA=y.example=x+SRS=aaaaaaaa=AA=v.example=z",
    "SRS0=abcd=AA=contoso.com=ceo+SRS=bbbbbbbb=AA=v.example=z",
    "SRS1=abcd=y.example==abcd=AA=w.example=z",
    "SRS1=abcd",
]
LOCAL_PARTS = st.one_of(
    st.sampled_from(["bob", "bob+tag", "a=b", "a b", '"a b"', '"\\""', "bøb", "b" * 60]),
    st.sampled_from(_LAYERS),
    st.text(st.characters(codec="utf-8"), min_size=1, max_size=70),
)
DOMAINS = st.one_of(
    st.sampled_from(
        [
            *("contoso.com", "CONTOSO.com", "sub.contoso.com", "srs.contoso.com", "corp.contoso.com"),
            *("a.b.corp.contoso.com", "fabrikam.example", "fabrikam.com", "bücher.example", "xn--bcher-kva.example"),
            *("[192.0.2.1]", "localhost", ".".join(["d" * 60] * 4), ".".join(["d" * 50] * 3)),
        ]
    ),
    st.text(st.characters(codec="utf-8"), max_size=70),
)
ADDRESSES = st.one_of(
    st.builds("{}@{}".format, LOCAL_PARTS, DOMAINS),
    st.binary(max_size=30).map(lambda octets: octets.decode("utf-8", "surrogateescape")),
    st.just(""),
)
SRS_SETTINGS = st.fixed_dictionaries(
    {
        "format": st.sampled_from(["exchange", "srs0"]),
        "form": st.sampled_from(["auto", "long", "compact"]),
        "also_reverse": st.sampled_from([[], ["srs0"], ["exchange", "srs0", "compact"]]),
    }
)
LISTS = st.fixed_dictionaries(
    {},
    optional={
        "exclude": st.sampled_from([["fabrikam.com"], ["*.example"]]),
        "include": st.sampled_from([["*.example", "fabrikam.com"], ["*.com"]]),
    },
)


@st.composite
def snapshots(draw: st.DrawFn) -> Snapshot:
    """Any configuration of up to two organisations."""
    modes = st.sampled_from(["enforce", "enforce", "monitor"])
    organizations = []
    if draw(st.integers(0, 3)):
        domains = draw(st.sampled_from([["contoso.com"], ["contoso.com", "*.corp.contoso.com"], ["*.contoso.com"]]))
        srs_domain = draw(st.sampled_from(["", "srs.contoso.com"]))
        own = draw(st.sampled_from([{}, {"corp": "srs.corp.contoso.com"}, {"contoso": "s.contoso.com"}]))
        organizations.append(organization("contoso", *domains, mode=draw(modes), srs_domain=srs_domain, **own))
    if draw(st.booleans()):
        domain = draw(st.sampled_from(["fabrikam.example", "fabrikam." + ".".join(["f" * 60] * 3)]))
        organizations.append(organization("fabrikam", domain, mode=draw(modes)))
    srs: Raw = {**draw(SRS_SETTINGS), **draw(LISTS)}
    return _snapshot(organizations, draw(modes), srs)
