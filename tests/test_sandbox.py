# SPDX-License-Identifier: GPL-3.0-or-later
"""The private Postfix, its next hop and its certificates, which the end-to-end tests and the demo stand on."""

from __future__ import annotations

import os
import re
import smtplib
from collections.abc import Iterator
from pathlib import Path

import pytest

from gatepost.admin.authority import Authority
from gatepost.admin.logfile import SandboxError
from gatepost.admin.nexthop import NextHop
from gatepost.admin.sandbox import Postfix, free_port, temporary_root

pytestmark = pytest.mark.skipif(os.getuid() != 0, reason="a chrooted Postfix can only be run by root")

MESSAGE = b"From: a\r\nMessage-Id: <1@contoso.com>\r\n\r\nhello\r\n"


@pytest.fixture
def root() -> Iterator[Path]:
    with temporary_root() as folder:
        yield folder


@pytest.fixture
def internet() -> Iterator[NextHop]:
    with NextHop() as server:
        yield server


def relayhost(server: NextHop) -> str:
    return f"relayhost = [127.0.0.1]:{server.address[1]}\n"


def send(postfix: Postfix, mail_from: str, rcpt_to: list[str], message: bytes = MESSAGE) -> None:
    with smtplib.SMTP(*postfix.smtp) as client:
        client.sendmail(mail_from, rcpt_to, message)


