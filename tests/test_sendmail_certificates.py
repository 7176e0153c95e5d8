# SPDX-License-Identifier: GPL-3.0-or-later
"""Clients with certificates of a real Sendmail, a daemon with STARTTLS and the milter; see peers.py for where it is.

No policy service there: the milter knows a certificate by Sendmail's macros, its fingerprint among them.
"""

from __future__ import annotations

import os
import shutil
import signal
import smtplib
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Optional

import pytest
from daemonprocess import Gatepost, free_port, poll
from peers import _overlaid, tree

from gatepost.admin.authority import Authority, Credentials

CRM = """
[[organization]]
name = "contoso"
[[organization.accepted_domain]]
domain = "contoso.com"
[[organization.connector]]
name = "crm"
tls_sender_certificate_name = "crm.contoso.com"
"""
CF = """V10/Berkeley
Djmail.contoso.com
O DontProbeInterfaces=true
O QueueDirectory=@ROOT@/queue
O DeliveryMode=q
O DaemonPortOptions=Port=@PORT@, Addr=127.0.0.1, Name=MTA
O ServerCertFile=@SERVER@.pem
O ServerKeyFile=@SERVER@.key
O CACertFile=@ROOT@/tls/ca.pem
O CACertPath=@ROOT@/tls
O PidFile=@ROOT@/sendmail.pid
O InputMailFilters=gatepost
Xgatepost, S=local:@ROOT@/milter.sock, F=T, T=S:30s;R:30s
Mlocal, P=/bin/false, F=l, A=false
Mprog, P=/bin/false, F=l, A=false
Msink, P=/bin/false, F=m, A=false
S3
R$*	$: $1
S0
R$*	$#sink $@ sink $: $1
"""


class Sendmail:
    """A Sendmail that listens on *port*, its files and the milter's socket in *root*; mail stays in its queue."""

    def __init__(self, root: Path, options: str) -> None:
        self.port = free_port()
        self.authority = Authority(root / "tls")
        server = self.authority.issue("mail.contoso.com", ["127.0.0.1"])
        text = CF.replace("@ROOT@", str(root)).replace("@PORT@", str(self.port))
        (root / "sendmail.cf").write_text(text.replace("@SERVER@", str(server.key.with_suffix(""))) + options)
        (root / "queue").mkdir(mode=0o700)
        (root / "etc").mkdir()
        (root / "etc/hosts").write_text("127.0.0.1 mail.contoso.com localhost\n")
        program = str(tree() / "usr/libexec/sendmail/sendmail")
        self._command = _overlaid([program, "-C", str(root / "sendmail.cf"), "-bD"], etc=[root / "etc"])

    @contextmanager
    def running(self) -> Iterator[None]:
        # A host name without a dot makes it wait for DNS.
        uts = ["unshare", "--uts", "sh", "-c", 'hostname mail.contoso.com; exec "$@"', "sh"]
        process = subprocess.Popen(["setpriv", "--pdeathsig", "TERM", *uts, *self._command], start_new_session=True)
        try:
            poll(self._answers, "Sendmail's greeting")
            yield
        finally:
            os.killpg(process.pid, signal.SIGTERM)
            process.wait(20)

    def _answers(self) -> bool:
        try:
            with smtplib.SMTP("127.0.0.1", self.port, timeout=20):
                return True
        except OSError:
            return False

    def send(self, certificate: Optional[Credentials]) -> str:
        """Send a message with a foreign P1 to outside; return the refusal, or the last answer."""
        with smtplib.SMTP("127.0.0.1", self.port, timeout=20) as smtp:
            smtp.starttls(context=self.authority.client_context(certificate))
            smtp.ehlo("app.contoso.com")
            smtp.mail("app@vendor.example")
            code, text = smtp.rcpt("x@example.com")
            if code == 250:
                code, text = smtp.data("Subject: x\r\n\r\nhello\r\n")
            return f"{code} {text.decode()}"


class Clients:
    """Certificates; those of the folder have names that only a file can tell."""

    def __init__(self, root: Path, ours: Authority) -> None:
        self.cn = ours.issue("crm.contoso.com")
        self.system = ours.issue("CRM +System", ["crm.contoso.com"])
        self.san_only = ours.issue(None, ["crm.contoso.com"])
        self.san_only_unlisted = ours.issue(None, ["crm.contoso.com"])
        self.self_signed = ours.issue("crm.contoso.com", self_signed=True)
        self.expired = ours.issue("crm.contoso.com", ["crm.contoso.com"], expired=True)
        self.of_other_authority = Authority(root / "other", "Another CA").issue("crm.contoso.com")
        (root / "certificates").mkdir()
        names = ("system", "san_only", "self_signed", "expired", "of_other_authority")
        for name in names:
            shutil.copy(getattr(self, name).certificate, root / "certificates" / f"{name}.pem")


@pytest.fixture(scope="module", params=["", "O CertFingerprintAlgorithm=sha256\n"], ids=["MD5", "SHA-256"])
def hub(request: pytest.FixtureRequest) -> Iterator[tuple[Sendmail, Clients, Gatepost]]:
    if os.getuid() != 0:
        pytest.skip("Sendmail wants its sockets below folders that only root can write to")
    root = Path(tempfile.mkdtemp(dir="/run", prefix="gatepost-"))
    try:
        sendmail = Sendmail(root, request.param)
        clients = Clients(root, sendmail.authority)
        with Gatepost(root, organizations=CRM, workers=2) as gatepost, sendmail.running():
            yield sendmail, clients, gatepost
    finally:
        shutil.rmtree(root)


@pytest.mark.parametrize("name", ["cn", "system", "san_only"])
def test_name_in_cn_or_san_relays_r8(hub: tuple[Sendmail, Clients, Gatepost], name: str) -> None:
    sendmail, clients, _ = hub
    assert sendmail.send(getattr(clients, name)).startswith("250 ")


@pytest.mark.parametrize("name", ["self_signed", "expired", "of_other_authority"])
def test_certificate_that_sendmail_does_not_verify_is_as_good_as_none_r10(
    hub: tuple[Sendmail, Clients, Gatepost], name: str
) -> None:
    sendmail, clients, _ = hub
    assert "TenantAttribution; Relay Access Denied" in sendmail.send(getattr(clients, name))


def test_without_certificate_nothing_relays(hub: tuple[Sendmail, Clients, Gatepost]) -> None:
    assert "TenantAttribution; Relay Access Denied" in hub[0].send(None)


def test_refusal_names_the_fingerprint_of_a_certificate_that_is_in_no_file(
    hub: tuple[Sendmail, Clients, Gatepost],
) -> None:
    sendmail, clients, gatepost = hub
    after = gatepost.mark()
    assert "TenantAttribution; Relay Access Denied" in sendmail.send(clients.san_only_unlisted)
    gatepost.wait_for_log("action=reject, .*, certificate=unknown, fingerprint=", after=after)
