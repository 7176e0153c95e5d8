# SPDX-License-Identifier: GPL-3.0-or-later
"""`gatepost check`: whole transcripts for a person, JSON for a program, exit statuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Optional

import pytest
from click.testing import CliRunner, Result

from gatepost.admin.command import main
from gatepost.service.store import Store

CONFIG = """
state_directory = "{state}"
[[organization]]
name = "contoso"
[[organization.accepted_domain]]
domain = "contoso.com"
default = true
[[organization.connector]]
name = "head office"
sender_ip_addresses = ["192.0.2.0/28"]
[[organization.connector]]
name = "crm"
tls_sender_certificate_name = "*.contoso.com"
"""
ENFORCE = '[relay]\nmode = "enforce"\n'
SRS = "bounces+SRS=czvzs4na=IP=fabrikam.com=bob@contoso.com"
VENDOR = ["--ip", "192.0.2.5", "--mail-from", "app@vendor.example"]


class Gatepost:
    """The command with a configuration and a known SRS secret, on 2024-01-05."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.secret = folder / "srs.secret"
        self.secret.write_text("the first key\n")
        self.secret.chmod(0o600)
        self.configure(ENFORCE)

    def configure(self, more: str) -> None:
        (self._folder / "gatepost.toml").write_text(CONFIG.format(state=self._folder) + more)

    def __call__(self, *arguments: str, at: Optional[str] = "2024-01-05") -> Result:
        dated = ["--at", at] if at else []
        return CliRunner().invoke(main, ["-c", str(self._folder / "gatepost.toml"), "check", *arguments, *dated])


def assert_answer(result: Result, status: int, text: str) -> None:
    assert result.output == text
    assert result.exit_code == status


@pytest.fixture
def gatepost(tmp_path: Path) -> Gatepost:
    return Gatepost(tmp_path)


def test_accepted_p1_and_address_are_relayed(gatepost: Gatepost) -> None:
    result = gatepost("--ip", "192.0.2.5", "--mail-from", "app@contoso.com", "--rcpt", "x@gmail.com")
    assert_answer(result, 0, """\
Client       192.0.2.5
Certificate  none that is trusted
Rule set     2023-11-01

To x@gmail.com: relayed
  Relayed for contoso: P1 is accepted and connector "head office" matches the
  client.

  P1, envelope sender                     P2, header From
  app@contoso.com: contoso.com is an      none seen
  accepted domain of contoso

  Conditions tried
  (1: certificate or P1 in an accepted domain; 2: connector matches the client)
  - Recipient domain gmail.com is no accepted domain and none of
    relay.local_domains: this is relay.
  - P1 domain contoso.com is an accepted domain of contoso: condition 1 holds.
  - Address 192.0.2.5 matches connector "head office" of contoso by
    sender_ip_addresses 192.0.2.0/28: condition 2 holds.

  What happens
  - The MTA takes it; P1 stays as it is.

  Envelope afterwards
    MAIL FROM:<app@contoso.com>
    RCPT TO:<x@gmail.com>
""")


def test_foreign_p1_is_refused(gatepost: Gatepost) -> None:
    result = gatepost(*VENDOR, "--rcpt", "x@gmail.com")
    assert_answer(result, 1, """\
Client       192.0.2.5
Certificate  none that is trusted
Rule set     2023-11-01

To x@gmail.com: refused
  Refused: x@gmail.com is outside, and neither certificate nor P1 is in an
  accepted domain.

  P1, envelope sender                     P2, header From
  app@vendor.example: vendor.example is   none seen
  no accepted domain

  Conditions tried
  (1: certificate or P1 in an accepted domain; 2: connector matches the client)
  - Recipient domain gmail.com is no accepted domain and none of
    relay.local_domains: this is relay.
  - P1 domain vendor.example is no accepted domain: condition 1 fails.
  - Address 192.0.2.5 matches connector "head office" of contoso by
    sender_ip_addresses 192.0.2.0/28: condition 2 holds.
  Condition 1 failed: the P1 domain vendor.example is not accepted, and the
  client presented no trusted certificate. Condition 2 holds: connector "head
  office" of contoso matches the client. An IP address is enough only where P1
  or the recipient is in an accepted domain.

  What to change (any one of these may do)
  - If vendor.example is your own, declare it: [[organization.accepted_domain]]
    domain = "vendor.example" under organization[contoso].
  - Let the application use an accepted P1, such as one in contoso.com. P1 is
    what it says in MAIL FROM; services call it return path or bounce address.
  - Or let the client present a trusted certificate with a name in an accepted
    domain, such as mail.contoso.com (self-signed, expired, or not for client
    authentication is as good as none). If the name is not the CN, put the
    certificate into relay.certificate_folder.
  - Where the application cannot change its P1, let SRS on the host before this
    one rewrite it into an address in contoso.com.

  What happens
  - The recipient is refused with 550 5.7.64 TenantAttribution; Relay Access
    Denied.
""")


