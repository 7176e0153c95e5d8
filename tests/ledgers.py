# SPDX-License-Identifier: GPL-3.0-or-later
"""Ledgers for tests of reports: entries in a line each, put into a store as the loader does it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from gatepost.service.database import Database
from gatepost.service.ledger import Bounced, Entry, Record
from gatepost.service.ledger_store import Batch, take_in

SRS = "bounces+srs=y3gtqm6c=cb=vendor.example=app@contoso.com"


def entry(reference: str, time: float, recipient: str = "x@gmail.com", **fields: object) -> Entry:
    """Return mail of a vendor's application that relies on P2, seen in mode monitor."""
    relying = Entry(
        reference=reference,
        recipient=recipient,
        time=float(time),
        queue_id="4CgSNs5Q9s",
        client="192.0.2.5",
        helo="crm.contoso.com",
        reverse_path="app@vendor.example",
        sender_domain="vendor.example",
        header_from="ceo@contoso.com",
        organization="contoso",
        connector="head office",
        requirements="2023-11-01",
        verdict_current="refuse",
        verdict_legacy="relay",
        reason="nothing-accepted",
        action="pass",
        size_bytes=1234,
        message_id=f"<{reference}@vendor.example>",
    )
    return relying._replace(**fields)  # type: ignore[arg-type]


def rewritten(reference: str, time: float, **fields: object) -> Entry:
    """Return the same mail over a certificate, so that it is relayed, with SRS."""
    return entry(
        reference,
        time,
        certificate_names="mail.contoso.com",
        verdict_current="relay",
        verdict_legacy="relay",
        reason="certificate-accepted",
        action="rewrite",
        rewritten=SRS,
    )._replace(
        **fields  # type: ignore[arg-type]
    )


def bounce(time: float, address: str = SRS) -> Bounced:
    return Bounced(address, float(time))


def put(database: Database, records: Sequence[Record], name: str = "1.spool") -> None:
    """Take *records* into the store, as if from the spool file *name*."""
    assert take_in(database, Batch(name, 0, 1, records), "hub1", 0.0) == 1


def sqlite(folder: Path, *records: Record) -> Database:
    """Return a store in *folder* that has *records*."""
    return store(f"sqlite:///{folder / 'gatepost.db'}", *records)


def store(url: str, *records: Record) -> Database:
    """Return the store at *url*, empty before, with *records* in it."""
    database = Database(url, statement_s=0)
    put(database, records)
    return database
