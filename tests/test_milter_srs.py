# SPDX-License-Identifier: GPL-3.0-or-later
"""SRS in the milter: bounces given back by it, compact addresses and their store, chains, lists, Sieve, SPF."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Optional

import pytest
from daemonprocess import CONTOSO
from milterstages import AT_EGRESS, EGRESS, ENFORCE, INSIDE, NOW, OUTSIDE, TRUSTED, Mta, lines, unhashed
from nameserver import NameServer

from gatepost.service import rewriting
from gatepost.service.addresses import parse_address
from gatepost.service.hops import Hop, organization_digest
from gatepost.service.metrics import ERRORS, MESSAGES, SPF_DECISIONS, SRS_REVERSALS, SRS_REWRITES
from gatepost.service.replies import Reply
from gatepost.service.reversal import Bounce, reverse
from gatepost.srs import Address, Classic, Exchange, Keys

DAY = NOW // 86400
HOUR_S = 3600
KEYS = Keys([b"key"])
ABROAD = "203.0.113.9"
BY_MILTER = '[srs]\nreverse = "milter"\n'
EVERYONE = BY_MILTER + 'accept_from = "everyone"\n'
COMPACT = '[srs]\nform = "compact"\n'
FORGED = Reply(550, "5.1.1", "SRS address with a wrong hash")
EXPIRED = Reply(550, "5.1.1", "SRS address that has expired")
UNKNOWN = Reply(550, "5.1.1", "SRS address that is not known here")
GUESSING = Reply(450, "4.7.1", "Too many SRS addresses with a wrong hash from this client, try again later")
BOUNCES_ONLY = Reply(550, "5.7.1", "This address takes only bounces (null sender)")
APART = Reply(452, "4.5.3", "An SRS address takes no other recipient beside it, send again for each")
MIXED = Reply(452, "4.5.3", "Inside and outside recipients need a message each, please try again")
LONG = f"<{'b' * 64}@{'f' * 60}.{'f' * 60}.{'f' * 50}.example>"
AWAY = Reply(451, "4.3.0", "gatepost: its store cannot be asked now, please try again later")


def srs(original: str, mailbox: str = "bounces", domain: str = "contoso.com", day: int = DAY) -> str:
    """Return the path of the address that *original* got on *day*."""
    return f"<{Exchange(KEYS).forward(Address.parse(original), mailbox, domain, day)}>"


def forged(original: str) -> str:
    return srs(f"x{original}").replace("=x", "=")


def mta_with(folder: Path, srs_table: str, organizations: str = CONTOSO, more: str = "") -> Mta:
    return Mta(folder, ENFORCE + more + srs_table + organizations)


@pytest.fixture
def mta(tmp_path: Path) -> Mta:
    return mta_with(tmp_path, BY_MILTER)


def bounce(mta: Mta, *rcpts: str, ip: str = ABROAD, sender: str = "<>") -> Optional[Reply]:
    return mta.message(mta.connected(ip), sender, rcpts)


def replies(mta: Mta, *rcpts: str, ip: str = ABROAD, sender: str = "<>") -> list[Optional[Reply]]:
    """Return the replies to the recipients of a message that is then given up."""
    session = mta.connected(ip)
    session.mail(sender)
    found = [session.rcpt(rcpt, []) for rcpt in rcpts]
    session.abort()
    return found


# Bounces, reverse = "milter" (S9): add and delete recipient


def test_srs_recipient_is_replaced_by_its_original(mta: Mta, capfd: pytest.CaptureFixture[str]) -> None:
    mta.macros["i"] = "4CgSNs5Q9s"
    assert bounce(mta, srs("Bob@fabrikam.com")) is None
    assert (mta.added, mta.deleted, mta.senders) == (["Bob@fabrikam.com"], [srs("Bob@fabrikam.com")], [])
    assert lines(capfd) == [
        "4CgSNs5Q9s: action=return, from=<>, nrcpt=1, returned=<Bob@fabrikam.com>, client=203.0.113.9"
    ]
    assert mta.count(SRS_REVERSALS, "original") == 1
    assert mta.count(MESSAGES, "milter", "return") == 1


def test_several_srs_recipients_are_each_replaced(mta: Mta) -> None:
    paths = [srs("bob@fabrikam.com"), srs("eve@example.com", "john.work"), srs('"a b"@example.com')]
    assert bounce(mta, *paths) is None
    assert mta.added == ["bob@fabrikam.com", "eve@example.com", '"a b"@example.com']
    assert mta.deleted == paths


def test_two_srs_recipients_of_one_original_bring_it_one_copy(mta: Mta) -> None:
    paths = [srs("bob@fabrikam.com"), srs("bob@fabrikam.com", day=DAY - 1), srs("bob@fabrikam.com")]
    assert bounce(mta, *paths) is None
    assert mta.added == ["bob@fabrikam.com"]
    assert mta.deleted == paths


@pytest.mark.parametrize("first", [True, False], ids=["before it", "behind it"])
def test_original_that_is_a_recipient_itself_gets_one_copy(mta: Mta, first: bool) -> None:
    paths = ["<bob@Fabrikam.com>", srs("bob@fabrikam.com")]
    session = mta.connected(ABROAD, macros=TRUSTED)  # a null sender may only go outside by a certificate
    assert mta.message(session, "<>", paths if first else paths[::-1]) is None
    assert (mta.added, mta.deleted) == ([], [srs("bob@fabrikam.com")])


@pytest.mark.parametrize(
    ("original", "known"),
    [
        ("Bob@fabrikam.com", "Bob@fabrikam.com"),
        ("Bob@fabrikam.com", "bob@FABRIKAM.com"),
        ("Root@mail.contoso.example", "root"),  # of a recipient here Sendmail tells no domain
        ('"a b"@example.com', '"a b"@example.com'),
        ('"a b"@example.com', "a b@example.com"),
    ],
)
def test_srs_recipient_that_sendmail_has_replaced_by_its_map_is_left_to_it(
    mta: Mta, original: str, known: str, capfd: pytest.CaptureFixture[str]
) -> None:
    mta.macros["{rcpt_addr}"] = known
    assert bounce(mta, srs(original)) is None
    assert (mta.added, mta.deleted) == ([], [])
    assert "action=return" in lines(capfd)[0]


def test_recipients_are_deleted_before_their_originals_are_added(mta: Mta) -> None:
    """Or Sendmail, which asks its map about the one to be deleted, would delete the original that was just added."""
    order: list[str] = []
    mta.add_recipient = order.append  # type: ignore[method-assign]
    mta.delete_recipient = order.append  # type: ignore[method-assign]
    assert bounce(mta, srs("bob@fabrikam.com"), srs("eve@example.com")) is None
    assert order == [srs("bob@fabrikam.com"), srs("eve@example.com"), "bob@fabrikam.com", "eve@example.com"]


@pytest.mark.parametrize("first", [True, False], ids=["before it", "behind it"])
def test_bounce_to_an_srs_and_an_inside_recipient_reaches_both(mta: Mta, first: bool) -> None:
    paths = [INSIDE, srs("bob@fabrikam.com")]
    assert bounce(mta, *(paths if first else paths[::-1])) is None
    assert (mta.added, mta.deleted) == (["bob@fabrikam.com"], [srs("bob@fabrikam.com")])


def test_outside_recipient_beside_an_srs_one_is_still_subject_to_the_relay_rule(mta: Mta) -> None:
    found = replies(mta, srs("bob@fabrikam.com"), OUTSIDE)
    assert [reply and reply.code for reply in found] == [None, 550]


def test_srs_recipient_is_left_alone_where_the_map_reverses(tmp_path: Path) -> None:
    mta = mta_with(tmp_path, "")
    assert bounce(mta, srs("bob@fabrikam.com"), forged("bob@fabrikam.com")) is None
    assert bounce(mta, srs("bob@fabrikam.com"), sender="<eve@example.com>") is None
    assert (mta.added, mta.deleted) == ([], [])


def test_recipients_of_one_message_are_not_brought_back_by_the_next(mta: Mta) -> None:
    session = mta.connected(ABROAD)
    assert mta.message(session, "<>", [srs("bob@fabrikam.com")]) is None
    assert mta.message(session, "<>", [INSIDE]) is None
    assert mta.added == ["bob@fabrikam.com"]


# As bouncing MTAs write them


@pytest.mark.parametrize(
    ("path", "original"),
    [
        (srs("Bob@fabrikam.com").lower(), "bob@fabrikam.com"),
        (srs("Bob@fabrikam.com").replace("<", '<"').replace("@c", '"@c'), "Bob@fabrikam.com"),
        (srs("bob@fabrikam.com").replace("+", "%2B").replace("=", "%3D"), "bob@fabrikam.com"),
        (srs("bob@fabrikam.com").replace("+", "%2b").replace("=", "%3d"), "bob@fabrikam.com"),
        (srs("bob@fabrikam.com")[1:-1], "bob@fabrikam.com"),
    ],
    ids=["lower-cased", "quoted", "percent-encoded", "percent-encoded in lower case", "without <>"],
)
def test_srs_recipient_that_another_mta_has_rewritten_is_replaced_and_deleted_as_given(
    mta: Mta, path: str, original: str
) -> None:
    mta.macros["{rcpt_addr}"] = path.strip("<>").replace('"', "").lower()  # as Postfix writes what is not plain
    assert bounce(mta, path) is None
    assert (mta.added, mta.deleted) == ([original], [path])


def test_srs_recipient_with_escapes_is_what_the_mta_makes_of_it(mta: Mta) -> None:
    bob = srs("Bob@fabrikam.com")
    mta.macros["{rcpt_addr}"] = bob.strip("<>").lower()
    escaped = bob.replace("<", '<"').replace("SRS", r"\S\RS").replace("@c", '"@c')
    assert bounce(mta, escaped) is None
    assert (mta.added, mta.deleted) == (["bob@fabrikam.com"], [escaped])


def test_srs_recipient_with_a_source_route_is_deleted_without_it(mta: Mta) -> None:
    bob = srs("bob@fabrikam.com")
    assert bounce(mta, bob.replace("<", "<@relay.example:")) is None
    assert (mta.added, mta.deleted) == (["bob@fabrikam.com"], [bob])


def test_srs0_recipient_is_replaced_where_that_is_the_format(tmp_path: Path) -> None:
    mta = mta_with(tmp_path, BY_MILTER + 'format = "srs0"\n')
    path = f"<{Classic(KEYS, '=', 4, 4, 21).forward(Address('bob', 'fabrikam.com'), 'contoso.com', DAY)}>"
    assert path.startswith("<SRS0=")
    assert bounce(mta, path) is None
    assert (mta.added, mta.deleted) == (["bob@fabrikam.com"], [path])


def test_srs0_recipient_is_nobodys_business_where_the_format_is_not_reversed(mta: Mta) -> None:
    assert bounce(mta, "<SRS0=AAAA=G3=fabrikam.com=bob@contoso.com>") is None
    assert mta.deleted == []


def test_srs_recipient_of_a_foreign_domain_is_an_outside_one(mta: Mta) -> None:
    found = replies(mta, srs("bob@fabrikam.com", domain="elsewhere.example"))
    assert [reply and reply.code for reply in found] == [550]


# Forged, expired, guessed


def test_forged_srs_recipient_is_refused_logged_and_counted(mta: Mta, capfd: pytest.CaptureFixture[str]) -> None:
    assert bounce(mta, forged("bob@fabrikam.com")) == FORGED
    assert lines(capfd) == [
        f"NOQUEUE: action=reject, from=<>, to={forged('bob@fabrikam.com')}, client=203.0.113.9, reason=srs-forged"
    ]
    assert mta.count(SRS_REVERSALS, "forged") == 1


def test_expired_srs_recipient_is_refused_and_is_no_guess(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    mta = mta_with(tmp_path, BY_MILTER + "failures_per_hour = 1\n")
    old = srs("bob@fabrikam.com", day=DAY - 22)
    assert replies(mta, old, old) == [EXPIRED, EXPIRED]
    assert [line.rpartition("reason=")[2] for line in lines(capfd)] == ["srs-expired"] * 2


def test_client_with_too_many_forged_recipients_is_put_off_with_right_ones_too_for_an_hour(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    mta = mta_with(tmp_path, BY_MILTER + "failures_per_hour = 2\n")
    right, wrong = srs("bob@fabrikam.com"), forged("bob@fabrikam.com")
    assert replies(mta, wrong, wrong, wrong, right) == [FORGED, FORGED, GUESSING, GUESSING]
    assert lines(capfd)[-1].startswith("NOQUEUE: action=defer, from=<>, to=<bounces+SRS=")
    assert replies(mta, right, INSIDE, ip="198.51.100.7") == [None, None]
    mta.now += HOUR_S - 1
    assert replies(mta, right, INSIDE) == [GUESSING, None]
    mta.now += 1
    assert replies(mta, right) == [None]


def test_client_of_unknown_address_is_counted_like_any_other(tmp_path: Path) -> None:
    mta = mta_with(tmp_path, BY_MILTER + "failures_per_hour = 1\n")
    session = mta.connected(None, -1)
    session.mail("<>")
    assert [session.rcpt(forged("bob@fabrikam.com"), []) for _ in range(2)] == [FORGED, GUESSING]


# Other mail than bounces (accept_from)


def test_mail_with_a_sender_to_an_srs_recipient_is_refused_at_data_and_not_at_rcpt(
    mta: Mta, capfd: pytest.CaptureFixture[str]
) -> None:
    session = mta.connected(ABROAD)
    session.mail("<eve@example.com>")
    assert session.rcpt(srs("bob@fabrikam.com"), []) is None
    assert session.data() == BOUNCES_ONLY
    assert unhashed(lines(capfd)[0]) == (
        "NOQUEUE: action=reject, from=<eve@example.com>, to=<bounces+SRS=HASH=G3=fabrikam.com=bob@contoso.com>, "
        "client=203.0.113.9, reason=srs-not-a-bounce"
    )


@pytest.mark.parametrize("rcpts", [[INSIDE, "SRS"], ["SRS", INSIDE]], ids=["inside first", "SRS first"])
def test_mail_with_a_sender_to_an_srs_recipient_and_another_is_taken_apart(mta: Mta, rcpts: list[str]) -> None:
    paths = [srs("bob@fabrikam.com") if rcpt == "SRS" else rcpt for rcpt in rcpts]
    session = mta.connected(ABROAD)
    session.mail("<eve@example.com>")
    assert [session.rcpt(path, []) for path in paths] == [None, APART]
    assert session.data() == (BOUNCES_ONLY if rcpts[0] == "SRS" else None)


def test_second_srs_recipient_beside_one_is_refused_with_it(mta: Mta) -> None:
    session = mta.connected(ABROAD)
    session.mail("<eve@example.com>")
    assert [session.rcpt(srs(f"{name}@fabrikam.com"), []) for name in ("bob", "ann")] == [None, None]
    assert session.data() == BOUNCES_ONLY


def test_vacation_reply_reaches_the_original_and_its_foreign_sender_is_rewritten_as_it_leaves(tmp_path: Path) -> None:
    mta = mta_with(tmp_path, EVERYONE)
    assert bounce(mta, srs("bob@fabrikam.com"), sender="<eve@example.com>") is None
    assert mta.unhashed == ["bounces+SRS=HASH=G3=example.com=eve@contoso.com"]
    assert (mta.added, mta.deleted) == (["bob@fabrikam.com"], [srs("bob@fabrikam.com")])


def test_vacation_reply_of_an_accepted_sender_keeps_it(tmp_path: Path) -> None:
    mta = mta_with(tmp_path, EVERYONE)
    assert bounce(mta, srs("bob@fabrikam.com"), sender="<ann@contoso.com>") is None
    assert (mta.senders, mta.added) == ([], ["bob@fabrikam.com"])


def test_vacation_reply_is_left_to_the_egress_hop_and_remembered_for_it(tmp_path: Path) -> None:
    mta = mta_with(tmp_path, EVERYONE, more=EGRESS)
    mta.macros["i"] = "4CgSNs5Q9s"
    assert bounce(mta, srs("bob@fabrikam.com"), sender="<eve@example.com>") is None
    assert (mta.senders, mta.added) == ([], ["bob@fabrikam.com"])
    assert mta.shared.hops.get("4CgSNs5Q9s", NOW)


@pytest.mark.parametrize("rcpts", [[INSIDE, "SRS"], ["SRS", INSIDE]], ids=["inside first", "SRS first"])
def test_vacation_reply_to_an_srs_and_an_inside_recipient_is_taken_apart_without_an_egress_hop(
    tmp_path: Path, rcpts: list[str]
) -> None:
    mta = mta_with(tmp_path, EVERYONE)
    paths = [srs("bob@fabrikam.com") if rcpt == "SRS" else rcpt for rcpt in rcpts]
    assert replies(mta, *paths, sender="<eve@example.com>") == [None, MIXED]


@pytest.mark.parametrize("rcpts", [[INSIDE, "SRS"], ["SRS", INSIDE]], ids=["inside first", "SRS first"])
def test_vacation_reply_to_an_srs_and_an_inside_recipient_stays_together_with_an_egress_hop(
    tmp_path: Path, rcpts: list[str]
) -> None:
    mta = mta_with(tmp_path, EVERYONE, more=EGRESS)
    paths = [srs("bob@fabrikam.com") if rcpt == "SRS" else rcpt for rcpt in rcpts]
    assert bounce(mta, *paths, sender="<eve@example.com>") is None
    assert (mta.senders, mta.added) == ([], ["bob@fabrikam.com"])


def test_vacation_reply_by_sendmail_command_to_an_srs_and_an_inside_recipient_is_rewritten_for_both(
    tmp_path: Path,
) -> None:
    mta = mta_with(tmp_path, EVERYONE)
    session = mta.connected("127.0.0.1", 0)
    assert mta.message(session, "<eve@example.com>", [INSIDE, srs("bob@fabrikam.com")]) is None
    assert mta.unhashed == ["bounces+SRS=HASH=G3=example.com=eve@contoso.com"]


def test_vacation_reply_to_an_srs_and_an_outside_recipient_is_rewritten_for_both(tmp_path: Path) -> None:
    mta = mta_with(tmp_path, EVERYONE)
    session = mta.connected(macros=TRUSTED)
    assert mta.message(session, "<eve@example.com>", [srs("bob@fabrikam.com"), OUTSIDE]) is None
    assert mta.unhashed == ["bounces+SRS=HASH=G3=example.com=eve@contoso.com"]


def test_vacation_reply_whose_sender_cannot_be_rewritten_is_refused(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    mta = mta_with(tmp_path, EVERYONE + 'form = "long"\n')
    reply = bounce(mta, srs("bob@fabrikam.com"), sender=LONG)
    assert reply
    assert (reply.code, reply.status) == (553, "5.1.7")
    assert lines(capfd)[0].endswith("reason=sender-unrewritable")


@pytest.mark.parametrize(
    ("sender", "rcpt", "reply"),
    [("<eve@example.com>", srs("bob@fabrikam.com"), BOUNCES_ONLY), ("<>", forged("bob@fabrikam.com"), FORGED)],
    ids=["no bounce", "forged"],
)
def test_mail_by_sendmail_command_is_answered_at_its_end(mta: Mta, sender: str, rcpt: str, reply: Reply) -> None:
    session = mta.connected("127.0.0.1", 0)
    session.mail(sender)
    assert [session.rcpt(INSIDE, []), session.rcpt(rcpt, []), session.data()] == [None, None, None]
    assert mta.content(session, []) == reply
    assert (mta.added, mta.deleted) == ([], [])


def test_bounce_by_sendmail_command_reaches_the_original(mta: Mta) -> None:
    assert mta.message(mta.connected("127.0.0.1", 0), "<>", [srs("bob@fabrikam.com")]) is None
    assert mta.added == ["bob@fabrikam.com"]


# Compact addresses and their store (S5)


def relay(mta: Mta, reverse_path: str = "<Bob@fabrikam.com>") -> Optional[Reply]:
    return mta.message(mta.connected(macros=TRUSTED), reverse_path)


def compact(mta: Mta, original: str) -> str:
    """Return the path of the compact address that *original* gets, which the store knows afterwards."""
    made = rewriting.relayed(mta.snapshot, original, None, NOW)
    mta.shared.store.stored(made.token, made.original, made.expires_day)
    return f"<{made.address}>"


def break_store(mta: Mta) -> None:
    (mta.folder / "gatepost.db").mkdir()


class Reader:
    """Takes the changes of a message, and asks the store at once what each new sender stands for."""

    def __init__(self, mta: Mta) -> None:
        self.mta = mta
        self.known: list[Optional[str]] = []

    def sender(self, address: str) -> None:
        token = self.mta.snapshot.compact.token(parse_address(address))
        self.known.append(self.mta.shared.store.found(token))

    def add_recipient(self, address: str) -> None:
        raise AssertionError(address)

    def delete_recipient(self, path: str) -> None:
        raise AssertionError(path)


def test_compact_form_is_used_for_short_senders_too_where_it_is_set(tmp_path: Path) -> None:
    mta = mta_with(tmp_path, COMPACT)
    assert relay(mta) is None
    assert mta.unhashed == ["bounces+SRS=HASH=G3@contoso.com"]
    assert mta.count(SRS_REWRITES, "compact") == 1


@pytest.mark.parametrize(("octets", "form"), [(27, "bounces"), (28, "compact")], ids=["64 octets", "65 octets"])
def test_local_part_over_64_octets_gets_the_compact_form(tmp_path: Path, octets: int, form: str) -> None:
    mta = mta_with(tmp_path, "")
    assert relay(mta, f"<{'b' * octets}@fabrikam.com>") is None
    assert mta.count(SRS_REWRITES, form) == 1


def test_store_knows_the_original_before_the_mta_hears_of_the_sender(tmp_path: Path) -> None:
    mta = mta_with(tmp_path, COMPACT)
    session, reader = mta.connected(macros=TRUSTED), Reader(mta)
    session.mail("<Bob@fabrikam.com>")
    session.rcpt(OUTSIDE, [])
    assert session.eom(reader) is None
    assert reader.known == ["Bob@fabrikam.com"]


def test_another_process_finds_the_original(tmp_path: Path) -> None:
    mta = mta_with(tmp_path, COMPACT)
    relay(mta)
    script = (
        "import sys, time; from gatepost.service.store import Store\n"
        "print(Store(sys.argv[1], timeout_s=20).found(sys.argv[2]))"
    )
    token = mta.snapshot.compact.token(parse_address(mta.senders[0]))
    done = subprocess.run(
        [sys.executable, "-c", script, mta.snapshot.config.store_url, token],
        env={"PYTHONPATH": ":".join(sys.path)},
        capture_output=True,
        check=True,
    )
    assert done.stdout == b"Bob@fabrikam.com\n"


def test_long_form_takes_the_place_of_the_compact_one_while_the_store_is_away_logged_and_counted(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    mta = mta_with(tmp_path, COMPACT)
    break_store(mta)
    mta.macros["i"] = "4CgSNs5Q9s"
    assert relay(mta) is None
    assert mta.unhashed == ["bounces+SRS=HASH=G3=fabrikam.com=Bob@contoso.com"]
    error, decision = lines(capfd)
    assert error.startswith("error: 4CgSNs5Q9s: store ")
    assert "action=rewrite" in decision
    assert mta.count(SRS_REWRITES, "long") == 1
    assert mta.count(ERRORS, "milter", "store") == 1


def test_sender_too_long_for_the_long_form_is_put_off_while_the_store_is_away_and_goes_after_that(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    mta = mta_with(tmp_path, "")
    break_store(mta)
    session = mta.connected(macros=TRUSTED)
    assert mta.message(session, LONG) == AWAY
    assert mta.senders == []
    assert lines(capfd)[0].startswith("error: 4CgSNs5Q9s: store ")
    assert mta.count(ERRORS, "milter", "store") == 1
    (tmp_path / "gatepost.db").rmdir()
    while mta.message(session, LONG) is not None:  # the store is asked again within a second
        pass
    assert mta.unhashed == ["bounces+SRS=HASH=G3@contoso.com"]


def test_compact_address_is_made_on_the_egress_hop_too(tmp_path: Path) -> None:
    mta = mta_with(tmp_path, COMPACT, more=EGRESS)
    assert mta.message(mta.connected("127.0.0.1", macros=AT_EGRESS), "<Bob@fabrikam.com>") is None
    assert mta.unhashed == ["bounces+SRS=HASH=G3@contoso.com"]


def test_egress_hop_puts_off_what_has_no_long_form_while_the_store_is_away(tmp_path: Path) -> None:
    mta = mta_with(tmp_path, "", more=EGRESS)
    break_store(mta)
    assert mta.message(mta.connected("127.0.0.1", macros=AT_EGRESS), LONG) == AWAY
    assert mta.senders == []


@pytest.mark.parametrize("lower", [False, True], ids=["as made", "upper-cased"])
def test_compact_recipient_is_replaced_by_what_the_store_has(mta: Mta, lower: bool) -> None:
    path = compact(mta, LONG.strip("<>"))
    path = path.upper() if lower else path
    assert bounce(mta, path) is None
    assert (mta.added, mta.deleted) == ([LONG.strip("<>")], [path])


def test_compact_recipient_that_the_store_does_not_know_is_refused_and_no_guess(tmp_path: Path) -> None:
    mta = mta_with(tmp_path, BY_MILTER + "failures_per_hour = 1\n")
    for _ in range(3):
        assert bounce(mta, "<bounces+SRS=aaaabbbbccccdddd=G3@contoso.com>") == UNKNOWN
    assert mta.count(SRS_REVERSALS, "unknown") == 3


def test_compact_recipient_is_put_off_while_the_store_is_away_logged_and_counted(
    mta: Mta, capfd: pytest.CaptureFixture[str]
) -> None:
    break_store(mta)
    found = replies(mta, "<bounces+SRS=aaaabbbbccccdddd=G3@contoso.com>", srs("bob@fabrikam.com"), INSIDE)
    assert found == [AWAY, None, None]
    assert lines(capfd)[0].startswith("error: NOQUEUE: store ")
    assert mta.count(ERRORS, "milter", "store") == 1


def test_mail_by_sendmail_command_to_a_compact_recipient_is_put_off_at_its_end_while_the_store_is_away(
    mta: Mta,
) -> None:
    break_store(mta)
    session = mta.connected("127.0.0.1", 0)
    assert mta.message(session, "<>", ["<bounces+SRS=aaaabbbbccccdddd=G3@contoso.com>"]) == AWAY


# Chains of forwarders


@pytest.mark.parametrize("wrapper", ["elsewhere.example", "forwarder.example"])
def test_our_own_rewritten_sender_that_another_host_has_wrapped_is_made_afresh_from_the_first_sender(
    tmp_path: Path, wrapper: str
) -> None:
    mta = mta_with(tmp_path, "")
    ours = srs("Bob@fabrikam.com", "john.work", day=DAY - 3).strip("<>")
    other = Exchange(Keys([b"of another host"])).forward(Address.parse(ours), "ann", wrapper, DAY - 1)
    assert relay(mta, f"<{other}>") is None
    assert mta.unhashed == ["bounces+SRS=HASH=G3=fabrikam.com=Bob@contoso.com"]
    assert reverse(mta.snapshot, mta.senders[0], NOW, lambda token: None).original == "Bob@fabrikam.com"


def test_our_own_compact_sender_that_another_host_has_wrapped_leaves_as_it_once_did(tmp_path: Path) -> None:
    mta = mta_with(tmp_path, COMPACT)
    ours = compact(mta, "Bob@fabrikam.com").strip("<>")
    other = Exchange(Keys([b"of another host"])).forward(Address.parse(ours), "ann", "elsewhere.example", DAY)
    assert relay(mta, f"<{other}>") is None
    assert mta.senders == [ours]


def test_sender_that_two_other_hosts_have_wrapped_is_rewritten_with_the_first_ones_layer_only(tmp_path: Path) -> None:
    mta = mta_with(tmp_path, "")
    first = Exchange(Keys([b"1"])).forward(Address.parse("b@f.example"), "a", "one.example", DAY)
    second = Exchange(Keys([b"2"])).forward(first, "a", "two.example", DAY)
    relay(mta, f"<{second}>")
    assert reverse(mta.snapshot, mta.senders[0], NOW, mta.shared.store.found).original == str(first)


def test_our_own_rewritten_sender_is_not_rewritten_again(tmp_path: Path) -> None:
    mta = mta_with(tmp_path, "")
    assert relay(mta, srs("Bob@fabrikam.com")) is None
    assert mta.senders == []


# Which domains


SRS_DOMAINS = CONTOSO.replace(
    'domain = "contoso.com"\n',
    'domain = "contoso.com"\ndefault = true\n'
    '[[organization.accepted_domain]]\ndomain = "contoso.net"\nsrs_domain = "srs.contoso.net"\n',
)
RECEIVED = "from mx.fabrikam.com (unknown [203.0.113.9])\n\tby mail.contoso.com (Postfix) with ESMTP id 4CgSNs5Q9s"


def leave(
    mta: Mta, *headers: tuple[str, str], reverse_path: str = "<bob@fabrikam.com>", orcpt: str = ""
) -> Optional[Reply]:
    """Bring a message to <john.home@example.com> by the egress hop; ingress has noted 4CgSNs5Q9s."""
    mta.shared.hops.put("4CgSNs5Q9s", Hop(organization_digest("contoso"), "ABCDEFGHIJ"), NOW)
    session = mta.connected("127.0.0.1", 40002, macros=AT_EGRESS)
    session.mail(reverse_path)
    reply = session.rcpt("<john.home@example.com>", [f"ORCPT=rfc822;{orcpt}"] if orcpt else [])
    return reply or mta.content(session, headers)


@pytest.mark.parametrize(
    ("mailbox", "sender"),
    [
        ("john.work@contoso.net", "john.work+SRS=HASH=G3=fabrikam.com=bob@srs.contoso.net"),
        ("john.work@contoso.com", "john.work+SRS=HASH=G3=fabrikam.com=bob@contoso.com"),
        ("", "bounces+SRS=HASH=G3=fabrikam.com=bob@contoso.com"),
    ],
    ids=["of the domain", "of its neighbour", "relayed"],
)
def test_srs_domain_of_an_accepted_domain_is_used_for_what_its_mailboxes_forward(
    tmp_path: Path, mailbox: str, sender: str
) -> None:
    mta = mta_with(tmp_path, "", SRS_DOMAINS, EGRESS)
    assert leave(mta, ("Received", RECEIVED), orcpt=mailbox) is None
    assert mta.unhashed == [sender]


@pytest.mark.parametrize(
    ("lists", "sender", "rewritten"),
    [
        ('exclude = ["*.fabrikam.com"]', "<bob@news.fabrikam.com>", False),
        ('exclude = ["*.fabrikam.com"]', "<bob@fabrikam.com>", True),
        ('exclude = ["fabrikam.com"]', "<bob@Fabrikam.COM>", False),
        ('include = ["*.fabrikam.com"]', "<bob@a.news.fabrikam.com>", True),
        ('include = ["*.fabrikam.com"]', "<bob@fabrikam.com>", False),
        ('include = ["*.fabrikam.com"]\nexclude = ["news.fabrikam.com"]', "<bob@news.fabrikam.com>", False),
    ],
)
def test_lists_say_whose_mail_is_rewritten_at_ingress(tmp_path: Path, lists: str, sender: str, rewritten: bool) -> None:
    mta = mta_with(tmp_path, f"[srs]\n{lists}\n")
    assert relay(mta, sender) is None
    assert bool(mta.senders) is rewritten


def test_list_in_a_file_counts_too(tmp_path: Path) -> None:
    (tmp_path / "excluded").write_text("# newsletters\n*.news.example\n")
    mta = mta_with(tmp_path, '[srs]\nexclude_file = "excluded"\n')
    assert relay(mta, "<bob@a.news.example>") is None
    assert mta.senders == []


def test_sender_of_the_list_of_exceptions_is_put_off_on_the_egress_hop_which_the_map_keeps_it_from(
    tmp_path: Path,
) -> None:
    mta = mta_with(tmp_path, '[srs]\nexclude = ["*.fabrikam.com"]\n', more=EGRESS)
    reply = leave(mta, ("Received", RECEIVED), reverse_path="<bob@news.fabrikam.com>")
    assert reply
    assert (reply.code, mta.senders) == (451, [])
    assert leave(mta, ("Received", RECEIVED)) is None
    assert mta.unhashed == ["bounces+SRS=HASH=G3=fabrikam.com=bob@contoso.com"]


# Sieve: X-Sieve-Redirected-From, as Pigeonhole writes it


BY_PICKUP = "by mail.contoso.com (Postfix, from userid 5)\n\tid A54652512BE; Tue, 14 Nov 2023 22:13:21 +0000 (UTC)"
BY_LMTP = (
    "from mail.contoso.com ([127.0.0.1])\n\tby mail.contoso.com with LMTP\n\tid 5ORDJiFHAmvlDAAAg+zDdQ\n"
    "\t(envelope-from <bob@fabrikam.com>)\n\tfor <john.work@contoso.com>; Tue, 14 Nov 2023 22:13:20 +0000"
)
BOUNCES = "bounces+SRS=HASH=G3=fabrikam.com=bob@contoso.com"
JOHN = "john.work+SRS=HASH=G3=fabrikam.com=bob@contoso.com"


def redirected_from(mailbox: str) -> tuple[str, str]:
    return "X-Sieve-Redirected-From", mailbox


@pytest.fixture
def sieve(tmp_path: Path) -> Mta:
    return mta_with(tmp_path, "", more=EGRESS)


def redirect(mta: Mta, *headers: tuple[str, str], ip: str = "127.0.0.1", port: int = 0) -> list[str]:
    """Bring what Sieve's `redirect` hands to sendmail(1); return the senders set."""
    session = mta.connected(ip, port, macros=TRUSTED)
    assert mta.message(session, "<bob@fabrikam.com>", ["<john.home@example.com>"], headers) is None
    return mta.unhashed