def test_foreign_p1_with_certificate_is_rewritten(gatepost: Gatepost) -> None:
    result = gatepost(
        *("--ip", "203.0.113.9", "--certificate", "mail.contoso.com"),
        *("--mail-from", "<bob@fabrikam.com>", "--rcpt", "x@gmail.com"),
    )
    assert_answer(result, 0, """\
Client       203.0.113.9
Certificate  mail.contoso.com
Rule set     2023-11-01

To x@gmail.com: relayed
  Relayed for contoso: its certificate name is accepted and connector "crm"
  matches the client.

  P1, envelope sender                     P2, header From
  bob@fabrikam.com: fabrikam.com is no    none seen
  accepted domain

  Conditions tried
  (1: certificate or P1 in an accepted domain; 2: connector matches the client)
  - Recipient domain gmail.com is no accepted domain and none of
    relay.local_domains: this is relay.
  - Certificate name mail.contoso.com is one label below contoso.com, an
    accepted domain of contoso: condition 1 holds.
  - Certificate name mail.contoso.com matches connector "crm" of contoso by
    tls_sender_certificate_name *.contoso.com: condition 2 holds.

  What happens
  - The MTA takes it, P1 rewritten by SRS.

  Envelope afterwards
    MAIL FROM:<bounces+SRS=czvzs4na=IP=fabrikam.com=bob@contoso.com>
    RCPT TO:<x@gmail.com>
""")


def test_null_sender_without_certificate_is_refused(gatepost: Gatepost) -> None:
    result = gatepost("--ip", "192.0.2.5", "--helo", "mail.contoso.com", "--mail-from", "<>", "--rcpt", "x@gmail.com")
    assert_answer(result, 1, """\
Client       192.0.2.5
Certificate  none that is trusted
HELO         mail.contoso.com (information only, it never counts)
Rule set     2023-11-01

To x@gmail.com: refused
  Refused: x@gmail.com is outside, and mail with a null sender needs a
  certificate in an accepted domain.

  P1, envelope sender                     P2, header From
  <>: the null sender, which is in no     none seen
  accepted domain

  Conditions tried
  (1: certificate or P1 in an accepted domain; 2: connector matches the client)
  - Recipient domain gmail.com is no accepted domain and none of
    relay.local_domains: this is relay.
  - P1 is the null sender <>, which is in no accepted domain: condition 1 fails.
  - Address 192.0.2.5 matches connector "head office" of contoso by
    sender_ip_addresses 192.0.2.0/28: condition 2 holds.
  Condition 1 failed: a null sender never counts as P1, and the client presented
  no trusted certificate. Condition 2 holds: connector "head office" of contoso
  matches the client. An IP address is enough only where P1 or the recipient is
  in an accepted domain.

  What to change
  - Send null-sender mail (NDRs, automatic replies) to outside over a connection
    with a trusted certificate whose name is in an accepted domain, such as
    mail.contoso.com: no P1 or IP address can make up for it.

  What happens
  - The recipient is refused with 550 5.7.64 TenantAttribution; Relay Access
    Denied.
""")


def test_p2_alone_is_refused_since_2023_11_01(gatepost: Gatepost) -> None:
    result = gatepost(*VENDOR, "--header-from", "The Boss <boss@contoso.com>", "--rcpt", "x@gmail.com")
    assert_answer(result, 1, """\
Client       192.0.2.5
Certificate  none that is trusted
Rule set     2023-11-01

To x@gmail.com: refused
  Refused: x@gmail.com is outside, and neither certificate nor P1 is in an
  accepted domain.

  P1, envelope sender                     P2, header From
  app@vendor.example: vendor.example is   boss@contoso.com: contoso.com is an
  no accepted domain                      accepted domain of contoso (P2 let
                                          this message through before
                                          2023-11-01; it does not count any
                                          more)

  Conditions tried
  (1: certificate or P1 in an accepted domain; 2: connector matches the client)
  - Recipient domain gmail.com is no accepted domain and none of
    relay.local_domains: this is relay.
  - P1 domain vendor.example is no accepted domain: condition 1 fails.
  - Address 192.0.2.5 matches connector "head office" of contoso by
    sender_ip_addresses 192.0.2.0/28: condition 2 holds.
  Condition 1 failed: the P1 domain vendor.example is not accepted, and the
  client presented no trusted certificate. Condition 2 holds: connector "head
  office" of contoso matches the client. An IP address is enough only where P1
  or the recipient is in an accepted domain. Before 2023-11-01 its P2 alone
  would have let it through.

  What to change (any one of these may do)
  - If vendor.example is your own, declare it: [[organization.accepted_domain]]
    domain = "vendor.example" under organization[contoso].
  - Let the application use an accepted P1, such as one in contoso.com. P1 is
    what it says in MAIL FROM; services call it return path or bounce address.
  - Or let the client present a trusted certificate with a name in an accepted
    domain, such as mail.contoso.com (self-signed, expired, or not for client
    authentication is as good as none). If the name is not the CN, put the
    certificate into relay.certificate_folder.
  - Where the application cannot change its P1, let SRS on the host before this
    one rewrite it into an address in contoso.com.

  What happens
  - The recipient is refused with 550 5.7.64 TenantAttribution; Relay Access
    Denied.
""")


