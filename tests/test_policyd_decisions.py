# SPDX-License-Identifier: GPL-3.0-or-later
"""What policyd answers to Postfix, request by request."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Optional

import pytest
from snapshots import nothing

from gatepost.policyd.decisions import (
    Action,
    Aids,
    Answer,
    Entry,
    Found,
    Transaction,
    decide,
    forward,
    look_up,
)
from gatepost.relay import Result
from gatepost.service.config import parse
from gatepost.service.ledger import Entry as LedgerEntry
from gatepost.service.ledger import merged
from gatepost.service.reversal import Bounce
from gatepost.service.rewriting import Rewritten
from gatepost.service.snapshot import Snapshot, build, bypass_file
from gatepost.service.store import StoreError
from gatepost.srs import Address, Keys

NOW = 1_700_000_000
DAY = NOW // 86400
KEYS = Keys([b"the first key"])
FOREIGN_SRS = "carol+SRS=abcdefgh=C7=example.org=dave@example.net"


@pytest.fixture
def state(tmp_path: Path) -> Path:
    return tmp_path


def snapshot(
    state: Path,
    *,
    reverse: str = "map",
    by: str = "milter",
    mode: str = "enforce",
    egress: bool = True,
    form: str = "long",
    action: str = "reject",
    **srs: object,
) -> Snapshot:
    raw: dict[str, object] = {
        "state_directory": str(state),
        "organization": [
            {
                "name": "contoso",
                "accepted_domain": [{"domain": "contoso.com", "default": True}],
                "connector": [
                    {"name": "office", "sender_ip_addresses": ["192.0.2.0/28"]},
                    {"name": "crm", "tls_sender_certificate_name": "*.contoso.com"},
                ],
            }
        ],
        "relay": {"mode": mode, "action": action, "enforced_by": by, "local_domains": ["mx.contoso.net"]},
        "srs": {"reverse": reverse, "form": form, **srs},
    }
    if egress:
        raw["egress"] = {"transport": "gatepost-egress:[127.0.0.1]:10027"}
    return build(parse(raw, Path("gatepost.toml")), KEYS, 0.0)


def srs(snapshot: Snapshot, original: str = "bob@fabrikam.com", day: int = DAY) -> str:
    return str(snapshot.exchange.forward(Address.parse(original), "bounces", "contoso.com", day))


def expired(snapshot: Snapshot) -> str:
    return srs(snapshot, day=DAY - 22)


def forged(snapshot: Snapshot) -> str:
    return srs(snapshot).replace("fabrikam.com=bob", "fabrikam.com=eve")


class Connection:
    """The requests of one message over one policy connection, as Postfix sends them."""

    def __init__(self, snapshot: Snapshot, sender: str = "", **attributes: str) -> None:
        self.snapshot = snapshot
        self.attributes = {
            "request": "smtpd_access_policy",
            "sender": sender,
            "instance": "1",
            "client_address": "198.51.100.7",
            **attributes,
        }
        self.known = Transaction()
        self.taken: list[str] = []
        self.guessing = False
        self.new_reference = lambda: "REFERENCE1"

    def ask(self, state: str, **attributes: str) -> Answer:
        request = {**self.attributes, "protocol_state": state, **attributes}
        wire = {name.encode(): value.encode("utf-8", "surrogateescape") for name, value in request.items()}
        answer, self.known = decide(self.snapshot, wire, self.known, NOW, self.aids())
        return answer

    def aids(self) -> Aids:
        address = self.attributes["client_address"]
        return Aids(self.new_reference, nothing, lambda client: self.guessing and client == address)

    def rcpt(self, recipient: str) -> Answer:
        queue_id = "4CgSNs5Q9s" if self.taken else ""
        answer = self.ask("RCPT", recipient=recipient, queue_id=queue_id, recipient_count="0")
        if answer.action in (Action.DUNNO, Action.OK, Action.HOLD):
            self.taken.append(recipient)
        return answer

    def data(self) -> Answer:
        only = self.taken[0] if len(self.taken) == 1 else ""
        return self.ask("DATA", recipient=only, queue_id="4CgSNs5Q9s", recipient_count=str(len(self.taken)))


# --- SRS recipients at RCPT


def test_wrong_hash_is_refused_with_5_1_1_and_logged_as_forged(state: Path) -> None:
    hub = snapshot(state)
    answer = Connection(hub).rcpt(forged(hub))
    assert answer.text == "550 5.1.1 SRS address with a wrong hash"
    assert answer.bounce is Bounce.FORGED
    assert answer.log == f"NOQUEUE: action=reject, from=<>, to=<{forged(hub)}>, client=198.51.100.7, reason=srs-forged"


def test_expired_stamp_is_refused_with_5_1_1_and_logged_as_expired(state: Path) -> None:
    hub = snapshot(state)
    answer = Connection(hub).rcpt(expired(hub))
    assert answer.text == "550 5.1.1 SRS address that has expired"
    assert answer.bounce is Bounce.EXPIRED
    assert answer.log.endswith("reason=srs-expired")


def test_valid_srs_recipient_of_a_bounce_is_left_to_the_map(state: Path) -> None:
    hub = snapshot(state)
    connection = Connection(hub)
    assert connection.rcpt(srs(hub)).text == "DUNNO"
    assert connection.data() == Answer(Action.DUNNO, "DUNNO")


def test_somebody_elses_srs_address_is_dunno(state: Path) -> None:
    assert Connection(snapshot(state)).rcpt(FOREIGN_SRS).text == "DUNNO"


def test_ordinary_recipient_is_dunno_without_a_log_line(state: Path) -> None:
    assert Connection(snapshot(state), "bob@fabrikam.com").rcpt("john@contoso.com") == Answer(Action.DUNNO, "DUNNO")


def test_unquoted_local_part_with_a_space_is_judged_as_postfix_sends_it(state: Path) -> None:
    hub = snapshot(state)
    quoted = Address.parse(srs(hub, '"bob b"@fabrikam.com'))
    assert Connection(hub).rcpt(f"{quoted.local}x@contoso.com").bounce is Bounce.FORGED


def test_octets_that_are_no_utf8_are_dunno(state: Path) -> None:
    assert Connection(snapshot(state), "\udcff@example.net").rcpt("\udcff\udcfe@contoso.com").text == "DUNNO"


@pytest.mark.parametrize("protocol_state", ["CONNECT", "EHLO", "MAIL", "ETRN", "END-OF-MESSAGE", ""])
def test_other_states_are_dunno_even_for_a_forged_recipient(state: Path, protocol_state: str) -> None:
    hub = snapshot(state)
    assert Connection(hub).ask(protocol_state, recipient=forged(hub)).text == "DUNNO"


def test_unknown_token_is_refused_with_5_1_1_and_logged_as_unknown(state: Path) -> None:
    hub = snapshot(state, form="compact")
    rcpt = "bounces+SRS=abcdefghijklmnop=RA@contoso.com"
    answer = Connection(hub).rcpt(rcpt)
    assert answer.text == "550 5.1.1 SRS address that is not known here"
    assert (answer.action, answer.bounce) == (Action.REJECT, Bounce.UNKNOWN)
    assert answer.log == f"NOQUEUE: action=reject, from=<>, to=<{rcpt}>, client=198.51.100.7, reason=srs-unknown"


def test_unknown_token_is_dunno_in_monitor_mode(state: Path) -> None:
    hub = snapshot(state, form="compact", mode="monitor")
    assert Connection(hub).rcpt("bounces+SRS=abcdefghijklmnop=RA@contoso.com") == Answer(Action.DUNNO, "DUNNO")


# --- VRFY, which would else tell right hashes from wrong ones


@pytest.mark.parametrize("make", [forged, expired], ids=["forged", "expired"])
def test_vrfy_of_a_bad_srs_recipient_is_refused_as_rcpt_is(state: Path, make: Callable[[Snapshot], str]) -> None:
    hub = snapshot(state)
    answer = Connection(hub).ask("VRFY", recipient=make(hub))
    assert answer == Connection(hub).rcpt(make(hub))._replace(refused=None)  # no mail, nothing for the ledger
    assert answer.action is Action.REJECT


@pytest.mark.parametrize("by", ["milter", "policyd"])
def test_vrfy_of_other_recipients_is_left_to_postfix(state: Path, by: str) -> None:
    hub = snapshot(state, by=by)
    connection = Connection(hub, client_address="192.0.2.5")
    for rcpt in (srs(hub), FOREIGN_SRS, "john@contoso.com", "x@example.org", "root"):
        assert connection.ask("VRFY", recipient=rcpt) == Answer(Action.DUNNO, "DUNNO")


def test_vrfy_by_a_client_that_guesses_is_put_off_for_right_addresses_too(state: Path) -> None:
    hub = snapshot(state)
    connection = Connection(hub)
    connection.guessing = True
    assert connection.ask("VRFY", recipient=srs(hub)).text.startswith("450 4.7.1 ")
    assert connection.ask("VRFY", recipient="john@contoso.com").text == "DUNNO"


def test_vrfy_is_no_part_of_the_transaction(state: Path) -> None:
    hub = snapshot(state, reverse="redirect")
    connection = Connection(hub)
    connection.rcpt(srs(hub))
    known = connection.known
    for rcpt, instance in ((forged(hub), "1"), ("john@contoso.com", "1"), (srs(hub), ""), (srs(hub), "2")):
        connection.ask("VRFY", recipient=rcpt, instance=instance)
    assert connection.known is known
    assert connection.data().text == "REDIRECT bob@fabrikam.com"


def test_vrfy_is_dunno_in_bypass(state: Path) -> None:
    hub = snapshot(state)
    bypass_file(hub.config).touch()
    assert Connection(hub).ask("VRFY", recipient=forged(hub)).text == "DUNNO"


def test_bypass_stops_judging(state: Path) -> None:
    hub = snapshot(state, by="policyd")
    bypass_file(hub.config).touch()
    connection = Connection(hub, "bob@fabrikam.com")
    assert connection.rcpt(forged(hub)).text == "DUNNO"
    assert connection.ask("RCPT", recipient="x@example.org", client_address="192.0.2.5").text == "DUNNO"
    assert connection.ask("DATA", recipient=srs(hub), recipient_count="1").text == "DUNNO"


# --- a sender that is not null: callouts may probe, mail is refused at DATA


def test_callout_with_a_sender_gets_dunno_at_rcpt(state: Path) -> None:
    hub = snapshot(state)
    assert Connection(hub, "double-bounce@example.net").rcpt(srs(hub)).text == "DUNNO"


@pytest.mark.parametrize("reverse", ["map", "redirect"])
def test_mail_with_a_sender_to_an_srs_recipient_is_refused_at_data(state: Path, reverse: str) -> None:
    hub = snapshot(state, reverse=reverse)
    connection = Connection(hub, "eve@example.net")
    connection.rcpt(srs(hub))
    answer = connection.data()
    assert answer.text == "550 5.7.1 This address takes only bounces (null sender)"
    assert answer.log == (
        f"4CgSNs5Q9s: action=reject, from=<eve@example.net>, to=<{srs(hub)}>, client=198.51.100.7, "
        "reason=srs-not-a-bounce"
    )


def test_mail_with_a_sender_to_two_srs_recipients_is_refused_at_data(state: Path) -> None:
    hub = snapshot(state)
    connection = Connection(hub, "eve@example.net")
    connection.rcpt(srs(hub))
    assert connection.rcpt(srs(hub, "alice@fabrikam.com")).text == "DUNNO"
    assert connection.data().action is Action.REJECT


def test_mail_with_a_sender_is_split_so_that_only_the_srs_recipient_is_refused(state: Path) -> None:
    hub = snapshot(state)
    first = Connection(hub, "eve@example.net")
    assert first.rcpt("john@contoso.com").text == "DUNNO"
    assert first.rcpt(srs(hub)).text.startswith("452 4.5.3 ")
    assert first.rcpt("jane@contoso.com").text == "DUNNO"
    assert first.data().text == "DUNNO"
    second = Connection(hub, "eve@example.net")
    assert second.rcpt(srs(hub)).text == "DUNNO"
    assert second.rcpt("john@contoso.com").text.startswith("452 4.5.3 ")
    assert second.data().action is Action.REJECT


def test_unknown_history_of_a_sender_with_several_recipients_is_dunno(state: Path) -> None:
    for reverse in ("map", "redirect"):
        connection = Connection(snapshot(state, reverse=reverse), "bob@fabrikam.com")
        assert connection.ask("DATA", recipient="", recipient_count="2", queue_id="4Cg").text == "DUNNO"


def test_history_of_another_message_does_not_count(state: Path) -> None:
    hub = snapshot(state)
    connection = Connection(hub, "eve@example.net")
    connection.rcpt(srs(hub))
    connection.attributes["instance"] = "2"
    assert connection.ask("RCPT", recipient="john@contoso.com").text == "DUNNO"
    assert connection.ask("DATA", recipient="", recipient_count="2").text == "DUNNO"


# --- bounces with several recipients, map mode


def test_bounce_to_srs_and_other_recipients_is_left_alone_in_map_mode(state: Path) -> None:
    hub = snapshot(state)
    connection = Connection(hub)
    for rcpt in (srs(hub), "john@contoso.com", srs(hub, "alice@fabrikam.com")):
        assert connection.rcpt(rcpt).text == "DUNNO"
    assert connection.data().text == "DUNNO"


def test_unknown_history_of_a_bounce_is_dunno_in_map_mode(state: Path) -> None:
    assert Connection(snapshot(state)).ask("DATA", recipient="", recipient_count="3").text == "DUNNO"


# --- redirect mode


def test_redirect_mode_sends_a_bounce_to_the_original_sender_at_data(state: Path) -> None:
    hub = snapshot(state, reverse="redirect")
    connection = Connection(hub)
    assert connection.rcpt(srs(hub)).text == "DUNNO"
    answer = connection.data()
    assert (answer.text, answer.bounce) == ("REDIRECT bob@fabrikam.com", Bounce.ORIGINAL)
    assert answer.log == (
        f"4CgSNs5Q9s: action=redirect, from=<>, to=<{srs(hub)}>, redirect=<bob@fabrikam.com>, "
        "client=198.51.100.7, reason=srs-bounce"
    )


def test_redirect_gives_the_local_part_unquoted_for_postfix_quotes_it_itself(state: Path) -> None:
    hub = snapshot(state, reverse="redirect")
    connection = Connection(hub)
    rcpt = Address.parse(srs(hub, '"bob b"@fabrikam.com'))
    connection.rcpt(f"{rcpt.local}@{rcpt.domain}")
    assert connection.data().text == "REDIRECT bob b@fabrikam.com"


def test_redirect_mode_puts_off_whatever_comes_beside_an_srs_recipient(state: Path) -> None:
    hub = snapshot(state, reverse="redirect")
    connection = Connection(hub)
    connection.rcpt(srs(hub))
    for rcpt in ("john@contoso.com", srs(hub, "alice@fabrikam.com")):
        answer = connection.rcpt(rcpt)
        assert answer.text == "452 4.5.3 An SRS address takes no other recipient beside it, send again for each"
        assert answer.log.endswith("reason=srs-beside-others")
    assert connection.data().text == "REDIRECT bob@fabrikam.com"


def test_redirect_mode_puts_off_an_srs_recipient_beside_another(state: Path) -> None:
    hub = snapshot(state, reverse="redirect")
    connection = Connection(hub)
    connection.rcpt("john@contoso.com")
    assert connection.rcpt(srs(hub)).action is Action.DEFER
    assert connection.data().text == "DUNNO"


def test_redirect_mode_redirects_a_bounce_whose_one_srs_recipient_was_given_twice(state: Path) -> None:
    hub = snapshot(state, reverse="redirect")
    connection = Connection(hub)
    assert [connection.rcpt(srs(hub)).text, connection.rcpt(srs(hub)).text] == ["DUNNO", "DUNNO"]
    assert connection.data().text == "REDIRECT bob@fabrikam.com"


def test_redirect_mode_lets_a_null_sender_with_several_other_recipients_pass(state: Path) -> None:
    connection = Connection(snapshot(state, reverse="redirect"))
    connection.rcpt("john@contoso.com")
    connection.rcpt("jane@contoso.com")
    assert connection.data().text == "DUNNO"


@pytest.mark.parametrize("seen", [None, "jane@contoso.com"], ids=["nothing seen", "only the last recipient seen"])
def test_redirect_mode_puts_off_a_null_sender_whose_recipients_it_missed(state: Path, seen: Optional[str]) -> None:
    connection = Connection(snapshot(state, reverse="redirect"))
    if seen:
        connection.ask("RCPT", recipient=seen, queue_id="4CgSNs5Q9s")
    answer = connection.ask("DATA", recipient="", recipient_count="2", queue_id="4CgSNs5Q9s")
    assert answer.text.startswith("451 4.3.0 ")
    assert answer.log.endswith("reason=history-unknown")


def test_redirect_mode_needs_no_history_for_a_single_recipient(state: Path) -> None:
    hub = snapshot(state, reverse="redirect")
    answer = Connection(hub).ask("DATA", recipient=srs(hub), recipient_count="1", queue_id="4CgSNs5Q9s")
    assert answer.text == "REDIRECT bob@fabrikam.com"


# --- the relay rule, where policyd enforces it


def test_relay_rule_is_left_to_the_milter_unless_policyd_enforces_it(state: Path) -> None:
    answer = Connection(snapshot(state), "eve@example.net", client_address="192.0.2.5").rcpt("x@example.org")
    assert answer == Answer(Action.DUNNO, "DUNNO")


def test_matching_address_and_accepted_p1_may_relay(state: Path) -> None:
    connection = Connection(snapshot(state, by="policyd"), "app@contoso.com", client_address="192.0.2.5")
    answer = connection.rcpt("x@example.org")
    assert answer.text == "OK"
    assert answer.log == (
        "NOQUEUE: action=ok, from=<app@contoso.com>, to=<x@example.org>, client=192.0.2.5, "
        "organization=contoso, reason=p1-accepted"
    )


@pytest.mark.parametrize("rcpt", ["x%example.org@mx.contoso.net", "example.org!x@contoso.com", "x%example.org"])
def test_recipient_that_postfix_may_route_outside_is_no_inside_recipient(state: Path, rcpt: str) -> None:
    connection = Connection(snapshot(state, by="policyd"), "app@vendor.example", client_address="192.0.2.5")
    assert connection.rcpt(rcpt).text.startswith("550 5.7.64 ")


def test_foreign_p1_is_refused_with_5_7_64_and_a_reference(state: Path) -> None:
    connection = Connection(snapshot(state, by="policyd"), "app@vendor.example", client_address="192.0.2.5")
    answer = connection.rcpt("x@example.org")
    assert answer.text == "550 5.7.64 TenantAttribution; Relay Access Denied [REFERENCE1]"
    assert answer.judgement is not None
    assert answer.judgement.verdict.result is Result.REFUSE
    assert answer.log == (
        "NOQUEUE: action=reject, from=<app@vendor.example>, to=<x@example.org>, client=192.0.2.5, "
        "organization=contoso, reason=nothing-accepted, reference=REFERENCE1"
    )


def test_monitor_mode_logs_the_refusal_and_leaves_the_mail_to_postfix(state: Path) -> None:
    hub = snapshot(state, by="policyd", mode="monitor")
    answer = Connection(hub, "app@vendor.example", client_address="192.0.2.5").rcpt("x@example.org")
    assert answer.text == "DUNNO"
    assert answer.log.startswith("NOQUEUE: action=monitor, from=<app@vendor.example>, ")
    assert answer.judgement is not None
    assert answer.judgement.verdict.result is Result.REFUSE


def test_monitor_mode_makes_nothing_relayable(state: Path) -> None:
    hub = snapshot(state, by="policyd", mode="monitor")
    assert Connection(hub, "app@contoso.com", client_address="192.0.2.5").rcpt("x@example.org").text == "DUNNO"


def test_client_that_no_organization_is_meant_by_is_left_to_postfix(state: Path) -> None:
    answer = Connection(snapshot(state, by="policyd"), "eve@example.net").rcpt("x@example.org")
    assert (answer.text, answer.log) == ("DUNNO", "")


@pytest.mark.parametrize("rcpt", ["john@contoso.com", "root@mx.contoso.net", "postmaster"])
def test_recipient_inside_is_left_to_postfix(state: Path, rcpt: str) -> None:
    connection = Connection(snapshot(state, by="policyd"), "eve@example.net", client_address="192.0.2.5")
    assert connection.rcpt(rcpt).text == "DUNNO"


def test_authenticated_client_is_left_to_postfix(state: Path) -> None:
    connection = Connection(snapshot(state, by="policyd"), "eve@example.net", sasl_username="john")
    assert connection.rcpt("x@example.org").text == "DUNNO"


def test_trusted_certificate_lets_a_foreign_p1_relay(state: Path) -> None:
    connection = Connection(
        snapshot(state, by="policyd"),
        "bob@fabrikam.com",
        ccert_subject="crm.contoso.com",
        ccert_issuer="Our+20CA",
    )
    assert connection.rcpt("x@example.org").text == "OK"


def test_certificate_name_is_read_as_xtext(state: Path) -> None:
    connection = Connection(
        snapshot(state, by="policyd"), "bob@fabrikam.com", ccert_subject="+2A.contoso.com", ccert_issuer="CA"
    )
    assert connection.rcpt("x@example.org").text == "OK"


def test_untrusted_certificate_counts_as_none(state: Path) -> None:
    connection = Connection(
        snapshot(state, by="policyd"), "bob@fabrikam.com", ccert_subject="crm.contoso.com", ccert_issuer=""
    )
    assert connection.rcpt("x@example.org").text == "DUNNO"


def test_null_sender_to_outside_needs_a_certificate(state: Path) -> None:
    hub = snapshot(state, by="policyd")
    assert Connection(hub, "", client_address="192.0.2.5").rcpt("x@example.org").text.startswith("550 5.7.64 ")
    trusted = Connection(hub, "", ccert_subject="crm.contoso.com", ccert_issuer="CA")
    assert trusted.rcpt("x@example.org").text == "OK"


def test_sender_that_the_egress_hop_cannot_rewrite_is_refused_with_5_1_7(state: Path) -> None:
    connection = Connection(
        snapshot(state, by="policyd"),
        "b" * 240 + "@fabrikam.com",
        ccert_subject="crm.contoso.com",
        ccert_issuer="CA",
    )
    assert connection.rcpt("x@example.org").text.startswith("553 5.1.7 ")


def test_what_was_refused_does_not_count_as_a_recipient(state: Path) -> None:
    hub = snapshot(state, by="policyd", reverse="redirect")
    connection = Connection(hub, "", client_address="192.0.2.5")
    assert connection.rcpt("x@example.org").action is Action.REJECT
    assert connection.rcpt(srs(hub)).text == "DUNNO"


# --- the map `reverse`


def test_reverse_map_gives_the_original_sender(state: Path) -> None:
    hub = snapshot(state)
    assert look_up(hub, "reverse", srs(hub), NOW, nothing) == Entry(Found.OK, "bob@fabrikam.com", Bounce.ORIGINAL)


def test_reverse_map_gives_a_quoted_local_part_quoted(state: Path) -> None:
    hub = snapshot(state)
    entry = look_up(hub, "reverse", srs(hub, '"bob b"@fabrikam.com'), NOW, nothing)
    assert (entry.found, entry.text) == (Found.OK, '"bob b"@fabrikam.com')


def test_reverse_map_takes_a_key_without_its_quotes_from_old_postfix(state: Path) -> None:
    hub = snapshot(state)
    rcpt = Address.parse(srs(hub, '"bob b"@fabrikam.com'))
    entry = look_up(hub, "reverse", f"{rcpt.local}@{rcpt.domain}", NOW, nothing)
    assert (entry.found, entry.text) == (Found.OK, '"bob b"@fabrikam.com')


@pytest.mark.parametrize("key", ["john@contoso.com", "@contoso.com", "bounces", "", "@", "a@", "\udcff@contoso.com"])
def test_reverse_map_does_not_find_what_is_no_srs_address(state: Path, key: str) -> None:
    assert look_up(snapshot(state), "reverse", key, NOW, nothing) == Entry(Found.NOTFOUND)


def test_reverse_map_does_not_find_forged_expired_and_foreign_addresses(state: Path) -> None:
    hub = snapshot(state)
    for key, bounce in (
        (forged(hub), Bounce.FORGED),
        (expired(hub), Bounce.EXPIRED),
        (FOREIGN_SRS, Bounce.FOREIGN),
    ):
        assert look_up(hub, "reverse", key, NOW, nothing) == Entry(Found.NOTFOUND, bounce=bounce)


def test_reverse_map_works_on_in_bypass(state: Path) -> None:
    hub = snapshot(state)
    bypass_file(hub.config).touch()
    assert look_up(hub, "reverse", srs(hub), NOW, nothing).found is Found.OK


# --- the map `egress`


def test_egress_map_sends_a_foreign_sender_to_the_egress_hop(state: Path) -> None:
    entry = look_up(snapshot(state), "egress", "bob@fabrikam.com", NOW, nothing)
    assert entry == Entry(Found.OK, "gatepost-egress:[127.0.0.1]:10027")


def test_egress_map_bounces_a_sender_that_cannot_be_rewritten(state: Path) -> None:
    entry = look_up(snapshot(state), "egress", "b" * 240 + "@fabrikam.com", NOW, nothing)
    assert entry.found is Found.OK
    assert entry.text.startswith("error:5.1.7 ")


@pytest.mark.parametrize("key", ["<>", '"<>"', "", "@fabrikam.com", "bob", "john@contoso.com"])
def test_egress_map_lets_null_senders_parts_and_own_senders_out(state: Path, key: str) -> None:
    assert look_up(snapshot(state), "egress", key, NOW, nothing) == Entry(Found.NOTFOUND)


def test_egress_map_does_not_find_what_the_rewriting_made(state: Path) -> None:
    hub = snapshot(state)
    assert look_up(hub, "egress", srs(hub), NOW, nothing) == Entry(Found.NOTFOUND)


def test_egress_map_finds_nothing_without_an_egress_hop(state: Path) -> None:
    assert look_up(snapshot(state, egress=False), "egress", "bob@fabrikam.com", NOW, nothing) == Entry(Found.NOTFOUND)


def test_egress_map_finds_nothing_in_monitor_mode_and_in_bypass(state: Path) -> None:
    assert look_up(snapshot(state, mode="monitor"), "egress", "bob@fabrikam.com", NOW, nothing).found is Found.NOTFOUND
    hub = snapshot(state)
    bypass_file(hub.config).touch()
    assert look_up(hub, "egress", "bob@fabrikam.com", NOW, nothing).found is Found.NOTFOUND


def test_unknown_map_is_perm(state: Path) -> None:
    entry = look_up(snapshot(state), "backward", "x@contoso.com", NOW, nothing)
    assert entry == Entry(Found.PERM, "unknown map: only reverse, forward and egress are served")


# --- accept_from = "everyone"


@pytest.mark.parametrize("reverse", ["map", "redirect", "milter"])
def test_mail_with_a_sender_to_an_srs_recipient_is_taken_from_everyone(state: Path, reverse: str) -> None:
    hub = snapshot(state, reverse=reverse, accept_from="everyone")
    connection = Connection(hub, "vacation@example.net")
    assert connection.rcpt(srs(hub)).text == "DUNNO"
    expected = "REDIRECT bob@fabrikam.com" if reverse == "redirect" else "DUNNO"
    assert connection.data().text == expected


def test_mail_with_a_sender_is_not_split_where_everyone_is_welcome_to_the_map(state: Path) -> None:
    hub = snapshot(state, accept_from="everyone")
    connection = Connection(hub, "vacation@example.net")
    for rcpt in (srs(hub), "john@contoso.com", srs(hub, "alice@fabrikam.com")):
        assert connection.rcpt(rcpt).text == "DUNNO"
    assert connection.data().text == "DUNNO"


def test_mail_with_a_sender_is_split_for_redirect_where_everyone_is_welcome(state: Path) -> None:
    hub = snapshot(state, reverse="redirect", accept_from="everyone")
    connection = Connection(hub, "vacation@example.net")
    assert connection.rcpt("john@contoso.com").text == "DUNNO"
    assert connection.rcpt(srs(hub)).text.startswith("452 4.5.3 ")


def test_forged_recipient_is_refused_from_everyone_too(state: Path) -> None:
    hub = snapshot(state, accept_from="everyone")
    assert Connection(hub, "vacation@example.net").rcpt(forged(hub)).action is Action.REJECT


# --- what is done with what the rule refuses

BESIDE = "452 4.5.3 Inside and outside recipients need a message each, please try again"
OFFICE = {"client_address": "192.0.2.5"}


def test_tempfail_defers_with_the_reference(state: Path) -> None:
    answer = Connection(snapshot(state, by="policyd", action="tempfail"), "bob@fabrikam.com", **OFFICE).rcpt(
        "x@gmail.example"
    )
    assert (answer.action, answer.text) == (
        Action.DEFER,
        "451 4.7.64 TenantAttribution; Relay Access Denied [REFERENCE1]",
    )
    assert answer.log == (
        "NOQUEUE: action=defer, from=<bob@fabrikam.com>, to=<x@gmail.example>, client=192.0.2.5, organization=contoso, "
        "reason=nothing-accepted, reference=REFERENCE1"
    )
    assert answer.refused
    assert answer.refused.action == "defer"


def test_quarantine_holds_the_message_and_records_it_at_data(state: Path) -> None:
    connection = Connection(snapshot(state, by="policyd", action="quarantine"), "bob@fabrikam.com", **OFFICE)
    answer = connection.rcpt("x@gmail.example")
    assert (answer.action, answer.text) == (Action.HOLD, "HOLD gatepost: nothing-accepted [REFERENCE1]")
    assert answer.log.startswith("NOQUEUE: action=quarantine, from=<bob@fabrikam.com>, to=<x@gmail.example>, ")
    assert connection.rcpt("y@gmail.example").action is Action.HOLD
    recorded = connection.data().passed
    assert [(item.recipient, item.action, item.reference) for item in recorded] == [
        ("x@gmail.example", "quarantine", "REFERENCE1"),
        ("y@gmail.example", "quarantine", "REFERENCE1"),
    ]


def test_held_recipient_that_postfix_refuses_afterwards_is_in_the_ledger(state: Path) -> None:
    hub = snapshot(state, by="policyd", action="quarantine")
    connection = Connection(hub, "bob@fabrikam.com", **OFFICE)
    answers = connection.rcpt("x@gmail.example"), connection.data()
    refused, recorded = answers[0].refused, answers[1].passed[0]
    assert refused
    assert (refused.recipient, refused.action, refused.reference) == ("x@gmail.example", "reject", "REFERENCE1")
    assert merged(refused, recorded).action == "quarantine"


def test_line_of_a_held_message_has_the_helo_name(state: Path) -> None:
    hub = snapshot(state, by="policyd", action="quarantine")
    answer = Connection(hub, "bob@fabrikam.com", helo_name="app.contoso.com", **OFFICE).rcpt("x@gmail.example")
    assert ", client=192.0.2.5, helo=<app.contoso.com>, organization=contoso, " in answer.log


@pytest.mark.parametrize("rcpts", [["x@gmail.example"], ["x@gmail.example", "y@gmail.example"]], ids=["one", "two"])
def test_what_cannot_be_held_behind_a_proxy_filter_is_refused_at_data(state: Path, rcpts: list[str]) -> None:
    connection = Connection(snapshot(state, by="policyd", action="quarantine"), "bob@fabrikam.com", **OFFICE)
    for rcpt in rcpts:
        assert connection.ask("RCPT", recipient=rcpt, queue_id="").action is Action.HOLD
    answer = connection.ask(
        "DATA", recipient=rcpts[0] if len(rcpts) == 1 else "", queue_id="", recipient_count=str(len(rcpts))
    )
    assert answer.text == "550 5.7.64 TenantAttribution; Relay Access Denied [REFERENCE1]"
    assert answer.log == (
        "NOQUEUE: action=reject, from=<bob@fabrikam.com>, to=<x@gmail.example>, client=192.0.2.5, "
        "organization=contoso, reason=nothing-accepted, reference=REFERENCE1"
    )
    assert answer.refused
    assert (answer.refused.recipient, answer.refused.action) == ("x@gmail.example", "reject")
    assert (answer.passed, answer.judgement) == ((), None)


def test_behind_a_proxy_filter_a_message_whose_recipients_nobody_remembers_is_judged_or_put_off(state: Path) -> None:
    connection = Connection(snapshot(state, by="policyd", action="quarantine"), "bob@fabrikam.com", **OFFICE)
    only = {"recipient": "x@gmail.example", "recipient_count": "1", "queue_id": ""}
    assert connection.ask("DATA", **only).text.startswith("550 5.7.64 ")
    several = connection.ask("DATA", instance="2", recipient="", recipient_count="2", queue_id="")
    assert several.text == "451 4.3.0 Temporary failure, please send again"
    connection.ask("RCPT", instance="3", recipient="john@contoso.com", queue_id="")  # after one that nobody remembers
    several = connection.ask("DATA", instance="3", recipient="", recipient_count="2", queue_id="")
    assert several.text == "451 4.3.0 Temporary failure, please send again"


def test_behind_a_proxy_filter_several_recipients_that_are_not_refused_pass(state: Path) -> None:
    connection = Connection(snapshot(state, by="policyd", action="quarantine"), "bob@fabrikam.com", **OFFICE)
    for rcpt in ("john@contoso.com", "nobody@contoso.com", "ann@contoso.com"):  # nobody is refused by Postfix
        assert connection.ask("RCPT", recipient=rcpt, queue_id="").text == "DUNNO"
    assert connection.ask("DATA", recipient="", recipient_count="2", queue_id="").text == "DUNNO"


@pytest.mark.parametrize("rcpt", ["john@contoso.com", "srs"])
def test_behind_a_proxy_filter_what_is_not_refused_passes(state: Path, rcpt: str) -> None:
    hub = snapshot(state, by="policyd", action="quarantine", accept_from="everyone")
    connection = Connection(hub, "bob@fabrikam.com", **OFFICE)
    rcpt = srs(hub) if rcpt == "srs" else rcpt
    assert connection.ask("RCPT", recipient=rcpt, queue_id="").text == "DUNNO"
    assert connection.ask("DATA", recipient=rcpt, recipient_count="1", queue_id="").text == "DUNNO"


def test_inside_recipient_does_not_join_what_another_worker_may_have_held(state: Path) -> None:
    connection = Connection(snapshot(state, by="policyd", action="quarantine"), "bob@fabrikam.com", **OFFICE)
    assert connection.ask("RCPT", recipient="john@contoso.com", queue_id="4CgSNs5Q9s").text == BESIDE


@pytest.mark.parametrize(
    ("rcpt", "action"), [("x@gmail.example", "quarantine"), ("john@contoso.com", "pass")], ids=["held", "inside"]
)
def test_only_recipient_is_recorded_at_data_by_another_worker_where_mail_may_be_held(
    state: Path, rcpt: str, action: str
) -> None:
    connection = Connection(snapshot(state, by="policyd", action="quarantine"), "bob@fabrikam.com", **OFFICE)
    answer = connection.ask("DATA", recipient=rcpt, recipient_count="1", queue_id="4CgSNs5Q9s")
    assert [(item.recipient, item.action) for item in answer.passed] == [(rcpt, action)]


def test_held_message_takes_no_inside_recipient_beside(state: Path) -> None:
    connection = Connection(snapshot(state, by="policyd", action="quarantine"), "bob@fabrikam.com", **OFFICE)
    assert connection.rcpt("x@gmail.example").action is Action.HOLD
    assert connection.rcpt("john@contoso.com").text == BESIDE


@pytest.mark.parametrize("before", ["john@contoso.com", "srs"])
def test_message_with_an_inside_recipient_is_not_held(state: Path, before: str) -> None:
    hub = snapshot(state, by="policyd", action="quarantine", accept_from="everyone")
    connection = Connection(hub, "bob@fabrikam.com", **OFFICE)
    assert connection.rcpt(srs(hub) if before == "srs" else before).action is Action.DUNNO
    assert connection.rcpt("x@gmail.example").text == BESIDE


def test_message_of_which_recipients_may_have_been_taken_unseen_is_not_held(state: Path) -> None:
    connection = Connection(snapshot(state, by="policyd", action="quarantine"), "bob@fabrikam.com", **OFFICE)
    assert connection.ask("RCPT", recipient="x@gmail.example", queue_id="4CgSNs5Q9s").text == BESIDE


def test_what_no_organization_is_meant_by_is_left_to_postfix_and_not_held(state: Path) -> None:
    connection = Connection(snapshot(state, by="policyd", action="quarantine"), "bob@fabrikam.com")
    assert connection.rcpt("x@gmail.example").text == "DUNNO"


def test_rewrite_lets_a_foreign_p1_of_a_connectors_host_relay_for_the_egress_hop_to_rewrite(state: Path) -> None:
    connection = Connection(snapshot(state, by="policyd", action="rewrite"), "bob@fabrikam.com", **OFFICE)
    answer = connection.rcpt("x@gmail.example")
    assert (answer.action, answer.text) == (Action.OK, "OK")
    assert answer.log.startswith("NOQUEUE: action=ok, from=<bob@fabrikam.com>, to=<x@gmail.example>, ")
    assert [item.action for item in connection.data().passed] == ["mend"]


@pytest.mark.parametrize("sender", ["", "eve@contoso.com"])
def test_rewrite_rejects_what_no_sender_would_help(state: Path, sender: str) -> None:
    client = OFFICE if not sender else {"client_address": "203.0.113.9"}
    answer = Connection(snapshot(state, by="policyd", action="rewrite"), sender, **client).rcpt("x@gmail.example")
    assert answer.text == "550 5.7.64 TenantAttribution; Relay Access Denied [REFERENCE1]"


@pytest.mark.parametrize("action", ["tempfail", "quarantine"])
def test_action_waits_for_mode_enforce(state: Path, action: str) -> None:
    hub = snapshot(state, by="policyd", action=action, mode="monitor")
    assert Connection(hub, "bob@fabrikam.com", **OFFICE).rcpt("x@gmail.example").text == "DUNNO"


# --- guessing


@pytest.mark.parametrize("make", [forged, expired, srs], ids=["forged", "expired", "right"])
def test_client_that_guesses_is_put_off_for_right_addresses_too(state: Path, make: Callable[[Snapshot], str]) -> None:
    hub = snapshot(state)
    connection = Connection(hub)
    connection.guessing = True
    answer = connection.rcpt(make(hub))
    assert answer.text == "450 4.7.1 Too many SRS addresses with a wrong hash from this client, try again later"
    assert (answer.action, answer.bounce) == (Action.DEFER, None)
    assert answer.log.endswith("client=198.51.100.7, reason=srs-guessing")
    assert connection.known == Transaction(b"1", complete=True)


@pytest.mark.parametrize("rcpt", ["john@contoso.com", FOREIGN_SRS])
def test_client_that_guesses_still_gets_its_other_mail_through(state: Path, rcpt: str) -> None:
    connection = Connection(snapshot(state))
    connection.guessing = True
    assert connection.rcpt(rcpt).text == "DUNNO"


@pytest.mark.parametrize(
    "client",
    [
        {"client_address": "192.0.2.5"},
        {"ccert_subject": "crm.contoso.com", "ccert_issuer": "CA"},
    ],
    ids=["by its address", "by its certificate"],
)
def test_client_that_matches_a_connector_is_never_put_off_as_one_that_guesses(
    state: Path, client: dict[str, str]
) -> None:
    hub = snapshot(state)
    connection = Connection(hub, **client)
    connection.guessing = True
    assert connection.rcpt(forged(hub)).text.startswith("550 5.1.1 ")
    assert connection.ask("VRFY", recipient=forged(hub)).text.startswith("550 5.1.1 ")
    assert connection.rcpt(srs(hub)).text == "DUNNO"


def test_client_whose_certificate_is_not_trusted_is_put_off(state: Path) -> None:
    hub = snapshot(state)
    connection = Connection(hub, ccert_subject="crm.contoso.com")
    connection.guessing = True
    assert connection.rcpt(srs(hub)).action is Action.DEFER


# --- compact addresses


def compact(hub: Snapshot) -> Rewritten:
    made = forward(hub, "bob@fabrikam.com", NOW)
    assert made is not None
    return made


def test_compact_address_is_looked_up_in_the_store(state: Path) -> None:
    hub = snapshot(state, form="compact")
    made = compact(hub)
    entry = look_up(hub, "reverse", made.address, NOW, {made.token: made.original}.get)
    assert entry == Entry(Found.OK, "bob@fabrikam.com", Bounce.ORIGINAL)
    assert look_up(hub, "reverse", made.address, NOW, nothing) == Entry(Found.NOTFOUND, bounce=Bounce.UNKNOWN)


def test_failure_of_the_store_passes_through(state: Path) -> None:
    def away(token: str) -> Optional[str]:
        raise StoreError("away")

    hub = snapshot(state, form="compact")
    with pytest.raises(StoreError):
        look_up(hub, "reverse", compact(hub).address, NOW, away)
    assert look_up(hub, "reverse", "john@contoso.com", NOW, away) == Entry(Found.NOTFOUND)
    assert look_up(hub, "egress", "bob@fabrikam.com", NOW, away).found is Found.OK


# --- the map `forward`


def test_forward_map_gives_the_srs_address_of_the_default_organization(state: Path) -> None:
    hub = snapshot(state)
    assert forward(hub, "bob@fabrikam.com", NOW) == Rewritten(srs(hub), "bounces")


def test_forward_map_needs_no_egress_hop(state: Path) -> None:
    hub = snapshot(state, egress=False)
    assert forward(hub, "bob@fabrikam.com", NOW) == Rewritten(srs(hub), "bounces")


@pytest.mark.parametrize(
    "key",
    ["", "<>", "@", "@fabrikam.com", "bob", "john@contoso.com", FOREIGN_SRS.replace("example.net", "contoso.com")],
)
def test_forward_map_leaves_null_senders_parts_and_own_senders(state: Path, key: str) -> None:
    assert forward(snapshot(state), key, NOW) is None


TOO_LONG = "bob+" + "b" * 240 + "@fabrikam.com"


@pytest.mark.parametrize("key", [TOO_LONG, "bob@", "bob@fab rikam.com\t"])
def test_forward_map_answers_the_sender_itself_where_it_cannot_be_rewritten(state: Path, key: str) -> None:
    # Postfix would else ask for bob@fabrikam.com, and rewrite to what stands for another sender.
    assert forward(snapshot(state), key, NOW) == Rewritten(key, "none")
    assert forward(snapshot(state), "bob@fabrikam.com", NOW) is not None


@pytest.mark.parametrize("lists", [{"exclude": ["fabrikam.com"]}, {"include": ["vendor.example"]}])
@pytest.mark.parametrize("sender", ["bob+tag@fabrikam.com", TOO_LONG, "bob+tag@contoso.com"])
def test_forward_map_finds_no_shorter_key_of_a_sender_that_it_leaves(
    state: Path, lists: dict[str, list[str]], sender: str
) -> None:
    hub = snapshot(state, exclude=lists.get("exclude", []), include=lists.get("include", []))
    local, _, domain = sender.rpartition("@")
    user = local.partition("+")[0]
    for key in (sender, f"{user}@{domain}", local, user, f"@{domain}"):  # canonical(5)
        assert forward(hub, key, NOW) is None


def test_forward_map_leaves_what_it_made(state: Path) -> None:
    for form in ("long", "compact"):
        hub = snapshot(state, form=form)
        assert forward(hub, compact(hub).address, NOW) is None


def test_forward_map_leaves_everything_in_monitor_mode_and_in_bypass(state: Path) -> None:
    assert forward(snapshot(state, mode="monitor"), "bob@fabrikam.com", NOW) is None
    hub = snapshot(state)
    bypass_file(hub.config).touch()
    assert forward(hub, "bob@fabrikam.com", NOW) is None


def test_excluded_sender_is_in_neither_map(state: Path) -> None:
    hub = snapshot(state, exclude=["fabrikam.com"])
    assert forward(hub, "bob@fabrikam.com", NOW) is None
    assert look_up(hub, "egress", "bob@fabrikam.com", NOW, nothing) == Entry(Found.NOTFOUND)


# --- The ledger


ABROAD = {"client_address": "192.0.2.5", "helo_name": "app.contoso.com", "size": "1234"}


def test_recipients_that_pass_are_recorded_at_data_under_one_reference(state: Path) -> None:
    connection = Connection(snapshot(state, by="policyd"), "App@contoso.com", **ABROAD)
    assert [connection.rcpt(rcpt).passed for rcpt in ("X@example.com", "mary@contoso.com")] == [(), ()]
    outside, inside = connection.data().passed
    assert outside == LedgerEntry(
        reference="REFERENCE1",
        recipient="x@example.com",
        time=NOW,
        queue_id="4CgSNs5Q9s",
        client="192.0.2.5",
        helo="app.contoso.com",
        reverse_path="app@contoso.com",
        sender_domain="contoso.com",
        sender_accepted=1,
        organization="contoso",
        connector="office",
        requirements="2023-11-01",
        verdict_current="relay",
        verdict_legacy="relay",
        reason="p1-accepted",
        action="pass",
        size_bytes=1234,
    )
    assert (inside.reference, inside.recipient, inside.verdict_current) == ("REFERENCE1", "mary@contoso.com", "inside")


def test_recipient_that_is_refused_is_recorded_at_once_and_p2_is_not_known(state: Path) -> None:
    connection = Connection(snapshot(state, by="policyd"), "bob@fabrikam.com", **ABROAD)
    refused = connection.rcpt("x@example.com").refused
    assert refused is not None
    assert (refused.action, refused.verdict_current, refused.verdict_legacy) == ("reject", "refuse", "")
    connection.rcpt("mary@contoso.com")
    assert [entry.recipient for entry in connection.data().passed] == ["mary@contoso.com"]


@pytest.mark.parametrize(
    ("client_name", "reverse_client_name", "recorded"),
    [
        ("Crm.Contoso.com", "crm.contoso.com", ("crm.contoso.com", "confirmed")),
        ("unknown", "liar.fabrikam.com", ("liar.fabrikam.com", "unconfirmed")),
        ("unknown", "unknown", ("", "")),
        ("unknown", "a, reason=relay", ("", "")),
    ],
)
def test_client_name_is_recorded_as_postfix_reports_it(
    state: Path, client_name: str, reverse_client_name: str, recorded: tuple[str, str]
) -> None:
    named = {**ABROAD, "client_name": client_name, "reverse_client_name": reverse_client_name}
    refused = Connection(snapshot(state, by="policyd"), "bob@fabrikam.com", **named).rcpt("x@example.com").refused
    assert refused is not None
    assert (refused.reverse_name, refused.fcrdns) == recorded


def test_line_of_a_refusal_has_the_helo_name_which_adds_no_field_and_is_cut(state: Path) -> None:
    abroad = {**ABROAD, "helo_name": "a>, reason=relay " + "x" * 1000}
    connection = Connection(snapshot(state, by="policyd"), "bob@fabrikam.com", **abroad)
    line = connection.rcpt("x@example.com").log
    assert f", client=192.0.2.5, helo=<a?, reason=relay {'x' * 238}>, organization=contoso, " in line
    connection = Connection(snapshot(state, by="policyd"), "app@contoso.com", **abroad)
    assert "helo" not in connection.rcpt("x@example.com").log


def test_wrong_hash_is_recorded_with_its_reason_whoever_applies_the_relay_rule(state: Path) -> None:
    hub = snapshot(state)
    refused = Connection(hub).rcpt(forged(hub)).refused
    assert refused is not None
    assert (refused.recipient, refused.action, refused.reason) == (forged(hub).lower(), "reject", "srs-forged")


def test_where_the_milter_decides_policyd_records_nothing_that_passes(state: Path) -> None:
    connection = Connection(snapshot(state), "app@contoso.com", **ABROAD)
    connection.rcpt("x@example.com")
    assert connection.data().passed == ()


def test_bounce_to_an_srs_recipient_is_recorded_as_brought_back(state: Path) -> None:
    hub = snapshot(state, by="policyd")
    connection = Connection(hub)
    connection.rcpt(srs(hub))
    assert [(entry.recipient, entry.action) for entry in connection.data().passed] == [(srs(hub).lower(), "return")]


def test_mail_that_is_refused_at_data_is_recorded_as_refused_only(state: Path) -> None:
    hub = snapshot(state, by="policyd")
    connection = Connection(hub, "eve@fabrikam.com")
    connection.rcpt(srs(hub))
    answer = connection.data()
    assert answer.refused is not None
    assert (answer.passed, answer.refused.reason) == ((), "srs-not-a-bounce")


def test_worker_that_did_not_see_rcpt_records_a_single_recipient_at_data(state: Path) -> None:
    connection = Connection(snapshot(state, by="policyd"), "app@contoso.com", **ABROAD)
    connection.rcpt("x@example.com")
    connection.known = Transaction()  # another worker's connection
    (entry,) = connection.data().passed
    assert (entry.recipient, entry.verdict_current, entry.queue_id) == ("x@example.com", "relay", "4CgSNs5Q9s")


def test_recipient_without_a_domain_is_recorded_as_passed(state: Path) -> None:
    connection = Connection(snapshot(state, by="policyd"), "app@contoso.com", **ABROAD)
    connection.rcpt("root")
    assert [(entry.recipient, entry.action) for entry in connection.data().passed] == [("root", "pass")]


def test_what_is_left_to_postfix_is_recorded_as_that(state: Path) -> None:
    connection = Connection(snapshot(state, by="policyd"), "bob@fabrikam.com", client_address="198.51.100.7")
    connection.rcpt("x@example.com")
    (entry,) = connection.data().passed
    assert (entry.verdict_current, entry.reason, entry.action) == ("refuse", "left-to-mta", "pass")


def test_recipients_that_postfix_has_refused_beside_a_single_one_are_not_recorded(state: Path) -> None:
    connection = Connection(snapshot(state, by="policyd"), "app@contoso.com", **ABROAD)
    connection.rcpt("nobody@contoso.com")
    connection.rcpt("mary@contoso.com")
    connection.taken.remove("nobody@contoso.com")
    assert [entry.recipient for entry in connection.data().passed] == ["mary@contoso.com"]


def test_nothing_is_recorded_twice_of_one_message(state: Path) -> None:
    connection = Connection(snapshot(state, by="policyd"), "app@contoso.com", **ABROAD)
    connection.rcpt("x@example.com")
    connection.rcpt("mary@contoso.com")
    assert len(connection.data().passed) == 2
    assert connection.data().passed == ()


def test_message_that_is_put_off_at_data_is_not_recorded_as_passed(state: Path) -> None:
    hub = snapshot(state, by="policyd", reverse="redirect")
    connection = Connection(hub)
    connection.rcpt(srs(hub))
    connection.known = connection.known._replace(complete=False)
    connection.taken.append("mary@contoso.com")
    answer = connection.data()
    assert (answer.action, answer.passed) == (Action.DEFER, ())


def test_verification_of_an_address_is_no_refusal_of_mail(state: Path) -> None:
    hub = snapshot(state)
    answer = Connection(hub).ask("VRFY", recipient=forged(hub))
    assert (answer.action, answer.refused) == (Action.REJECT, None)


def test_refusals_of_one_message_have_one_reference(state: Path) -> None:
    hub = snapshot(state)
    references = iter(("FIRST", "SECOND"))
    connection = Connection(hub)
    connection.new_reference = lambda: next(references)
    refused = [connection.rcpt(address).refused for address in (forged(hub), expired(hub))]
    assert [entry.reference for entry in refused if entry] == ["FIRST", "FIRST"]


def test_certificate_name_is_recorded_as_it_is_judged(state: Path) -> None:
    encoded = {"ccert_subject": "mail+2Econtoso.com", "ccert_issuer": "Contoso CA"}
    connection = Connection(snapshot(state, by="policyd"), "app@contoso.com", **ABROAD, **encoded)
    connection.rcpt("x@example.com")
    (entry,) = connection.data().passed
    assert (entry.certificate_names, entry.reason) == ("mail.contoso.com", "certificate-accepted")