def test_sieve_redirect_leaves_in_the_name_of_its_mailbox(sieve: Mta) -> None:
    assert redirect(sieve, ("X-Sieve", "Pigeonhole"), redirected_from("john.work@contoso.com")) == [JOHN]
    assert sieve.count(SRS_REWRITES, "forward") == 1


@pytest.mark.parametrize("value", [" john.work+lists@contoso.com ", "john.work@Contoso.COM"])
def test_detail_and_case_of_the_mailbox_do_not_matter(sieve: Mta, value: str) -> None:
    assert redirect(sieve, redirected_from(value)) == [JOHN]


@pytest.mark.parametrize("value", ["", "john.work", "john.work@mail.contoso.com", "bob@fabrikam.com", "@contoso.com"])
def test_sieve_header_that_names_no_accepted_domains_mailbox_does_not_count(sieve: Mta, value: str) -> None:
    assert redirect(sieve, redirected_from(value)) == [BOUNCES]


def test_topmost_sieve_header_counts_for_it_is_of_the_last_to_redirect(sieve: Mta) -> None:
    headers = (redirected_from("john.work@contoso.com"), redirected_from("ann@contoso.com"))
    assert redirect(sieve, *headers) == [JOHN]


def test_sieve_header_below_a_received_line_does_not_count(sieve: Mta) -> None:
    assert redirect(sieve, ("Received", BY_LMTP), redirected_from("ann@contoso.com")) == [BOUNCES]


