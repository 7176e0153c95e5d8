# SPDX-License-Identifier: GPL-3.0-or-later
"""Who a connection's client is: what Postfix's and Sendmail's macros show, and what policyd has reported."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Optional

import pytest
from milterstages import ENFORCE, NOW, OUTSIDE, TRUSTED, Mta, lines

from gatepost.admin.authority import Authority, Credentials
from gatepost.milter.identity import Identity, shown
from gatepost.milter.session import Session
from gatepost.service import ledger, spool
from gatepost.service.certificates import NO_CERTIFICATE, Shown, read
from gatepost.service.presented import Presented, client, matter, server
from gatepost.service.snapshot import build
from gatepost.srs import Keys

CRM = """
[[organization]]
name = "contoso"
[[organization.accepted_domain]]
domain = "contoso.com"
[[organization.connector]]
name = "crm"
tls_sender_certificate_name = "crm.contoso.com"
"""
SENDMAIL = {
    "{cert_issuer}": "/O=Contoso/CN=Contoso+20CA",
    "{cert_subject}": "/O=Contoso/CN=CRM+20System",
    "{cn_subject}": "CRM+20System",
    "{cn_issuer}": "Contoso+20CA",
    "{verify}": "OK",
}
MAIL, RCPT = "app@vendor.example", "x@gmail.example"


def asked(macros: dict[str, str]) -> tuple[Shown, list[str]]:
    """Return what the macros show, and which ones were asked for."""
    names: list[str] = []

    def macro(name: str) -> str:
        names.append(name)
        return macros.get(name, "")

    return shown(macro), names


def recorded(folder: Path) -> list[ledger.Entry]:
    octets = b"".join(path.read_bytes() for path in spool.files(folder / "ledger"))
    return [item for item in map(ledger.record, octets.splitlines()) if isinstance(item, ledger.Entry)]


# Macros


def test_client_without_certificate_costs_one_macro() -> None:
    assert asked({}) == (NO_CERTIFICATE, ["{cert_issuer}"])


def test_postfix_shows_cn_and_issuer_of_a_trusted_certificate() -> None:
    assert asked(TRUSTED)[0] == Shown("mail.contoso.com", "Contoso CA")


def test_postfix_shows_the_issuer_alone_of_a_trusted_certificate_without_cn() -> None:
    assert asked({"{cert_issuer}": "Contoso CA"})[0] == Shown("", "Contoso CA")


def test_sendmail_shows_names_with_escapes_and_a_fingerprint() -> None:
    macros = {**SENDMAIL, "{cert_fp}": "3F:5B:9C"}
    assert asked(macros)[0] == Shown("CRM System", "Contoso CA", "3F:5B:9C")


def test_sendmail_shows_md5_where_it_has_no_other_fingerprint() -> None:
    assert asked({**SENDMAIL, "{cert_md5}": "AA:BB"})[0] == Shown("CRM System", "Contoso CA", "AA:BB")


@pytest.mark.parametrize("word", ["BadCertificateUnknown", "BadCertificateTooLong", "BadCertificateContainsNUL"])
def test_sendmails_words_for_no_cn_are_none(word: str) -> None:
    assert asked({**SENDMAIL, "{cn_subject}": word})[0] == Shown("", "Contoso CA")


@pytest.mark.parametrize("verify", ["NO", "NOT", "FAIL", "NONE", "TEMP", "PROTOCOL", "SOFTWARE", "DANE_FAIL", "ok"])
def test_sendmail_certificate_that_is_not_verified_is_none_r10(verify: str) -> None:
    assert asked({**SENDMAIL, "{verify}": verify})[0] == NO_CERTIFICATE


def test_sendmail_certificate_without_cn_is_known_by_its_fingerprint() -> None:
    macros = {**SENDMAIL, "{cn_subject}": "", "{cert_fp}": "3F:5B:9C"}
    assert asked(macros)[0] == Shown("", "Contoso CA", "3F:5B:9C")


# Reports of policyd


@pytest.fixture
def crm(tmp_path: Path) -> Credentials:
    """The certificate of the CRM, without CN; it is in the folder."""
    return listed(tmp_path, None, ["crm.contoso.com"])


def listed(folder: Path, cn: Optional[str], names: list[str]) -> Credentials:
    issued = Authority(folder / "tls").issue(cn, names)
    (folder / "certificates").mkdir(exist_ok=True)
    (folder / "certificates" / f"{len(os.listdir(folder / 'certificates'))}.pem").write_bytes(
        issued.certificate.read_bytes()
    )
    return issued


class Hub(Mta):
    """A milter's surroundings with the folder's certificates, and what policyd would report."""

    def __init__(self, folder: Path, more: str = "") -> None:
        super().__init__(folder, ENFORCE + more + CRM)
        config = self.snapshot.config
        self.snapshot = build(config, Keys([b"key"]), 0.0, read(config.relay.certificate_folder))
        assert self.shared.presented
        self.presented = self.shared.presented

    def report(
        self,
        fingerprint: str,
        rcpt: str = RCPT,
        *,
        mail: str = MAIL,
        port: int = 40001,
        cn: str = "",
        at: tuple[str, str] = ("", ""),
    ) -> None:
        about = matter(mail, rcpt, Shown(cn, "Sandbox CA"), server(*at))
        self.presented.report(client("192.0.2.1", str(port)), about, fingerprint, float(self.now))

    def trusted(self, cn: str = "", port: int = 40001) -> Session:
        """Return a session with a client whose certificate Postfix trusts."""
        return self.connected(port=port, macros={"{cert_issuer}": "Sandbox CA", "{cert_subject}": cn})

    def relays(self, session: Session, rcpt: str = OUTSIDE, mail: str = f"<{MAIL}>") -> bool:
        """Tell whether a message of its own with one recipient is taken."""
        return self.message(session, mail, [rcpt]) is None


def test_certificate_without_cn_relays_by_policyds_report(tmp_path: Path, crm: Credentials) -> None:
    hub = Hub(tmp_path)
    hub.report(crm.fingerprint)
    assert hub.relays(hub.trusted())


def test_report_counts_for_one_rcpt(tmp_path: Path, crm: Credentials) -> None:
    hub = Hub(tmp_path)
    session = hub.trusted()
    hub.report(crm.fingerprint)
    assert [hub.relays(session), hub.relays(session)] == [True, False]


def test_each_recipient_is_judged_by_its_own_report(tmp_path: Path, crm: Credentials) -> None:
    hub = Hub(tmp_path)
    session = hub.trusted()
    session.mail(f"<{MAIL}>")
    replies = []
    for rcpt, fingerprint in (("a@b.example", crm.fingerprint), ("c@d.example", ""), ("e@f.example", crm.fingerprint)):
        hub.report(fingerprint, rcpt)
        replies.append(session.rcpt(f"<{rcpt}>", []))
    assert [reply and reply.code for reply in replies] == [None, 550, None]


def test_report_of_a_minute_ago_does_not_count(tmp_path: Path, crm: Credentials) -> None:
    hub = Hub(tmp_path)
    hub.report(crm.fingerprint)
    hub.now += 61
    assert not hub.relays(hub.trusted())


def test_report_on_another_port_does_not_count(tmp_path: Path, crm: Credentials) -> None:
    hub = Hub(tmp_path)
    hub.report(crm.fingerprint)
    assert not hub.relays(hub.trusted(port=40002))


def test_report_does_not_count_where_the_port_is_unknown(tmp_path: Path, crm: Credentials) -> None:
    hub = Hub(tmp_path)
    for port in (0, -1):
        hub.report(crm.fingerprint, port=port)
        assert not hub.relays(hub.trusted(port=port))


def test_report_does_not_count_for_another_sender(tmp_path: Path, crm: Credentials) -> None:
    hub = Hub(tmp_path)
    hub.report(crm.fingerprint, mail="other@vendor.example")
    assert not hub.relays(hub.trusted())


def test_report_does_not_count_for_a_client_that_the_mta_does_not_trust(tmp_path: Path, crm: Credentials) -> None:
    hub = Hub(tmp_path)
    hub.report(crm.fingerprint)
    assert not hub.relays(hub.connected(macros={"{cert_issuer}": "", "{cert_subject}": "crm.contoso.com"}))


def test_report_does_not_count_where_the_issuers_differ(tmp_path: Path, crm: Credentials) -> None:
    hub = Hub(tmp_path)
    hub.report(crm.fingerprint)
    assert not hub.relays(hub.connected(macros={"{cert_issuer}": "Another CA"}))


@pytest.mark.parametrize(
    ("path", "rcpt"),
    [
        ('<"x y"@gmail.example>', "x y@gmail.example"),
        ("<@relay.example:x@gmail.example>", RCPT),
        ("x@gmail.example", RCPT),
    ],
)
def test_recipient_is_compared_as_policyd_has_it(tmp_path: Path, crm: Credentials, path: str, rcpt: str) -> None:
    hub = Hub(tmp_path)
    hub.report(crm.fingerprint, rcpt)
    assert hub.relays(hub.trusted(), path)


def test_sender_is_compared_as_policyd_has_it(tmp_path: Path, crm: Credentials) -> None:
    hub = Hub(tmp_path)
    hub.report(crm.fingerprint, mail="a b@vendor.example")
    assert hub.relays(hub.trusted(), mail='<"a b"@vendor.example>')


def test_cn_that_is_in_the_folder_brings_its_san_without_a_report(tmp_path: Path) -> None:
    listed(tmp_path, "CRM", ["crm.contoso.com"])
    hub = Hub(tmp_path)
    assert hub.relays(hub.trusted("CRM"))


def test_fingerprint_that_is_in_no_file_takes_the_san_back(tmp_path: Path) -> None:
    """Another certificate with the same CN: the report tells it from the folder's."""
    listed(tmp_path, "CRM", ["crm.contoso.com"])
    hub = Hub(tmp_path)
    hub.report("00" * 32, cn="CRM")
    assert not hub.relays(hub.trusted("CRM"))


