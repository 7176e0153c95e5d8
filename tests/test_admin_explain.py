# SPDX-License-Identifier: GPL-3.0-or-later
"""`gatepost explain`: messages that real sessions have put into the ledger, found again and told in words."""

from __future__ import annotations

import inspect
import json
import socket
import time
from pathlib import Path
from typing import Any, Optional

import ledgers
import pytest
from click.testing import CliRunner, Result
from daemonprocess import CONTOSO
from milterstages import AT_EGRESS, EGRESS, ENFORCE, INSIDE, NOW, OUTSIDE, TRUSTED, Mta

from gatepost.admin.command import main
from gatepost.service import spool
from gatepost.service.config import load
from gatepost.service.database import Database
from gatepost.service.ledger import Entry, record
from gatepost.service.ledger_store import set_loaded_until
from gatepost.service.loader import Loader
from gatepost.service.report_store import message, references

# click before 8.2 puts both streams together unless told otherwise.
APART: Any = {"mix_stderr": False} if "mix_stderr" in inspect.signature(CliRunner).parameters else {}
VENDOR = "<app@vendor.example>"


class Host:
    """A session's surroundings, and the command on the same configuration; no daemon runs."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "srs.secret").write_text("key\n")
        (folder / "srs.secret").chmod(0o600)

    def mta(self, relay: str = ENFORCE, more: str = CONTOSO) -> Mta:
        return Mta(self.folder, relay + more)

    def configure(self, text: str) -> None:
        """Have the command find another configuration than the session had."""
        (self.folder / "gatepost.toml").write_text(f'state_directory = "{self.folder}"\n' + text)

    def entries(self) -> list[Entry]:
        """Return what waits in the spool."""
        octets = b"".join(path.read_bytes() for path in spool.files(self.folder / "ledger"))
        return [item for item in map(record, octets.splitlines()) if isinstance(item, Entry)]

    def explain(self, name: str, *options: str) -> Result:
        arguments = ["-c", str(self.folder / "gatepost.toml"), "explain", name, *options]
        return CliRunner(**APART).invoke(main, arguments)

    def explained(self, name: Optional[str] = None) -> str:
        """Return the explanation of the message that was recorded last, or the one *name*, on one line."""
        result = self.explain(name or self.entries()[-1].reference)
        assert (result.stderr, result.exit_code) == ("", 0)
        return " ".join(result.stdout.split())


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host(tmp_path)


def test_refusal_is_explained_by_the_reference_in_the_reply(host: Host) -> None:
    mta = host.mta()
    session = mta.connected()
    session.helo("crm.contoso.com")
    reply = mta.message(session, VENDOR)
    (entry,) = host.entries()
    result = host.explain(str(reply))
    assert result.stdout == f"""\
Reference    {entry.reference}
When         14 November 2023, 22:13:20 UTC, on {socket.gethostname()}
Queue ID     none: it was refused before it had one
Client       192.0.2.1
Certificate  none that is trusted
HELO         crm.contoso.com (information only, it never counts)
Rule set     2023-11-01

To x@gmail.example: refused
  Refused: x@gmail.example is outside, and neither certificate nor P1 is in an
  accepted domain.

  P1, envelope sender                     P2, header From
  app@vendor.example: vendor.example is   not known: the From header comes after
  no accepted domain                      the recipients, and policyd never sees
                                          it

  Conditions tried
  (1: certificate or P1 in an accepted domain; 2: connector matches the client)
  - Recipient domain gmail.example is no accepted domain and none of
    relay.local_domains: this is relay.
  - P1 domain vendor.example is no accepted domain: condition 1 fails.
  - Address 192.0.2.1 matches connector "head office" of contoso by
    sender_ip_addresses 192.0.2.0/28: condition 2 holds.
  Condition 1 failed: the P1 domain vendor.example is not accepted, and the
  client presented no trusted certificate. Condition 2 holds: connector "head
  office" of contoso matches the client. An IP address is enough only where P1
  or the recipient is in an accepted domain.

{CHANGES}
  What happened then
  - The recipient was refused with 550 5.7.64 TenantAttribution; Relay Access
    Denied [{entry.reference}].
