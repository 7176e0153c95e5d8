# SPDX-License-Identifier: GPL-3.0-or-later
"""What gatepost says of Exchange Online's answer equals that of the stand-in, for any hub and any message."""

from __future__ import annotations

from typing import Optional

from exchangeonline import TAKEN, answer
from hypothesis import given, settings
from hypothesis import strategies as st
from snapshots import ADDRESSES, LOCAL_PARTS, NOW, OFFICE
from upstreamcases import HUB, Case, cases

from gatepost.relay import Client, Mail, Result
from gatepost.service import flow, rewriting
from gatepost.service.addresses import domain_of
from gatepost.service.flow import Judgement, Treatment
from gatepost.service.rewriting import Egress
from gatepost.srs import Address

SENDER_DOMAINS = st.sampled_from(
    [
        *("contoso.com", "corp.contoso.com", "contoso.net", "bücher.example", "srs.contoso.com", "CONTOSO.com."),
        *("a.corp.contoso.com", "a.b.contoso.com", "s.corp.contoso.com", "sub.contoso.com", "srs.example"),
        *("fabrikam.example", "x.fabrikam.example", "northwind.example", "n.example", "mail.contoso.org"),
        *("fabrikam.com", "vendor.example", "localhost", "[192.0.2.1]"),
    ]
)
COMPACT = "bounces+SRS=aaaaaaaaaaaaaaaa=RA"
LOCALS = st.one_of(LOCAL_PARTS, st.sampled_from([COMPACT, f"x+SRS=aaaaa=RA=fabrikam.example={COMPACT}"]))
SENDERS = st.one_of(st.just(""), st.builds("{}@{}".format, LOCALS, SENDER_DOMAINS), ADDRESSES)
RECIPIENTS = st.builds(
    "{}@{}".format,
    st.sampled_from(["ann", "a+b"]),
    st.one_of(st.just("example.com"), st.just("EXAMPLE.net"), SENDER_DOMAINS),
)
CLIENTS = st.sampled_from(["office", "crm", "submission", "cron", "stranger", "neighbour"])


def client(case: Case, kind: str) -> Client:
    rules = case.snapshot.rules
    if kind == "crm":
        return rules.client("198.51.100.9", ["mail.contoso.com"])
    if kind == "neighbour":
        return rules.client("192.0.2.65", ["mail.fabrikam.example"])
    ip = {"office": OFFICE, "cron": "127.0.0.1"}.get(kind, "198.51.100.9")
    return rules.client(ip, authenticated=kind == "submission", local=kind == "cron")


def taken(case: Case, mail_from: str, rcpt: str) -> bool:
    return answer(case.tenant, HUB, case.names, mail_from, rcpt) == TAKEN


def inside(case: Case, rcpt: str) -> bool:
    return answer(case.tenant, "192.0.2.1", (), "", rcpt) == TAKEN


def as_it_leaves(case: Case, mail_from: str, judgement: Judgement) -> str:
    """Return P1 behind milter and egress hop."""
    made = case.snapshot
    must = rewriting.leaving(made, mail_from) is Egress.REWRITE
    whole = judgement.treatment is Treatment.TAG and must
    by_hop = made.config.egress is not None and rewriting.egress(made, mail_from) is Egress.REWRITE
    if judgement.treatment is Treatment.REWRITE or whole or by_hop:
        return rewriting.relayed(made, mail_from, judgement.verdict.organization, NOW).address
    return mail_from


def gets_there(case: Case, rcpt: str) -> bool:
    """Tell whether mail to *rcpt* goes to Exchange Online: to the tenant, or outside."""
    return inside(case, rcpt) or not case.snapshot.rules.inside(domain_of(rcpt) or "")


@settings(max_examples=3000, deadline=None)
@given(cases(), SENDERS, RECIPIENTS, CLIENTS)
def test_exchange_online_takes_what_is_let_out_and_would_not_take_what_is_refused_for_its_sake(
    case: Case, mail_from: str, rcpt: str, kind: str
) -> None:
    made = case.snapshot
    mail = Mail(mail_from, ("app@contoso.com",))
    judgement = flow.judge(made, client(case, kind), mail, rcpt, headers_seen=True)
    goes_on = judgement.treatment in (Treatment.KEEP, Treatment.REWRITE, Treatment.TAG, Treatment.UPSTREAM)
    assert (judgement.upstream is not None) is (goes_on and gets_there(case, rcpt))
    if judgement.treatment in (Treatment.UPSTREAM, Treatment.UNREWRITABLE):
        assert not taken(case, mail_from, rcpt)
        assert judgement.enforce
        assert case.refuse or judgement.treatment is Treatment.UNREWRITABLE
    if judgement.upstream is None:
        return
    leaves_as = as_it_leaves(case, mail_from, judgement)
    assert (judgement.upstream.result is not Result.REFUSE) is taken(case, leaves_as, rcpt)
    assert (judgement.upstream.result is Result.INSIDE) is inside(case, rcpt)
    if judgement.enforce and case.refuse and judgement.treatment is not Treatment.UPSTREAM:
        assert taken(case, leaves_as, rcpt)


@settings(max_examples=2000, deadline=None)
@given(cases(), SENDERS, LOCAL_PARTS, SENDER_DOMAINS)
def test_exchange_online_takes_every_forwarded_copy_but_that_of_a_bounce(
    case: Case, mail_from: str, local: str, domain: str
) -> None:
    made = case.snapshot
    if not made.enforcing or not mail_from:
        return
    egress = rewriting.egress(made, mail_from)
    if egress is Egress.IMPOSSIBLE:
        assert not taken(case, mail_from, "x@example.com")
    elif egress is Egress.OUT:
        assert taken(case, mail_from, "x@example.com")
    else:
        mailbox = rewriting.forwarder(made, f"utf-8;{local}@{domain}", "x@example.com")
        assert taken(case, forwarded(case, mail_from, mailbox), "x@example.com")


def forwarded(case: Case, mail_from: str, mailbox: Optional[Address]) -> str:
    if mailbox is None:
        return rewriting.relayed(case.snapshot, mail_from, None, NOW).address
    return rewriting.forwarded(case.snapshot, mail_from, mailbox, NOW).address