def test_p2_alone_is_relayed_under_legacy(gatepost: Gatepost) -> None:
    result = gatepost(*VENDOR, "--header-from", "boss@contoso.com", "--rcpt", "x@gmail.com", "--requirements", "legacy")
    assert_answer(result, 0, """\
Client       192.0.2.5
Certificate  none that is trusted
Rule set     legacy

To x@gmail.com: relayed
  Relayed for contoso: P2 alone, which counts under the rule set legacy only, is
  accepted and connector "head office" matches the client.

  P1, envelope sender                     P2, header From
  app@vendor.example: vendor.example is   boss@contoso.com: contoso.com is an
  no accepted domain                      accepted domain of contoso (P2 counts
                                          under the rule set legacy only)

  Conditions tried
  (1: certificate or P1 in an accepted domain; 2: connector matches the client)
  - Recipient domain gmail.com is no accepted domain and none of
    relay.local_domains: this is relay.
  - P1 domain vendor.example is no accepted domain: condition 1 fails.
  - P2 domain contoso.com is an accepted domain of contoso: condition 1 holds.
  - Address 192.0.2.5 matches connector "head office" of contoso by
    sender_ip_addresses 192.0.2.0/28: condition 2 holds.

  What happens
  - The MTA takes it, P1 rewritten by SRS.

  Envelope afterwards
    MAIL FROM:<bounces+SRS=ffl65wqj=IP=vendor.example=app@contoso.com>
    RCPT TO:<x@gmail.com>
""")


def test_inside_recipient_is_no_relay(gatepost: Gatepost) -> None:
    gatepost.configure(ENFORCE + "[egress]\n")
    result = gatepost("--ip", "203.0.113.9", "--mail-from", "bob@fabrikam.com", "--rcpt", "john.work+lists@contoso.com")
    assert_answer(result, 0, """\
Client       203.0.113.9
Certificate  none that is trusted
Rule set     2023-11-01

To john.work+lists@contoso.com: let through, no relay
  No relay: john.work+lists@contoso.com is a recipient of contoso, so P1 and P2
  may be anything.

  P1, envelope sender                     P2, header From
  bob@fabrikam.com: fabrikam.com is no    none seen
  accepted domain

  Conditions tried
  - Recipient domain contoso.com is an accepted domain of contoso: no relay.

  What happens
  - The MTA takes it; P1 stays as it is.
  - If john.work@contoso.com is forwarded to outside, that copy leaves with P1
    john.work+SRS=mfl67d3d=IP=fabrikam.com=bob@contoso.com.

  Envelope afterwards
    MAIL FROM:<bob@fabrikam.com>
    RCPT TO:<john.work+lists@contoso.com>
""")


def test_bounce_to_an_srs_address_goes_to_the_original_sender(gatepost: Gatepost) -> None:
    result = gatepost("--mail-from", "<>", "--rcpt", SRS)
    assert_answer(result, 0, """\
Client       unknown address
Certificate  none that is trusted
Rule set     2023-11-01

To bounces+SRS=czvzs4na=IP=fabrikam.com=bob@contoso.com: let through, no relay
  No relay: bounces+SRS=czvzs4na=IP=fabrikam.com=bob@contoso.com is an SRS
  address made here, and its mail goes to bob@fabrikam.com.

  P1, envelope sender                     P2, header From
  <>: the null sender, which is in no     none seen
  accepted domain

  Conditions tried
  - Recipient domain contoso.com is an accepted domain of contoso: no relay.

  What happens
  - The MTA takes it; P1 stays as it is.

  Envelope afterwards
    MAIL FROM:<>
    RCPT TO:<bob@fabrikam.com>
""")


def test_expired_srs_recipient_is_refused(gatepost: Gatepost) -> None:
    result = gatepost("--mail-from", "", "--rcpt", SRS, at="2024-03-01")
    assert_answer(result, 1, """\
Client       unknown address
Certificate  none that is trusted
Rule set     2023-11-01

To bounces+SRS=czvzs4na=IP=fabrikam.com=bob@contoso.com: refused
  Refused: bounces+SRS=czvzs4na=IP=fabrikam.com=bob@contoso.com has the form of
  this host's SRS addresses, but is not good.

  P1, envelope sender                     P2, header From
  <>: the null sender, which is in no     none seen
  accepted domain

  Conditions tried
  - Recipient domain contoso.com is an accepted domain of contoso: no relay.
  SRS: expired: it is 56 days old, and srs.validity_days is 21.

  What to change
  - Raise srs.validity_days if bounces are to be taken back for longer.

  What happens
  - The recipient is refused with 550 5.1.1 SRS address that has expired.
  - policyd refuses this where smtpd_recipient_restrictions asks it.
""")


def happening(result: Result) -> str:
    """Return what the output says from "What happens" on."""
    return result.output.partition("  What happens\n")[2]