def test_sieve_header_of_one_message_does_not_count_for_the_next(sieve: Mta) -> None:
    session = sieve.connected("127.0.0.1", 0)
    for headers in ([redirected_from("john.work@contoso.com")], []):
        sieve.message(session, "<bob@fabrikam.com>", ["<john.home@example.com>"], headers)
    assert sieve.unhashed == [JOHN, BOUNCES]


@pytest.mark.parametrize("ip", [ABROAD, "127.0.0.1"])
def test_sieve_header_of_an_smtp_client_does_not_count(sieve: Mta, ip: str) -> None:
    assert redirect(sieve, redirected_from("ann@contoso.com"), ip=ip, port=40001) == [BOUNCES]


SIEVE_AT_EGRESS = [("Received", BY_PICKUP), redirected_from("john.work@contoso.com"), ("Received", BY_LMTP)]


def test_sieve_header_above_the_entrance_counts_on_the_egress_hop(sieve: Mta) -> None:
    forged = redirected_from("ann@contoso.com")
    assert leave(sieve, *SIEVE_AT_EGRESS, ("Received", RECEIVED), forged) is None
    assert sieve.unhashed == [JOHN]


@pytest.mark.parametrize("session_id", ["+ORDJiFHAmvlDAAAg+zDdQ", "/ORDJiFHAmvlDAAAg+zDdQ"])
def test_lmtp_line_whose_id_begins_with_a_mark_is_walked_over(sieve: Mta, session_id: str) -> None:
    headers = [(name, value.replace("5ORDJiFHAmvlDAAAg+zDdQ", session_id)) for name, value in SIEVE_AT_EGRESS]
    assert leave(sieve, *headers, ("Received", RECEIVED)) is None
    assert sieve.unhashed == [JOHN]


