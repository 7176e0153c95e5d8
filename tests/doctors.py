# SPDX-License-Identifier: GPL-3.0-or-later
"""What the tests of `gatepost doctor` share: circumstances to look at, and findings in a line each."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Callable, Optional

import dns.resolver

from gatepost.admin.doctor import run as doctor
from gatepost.admin.doctor.model import DNS_TIMEOUT_S, Circumstances, Finding
from gatepost.admin.postfix.config import NoPostfixError, PostfixConfig
from gatepost.service import certificates
from gatepost.service.config import parse
from gatepost.service.snapshot import build
from gatepost.srs import Keys

NOW = 1_786_000_000
"""In August 2026."""
Raw = Mapping[str, object]
CONTOSO: Raw = {
    "name": "contoso",
    "accepted_domain": [{"domain": "contoso.com", "default": True}],
    "connector": [{"name": "head office", "sender_ip_addresses": ["192.0.2.0/28"]}],
}


def no_postfix() -> PostfixConfig:
    raise NoPostfixError("no postconf: is Postfix installed on this host?")


def circumstances(
    raw: Optional[Raw] = None,
    *,
    now: float = NOW,
    read_postfix: Callable[[], PostfixConfig] = no_postfix,
    make_resolver: Optional[Callable[[], dns.resolver.Resolver]] = None,
    missing_secret: Optional[Path] = None,
    sendmail_cf: Path = Path("/nonexistent/sendmail.cf"),
    addresses: tuple[str, ...] = (),
    dns_timeout_s: float = DNS_TIMEOUT_S,
    path: Path = Path("gatepost.toml"),
    config_directory: Optional[Path] = None,
) -> Circumstances:
    """Return circumstances with the organisation contoso in mode enforce; *raw*: tables of gatepost.toml instead.

    path: of gatepost.toml, which need not be there.
    """
    document = {"organization": [CONTOSO], "relay": {"mode": "enforce"}, **(raw or {})}
    config = parse(document, path)
    clients = certificates.read(config.relay.certificate_folder)
    snapshot = build(config, Keys([b"0123456789abcdef"]), now, clients)
    return Circumstances(
        snapshot,
        now,
        read_postfix,
        missing_secret=missing_secret,
        make_resolver=make_resolver,
        sendmail_cf=sendmail_cf,
        addresses=addresses,
        dns_timeout_s=dns_timeout_s,
        config_directory=config_directory,
    )


def found(looked_at: Circumstances, name: str) -> list[Finding]:
    """Return what the check *name* finds."""
    (check,) = (check for check in doctor.CHECKS if check.name == name)
    return doctor.findings(looked_at, [check])


def texts(looked_at: Circumstances, name: str) -> list[str]:
    """Return severity and sentence of each finding of the check *name*."""
    return [f"{finding.severity.value}: {finding.what}" for finding in found(looked_at, name)]
