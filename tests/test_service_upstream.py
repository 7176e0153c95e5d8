# SPDX-License-Identifier: GPL-3.0-or-later
"""[upstream]: what its keys must be, what Exchange Online will say, and which senders are rewritten for its sake."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Optional

import pytest
from snapshots import NOW, OFFICE, OUTSIDE, Raw, Shelf, nothing, organization, snapshot

from gatepost.relay import Mail, Reason, Result
from gatepost.service import flow, reversal, rewriting, upstream, upstream_words
from gatepost.service.config import Config, parse
from gatepost.service.flow import Judgement, Treatment
from gatepost.service.reversal import Bounce
from gatepost.service.rewriting import Egress
from gatepost.service.snapshot import Snapshot, build
from gatepost.service.tables import ConfigError
from gatepost.srs import Address, Keys

HUB = "203.0.113.5"
BY_ADDRESS: Raw = {"organization": "contoso", "sender_ip_addresses": [HUB]}
BY_CERTIFICATE: Raw = {"organization": "contoso", "tls_sender_certificate_name": "hub.contoso.com"}
CONTOSO = organization("contoso", "contoso.com", "*.corp.contoso.com", "srs.contoso.com", srs_domain="srs.contoso.com")
FABRIKAM = organization("fabrikam", "fabrikam.example")


def hub(keys: Optional[Raw] = None, *organizations: Raw, **srs: object) -> Snapshot:
    """Return contoso's hub, by address unless *keys* say otherwise."""
    return snapshot(*(organizations or (CONTOSO, FABRIKAM)), upstream={**BY_ADDRESS, **(keys or {})}, **srs)


CERTIFIED = snapshot(CONTOSO, FABRIKAM, upstream=BY_CERTIFICATE)


def config(table: Raw, *organizations: Raw, **srs: object) -> Config:
    raw = {"organization": list(organizations or (CONTOSO,)), "srs": srs, "upstream": table}
    return parse(raw, Path("gatepost.toml"))


def problems(table: Raw, *organizations: Raw, **srs: object) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        config(table, *organizations, **srs)
    return [problem.partition(": ")[2] for problem in caught.value.problems]


def warnings(table: Raw, *organizations: Raw, **srs: object) -> list[str]:
    return [warning.partition(": ")[2] for warning in config(table, *organizations, **srs).warnings]


# The configuration


def test_only_organization_is_the_default() -> None:
    read = config({"sender_ip_addresses": [HUB]}).upstream
    assert read
    assert read.organization == "contoso"


def test_one_of_several_organizations_must_be_named() -> None:
    assert problems({"sender_ip_addresses": [HUB]}, CONTOSO, FABRIKAM) == [
        'upstream.organization: missing, must be one of "contoso", "fabrikam"'
    ]


def test_organization_is_told_to_be_missing_where_there_is_none() -> None:
    with pytest.raises(ConfigError) as caught:
        parse({"upstream": BY_ADDRESS}, Path("gatepost.toml"))
    assert caught.value.problems == (
        'gatepost.toml: upstream.organization: "contoso" is none: there is no [[organization]]',
    )


def test_organization_must_exist() -> None:
    assert problems({**BY_ADDRESS, "organization": "contosa"}) == [
        'upstream.organization: "contosa" is not one of "contoso", did you mean "contoso"?'
    ]


def test_upstream_without_address_and_certificate_matches_nothing() -> None:
    assert problems({}) == [
        "upstream: needs sender_ip_addresses or tls_sender_certificate_name, as the connector there has them"
    ]


def test_unknown_key_is_refused() -> None:
    assert problems({**BY_ADDRESS, "refused": True}) == ['upstream.refused: unknown key, did you mean "refuse"?']


def test_name_of_the_connector_is_the_certificates_where_it_is_no_wildcard() -> None:
    read = config(BY_CERTIFICATE).upstream
    assert read
    assert read.certificate_names == ("hub.contoso.com",)


def test_wildcard_does_not_tell_the_certificates_names() -> None:
    assert problems({"tls_sender_certificate_name": "*.contoso.com"}) == [
        'upstream.certificate_names: missing: "*.contoso.com" does not tell the names in this host\'s certificate'
    ]


