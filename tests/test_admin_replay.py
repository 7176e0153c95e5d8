# SPDX-License-Identifier: GPL-3.0-or-later
"""`gatepost replay` says who would have been refused, and counts apart what clients did not send."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Optional

import pytest
from click.testing import CliRunner, Result

from gatepost.admin.authority import Authority
from gatepost.admin.command import main

DATA = Path(__file__).parent / "data/replay"
CONFIG = """
state_directory = "FOLDER"
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
tls_sender_certificate_name = "crm.contoso.com"
[relay]
local_domains = ["mail.contoso.com", "forward.example"]
"""
FABRIKAM = """
[[organization]]
name = "fabrikam"
[[organization.accepted_domain]]
domain = "fabrikam.com"
default = true
[[organization.connector]]
name = "office"
sender_ip_addresses = ["203.0.113.0/28"]
"""
UPSTREAM = '[upstream]\nsender_ip_addresses = ["203.0.113.5"]\n[egress]\n'
SRS_DOMAIN = '[[organization.accepted_domain]]\ndomain = "srs.contoso.com"\n'


@pytest.fixture
def configuration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv("COLUMNS", raising=False)
    return configured(tmp_path / "gatepost.toml", CONFIG)


def configured(path: Path, text: str) -> Path:
    path.write_text(text.replace("FOLDER", f"{path.parent}/state"))
    return path


def with_upstream() -> str:
    with_srs_domain = CONFIG.replace('"contoso"', '"contoso"\nsrs_domain = "srs.contoso.com"', 1)
    return with_srs_domain.replace("[relay]", f"{SRS_DOMAIN}[relay]") + UPSTREAM


def replay(configuration: Path, *arguments: str, log: Optional[str] = None) -> Result:
    files = ["-"] if log is not None else []
    octets = None if log is None else log.encode("utf-8", "surrogateescape")
    result = CliRunner().invoke(main, ["-c", str(configuration), "replay", *files, *arguments], input=octets)
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def plain(configuration: Path, *, log: str) -> str:
    """Return the output for a person, on one line."""
    return " ".join(replay(configuration, log=log).output.split())


def counted(configuration: Path, *arguments: str, log: Optional[str] = None) -> Any:
    result = replay(configuration, "--json", *arguments, log=log)
    assert result.exit_code == 0, result.output
    return json.loads(result.output)


def message(
    queue_id: str, mail_from: str = "bob@fabrikam.com", *rcpts: str, client: str = "app.contoso.com[192.0.2.5]"
) -> str:
    """Return the lines of a message."""
    recipients = rcpts or ("x@example.com",)
    lines = [
        f"smtpd[1]: {queue_id}: client={client}",
        f"cleanup[2]: {queue_id}: message-id=<>",
        f"qmgr[3]: {queue_id}: from=<{mail_from}>, size=308, nrcpt={len(recipients)} (queue active)",
        *(
            f"smtp[4]: {queue_id}: to=<{rcpt}>, relay=mx.example.com[198.51.100.1]:25, delay=0.1, delays=0/0/0/0.1, "
            "dsn=2.0.0, status=sent (250 Ok)"
            for rcpt in recipients
        ),
        f"qmgr[3]: {queue_id}: removed",
    ]
    return "".join(f"Nov 22 07:15:17 mail postfix/{line}\n" for line in lines)


def test_group_has_host_p1_domain_reason_samples_and_remedy(configuration: Path) -> None:
    log = "".join(message(f"4C0D51A2B{number}", "bob@fabrikam.com", "x@example.com") for number in range(5))
    found = counted(configuration, log=log)
    assert (found["messages"], found["recipients"], found["refused"]["messages"]) == (5, 5, 5)
    (group,) = found["refused"]["groups"]
    assert (group["ip"], group["name"], group["p1_domain"]) == ("192.0.2.5", "app.contoso.com", "fabrikam.com")
    assert (group["organization"], group["reason"], group["messages"]) == ("contoso", "nothing-accepted", 5)
    assert [sample["queue_id"] for sample in group["samples"]] == ["4C0D51A2B0", "4C0D51A2B1", "4C0D51A2B2"]
    assert group["samples"][0] == {
        **{"queue_id": "4C0D51A2B0", "time": "Nov 22 07:15:17", "mail_from": "bob@fabrikam.com"},
        **{"rcpt": "x@example.com", "outcome": "sent", "size_bytes": 308},
    }
    assert group["problem"].startswith("Condition 1 failed: the P1 domain fabrikam.com is not accepted")
    assert group["remedies"][0].startswith("If fabrikam.com is your own, declare it")


def test_message_counts_once_and_each_recipient_by_its_own_verdict(configuration: Path) -> None:
    found = counted(
        configuration, log=message("4C0D51A2B3", "bob@fabrikam.com", "x@example.com", "y@example.com", "m@contoso.com")
    )
    assert (found["messages"], found["recipients"], found["inside"]) == (1, 3, 1)
    assert (found["refused"]["messages"], found["refused"]["recipients"]) == (1, 2)


@pytest.mark.parametrize(
    ("mail_from", "client", "reason"),
    [
        ("", "app.contoso.com[192.0.2.5]", "null-sender-without-certificate"),
        ("app@contoso.com", "unknown[198.51.100.7]", "no-connector"),
        ("app@sub.contoso.com", "app.contoso.com[192.0.2.5]", "nothing-accepted"),
        ("root", "app.contoso.com[192.0.2.5]", "nothing-accepted"),
        ("bob@fabrikam.com", "unknown[unknown]", "nothing-accepted"),
    ],
)
def test_reason_is_that_of_the_rule(configuration: Path, mail_from: str, client: str, reason: str) -> None:
    found = counted(configuration, log=message("4C0D51A2B3", mail_from, client=client))
    assert [item["reason"] for item in found["refused"]["by_reason"]] == [reason]


def test_clients_and_domains_do_not_share_a_verdict(configuration: Path) -> None:
    """Verdicts are remembered, by what they depend on."""
    log = (
        message("4C0D51A2B1", "app@contoso.com", "x@example.com")
        + message("4C0D51A2B2", "app@contoso.com", "x@example.com", client="unknown[198.51.100.7]")
        + message("4C0D51A2B3", "app@contoso.com", "m@contoso.com", client="unknown[198.51.100.7]")
        + message("4C0D51A2B4", "", "x@example.com")
        + message("4C0D51A2B5", "app@vendor.example", "x@example.com")
        + message("4C0D51A2B6", "APP@CONTOSO.COM", "x@example.com")
        + message("4C0D51A2B7", "app@contoso.com", "root")
    )
    found = counted(configuration, log=log)
    ids = {sample["queue_id"] for group in found["refused"]["groups"] for sample in group["samples"]}
    assert ids == {"4C0D51A2B2", "4C0D51A2B4", "4C0D51A2B5"}
    assert (found["inside"], found["relayed"]) == (2, 2)


def rejected(rcpt: str, client: str = "app.contoso.com[192.0.2.5]") -> str:
    """Return the line of a recipient that Postfix does not take."""
    return (
        f"Nov 22 07:15:17 mail postfix/smtpd[1]: NOQUEUE: reject: RCPT from {client}: 554 5.7.1 <{rcpt}>: Relay access "
        f"denied; from=<bob@fabrikam.com> to=<{rcpt}> proto=ESMTP helo=<app>\n"
    )


def test_what_the_mta_rejects_counts_as_rejected_only(configuration: Path) -> None:
    log = message("4C0D51A2B3") + 3 * rejected("x@example.com") + rejected("nobody@contoso.com")
    found = counted(configuration, log=log)
    assert (found["messages"], found["recipients"], found["inside"], found["relayed"]) == (1, 1, 0, 0)
    assert (found["refused"]["messages"], found["rejected"]["recipients"]) == (1, 3)
    assert " 100 %   192.0.2.5 " in replay(configuration, log=log).output


def test_log_with_cr_lf_is_read_like_any_other(configuration: Path) -> None:
    log = message("4C0D51A2B3")
    assert counted(configuration, log=log.replace("\n", "\r\n")) == counted(configuration, log=log)


def test_what_policyd_leaves_to_postfix_is_not_refused(configuration: Path) -> None:
    configured(configuration, CONFIG.replace("[relay]", '[relay]\nenforced_by = "policyd"'))
    log = message("4C0D51A2B3", client="unknown[198.51.100.7]") + message("4C0D51A2B4")
    found = counted(configuration, log=log)
    assert (found["left_to_mta"], found["relayed"]) == (1, 0)
    assert [group["ip"] for group in found["refused"]["groups"]] == ["192.0.2.5"]
    assert "policyd leaves it to Postfix (reject_unauth_destination): 1 recipient." in " ".join(
        replay(configuration, log=log).output.split()
    )


def test_held_message_is_judged(configuration: Path) -> None:
    lines = message("4C0D51A2B3").splitlines(keepends=True)
    held = (
        "Nov 22 07:15:17 mail postfix/cleanup[2]: 4C0D51A2B3: hold: header Subject: x from app.contoso.com[192.0.2.5]; "
        "from=<bob@fabrikam.com> to=<x@example.com> proto=ESMTP helo=<app>: x\n"
    )
    found = counted(configuration, log=lines[0] + held + lines[1])
    assert (found["refused"]["messages"], found["left_out"]["incomplete"]) == (1, 0)
    assert found["outcomes"] == {"held": 1}


def test_held_message_of_which_no_recipient_is_logged_could_not_be_judged(configuration: Path) -> None:
    lines = message("4C0D51A2B3").splitlines(keepends=True)
    held = (
        "Nov 22 07:15:17 mail postfix/smtpd[1]: 4C0D51A2B3: hold: DATA from app.contoso.com[192.0.2.5]: "
        "<bob@fabrikam.com>: Sender address triggers HOLD action; from=<bob@fabrikam.com> proto=ESMTP helo=<app>\n"
    )
    found = counted(configuration, log=lines[0] + held + lines[1])
    assert (found["messages"], found["left_out"]["incomplete"], found["left_out"]["not_judged"]) == (0, 1, 1)


def test_connector_that_is_needed_in_any_case_is_said(configuration: Path) -> None:
    log = message("4C0D51A2B3", client="unknown[198.51.100.7]")
    (group,) = counted(configuration, log=log)["refused"]["groups"]
    assert "connector" in group["also"][0]
    assert "\n  and, in any case:\n  - " in replay(configuration, log=log).output


def test_certificate_without_known_name_is_told_by_its_fingerprint(configuration: Path) -> None:
    client = "unknown[198.51.100.7]"
    session = (
        f"{client}: subject_CN=, issuer=CA, fingerprint=46:06:AA, pkey_fingerprint=BB",
        f"Trusted TLS connection established from {client}: TLSv1.3 with cipher X (256/256 bits)",
    )
    log = "".join(f"Nov 22 07:15:17 mail postfix/smtpd[1]: {line}\n" for line in session)
    (group,) = counted(configuration, log=log + message("4C0D51A2B3", client=client))["refused"]["groups"]
    assert (group["certificate_names"], group["fingerprint"]) == ([], "46:06:AA")


@pytest.mark.parametrize("action", ["tempfail", "quarantine", "tag"])
def test_action_is_said_where_it_is_no_rejection(configuration: Path, action: str) -> None:
    log = message("4C0D51A2B3")
    assert "(action =" not in replay(configuration, log=log).output
    configured(configuration, CONFIG.replace("[relay]", f'[relay]\naction = "{action}"'))
    output = " ".join(replay(configuration, log=log).output.split())
    assert output.count(f'(action = "{action}")') == 1
    assert counted(configuration, log=log)["actions"] == {"contoso": action}


@pytest.mark.parametrize(("columns", "width"), [(None, 80), ("60", 60), ("200", 80)])
def test_prose_is_as_wide_as_columns_says_80_at_most(
    configuration: Path, monkeypatch: pytest.MonkeyPatch, columns: Optional[str], width: int
) -> None:
    if columns:
        monkeypatch.setenv("COLUMNS", columns)
    output = replay(configuration, log=message("4C0D51A2B3")).output
    prose = [
        line for line in output.splitlines() if " from=<" not in line and not line.startswith((" " * 5, "Mess", "─"))
    ]
    assert width - 15 < max(map(len, prose)) <= width


def test_identifiers_are_not_folded(configuration: Path) -> None:
    client, fingerprint = "unknown[198.51.100.7]", ":".join(32 * ["A1"])
    session = f"{client}: subject_CN=, issuer=CA, fingerprint={fingerprint}, pkey_fingerprint=BB"
    trusted = f"Trusted TLS connection established from {client}: TLSv1.3 with cipher X (256/256 bits)"
    log = "".join(f"Nov 22 07:15:17 mail postfix/smtpd[1]: {line}\n" for line in (session, trusted))
    domain = "a-department." * 12 + "fabrikam.com"
    output = replay(configuration, log=log + message("4C0D51A2B3", f"bob@{domain}", client=client)).output
    assert fingerprint in output
    assert output.count(domain) >= 3


def test_certificate_known_by_fingerprint_only_belongs_into_the_folder_first(configuration: Path) -> None:
    client = "app.contoso.com[192.0.2.5]"
    session = f"{client}: subject_CN=, issuer=CA, fingerprint=46:06:AA, pkey_fingerprint=BB"
    trusted = f"Trusted TLS connection established from {client}: TLSv1.3 with cipher X (256/256 bits)"
    log = "".join(f"Nov 22 07:15:17 mail postfix/smtpd[1]: {line}\n" for line in (session, trusted))
    (group,) = counted(configuration, log=log + message("4C0D51A2B3"))["refused"]["groups"]
    assert group["remedies"][0].startswith(
        "Put the client's certificate, without its key, into relay.certificate_folder"
    )


def test_log_without_a_line_on_tls_makes_upper_limits(configuration: Path) -> None:
    log = message("4C0D51A2B3")
    assert "certificates are not known, and these numbers are upper limits" in plain(configuration, log=log)
    assert counted(configuration, log=log)["tls_logged"] is False
    assert "upper limits" not in plain(configuration, log=message("4C0D51A2B3", "app@contoso.com"))
    tls = "Anonymous TLS connection established from a[192.0.2.9]: TLSv1.3 with cipher X (256/256 bits)"
    assert "upper limits" not in plain(configuration, log=f"Nov 22 07:15:17 mail postfix/smtpd[1]: {tls}\n{log}")


def test_hosts_with_the_same_problem_share_a_block(configuration: Path) -> None:
    log = "".join(message(f"4C0D51A2B{number}", client=f"unknown[192.0.2.{number}]") for number in range(1, 6))
    output = replay(configuration, log=log).output
    assert output.count("Condition 1 failed") == 1
    assert "192.0.2.1, … (5 hosts), P1 domain fabrikam.com: 5 messages\n" in output


def test_all_addresses_are_there_to_copy_into_a_list(configuration: Path) -> None:
    numbers = range(1, 6)
    log = "".join(message(f"4C0D51A2B{number}", client=f"unknown[198.51.100.{number}]") for number in numbers)
    output = plain(configuration, log=log)
    assert "add " + ", ".join(f'"198.51.100.{number}"' for number in numbers) + " to " in output
    assert "no enabled connector matches address 198.51.100.1, … (no trusted certificate)" in output


def test_addresses_in_the_advice_for_several_hosts_are_of_all(configuration: Path) -> None:
    """Those of 198.51.100.71, which begins like the other, are its own."""
    log = "".join(message(f"4C0D51A2B{n}", client=f"unknown[198.51.100.{ip}]") for n, ip in enumerate((7, 71)))
    output = plain(configuration, log=log)
    assert 'add "198.51.100.7", "198.51.100.71" to ' in output
    assert "address 198.51.100.7, 198.51.100.71 (no trusted certificate)" in output


def test_what_action_rewrite_mends_is_no_refusal(configuration: Path) -> None:
    configured(configuration, CONFIG.replace("[relay]", '[relay]\naction = "rewrite"\nmode = "monitor"'))
    log = message("4C0D51A2B3") + message("4C0D51A2B4", "") + message("4C0D51A2B5", client="unknown[198.51.100.7]")
    found = counted(configuration, log=log)
    assert (found["refused"]["messages"], found["mended"]["messages"], found["relayed"]) == (2, 1, 0)
    assert found["mended"]["groups"][0]["p1_domain"] == "fabrikam.com"
    output = plain(configuration, log=log)
    assert 'Would be mended: relayed with an SRS address (action = "rewrite"): 1 message.' in output
    assert output.count("P1 domain fabrikam.com: 1 message") == 1  # that of the other host


def test_organization_that_is_not_found_is_the_only_one(configuration: Path) -> None:
    log = message("4C0D51A2B3", client="unknown[198.51.100.7]")
    assert " 1   contoso        nothing-accepted" in replay(configuration, log=log).output
    assert counted(configuration, "--organization", "contoso", log=log)["refused"]["messages"] == 1
    configured(configuration, CONFIG + FABRIKAM)
    log = message("4C0D51A2B3", "bob@vendor.example", client="unknown[198.51.100.7]")
    assert " 1   none found     nothing-accepted" in replay(configuration, log=log).output


def test_number_of_one_is_in_the_singular(configuration: Path) -> None:
    log = "".join(message("4C0D51A2B3").splitlines(keepends=True)[2:]) + message("4C0D51A2B4")
    assert "amid them: 1 message, of which 1" in " ".join(replay(configuration, log=log).output.split())


def test_long_local_parts_are_cut_and_domains_are_not(configuration: Path) -> None:
    log = message("4C0D51A2B3", "p" * 900 + "@fabrikam.com", "q" * 900 + "@example.com")
    (group,) = counted(configuration, log=log)["refused"]["groups"]
    assert group["samples"][0]["mail_from"] == "p" * 64 + "@fabrikam.com"
    assert group["samples"][0]["rcpt"] == "q" * 64 + "@example.com"


def test_certificate_that_the_log_does_not_name_is_counted_apart(configuration: Path) -> None:
    found = counted(configuration, str(DATA / "long-ids.log"))
    assert found["certificate_unnamed"]["messages"] == 3
    assert "1,peercert" in found["certificate_unnamed"]["groups"][0]["problem"]
    assert found["refused"]["messages"] == 5


def test_certificate_that_the_log_names_counts(configuration: Path) -> None:
    found = counted(configuration, str(DATA / "certificates.log"))
    assert found["certificate_unnamed"]["messages"] == 0
    assert found["refused"]["messages"] == 6  # the one whose certificate has no CN, too


def test_names_of_a_certificate_in_the_folder_count_by_its_fingerprint_r8(configuration: Path, tmp_path: Path) -> None:
    crm = Authority(tmp_path / "tls").issue(None, ["crm.contoso.com"])  # a SAN only
    client = "unknown[198.51.100.7]"
    session = (
        f"{client}: subject_CN=, issuer=Sandbox CA, fingerprint={crm.fingerprint}, pkey_fingerprint=AA:BB",
        f"Trusted TLS connection established from {client}: TLSv1.3 with cipher X (256/256 bits)",
    )
    log = "".join(f"Nov 22 07:15:17 mail postfix/smtpd[1]: {line}\n" for line in session)
    log += message("4C0D51A2B3", "bob@fabrikam.com", client=client)
    assert counted(configuration, log=log)["refused"]["messages"] == 1
    (tmp_path / "certificates").mkdir()
    (tmp_path / "certificates/crm.pem").write_bytes(crm.certificate.read_bytes())
    found = counted(configuration, log=log)
    assert (found["refused"]["messages"], found["relayed"]) == (0, 1)


def test_what_the_mta_rejects_anyway_is_in_no_table(configuration: Path) -> None:
    found = counted(configuration, str(DATA / "long-ids.log"))
    assert found["rejected"]["recipients"] == 2
    assert found["outcomes"]["rejected"] == 2


def test_bounces_hops_and_incomplete_messages_are_counted_apart(configuration: Path) -> None:
    found = counted(configuration, str(DATA / "filters.log"))
    assert found["left_out"]["hops"] == 5
    assert found["messages"] == 7
    found = counted(configuration, log="".join(message("4C0D51A2B3").splitlines(keepends=True)[2:]))
    assert (found["messages"], found["left_out"]["incomplete"], found["left_out"]["not_judged"]) == (0, 1, 1)
    assert counted(configuration, str(DATA / "long-ids.log"))["left_out"]["made_here"] == 4


def test_log_of_sendmail(configuration: Path) -> None:
    found = counted(configuration, str(DATA / "sendmail.log"))
    assert found["refused"]["messages"] == 2
    assert found["refused"]["by_host"] == [
        {"ip": "192.0.2.5", "name": "app.contoso.com", "messages": 2, "recipients": 4}
    ]


def test_p1_that_srs_rewrote_here_is_judged_as_it_was(configuration: Path) -> None:
    (configuration.parent / "state").mkdir()
    (configuration.parent / "state/srs.secret").write_bytes(b"a secret that is long enough\n")
    (configuration.parent / "state/srs.secret").chmod(0o600)
    made = CliRunner().invoke(
        main, ["-c", str(configuration), "srs", "forward", "bob@fabrikam.com", "--at", "2026-01-05"]
    )
    address = made.output.split()[-1]
    assert "+SRS=" in address
    found = counted(configuration, log=message("4C0D51A2B3", address))
    assert found["p1_before_srs"] == {"known": 1, "unknown": 0}
    assert found["refused"]["groups"][0]["p1_domain"] == "fabrikam.com"


def test_srs_address_by_an_unknown_key_is_said(configuration: Path) -> None:
    log = message("4C0D51A2B3", "bounces+SRS=abcdefgh=AA=fabrikam.com=bob@contoso.com")
    assert counted(configuration, log=log)["p1_before_srs"] == {"known": 0, "unknown": 1}
    assert "SRS address in a domain of yours" in " ".join(replay(configuration, log=log).output.split())


def test_legacy_rule_set_cannot_be_told_without_p2(configuration: Path) -> None:
    configured(configuration, CONFIG.replace("[relay]", '[relay]\nrequirements = "legacy"'))
    found = counted(configuration, log=message("4C0D51A2B3"))
    assert (found["refused"]["messages"], found["p2_unseen"]["messages"]) == (0, 1)
    assert "P2SenderAttribution" in replay(configuration, log=message("4C0D51A2B3")).output


def test_upstream_refusals_have_their_own_heading(configuration: Path) -> None:
    """A null sender to outside that this host lets through, made here or by a client with a certificate."""
    configured(configuration, with_upstream())
    bounce = "".join(message("4C0D51A2B3", "").splitlines(keepends=True)[1:])
    found = counted(configuration, log=bounce + message("4C0D51A2B4", "app@contoso.com"))
    assert found["refused"]["messages"] == 0
    assert found["upstream"]["messages"] == 1
    assert found["upstream"]["by_reason"][0]["reason"] == "null-sender-without-certificate"
    assert "Would be refused by Exchange Online" in replay(configuration, log=bounce).output


def test_upstream_is_asked_as_in_mode_enforce(configuration: Path) -> None:
    """What SRS makes acceptable there is no refusal, and until then it is one."""
    configured(configuration, with_upstream())
    log = message("4C0D51A2B3", client="app.contoso.com[192.0.2.5], sasl_method=PLAIN, sasl_username=mary")
    found = counted(configuration, log=log)
    assert (found["relayed"], found["upstream"]["messages"], found["upstream_until_enforce"]) == (1, 0, 1)
    said = "Refused by Exchange Online only until mode enforce rewrites it: 1 message."
    assert said in plain(configuration, log=log)
    configured(configuration, with_upstream().replace("[relay]", '[relay]\nmode = "enforce"'))
    assert counted(configuration, log=log)["upstream_until_enforce"] == 0
    assert said not in plain(configuration, log=log)


def test_what_the_next_hop_refused_is_counted_and_its_ndr_is_not_judged(configuration: Path) -> None:
    configured(configuration, with_upstream())
    denied = message("4C0D51A2B3").replace("dsn=2.0.0, status=sent", "dsn=5.7.64, status=bounced")
    lines = denied.splitlines(keepends=True)
    ndr = message("4C0D51A2B4", "", "bob@fabrikam.com").splitlines(keepends=True)[1:]
    notice = "Nov 22 07:15:17 mail postfix/bounce[5]: 4C0D51A2B3: sender non-delivery notification: 4C0D51A2B4\n"
    log = "".join([*lines[:-1], ndr[0], notice, *ndr[1:], lines[-1]])
    found = counted(configuration, log=log)
    assert found["denied_by_next_hop"] == {"messages": 1, "ndrs_about_them": 1}
    assert (found["refused"]["messages"], found["upstream"]["messages"], found["left_out"]["made_here"]) == (1, 0, 1)
    output = plain(configuration, log=log)
    assert "In the log itself, the next hop refused with 5.7.64 (dsn=5.7.64): 1 message." in output
    assert "NDRs about these, which cease with the refusals and are not judged: 1 message." in output
    other = log.replace("dsn=5.7.64", "dsn=5.1.1")
    assert counted(configuration, log=other)["upstream"]["messages"] == 1


def test_bounce_made_here_shares_a_block_with_a_client_s(configuration: Path) -> None:
    configured(configuration, with_upstream())
    bounce = "".join(message("4C0D51A2B3", "").splitlines(keepends=True)[1:])
    client = "app.contoso.com[192.0.2.5], sasl_method=PLAIN, sasl_username=mary"
    output = replay(configuration, log=bounce + message("4C0D51A2B4", "", client=client)).output
    assert "this host, 192.0.2.5 (2 hosts), P1 domain <>: 2 messages\n" in output
    assert " 2            2   contoso        null-sender-without-certificate" in output


def test_copy_that_an_alias_sends_on_is_told_under_upstream(configuration: Path) -> None:
    configured(configuration, with_upstream())
    lines = message("4C0D51A2B3", "", "john.home@example.com", client="mx.fabrikam.com[198.51.100.7]")
    found = counted(configuration, log=lines.replace(", relay=", ", orig_to=<john@contoso.com>, relay=", 1))
    assert (found["refused"]["messages"], found["inside"], found["upstream"]["messages"]) == (0, 1, 1)
    (group,) = found["upstream"]["groups"]
    assert group["samples"][0]["rcpt"] == "john.home@example.com"
    assert group["problem"].startswith("At Exchange Online: refused with 550 5.7.64, because the sender is null")
    assert "certificate" in group["remedies"][0]


def test_organization_limits_what_is_counted_as_refused(configuration: Path) -> None:
    configured(configuration, CONFIG + FABRIKAM)
    log = message("4C0D51A2B3", "") + message("4C0D51A2B4", "", client="x.fabrikam.com[203.0.113.1]")
    assert counted(configuration, log=log)["refused"]["messages"] == 2
    found = counted(configuration, "--organization", "fabrikam", log=log)
    assert [group["ip"] for group in found["refused"]["groups"]] == ["203.0.113.1"]
    assert replay(configuration, "--organization", "tailspin", log=log).exit_code == 64


def test_tables_are_as_long_as_told(configuration: Path) -> None:
    log = "".join(message(f"4C0D51A2B{number}", f"a@v{number}.example") for number in range(9))
    found = counted(configuration, "--top", "4", log=log)
    assert len(found["refused"]["groups"]) == len(found["refused"]["by_p1_domain"]) == 4
    assert found["refused"]["other_groups"] == 5
    assert "… and 5 other groups (--top)." in replay(configuration, "--top", "4", log=log).output


def test_report_for_a_person(configuration: Path) -> None:
    output = replay(configuration, str(DATA / "certificates.log")).output
    assert output.startswith(
        "Of 14 messages to 18 recipients that clients sent between Nov 22 07:21:02 and\n"
        "Nov 22 07:21:04, 6 (6 recipients, from 3 hosts) would be refused.\n"
    )
    assert "203.0.113.9 (crm.contoso.com), P1 domain fabrikam.com: 3 messages\n  Condition 1 failed" in output
    assert "    Nov 22 07:21:02 C8378236130 from=<bob@fabrikam.com> to=<x@example.com> sent\n" in output


def test_log_without_refusals_says_so(configuration: Path) -> None:
    output = replay(configuration, log=message("4C0D51A2B3", "app@contoso.com")).output
    assert output.startswith("None of 1 message that clients sent")


def test_control_characters_do_not_reach_the_terminal(configuration: Path) -> None:
    log = message("4C0D51A2B3", "a\x1b[2J\udcff@fabrikam.com", "\x1b]0;x\x07@example.com", client="h\x1b[1m[192.0.2.5]")
    log = log.replace("h\x1b[1m[192", "h\x1b1m[192")
    for output in (replay(configuration, log=log).output, replay(configuration, "--json", log=log).output):
        assert "\x1b" not in output
        assert "\udcff" not in output
        assert "@fabrikam.com" in output


def test_many_groups_are_put_together(configuration: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from gatepost.admin import replay_count

    monkeypatch.setattr(replay_count, "GROUPS", 5)
    log = "".join(message(f"4C0D51A{number:04}", f"a@v{number}.example") for number in range(30))
    found = counted(configuration, log=log)
    assert found["refused"]["messages"] == 30
    assert "and more other groups" in replay(configuration, log=log).output


def test_file_that_is_no_mail_log_is_wrong_data(configuration: Path) -> None:
    result = replay(configuration, log="Nov 22 07:15:17 mail cron[1]: hello\n")
    assert result.exit_code == 65


def test_missing_file_is_no_input(configuration: Path, tmp_path: Path) -> None:
    result = replay(configuration, str(tmp_path / "mail.log"))
    assert result.exit_code == 66
    assert "mail.log: No such file or directory" in result.output


def test_nothing_is_written(configuration: Path) -> None:
    before = sorted(configuration.parent.iterdir())
    counted(configuration, str(DATA / "filters.log"))
    assert sorted(configuration.parent.iterdir()) == before
