# SPDX-License-Identifier: GPL-3.0-or-later
"""What an organisation loses, gains and changes between two configurations, key by key."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Optional

from gatepost.admin.config_commands import Value, connector_values, domain_values, toml
from gatepost.relay import Organization

Entry = tuple[str, str]
"""Kind and name: ("connector", "head office")."""

_MEANS = {
    ("added", "accepted domain"): "mail to it is no relay; mail from it meets condition 1",
    ("removed", "accepted domain"): "mail to it is relay; mail from it meets condition 1 no more",
    ("added", "connector"): "the hosts that it covers meet condition 2",
    ("removed", "connector"): "hosts that no other connector covers are refused",
}


@dataclass(frozen=True)
class Change:
    """One entry that is *added*, *removed* or *changed*. keys: what differs, before and after (None: not there)."""

    what: str
    kind: str
    name: str
    keys: Mapping[str, tuple[Optional[Value], Optional[Value]]]

    def __str__(self) -> str:
        shown = self.name if self.kind == "accepted domain" else f'"{self.name}"'
        if self.what != "changed":
            values = {key: before if after is None else after for key, (before, after) in self.keys.items()}
            told = ", ".join(f"{key} = {toml(value)}" for key, value in values.items() if value)
            means = "disabled, so no effect" if values.get("enabled") is False else _MEANS[self.what, self.kind]
            return f"{self.what} {self.kind} {shown} ({told}): {means}"
        told = ", ".join(
            f"{key}: {_shown(before)} becomes {_shown(after)}" for key, (before, after) in self.keys.items()
        )
        return f"changed {self.kind} {shown}: {told}"


def difference(before: Organization, after: Organization) -> Iterator[Change]:
    """Yield each change from *before* to *after*; what only comes in another order is none."""
    old, new = _entries(before), _entries(after)
    for entry in sorted({**old, **new}):
        mine, theirs = old.get(entry, {}), new.get(entry, {})
        keys = {
            key: (mine.get(key), theirs.get(key))
            for key in {**mine, **theirs}
            if _comparable(mine.get(key)) != _comparable(theirs.get(key))
        }
        if keys:
            what = "changed" if mine and theirs else "added" if theirs else "removed"
            yield Change(what, *entry, keys)


def _entries(organization: Organization) -> dict[Entry, dict[str, Value]]:
    entries: dict[Entry, dict[str, Value]] = {}
    for domain in organization.accepted_domains:
        values = {**domain_values(domain), "default": domain.domain == organization.default_domain}
        entries["accepted domain", str(values.pop("domain"))] = values
    for connector in organization.connectors:
        values = connector_values(connector)
        entries["connector", str(values.pop("name"))] = values
    return entries


def _comparable(value: Optional[Value]) -> object:
    return sorted(value) if isinstance(value, tuple) else value


def _shown(value: Optional[Value]) -> str:
    return "nothing" if value is None else toml(value)