def test_certificate_that_the_connector_does_not_match_is_refused_r8() -> None:
    table: Raw = {"tls_sender_certificate_name": "*.contoso.com", "certificate_names": ["hub.fabrikam.com"]}
    assert problems(table) == [
        'upstream.certificate_names: none matches tls_sender_certificate_name "*.contoso.com": '
        "Exchange Online would refuse everything"
    ]


@pytest.mark.parametrize("name", ["hub.hoster.example", "a.b.contoso.com"], ids=["r3", "one label up r9"])
def test_certificate_name_in_no_accepted_domain_is_warned_of(name: str) -> None:
    assert warnings({"tls_sender_certificate_name": name}) == [
        "upstream.certificate_names: none is in an accepted domain of contoso, or one label below: Exchange Online "
        "goes by P1 alone, and refuses null senders"
    ]


def test_srs_domain_is_missing_by_address() -> None:
    assert problems(BY_ADDRESS, organization("contoso", "contoso.com")) == [
        'organization[0].srs_domain: missing: [upstream] by address needs one (e.g. "srs.contoso.com"), an accepted '
        "domain with its MX at this host; in contoso.com Exchange Online makes SRS addresses of its own"
    ]


def test_srs_domain_is_advised_by_certificate() -> None:
    assert warnings(BY_CERTIFICATE, organization("contoso", "contoso.com")) == [
        "organization[0].srs_domain: missing: where the MX of contoso.com leads to Exchange Online, bounces of what is "
        "rewritten here do not come back"
    ]


def test_srs_domain_must_be_accepted_by_address() -> None:
    contoso = organization("contoso", "contoso.com", srs_domain="srs.contoso.com")
    assert problems(BY_ADDRESS, contoso) == [
        'organization[0].srs_domain: "srs.contoso.com" is no accepted domain of contoso: '
        "Exchange Online would refuse what is rewritten"
    ]


def test_srs_domain_of_one_accepted_domain_must_be_accepted_too() -> None:
    contoso = organization(
        "contoso", "contoso.com", "srs.contoso.com", srs_domain="srs.contoso.com", contoso="s.example"
    )
    assert problems(BY_ADDRESS, contoso) == [
        'organization[0].accepted_domain[0].srs_domain: "s.example" is no accepted domain of contoso: '
        "Exchange Online would refuse what is rewritten"
    ]


def test_srs_domain_below_a_domain_with_match_subdomains_is_accepted_r4() -> None:
    contoso = organization("contoso", "*.contoso.com", srs_domain="srs.contoso.com")
    assert warnings(BY_ADDRESS, contoso) == []


def test_srs_domain_outside_the_associated_ones_is_refused_r11() -> None:
    assert problems({**BY_ADDRESS, "associated_accepted_domains": ["contoso.com"]}) == [
        'organization[0].srs_domain: "srs.contoso.com" is no accepted domain of contoso in '
        "upstream.associated_accepted_domains: Exchange Online would refuse what is rewritten"
    ]


def test_associated_domain_must_be_accepted() -> None:
    assert problems({**BY_ADDRESS, "associated_accepted_domains": ["fabrikam.com"]})[0] == (
        'upstream.associated_accepted_domains: "fabrikam.com" is no accepted domain of contoso'
    )


@pytest.mark.parametrize("domain", ["contoso.com", "contoso.onmicrosoft.com"])
def test_srs_domain_in_which_exchange_online_makes_addresses_is_refused(domain: str) -> None:
    contoso = organization("contoso", "contoso.com", "contoso.onmicrosoft.com", srs_domain=domain)
    assert problems(BY_ADDRESS, contoso) == [
        f'organization[0].srs_domain: "{domain}" is where Exchange Online makes SRS addresses of its own, and where '
        'its MX leads to; take another one (e.g. "srs.contoso.com")'
    ]


def test_only_spf_goes_not_with_upstream_by_address() -> None:
    assert problems(BY_ADDRESS, only_spf=True, outgoing_addresses=[HUB]) == [
        "srs.only_spf: true goes not with [upstream] by address: no foreign P1 is taken there"
    ]