"""
    assert (result.stderr, result.exit_code) == ("", 0)


@pytest.mark.parametrize("spelling", ["{0}", "[{0}]", "{1}", "[{1}]", " {1} "])
def test_reference_in_any_case_and_with_brackets(host: Host, spelling: str) -> None:
    mta = host.mta()
    mta.message(mta.connected(), VENDOR)
    (entry,) = host.entries()
    name = spelling.format(entry.reference, entry.reference.lower())
    assert host.explain(name).stdout.startswith(f"Reference    {entry.reference}\n")


def test_rewritten_message_is_explained_by_its_queue_id(host: Host) -> None:
    mta = host.mta()
    mta.macros["i"] = "4CgSNs5Q9s"
    mta.message(mta.connected(macros=TRUSTED), VENDOR, headers=[("From", "ceo@contoso.com")])
    text = host.explained("4CgSNs5Q9s:")
    assert "Queue ID 4CgSNs5Q9s Client 192.0.2.1 Certificate mail.contoso.com Rule set" in text
    assert "To x@gmail.example: relayed Relayed for contoso: its certificate name is accepted and connector" in text
    assert "ceo@contoso.com: contoso.com is" in text
    assert text.endswith(
        "What happened then - The MTA took it. - SRS rewrote P1. Envelope afterwards (the ledger has it in lower case) "
        f"MAIL FROM:<{mta.senders[0].lower()}> RCPT TO:<x@gmail.example>"
    )


def test_each_recipient_of_a_message_is_explained(host: Host) -> None:
    mta = host.mta('[relay]\nmode = "monitor"\n')
    mta.message(mta.connected(), VENDOR, [INSIDE, OUTSIDE])
    text = host.explained()
    assert "To ann@contoso.com: let through, no relay No relay: ann@contoso.com is a recipient of contoso" in text
    assert "To x@gmail.example: let through in mode monitor, though the rules refuse it Refused: " in text
    assert "- Mode monitor: it was logged and counted, and let through." in text


def test_where_todays_configuration_decides_otherwise_that_is_said_first(host: Host) -> None:
    mta = host.mta()
    mta.message(mta.connected(), VENDOR)
    host.configure(ENFORCE + CONTOSO.replace('domain = "contoso.com"', 'domain = "vendor.example"'))
    text = host.explained()
    assert (
        "To x@gmail.example: refused Decided then: Refused: x@gmail.example is outside, and neither certificate nor "
        "P1 is in an accepted domain. (reason=nothing-accepted, organization=contoso) With today's configuration it "
        'would be let through. Relayed for contoso: P1 is accepted and connector "head office" matches the client. '
        "Today's configuration says (rule set 2023-11-01): P1, envelope sender"
    ) in text
    assert "P1 domain vendor.example is an accepted domain of contoso: condition 1 holds." in text
    assert "What happened then - The recipient was refused with 550 5.7.64" in text


@pytest.mark.parametrize(
    ("change", "difference"),
    [
        (
            ('mode = "enforce"', 'mode = "monitor"'),
            "With today's configuration it would be let through in mode monitor, though the rules refuse it.",
        ),
        (
            ("192.0.2.0/28", "203.0.113.0/28"),
            "With today's configuration the outcome would be the same, for no organization.",
        ),
        (
            ('mode = "enforce"', 'mode = "enforce"\naction = "tempfail"'),
            "With today's configuration it would be put off.",
        ),
    ],
)
def test_kinds_of_difference(host: Host, change: tuple[str, str], difference: str) -> None:
    mta = host.mta()
    mta.message(mta.connected(), VENDOR)
    host.configure((ENFORCE + CONTOSO).replace(*change))
    assert f"(reason=nothing-accepted, organization=contoso) {difference} Refused: " in host.explained()


def test_other_reason_for_the_same_outcome_is_a_difference(host: Host) -> None:
    mta = host.mta()
    mta.message(mta.connected("203.0.113.7"), "<app@contoso.com>")
    host.configure(ENFORCE + CONTOSO.replace('domain = "contoso.com"', 'domain = "contoso.net"'))
    text = host.explained()
    assert "organization=contoso) With today's configuration the outcome would be the same, for another reason." in text


@pytest.mark.parametrize(
    ("action", "word", "happened"),
    [
        ("tempfail", "put off", "The recipient was put off with 451 4.7.64 TenantAttribution; Relay Access Denied ["),
        ("quarantine", "held", "The whole message was taken and held in the MTA's hold queue (action = quarantine)."),
        (
            "tag",
            "let through with a header",
            "The whole message was let through with the header X-Gatepost-Relay: refused; reason=nothing-accepted;",
        ),
    ],
)
def test_other_actions_than_reject(host: Host, action: str, word: str, happened: str) -> None:
    mta = host.mta(f'{ENFORCE}action = "{action}"\n')
    mta.message(mta.connected(), VENDOR)
    text = host.explained()
    assert f"To x@gmail.example: {word} Refused: x@gmail.example is outside" in text
    assert happened in text
    assert "today's configuration" not in text


def test_what_action_rewrite_mended(host: Host) -> None:
    mta = host.mta(f'{ENFORCE}action = "rewrite"\n')
    mta.message(mta.connected(), VENDOR)
    assert host.entries()[-1].action == "mend"
    text = host.explained()
    assert "To x@gmail.example: let through with an SRS sender Mended by SRS: x@gmail.example is outside" in text
    assert 'The MTA took it with an SRS sender (action = "rewrite"); the rules refuse it else.' in text
    assert "today's configuration" not in text


def test_what_action_rewrite_would_mend_now(host: Host) -> None:
    mta = host.mta()
    mta.message(mta.connected(), VENDOR)
    host.configure(f'{ENFORCE}action = "rewrite"\n{CONTOSO}')
    assert "With today's configuration it would be let through with an SRS sender." in host.explained()


@pytest.mark.parametrize(
    ("macros", "local", "word"),
    [
        ({"{auth_authen}": "ann"}, False, "Relayed: the client has authenticated (SASL)"),
        ({}, True, "Relayed: the message was submitted on this host"),
    ],
)
def test_exempt_clients_are_rebuilt_from_what_is_recorded(
    host: Host, macros: dict[str, str], local: bool, word: str
) -> None:
    mta = host.mta()
    mta.macros.update(macros)
    session = mta.connected("127.0.0.1", 0) if local else mta.connected("203.0.113.7")
    mta.message(session, "<app@contoso.com>")
    text = host.explained()
    assert f"To x@gmail.example: relayed, exempt {word}" in text
    assert "today's configuration" not in text


@pytest.mark.parametrize(
    ("macros", "local", "client"),
    [
        ({"{auth_authen}": "ann"}, False, "Client 203.0.113.7, authenticated (SASL)"),
        ({}, True, "Client 127.0.0.1, by sendmail(1) on this host"),
    ],
)
def test_exempt_clients_whose_mail_was_refused_for_another_reason_are_rebuilt(
    host: Host, macros: dict[str, str], local: bool, client: str
) -> None:
    mta = host.mta(ENFORCE, '[srs]\nform = "long"\n' + CONTOSO)
    mta.macros.update(macros)
    session = mta.connected("127.0.0.1", 0) if local else mta.connected("203.0.113.7")
    mta.message(session, f"<{'a' * 230}@x.example>")
    text = host.explained()
    assert client in text
    assert "so P1 must be rewritten by SRS, and cannot be." in text
    assert "today's configuration" not in text


def test_from_header_and_certificate_are_those_of_the_first_entry_that_has_them(host: Host) -> None:
    host.configure(ENFORCE + 'requirements = "legacy"\n' + CONTOSO)
    fields = {"requirements": "legacy", "client": "192.0.2.1", "reverse_path": "app@vendor.example"}
    at_rcpt = {"recipient": "old@contoso.com", "reason": "srs-expired", "action": "reject", "header_from": ""}
    at_end = {"header_from": "ceo@contoso.com", "certificate_names": "crm.contoso.com", "organization": "contoso"}
    ledgers.sqlite(
        host.folder,
        ledgers.entry("LEGACY2222", NOW, **{**fields, **at_rcpt, "certificate_names": ""}),
        ledgers.entry("LEGACY2222", NOW + 1, **{**fields, **at_end, "reason": "p2-accepted", "action": "pass"}),
    )
    assert "Certificate crm.contoso.com" in host.explained("LEGACY2222")
    _, at_end_today = json.loads(host.explain("LEGACY2222", "--json").stdout)["recipients"]
    assert at_end_today["today"]["p2"].startswith("ceo@contoso.com: contoso.com is an accepted domain of contoso")


def test_forged_srs_recipient_has_the_words_of_check(host: Host) -> None:
    mta = host.mta(ENFORCE, '[srs]\nreverse = "milter"\n' + CONTOSO)
    mta.message(mta.connected(), "<>", ["<bounces+SRS=aaaaaaaa=G3=fabrikam.com=bob@contoso.com>"])
    text = host.explained()
    assert "aaaaaaaa=g3=fabrikam.com=bob@contoso.com: refused Refused: bounces+srs=" in text
    assert "has the form of this host's SRS addresses, but is not good." in text
    assert "SRS: wrong hash: no key here made it;" in text
    assert "The recipient was refused with 550 5.1.1 SRS address with a wrong hash." in text
    assert "today's configuration" not in text


def test_message_with_too_many_headers_that_only_gatepost_may_set(host: Host) -> None:
    mta = host.mta(ENFORCE, 'action = "tag"\n' + CONTOSO)
    mta.message(mta.connected(macros=TRUSTED), "<app@contoso.com>", headers=[("X-Gatepost-Relay", "relay")] * 21)
    text = host.explained()
    assert "Refused: the message came with more X-Gatepost-Relay headers than gatepost removes." in text
    assert "The recipient was refused with 550 5.6.0 Too many X-Gatepost-Relay headers." in text


def test_srs_recipient_that_takes_only_bounces(host: Host) -> None:
    mta = host.mta(ENFORCE, '[srs]\nreverse = "milter"\n' + CONTOSO)
    mta.message(mta.connected(macros=TRUSTED), "<bob@fabrikam.com>")
    mta.message(mta.connected(), "<carol@adatum.com>", [f"<{mta.senders[0]}>"])
    text = host.explained()
    assert "is an SRS address made here, which takes bounces only (null sender)." in text
    assert "The recipient was refused with 550 5.7.1 This address takes only bounces (null sender)." in text


def test_bounce_that_the_milter_gave_back(host: Host) -> None:
    mta = host.mta(ENFORCE, '[srs]\nreverse = "milter"\n' + CONTOSO)
    mta.message(mta.connected(macros=TRUSTED), "<bob@fabrikam.com>")
    mta.message(mta.connected("203.0.113.7"), "<>", [f"<{mta.senders[0]}>"])
    reference = next(entry.reference for entry in host.entries() if entry.action == "return")
    text = host.explained(reference)
    assert ": given back to the original sender No relay: bounces+srs=" in text
    assert text.endswith("Envelope afterwards MAIL FROM:<> RCPT TO:<bob@fabrikam.com>")


def test_p1_that_cannot_be_rewritten(host: Host) -> None:
    mta = host.mta(ENFORCE, '[srs]\nform = "long"\n' + CONTOSO)
    mta.message(mta.connected(macros=TRUSTED), f"<{'a' * 230}@x.example>")
    text = host.explained()
    assert "Refused: x@gmail.example is outside, so P1 must be rewritten by SRS, and cannot be." in text
    assert "The recipient was refused with 553 5.1.7 Sender address is too long" in text


def test_copy_that_left_by_the_egress_hop_is_found_by_either_queue_id(host: Host) -> None:
    mta = host.mta(ENFORCE, EGRESS + CONTOSO)
    mta.macros["i"] = "IN1"
    mta.message(mta.connected("203.0.113.7"), "<bob@fabrikam.com>", [INSIDE])
    mta.macros["i"] = "OUT1"
    session = mta.connected("127.0.0.1", macros=AT_EGRESS)
    session.mail("<bob@fabrikam.com>")
    session.rcpt("<ann@home.example>", ["ORCPT=rfc822;ann@contoso.com"])
    mta.content(session, [("Received", "from x (x [203.0.113.7])\n\tby mail.contoso.com (Postfix) with ESMTP id IN1")])
    for queue_id in ("IN1", "OUT1"):
        text = host.explained(queue_id)
        assert "Queue ID IN1; on the egress hop OUT1" in text
        assert "Client 203.0.113.7" in text
        assert "- A copy was forwarded to ann@home.example. Envelope afterwards (the ledger has it in" in text
        assert "MAIL FROM:<ann+srs=" in text
        assert "RCPT TO:<ann@home.example>" in text


def test_message_that_only_the_egress_hop_saw(host: Host) -> None:
    mta = host.mta(ENFORCE, EGRESS + CONTOSO)
    mta.macros["i"] = "OUT1"
    session = mta.connected("127.0.0.1", macros=AT_EGRESS)
    session.mail("<bob@fabrikam.com>")
    session.rcpt("<ann@home.example>", [])
    mta.content(session, [])
    text = host.explained("OUT1")
    assert "Rule set not known To ann@home.example: rewritten on the egress hop SRS rewrote P1." in text
    assert "Conditions tried" not in text


def test_what_policyd_left_to_postfix(host: Host) -> None:
    host.configure('[relay]\nmode = "enforce"\nenforced_by = "policyd"\n' + CONTOSO)
    left = ledgers.entry(
        "LEFTTOMTA1", NOW, client="203.0.113.7", organization="", connector="", header_from="",
        reason="left-to-mta", verdict_legacy="",
    )  # fmt: skip
    ledgers.sqlite(host.folder, left)
    text = host.explained("LEFTTOMTA1")
    assert "To x@gmail.com: left to Postfix Left to Postfix: x@gmail.com is outside, and no organization is" in text
    assert "today's configuration" not in text


def test_recipient_refused_with_another_one_of_its_message(host: Host) -> None:
    host.configure(ENFORCE + CONTOSO)
    together = ledgers.entry("TOGETHER22", NOW, action="reject", verdict_current="exempt", reason="local-submission")
    ledgers.sqlite(host.folder, together)
    text = host.explained("TOGETHER22")
    assert "To x@gmail.com: refused with the whole message Relayed: the message was submitted on this host" in text
    assert "- The recipient was refused with another one of this message, whose refusal held for all of it." in text


def test_message_that_only_p2_let_through_under_legacy(host: Host) -> None:
    mta = host.mta(ENFORCE + 'requirements = "legacy"\n')
    mta.message(mta.connected(), VENDOR, headers=[("From", "ceo@contoso.com")])
    text = host.explained()
    assert "Rule set legacy To x@gmail.example: relayed Relayed for contoso: P2 alone, which counts under" in text
    assert "P2 domain contoso.com is an accepted domain of contoso: condition 1 holds." in text
    assert "today's configuration" not in text
    host.configure(ENFORCE + CONTOSO)
    assert (
        "With today's configuration it would be refused. Refused: x@gmail.example is outside, and neither certificate "
        "nor P1 is in an accepted domain. Today's configuration says (rule set 2023-11-01):"
    ) in host.explained()


def test_reverse_name_and_the_answer_of_exchange_online_are_shown(host: Host) -> None:
    host.configure('[relay]\nmode = "monitor"\n' + CONTOSO)
    fields = {"reverse_name": "crm.contoso.com", "fcrdns": "confirmed", "upstream": "nothing-accepted"}
    ledgers.sqlite(host.folder, ledgers.entry("UPSTREAM22", NOW, **fields))
    text = host.explained("UPSTREAM22")
    assert "Reverse name crm.contoso.com (confirmed: it leads back to the address)" in text
    reckoned = "At Exchange Online, by its rules: would be refused with 550 5.7.64 (reason=nothing-accepted)."
    assert f"- {reckoned}" in text


def test_of_messages_with_one_queue_id_the_newest_is_shown_and_the_others_named(host: Host) -> None:
    host.configure(ENFORCE + CONTOSO)
    ledgers.sqlite(host.folder, *(ledgers.entry(f"MESSAGE{number}22", NOW + number) for number in range(3)))
    result = host.explain("4CgSNs5Q9s")
    assert result.stdout.startswith("Reference    MESSAGE222\n")
    assert result.stdout.endswith("""
