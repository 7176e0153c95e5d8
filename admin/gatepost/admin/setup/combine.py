# SPDX-License-Identifier: GPL-3.0-or-later
"""Combine what gatepost needs with the value that a parameter has: what is there stays, behind gatepost's part."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Optional

from gatepost.admin.postfix.config import PostfixConfig, Service, split
from gatepost.admin.postfix.filters import RESTRICTION_LISTS
from gatepost.admin.postfix.relaying import TAKES_ARGUMENT, restrictions
from gatepost.admin.postfix.tables import Tables
from gatepost.admin.postfix.wiring import FILTER_FILE, Kind, Sockets, Topology, Wire, filter_files
from gatepost.admin.setup.sockets import endpoint, same

_POLICY = "check_policy_service"
_ACTION_OF = {Kind.MILTER: "milter_default_action", Kind.POLICY: "smtpd_policy_service_default_action"}
_ACTION_OF[Kind.RELAY] = _ACTION_OF[Kind.POLICY]
MAPS = (Kind.MAP, Kind.LAST_MAP, Kind.TABLE)
LIST_KINDS = (*MAPS, Kind.MILTER, Kind.POLICY, Kind.RELAY)
_REFERENCE = re.compile(r"\$(?:\{(?=\w+\})|\((?=\w+\)))?(?P<name>\w+)[})]?")
_FILES_OF_RULES = re.compile(rf"(pipemap:|regexp:[^\s,{{}}]*/{FILTER_FILE}(_\d)?|[\s,{{}}])+")
_POSTSRSD = re.compile(r"^(tcp:(localhost|127\.0\.0\.1|\[::1\]):1000[12]|socketmap:.*:(forward|reverse))$")


@dataclass(frozen=True)
class Combining:
    """How the wires of one topology combine with the configuration of one instance."""

    config: PostfixConfig
    topology: Topology
    sockets: Sockets
    wires: tuple[Wire, ...]
    planned: Mapping[str, str] = field(default_factory=dict)
    """What main.cf's parameters are to become, as far as that is known: lists may be made of other lists."""

    # Whose an entry is

    def is_ours(self, wire: Wire, entry: str) -> bool:
        """Say whether an entry of a list is gatepost's, whatever way it is written."""
        if wire.kind is Kind.MILTER:
            return same(self.config, endpoint(entry), self.sockets.milter)
        if wire.kind in (Kind.POLICY, Kind.RELAY):
            name, _, service = entry.partition(" ")
            return name == _POLICY and same(self.config, endpoint(service.strip()), self.sockets.policyd)
        if wire.parameter == "smtpd_command_filter":
            return has_rules_only(self.config, entry)
        table = re.match(r"^(?:proxy:)?socketmap:(.+):([a-z]+)$", entry)
        if table and same(self.config, table[1], self.sockets.policyd):
            return True
        return entry.replace("tcp:localhost:", "tcp:127.0.0.1:") == wire.value

    def entries(self, wire: Wire, value: str) -> list[str]:
        """Return a list's entries, check_policy_service and what it asks being one."""
        found: list[str] = []
        for entry in split(value):
            if found and found[-1] == _POLICY:
                found[-1] += f" {entry}"
            else:
                found.append(entry)
        return found

    def theirs(self, wire: Wire, value: str) -> list[str]:
        """Return the entries that are not gatepost's, nor of the postsrsd whose place it takes."""
        gone = self.replaced(wire, value)
        return [entry for entry in self.entries(wire, value) if not self.is_ours(wire, entry) and entry not in gone]

    def replaced(self, wire: Wire, value: str) -> list[str]:
        """Return postsrsd's entries in a list. Beside gatepost's they stay: somebody has put them there since."""
        if self.topology is not Topology.POSTSRSD_REPLACEMENT or wire.kind not in MAPS:
            return []
        entries = self.entries(wire, value)
        if any(self.is_ours(wire, entry) for entry in entries):
            return []
        return [entry for entry in entries if is_srs_map(entry)]

    # What a value must be; None where it is right as it is, or nobody's business

    def in_main_cf(self, wire: Wire) -> Optional[str]:
        """Return what the parameter must be in main.cf."""
        config, name = self.config, wire.parameter
        if wire.kind in LIST_KINDS:
            # A default that is another parameter's name or an expression says nothing to who reads main.cf.
            current = config.value(name) if config.is_set(name) else config.expanded(name)
            return self.listed(wire, *self._inherited(name, current, config.expanded(name)))
        if wire.kind is Kind.DEFAULT_ACTION:
            # Where it is another one, or others depend on it, gatepost's entries have one of their own.
            return None if config.is_set(name) or self._others(name) else wire.value
        if wire.kind is Kind.UNLESS_SET:
            kept = config.is_set(name) or config.expanded(name) == wire.value or self._lists_fingerprints()
            return None if kept else wire.value
        if wire.kind is Kind.ALIAS_DOMAINS:
            return self._changed(wire, self.alias_domains(wire))
        if wire.kind is Kind.PROBES:
            return self._changed(wire, self._following(name, "sender_dependent_default_transport_maps"))
        right = config.is_set(name) and config.expanded(name) in (wire.value, *wire.suffice)
        return None if right else wire.value

    def in_service(self, wire: Wire, service: Service) -> Optional[str]:
        """Return what the service's own list must be."""
        raw, name = service.overrides[wire.parameter], wire.parameter
        return self.listed(wire, *self._inherited(name, raw, self.config.effective(service, name), service), service)

    def _inherited(self, name: str, current: str, expanded: str, service: Optional[Service] = None) -> tuple[str, str]:
        """Return a list as it is written and as daemons will see it once the lists that it names have changed."""
        future = _REFERENCE.sub(lambda found: self.planned.get(found["name"], found[0]), current)
        if future == current:
            return current, expanded
        return current, self.config.expand(name, future, service)

    def _lists_fingerprints(self) -> bool:
        checks = (
            item.name
            for service in self.config.smtpds
            for name in RESTRICTION_LISTS
            for item in restrictions(self.config, service, name)
        )
        return bool(self.config.expanded("relay_clientcerts")) or "check_ccert_access" in checks

    def _changed(self, wire: Wire, entries: Sequence[str]) -> Optional[str]:
        """Return the list *entries*, None where main.cf has just these."""
        name = wire.parameter
        right = self.config.is_set(name) and list(entries) == split(self.config.value(name))
        return None if right else ", ".join(entries)

    def listed(self, wire: Wire, current: str, expanded: str, service: Optional[Service] = None) -> Optional[str]:
        """Return a list with gatepost's entry in its place. current: as it is written; expanded: as daemons see it."""
        if self._stands_right(wire, expanded, service):
            return None
        if len(self.theirs(wire, expanded)) != len(self.entries(wire, expanded)):
            hidden = len(self.theirs(wire, current)) == len(self.entries(wire, current))
            # What is to be taken out of it may stand in a parameter that the list names.
            current = joined(self.theirs(wire, expanded if hidden else current))
        ours = self._entry(wire, service)
        if wire.kind is Kind.TABLE:
            return ours
        return ", ".join(filter(None, [current, ours] if wire.kind is Kind.LAST_MAP else [ours, current]))

    def without_ours(self, wire: Wire, current: str) -> str:
        """Return a list without gatepost's entries."""
        theirs = self.theirs(wire, current)
        return current if theirs == self.entries(wire, current) else joined(theirs)

    def _stands_right(self, wire: Wire, expanded: str, service: Optional[Service]) -> bool:
        if wire.kind is Kind.TABLE:
            return expanded == self._file_of_rules(wire) or has_rules(self.config, expanded, self.topology)
        entries = self.entries(wire, expanded)
        ours = [index for index, entry in enumerate(entries) if self.is_ours(wire, entry)]
        if not ours or len(entries) - len(ours) != len(self.theirs(wire, expanded)):
            return False
        if wire.kind is Kind.LAST_MAP:
            return True
        if wire.kind is Kind.MILTER:
            # The order of milters matters little: each is told the sender that the client gave.
            return len(ours) == 1 and self._acts_right(wire, entries[ours[0]], service)
        if ours[0] != 0:
            return False
        return wire.kind is Kind.MAP or self._acts_right(wire, entries[0], service)

    def _file_of_rules(self, wire: Wire) -> str:
        return wire.value.replace("$config_directory", str(self.config.config_directory))

    def _entry(self, wire: Wire, service: Optional[Service]) -> str:
        """Return gatepost's entry, with a default action of its own where the common one is others' matter."""
        if wire.kind in MAPS:
            return wire.value
        value, name = wire.value, _ACTION_OF[wire.kind]
        action = next(item.value for item in self.wires if item.parameter == name)
        if not self._common_is(action, name, service):
            setting = f"{{ default_action = {action} }}" if " " in action else f"default_action={action}"
            value = f"{{ {value}, {setting} }}"
        return value if wire.kind is Kind.MILTER else f"{_POLICY} {value}"

    def _acts_right(self, wire: Wire, entry: str, service: Optional[Service]) -> bool:
        """Say whether gatepost's absence puts mail off: by the entry's own default action, or by the common one."""
        name = _ACTION_OF[wire.kind]
        action = next(item.value for item in self.wires if item.parameter == name)
        own = re.search(r"default_action\s*=\s*(\w+)", entry)
        return own[1] == action.split()[0] if own else self._common_is(action, name, service)

    def _common_is(self, action: str, name: str, service: Optional[Service]) -> bool:
        """Say whether the default action that all milters or policy services share is, or may become, gatepost's."""
        if service and name in service.overrides:
            return self.config.effective(service, name).split()[:1] == action.split()[:1]
        if self.config.is_set(name):
            return self.config.expanded(name).split()[:1] == action.split()[:1]
        return not self._others(name)

    def _others(self, name: str) -> bool:
        """Say whether there are other milters, or other policy services, in main.cf or master.cf."""
        milters = name == "milter_default_action"
        parameters = ("smtpd_milters", "non_smtpd_milters") if milters else RESTRICTION_LISTS
        kind = Kind.MILTER if milters else Kind.POLICY
        wire = Wire("", kind, "", "")
        for parameter in parameters:
            values = [self.config.expanded(parameter)]
            values += [self.config.effective(item, parameter) for item in self.config.services if item.overrides]
            for value in values:
                for entry in self.theirs(wire, value):
                    if milters or entry.startswith(_POLICY):
                        return True
        return False

    # Lists that others are derived from

    def written(self, name: str) -> str:
        """Return a parameter as main.cf has it; a default that comes to nothing is nothing."""
        return self.config.value(name) if self.config.expanded(name) else ""

    def alias_domains(self, wire: Wire) -> list[str]:
        """Return the entries of virtual_alias_domains: the default is all tables of virtual_alias_maps."""
        return self._following(wire.parameter, "virtual_alias_maps")

    def _following(self, name: str, followed: str) -> list[str]:
        """Return the entries of a list whose default is another list, without what gatepost adds to that one."""
        maps = next(item for item in self.wires if item.parameter == followed)
        tables = self.theirs(maps, self.written(followed))
        given = split(self.config.value(name)) if self.config.is_set(name) else [f"${followed}"]
        found: list[str] = []
        for entry in given:
            found += tables if entry == f"${followed}" else [] if self.is_ours(maps, entry) else [entry]
        return found