def test_lists_have_no_effect_by_address_and_are_warned_of() -> None:
    text = "has no effect: [upstream] by address takes accepted senders only, listed or not"
    assert warnings(BY_ADDRESS, exclude=["x.example"], include=["y.example"]) == [
        f"srs.exclude: {text}",
        f"srs.include: {text}",
    ]


def test_policyd_alone_rewrites_nothing_and_is_warned_of_by_address() -> None:
    raw = {"organization": [CONTOSO], "relay": {"enforced_by": "policyd"}, "upstream": BY_ADDRESS}
    (warning,) = parse(raw, Path("gatepost.toml")).warnings
    assert warning == (
        "gatepost.toml: upstream: by address every foreign P1 must be rewritten, which policyd does not: use the milter"
    )


def test_lists_and_spf_hold_by_certificate() -> None:
    assert warnings(BY_CERTIFICATE, exclude=["x.example"], only_spf=True, outgoing_addresses=[HUB]) == []


def test_connector_of_the_organization_with_the_same_address_and_other_domains_is_warned_of_r11() -> None:
    contoso = {**CONTOSO, "connector": [{"name": "hub", "sender_ip_addresses": [HUB]}]}
    table: Raw = {**BY_ADDRESS, "associated_accepted_domains": ["srs.contoso.com"]}
    expected = 'connector "hub" of contoso has the same address or name, and other ones'
    assert warnings(table, contoso)[0] == f"upstream.associated_accepted_domains: {expected}"


@pytest.mark.parametrize(
    ("connector", "expected"),
    [
        ({"SenderIPAddresses": [f"{HUB}/28"], "Enabled": True}, []),
        ({"SenderIPAddresses": [f"{HUB}/28"], "Enabled": False}, ["upstream"]),
        ({"SenderIPAddresses": ["198.51.100.1"], "Enabled": True}, ["upstream"]),
    ],
    ids=["covers the hub", "disabled", "another address"],
)
def test_export_without_a_connector_for_the_hub_is_warned_of(
    tmp_path: Path, connector: dict[str, object], expected: list[str]
) -> None:
    record = {"ConnectorType": "OnPremises", "Name": "hub", "TlsSenderCertificateName": None, **connector}
    (tmp_path / "connectors.json").write_text(json.dumps([record]))
    contoso = {**CONTOSO, "exchange_export": ["connectors.json"]}
    raw = {"organization": [contoso], "upstream": BY_ADDRESS}
    found = [warning.split(": ")[1] for warning in parse(raw, tmp_path / "gatepost.toml").warnings]
    assert [path for path in found if path == "upstream"] == expected


HOSTS: Raw = {"sender_ip_addresses": ["192.0.2.0/28"]}
OWN = 'upstream: connector "hub" of contoso is this host\'s own, as [upstream] has it'


@pytest.mark.parametrize(
    ("connectors", "expected"),
    [
        (
            [{"name": "hub", "sender_ip_addresses": [HUB]}, {"name": "old", "enabled": False, **HOSTS}],
            [
                f"{OWN}, and no other one is enabled: all your clients fail condition 2. Declare "
                "[[organization.connector]] with their addresses or certificate name"
            ],
        ),
        (
            [{"name": "hub", "sender_ip_addresses": [HUB]}, {"name": "office", **HOSTS}],
            [f"{OWN}: it lets none of your clients relay"],
        ),
        ([{"name": "hub", "sender_ip_addresses": [HUB, "192.0.2.1"]}], []),
        ([{"name": "hub", "sender_ip_addresses": [f"{HUB}/28"]}], []),
        ([{"name": "hub", "sender_ip_addresses": [HUB], "tls_sender_certificate_name": "*.contoso.com"}], []),
        ([{"name": "hub", "sender_ip_addresses": [HUB], "enabled": False}, {"name": "office", **HOSTS}], []),
    ],
    ids=["no other", "another one", "other hosts, too", "its network", "other certificates, too", "disabled"],
)
def test_connector_that_is_the_hubs_own_is_warned_of(connectors: list[Raw], expected: list[str]) -> None:
    assert warnings(BY_ADDRESS, {**CONTOSO, "connector": connectors}) == expected


