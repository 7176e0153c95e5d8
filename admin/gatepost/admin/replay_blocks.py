# SPDX-License-Identifier: GPL-3.0-or-later
"""Puts hosts of a replayed log together that have the same problem and the same remedies."""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace

from gatepost.admin.replay_count import SAMPLES, Group, Sample, Section
from gatepost.admin.replay_message import Origin
from gatepost.admin.replay_tally import Heading, Tally
from gatepost.admin.replay_words import Advice, advise

_COMPARED = 1000
"""So many of the largest groups are compared; others stay as they are."""
_NAMED = 3
"""So many addresses are named, of more the first only."""
_TO_COPY = 12
"""So many stand where they are to be added to a list."""
_ADDRESS = "\0"


@dataclass
class Block:
    """Groups of one P1 domain with one advice, in which the addresses of all stand for the first one's."""

    sender_domain: str
    advice: Advice
    origins: list[Origin] = field(default_factory=list)
    messages: int = 0
    recipients: int = 0
    samples: list[Sample] = field(default_factory=list)

    def add(self, group: Group) -> None:
        if all(group.origin.ip != origin.ip for origin in self.origins):
            self.origins.append(group.origin)
        self.messages += group.messages
        self.recipients += group.recipients
        self.samples += group.samples[: SAMPLES - len(self.samples)]

    def addresses(self) -> str:
        """Return the hosts' addresses, of many the first one."""
        shown = [origin.ip or origin.name for origin in self.origins]
        return ", ".join(shown) if len(shown) <= _NAMED else f"{shown[0]}, …"

    def addresses_to_copy(self) -> str:
        """Return the hosts' addresses as they stand in a list of the configuration."""
        more = ", …" if len(self.origins) > _TO_COPY else ""
        return ", ".join(f'"{origin.ip}"' for origin in self.origins[:_TO_COPY]) + more


def blocks(tally: Tally, heading: Heading, section: Section) -> tuple[list[Block], int]:
    """Return the blocks of a section, the largest first, and how many groups are in none."""
    groups, found = section.top(), dict[tuple[str, str, str, Advice], Block]()
    for group in groups[:_COMPARED]:
        advice = _with_address(advise(tally, heading, group), _by_address(group.origin.ip), _ADDRESS)
        key = (group.sender_domain, tally.owner(group.organization), group.reason, advice)
        found.setdefault(key, Block(group.sender_domain, advice)).add(group)
    for block in found.values():
        block.advice = _filled(block)
    ordered = sorted(found.values(), key=lambda block: (-block.messages, -block.recipients))
    return ordered, len(groups[_COMPARED:])


def _by_address(ip: str) -> re.Pattern[str]:
    return re.compile(rf"(?<![\w.:]){re.escape(ip)}(?![\w:]|\.\w)" if ip else r"(?!)")


def _filled(block: Block) -> Advice:
    advice = _with_address(block.advice, re.compile(f'"{_ADDRESS}"'), block.addresses_to_copy())
    return _with_address(advice, re.compile(_ADDRESS), block.addresses())


def _with_address(advice: Advice, pattern: re.Pattern[str], address: str) -> Advice:
    def changed(sentences: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(pattern.sub(lambda _: address, sentence) for sentence in sentences)

    (problem,) = changed((advice.problem,))
    return replace(advice, problem=problem, remedies=changed(advice.remedies), also=changed(advice.also))
