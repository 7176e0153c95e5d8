# SPDX-License-Identifier: GPL-3.0-or-later
"""Which entries of Postfix's lists mean gatepost: milters, policy services, tables, and the addresses in them."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from ipaddress import ip_address
from pathlib import Path
from typing import Optional

from gatepost.admin.doctor.addresses import is_own
from gatepost.admin.doctor.model import Circumstances, instance, reload_postfix
from gatepost.admin.postfix.config import PostfixConfig, Service, split
from gatepost.admin.postfix.relaying import TAKES_ARGUMENT, Restriction
from gatepost.admin.postfix.tables import DOMAIN_LISTS, Tables
from gatepost.admin.setup.plan import Change, Role, entry_line, hop_of, role
from gatepost.service.fields import Listen, host_and_port

REVERSE, EGRESS, FORWARD = "reverse", "egress", "forward"
_TABLE = re.compile(r"\bsocketmap:((?:unix|inet):[^\s,{}]+):(\w+)|\btcp:([^\s,{}]+)")
_EVERYWHERE = ("0.0.0.0", "::")


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


def policy(restriction: Restriction) -> Optional[Entry]:
    """Return the policy service that *restriction* asks."""
    return _entry(restriction.argument) if restriction.name == "check_policy_service" else None


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
    return one.port == other.port != 0 and (_reaches(one.host, other.host) or _reaches(other.host, one.host))


def _reaches(host: str, listening: str) -> bool:
    """Tell whether who connects to *host* comes to what listens at *listening*; a name may mean any address."""
    if host == listening:
        return True
    if listening == "localhost" or host == "localhost":
        return {host, listening} <= {"localhost", "127.0.0.1", "::1", *_EVERYWHERE}
    if listening not in _EVERYWHERE:
        return False
    try:
        address = ip_address(host)
    except ValueError:
        return True
    # What listens at :: takes IPv4, too.
    return (listening == "::" or address.version == 4) and (address.is_loopback or is_own(host))


def is_milter(circumstances: Circumstances, entry: Entry, *, chrooted: bool) -> bool:
    """Tell whether *entry* leads to gatepost's milter."""
    return leads_to(circumstances, entry.address, [circumstances.config.milter.listen], chrooted=chrooted)


def is_policy(circumstances: Circumstances, restriction: Restriction, *, chrooted: bool) -> bool:
    """Tell whether *restriction* asks gatepost's policyd."""
    entry = policy(restriction)
    return entry is not None and leads_to(
        circumstances, entry.address, circumstances.config.policyd.listen, chrooted=chrooted
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


@lru_cache(maxsize=1)
def tables(circumstances: Circumstances) -> Tables:
    """Return Postfix's tables, with gatepost's own left out of the lists of domains: it has none, and may be away."""
    postfix, lists = circumstances.postfix, {}
    for name in DOMAIN_LISTS:
        ours = [item.text for item in lookups(postfix.expanded(name)) if is_map(circumstances, item, REVERSE)]
        lists[name] = ", ".join(item for item in postfix.entries(name) if item not in ours)
    return Tables(replace(postfix, expansions={**postfix.expansions, **lists}))


def leads_to(circumstances: Circumstances, address: str, listens: Sequence[Listen], *, chrooted: bool) -> bool:
    """Tell whether *address* as a daemon of Postfix takes it is one of *listens*."""
    meant = listen_of(address, circumstances.postfix.queue_directory, chrooted=chrooted)
    return any(same(meant, listen) for listen in listens)


def named_like_gatepost(circumstances: Circumstances, address: str, listens: Sequence[Listen]) -> bool:
    """Tell whether *address* seems to mean gatepost without leading to it: by its socket's name, or its port."""
    names = {Path(listen.path).name for listen in listens if listen.path}
    port = listen_of(address, circumstances.postfix.queue_directory, chrooted=False).port
    return "gatepost" in address or Path(address).name in names or port in {item.port for item in listens if item.port}


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


def pickups(postfix: PostfixConfig) -> list[Service]:
    """Return the services that take mail from sendmail(1)."""
    return [service for service in postfix.services if service.command == "pickup"]


def cleanup_of(postfix: PostfixConfig, service: Optional[Service]) -> Optional[Service]:
    """Return the cleanup(8) to which *service* gives what it takes; without one, to which daemons give bounces."""
    return postfix.service(seen(postfix, service, "cleanup_service_name"), "unix")


def unique(services: Iterable[Optional[Service]]) -> list[Optional[Service]]:
    return list({service.key if service else "": service for service in services}.values())


def named(services: Sequence[Service]) -> str:
    return ", ".join(service.key for service in services)


def seen(postfix: PostfixConfig, service: Optional[Service], name: str) -> str:
    """Return a parameter as *service* sees it, as main.cf has it without one."""
    return postfix.effective(service, name) if service else postfix.expanded(name)


# Commands to paste


def postconf(circumstances: Circumstances, setting: str, value: str, service: Optional[Service] = None) -> list[str]:
    """Return the commands that set a parameter: in main.cf, or where *service* overrides it, there."""
    if service is None or setting not in service.overrides:
        edit = f"-e {shlex.quote(f'{setting} = {value}'.rstrip())}"
    elif re.search(r"\s", value):  # which -P refuses
        line = entry_line(service, [Change(service.key, setting, None, value, "")])
        edit = f"-M {shlex.quote(f'{service.key}={line}')}"
    else:
        edit = f"-P {shlex.quote(f'{service.key}/{setting}={value}')}"
    return [f"postconf{instance(circumstances)} {edit}", reload_postfix(circumstances)]


def written(postfix: PostfixConfig, name: str, service: Optional[Service] = None) -> str:
    """Return a parameter as it stands in master.cf or main.cf, a default as what it comes to: to be written back."""
    if service and name in service.overrides:
        return service.overrides[name]
    return postfix.value(name) if postfix.is_set(name) else postfix.expanded(name).replace("$", "$$")


def edited(
    postfix: PostfixConfig,
    name: str,
    changes: Mapping[str, str],
    service: Optional[Service] = None,
    *,
    first: str = "",
    last: str = "",
) -> str:
    """Return a list to be written back, with entries *first* and *last*.

    changes: entries, as daemons see them, and what is to stand in their place, "" to take them out. Where they do not
    stand in the list itself, but in what it names, it is written out.
    """
    entries = _with_arguments(written(postfix, name, service))
    if not set(changes) <= {entry.replace("$$", "$") for entry in entries}:
        entries = _with_arguments(seen(postfix, service, name).replace("$", "$$"))
    kept = [changes.get(entry.replace("$$", "$"), entry) for entry in entries]
    found = [first, *(entry for entry in kept if entry not in (first, last)), last]
    return ", ".join(filter(None, found))


def _with_arguments(value: str) -> list[str]:
    """Return the entries of a list, check_… and what it asks being one."""
    found: list[str] = []
    for entry in split(value):
        if found and re.fullmatch(TAKES_ARGUMENT, found[-1].split()[-1]):
            found[-1] += f" {entry}"
        else:
            found.append(entry)
    return found
