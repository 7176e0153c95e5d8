# SPDX-License-Identifier: GPL-3.0-or-later
"""Removes one address from the ledger and from the reports that are kept. Raises StoreError.

All goes page by page, each in a transaction of its own, so that the loader need not wait long.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from gatepost.relay import normalize_domain
from gatepost.service.addresses import unquoted
from gatepost.service.database import Database
from gatepost.service.report_store import IN_PROGRESS, delete, fetch, forget_report, reports
from gatepost.service.schema import bounces, ledger, report_rows

_ERASED_AT_ONCE = 500
_LISTS = ("reverse_path", "rewritten", "header_from", "recipient", "forwarded_to")
_TEXTS = ("message_id", "subject")


@dataclass(frozen=True)
class Erased:
    """How many rows of each kind went, and how many of each report's, by its ID; *reports* went as a whole."""

    ledger: int
    bounces: int
    reports: int
    report_rows: dict[str, int]


class Spellings:
    """An address in each way that the store may have it: in SMTP's quotes or without, domain in A- or in U-labels."""

    def __init__(self, address: str) -> None:
        local, _, domain = unquoted(address.lower()).rpartition("@")
        escaped = re.sub(r'(["\\])', r"\\\1", local)
        domains = _in_both_labels(domain)
        self._whole = [f"{text}@{name}" for text in (local, f'"{escaped}"') for name in domains]
        # Domain before user, as each form of SRS has it.
        self._in_srs = [f"={name}={text}@" for text in (local, f'{escaped}"') for name in domains]
        whole = "|".join(map(re.escape, self._whole))
        self._find = re.compile(rf"""(?:^|[\s,;:<>"])['(\[]*(?:{whole})(?=$|[\s,;:<>"'()\]#!?]|\.(?:\s|$))""").search
        self._sieve = (_loose(local), [_loose(name) for name in domains])

    def sieve(self, column: Any) -> Any:
        """Return a condition that each text in *column* meets that has the address, and few others do."""
        local, domains = self._sieve
        return sa.and_(column.ilike(local), sa.or_(*map(column.ilike, domains)))

    def in_list(self, text: str) -> bool:
        """Tell whether the address, or an SRS address made of it, is in a list joined by ", ", in lower case."""
        listed = f", {text}, "
        return any(f", {whole}, " in listed for whole in self._whole) or any(part in text for part in self._in_srs)

    def in_text(self, text: str) -> bool:
        """Tell whether *text* mentions the address, or an SRS address made of it."""
        text = text.lower()
        return self._find(text) is not None or any(part in text for part in self._in_srs)


def _in_both_labels(domain: str) -> list[str]:
    in_a_labels = normalize_domain(domain) or domain
    try:
        in_u_labels = in_a_labels.encode("ascii").decode("idna").lower()
    except UnicodeError:
        in_u_labels = domain
    return sorted({domain, in_a_labels, in_u_labels})


def _loose(text: str) -> str:
    r"""Return a pattern for LIKE that finds *text* whatever its case and however JSON or SMTP escapes " and \."""
    return "%" + re.sub(r'(?:[^ -~]|["\\])+', "%", text) + "%"


def erase(database: Database, address: str) -> Erased:
    """Delete every row that names *address*, as it is or inside an SRS address.

    A report goes as a whole where its title, filters, notify addresses or summary name it, and where it is under way:
    what it has read may be gone by now, see `report_store.keep`.
    """
    spellings = Spellings(address)
    bounced = _erase_bounces(database, spellings)
    rows, bounced_to_own = _erase_ledger(database, spellings)
    whole, of_reports = 0, {}
    for kept in reports(database):  # asked for after the ledger was erased: a later one finds nothing there
        job = json.loads(kept.job)
        texts = _texts([job, json.loads(kept.summary or "null")])
        if job["status"] == IN_PROGRESS or any(map(spellings.in_text, texts)):
            forget_report(database, kept.job_id)
            whole += 1
        else:
            of_reports[kept.job_id] = _erase_report_rows(database, kept.job_id, spellings)
    return Erased(rows, bounced + bounced_to_own, whole, {key: count for key, count in of_reports.items() if count})


def _erase_bounces(database: Database, spellings: Spellings) -> int:
    gone = 0
    for page in _candidates(database, spellings, bounces.c.address, [bounces.c.address], sa.true()):
        named = [row[0] for row in page if spellings.in_list(row[0])]
        gone += delete(database, bounces.delete().where(bounces.c.address.in_(named)))
    return gone


def _erase_ledger(database: Database, spellings: Spellings) -> tuple[int, int]:
    """Return how many rows went, and of how many addresses that its P1 was rewritten to the count of bounces."""
    rows = counts = 0
    columns = [ledger.c[name] for name in (*_LISTS, *_TEXTS)]
    for page in _candidates(database, spellings, ledger.c.id, columns, sa.true()):
        named = [row for row in page if _names(row, spellings)]
        own = sorted({row.rewritten for row in named if row.rewritten and spellings.in_list(row.reverse_path)})
        counts += delete(database, bounces.delete().where(bounces.c.address.in_(own)))
        rows += delete(database, ledger.delete().where(ledger.c.id.in_([row.id for row in named])))
    return rows, counts


def _names(row: Any, spellings: Spellings) -> bool:
    return any(spellings.in_list(getattr(row, name)) for name in _LISTS) or any(
        spellings.in_text(getattr(row, name)) for name in _TEXTS
    )


def _erase_report_rows(database: Database, job_id: str, spellings: Spellings) -> int:
    gone = 0
    key, own = report_rows.c.number, report_rows.c.job_id == job_id
    for page in _candidates(database, spellings, key, [report_rows.c.row], own):
        named = [row.number for row in page if any(map(spellings.in_text, _texts(json.loads(row.row))))]
        gone += delete(database, report_rows.delete().where(own, key.in_(named)))
    return gone


def _candidates(
    database: Database, spellings: Spellings, key: Any, columns: Sequence[Any], where: Any
) -> Iterator[list[Any]]:
    """Yield, page by page, the *key* and *columns* of rows that may name the address in one of these."""
    wanted = sa.select(key, *columns).where(where, sa.or_(*map(spellings.sieve, columns)))
    wanted = wanted.order_by(key).limit(_ERASED_AT_ONCE)
    page = fetch(database, wanted)
    while page:
        yield page
        page = fetch(database, wanted.where(key > page[-1][0])) if len(page) == _ERASED_AT_ONCE else []


def _texts(value: Any) -> Iterator[str]:
    """Yield the texts in what JSON holds."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, (list, dict)):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _texts(item)