def test_monitor_says_what_enforce_would_do_to_a_refused_recipient(gatepost: Gatepost) -> None:
    gatepost.configure("")
    result = gatepost(*VENDOR, "--rcpt", "x@gmail.com")
    assert "\nTo x@gmail.com: would be refused (mode monitor)\n" in result.output
    assert happening(result) == """\
  - Mode monitor (organization contoso): logged and counted, and let through.
  - In mode enforce: the recipient is refused with 550 5.7.64 TenantAttribution;
    Relay Access Denied.

  Envelope afterwards
    MAIL FROM:<app@vendor.example>
    RCPT TO:<x@gmail.com>
"""
    assert result.exit_code == 1


def test_monitor_says_what_enforce_would_rewrite(gatepost: Gatepost) -> None:
    gatepost.configure("")
    result = gatepost("--certificate", "mail.contoso.com", "--mail-from", "bob@fabrikam.com", "--rcpt", "x@gmail.com")
    assert happening(result) == """\
  - Mode monitor (organization contoso): the MTA takes it and P1 stays. In mode
    enforce SRS rewrites P1.

  Envelope afterwards
    MAIL FROM:<bob@fabrikam.com>
    RCPT TO:<x@gmail.com>

  Envelope in mode enforce
    MAIL FROM:<bounces+SRS=czvzs4na=IP=fabrikam.com=bob@contoso.com>
    RCPT TO:<x@gmail.com>
"""
    assert result.exit_code == 0


def test_a_p1_too_long_for_srs_is_refused_where_there_is_only_the_long_form(gatepost: Gatepost) -> None:
    gatepost.configure(ENFORCE + '[srs]\nform = "long"\n')
    long = "a" * 230 + "@x.example"
    result = gatepost("--ip", "192.0.2.5", "--authenticated", "--mail-from", long, "--rcpt", "x@gmail.com")
    assert "  SRS: P1 must be rewritten, and the SRS address has 276 octets, more than 254.\n" in result.output
    assert happening(result) == """\
  - The recipient is refused with 553 5.1.7 Sender address is too long or
    malformed, so it can't be rewritten for relaying.
"""
    assert result.exit_code == 1


COMPACT = "bounces+SRS=4m22l4so5k3gcxxr=IP@contoso.com"


@pytest.mark.parametrize(
    ("length", "form", "p1"),
    [
        (60, "auto", COMPACT),
        (230, "auto", "bounces+SRS=sivws5wutao63uqx=IP@contoso.com"),
        (60, "long", "bounces+SRS=3vbs2gza=IP=fabrikam.com=" + "a" * 60 + "@contoso.com"),
        (3, "compact", "bounces+SRS=6xtkbaj5ir4i7sq4=IP@contoso.com"),
    ],
)
def test_the_form_of_the_new_p1_follows_its_length_and_the_configuration(
    gatepost: Gatepost, length: int, form: str, p1: str
) -> None:
    gatepost.configure(ENFORCE + f'[srs]\nform = "{form}"\n')
    long = "a" * length + "@fabrikam.com"
    result = gatepost("--certificate", "mail.contoso.com", "--mail-from", long, "--rcpt", "x@gmail.com")
    assert f"    MAIL FROM:<{p1}>\n" in result.output
    assert result.exit_code == 0


def test_a_bounce_to_a_compact_address_goes_to_the_original_sender(gatepost: Gatepost) -> None:
    original = "a" * 60 + "@fabrikam.com"
    store = Store(f"sqlite:///{gatepost.secret.parent}/gatepost.db")
    store.stored(COMPACT[12:28], original, 19800)
    store.close()
    result = gatepost("--mail-from", "<>", "--rcpt", COMPACT)
    assert f"\n    MAIL FROM:<>\n    RCPT TO:<{original}>\n" in result.output
    assert result.exit_code == 0


def test_a_compact_address_that_the_store_does_not_know_is_refused(gatepost: Gatepost) -> None:
    result = gatepost("--mail-from", "<>", "--rcpt", COMPACT)
    assert "  SRS: no original: the store does not know its token; it is" in result.output
    assert " ".join(result.output.partition("What to change\n")[2].partition("\n\n")[0].split()) == (
        '- If another host made it, give both one store.url, of PostgreSQL, or that one srs.form = "long".'
    )
    assert "  - The recipient is refused with 550 5.1.1 SRS address that is not known here.\n" in result.output
    assert result.exit_code == 1


def test_while_the_store_is_away_its_addresses_are_put_off(gatepost: Gatepost) -> None:
    gatepost.configure(ENFORCE + '[store]\nurl = "sqlite:////nowhere/gatepost.db"\n')
    result = gatepost("--mail-from", "<>", "--rcpt", COMPACT)
    assert "  SRS: store /nowhere/gatepost.db: the folder /nowhere does not exist.\n" in result.output
    assert f"\nTo {COMPACT}: put off\n  Put off: " in result.output
    assert happening(result) == """\
  - The recipient is put off with 451 4.3.0 gatepost: its store cannot be asked
    now, please try again later.
"""
    assert result.exit_code == 1


