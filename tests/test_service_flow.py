# SPDX-License-Identifier: GPL-3.0-or-later
"""What becomes of a message: the verdict, and what follows from it for each recipient."""

from __future__ import annotations

from typing import Optional

import pytest
from hypothesis import given
from snapshots import ADDRESSES, CONTOSO, OFFICE, OUTSIDE, TWO, organization, snapshot, snapshots

from gatepost.relay import Mail, Reason, Result
from gatepost.service import addresses, flow
from gatepost.service.flow import Treatment
from gatepost.service.snapshot import Snapshot


def treatment(
    made: Snapshot,
    reverse_path: str,
    rcpt: str,
    ip: str = OFFICE,
    certificate: str = "",
    header_from: Optional[str] = None,
    **client: bool,
) -> tuple[Result, bool, Treatment]:
    judgement = flow.judge(
        made,
        made.rules.client(ip, [certificate] if certificate else [], **client),
        Mail(reverse_path, (header_from,) if header_from else ()),
        rcpt,
        headers_seen=header_from is not None,
    )
    return judgement.verdict.result, judgement.enforce, judgement.treatment


CRM = {"ip": "198.51.100.7", "certificate": "mail.contoso.com"}


def test_inside_recipient_keeps_any_sender() -> None:
    expected = (Result.INSIDE, True, Treatment.KEEP)
    assert treatment(CONTOSO, "bob@fabrikam.com", "ann@contoso.com", ip="198.51.100.7") == expected


def test_accepted_sender_of_a_known_host_is_relayed_as_it_is() -> None:
    assert treatment(CONTOSO, "ann@contoso.com", OUTSIDE) == (Result.RELAY, True, Treatment.KEEP)


def test_foreign_sender_of_a_known_certificate_is_relayed_and_rewritten() -> None:
    assert treatment(CONTOSO, "bob@fabrikam.com", OUTSIDE, **CRM) == (Result.RELAY, True, Treatment.REWRITE)


def test_null_sender_of_a_known_certificate_is_relayed_as_it_is() -> None:
    assert treatment(CONTOSO, "", OUTSIDE, **CRM) == (Result.RELAY, True, Treatment.KEEP)


def test_foreign_sender_that_is_too_long_is_unrewritable() -> None:
    sender = f"bob@{'.'.join(['d' * 60] * 4)}"
    made = snapshot(organization("contoso", "contoso.com"), form="long")
    assert treatment(made, sender, OUTSIDE, **CRM) == (Result.RELAY, True, Treatment.UNREWRITABLE)


@pytest.mark.parametrize("sender", ["bob@fabrikam.com", "", "ann@sub.contoso.com"])
def test_sender_that_is_not_accepted_is_refused_to_a_host_known_by_address(sender: str) -> None:
    assert treatment(CONTOSO, sender, OUTSIDE) == (Result.REFUSE, True, Treatment.REFUSE)


@pytest.mark.parametrize("kind", ["authenticated", "local"])
def test_exempt_client_has_its_foreign_sender_rewritten(kind: str) -> None:
    expected = (Result.EXEMPT, True, Treatment.REWRITE)
    assert treatment(CONTOSO, "bob@fabrikam.com", OUTSIDE, ip="198.51.100.7", **{kind: True}) == expected


def test_monitor_mode_of_the_organization_keeps_what_it_would_refuse_or_rewrite() -> None:
    made = snapshot(organization("contoso", "contoso.com", mode="monitor"))
    assert treatment(made, "bob@fabrikam.com", OUTSIDE) == (Result.REFUSE, False, Treatment.KEEP)
    assert treatment(made, "bob@fabrikam.com", OUTSIDE, **CRM) == (Result.RELAY, False, Treatment.KEEP)


def test_mode_is_that_of_the_organization_that_the_mail_is_attributed_to() -> None:
    stranger = {"ip": "203.0.113.7"}
    assert treatment(TWO, "bob@x.example", OUTSIDE, **stranger) == (Result.REFUSE, False, Treatment.KEEP)
    assert treatment(TWO, "bob@x.example", OUTSIDE) == (Result.REFUSE, True, Treatment.REFUSE)


@pytest.mark.parametrize(
    ("mode", "expected"),
    [("enforce", (Result.REFUSE, True, Treatment.REFUSE)), ("monitor", (Result.REFUSE, False, Treatment.KEEP))],
)
def test_mail_of_nobody_follows_the_mode_of_relay(mode: str, expected: tuple[Result, bool, Treatment]) -> None:
    made = snapshot(organization("contoso", "contoso.com", mode="enforce"), mode=mode)
    assert treatment(made, "bob@fabrikam.com", OUTSIDE, ip="198.51.100.7") == expected


def test_exempt_mail_of_nobody_follows_the_mode_of_the_first_organization() -> None:
    made = snapshot(organization("contoso", "contoso.com", mode="monitor"), mode="enforce")
    local = treatment(made, "bob@fabrikam.com", OUTSIDE, ip="127.0.0.1", local=True)
    assert local == (Result.EXEMPT, False, Treatment.KEEP)


def test_nothing_is_enforced_without_an_organization() -> None:
    assert treatment(snapshot(), "bob@fabrikam.com", OUTSIDE) == (Result.REFUSE, False, Treatment.KEEP)


def test_refusal_waits_for_the_header_from_under_legacy_rules() -> None:
    made = snapshot(organization("contoso", "contoso.com"), requirements="legacy")
    assert treatment(made, "bob@fabrikam.com", OUTSIDE) == (Result.REFUSE, True, Treatment.UNDECIDED)


def test_header_from_decides_under_legacy_rules() -> None:
    made = snapshot(organization("contoso", "contoso.com"), requirements="legacy")
    relayed = treatment(made, "bob@fabrikam.com", OUTSIDE, header_from="app@contoso.com")
    assert relayed == (Result.RELAY, True, Treatment.REWRITE)
    refused = treatment(made, "bob@fabrikam.com", OUTSIDE, header_from="bob@fabrikam.com")
    assert refused == (Result.REFUSE, True, Treatment.REFUSE)


def test_null_sender_is_named_as_the_reason() -> None:
    verdict = flow.judge(CONTOSO, CONTOSO.rules.client(OFFICE), Mail(""), OUTSIDE).verdict
    assert verdict.reason is Reason.NULL_SENDER


@pytest.mark.parametrize(
    ("address", "domain"),
    [("a@B.example", "b.example"), ("a@bücher.example", "xn--bcher-kva.example"), ("a@[192.0.2.1]", None), ("a", None)],
)
def test_domain_of_an_address_is_in_normal_form(address: str, domain: Optional[str]) -> None:
    assert addresses.domain_of(address) == domain


def test_sender_that_spf_spares_is_relayed_as_it_is() -> None:
    judgement = flow.judge(
        CONTOSO,
        CONTOSO.rules.client("198.51.100.7", ["mail.contoso.com"]),
        Mail("bob@fabrikam.com"),
        OUTSIDE,
        spared=True,
    )
    assert judgement.treatment is Treatment.KEEP


@given(snapshots(), ADDRESSES, ADDRESSES)
def test_no_address_raises_anything(made: Snapshot, reverse_path: str, rcpt: str) -> None:
    flow.judge(made, made.rules.client(OFFICE), Mail(reverse_path), rcpt)