def test_sieve_header_below_the_entrance_does_not_count_on_the_egress_hop(sieve: Mta) -> None:
    forged = redirected_from("ann@contoso.com")
    assert leave(sieve, ("Received", BY_PICKUP), ("Received", RECEIVED), forged) is None
    assert sieve.unhashed == [BOUNCES]


def test_sieve_header_below_another_hosts_line_does_not_count_on_the_egress_hop(sieve: Mta) -> None:
    foreign = ("Received", RECEIVED.replace("by mail.contoso.com", "by mx.fabrikam.com"))
    forged = redirected_from("ann@contoso.com")
    assert leave(sieve, ("Received", BY_PICKUP), foreign, forged, ("Received", RECEIVED)) is None
    assert sieve.unhashed == [BOUNCES]


def test_sieve_header_of_mail_whose_entrance_is_unknown_does_not_count_on_the_egress_hop(sieve: Mta) -> None:
    assert leave(sieve, *SIEVE_AT_EGRESS) is None
    assert sieve.unhashed == [BOUNCES]


def test_client_cannot_lead_an_entrance_that_is_unknown_to_lines_of_its_own(sieve: Mta) -> None:
    unknown = ("Received", RECEIVED.replace("4CgSNs5Q9s", "0000UNKNOWN"))
    assert unknown[1] != RECEIVED
    forged = (redirected_from("ann@contoso.com"), ("Received", RECEIVED))
    assert leave(sieve, ("Received", BY_PICKUP), unknown, *forged, orcpt="john.work@contoso.com") is None
    assert sieve.unhashed == [BOUNCES]