def processes_below(root: Path) -> list[str]:
    """Command lines of the processes whose current folder lies in *root*, as every Postfix daemon's does."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            folder, command = os.readlink(process / "cwd"), (process / "cmdline").read_bytes()
        except OSError:
            continue
        if folder.startswith(str(root)):
            found.append(command.decode())
    return found


def test_message_reaches_the_next_hop_byte_for_byte_below_its_received_line(root: Path, internet: NextHop) -> None:
    message = b"From: bob\r\n\r\n" + b"x" * 998 + b"\r\n.dot\r\n\xe4\xff\r\n\r\n"
    with Postfix(root, main_cf=relayhost(internet) + "local_header_rewrite_clients =\n") as postfix:
        with smtplib.SMTP(*postfix.smtp) as client:
            client.sendmail("bob@contoso.com", ["x@example.com"], message, mail_options=["BODY=8BITMIME"])
        received = internet.wait(lambda mail: mail.rcpt_to == ["x@example.com"])
    assert received.mail_from == "bob@contoso.com"
    assert "BODY=8BITMIME" in received.mail_options
    assert re.fullmatch(rb"Received: [^\r]*(?:\r\n\t[^\r]*)*\r\n" + re.escape(message), received.content)


def test_dsn_parameters_reach_the_next_hop_in_their_spelling(root: Path, internet: NextHop) -> None:
    options = ["ORCPT=rfc822;John.Work@contoso.com", "NOTIFY=SUCCESS"]
    with Postfix(root, main_cf=relayhost(internet)) as postfix, smtplib.SMTP(*postfix.smtp) as client:
        client.sendmail("a@contoso.com", ["x@example.com"], MESSAGE, rcpt_options=options)
        received = internet.wait(lambda mail: mail.rcpt_to == ["x@example.com"])
    assert received.rcpt_options == [options]


def test_recipient_that_the_next_hop_refuses_bounces_to_the_sender(root: Path, internet: NextHop) -> None:
    internet.refuse["no@example.com"] = "550 5.1.1 No such user"
    with Postfix(root, main_cf=relayhost(internet)) as postfix:
        send(postfix, "a@contoso.com", ["no@example.com"])
        bounce = internet.wait(lambda mail: mail.rcpt_to == ["a@contoso.com"])
    assert bounce.mail_from == ""
    assert b"550 5.1.1 No such user" in bounce.content


def test_recipient_that_the_next_hop_defers_is_delivered_once_it_no_longer_does(root: Path, internet: NextHop) -> None:
    internet.refuse["later@example.com"] = "450 4.2.1 Not now"
    with Postfix(root, main_cf=relayhost(internet)) as postfix:
        send(postfix, "a@contoso.com", ["later@example.com"])
        postfix.wait_until_idle()
        assert [mail["queue_name"] for mail in postfix.queue()] == ["deferred"]
        del internet.refuse["later@example.com"]
        postfix.flush()
        internet.wait(lambda mail: mail.rcpt_to == ["later@example.com"])


def test_smtpd_runs_in_a_chroot(root: Path) -> None:
    with Postfix(root) as postfix, smtplib.SMTP(*postfix.smtp):
        pid = postfix.wait_for_log(r"smtpd\[(\d+)\]: connect from")[1]
        assert os.readlink(f"/proc/{pid}/root") == str(postfix.queue_directory)


def test_unprivileged_daemons_run_as_mail_owner(root: Path) -> None:
    with Postfix(root) as postfix, smtplib.SMTP(*postfix.smtp):
        pid = postfix.wait_for_log(r"smtpd\[(\d+)\]: connect from")[1]
        assert os.stat(f"/proc/{pid}").st_uid == postfix.owner[0]


def test_client_certificate_is_trusted_only_where_the_authority_signed_it_and_it_is_valid(root: Path) -> None:
    authority, stranger = Authority(root / "tls"), Authority(root / "stranger")
    server = authority.issue("mail.contoso.com", ["127.0.0.1"])
    clients = [
        (authority.issue("mail.contoso.com"), "Trusted"),
        (authority.issue(None, ["*.contoso.com"]), "Trusted"),
        (authority.issue("mail.contoso.com", expired=True), "Untrusted"),
        (authority.issue("mail.contoso.com", self_signed=True), "Untrusted"),
        (stranger.issue("mail.contoso.com"), "Untrusted"),
        (None, "Anonymous"),
    ]
    with Postfix(root / "mta", main_cf=authority.smtpd_parameters(server)) as postfix:
        for certificate, trust in clients:
            start = len(postfix.log())
            with smtplib.SMTP(*postfix.smtp) as client:
                client.starttls(context=authority.client_context(certificate))
                client.noop()
            found = postfix.wait_for_log(r"(\w+) TLS connection established from", start=start)
            assert found[1] == trust, certificate


def test_fingerprint_is_spelled_as_postfix_spells_it(root: Path) -> None:
    authority = Authority(root / "tls")
    client_certificate = authority.issue("mail.contoso.com")
    allowed = root / "allowed"
    allowed.write_text(f"{client_certificate.fingerprint} permit\n")
    main_cf = (
        authority.smtpd_parameters(authority.issue("mail.contoso.com", ["127.0.0.1"]))
        + f"smtpd_client_restrictions = check_ccert_access texthash:{allowed}, reject\n"
    )
    with Postfix(root / "mta", main_cf=main_cf) as postfix, smtplib.SMTP(*postfix.smtp) as client:
        client.starttls(context=authority.client_context(client_certificate))
        client.mail("a@contoso.com")
        assert client.rcpt("games@mail.contoso.com")[0] == 250


def test_stop_leaves_no_process(root: Path, internet: NextHop) -> None:
    postfix = Postfix(root, main_cf=relayhost(internet))
    postfix.start()
    send(postfix, "a@contoso.com", ["x@example.com"])
    internet.wait(lambda mail: True)
    assert processes_below(root)
    postfix.stop()
    assert processes_below(root) == []


def test_exception_in_the_with_block_leaves_no_process(root: Path) -> None:
    def interrupted() -> None:
        with Postfix(root):
            assert processes_below(root)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert processes_below(root) == []


@pytest.mark.parametrize(
    ("main_cf", "complaint"),
    [
        ("relay_host = [127.0.0.1]:25\n", "unused parameter: relay_host"),
        ("compatibility_level = newest\n", "malformed compatibility level syntax"),
        ("mail_owner = root\n", "parameter mail_owner: user root has privileged user ID"),
    ],
)
def test_broken_main_cf_is_named_by_the_exception(root: Path, main_cf: str, complaint: str) -> None:
    with pytest.raises(SandboxError, match=complaint), Postfix(root, main_cf=main_cf):
        pass
    assert processes_below(root) == []


def test_port_in_use_ends_the_start_with_the_log(root: Path, internet: NextHop) -> None:
    complaint = r"fatal: bind 127.0.0.1 port .*: Address already in use"
    with pytest.raises(SandboxError, match=complaint), Postfix(root, smtp_port=internet.address[1]):
        pass
    assert processes_below(root) == []


def test_folder_that_postfix_cannot_traverse_is_refused(root: Path) -> None:
    (root / "closed").mkdir(mode=0o700)
    complaint = "closed: Postfix must be able to traverse it"
    with pytest.raises(SandboxError, match=complaint), Postfix(root / "closed" / "mta"):
        pass


def test_main_cf_lines_replace_the_base_ones(root: Path) -> None:
    main_cf = "# a comment\nmydestination = a.example,\n  # another\n  b.example\nmydestination =\n  c.example\n"
    with Postfix(root, main_cf=main_cf) as postfix:
        assert postfix.postconf("-h", "mydestination").split() == ["c.example"]


def test_smtp_inet_in_master_cf_is_the_smtpd_at_the_sandbox_port(root: Path) -> None:
    master_cf = "smtp inet n - y - - smtpd\n  -o smtpd_banner=replaced\n"
    with Postfix(root, master_cf=master_cf) as postfix, smtplib.SMTP() as client:
        assert client.connect(*postfix.smtp) == (220, b"replaced")


def test_further_service_in_master_cf_listens_too(root: Path) -> None:
    port = free_port()
    master_cf = f"127.0.0.1:{port} inet n - y - - smtpd -o smtpd_banner=second\n"
    with Postfix(root, master_cf=master_cf) as postfix, smtplib.SMTP() as client:
        assert client.connect("127.0.0.1", port) == (220, b"second")
        with smtplib.SMTP(*postfix.smtp) as first:
            assert first.noop()[0] == 250


def test_parameter_changed_by_postconf_holds_after_reload(root: Path) -> None:
    with Postfix(root) as postfix:
        postfix.postconf("-e", "smtpd_banner=changed")
        postfix.reload()
        with smtplib.SMTP() as client:
            assert client.connect(*postfix.smtp) == (220, b"changed")


def test_mail_of_sendmail_command_is_delivered_to_the_sandbox_mailbox(root: Path) -> None:
    with Postfix(root) as postfix:
        postfix.sendmail(["-f", "bob@fabrikam.com", "games"], b"Subject: hello\n\nhello\n")
        postfix.wait_until_idle()
        assert b"Return-Path: <bob@fabrikam.com>" in (postfix.mailboxes / "games").read_bytes()


def test_forward_file_of_the_sandbox_is_followed(root: Path, internet: NextHop) -> None:
    with Postfix(root, main_cf=relayhost(internet)) as postfix:
        (postfix.forward_files / "games").write_text("john.home@example.com\n")
        send(postfix, "bob@fabrikam.com", ["games@mail.contoso.com"])
        received = internet.wait(lambda mail: mail.rcpt_to == ["john.home@example.com"])
    assert received.mail_from == "bob@fabrikam.com"
    assert "ORCPT=rfc822;games@mail.contoso.com" in received.rcpt_options[0]


def test_postmap_query_answers_a_value_or_none_or_the_failure(root: Path) -> None:
    with Postfix(root) as postfix:
        assert postfix.postmap_query("a", "inline:{a=b}") == "b"
        assert postfix.postmap_query("c", "inline:{a=b}") is None
        with pytest.raises(SandboxError, match="socketmap"):
            postfix.postmap_query("a", "socketmap:unix:missing.sock:reverse")


def test_indexed_table_answers_a_query(root: Path) -> None:
    with Postfix(root) as postfix:
        (root / "aliases").write_text("john john.home@example.com\n")
        assert postfix.postmap_query("john", postfix.postmap(root / "aliases")) == "john.home@example.com"