def test_an_srs_address_takes_mail_of_everyone_where_that_is_configured(gatepost: Gatepost) -> None:
    gatepost.configure(ENFORCE + '[srs]\naccept_from = "everyone"\n')
    result = gatepost("--ip", "203.0.113.9", "--mail-from", "carol@adatum.com", "--rcpt", SRS)
    assert "\n    MAIL FROM:<carol@adatum.com>\n    RCPT TO:<bob@fabrikam.com>\n" in result.output
    assert result.exit_code == 0


@pytest.mark.parametrize("more", ['[srs]\nreverse = "milter"\n', "[egress]\n[srs]\n"])
def test_what_is_no_bounce_goes_on_with_an_srs_address_of_its_own(gatepost: Gatepost, more: str) -> None:
    gatepost.configure(ENFORCE + more + 'accept_from = "everyone"\n')
    result = gatepost("--ip", "203.0.113.9", "--mail-from", "carol@adatum.com", "--rcpt", SRS)
    assert result.output.partition("Envelope afterwards\n")[2] == """\
    MAIL FROM:<bounces+SRS=s6src4ob=IP=adatum.com=carol@contoso.com>
    RCPT TO:<bob@fabrikam.com>
"""


def test_it_is_the_milter_that_refuses_where_it_reverses(gatepost: Gatepost) -> None:
    gatepost.configure(ENFORCE + '[srs]\nreverse = "milter"\n')
    result = gatepost("--ip", "203.0.113.9", "--mail-from", "spam@fabrikam.com", "--rcpt", SRS)
    assert "\n  - The milter refuses this at DATA.\n" in result.output


def test_a_sender_that_the_lists_leave_out_keeps_its_p1_and_that_is_said(gatepost: Gatepost) -> None:
    gatepost.configure(ENFORCE + '[srs]\nexclude = ["fabrikam.com"]\n')
    result = gatepost("--certificate", "mail.contoso.com", "--mail-from", "bob@fabrikam.com", "--rcpt", "x@gmail.com")
    assert happening(result) == """\
  - The MTA takes it; P1 stays as it is.
  - SRS leaves P1 alone: fabrikam.com is in srs.exclude.

  Envelope afterwards
    MAIL FROM:<bob@fabrikam.com>
    RCPT TO:<x@gmail.com>
"""


def test_that_spf_may_decide_otherwise_is_said(gatepost: Gatepost) -> None:
    gatepost.configure(ENFORCE + '[srs]\nonly_spf = true\noutgoing_addresses = ["192.0.2.1"]\n')
    result = gatepost("--certificate", "mail.contoso.com", "--mail-from", "bob@fabrikam.com", "--rcpt", "x@gmail.com")
    assert happening(result).startswith("""\
  - The MTA takes it, P1 rewritten by SRS.
  - srs.only_spf: P1 is rewritten only where fabrikam.com publishes an SPF
    record that does not cover srs.outgoing_addresses. No DNS is asked here.
""")


def test_a_non_null_sender_to_an_srs_address_is_refused(gatepost: Gatepost) -> None:
    result = gatepost("--ip", "203.0.113.9", "--mail-from", "spam@fabrikam.com", "--rcpt", SRS)
    assert "  SRS: P1 is spam@fabrikam.com, so this is no bounce.\n" in result.output
    assert happening(result) == """\
  - The recipient is refused with 550 5.7.1 This address takes only bounces
    (null sender).
  - policyd refuses this at DATA where smtpd_data_restrictions asks it; where
    only the maps are asked, the message is taken.
"""
    assert result.exit_code == 1


def test_a_forged_srs_address_is_refused(gatepost: Gatepost) -> None:
    result = gatepost("--mail-from", "<>", "--rcpt", SRS.replace("bob", "eve"))
    assert "  - The recipient is refused with 550 5.1.1 SRS address with a wrong hash.\n" in result.output
    assert "append that key at the end of srs.secret_file" in " ".join(result.output.split())
    assert result.exit_code == 1


def test_an_srs_address_whose_mailbox_looks_like_srs0_is_judged_too(gatepost: Gatepost) -> None:
    result = gatepost("--mail-from", "<>", "--rcpt", "SRS0=x+SRS=czvzs4na=IP=fabrikam.com=bob@contoso.com")
    assert "SRS: wrong hash: no key here made it;" in result.output
    assert result.exit_code == 1


def test_recipients_that_the_milter_must_part_are_named(gatepost: Gatepost) -> None:
    result = gatepost(
        *("--certificate", "mail.contoso.com", "--mail-from", "bob@fabrikam.com"),
        *("--rcpt", "x@gmail.com", "--rcpt", "john@contoso.com"),
    )
    assert result.output.endswith("""
Note: The recipients need different treatment, so in one message the milter
      takes those like the first and answers 452 4.5.3 for the others, which the
      client then sends again by themselves.
""")
    assert result.exit_code == 0