def test_mail_that_came_back_from_a_filter_on_loopback_is_followed_to_its_entrance(sieve: Mta) -> None:
    filtered = "from localhost (localhost [127.0.0.1])\n\tby mail.contoso.com (Postfix) with ESMTP id 0000UNKNOWN"
    assert leave(sieve, ("Received", filtered), ("Received", RECEIVED), orcpt="john.work@contoso.com") is None
    assert sieve.unhashed == [JOHN]


def test_orcpt_of_an_alias_behind_the_redirect_wins(sieve: Mta) -> None:
    assert leave(sieve, *SIEVE_AT_EGRESS, ("Received", RECEIVED), orcpt="ali@contoso.com") is None
    assert sieve.unhashed == ["ali+SRS=HASH=G3=fabrikam.com=bob@contoso.com"]


# only_spf


def spf_mta(folder: Path, server: NameServer, more: str = "") -> Mta:
    host, port = server.address
    table = f'[dns]\nnameservers = ["{host}:{port}"]\n[srs]\nonly_spf = true\noutgoing_addresses = ["192.0.2.10"]\n'
    return mta_with(folder, table, more=more)


SPARED = {"fabrikam.com": {"TXT": ['"v=spf1 ip4:192.0.2.10 -all"']}}
STRICT = {"fabrikam.com": {"TXT": ['"v=spf1 ip4:198.51.100.1 -all"']}}


