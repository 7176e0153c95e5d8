# SPDX-License-Identifier: GPL-3.0-or-later
"""Tell the milter, by `service.presented`, with which certificate the client of each RCPT came; name unknown ones."""

from __future__ import annotations

from gatepost.policyd.attributes import Attributes, certificate, text
from gatepost.service import log, shared
from gatepost.service.presented import client, matter, server
from gatepost.service.snapshot import Snapshot

SAME_WARNING_S = 3600.0
"""How long nothing more is said of a certificate that is unknown, by one process."""
_WARNED = 1000


class Presenting:
    """What one process reports."""

    def __init__(self, snapshot: Snapshot) -> None:
        self._certificates = snapshot.certificates
        self._folder = snapshot.config.relay.certificate_folder
        self._table = shared.presented(snapshot.config)
        self._warned: dict[str, float] = {}

    def report(self, request: Attributes, now: float) -> None:
        """Report the certificate of the RCPT that *request* is about; *now* in Unix seconds."""
        shown = certificate(request)
        if self._table is not None:
            key = client(text(request, b"client_address"), text(request, b"client_port"))
            if shown.issuer:
                at = server(text(request, b"server_address"), text(request, b"server_port"))
                about = matter(text(request, b"sender"), text(request, b"recipient"), shown, at)
                self._table.report(key, about, shown.fingerprint, now)
            else:
                self._table.report_none(key, now)
        if shown.issuer and not self._certificates.known_names(shown):
            self._warn(text(request, b"client_address"), shown.fingerprint, shown.issuer, now)

    def _warn(self, address: str, fingerprint: str, issuer: str, now: float) -> None:
        if now - self._warned.get(fingerprint, 0.0) < SAME_WARNING_S:
            return
        if len(self._warned) >= _WARNED:
            self._warned.clear()
        self._warned[fingerprint] = now
        log.warning(
            f"the certificate of {address}, issued by {issuer}, has no CN and is in no file of {self._folder}, so no "
            f"name of it is known and it counts as none: fingerprint={fingerprint or 'unknown'}"
        )