def test_connector_with_the_hubs_own_certificate_name_is_warned_of() -> None:
    connectors = [{"name": "hub", "tls_sender_certificate_name": "hub.contoso.com"}, {"name": "office", **HOSTS}]
    assert warnings(BY_CERTIFICATE, {**CONTOSO, "connector": connectors}) == [
        f"{OWN}: it lets none of your clients relay"
    ]


# What Exchange Online says


@pytest.mark.parametrize(
    ("reverse_path", "rcpt", "result", "reason"),
    [
        ("ann@contoso.com", OUTSIDE, Result.RELAY, Reason.P1_ACCEPTED),
        ("ann@a.corp.contoso.com", OUTSIDE, Result.RELAY, Reason.P1_ACCEPTED),
        ("ann@sub.contoso.com", OUTSIDE, Result.REFUSE, Reason.NOTHING_ACCEPTED),
        ("ann@fabrikam.example", OUTSIDE, Result.REFUSE, Reason.NOTHING_ACCEPTED),
        ("", OUTSIDE, Result.REFUSE, Reason.NULL_SENDER),
        ("", "bob@contoso.com", Result.INSIDE, Reason.RECIPIENT_ACCEPTED),
        ("bob@fabrikam.com", "bob@corp.contoso.com", Result.INSIDE, Reason.RECIPIENT_ACCEPTED),
    ],
)
def test_verdict_on_mail_of_a_hub_known_by_address(
    reverse_path: str, rcpt: str, result: Result, reason: Reason
) -> None:
    verdict = flow.at_upstream(hub(), Mail(reverse_path), rcpt)
    assert verdict
    assert (verdict.result, verdict.reason) == (result, reason)


@pytest.mark.parametrize("reverse_path", ["", "ann@contoso.com", "bob@fabrikam.com", "root"])
def test_hub_with_an_accepted_certificate_may_send_anything_r9(reverse_path: str) -> None:
    verdict = flow.at_upstream(CERTIFIED, Mail(reverse_path), OUTSIDE)
    assert verdict
    assert (verdict.result, verdict.reason) == (Result.RELAY, Reason.CERTIFICATE_ACCEPTED)


def test_p2_counts_nothing_there_whatever_the_rule_set_is_here_r1() -> None:
    made = snapshot(CONTOSO, requirements="legacy", upstream=BY_ADDRESS)
    verdict = flow.at_upstream(made, Mail("bob@fabrikam.com", ("ann@contoso.com",)), OUTSIDE)
    assert verdict
    assert verdict.result is Result.REFUSE


@pytest.mark.parametrize("rcpt", ["x@fabrikam.example", "root@mail.contoso.net"], ids=["organization", "local domain"])
def test_mail_that_does_not_get_there_is_not_judged(rcpt: str) -> None:
    assert flow.at_upstream(hub(), Mail("ann@contoso.com"), rcpt) is None


def test_without_upstream_nothing_is_known() -> None:
    assert flow.at_upstream(snapshot(CONTOSO), Mail("ann@contoso.com"), OUTSIDE) is None


# Which senders are rewritten


@pytest.mark.parametrize(
    ("reverse_path", "expected"),
    [
        ("", Egress.OUT),
        ("ann@contoso.com", Egress.OUT),
        ("ann@corp.contoso.com", Egress.OUT),
        ("ann@a.corp.contoso.com", Egress.OUT),
        ("ann@srs.contoso.com", Egress.OUT),
        ("ann@sub.contoso.com", Egress.REWRITE),
        ("ann@fabrikam.example", Egress.REWRITE),
        ("root@mail.contoso.net", Egress.REWRITE),
        ("bob@excluded.example", Egress.REWRITE),
        ("root", Egress.IMPOSSIBLE),
    ],
)
def test_every_sender_that_is_not_the_tenants_is_rewritten_by_address(reverse_path: str, expected: Egress) -> None:
    made = hub(exclude=["excluded.example", "contoso.com"])
    assert rewriting.leaving(made, reverse_path) is expected
    assert rewriting.egress(made, reverse_path) is expected


