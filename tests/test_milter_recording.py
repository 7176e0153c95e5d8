# SPDX-License-Identifier: GPL-3.0-or-later
"""What the milter writes into the ledger's spool, without pymilter; whole rows are in tests/e2e/test_ledger.py."""

from __future__ import annotations

from pathlib import Path

import pytest
from daemonprocess import CONTOSO
from hypothesis import example, given
from hypothesis import strategies as st
from milterstages import AT_EGRESS, EGRESS, ENFORCE, INSIDE, NOW, OUTSIDE, TRUSTED, Mta, lines

from gatepost.milter import header_from
from gatepost.milter.recording import declared_size
from gatepost.milter.transaction import header_addresses
from gatepost.service import ledger, spool
from gatepost.service.ledger import Entry
from gatepost.service.replies import LEDGER_AWAY

FROM = [("From", "The Boss <ceo@contoso.com>"), ("Message-ID", "<1@app.example>"), ("Subject", "the figures")]
LEGACY = 'requirements = "legacy"\n'


def recorded(mta: Mta) -> list[Entry]:
    octets = b"".join(path.read_bytes() for path in spool.files(mta.folder / "ledger"))
    return [item for item in map(ledger.record, octets.splitlines()) if isinstance(item, Entry)]


def test_relayed_and_rewritten_message(tmp_path: Path) -> None:
    mta = Mta(tmp_path, ENFORCE + CONTOSO)
    mta.macros["i"] = "4CgSNs5Q9s"
    session = mta.connected(macros=TRUSTED)
    session.helo("crm.contoso.com")
    assert mta.message(session, "<App@Vendor.example>", headers=FROM) is None
    (entry,) = recorded(mta)
    assert entry._replace(reference="R") == Entry(
        reference="R",
        recipient="x@gmail.example",
        time=NOW,
        queue_id="4CgSNs5Q9s",
        client="192.0.2.1",
        helo="crm.contoso.com",
        certificate_names="mail.contoso.com",
        reverse_path="app@vendor.example",
        sender_domain="vendor.example",
        rewritten=mta.senders[0].lower(),
        header_from="ceo@contoso.com",
        organization="contoso",
        connector="crm",
        requirements="2023-11-01",
        verdict_current="relay",
        verdict_legacy="relay",
        reason="certificate-accepted",
        action="rewrite",
        message_id="<1@app.example>",
    )


@pytest.mark.parametrize(
    ("name", "resolve", "ptr", "recorded_as"),
    [
        ("Mail.Contoso.com", "OK", "mail.contoso.com", ("mail.contoso.com", "confirmed")),
        ("[192.0.2.1]", "FORGED", "liar.fabrikam.com", ("liar.fabrikam.com", "unconfirmed")),
        ("[192.0.2.1]", "FAIL", "unknown", ("", "")),
        ("[192.0.2.1]", "FAIL", "", ("", "")),
        ("[192.0.2.1]", "TEMP", "mail.contoso.com", ("mail.contoso.com", "")),
        ("mail.contoso.com", "", "", ("", "")),
        ("a\nb <c>", "OK", "", ("", "")),
        ("[192.0.2.1]", "FORGED", "\ufffd", ("", "")),
        ("x." * 200 + "com", "OK", "", ("", "")),
    ],
    ids=["OK", "FORGED", "FAIL", "Sendmail's FAIL", "TEMP", "no macros", "control characters", "not UTF-8", "long"],
)
def test_client_name_as_the_mta_has_found_it(
    tmp_path: Path, name: str, resolve: str, ptr: str, recorded_as: tuple[str, str]
) -> None:
    mta = Mta(tmp_path, ENFORCE + CONTOSO)
    session = mta.connected(name=name, macros={"{client_resolve}": resolve, "{client_ptr}": ptr})
    mta.message(session, "<bob@contoso.com>", headers=FROM)
    assert [(entry.reverse_name, entry.fcrdns) for entry in recorded(mta)] == [recorded_as]


def test_mail_of_sendmail_has_no_client_name(tmp_path: Path) -> None:
    mta = Mta(tmp_path, ENFORCE + CONTOSO)
    session = mta.connected("127.0.0.1", 0, "localhost", macros={"{client_resolve}": "OK", "{client_ptr}": "localhost"})
    mta.message(session, "<bob@contoso.com>", headers=FROM)
    assert [(entry.reverse_name, entry.fcrdns) for entry in recorded(mta)] == [("", "")]


def test_refusal_has_the_client_name(tmp_path: Path) -> None:
    mta = Mta(tmp_path, ENFORCE + CONTOSO)
    session = mta.connected("192.0.2.5", name="crm.contoso.com", macros={"{client_resolve}": "OK"})
    mta.message(session, "<app@vendor.example>")
    assert [(entry.action, entry.reverse_name) for entry in recorded(mta)] == [("reject", "crm.contoso.com")]


