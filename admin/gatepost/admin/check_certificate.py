# SPDX-License-Identifier: GPL-3.0-or-later
"""Reads a client's certificate for `gatepost check`: its names, and why an MTA will not trust it."""

from __future__ import annotations

from datetime import datetime, timezone
from pathlib import Path
from typing import Optional

import click
from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID

from gatepost.service.certificates import read_file


def read(file: str, now: int) -> tuple[tuple[str, ...], str]:
    """Return the names in the client's certificate in *file* that count at *now*, and a sentence about it.

    None counts where the MTA will not trust it (R10). Raises click.UsageError.
    """
    certificates, problems = read_file(Path(file))
    if not certificates:
        raise click.UsageError(f"--certificate-file: {file} {problems[0]}")
    names, certificate = certificates[0].names, x509.load_der_x509_certificate(certificates[0].der)
    shown = ", ".join(names) or "none"
    untrusted = _untrusted(certificate, now)
    if untrusted:
        return (), f"{file}: {untrusted}, so it is as good as none; its names are: {shown}"
    return names, f"{file}: names {shown}; valid until {_day(_until(certificate))}"


def _untrusted(certificate: x509.Certificate, now: int) -> str:
    """Return why no MTA trusts the certificate as a client's, "" where nothing in itself is in the way."""
    if _until(certificate) < now:
        return f"it expired on {_day(_until(certificate))}"
    if _begin(certificate) > now:
        return f"it is valid from {_day(_begin(certificate))} on only"
    if certificate.issuer == certificate.subject:
        return "it is self-signed"
    if not may_authenticate(certificate):
        return "its extended key usage is without clientAuth, which Postfix and Sendmail ask of a client"
    return ""


def may_authenticate(certificate: x509.Certificate) -> bool:
    """Tell whether an MTA takes it from a client: it says clientAuth, or nothing of its use.

    OpenSSL does not count anyExtendedKeyUsage as clientAuth (seen with Postfix 3.7 and OpenSSL 3.0).
    """
    try:
        usages = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    except x509.ExtensionNotFound:
        return True
    return ExtendedKeyUsageOID.CLIENT_AUTH in usages


def _day(at: float) -> str:
    day = datetime.fromtimestamp(at, timezone.utc)
    return f"{day.day} {day:%B %Y}"


# cryptography before 42 has both times without time zone only.


def _begin(certificate: x509.Certificate) -> float:
    begin: Optional[datetime] = getattr(certificate, "not_valid_before_utc", None)
    return (begin or certificate.not_valid_before.replace(tzinfo=timezone.utc)).timestamp()


def _until(certificate: x509.Certificate) -> float:
    until: Optional[datetime] = getattr(certificate, "not_valid_after_utc", None)
    return (until or certificate.not_valid_after.replace(tzinfo=timezone.utc)).timestamp()