def test_subdomain_that_does_not_count_for_relay_is_rewritten_r4() -> None:
    raw = {"organization": [CONTOSO], "relay": {"subdomains_relay": False}, "upstream": BY_ADDRESS}
    made = build(parse(raw, Path("gatepost.toml")), Keys([b"key"]), 0.0)
    assert rewriting.leaving(made, "ann@a.corp.contoso.com") is Egress.REWRITE
    assert rewriting.leaving(made, "ann@corp.contoso.com") is Egress.OUT


def test_accepted_domain_that_the_connector_is_not_for_is_rewritten_r11() -> None:
    made = hub({"associated_accepted_domains": ["srs.contoso.com"]})
    assert rewriting.leaving(made, "ann@contoso.com") is Egress.REWRITE


@pytest.mark.parametrize(
    ("reverse_path", "expected"),
    [
        ("bob@fabrikam.com", Egress.REWRITE),
        ("ann@fabrikam.example", Egress.OUT),
        ("bob@excluded.example", Egress.OUT),
        ("root", Egress.OUT),
    ],
)
def test_by_certificate_srs_is_as_without_upstream_and_what_it_cannot_rewrite_goes_on(
    reverse_path: str, expected: Egress
) -> None:
    made = snapshot(CONTOSO, FABRIKAM, upstream=BY_CERTIFICATE, exclude=["excluded.example"])
    assert rewriting.leaving(made, reverse_path) is expected


def test_mail_of_every_organization_is_rewritten_in_the_tenants_name_by_address() -> None:
    made = hub()
    for name in ("contoso", "fabrikam"):
        new = rewriting.relayed(made, "bob@x.example", made.config.organizations[name], NOW).address
        assert new.endswith("=x.example=bob@srs.contoso.com")


@pytest.mark.parametrize(
    ("mailbox", "start"),
    [
        (Address("john", "contoso.com"), "john+SRS="),
        (Address("john", "a.corp.contoso.com"), "john+SRS="),
        (Address("john", "fabrikam.example"), "bounces+SRS="),
    ],
)
def test_forwarded_mail_names_its_mailbox_where_that_is_the_tenants(mailbox: Address, start: str) -> None:
    new = rewriting.forwarded(hub(), "bob@x.example", mailbox, NOW).address
    assert new.startswith(start)
    assert new.endswith("=x.example=bob@srs.contoso.com")


def test_compact_address_of_a_mailbox_that_the_tenant_covers_is_the_tenants() -> None:
    contoso = organization("contoso", "*.contoso.com", srs_domain="srs.contoso.com")
    made = hub({}, contoso, organization("fabrikam", "fabrikam.example", "sub.contoso.com"), form="compact")
    new = rewriting.forwarded(made, "bob@x.example", Address("john", "sub.contoso.com"), NOW)
    assert new.address.endswith("@srs.contoso.com")


@pytest.mark.parametrize("form", ["auto", "long", "compact"])
def test_address_that_was_made_before_in_another_domain_is_wrapped_and_its_bounce_comes_back(form: str) -> None:
    shelf = Shelf()
    fabrikam = TWO.config.organizations["fabrikam"]
    old = shelf.put(rewriting.relayed(TWO, "bob@x.example", fabrikam, NOW))
    made = hub({}, CONTOSO, FABRIKAM, form=form)
    assert rewriting.leaving(made, old) is Egress.REWRITE
    new = shelf.put(rewriting.relayed(made, old, None, NOW))
    assert rewriting.leaving(made, new) is Egress.OUT
    assert reversal.reverse(made, new, NOW, shelf.get).original == old


TWO = snapshot(CONTOSO, FABRIKAM, form="compact")