Note: Queue IDs come again; this is the newest message with that one. Others:
      MESSAGE122 of 14 November 2023, 22:13:21 UTC, MESSAGE022 of 14 November
      2023, 22:13:20 UTC.
""")


def test_queue_id_in_hexadecimal_is_taken_in_lower_case_too(host: Host) -> None:
    host.configure(ENFORCE + CONTOSO)
    ledgers.sqlite(host.folder, ledgers.entry("MESSAGE122", NOW, queue_id="9F2C1A0B"))
    assert host.explain("9f2c1a0b").stdout.startswith("Reference    MESSAGE122\n")


def test_json_has_the_row_and_todays_answer(host: Host) -> None:
    mta = host.mta()
    mta.message(mta.connected(), VENDOR)
    (entry,) = host.entries()
    document = json.loads(host.explain(entry.reference, "--json").stdout)
    (recipient,) = document["recipients"]
    assert document["reference"] == entry.reference
    assert recipient["recorded"] == {"host": socket.gethostname(), **entry._asdict()}
    assert (recipient["outcome"], recipient["difference"]) == ("reject", None)
    assert recipient["today"]["reason"] == "nothing-accepted"


def test_refusal_of_what_exchange_online_would_refuse(host: Host) -> None:
    host.configure(ENFORCE + CONTOSO)
    fields = {"action": "reject", "reason": "upstream-null-sender", "upstream": "null-sender-without-certificate"}
    ledgers.sqlite(host.folder, ledgers.entry("UPSTREAM22", NOW, **fields))
    text = host.explained("UPSTREAM22")
    assert "Decided then: Refused: Exchange Online would refuse mail to x@gmail.com, and SRS cannot mend it" in text
    assert "was refused with 550 5.7.64 TenantAttribution; Relay Access Denied [UPSTREAM22]." in text


def test_early_refusal_for_exchange_online_is_explained_as_check_does(host: Host) -> None:
    upstream = '[upstream]\nsender_ip_addresses = ["203.0.113.5"]\nrefuse = true\n'
    domains = 'domain = "contoso.com"\ndefault = true\n[[organization.accepted_domain]]\ndomain = "srs.contoso.com"'
    contoso = CONTOSO.replace('name = "contoso"', 'name = "contoso"\nsrs_domain = "srs.contoso.com"')
    mta = host.mta(ENFORCE, upstream + contoso.replace('domain = "contoso.com"', domains))
    reply = mta.message(mta.connected(macros=TRUSTED), "<>")
    text = host.explained()
    assert "To x@gmail.example: refused Refused: " in text
    said = "- At Exchange Online, by its rules: would be refused with 550 5.7.64"
    assert f"The recipient was refused with {reply}. {said}" in text
    assert "today's configuration" not in text


@pytest.mark.parametrize("name", ["", "[]", "a b", "caf\u00e9", "x\x00y"])
def test_what_can_be_no_name_is_wrong_usage(host: Host, name: str) -> None:
    host.configure(CONTOSO)
    result = host.explain(name)
    assert "is neither a reference nor a queue ID" in result.stderr
    assert result.exit_code == 64


def test_what_is_not_found_is_told_with_where_to_look(host: Host) -> None:
    host.configure(ENFORCE + CONTOSO)
    ledgers.sqlite(host.folder, ledgers.entry("MESSAGE122", NOW))
    result = host.explain("NOSUCHREF2")
    assert result.stderr == """\