def test_with_an_egress_hop_recipients_of_both_kinds_share_a_message(gatepost: Gatepost) -> None:
    gatepost.configure(ENFORCE + "[egress]\n")
    result = gatepost(
        *("--certificate", "mail.contoso.com", "--mail-from", "bob@fabrikam.com"),
        *("--rcpt", "x@gmail.com", "--rcpt", "john@contoso.com"),
    )
    assert "Note:" not in result.output


def test_policyd_leaves_it_to_postfix_where_no_organization_is_meant(gatepost: Gatepost) -> None:
    gatepost.configure(ENFORCE + 'enforced_by = "policyd"\n')
    result = gatepost("--ip", "203.0.113.9", "--mail-from", "bob@fabrikam.com", "--rcpt", "x@gmail.com")
    assert happening(result) == """\
  - The recipient is left to Postfix's own restrictions.
  - No organization is meant, so policyd leaves it to Postfix
    (reject_unauth_destination).
"""
    assert result.exit_code == 1


def test_policyd_without_an_egress_hop_rewrites_nothing(gatepost: Gatepost) -> None:
    gatepost.configure(ENFORCE + 'enforced_by = "policyd"\n')
    result = gatepost("--certificate", "mail.contoso.com", "--mail-from", "bob@fabrikam.com", "--rcpt", "x@gmail.com")
    assert happening(result) == """\
  - The MTA takes it; P1 stays as it is.
  - P1 leaves as it is: policyd rewrites nothing, and there is no [egress].

  Envelope afterwards
    MAIL FROM:<bob@fabrikam.com>
    RCPT TO:<x@gmail.com>
"""


def test_legacy_says_that_a_refusal_falls_for_the_whole_message(gatepost: Gatepost) -> None:
    result = gatepost(*VENDOR, "--rcpt", "x@gmail.com", "--requirements", "legacy")
    assert happening(result) == """\
  - The recipient is refused with 550 5.7.64 TenantAttribution; Relay Access
    Denied.
  - Under the rule set legacy that falls at the end of the headers, for the
    whole message.
"""


TEMPFAIL = 'action = "tempfail"\n'
QUARANTINE = 'action = "quarantine"\n'
TAG = 'action = "tag"\n'


def test_action_tempfail_puts_off(gatepost: Gatepost) -> None:
    gatepost.configure(ENFORCE + TEMPFAIL)
    result = gatepost(*VENDOR, "--rcpt", "x@gmail.com")
    assert "\nTo x@gmail.com: put off\n" in result.output
    assert happening(result) == """\
  - The recipient is put off with 451 4.7.64 TenantAttribution; Relay Access
    Denied.
"""
    assert result.exit_code == 1


def test_action_quarantine_holds_the_message_with_the_p1_of_relayed_mail(gatepost: Gatepost) -> None:
    gatepost.configure(ENFORCE + QUARANTINE)
    result = gatepost("--ip", "192.0.2.5", "--mail-from", "bob@fabrikam.com", "--rcpt", "x@gmail.com")
    assert "\nTo x@gmail.com: held\n" in result.output
    assert happening(result) == f"""\
  - The whole message is taken and held in the MTA's hold queue (action =
    quarantine), until somebody releases it (postsuper -H) or deletes it
    (postsuper -d).

  Envelope afterwards
    MAIL FROM:<{SRS}>
    RCPT TO:<x@gmail.com>
"""
    assert result.exit_code == 1


def test_action_tag_lets_the_message_through_with_a_header(gatepost: Gatepost) -> None:
    gatepost.configure(ENFORCE + TAG)
    result = gatepost(*VENDOR, "--rcpt", "x@gmail.com")
    assert "\nTo x@gmail.com: let through with a header\n" in result.output
    assert happening(result).startswith("""\
  - The whole message is let through with the header X-Gatepost-Relay: refused;
    reason=nothing-accepted (action = tag).
""")


REWRITE = 'action = "rewrite"\n'


def test_action_rewrite_lets_a_foreign_p1_through_with_an_srs_sender(gatepost: Gatepost) -> None:
    gatepost.configure(ENFORCE + REWRITE)
    result = gatepost(*VENDOR, "--rcpt", "x@gmail.com")
    assert "\nTo x@gmail.com: let through with an SRS sender\n  Mended by SRS: x@gmail.com is outside" in result.output
    assert "Condition 1 failed" in result.output
    assert "What to change" not in result.output
    assert happening(result) == """\
  - The MTA takes it, P1 rewritten by SRS (action = "rewrite"); else the rules
    refuse it.

  Envelope afterwards
    MAIL FROM:<bounces+SRS=ffl65wqj=IP=vendor.example=app@contoso.com>
    RCPT TO:<x@gmail.com>
"""
    assert result.exit_code == 0
    (answer,) = json.loads(gatepost(*VENDOR, "--rcpt", "x@gmail.com", "--json").output)["recipients"]
    assert (answer["result"], answer["refused"], answer["action"]) == ("refuse", False, "mend")