def test_each_client_of_one_milter_connection_has_its_own_name(tmp_path: Path) -> None:
    mta = Mta(tmp_path, ENFORCE + CONTOSO)
    session = mta.connected("192.0.2.5", name="crm.contoso.com", macros={"{client_resolve}": "OK"})
    mta.macros["{client_resolve}"] = "FAIL"
    session.connect("192.0.2.6", 40002, "[192.0.2.6]")
    mta.message(session, "<bob@contoso.com>", headers=FROM)
    assert [entry.reverse_name for entry in recorded(mta)] == [""]


def test_subject_is_kept_only_where_asked_for(tmp_path: Path) -> None:
    mta = Mta(tmp_path, ENFORCE + CONTOSO + "[ledger]\nsubjects = true\n")
    mta.message(mta.connected(), "<bob@contoso.com>", headers=FROM)
    assert [entry.subject for entry in recorded(mta)] == ["the figures"]


@pytest.mark.parametrize(
    ("rules", "result"), [("", ("relay", "relay")), (LEGACY, ("relay", "relay"))], ids=["2023-11-01", "legacy"]
)
def test_both_verdicts_where_p1_is_accepted_r1(tmp_path: Path, rules: str, result: tuple[str, str]) -> None:
    mta = Mta(tmp_path, ENFORCE + rules + CONTOSO)
    mta.message(mta.connected(), "<bob@contoso.com>", headers=FROM)
    assert [(entry.verdict_current, entry.verdict_legacy) for entry in recorded(mta)] == [result]


@pytest.mark.parametrize("rules", ["", LEGACY], ids=["2023-11-01", "legacy"])
def test_both_verdicts_where_only_p2_is_accepted_r1(tmp_path: Path, rules: str) -> None:
    mta = Mta(tmp_path, '[relay]\nmode = "monitor"\n' + rules + CONTOSO)
    mta.message(mta.connected(), "<app@vendor.example>", headers=FROM)
    assert [(entry.verdict_current, entry.verdict_legacy) for entry in recorded(mta)] == [("refuse", "relay")]


def test_refusal_at_the_end_of_the_headers_knows_both_verdicts(tmp_path: Path) -> None:
    mta = Mta(tmp_path, ENFORCE + LEGACY + CONTOSO)
    reply = mta.message(mta.connected(), "<app@vendor.example>")
    assert reply is not None
    (entry,) = recorded(mta)
    assert (entry.verdict_current, entry.verdict_legacy, entry.action) == ("refuse", "refuse", "reject")
    assert f"[{entry.reference}]" in reply.text


def test_bypassed_message_is_not_recorded(tmp_path: Path) -> None:
    mta = Mta(tmp_path, ENFORCE + CONTOSO)
    (tmp_path / "bypass").touch()
    mta.message(mta.connected(), "<bob@contoso.com>")
    assert recorded(mta) == []


def test_message_that_the_client_gives_up_is_not_recorded(tmp_path: Path) -> None:
    mta = Mta(tmp_path, ENFORCE + CONTOSO)
    session = mta.connected()
    session.mail("<bob@contoso.com>")
    session.rcpt(OUTSIDE, [])
    session.abort()
    assert recorded(mta) == []


def test_egress_hop_writes_under_the_recipient_that_forwarded_it(tmp_path: Path) -> None:
    mta = Mta(tmp_path, ENFORCE + EGRESS + CONTOSO)
    mta.macros["i"] = "4CgSNs5Q9s"
    mta.message(mta.connected(), "<bob@fabrikam.com>", [INSIDE], headers=FROM)
    session = mta.connected("127.0.0.1", macros=AT_EGRESS)
    mta.macros["i"] = "4CgSNs5QAA"
    session.mail("<bob@fabrikam.com>", ["SIZE=800"])
    session.rcpt("<ann.home@example.com>", ["ORCPT=rfc822;Ann@contoso.com"])
    received = "from x (x [192.0.2.1])\n\tby mail.contoso.com (Postfix) with ESMTP id 4CgSNs5Q9s\n\tfor <ann>"
    mta.content(session, [("Received", received), *FROM])
    ingress, egress = recorded(mta)
    assert (egress.reference, egress.recipient) == (ingress.reference, ingress.recipient)
    assert (egress.queue_id, egress.egress_queue_id, egress.forwarded_to, egress.client) == (
        "",
        "4CgSNs5QAA",
        "ann.home@example.com",
        "",
    )
    one = ledger.merged(ingress, egress)
    assert (one.queue_id, one.egress_queue_id, one.action, one.client) == (
        "4CgSNs5Q9s",
        "4CgSNs5QAA",
        "rewrite",
        "192.0.2.1",
    )


