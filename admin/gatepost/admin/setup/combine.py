# SPDX-License-Identifier: GPL-3.0-or-later
"""Combine what gatepost needs with the value that a parameter has: what is there stays, behind gatepost's part."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Optional

from gatepost.admin.postfix.config import PostfixConfig, Service, split
from gatepost.admin.postfix.wiring import FILTER_FILE, Kind, Sockets, Topology, Wire, filter_files
from gatepost.admin.setup.sockets import endpoint, same

_POLICY = "check_policy_service"
_ACTION_OF = {Kind.MILTER: "milter_default_action", Kind.POLICY: "smtpd_policy_service_default_action"}
_ACTION_OF[Kind.RELAY] = _ACTION_OF[Kind.POLICY]
_RESTRICTIONS = (
    *("smtpd_client_restrictions", "smtpd_helo_restrictions", "smtpd_sender_restrictions"),
    *("smtpd_relay_restrictions", "smtpd_recipient_restrictions", "smtpd_data_restrictions"),
    *("smtpd_end_of_data_restrictions", "smtpd_etrn_restrictions"),
)
LIST_KINDS = (Kind.MAP, Kind.MILTER, Kind.POLICY, Kind.RELAY)
_TAKES_ARGUMENT = r"check_\w+|reject_rbl_client|reject_rhsbl_\w+|permit_dnswl_client|permit_rhswl_client|warn_if_reject"
_RULES = [rules[0] for topology in Topology for rules in filter_files(topology).values()]
"""The first rule of each table for smtpd_command_filter tells an entry that has the rules in itself."""
_REFERENCE = re.compile(r"\$(?:\{(?=\w+\})|\((?=\w+\)))?(?P<name>\w+)[})]?")
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
            return FILTER_FILE in entry or any(rule in entry.replace("$$", "$") for rule in _RULES)
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
        replaced = self.topology is Topology.POSTSRSD_REPLACEMENT and wire.kind is Kind.MAP
        return [
            entry
            for entry in self.entries(wire, value)
            if not self.is_ours(wire, entry) and not (replaced and _POSTSRSD.match(entry))
        ]

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
            kept = config.is_set(name) or config.expanded(name) == wire.value or config.expanded("relay_clientcerts")
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
        return ", ".join(filter(None, [self._entry(wire, service), current]))

    def without_ours(self, wire: Wire, current: str) -> str:
        """Return a list without gatepost's entries."""
        theirs = self.theirs(wire, current)
        return current if theirs == self.entries(wire, current) else joined(theirs)

    def _stands_right(self, wire: Wire, expanded: str, service: Optional[Service]) -> bool:
        entries = self.entries(wire, expanded)
        ours = [index for index, entry in enumerate(entries) if self.is_ours(wire, entry)]
        if not ours or len(entries) - len(ours) != len(self.theirs(wire, expanded)):
            return False
        if wire.kind is Kind.MILTER:
            # The order of milters matters little: each is told the sender that the client gave.
            return len(ours) == 1 and self._acts_right(wire, entries[ours[0]], service)
        if ours[0] != 0:
            return False
        if wire.parameter == "smtpd_command_filter":
            return self._is_filter(entries[0])
        return wire.kind is Kind.MAP or self._acts_right(wire, entries[0], service)

    def _is_filter(self, entry: str) -> bool:
        """Say whether an entry, expanded, is the table that is wanted, by its file's name or inline."""
        if FILTER_FILE in entry:
            wanted = next(wire.value for wire in self.wires if wire.parameter == "smtpd_command_filter")
            return entry == wanted.replace("$config_directory", str(self.config.config_directory))
        squeezed = re.sub(r"\s+", " ", entry).replace("$$", "$")
        return all(rule in squeezed for rules in filter_files(self.topology).values() for rule in rules)

    def _entry(self, wire: Wire, service: Optional[Service]) -> str:
        """Return gatepost's entry, with a default action of its own where the common one is others' matter."""
        if wire.kind is Kind.MAP:
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
        parameters = ("smtpd_milters", "non_smtpd_milters") if milters else _RESTRICTIONS
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


def joined(entries: Sequence[str]) -> str:
    """Return the entries as one value: commas between them, and a blank behind one that takes the next as argument."""
    text = ", ".join(entries)
    return re.sub(rf"((?:^|, )(?:{_TAKES_ARGUMENT})),", r"\1", text)
