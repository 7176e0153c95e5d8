# SPDX-License-Identifier: GPL-3.0-or-later
"""The client's certificate as the macros of Postfix and of Sendmail show it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Optional

from gatepost.relay import Client, known_client
from gatepost.service.addresses import decode_xtext
from gatepost.service.certificates import NO_CERTIFICATE, Shown
from gatepost.service.presented import Presented, matter, server
from gatepost.service.presented import client as presenter
from gatepost.service.snapshot import Snapshot

MACROS = "{cert_issuer} {cert_subject} {verify} {cn_subject} {cn_issuer} {cert_fp} {cert_md5}"
"""What to ask for at MAIL: the first two of Postfix, all of Sendmail."""
_SENDMAILS_WORD = "BadCertificate"
"""How the word begins that stands for a CN that is missing (`BadCertificateUnknown`), too long, or has a NUL."""


def shown(macro: Callable[[str], str]) -> Shown:
    """Return what the macros tell. One for a client without certificate, up to five for one with it.

    Postfix sets an issuer for a certificate that it trusts, and for no other (R10): `{cert_issuer}` and
    `{cert_subject}` are CNs. Sendmail sets them, as whole DNs, for each certificate and says in `{verify}` whether it
    is trusted; CNs are in others, with +XX escapes, and the fingerprint in `{cert_fp}`, or `{cert_md5}` where
    CertFingerprintAlgorithm is not set.
    """
    issuer = macro("{cert_issuer}")
    if not issuer:
        return NO_CERTIFICATE
    verified = macro("{verify}")
    if not verified:
        return Shown(macro("{cert_subject}"), issuer)
    if verified != "OK":
        return NO_CERTIFICATE
    cn = decode_xtext(macro("{cn_subject}"))
    if cn.startswith(_SENDMAILS_WORD):
        cn = ""
    return Shown(cn, decode_xtext(macro("{cn_issuer}")) or issuer, macro("{cert_fp}") or macro("{cert_md5}"))


class Identity:
    """Who is behind a connection: an address, a certificate, a login; these two may change between its messages.

    port: 0 or less where it is not known.
    """

    def __init__(self, snapshot: Snapshot, presented: Optional[Presented], ip: Optional[str], port: int) -> None:
        self._snapshot = snapshot
        self._presented = presented if port > 0 else None
        self._ip = ip
        self._key = presenter(ip or "", str(port))
        self._local = port == 0 and ip in ("127.0.0.1", "::1")  # how Postfix reports sendmail(1)
        self._login = ""
        self._told = NO_CERTIFICATE
        self._server = ""

    @property
    def local(self) -> bool:
        """Tell whether this is sendmail(1)."""
        return self._local

    def at_mail(self, macro: Callable[[str], str]) -> tuple[Client, Shown]:
        """Return the client as the MTA's macros show it, and what they tell of its certificate."""
        self._told = shown(macro)
        if self._waits_for_report and not self._server:
            self._server = server(macro("{daemon_addr}"), macro("{daemon_port}"))
        self._login = macro("{auth_authen}")
        return self._client(self._told), self._told

    def at_rcpt(self, reverse_path: str, rcpt: str, now: float) -> tuple[Client, Shown]:
        """Return the same for one recipient: policyd may have reported with which certificate that very RCPT came.

        reverse_path, rcpt: as in policy requests. now: Unix seconds.
        """
        told = self._told
        if self._waits_for_report and self._presented is not None:
            found = self._presented.take(self._key, matter(reverse_path, rcpt, told, self._server), now)
            told = told._replace(fingerprint=found)
        return self._client(told), told

    @property
    def _waits_for_report(self) -> bool:
        return bool(self._told.issuer) and not self._told.fingerprint

    def _client(self, told: Shown) -> Client:
        exempt = self._snapshot.config.relay.exempt
        return known_client(
            self._snapshot.rules,
            self._ip,
            self._snapshot.certificates.names_of(told),
            authenticated=bool(self._login) and "authenticated" in exempt,
            local=self._local and "local" in exempt,
        )
