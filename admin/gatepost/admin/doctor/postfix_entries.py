# SPDX-License-Identifier: GPL-3.0-or-later
"""Which entries of Postfix's lists mean gatepost: milters, policy services, tables, and the addresses in them."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Optional

from gatepost.admin.doctor.model import Circumstances
from gatepost.admin.postfix.config import PostfixConfig, Service, split
from gatepost.admin.setup.plan import Role, hop_of, role
from gatepost.service.fields import Listen, host_and_port

REVERSE, EGRESS, FORWARD = "reverse", "egress", "forward"
_TABLE = re.compile(r"\bsocketmap:((?:unix|inet):[^\s,{}]+):(\w+)|\btcp:([^\s,{}]+)")
_TAKES_ARGUMENT = re.compile(r"check_|reject_rbl_client|reject_rhsbl_|permit_dnswl_client|permit_rhswl_client|sleep$")
_EVERYWHERE = ("0.0.0.0", "::")
_LOOPBACK = ("localhost", "127.0.0.1", "::1", *_EVERYWHERE)


@dataclass(frozen=True)
class Entry:
    """An entry that names a server: *address* as it is written, *options* of the braces around it."""

    text: str
    address: str
    options: tuple[str, ...] = ()

    def option(self, name: str) -> str:
        """Return the value of `name=value` in the braces, "" if it is not there."""
        pairs = (option.partition("=") for option in self.options)
        return next((value.strip() for key, _, value in pairs if key.strip() == name), "")


def milters(value: str) -> list[Entry]:
    """Return the entries of smtpd_milters or non_smtpd_milters."""
    return [] if value.strip() == "DISABLE" else [_entry(text) for text in split(value)]


def _entry(text: str) -> Entry:
    if not text.startswith("{"):
        return Entry(text, text)
    parts = [part.strip("{} \t\r\n") for part in split(text[1:-1])]
    return Entry(text, parts[0] if parts else "", tuple(parts[1:]))


@dataclass(frozen=True)
class Restriction:
    """An entry of a restriction list; *argument*: what a check_… takes."""

    name: str
    argument: str = ""

    @property
    def policy(self) -> Entry:
        """The policy service that this asks."""
        return _entry(self.argument)

    def __str__(self) -> str:
        return f"{self.name} {self.argument}".rstrip()


def restrictions(postfix: PostfixConfig, service: Service, name: str) -> list[Restriction]:
    """Return the restrictions in a list as *service* has it, restriction classes in their place."""
    return list(_restrictions(postfix, postfix.effective(service, name), 0))


def _restrictions(postfix: PostfixConfig, value: str, depth: int) -> Iterator[Restriction]:
    classes = set(postfix.entries("smtpd_restriction_classes"))
    entries = split(value)
    index = 0
    while index < len(entries):
        entry = entries[index]
        index += 1
        if entry in classes and depth < len(classes):
            yield from _restrictions(postfix, postfix.expanded(entry), depth + 1)
        elif _TAKES_ARGUMENT.match(entry) and index < len(entries):
            yield Restriction(entry, entries[index])
            index += 1
        elif ":" in entry and not entry.startswith("{"):  # a bare table means check_…_access of the list's kind
            yield Restriction("check_access", entry)
        else:
            yield Restriction(entry)


@dataclass(frozen=True)
class Lookup:
    """A table that a server answers for: its *address*, the *map*'s name ("" with tcp_table), whose entry is *text*."""

    text: str
    address: str
    map: str


def lookups(value: str) -> Iterator[Lookup]:
    """Yield the socketmaps and tcp_tables in a list of tables, nested ones too."""
    for text in split(value):
        for found in _TABLE.finditer(text):
            yield Lookup(text, found[1] or f"inet:{found[3]}", found[2] or "")


# Addresses


def listen_of(address: str, queue_directory: Path, *, chrooted: bool) -> Listen:
    """Return where a daemon of Postfix looks for the server at *address*; Listen() where that is no address."""
    kind, _, rest = address.partition(":")
    if kind in ("unix", "local") and rest:
        # A relative path counts from the queue folder, and in the chroot that is the root of all paths.
        path = queue_directory / (rest.lstrip("/") if chrooted else rest)
        return Listen(path=str(path))
    if kind in ("inet", "inet6"):
        if "@" in rest:  # Sendmail's way to write it
            port, _, host = rest.partition("@")
            rest = f"{host}:{port}"
        return host_and_port(rest) or Listen()
    return Listen()


def same(one: Listen, other: Listen) -> bool:
    """Tell whether the two addresses lead to the same socket."""
    if one.path or other.path:
        return os.path.realpath(one.path or "/") == os.path.realpath(other.path or "/")
    hosts = {one.host, other.host}
    alike = len(hosts) == 1 or hosts <= set(_LOOPBACK) or bool(hosts & set(_EVERYWHERE))
    return one.port == other.port != 0 and alike


