# SPDX-License-Identifier: GPL-3.0-or-later
"""`gatepost check` on a hub in front of Exchange Online."""

from __future__ import annotations

import re
from typing import Any

from snapshots import NOW, OUTSIDE, Raw, nothing, organization, snapshot

from gatepost.admin.check import examine
from gatepost.admin.check_model import Answer, Question
from gatepost.admin.check_output import consequence
from gatepost.service import rewriting
from gatepost.service.snapshot import Snapshot

CONTOSO = organization("contoso", "contoso.com", "srs.contoso.com", srs_domain="srs.contoso.com")
BY_ADDRESS: Raw = {"sender_ip_addresses": ["203.0.113.5"]}
NULL = "null-sender-without-certificate"


def hub(mode: str = "enforce", *, refuse: bool = False) -> Snapshot:
    return snapshot({**CONTOSO, "mode": mode}, upstream={**BY_ADDRESS, "refuse": refuse})


def answer(made: Snapshot, mail_from: str, rcpt: str = OUTSIDE, **client: Any) -> Answer:
    client = client or {"certificate_names": ("mail.contoso.com",)}
    question = Question(mail_from=mail_from, recipients=(rcpt,), **client)
    (found,) = examine(made, question, NOW, nothing).answers
    return found


def upstream_notes(found: Answer) -> list[str]:
    """Return what is said of Exchange Online, SRS addresses cut short."""
    start = next(index for index, note in enumerate(found.notes) if note.startswith("At Exchange Online"))
    return [re.sub(r"\+SRS=[^@]*", "+SRS=…", note) for note in found.notes[start:]]


def test_mail_that_is_taken_has_a_sentence() -> None:
    found = answer(hub(), "ann@contoso.com")
    assert found.upstream == "relay"
    assert upstream_notes(found) == ["At Exchange Online: taken, for P1 <ann@contoso.com> is in an accepted domain."]


def test_foreign_sender_is_taken_as_it_leaves() -> None:
    found = answer(hub(), "bob@fabrikam.com")
    assert upstream_notes(found) == [
        "At Exchange Online: taken, for P1 <bounces+SRS=…@srs.contoso.com> is in an accepted domain."
    ]


def test_mail_that_will_be_refused_there_has_its_remedies() -> None:
    found = answer(hub(), "")
    assert (found.refused, found.upstream) == (False, NULL)
    (said,) = upstream_notes(found)
    assert said.startswith("At Exchange Online: refused with 550 5.7.64, because the sender is null")
    assert len(found.upstream_remedies) == 2


def test_early_refusal_is_explained_with_its_reply() -> None:
    found = answer(hub(refuse=True), "")
    assert (found.refused, found.effective, found.reason) == (True, True, "upstream-null-sender")
    assert found.reply == "550 5.7.64 TenantAttribution; Relay Access Denied"
    assert found.failed.startswith("At Exchange Online: refused with 550 5.7.64")
    assert found.envelope is None


def test_in_monitor_mode_a_foreign_sender_is_refused_there_and_the_mode_is_the_first_remedy() -> None:
    # the hop lets nothing pass unrewritten as soon as one organization enforces; here none does
    found = answer(hub("monitor"), "bob@fabrikam.com")
    assert found.upstream == "nothing-accepted"
    assert found.upstream_remedies[0] == 'With mode = "enforce" SRS gives it a P1 in a domain that contoso accepts.'


def test_bounce_that_goes_back_to_outside_is_refused_there() -> None:
    made = hub()
    srs = rewriting.relayed(made, "bob@fabrikam.com", None, NOW).address
    found = answer(made, "", srs)
    assert (found.reason, found.upstream) == ("srs-bounce", NULL)


def test_sender_that_no_srs_address_can_hold_is_left_to_exchange_online_by_certificate() -> None:
    made = snapshot(CONTOSO, upstream={"tls_sender_certificate_name": "hub.contoso.com"})
    assert answer(made, "root").notes == (
        "SRS leaves P1 alone: no SRS address can hold it, so Exchange Online is to rewrite it.",
        "At Exchange Online: taken, whatever P1 is, for this host's certificate (hub.contoso.com) is accepted.",
    )


def test_mail_that_does_not_get_there_says_nothing_of_it() -> None:
    found = answer(hub(), "bob@fabrikam.com", "root@mail.contoso.net")
    assert found.upstream == ""
    assert not any("Exchange Online" in note for note in found.notes)


OFFICE = "192.0.2.1"
WITH_OFFICE: Raw = {**CONTOSO, "connector": [{"name": "office", "sender_ip_addresses": [OFFICE]}]}


def test_in_monitor_mode_an_early_refusal_is_what_enforce_would_do() -> None:
    found = answer(hub("monitor", refuse=True), "")
    assert (found.refused, found.effective, found.outcome) == (True, False, "monitor")
    assert found.reason == "certificate-accepted"  # as the log has it
    assert (found.envelope, found.enforced) == (found.before, None)
    assert consequence(found) == (
        "The recipient is refused with 550 5.7.64 TenantAttribution; Relay Access Denied (upstream.refuse)"
    )


def test_refused_p1_of_a_host_with_a_connector_is_offered_action_rewrite_first() -> None:
    found = answer(snapshot(WITH_OFFICE, upstream=BY_ADDRESS), "bob@fabrikam.com", ip=OFFICE)
    assert found.refused
    assert found.remedies[0] == (
        'Set organization[contoso].action = "rewrite", or relay.action for all that have none of their own: SRS then '
        "gives such mail a P1 in srs.contoso.com, and Exchange Online takes it."
    )


def test_that_action_done_to_the_letter_mends_the_message() -> None:
    for mode in ("enforce", "monitor"):
        made = snapshot({**WITH_OFFICE, "mode": mode, "action": "rewrite"}, upstream=BY_ADDRESS)
        found = answer(made, "bob@fabrikam.com", ip=OFFICE)
        assert (found.refused, found.mended, found.remedies) == (False, True, ())
        assert found.enforced
        assert found.enforced.mail_from.endswith("@srs.contoso.com")
    assert found.upstream_remedies[0].startswith('With mode = "enforce" SRS gives it a P1')


def test_what_no_other_sender_helps_is_not_offered_action_rewrite() -> None:
    strangers = answer(hub(), "bob@fabrikam.com", ip="198.51.100.7")
    nulls = answer(snapshot(WITH_OFFICE, upstream=BY_ADDRESS), "", ip=OFFICE)
    assert not any("rewrite" in remedy for found in (strangers, nulls) for remedy in found.remedies[:1])


def test_null_sender_is_told_that_a_certificate_to_this_host_is_not_enough() -> None:
    for mode in ("enforce", "monitor"):
        found = answer(hub(mode), "", ip=OFFICE)
        assert found.remedies[0].startswith("Send null-sender mail")
        assert sum("counts for nothing" in note for note in found.notes) == 1
        assert len(found.upstream_remedies) == 2


def test_remedies_leave_this_hosts_own_connector_alone() -> None:
    own: Raw = {"name": "hub", "sender_ip_addresses": ["203.0.113.5"]}
    made = snapshot({**CONTOSO, "connector": [own]}, upstream=BY_ADDRESS)
    found = answer(made, "ann@contoso.com", ip="198.51.100.7")
    assert found.remedies == (
        'If the client is a host of contoso: declare [[organization.connector]] name = "…", '
        'sender_ip_addresses = ["198.51.100.7"] under organization[contoso].',
    )
