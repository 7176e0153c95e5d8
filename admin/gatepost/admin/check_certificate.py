# SPDX-License-Identifier: GPL-3.0-or-later
"""Reads a client's certificate for `gatepost check`: its names, and why an MTA will not trust it."""

from __future__ import annotations

from datetime import datetime, timezone
from pathlib import Path
from typing import Optional

import click
from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID

from gatepost.admin.configuration import unreadable
from gatepost.service.certificates import names_in


def read(file: str, now: int) -> tuple[tuple[str, ...], str]:
    """Return the names in the certificate in the PEM file *file* that count at *now*, and a sentence about it.

    None counts where the MTA will not trust it (R10). Raises click.UsageError.
    """
    try:
        certificate = x509.load_pem_x509_certificate(Path(file).read_bytes())
    except OSError as error:
        unreadable(file, error)
    except ValueError:
        raise click.UsageError(f"--certificate-file: {file} has no certificate in PEM form") from None
    names = names_in(certificate)
    shown = ", ".join(names) or "none"
    untrusted = _untrusted(certificate, now)
    if untrusted:
        return (), f"{file}: {untrusted}, so it is as good as none; its names are: {shown}"
    until = datetime.fromtimestamp(_until(certificate), timezone.utc)
    return names, f"{file}: names {shown}; valid until {until.day} {until:%B %Y}"


def _untrusted(certificate: x509.Certificate, now: int) -> str:
    """Return why no MTA trusts the certificate as a client's, "" where nothing in itself is in the way."""
    until = _until(certificate)
    if until < now:
        day = datetime.fromtimestamp(until, timezone.utc)
        return f"it expired on {day.day} {day:%B %Y}"
    if certificate.issuer == certificate.subject:
        return "it is self-signed"
    try:
        usages = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    except x509.ExtensionNotFound:
        return ""
    if ExtendedKeyUsageOID.CLIENT_AUTH in usages or ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE in usages:
        return ""
    return "its extended key usage is without clientAuth, which Postfix and Sendmail ask of a client"


def _until(certificate: x509.Certificate) -> float:
    until: Optional[datetime] = getattr(certificate, "not_valid_after_utc", None)
    # cryptography before 42 has it without time zone only.
    return (until or certificate.not_valid_after.replace(tzinfo=timezone.utc)).timestamp()