def test_all_recipients_of_a_message_that_is_refused_after_its_headers_are_recorded(tmp_path: Path) -> None:
    mta = Mta(tmp_path, ENFORCE + LEGACY + CONTOSO)
    mta.message(mta.connected(), "<app@vendor.example>", [OUTSIDE, "<y@gmail.example>"])
    first, second = recorded(mta)
    assert [first.recipient, second.recipient] == ["x@gmail.example", "y@gmail.example"]
    assert first._replace(recipient="") == second._replace(recipient="")


def test_refusals_of_one_message_have_one_reference(tmp_path: Path) -> None:
    mta = Mta(tmp_path, ENFORCE + '[srs]\nreverse = "milter"\n' + CONTOSO)
    session = mta.connected()
    session.mail("<>")
    for user in ("a", "b"):
        reply = session.rcpt(f"<bounces+SRS=aaaaaaaa=G3=fabrikam.com={user}@contoso.com>", [])
        assert reply is not None
        assert reply.code == 550
    first, second = recorded(mta)
    assert (first.reference, first.reason) == (second.reference, "srs-forged")


def test_recipient_that_is_put_off_is_not_recorded(tmp_path: Path) -> None:
    mta = Mta(tmp_path, ENFORCE + '[srs]\nreverse = "milter"\nfailures_per_hour = 1\n' + CONTOSO)
    session = mta.connected("198.51.100.7")
    session.mail("<>")
    forged = "<bounces+SRS=aaaaaaaa=G3=fabrikam.com=bob@contoso.com>"
    codes = [reply.code for reply in (session.rcpt(forged, []) for _ in range(4)) if reply]
    assert codes[-1] == 450
    assert len(recorded(mta)) == codes.count(550)


@pytest.mark.parametrize("header", ["X-Sieve-Redirected-From", "From", "Message-ID", "Received", "Subject"])
def test_ledger_changes_nothing_of_what_becomes_of_mail(tmp_path: Path, header: str) -> None:
    senders = []
    for days in (0, 90):
        folder = tmp_path / str(days)
        folder.mkdir()
        mta = Mta(folder, ENFORCE + CONTOSO + f"[ledger]\ndays = {days}\n")
        session = mta.connected("127.0.0.1", 0)
        session.mail("<bob@fabrikam.com>")
        session.rcpt(OUTSIDE, [])
        if days:  # else headers are not asked for
            session.header(header, "ceo@contoso.com")
            session.eoh()
        assert session.eom(mta) is None
        senders += mta.senders
    assert senders[0] == senders[1]
    assert senders[0].startswith("bounces+SRS=")


def test_from_headers_without_end_are_not_read(tmp_path: Path) -> None:
    mta = Mta(tmp_path, '[relay]\nmode = "monitor"\n' + CONTOSO)
    long = ", ".join(["a@b"] * 20_000)
    mta.message(mta.connected(), "<app@vendor.example>", headers=[("From", long), *FROM, *[("From", "c" * 9000)] * 100])
    assert [entry.header_from for entry in recorded(mta)] == ["ceo@contoso.com"]


@pytest.mark.parametrize("required", [False, True])
def test_spool_that_cannot_be_written_stops_mail_only_where_the_ledger_is_required(
    tmp_path: Path, required: bool, capfd: pytest.CaptureFixture[str]
) -> None:
    mta = Mta(tmp_path, ENFORCE + CONTOSO + f"[ledger]\nrequired = {str(required).lower()}\n")
    (tmp_path / "ledger").write_text("a file where the folder should be")
    reply = mta.message(mta.connected(), "<bob@contoso.com>")
    assert reply == (LEDGER_AWAY if required else None)
    mta.message(mta.connected(), "<bob@contoso.com>")
    complaints = [line for line in lines(capfd) if "records are lost" in line]
    assert len(complaints) == 1


@given(
    st.from_regex(r'("?[\w .,@()-]*"?|[\w =?/+-]*) ?<[\w.+=@-]+>|[\w.+=-]+@[\w.-]+', fullmatch=True)
    | st.text(st.characters(codec="utf-8"), max_size=60)
)
@example('"Doe, J. (Sales)" <j.doe@contoso.com>')
@example("=?utf-8?q?J=C3=B6rg?= <joerg@contoso.com>")
@example("a b@contoso.com")
@example("<>")
@example("bob@contoso.com\u00a0")
@example("\x1cbob@contoso.com")
def test_the_usual_from_headers_are_read_as_all_others(value: str) -> None:
    assert header_addresses([value]) == header_from.addresses(value)


@pytest.mark.parametrize(
    ("parameters", "size"),
    [
        (["SIZE=1234"], 1234),
        (["BODY=8BITMIME", "size=99"], 99),
        (["SIZE=0"], None),  # RFC 1870, 3: it is not known
        (["SIZE=-1"], None),
        (["SIZE=" + "9" * 30], None),
        ([], None),
    ],
)
def test_size_as_the_client_declares_it(parameters: list[str], size: int) -> None:
    assert declared_size(parameters) == size