"NOSUCHREF2" is neither the reference nor the queue ID of a message in the
ledger.
- The ledger begins on 14 November 2023, 22:13 UTC; older messages are forgotten
  (ledger.days, ledger.rows).
- Refusals beyond 1000 at once and 5 a second of each worker are not recorded;
  nor is mail during bypass.
- A queue ID is of this MTA, and is written as in its log; a message that was
  refused at RCPT has none.
The log has every reference with client, P1, recipient and reason: gatepost
check explains these. gatepost replay judges what a mail log has of messages
from before there was a ledger.
"""
    assert (result.stdout, result.exit_code) == ("", 65)


def test_ledger_that_is_off_is_named(host: Host) -> None:
    host.configure("[ledger]\ndays = 0\n" + CONTOSO)
    result = host.explain("NOSUCHREF2")
    assert "- ledger.days = 0: nothing is recorded." in result.stderr
    assert result.exit_code == 65


def test_other_host_that_lags_is_named(host: Host) -> None:
    host.configure(ENFORCE + CONTOSO)
    database = ledgers.sqlite(host.folder)
    set_loaded_until(database, "hub2", float(NOW))
    result = host.explain("NOSUCHREF2")
    assert "- What hub2 recorded after 14 November 2023, 22:13 UTC is not in the store yet." in result.stderr


def test_loader_that_does_not_get_on_is_waited_for_seconds_only(host: Host) -> None:
    mta = host.mta()
    mta.message(mta.connected(), VENDOR)
    (entry,) = host.entries()
    other = Loader(load(host.folder / "gatepost.toml"))
    assert other.lock()
    begin = time.monotonic()
    result = host.explain(entry.reference)
    other.close()
    assert time.monotonic() - begin < 10
    assert "- It may still be on its way:" in result.stderr
    assert result.exit_code == 65


def test_store_that_is_away_ends_with_75(host: Host) -> None:
    host.configure('[store]\nurl = "sqlite:////nowhere/gatepost.db"\n' + CONTOSO)
    result = host.explain("NOSUCHREF2")
    assert (result.stderr, result.exit_code) == (
        "store /nowhere/gatepost.db: the folder /nowhere does not exist\n",
        75,
    )


def test_bypass_is_named(host: Host) -> None:
    host.configure(ENFORCE + CONTOSO)
    (host.folder / "bypass").touch()
    ledgers.sqlite(host.folder, ledgers.entry("MESSAGE122", NOW))
    assert "BYPASS IS ON" in host.explain("MESSAGE122").stdout


def test_a_queue_id_is_found_in_an_index_alone(sqlite_url: str, query: Any) -> None:
    ledgers.store(sqlite_url, ledgers.entry("MESSAGE122", NOW)).close()
    plan = "SELECT id FROM ledger WHERE queue_id = 'X' OR egress_queue_id = 'X'"
    explained = " ".join(query(sqlite_url, f"EXPLAIN QUERY PLAN {plan}"))
    assert "COVERING INDEX ledger_queue_ids" in explained


def test_messages_of_a_queue_id_come_with_the_newest_first(url: str) -> None:
    one = ledgers.entry("MESSAGE122", NOW, "ann@gmail.com"), ledgers.entry("MESSAGE122", NOW + 5, "bob@gmail.com")
    other = ledgers.entry("MESSAGE222", NOW + 9, queue_id="4CgOther", egress_queue_id="4CgSNs5Q9s")
    database = ledgers.store(url, *one, other)
    assert references(database, "4CgSNs5Q9s") == [("MESSAGE222", NOW + 9), ("MESSAGE122", NOW)]
    assert [item.entry.recipient for item in message(database, "MESSAGE122")] == ["ann@gmail.com", "bob@gmail.com"]
    assert (references(database, ""), message(database, "NOSUCHREF2")) == ([], [])


def test_a_ledger_of_an_earlier_release_gets_the_index_and_loses_others(sqlite_url: str, query: Any) -> None:
    ledgers.store(sqlite_url).close()
    earlier = ("DROP INDEX ledger_queue_ids", "CREATE INDEX ledger_queue_id ON ledger (queue_id) WHERE queue_id <> ''")
    for statement in (*earlier, "UPDATE gatepost_schema SET version = 3"):
        query(sqlite_url, statement)
    Database(sqlite_url).open()
    names = "SELECT name FROM sqlite_master WHERE name LIKE 'ledger_queue_id%'"
    assert query(sqlite_url, names) == ["ledger_queue_ids"]


CHANGES = """\
  What to change (any one of these may do)
  - If vendor.example is your own, declare it: [[organization.accepted_domain]]
    domain = "vendor.example" under organization[contoso], and set default =
    true for contoso.com.
  - Let the application use an accepted P1, such as one in contoso.com. P1 is
    what it says in MAIL FROM; services call it return path or bounce address.
  - Or let the client present a trusted certificate with a name in an accepted
    domain, such as mail.contoso.com (self-signed, expired, or not for client
    authentication is as good as none). If the name is not the CN, put the
    certificate into relay.certificate_folder.
  - Where the application cannot change its P1, let SRS on the host before this
    one rewrite it into an address in contoso.com.
"""