def test_action_rewrite_in_mode_monitor_says_what_enforce_would_mend(gatepost: Gatepost) -> None:
    gatepost.configure("[relay]\n" + REWRITE)
    result = gatepost(*VENDOR, "--rcpt", "x@gmail.com")
    assert "\nTo x@gmail.com: would be let through with an SRS sender (mode monitor)\n" in result.output
    assert "  - In mode enforce: let through, P1 rewritten by SRS" in result.output
    assert result.exit_code == 0


def test_action_rewrite_rejects_a_client_without_connector(gatepost: Gatepost) -> None:
    gatepost.configure(ENFORCE + REWRITE)
    result = gatepost("--ip", "203.0.113.9", "--mail-from", "app@vendor.example", "--rcpt", "x@gmail.com")
    assert "  - The recipient is refused with 550 5.7.64 " in result.output
    assert result.exit_code == 1


def test_client_without_connector_is_told_that_it_needs_one_in_any_case(gatepost: Gatepost) -> None:
    result = gatepost("--ip", "203.0.113.9", "--mail-from", "app@vendor.example", "--rcpt", "x@gmail.com")
    assert result.output.index("What to change (any one of these may do)\n") < result.output.index(CONNECTOR_TOO)
    assert result.output.count("connector as well") == 1


CONNECTOR_TOO = """
  And, in any case
  - The client needs a connector as well: add "203.0.113.9" to
    organization[contoso].connector[head office].sender_ip_addresses.

  What happens
"""


def test_in_mode_monitor_the_action_is_named(gatepost: Gatepost) -> None:
    gatepost.configure("[relay]\n" + QUARANTINE)
    result = gatepost(*VENDOR, "--rcpt", "x@gmail.com")
    assert "\nTo x@gmail.com: would be held (mode monitor)\n" in result.output
    assert "  - In mode enforce: the whole message is taken and held" in result.output


def test_what_comes_from_an_export_is_changed_in_exchange_online(gatepost: Gatepost) -> None:
    exported = '{"DomainName": "corp.contoso.com", "DomainType": "Authoritative"}'
    (gatepost.secret.parent / "domains.json").write_text(exported)
    name = 'name = "contoso"\n'
    configuration = gatepost.secret.parent / "gatepost.toml"
    text = configuration.read_text().replace(name, f'{name}exchange_export = ["domains.json"]\n')
    configuration.write_text(text)
    result = gatepost(*VENDOR, "--rcpt", "x@gmail.com")
    assert (
        "What contoso has from Exchange Online (domains.json) is changed there, and exported anew."
    ) in " ".join(result.output.split())


def test_connector_from_an_export_is_left_alone_and_the_export_not_named(gatepost: Gatepost) -> None:
    exported = (
        '{"Name": "hub", "ConnectorType": "OnPremises", "Enabled": true, "SenderIPAddresses": ["203.0.113.5"], '
        '"TlsSenderCertificateName": null}'
    )
    (gatepost.secret.parent / "connectors.json").write_text(exported)
    (gatepost.secret.parent / "gatepost.toml").write_text(
        f'state_directory = "{gatepost.secret.parent}"\n{ENFORCE}[[organization]]\nname = "contoso"\n'
        'exchange_export = ["connectors.json"]\naccepted_domain = [{domain = "contoso.com", default = true}]\n'
    )
    result = gatepost("--ip", "192.0.2.5", "--mail-from", "app@contoso.com", "--rcpt", "x@gmail.com")
    assert "connector[hub]" not in result.output
    assert "declare [[organization.connector]]" in result.output
    assert "exported anew" not in result.output


def test_bypass_is_named_and_changes_no_verdict(gatepost: Gatepost) -> None:
    (gatepost.secret.parent / "bypass").touch()
    result = gatepost(*VENDOR, "--rcpt", "x@gmail.com")
    assert result.output.endswith("""
BYPASS IS ON: none of this takes effect, all mail passes gatepost untouched
(gatepost bypass off).
""")
    assert result.exit_code == 1


def test_an_srs_address_before_the_first_start_has_a_placeholder_hash(gatepost: Gatepost) -> None:
    gatepost.secret.unlink()
    result = gatepost("--certificate", "mail.contoso.com", "--mail-from", "bob@fabrikam.com", "--rcpt", "x@gmail.com")
    note = " ".join(result.output.partition("\nNote: ")[2].split())
    assert note == (
        f"There is no SRS secret yet ({gatepost.secret}), so the hash of the SRS address is a placeholder."
    )
    assert result.exit_code == 0
    assert not gatepost.secret.exists()


def test_long_addresses_stand_below_each_other_and_unbroken(gatepost: Gatepost) -> None:
    long = "a" * 60 + "@vendor.example"
    result = gatepost("--ip", "192.0.2.5", "--mail-from", long, "--rcpt", "x@gmail.com")
    assert f"  P1, envelope sender  {long}:\n" in result.output
    assert "  P2, header From      none seen\n" in result.output