def is_milter(circumstances: Circumstances, entry: Entry, *, chrooted: bool) -> bool:
    """Tell whether *entry* leads to gatepost's milter."""
    return leads_to(circumstances, entry.address, [circumstances.config.milter.listen], chrooted=chrooted)


def is_policy(circumstances: Circumstances, restriction: Restriction, *, chrooted: bool) -> bool:
    """Tell whether *restriction* asks gatepost's policyd."""
    return restriction.name == "check_policy_service" and leads_to(
        circumstances, restriction.policy.address, circumstances.config.policyd.listen, chrooted=chrooted
    )


def is_map(circumstances: Circumstances, lookup: Lookup, name: str) -> bool:
    """Tell whether *lookup* asks policyd for its map *name*, chrooted or not."""
    policyd = circumstances.config.policyd
    tcp_tables = {FORWARD: policyd.tcp_table_forward, REVERSE: policyd.tcp_table_reverse}
    if lookup.map:
        served: Sequence[Listen] = policyd.listen if lookup.map == name else ()
    else:
        served = tcp_tables.get(name, ())
    return any(leads_to(circumstances, lookup.address, served, chrooted=chrooted) for chrooted in (True, False))


def leads_to(circumstances: Circumstances, address: str, listens: Sequence[Listen], *, chrooted: bool) -> bool:
    """Tell whether *address* as a daemon of Postfix takes it is one of *listens*."""
    meant = listen_of(address, circumstances.postfix.queue_directory, chrooted=chrooted)
    return any(same(meant, listen) for listen in listens)


def named_like_gatepost(circumstances: Circumstances, address: str, listens: Sequence[Listen]) -> bool:
    """Tell whether *address* seems to mean gatepost without leading to it: of its name, or of its socket's name."""
    names = {Path(listen.path).name for listen in listens if listen.path}
    return "gatepost" in address or Path(address).name in names


# Services


def is_hop(circumstances: Circumstances, service: Service) -> bool:
    """Tell whether *service* is the receiving half of the egress hop."""
    return circumstances.config.egress is not None and _role(circumstances, service) is Role.HOP


def _role(circumstances: Circumstances, service: Service) -> Role:
    return role(circumstances.postfix, service, hop_of(circumstances.config))


def filters(postfix: PostfixConfig, service: Service) -> list[str]:
    """Return the parameters by which *service* hands mail to a content filter, with their values."""
    names = ("content_filter", "smtpd_proxy_filter")
    return [f"{name} = {value}" for name in names if (value := postfix.effective(service, name))]


def takes_back(circumstances: Circumstances, service: Service) -> bool:
    """Tell whether *service* takes mail back from a content filter."""
    return _role(circumstances, service) is Role.FROM_FILTER


def ingress(circumstances: Circumstances) -> list[Service]:
    """Return the smtpds that take mail from others: not the egress hop, not what a content filter hands back."""
    smtpds = circumstances.postfix.smtpds
    return [item for item in smtpds if not (is_hop(circumstances, item) or takes_back(circumstances, item))]


def cleanup_is_chrooted(postfix: PostfixConfig) -> bool:
    """Tell whether cleanup(8) is, which has milters for mail from sendmail(1) and looks addresses up."""
    service = postfix.service("cleanup", "unix")
    return service is not None and postfix.is_chrooted(service)


def named(services: Sequence[Service]) -> str:
    return ", ".join(service.key for service in services)


# Commands to paste


def postconf(circumstances: Circumstances, setting: str, value: str, service: Optional[Service] = None) -> list[str]:
    """Return the commands that set a parameter: in main.cf, or where *service* overrides it, there."""
    there = service is not None and setting in service.overrides
    edit = f"-P {shlex.quote(f'{service.key}/{setting}={value}')}" if service and there else ""
    edit = edit or f"-e {shlex.quote(f'{setting} = {value}'.rstrip())}"
    return [f"postconf{directory(circumstances)} {edit}", f"postfix{directory(circumstances)} reload"]


def directory(circumstances: Circumstances) -> str:
    """Return the option that names the configuration directory, "" for the default one."""
    postfix = circumstances.postfix
    default = postfix.defaults.get("config_directory", "")
    return "" if str(postfix.config_directory) == default else f" -c {shlex.quote(str(postfix.config_directory))}"


def in_front(entry: str, value: str, without: Sequence[str] = ()) -> str:
    """Return the list *value* with *entry* first, and those of *without* taken out."""
    return ", ".join([entry, *(item for item in split(value) if item not in (entry, *without))])