def has_rules(config: PostfixConfig, table: str, topology: Topology) -> bool:
    """Say whether a table for smtpd_command_filter, inline or a file of the administrator's, has gatepost's rules."""
    text = _rules_of(config, table)
    return FILTER_FILE not in table and all(rule in text for rules in filter_files(topology).values() for rule in rules)


def has_rules_only(config: PostfixConfig, table: str) -> bool:
    """Say whether it has nothing but gatepost's rules, of any topology."""
    if _FILES_OF_RULES.fullmatch(table):
        return True
    text = _rules_of(config, table)
    left = text
    for rule in sorted(
        {rule for kind in Topology for rules in filter_files(kind).values() for rule in rules}, key=len, reverse=True
    ):
        left = left.replace(rule, "")
    return left != text and "/" not in left


def _rules_of(config: PostfixConfig, table: str) -> str:
    return re.sub(r"\s+", " ", Tables(config).text(table)).replace("$$", "$")


def is_srs_map(entry: str) -> bool:
    """Say whether a table is an SRS daemon's, by its usual names: postsrsd's, or gatepost's."""
    return _POSTSRSD.match(entry) is not None


def joined(entries: Sequence[str]) -> str:
    """Return the entries as one value: commas between them, and a blank behind one that takes the next as argument."""
    text = ", ".join(entries)
    return re.sub(rf"((?:^|, )(?:{TAKES_ARGUMENT})),", r"\1", text)