def test_sender_whose_spf_record_covers_the_outgoing_address_stays(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with NameServer(SPARED) as server:
        mta = spf_mta(tmp_path, server)
        assert relay(mta) is None
    assert mta.senders == []
    assert lines(capfd) == [
        "4CgSNs5Q9s: action=pass, from=<Bob@fabrikam.com>, nrcpt=1, spf=spared, client=192.0.2.1, "
        "organization=contoso, reason=certificate-accepted"
    ]
    assert mta.count(SPF_DECISIONS, "decided") == 1


def test_spared_sender_may_have_inside_and_outside_recipients(tmp_path: Path) -> None:
    with NameServer(SPARED) as server:
        mta = spf_mta(tmp_path, server)
        session = mta.connected(macros=TRUSTED)
        assert mta.message(session, "<Bob@fabrikam.com>", [INSIDE, OUTSIDE]) is None
    assert mta.senders == []


def test_spared_sender_is_decided_on_once_a_message(tmp_path: Path) -> None:
    with NameServer(SPARED) as server:
        mta = spf_mta(tmp_path, server)
        assert mta.shared.spf
        assert mta.shared.spf.spares("fabrikam.com", NOW)
        session = mta.connected(macros=TRUSTED)
        mta.message(session, "<Bob@fabrikam.com>", [OUTSIDE, "<y@gmail.example>"])
        assert server.questions.count("fabrikam.com TXT") == 1
    assert mta.count(SPF_DECISIONS, "hit") == 1


def test_sender_whose_spf_record_does_not_cover_the_outgoing_address_is_rewritten(tmp_path: Path) -> None:
    with NameServer(STRICT) as server:
        mta = spf_mta(tmp_path, server)
        assert relay(mta) is None
    assert mta.unhashed == ["bounces+SRS=HASH=G3=fabrikam.com=Bob@contoso.com"]


def test_sender_is_rewritten_where_dns_is_silent(tmp_path: Path) -> None:
    with NameServer({}, silent=["fabrikam.com"]) as server:
        mta = spf_mta(tmp_path, server)
        assert relay(mta) is None
    assert mta.unhashed == ["bounces+SRS=HASH=G3=fabrikam.com=Bob@contoso.com"]


@pytest.mark.parametrize("reverse_path", ["<>", "<ann@contoso.com>"])
def test_sender_that_is_never_rewritten_asks_nothing(tmp_path: Path, reverse_path: str) -> None:
    with NameServer({}) as server:
        mta = spf_mta(tmp_path, server)
        assert relay(mta, reverse_path) is None
        assert server.questions == []


def test_what_has_come_by_the_egress_hop_is_rewritten_without_asking(tmp_path: Path) -> None:
    with NameServer(SPARED) as server:
        mta = spf_mta(tmp_path, server, EGRESS)
        assert leave(mta, ("Received", RECEIVED)) is None
        assert server.questions == []
    assert mta.unhashed == [BOUNCES]


def test_mail_to_inside_does_not_wait_for_dns_where_nothing_forwards(tmp_path: Path) -> None:
    with NameServer(STRICT) as server:
        server.open.clear()
        mta = spf_mta(tmp_path, server)
        assert mta.message(mta.connected(ABROAD), "<Bob@fabrikam.com>", [INSIDE]) is None
        assert mta.count(SPF_DECISIONS, "decided") == mta.count(SPF_DECISIONS, "failed") == 0


def test_mail_to_inside_that_may_be_forwarded_has_its_spf_decided_before_the_map_is_asked(tmp_path: Path) -> None:
    with NameServer(SPARED) as server:
        mta = spf_mta(tmp_path, server, EGRESS)
        assert mta.message(mta.connected(ABROAD), "<Bob@fabrikam.com>", [INSIDE]) is None
        assert mta.shared.spf
        assert mta.shared.spf.known("fabrikam.com", mta.now) is True


def test_sender_that_could_not_be_rewritten_leaves_where_spf_spares_it(tmp_path: Path) -> None:
    domain = LONG.strip("<>").partition("@")[2]
    with NameServer({domain: {"TXT": ['"v=spf1 ip4:192.0.2.10 -all"']}}) as server:
        host, port = server.address
        table = '[srs]\nform = "long"\nonly_spf = true\noutgoing_addresses = ["192.0.2.10"]\n'
        mta = mta_with(tmp_path, f'[dns]\nnameservers = ["{host}:{port}"]\n{table}')
        assert relay(mta, LONG) is None
    assert mta.senders == []


def test_own_host_is_not_limited_by_wrong_srs_recipients(tmp_path: Path) -> None:
    mta = mta_with(tmp_path, BY_MILTER + "failures_per_hour = 1\n")
    assert bounce(mta, forged("bob@fabrikam.com"), ip="192.0.2.1") == FORGED
    assert bounce(mta, forged("bob@fabrikam.com"), ip="192.0.2.1") == FORGED
    assert bounce(mta, srs("bob@fabrikam.com"), ip="192.0.2.1") is None


def test_refusal_by_the_relay_rule_does_not_depend_on_spf(tmp_path: Path) -> None:
    with NameServer(SPARED) as server:
        mta = spf_mta(tmp_path, server)
        reply = mta.message(mta.connected(ABROAD), "<Bob@fabrikam.com>")
    assert reply
    assert reply.code == 550


def test_bounce_kinds_that_the_metric_counts_are_those_of_srs_recipients(mta: Mta) -> None:
    replies(mta, srs("bob@fabrikam.com"), forged("bob@fabrikam.com"), INSIDE)
    counted = {bounce.value: mta.count(SRS_REVERSALS, bounce.value) for bounce in Bounce}
    assert counted == {"not-srs": 0, "foreign": 0, "original": 1, "forged": 1, "expired": 0, "unknown": 0}