def test_longest_domain_of_the_others_does_not_make_a_sender_impossible() -> None:
    long = organization("long", f"{'.'.join(['l' * 60] * 3)}.example")
    sender = f"{'b' * 60}@fabrikam.com"
    assert rewriting.leaving(snapshot(CONTOSO, long, form="long"), sender) is Egress.IMPOSSIBLE
    assert rewriting.leaving(hub({}, CONTOSO, long, form="long"), sender) is Egress.REWRITE


def test_wrong_hash_in_the_tenants_srs_domain_is_forged_though_only_another_organization_enforces() -> None:
    contoso = {**CONTOSO, "mode": "monitor"}
    made = hub({}, contoso, FABRIKAM)
    forged = "bounces+SRS=aaaaaaaa=RA=x.example=bob@srs.contoso.com"
    assert reversal.reverse(made, forged, NOW, nothing).bounce is Bounce.FORGED


# Judgements


def judged(made: Snapshot, reverse_path: str, rcpt: str = OUTSIDE, certificate: str = "mail.contoso.com") -> Judgement:
    client = made.rules.client(OFFICE, [certificate] if certificate else [])
    return flow.judge(made, client, Mail(reverse_path), rcpt)


def said(judgement: Judgement) -> str:
    return upstream.outcome(judgement.upstream) if judgement.upstream else ""


@pytest.mark.parametrize(
    ("reverse_path", "rcpt", "treatment", "outcome"),
    [
        ("ann@contoso.com", OUTSIDE, Treatment.KEEP, "relay"),
        ("bob@fabrikam.com", OUTSIDE, Treatment.REWRITE, "relay"),
        ("", OUTSIDE, Treatment.KEEP, "null-sender-without-certificate"),
        ("", "ann@contoso.com", Treatment.KEEP, "inside"),
        ("", "ann@fabrikam.example", Treatment.KEEP, ""),
        ("root", OUTSIDE, Treatment.UNREWRITABLE, ""),
    ],
)
def test_judgement_says_what_exchange_online_will_say_of_the_message_as_it_leaves(
    reverse_path: str, rcpt: str, treatment: Treatment, outcome: str
) -> None:
    judgement = judged(hub(), reverse_path, rcpt)
    assert (judgement.treatment, said(judgement)) == (treatment, outcome)


def test_mail_that_is_refused_here_does_not_get_there() -> None:
    judgement = judged(hub(), "bob@fabrikam.com", certificate="")
    assert (judgement.treatment, judgement.upstream) == (Treatment.REFUSE, None)


def test_in_monitor_mode_the_sender_leaves_as_it_is_and_is_refused() -> None:
    contoso = {**CONTOSO, "mode": "monitor"}
    judgement = judged(hub({"refuse": True}, contoso), "bob@fabrikam.com")
    assert (judgement.treatment, said(judgement)) == (Treatment.KEEP, "nothing-accepted")


def test_null_sender_is_refused_early_where_asked_for() -> None:
    judgement = judged(hub({"refuse": True}), "")
    assert (judgement.treatment, said(judgement)) == (Treatment.UPSTREAM, "null-sender-without-certificate")
    assert judgement.upstream
    assert upstream.why_refused(judgement.upstream) == "upstream-null-sender"


def test_null_sender_is_not_refused_early_by_certificate() -> None:
    made = snapshot(CONTOSO, upstream={**BY_CERTIFICATE, "refuse": True})
    assert judged(made, "").treatment is Treatment.KEEP


@pytest.mark.parametrize("rcpt", ["ann@contoso.com", "ann@fabrikam.example", "root@mail.contoso.net"])
def test_null_sender_to_inside_is_not_refused_early(rcpt: str) -> None:
    assert judged(hub({"refuse": True}), "", rcpt).treatment is Treatment.KEEP


# In words


