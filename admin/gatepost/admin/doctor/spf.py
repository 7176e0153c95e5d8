# SPDX-License-Identifier: GPL-3.0-or-later
"""Check of SPF: whether the records of the domains of SRS addresses cover the hosts that mail leaves from."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence

import spf

from gatepost.admin.doctor.addresses import Outgoing, outgoing, passed_on, telling
from gatepost.admin.doctor.dns import each, srs_domains
from gatepost.admin.doctor.model import Check, Circumstances, Edit, Finding, error, info, ok, unknown, warning
from gatepost.relay import enumeration
from gatepost.service.spf import Lookups, check_host

_NOWHERE = "192.0.2.1"
"""For documents only (RFC 5737): nobody's, so that all of a record is looked at, and what covers it covers all."""
_EXCHANGE = "Exchange Online"
_EXCHANGE_RECORD = "spf.protection.outlook.com"
_RECORD = re.compile(rb"v=spf1(?: |$)", re.IGNORECASE)
_ALL = re.compile(r"\s([+?~-]?)all(?=\s|$)", re.IGNORECASE)
_FIRST_ADDRESS = re.compile(rb"\sip4:([\d.]+)")
_PYSPF = "SPF Permanent Error: "
_TOO_MANY = "Too many DNS lookups"


def spf_records(circumstances: Circumstances) -> Iterator[Finding]:
    """Whether SPF lets mail with an SRS address leave from here."""
    domains = srs_domains(circumstances.snapshot)
    if not domains:
        return
    by_exchange = circumstances.config.upstream is not None
    through = "" if circumstances.config.srs.outgoing_addresses else passed_on(circumstances)
    if through:
        sending = Outgoing(hidden=f"mail leaves through {through}, whose addresses count")
    else:
        sending = Outgoing() if by_exchange else outgoing(circumstances)

    def ask(domain: str, lookups: Lookups) -> list[Finding]:
        senders = {address: address for address in sending.addresses}
        if by_exchange:
            senders = {_exchange_address(lookups): _EXCHANGE}
        return list(_spf(domain, senders, lookups))

    yield from each(circumstances, domains, ask)
    if sending.hidden:
        yield unknown(
            f"whether SPF lets mail leave from here is not known: {sending.hidden}",
            "Where a record does not cover the address, mail with an SRS address does not pass SPF.",
            *telling(circumstances),
        )


def _spf(domain: str, senders: Mapping[str, str], lookups: Lookups) -> Iterator[Finding]:
    """Yield what is to be said of *domain*; *senders*: addresses that mail leaves from, and what to call them.

    Raises spf.TempError, and what pyspf likes on odd records.
    """
    added = " ".join(map(_mechanism, senders.values())) or "mx"
    texts = [b"".join(record) for record in lookups.ask(domain, "TXT") if isinstance(record, list)]
    records = sorted(text.decode("utf-8", "replace") for text in texts if _RECORD.match(text))
    if len(records) != 1:
        yield _not_one(domain, records, added)
        return
    (record,) = records
    results: dict[str, list[str]] = {}
    for address in senders or [_NOWHERE]:
        result, words = check_host(address, domain, lookups)
        if result == "temperror":
            raise spf.TempError("no answer for a part of its SPF record")
        if result == "permerror":
            yield _in_error(domain, record, words.replace(_PYSPF, ""))
            return
        results.setdefault(result, []).append(senders.get(address, ""))
    if check_host(_NOWHERE, domain, lookups)[0] == "pass":
        yield warning(
            f"{domain}: its SPF record covers every host of the world: {record}",
            "Anybody can send in its name, and some receivers count such a record as none.",
            Edit(f'in DNS: {domain}. IN TXT "v=spf1 {added} -all"'),
        )
        return
    if not senders:
        yield ok(f"{domain}: its SPF record has no error: {record}")
        return
    yield from (_judged(domain, record, result, names) for result, names in results.items())
    every = _ALL.search(record)
    if every and every[1] == "?":
        yield info(
            f"{domain}: its SPF record leaves other hosts open: {record}",
            "Receivers cannot tell what is forged in its name.",
            Edit(f"in DNS: -all in place of ?all in the SPF record of {domain}"),
        )


def _not_one(domain: str, records: Sequence[str], added: str) -> Finding:
    if not records:
        return warning(
            f"{domain} has no SPF record",
            "SRS gives mail a sender in this domain so that SPF passes. Without a record receivers that want SPF or "
            "DKIM, as Gmail does, may refuse it.",
            Edit(f'in DNS: {domain}. IN TXT "v=spf1 {added} -all"'),
        )
    return error(
        f"{domain} has {len(records)} SPF records: {enumeration(records)}",
        "To receivers that is an error (RFC 7208, 4.5): nothing with an SRS address in it passes SPF.",
        Edit(f'in DNS: one TXT record of {domain} that begins with "v=spf1", with all that must be in it'),
    )


def _in_error(domain: str, record: str, words: str) -> Finding:
    why = "Receivers give up on such a record (RFC 7208, 4.6.4 and 8.7): nothing with an SRS address in it passes SPF."
    if words == _TOO_MANY:
        return error(
            f"{domain}: its SPF record takes more than 10 DNS look-ups: {record}",
            why,
            Edit(f"in DNS: in the SPF record of {domain}, ip4: and ip6: in place of include:, a, mx and redirect="),
        )
    mend = Edit(f"in DNS: mend the record of {domain}")
    return error(f"{domain}: its SPF record is wrong: {words}: {record}", why, mend)


def _judged(domain: str, record: str, result: str, names: list[str]) -> Finding:
    if result == "pass":
        return ok(f"{domain}: SPF passes for {enumeration(names)}")
    finding = error if result == "fail" else warning
    return finding(
        f"{domain}: SPF says {result} of mail from {enumeration(names)}: {record}",
        "What leaves with an SRS address in this domain does not pass SPF, and is refused or taken for spam.",
        Edit(f"in DNS: in front in the SPF record of {domain}: {' '.join(map(_mechanism, names))}"),
    )


def _mechanism(name: str) -> str:
    if name == _EXCHANGE:
        return f"include:{_EXCHANGE_RECORD}"
    return f"ip6:{name}" if ":" in name else f"ip4:{name}"


def _exchange_address(lookups: Lookups) -> str:
    """Return one of the addresses that Exchange Online sends from. Raises spf.TempError."""
    for record in lookups.ask(_EXCHANGE_RECORD, "TXT"):
        found = _FIRST_ADDRESS.search(b"".join(record)) if isinstance(record, list) else None
        if found:
            return found[1].decode()
    raise spf.TempError(f"no addresses at {_EXCHANGE_RECORD}")


CHECKS = (Check("spf", "DNS", spf_records),)
