# SPDX-License-Identifier: GPL-3.0-or-later
"""What `gatepost replay` found, as JSON for a program."""

from __future__ import annotations

import json

from gatepost.admin.configuration import printable
from gatepost.admin.replay_count import Count, Group, Section
from gatepost.admin.replay_log import Log
from gatepost.admin.replay_message import text
from gatepost.admin.replay_tally import Heading, Tally
from gatepost.admin.replay_words import actions, advise


def as_json(log: Log, tally: Tally, top: int) -> str:
    """Return all of it; lists have *top* entries at most, the largest first."""
    begin, end = (printable(text(head).rpartition(" ")[0]) for head in (log.first, log.last))
    found: dict[str, object] = {
        "begin": begin,
        "end": end,
        "requirements": tally.snapshot.config.relay.requirements.value,
        "messages": tally.messages,
        "recipients": tally.recipients,
        "inside": tally.inside,
        "relayed": tally.relayed,
        "left_to_mta": tally.left,
        "outcomes": tally.outcomes,
        "actions": {name: action.value for name, action in actions(tally).items()},
    }
    for heading, section in tally.sections.items():
        found[heading.value.replace("-", "_")] = _section(tally, heading, section, top)
    found["left_out"] = {
        "made_here": tally.made_here,
        "hops": tally.hops,
        "incomplete": tally.incomplete,
        "not_judged": tally.unknown,
        "evicted": log.evicted,
        "unread_lines": log.unread,
    }
    found["upstream_until_enforce"] = tally.by_enforce
    found["denied_by_next_hop"] = {"messages": tally.denied, "ndrs_about_them": tally.notices}
    found["tls_logged"] = log.tls
    found["p1_before_srs"] = {"known": tally.restored, "unknown": tally.unrestored}
    found["lines"] = {"all": log.lines, "mta": log.mail_lines}
    return json.dumps(found, indent=2)


def _section(tally: Tally, heading: Heading, section: Section, top: int) -> dict[str, object]:
    return {
        "messages": section.messages,
        "recipients": section.recipients,
        "by_reason": _count(section.reasons, ("organization", "reason"), top),
        "by_host": _count(section.hosts, ("ip", "name"), top),
        "by_p1_domain": _count(section.domains, ("p1_domain",), top),
        "groups": [_group(tally, heading, group) for group in section.top()[:top]],
        "other_groups": max(len(section.groups) - top, 0),
    }


def _count(count: Count, names: tuple[str, ...], top: int) -> list[dict[str, object]]:
    return [
        {**dict(zip(names, map(printable, key))), "messages": messages, "recipients": recipients}
        for key, (messages, recipients) in count.top()[:top]
    ]


def _group(tally: Tally, heading: Heading, group: Group) -> dict[str, object]:
    advice = advise(tally, heading, group)
    return {
        "ip": group.origin.ip,
        "name": printable(group.origin.name),
        "certificate_names": [printable(name) for name in tally.known_names(group.origin)],
        "fingerprint": group.origin.fingerprint if group.origin.trusted else "",
        "p1_domain": printable(group.sender_domain),
        "organization": group.organization,
        "reason": group.reason,
        "messages": group.messages,
        "recipients": group.recipients,
        "problem": advice.problem,
        "remedies": advice.remedies,
        "also": advice.also,
        "samples": [
            {
                "queue_id": sample.queue_id,
                "time": printable(sample.time),
                "mail_from": printable(sample.reverse_path),
                "rcpt": printable(sample.rcpt),
                "outcome": sample.outcome,
                "size_bytes": sample.size_bytes,
            }
            for sample in group.samples
        ],
    }