def test_no_octet_of_an_address_reaches_the_terminal_raw(gatepost: Gatepost) -> None:
    result = gatepost("--ip", "192.0.2.5", "--mail-from", "a\x1b[2J@contoso.com", "--rcpt", "x\x07@gmail.com")
    assert "\x1b" not in result.output
    assert "\x07" not in result.output


def test_json_holds_the_whole_answer(gatepost: Gatepost) -> None:
    result = gatepost(
        *("--ip", "203.0.113.9", "--certificate", "mail.contoso.com", "--mail-from", "bob@fabrikam.com"),
        *("--rcpt", "x@gmail.com", "--json"),
    )
    assert json.loads(result.output) == {
        "client": {
            "ip": "203.0.113.9",
            "helo": None,
            "certificate_names": ["mail.contoso.com"],
            "authenticated": False,
        },
        "mail_from": "bob@fabrikam.com",
        "header_from": [],
        "requirements": "2023-11-01",
        "bypass": False,
        "refused": False,
        "notes": [],
        "recipients": [
            {
                "rcpt": "x@gmail.com",
                "result": "relay",
                "reason": "certificate-accepted",
                "refused": False,
                "action": "rewrite",
                "mode": "enforce",
                "organization": "contoso",
                "connector": "crm",
                "accepted_domain": "contoso.com",
                "reply": None,
                "decision": "Relayed for contoso: its certificate name is accepted and connector \"crm\" matches the "
                "client.",
                "failed": None,
                "p1": "bob@fabrikam.com: fabrikam.com is no accepted domain",
                "p2": "none seen",
                "steps": [
                    "Recipient domain gmail.com is no accepted domain and none of relay.local_domains: this is relay.",
                    "Certificate name mail.contoso.com is one label below contoso.com, an accepted domain of contoso: "
                    "condition 1 holds.",
                    "Certificate name mail.contoso.com matches connector \"crm\" of contoso by "
                    "tls_sender_certificate_name *.contoso.com: condition 2 holds.",
                ],
                "remedies": [],
                "also": [],
                "notes": [],
                "upstream_remedies": [],
                "upstream": None,
                "envelope": {
                    "mail_from": "bounces+SRS=czvzs4na=IP=fabrikam.com=bob@contoso.com",
                    "rcpt": "x@gmail.com",
                },
                "envelope_if_enforced": {
                    "mail_from": "bounces+SRS=czvzs4na=IP=fabrikam.com=bob@contoso.com",
                    "rcpt": "x@gmail.com",
                },
            }
        ],
    }
    assert result.exit_code == 0


def test_json_of_a_refusal_has_the_reply_and_no_envelope(gatepost: Gatepost) -> None:
    result = gatepost(*VENDOR, "--rcpt", "x@gmail.com", "--json")
    (recipient,) = json.loads(result.output)["recipients"]
    assert recipient["reply"] == "550 5.7.64 TenantAttribution; Relay Access Denied"
    assert recipient["envelope"] is None
    assert result.exit_code == 1


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (["--mail-from", "a@b.example"], "Error: Missing option '--rcpt'."),
        (["--rcpt", "a@b.example"], "Error: Missing option '--mail-from'."),
        (["--ip", "192.0.2", "--mail-from", "", "--rcpt", "a@b.example"], 'Error: --ip: "192.0.2" is no IP address'),
        (["--mail-from", "", "--rcpt", "bob"], 'Error: --rcpt: "bob" has no domain'),
    ],
)
def test_wrong_usage_ends_with_64(gatepost: Gatepost, arguments: list[str], error: str) -> None:
    result = gatepost(*arguments)
    assert result.output.splitlines()[-1] == error
    assert result.exit_code == 64


def test_a_wrong_configuration_ends_with_78_and_every_problem(gatepost: Gatepost) -> None:
    gatepost.configure('[relay]\nmod = "enforce"\n[srs]\nhash_length = 1\n')
    result = gatepost(*VENDOR, "--rcpt", "x@gmail.com")
    assert result.output == (
        'gatepost.toml: relay.mod: unknown key, did you mean "mode"?\n'
        "gatepost.toml: srs.hash_length: 1 is not in the range 5 to 52\n"
    )
    assert result.exit_code == 78


def test_a_mode_that_is_going_to_change_is_named_with_its_moment(gatepost: Gatepost) -> None:
    gatepost.configure("[relay]\nenforce_from = 2999-12-01T10:00:00+01:00\n")
    output = " ".join(gatepost(*VENDOR, "--rcpt", "x@gmail.com").output.split())
    assert "would be refused (mode monitor)" in output
    assert "The mode is enforce from 1 December 2999, 09:00 UTC on (enforce_from)." in output


def test_on_a_day_after_enforce_from_the_mode_is_enforce(gatepost: Gatepost) -> None:
    gatepost.configure("[relay]\nenforce_from = 2999-12-01T10:00:00+01:00\n")
    result = gatepost(*VENDOR, "--rcpt", "x@gmail.com", at="2999-12-02")
    assert "\nTo x@gmail.com: refused\n" in result.output
    assert "enforce_from" not in result.output
