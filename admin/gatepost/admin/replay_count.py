# SPDX-License-Identifier: GPL-3.0-or-later
"""Counts by key in bounded memory: of too many the rarest are put together."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

from gatepost.admin.replay_message import Origin

GROUPS = 10_000
"""How many groups, hosts or domains are counted each before the rarest are put together."""
SAMPLES = 3
LONGEST_DOMAIN = 255
_LONGEST_LOCAL_PART = 64


class Sample(NamedTuple):
    """One recipient of a group. The local parts of its addresses are cut at 64 characters."""

    queue_id: str
    time: str
    reverse_path: str
    rcpt: str
    outcome: str
    size_bytes: int


@dataclass
class Group:
    """What is counted for one client, P1 domain, organisation and reason."""

    origin: Origin
    sender_domain: str
    organization: str
    reason: str
    messages: int = 0
    recipients: int = 0
    samples: list[Sample] = field(default_factory=list)


@dataclass
class Count:
    """Messages and recipients by key; of too many keys the rarest are dropped, *others* is what they counted."""

    counts: dict[tuple[str, ...], list[int]] = field(default_factory=dict)
    others: list[int] = field(default_factory=lambda: [0, 0])

    def add(self, key: tuple[str, ...], recipients: int) -> None:
        found = self.counts.get(key)
        if found is None:
            if len(self.counts) >= 2 * GROUPS:
                ordered = self.top()
                for _, (messages, number) in ordered[GROUPS:]:
                    self.others[0] += messages
                    self.others[1] += number
                self.counts = {name: list(numbers) for name, numbers in ordered[:GROUPS]}
            found = self.counts[key] = [0, 0]
        found[0] += 1
        found[1] += recipients

    def top(self) -> list[tuple[tuple[str, ...], tuple[int, int]]]:
        """Return the keys with messages and recipients, the most first."""
        ordered = sorted(self.counts.items(), key=lambda item: (-item[1][0], -item[1][1], item[0]))
        return [(key, (messages, recipients)) for key, (messages, recipients) in ordered]


@dataclass
class Section:
    """All that is counted under one heading."""

    messages: int = 0
    recipients: int = 0
    reasons: Count = field(default_factory=Count)
    hosts: Count = field(default_factory=Count)
    domains: Count = field(default_factory=Count)
    groups: dict[tuple[str, ...], Group] = field(default_factory=dict)
    others: list[int] = field(default_factory=lambda: [0, 0])

    def group(self, origin: Origin, sender_domain: str, organization: str, reason: str) -> Group:
        key = (origin.ip, origin.common_name, sender_domain, organization, reason)
        found = self.groups.get(key)
        if found is None:
            if len(self.groups) >= 2 * GROUPS:
                self._shrink()
            found = self.groups[key] = Group(origin, sender_domain, organization, reason)
        return found

    def _shrink(self) -> None:
        ordered = sorted(self.groups.items(), key=lambda item: -item[1].messages)
        for _, group in ordered[GROUPS:]:
            self.others[0] += group.messages
            self.others[1] += group.recipients
        self.groups = dict(ordered[:GROUPS])

    def top(self) -> list[Group]:
        """Return the groups, the largest first."""
        return sorted(self.groups.values(), key=lambda group: (-group.messages, -group.recipients))


def clipped(address: str) -> str:
    """Return *address* as short as SMTP has it (RFC 5321, 4.5.3.1): its domain whole, of the local part the begin."""
    local, at, domain = address.rpartition("@")
    return f"{local[:_LONGEST_LOCAL_PART]}@{domain[:LONGEST_DOMAIN]}" if at else domain[:_LONGEST_LOCAL_PART]
