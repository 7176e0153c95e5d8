# SPDX-License-Identifier: GPL-3.0-or-later
"""Reports without a store: what options ask for, the rows, what they come to in words, what to change."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timezone
from typing import Optional

import pytest
from ledgers import entry, rewritten
from snapshots import CONTOSO, TWO, organization, snapshot

from gatepost.admin import report_summary
from gatepost.admin.report import job_fields, job_from, message_cells, rows_of, summary_from
from gatepost.admin.report_model import Group, Job, ReportType, Row, Summary
from gatepost.admin.report_request import Options, RequestError, job_of, wanted
from gatepost.admin.report_summary import Summarizer, Tally, limited
from gatepost.service.ledger import Entry
from gatepost.service.report_store import Found
from gatepost.service.snapshot import Snapshot

NOW = datetime(2026, 11, 22, 10, 30, tzinfo=timezone.utc)
NOON = datetime(2026, 11, 3, 12, tzinfo=timezone.utc).timestamp()
DAY = 86400.0


def job(report_type: str = "P2SenderAttribution", *, snapshot: Snapshot = CONTOSO, **options: object) -> Job:
    given = Options(type=report_type, **options)  # type: ignore[arg-type]
    return job_of(given, snapshot.rules, "3f0c51aa", NOW, days=90)


def problems(report_type: str = "P2SenderAttribution", **options: object) -> list[str]:
    with pytest.raises(RequestError) as caught:
        job(report_type, **options)
    return list(caught.value.problems)


def november(report_type: str = "P2SenderAttribution", end: str = "2026-11-22") -> Job:
    return job(report_type, start_date="2026-11-01", end_date=end)


def summary(
    of: Job, entries: Sequence[Entry], bounces: int = 0, snapshot: Snapshot = CONTOSO, p2_unseen: int = 0
) -> Summary:
    summarizer = Summarizer(of)
    summarizer.p2_unseen = p2_unseen
    for item in entries:
        summarizer.add(Found(item, bounces, None))
    return summarizer.summary(snapshot.rules)


# What is asked for


@pytest.mark.parametrize(
    ("text", "time"),
    [
        ("2026-11-01", datetime(2026, 11, 1)),
        ("2026-11-01T10:30", datetime(2026, 11, 1, 10, 30)),
        ("2026-11-01T10:30:15", datetime(2026, 11, 1, 10, 30, 15)),
        ("2026-11-01T10:30Z", datetime(2026, 11, 1, 10, 30)),
        ("2026-11-01T10:30+02:00", datetime(2026, 11, 1, 8, 30)),
    ],
)
def test_a_date_is_utc_and_one_without_a_time_is_midnight(text: str, time: datetime) -> None:
    assert job(start_date=text).start == time.replace(tzinfo=timezone.utc)


def test_without_dates_the_report_is_of_the_last_30_days_up_to_this_second() -> None:
    made = job()
    assert (made.start, made.end) == (
        datetime(2026, 10, 23, 10, 30, 1, tzinfo=timezone.utc),
        datetime(2026, 11, 22, 10, 30, 1, tzinfo=timezone.utc),  # exclusive
    )
    assert made.title == "P2SenderAttribution 2026-10-23 to 2026-11-22"


def test_without_a_start_it_is_30_days_before_the_end() -> None:
    assert job(end_date="2026-11-01").start == datetime(2026, 10, 2, tzinfo=timezone.utc)


def test_an_end_in_the_future_is_allowed() -> None:
    assert job(start_date="2026-11-01", end_date="2026-12-24").end == datetime(2026, 12, 24, tzinfo=timezone.utc)


@pytest.mark.parametrize("end", ["2026-11-10", "2026-11-09"])
def test_an_end_that_is_not_later_than_the_start_is_refused(end: str) -> None:
    assert problems(start_date="2026-11-10", end_date=end) == [
        f"--end-date: {end} 00:00 UTC is not later than the start, 2026-11-10 00:00 UTC; a date without a time is "
        "00:00 UTC, and the end is exclusive"
    ]


def test_the_start_is_90_days_back_at_the_earliest() -> None:
    assert job(start_date="2026-08-24").start == datetime(2026, 8, 24, tzinfo=timezone.utc)
    assert problems(start_date="2026-08-23") == [
        "--start-date: 2026-08-23 00:00 UTC is more than 90 days back; 2026-08-24 00:00 UTC is the first"
    ]


def test_a_ledger_that_is_kept_for_longer_can_be_asked_for_longer() -> None:
    made = job_of(Options(type="Refused", start_date="2026-01-01"), CONTOSO.rules, "id", NOW, days=365)
    assert made.start == datetime(2026, 1, 1, tzinfo=timezone.utc)


def test_all_that_is_wrong_is_said_at_once() -> None:
    assert problems(
        start_date="yesterday",
        end_date="2026-13-01",
        sender_addresses=("*@vendor.example",),
        recipient_addresses=("bob",),
        notify_addresses=("ann@vendor.example", "*@contoso.com"),
    ) == [
        '--end-date: "2026-13-01" is no date; give 2026-11-01 or 2026-11-01T10:30, in UTC',
        '--start-date: "yesterday" is no date; give 2026-11-01 or 2026-11-01T10:30, in UTC',
        '--recipient-address: "bob" is no address; give bob@contoso.com or *@contoso.com',
        '--sender-address: "*@vendor.example" is not of an accepted domain; this report takes such as *@contoso.com, '
        "where contoso.com is accepted, or *@*.contoso.com",
        '--notify-address: "ann@vendor.example" is no address in an accepted domain',
        '--notify-address: "*@contoso.com" is no address in an accepted domain',
    ]


def test_100_values_are_allowed_and_101_are_not() -> None:
    addresses = ",".join(f"user{number}@gmail.com" for number in range(100))
    assert len(job(recipient_addresses=(addresses,)).recipient_addresses) == 100
    assert problems(recipient_addresses=(addresses, "bob@gmail.com")) == [
        "--recipient-address: 101 values are given; at most 100 are allowed"
    ]


@pytest.mark.parametrize(
    "pattern", ["bob@contoso.com", "*@CONTOSO.com", "*@*.corp.contoso.com", "b*@a.corp.contoso.com"]
)
def test_a_sender_of_an_accepted_domain_may_be_asked_for(pattern: str) -> None:
    assert job(snapshot=TWO, sender_addresses=(pattern,)).sender_addresses == (pattern.lower(),)


@pytest.mark.parametrize("pattern", ["*", "*@*", "*@*contoso.com", "bob@contoso*"])
def test_a_sender_that_may_be_of_any_domain_is_refused_for_p2_only(pattern: str) -> None:
    assert len(problems(sender_addresses=(pattern,))) == 1
    assert job("Refused", sender_addresses=(pattern,)).sender_addresses == (pattern,)


@pytest.mark.parametrize(
    ("pattern", "found"),
    [
        ("ceo@contoso.com", True),
        ("CEO@Contoso.com", True),
        ("*@contoso.com", True),
        ("c*o@*.com", True),
        ("app@vendor.example", True),
        ("eo@contoso.com", False),
        ("ceo@contoso.co", False),
        ("c.o@contoso.com", False),
        ("ann*@contoso.com", False),
    ],
)
def test_a_sender_is_compared_with_p1_and_each_p2(pattern: str, found: bool) -> None:
    both = entry("A", NOON, header_from="ann@fabrikam.com, ceo@contoso.com")
    assert wanted(job("Refused", sender_addresses=(pattern,)))(both) is found


def test_a_recipient_is_compared_with_what_it_was_forwarded_to_as_well() -> None:
    forwarded = entry("A", NOON, "sales@contoso.com", forwarded_to="ann@gmail.com, bob@gmail.com")
    assert wanted(job(recipient_addresses=("bob@gmail.com",)))(forwarded)
    assert wanted(job(recipient_addresses=("sales@*",)))(forwarded)
    assert not wanted(job(recipient_addresses=("carl@gmail.com",)))(forwarded)


def test_senders_and_recipients_must_both_be_met_and_of_each_any() -> None:
    ask = job(sender_addresses=("ceo@contoso.com", "x@contoso.com"), recipient_addresses=("x@gmail.com",))
    assert wanted(ask)(entry("A", NOON))
    assert not wanted(ask)(entry("A", NOON, "y@gmail.com"))


def test_a_domain_is_compared_as_a_labels() -> None:
    """RFC 6531 lets U-labels into an envelope; an accepted domain may be written as such, too."""
    of = job("Refused", sender_addresses=("*@*.Bücher.example",), recipient_addresses=("kunde@bücher.example",))
    assert (of.sender_addresses, of.recipient_addresses) == (
        ("*@*.xn--bcher-kva.example",),
        ("kunde@xn--bcher-kva.example",),
    )
    for domain in ("xn--bcher-kva.example", "bücher.example"):
        assert wanted(of)(entry("A", NOON, f"kunde@{domain}", header_from=f"chef@shop.{domain}"))
    assert not wanted(of)(entry("A", NOON, "kunde@bucher.example", header_from="chef@shop.bücher.example"))


def test_a_notify_address_has_its_domain_in_a_labels() -> None:
    books = snapshot(organization("books", "bücher.example"))
    of = job(snapshot=books, notify_addresses=("postmaster@bücher.example",))
    assert of.notify_addresses == ("postmaster@xn--bcher-kva.example",)


@pytest.mark.parametrize("pattern", ["*@bü*.example", "*@straße.example"])
def test_a_domain_that_has_no_a_labels_is_refused(pattern: str) -> None:
    assert problems("Refused", sender_addresses=(pattern,)) == [
        f'--sender-address: "{pattern}" cannot be compared; give its domain in A-labels (xn--...)'
    ]


def test_what_is_no_utf8_is_refused_in_words() -> None:
    assert problems("Refused", title="caf\udce9", recipient_addresses=("caf\udce9@*",)) == [
        '--title: "caf?" is not in UTF-8',
        '--recipient-address: "caf?@*" is not in UTF-8',
    ]


@pytest.mark.parametrize(
    ("pattern", "address", "found"),
    [
        ("*", "", True),
        ("**@b.example", "a@b.example", True),
        ("a*a@b.example", "a@b.example", False),
        ("*.a*a.*@b.example", "x.a.@b.example", False),
        ("*.a*a.*@b.example", "x.aa.@b.example", True),
        ("a*b*c", "abxbc", True),
        ("*b", "ab\n", False),
        ("*a*a*a*a*a*a*a*a*a*a*@b.example", "a" * 1000 + "@c.example", False),
    ],
)
def test_a_pattern_is_met_by_its_pieces_in_their_order(pattern: str, address: str, found: bool) -> None:
    assert wanted(job(recipient_addresses=(pattern,)))(entry("A", NOON, address)) is found


# Rows


def test_a_message_has_the_cells_of_exchange_and_ours() -> None:
    of = november()
    cells = message_cells(of.type, Found(entry("MFRGGZDFMY", NOON + 0.25, subject="Offer"), 0, None))
    assert dict(zip(of.type.columns, cells)) == {
        "origin_timestamp": "2026-11-03T12:00:00.250Z",
        "sender_address": "app@vendor.example",
        "header_from": "ceo@contoso.com",
        "recipient_status": "x@gmail.com##Relayed",
        "message_subject": "Offer",
        "total_bytes": 1234,
        "message_id": "<MFRGGZDFMY@vendor.example>",
        "network_message_id": "MFRGGZDFMY",
        "original_client_ip": "192.0.2.5",
        "helo": "crm.contoso.com",
        "certificate_names": "",
        "directionality": "Originating",
        "organization": "contoso",
        "connector_id": "head office",
        "delivery_priority": "Normal",
        "queue_id": "4CgSNs5Q9s",
        "reverse_name": "",
        "fcrdns": "",
        "upstream": "",
    }


def cell(name: str, item: Entry, report_type: ReportType = ReportType.REFUSED) -> object:
    return dict(zip(report_type.columns, message_cells(report_type, Found(item, 0, None))))[name]


@pytest.mark.parametrize(
    ("item", "status", "directionality"),
    [
        (entry("A", 0), "Relayed", "Originating"),
        (entry("A", 0, action="reject"), "Refused", "Originating"),
        (entry("A", 0, action="defer"), "Deferred", "Originating"),
        (entry("A", 0, action="quarantine"), "Held", "Originating"),
        (entry("A", 0, action="tag"), "Tagged", "Originating"),
        (rewritten("A", 0), "Rewritten", "Originating"),
        (entry("A", 0, verdict_current="inside"), "Inside", "Incoming"),
        (rewritten("A", 0, verdict_current="inside", forwarded_to="y@gmail.com"), "Rewritten", "Originating"),
        (entry("A", 0, action="return", verdict_current="", forwarded_to="y@gmail.com"), "Returned", "Originating"),
        (entry("A", 0, action="reject", verdict_current="", reason="srs-forged"), "Refused", "Incoming"),
    ],
)
def test_status_and_direction_say_what_became_of_a_recipient(item: Entry, status: str, directionality: str) -> None:
    assert cell("recipient_status", item) == f"x@gmail.com##{status}"
    assert cell("directionality", item) == directionality


def test_the_null_sender_shows_and_an_unknown_size_is_empty() -> None:
    item = entry("A", 0, reverse_path="", size_bytes=None)
    assert (cell("sender_address", item), cell("total_bytes", item)) == ("<>", "")


@pytest.mark.parametrize(("action", "mode"), [("reject", "enforce"), ("pass", "monitor"), ("rewrite", "monitor")])
def test_refused_says_whether_it_really_was(action: str, mode: str) -> None:
    assert cell("mode", entry("A", 0, action=action)) == mode


@pytest.mark.parametrize(("last", "shown"), [(NOON, "2026-11-03T12:00:00.000Z"), (None, "")])
def test_rewritten_says_when_bounces_came_back(last: Optional[float], shown: str) -> None:
    cells = message_cells(ReportType.REWRITTEN, Found(rewritten("A", 0), 2, last))
    assert cells[-7:] == ("bounces+srs=y3gtqm6c=cb=vendor.example=app@contoso.com", "", 2, shown, "", "", "")


def test_mail_of_non_accepted_domains_is_counted_by_day_connector_and_domain() -> None:
    add, rest = rows_of(november("NonAcceptedDomain"))
    made: list[Row] = []
    for item in (
        *(entry(f"A{number}", NOON) for number in range(7)),
        entry("A0", NOON, "second@gmail.com"),
        entry("B", NOON, sender_domain="other.example"),
        entry("C", NOON, connector="branch"),
        entry("D", NOON + DAY),
    ):
        made += add(Found(item, 0, None))
    ids = " ".join(f"<A{number}@vendor.example>" for number in range(5))
    assert [*made, *rest()] == [
        ("2026-11-03", "contoso", "branch", "vendor.example", 1, "<C@vendor.example>"),
        ("2026-11-03", "contoso", "head office", "other.example", 1, "<B@vendor.example>"),
        ("2026-11-03", "contoso", "head office", "vendor.example", 7, ids),
        ("2026-11-04", "contoso", "head office", "vendor.example", 1, "<D@vendor.example>"),
    ]


# What it comes to


def test_messages_are_counted_once_whatever_their_recipients() -> None:
    entries = [entry("A", NOON), entry("A", NOON, "y@gmail.com"), entry("B", NOON + DAY, client="192.0.2.6")]
    made = summary(november(end="2026-11-06"), entries)
    assert (made.messages, made.recipients) == (2, 3)
    assert made.by_day == (
        *(("2026-11-01", 0), ("2026-11-02", 0), ("2026-11-03", 1), ("2026-11-04", 1), ("2026-11-05", 0)),
    )
    assert made.by_client == (("192.0.2.5", 1), ("192.0.2.6", 1))
    assert made.by_domain == (("vendor.example", 2),)


def test_the_days_of_a_report_into_the_future_end_today() -> None:
    made = summary(job(start_date="2026-11-21", end_date="2026-12-24"), [])
    assert [day for day, _ in made.by_day] == ["2026-11-21", "2026-11-22"]


def test_a_group_says_which_condition_failed_and_what_to_change() -> None:
    (group,) = summary(november(), [entry("A", NOON), entry("A", NOON, "y@gmail.com")]).groups
    assert group == Group(
        client="192.0.2.5",
        helo="crm.contoso.com",
        sender_domain="vendor.example",
        header_from=("contoso.com",),
        organization="contoso",
        messages=1,
        recipients=2,
        problem="Condition 1 failed: the P1 domain vendor.example is not accepted, and the client presented no trusted "
        'certificate. Condition 2 holds: connector "office" of contoso matches the client. An IP address is enough '
        "only where P1 or the recipient is in an accepted domain. Before 2023-11-01 its P2 alone would have let it "
        "through.",
        remedies=(
            "If vendor.example is your own, declare it: [[organization.accepted_domain]] "
            'domain = "vendor.example" under organization[contoso].',
            "Let the application use an accepted P1, such as one in contoso.com. P1 is what it says in MAIL FROM; "
            "services call it return path or bounce address.",
            "Or let the client present a trusted certificate with a name in an accepted domain, such as "
            "mail.contoso.com (self-signed, expired, or not for client authentication is as good as none). If the name "
            "is not the CN, put the certificate into relay.certificate_folder.",
            "Where the application cannot change its P1, let SRS on the host before this one rewrite it into an "
            "address in contoso.com.",
        ),
    )


def test_a_group_that_the_configuration_relays_by_now_says_so() -> None:
    (group,) = summary(november(), [entry("A", NOON, certificate_names="mail.contoso.com")]).groups
    assert group.problem == "Relayed by the configuration in force; nothing has to be changed any more."


def test_mail_of_an_exempt_client_that_exchange_online_would_refuse_has_failed_no_condition() -> None:
    item = entry("A", NOON, action="reject", reason="upstream-nothing-accepted", verdict_current="exempt")
    (group,) = summary(november("Refused"), [item]).groups
    assert group.problem == (
        "Exchange Online would refuse it, and SRS cannot mend it, so it is refused here ([upstream] refuse)."
    )
    assert group.remedies == ()


def test_a_refused_srs_address_is_a_group_of_its_own() -> None:
    refused = entry("B", NOON, "bounces+srs=x@contoso.com", action="reject", verdict_current="", reason="srs-expired")
    made = summary(november("Refused"), [entry("A", NOON), refused])
    assert [group.problem[:33] for group in made.groups] == [
        "Condition 1 failed: the P1 domain",
        "The recipient is an SRS address o",
    ]


def test_mail_that_only_the_egress_hop_saw_is_a_group_without_remedies() -> None:
    alone = rewritten("A", NOON, client="", helo="", requirements="", verdict_current="", verdict_legacy="", reason="")
    made = summary(november("Rewritten"), [rewritten("B", NOON, client="", reason="local-submission"), alone])
    assert [(group.client, group.problem, group.remedies) for group in made.groups] == [
        ("this host", "P1 is in no accepted domain, so SRS rewrote it; nothing has to be changed.", ()),
        (
            "not known",
            "P1 is in no accepted domain, so SRS rewrote it. Only the egress hop saw this mail; how it came in is not "
            "known.",
            (),
        ),
    ]


def test_the_largest_group_is_first_and_50_are_shown() -> None:
    entries = [entry(f"A{number}", NOON, sender_domain=f"v{number}.example") for number in range(60)]
    made = summary(november(), [*entries, entry("B", NOON, sender_domain="v7.example")])
    assert (made.groups[0].sender_domain, len(made.groups)) == ("v7.example", 50)


@pytest.mark.parametrize(("reverse_path", "shown"), [("", "<>"), ("root", "<root>")], ids=["null sender", "no domain"])
def test_a_sender_without_a_domain_stands_for_itself(reverse_path: str, shown: str) -> None:
    made = summary(november(), [entry("A", NOON, reverse_path=reverse_path, sender_domain="")])
    assert (made.by_domain, made.groups[0].sender_domain) == (((shown, 1),), shown)


REFUSED = entry("B", NOON, action="reject", verdict_legacy="refuse")


@pytest.mark.parametrize(
    ("report_type", "entries", "sentence"),
    [
        (
            "P2SenderAttribution",
            [entry("A", NOON)],
            "1 message from 1 host between 1 and 21 November 2026 could be relayed only because of the From address "
            "(P2). Exchange Online refuses such mail.",
        ),
        (
            "P2SenderAttribution",
            [],
            "No message between 1 and 21 November 2026 relied on its From address (P2): not affected.",
        ),
        (
            "NonAcceptedDomain",
            [entry("A", NOON)],
            "1 message from 1 host between 1 and 21 November 2026 came through a connector with an envelope sender "
            "(P1) that is in no accepted domain.",
        ),
        (
            "NonAcceptedDomain",
            [],
            "No message between 1 and 21 November 2026 came through a connector with an envelope sender (P1) outside "
            "the accepted domains: not affected.",
        ),
        (
            "Refused",
            [entry("A", NOON), REFUSED, REFUSED._replace(reference="C")],
            "3 messages from 1 host between 1 and 21 November 2026 break the rules: 2 refused, 1 let through in mode "
            "monitor. 1 of them relied on the From address (P2) alone.",
        ),
        ("Refused", [REFUSED], "1 message from 1 host between 1 and 21 November 2026 was refused."),
        (
            "Refused",
            [REFUSED._replace(action="tag"), REFUSED._replace(reference="C", action="tag")],
            "2 messages from 1 host between 1 and 21 November 2026 were tagged.",
        ),
        (
            "Refused",
            [REFUSED._replace(reference=action, action=action) for action in ("reject", "defer", "quarantine", "tag")],
            "4 messages from 1 host between 1 and 21 November 2026 break the rules: 1 refused, 1 put off, 1 held, "
            "1 tagged.",
        ),
        (
            "Refused",
            [entry("A", NOON)],
            "1 message from 1 host between 1 and 21 November 2026 was let through, and would have been refused in mode "
            "enforce. It relied on the From address (P2) alone.",
        ),
        (
            "Refused",
            [],
            "No message between 1 and 21 November 2026 was refused, and none would have been in mode enforce.",
        ),
        (
            "Rewritten",
            [rewritten("A", NOON)],
            "1 message from 1 host between 1 and 21 November 2026 left with an envelope sender (P1) that SRS rewrote; "
            "no bounces came back.",
        ),
        ("Rewritten", [], "No message between 1 and 21 November 2026 had its envelope sender (P1) rewritten."),
    ],
)
def test_the_sentence_says_what_is_affected(report_type: str, entries: list[Entry], sentence: str) -> None:
    assert summary(november(report_type), entries).sentence == sentence


def test_the_sentence_says_to_how_many_addresses_bounces_came_back() -> None:
    """All mail of one sender has the same SRS address for a day, and one count."""
    entries = [rewritten("A", NOON), rewritten("B", NOON), rewritten("C", NOON, rewritten="other@contoso.com")]
    made = summary(november("Rewritten"), entries, bounces=3)
    assert made.sentence.endswith("that SRS rewrote; bounces came back to 2 of the rewritten addresses.")


@pytest.mark.parametrize(
    ("entries", "unseen", "sentence"),
    [
        (
            [],
            50,
            "No message between 1 and 21 November 2026 is known to have relied on its From address (P2). Of 50 "
            "messages that the rules refuse, the From address was not seen, so nothing can be said of them.",
        ),
        (
            [entry("A", NOON)],
            1,
            "1 message from 1 host between 1 and 21 November 2026 could be relayed only because of the From address "
            "(P2). Exchange Online refuses such mail. Of 1 message that the rules refuse, the From address was not "
            "seen, so nothing can be said of it.",
        ),
    ],
)
def test_where_p2_was_not_seen_nobody_is_called_not_affected(entries: list[Entry], unseen: int, sentence: str) -> None:
    assert summary(november(), entries, p2_unseen=unseen).sentence == sentence


@pytest.mark.parametrize(
    ("begins", "refusals", "added"),
    [
        ("2026-10-01", None, ""),
        ("2026-10-01", "2026-10-02", ""),
        ("2026-11-05", "2026-11-05", " The ledger begins on 5 November 2026."),
        (
            "2026-10-01",
            "2026-11-20",
            " Many were refused, so the ledger has refusals only from 20 November 2026 on.",
        ),
        (
            "2026-11-05",
            "2026-11-20",
            " The ledger begins on 5 November 2026. Many were refused, so the ledger has refusals only from 20 "
            "November 2026 on.",
        ),
    ],
)
def test_refusals_that_made_room_are_not_taken_for_none(begins: str, refusals: Optional[str], added: str) -> None:
    of = november("Refused")
    made = summary(of, [REFUSED])
    noons = (text and datetime.fromisoformat(f"{text}T12:00:00+00:00").timestamp() for text in (begins, refusals))
    assert limited(made, of, *noons).sentence == made.sentence + added


@pytest.mark.parametrize(
    ("start", "end", "words"),
    [
        ("2026-11-03", "2026-11-04", "on 3 November 2026"),
        ("2026-11-03", "2026-11-04T00:01", "between 3 and 4 November 2026"),
        ("2026-10-30", "2026-11-02", "between 30 October and 1 November 2026"),
        ("2025-12-30", "2026-01-02", "between 30 December 2025 and 1 January 2026"),
    ],
)
def test_the_period_is_named_by_its_days(start: str, end: str, words: str) -> None:
    of = job_of(Options("Refused", start_date=start, end_date=end), CONTOSO.rules, "id", NOW, days=3650)
    assert words in summary(of, []).sentence


def test_a_tally_of_too_many_keys_keeps_the_commonest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report_summary, "KEYS", 3)
    tally = Tally()
    for key in ["often"] * 5 + [f"once{number}" for number in range(20)]:
        tally.add(key)
    assert tally.top()[0] == ("often", 5)
    assert sum(count for _, count in tally.top()) == 25
    assert tally.described() == "more than 3 hosts"


def test_job_and_summary_come_back_from_what_is_kept() -> None:
    of = replace(november(), completed=NOW, sender_addresses=("*@contoso.com",))
    made = summary(of, [entry("A", NOON)])
    assert job_from(job_fields(of)) == of
    fields = {**vars(made), "groups": [vars(group) for group in made.groups]}
    assert summary_from(fields) == made