def test_sendmails_fingerprint_is_looked_up_without_policyd(tmp_path: Path, crm: Credentials) -> None:
    hub = Hub(tmp_path)
    session = hub.connected(macros={**SENDMAIL, "{cn_subject}": "", "{cert_fp}": crm.fingerprint})
    assert hub.relays(session)


def test_sendmails_cn_brings_its_san(tmp_path: Path) -> None:
    listed(tmp_path, "CRM System", ["crm.contoso.com"])
    hub = Hub(tmp_path)
    assert hub.relays(hub.connected(macros={**SENDMAIL, "{cn_issuer}": "Sandbox+20CA"}))


def test_refusal_names_the_fingerprint_that_policyd_has_reported(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    hub = Hub(tmp_path)
    hub.report("3F:5B:9C")
    assert not hub.relays(hub.trusted())
    (line,) = lines(capfd)
    assert ", reason=nothing-accepted, certificate=unknown, fingerprint=3F:5B:9C, reference=" in line
    assert [item.certificate_names for item in recorded(tmp_path)] == ["no name known: fingerprint 3F:5B:9C"]


def test_ledger_has_for_each_recipient_the_names_that_it_was_judged_by(tmp_path: Path) -> None:
    issued = listed(tmp_path, "crm.contoso.com", ["files.contoso.net"])
    hub = Hub(tmp_path)
    session = hub.trusted("crm.contoso.com")
    session.mail(f"<{MAIL}>")
    for rcpt, fingerprint in (("a@b.example", issued.fingerprint), ("c@d.example", "00" * 32)):
        hub.report(fingerprint, rcpt, cn="crm.contoso.com")
        assert session.rcpt(f"<{rcpt}>", []) is None
    assert hub.content(session, []) is None
    assert {item.recipient: item.certificate_names for item in recorded(tmp_path)} == {
        "a@b.example": "crm.contoso.com, files.contoso.net",
        "c@d.example": "crm.contoso.com",
    }


def test_client_is_computed_anew_only_where_its_names_or_its_login_change(tmp_path: Path, crm: Credentials) -> None:
    hub = Hub(tmp_path)
    identity = Identity(hub.snapshot, hub.presented, "192.0.2.1", 40001)
    macros = {"{cert_issuer}": "Sandbox CA"}
    seen = []
    for _ in range(2):
        seen.append(identity.at_mail(lambda name: macros.get(name, ""))[0])
        hub.report(crm.fingerprint)
        seen.append(identity.at_rcpt(MAIL, RCPT, float(NOW))[0])
    macros["{auth_authen}"] = "ann"
    seen.append(identity.at_mail(lambda name: macros.get(name, ""))[0])
    assert seen[0] is seen[2]
    assert seen[1] is seen[3]
    assert len({id(client) for client in seen}) == 3
    assert [client.certificate_names for client in seen[:2]] == [("no name known",), ("crm.contoso.com",)]


def test_report_counts_at_the_address_and_port_of_the_server_that_it_came_from(
    tmp_path: Path, crm: Credentials
) -> None:
    hub = Hub(tmp_path)
    hub.macros.update({"{daemon_addr}": "192.0.2.9", "{daemon_port}": "25"})
    for at, relays in ((("192.0.2.9", "587"), False), (("192.0.2.10", "25"), False), (("192.0.2.9", "25"), True)):
        hub.report(crm.fingerprint, at=at)
        assert hub.relays(hub.trusted()) is relays


# Across processes


def test_report_of_another_process_is_found(tmp_path: Path, crm: Credentials) -> None:
    hub = Hub(tmp_path)
    pid = os.fork()
    if pid == 0:
        Presented(hub.snapshot.config.state_directory / "presented").report(
            client("192.0.2.1", "40001"),
            matter(MAIL, RCPT, Shown("", "Sandbox CA"), server("", "")),
            crm.fingerprint,
            float(NOW),
        )
        os._exit(0)
    assert os.waitpid(pid, 0)[1] == 0
    assert hub.relays(hub.trusted())
