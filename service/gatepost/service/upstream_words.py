# SPDX-License-Identifier: GPL-3.0-or-later
"""Puts what Exchange Online will say in words: for `gatepost check`, `explain` and `replay`. Pure."""

from __future__ import annotations

from collections.abc import Iterator

from gatepost.relay import Mail, Reason, Result, Verdict, domain_of
from gatepost.service import flow, rewriting
from gatepost.service.flow import Judgement
from gatepost.service.rewriting import Egress
from gatepost.service.snapshot import Snapshot
from gatepost.service.upstream import Upstream

_TAKEN = "At Exchange Online: taken"
_REFUSED = "At Exchange Online: refused with 550 5.7.64"
_WOULD = "At Exchange Online, by its rules: would be"
NOT_ENOUGH = (
    "Beyond this host the client's certificate counts for nothing: Exchange Online goes by this host's own, and while "
    "it knows this host by address only, it refuses null senders to outside."
)
_TAKING = (Result.RELAY.value, Result.EXEMPT.value)


def decision(there: Upstream, verdict: Verdict, reverse_path: str) -> str:
    """Return one sentence on *verdict*, which *there* gave for mail that leaves with P1 *reverse_path*."""
    if verdict.result is Result.INSIDE:
        return f"{_TAKEN}, for the recipient is {there.organization.name}'s own."
    if verdict.reason is Reason.CERTIFICATE_ACCEPTED:
        return f"{_TAKEN}, whatever P1 is, for this host's certificate ({_names(there)}) is accepted."
    if verdict.result is Result.RELAY:
        return f"{_TAKEN}, for P1 <{reverse_path}> is in an accepted domain."
    return f"{_REFUSED}, because {_because(there, verdict, reverse_path)}."


def _because(there: Upstream, verdict: Verdict, reverse_path: str) -> str:
    domain = domain_of(reverse_path)
    if verdict.reason is Reason.NULL_SENDER:
        why = "the sender is null, which only a certificate brings through to outside"
    elif verdict.reason is Reason.CONNECTOR_FOR_OTHER_DOMAINS:
        why = f"the connector there is not for the P1 domain {domain} (upstream.associated_accepted_domains)"
    else:
        p1 = f"the P1 domain {domain}" if domain else f"P1 <{reverse_path}>, which has no domain name,"
        why = f"{p1} is no accepted domain of {there.organization.name}"
    if there.client.certificate_names:
        return f"{why}, and no name of this host's certificate ({_names(there)}) is"
    return f"{why}, and this host is known there by address only"


def recorded(outcome: str) -> str:
    """Return the sentence on an *outcome* that the ledger has (`upstream.outcome`): a reckoning, not an answer."""
    if outcome == Result.INSIDE.value:
        return f"{_WOULD} taken, for the recipient is its own."
    return f"{_WOULD} taken." if outcome in _TAKING else f"{_WOULD} refused with 550 5.7.64 (reason={outcome})."


def remedies(snapshot: Snapshot, judgement: Judgement, reverse_path: str, *, mended: bool = False) -> Iterator[str]:
    """Yield what helps where mail that came here with P1 *reverse_path* is refused there.

    mended: it is relayed here with an SRS sender only, in mode enforce (action = "rewrite").
    """
    there, verdict = snapshot.upstream, judgement.upstream
    if there is None or verdict is None or verdict.result is not Result.REFUSE:
        return
    relayed = mended or judgement.verdict.result in (Result.RELAY, Result.EXEMPT)
    if relayed and not judgement.enforce and _is_rewritten_in_enforce(snapshot, reverse_path):
        yield f'With mode = "enforce" SRS gives it a P1 in a domain that {there.organization.name} accepts.'
    yield from _certificate_of_this_host(there, verdict)


def for_null_sender(snapshot: Snapshot, rcpt: str) -> Iterator[str]:
    """Yield what a null sender to *rcpt* needs beside a certificate to this host, which refuses it for want of one."""
    there, verdict = snapshot.upstream_by_p1, flow.at_upstream(snapshot, Mail(""), rcpt)
    if there is None or verdict is None or verdict.result is not Result.REFUSE:
        return
    yield from _certificate_of_this_host(there, verdict)


def _certificate_of_this_host(there: Upstream, verdict: Verdict) -> Iterator[str]:
    default = there.organization.default_domain
    domain = default if default in there.taken else min(there.taken, default=default)
    yield (
        f"Have this host present a certificate of a public authority with a name such as hub.{domain} "
        "(smtp_tls_cert_file in Postfix), name it in the connector there, and set upstream.tls_sender_certificate_name."
    )
    if verdict.reason is Reason.NULL_SENDER:
        yield "Or have Postfix deliver null senders past Exchange Online, to the recipient's own MX."


def _is_rewritten_in_enforce(snapshot: Snapshot, reverse_path: str) -> bool:
    return rewriting.rewrites(snapshot) and rewriting.leaving(snapshot, reverse_path) is Egress.REWRITE


def _names(there: Upstream) -> str:
    return ", ".join(there.client.certificate_names)