@pytest.mark.parametrize(
    ("made", "reverse_path", "rcpt", "expected"),
    [
        (hub(), "", "ann@contoso.com", "taken, for the recipient is contoso's own."),
        (hub(), "ann@contoso.com", OUTSIDE, "taken, for P1 <ann@contoso.com> is in an accepted domain."),
        (
            CERTIFIED,
            "",
            OUTSIDE,
            "taken, whatever P1 is, for this host's certificate (hub.contoso.com) is accepted.",
        ),
        (
            hub(),
            "",
            OUTSIDE,
            "refused with 550 5.7.64, because the sender is null, which only a certificate brings through to outside, "
            "and this host is known there by address only.",
        ),
        (
            hub(),
            "bob@fabrikam.com",
            OUTSIDE,
            "refused with 550 5.7.64, because the P1 domain fabrikam.com is no accepted domain of contoso, and this "
            "host is known there by address only.",
        ),
        (
            hub({"tls_sender_certificate_name": "hub.hoster.example"}),
            "root",
            OUTSIDE,
            "refused with 550 5.7.64, because P1 <root>, which has no domain name, is no accepted domain of contoso, "
            "and no name of this host's certificate (hub.hoster.example) is.",
        ),
        (
            hub({"associated_accepted_domains": ["srs.contoso.com"]}),
            "ann@contoso.com",
            OUTSIDE,
            "refused with 550 5.7.64, because the connector there is not for the P1 domain contoso.com "
            "(upstream.associated_accepted_domains), and this host is known there by address only.",
        ),
    ],
)
def test_decision_in_words(made: Snapshot, reverse_path: str, rcpt: str, expected: str) -> None:
    verdict = flow.at_upstream(made, Mail(reverse_path), rcpt)
    assert verdict
    assert made.upstream
    assert upstream_words.decision(made.upstream, verdict, reverse_path) == f"At Exchange Online: {expected}"


MODE = 'With mode = "enforce" SRS gives it a P1'
CERTIFICATE = "Have this host present a certificate"


@pytest.mark.parametrize(
    ("reverse_path", "names", "mode", "starts"),
    [
        ("ann@contoso.com", ["mail.contoso.com"], "enforce", []),
        ("", ["mail.contoso.com"], "enforce", [CERTIFICATE, "Or have Postfix deliver null senders past"]),
        ("bob@fabrikam.com", ["mail.contoso.com"], "monitor", [MODE, CERTIFICATE]),
        ("bob@fabrikam.com", [], "monitor", [CERTIFICATE]),  # would be refused here then
        ("root", ["mail.contoso.com"], "monitor", [CERTIFICATE]),  # SRS cannot rewrite it
    ],
)
def test_remedies_in_words(reverse_path: str, names: list[str], mode: str, starts: list[str]) -> None:
    made = hub(None, {**CONTOSO, "mode": mode})
    judgement = flow.judge(made, made.rules.client(OFFICE, names), Mail(reverse_path), OUTSIDE)
    found = list(upstream_words.remedies(made, judgement, reverse_path))
    assert len(found) == len(starts)
    assert all(sentence.startswith(start) for sentence, start in zip(found, starts))


def test_certificate_to_get_is_of_a_domain_that_the_connector_there_takes_r11() -> None:
    made = hub({"associated_accepted_domains": ["srs.contoso.com"]})
    judgement = flow.judge(made, made.rules.client(None, ["mail.contoso.com"]), Mail(""), OUTSIDE)
    assert "such as hub.srs.contoso.com " in next(upstream_words.remedies(made, judgement, ""))


def test_where_only_policyd_enforces_and_nothing_rewrites_a_foreign_sender_is_refused_there() -> None:
    raw = {
        "organization": [CONTOSO],
        "relay": {"enforced_by": "policyd", "mode": "enforce"},
        "upstream": BY_ADDRESS,
    }
    made = build(parse(raw, Path("gatepost.toml")), Keys([b"key"]), 0.0)
    client = made.rules.client(None, ["mail.contoso.com"])
    judgement = flow.judge(made, client, Mail("bob@fabrikam.com"), OUTSIDE)
    assert judgement.verdict.result is Result.RELAY
    assert judgement.upstream
    assert judgement.upstream.reason is Reason.NOTHING_ACCEPTED


# Submission


def test_submission_is_refused_early_like_the_rest() -> None:
    made = hub({"refuse": True})
    client = made.rules.client("198.51.100.9", authenticated=True)
    assert flow.judge(made, client, Mail(""), OUTSIDE).treatment is Treatment.UPSTREAM
