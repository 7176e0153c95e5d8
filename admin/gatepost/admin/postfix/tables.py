# SPDX-License-Identifier: GPL-3.0-or-later
"""Ask Postfix's own lookup tables and lists of domains, by postmap(1)."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from subprocess import TimeoutExpired
from typing import Optional

from gatepost.admin.postfix.config import PostfixConfig, PostfixError, run, split

DOMAIN_LISTS = ("mydestination", "virtual_alias_domains", "virtual_mailbox_domains", "relay_domains")
"""The parameters that say which domains are not outside."""

_TABLE = re.compile(r"^(?:proxy:)?[a-z0-9_]+:")
_REVERSE = re.compile(r"^socketmap:[^{}]*:reverse$")
"""gatepost's map, and postsrsd's: it has addresses only, and is not asked about domains."""
_QUERY_S = 5.0
_LIST_S = 60.0
_TEXT_TABLES = ("regexp", "pcre", "cidr", "texthash")


def is_table(entry: str) -> bool:
    """Say whether an entry of a list is a lookup table, `type:name`."""
    return _TABLE.match(entry) is not None


@dataclass(frozen=True)
class Tables:
    """The lookup tables of one Postfix instance. One that cannot be asked raises PostfixError, and is asked once.

    query_s: how long a table may take to answer.
    """

    config: PostfixConfig
    query_s: float = _QUERY_S

    def query(self, table: str, key: str) -> Optional[str]:
        """Return what *table* has for *key*, None if nothing."""
        failed = self.config.failed_tables
        if table in failed:
            raise PostfixError(failed[table])
        try:
            return self._postmap("-q", key, table, timeout_s=self.query_s).rstrip("\n")
        except PostfixError as error:
            # Status 1 and nothing fatal: nothing found. Warnings may be of main.cf.
            if not ("fatal:" in str(error) or isinstance(error.__cause__, TimeoutExpired)):
                return None
            failed[table] = str(error)
            raise

    def entries(self, table: str) -> list[tuple[str, str]]:
        """Return all keys and values of *table*; regexp, LDAP, SQL and others cannot list theirs."""
        pairs = (line.partition("\t") for line in self._postmap("-s", table).splitlines())
        return [(key, value) for key, _, value in pairs]

    def text(self, table: str) -> str:
        """Return what stands in *table*, as it is written or as its entries are; "" where that cannot be told."""
        kind, _, name = table.removeprefix("proxy:").partition(":")
        try:
            if name.lstrip().startswith("{") or kind == "static":
                return name
            if kind in _TEXT_TABLES:
                return "\n".join(_lines(name))
            return "\n".join(f"{key} {value}" for key, value in self.entries(table))
        except PostfixError:
            return ""

    def _postmap(self, *arguments: str, timeout_s: float = _LIST_S) -> str:
        *options, table = arguments
        postmap = Path(self.config.postconf).with_name("postmap")
        # proxymap(8) would be asked in place of the table, and for some types refuses; relative socket paths count
        # from the queue directory, as they do for daemons.
        table = table[len("proxy:") :] if table.startswith("proxy:") else table
        folder = self.config.queue_directory
        command = [str(postmap), "-c", str(self.config.config_directory), *options, table]
        return run(command, folder if folder.is_dir() else None, timeout_s)[0]


def contains(tables: Tables, entries: list[str], domain: str, *, subdomains: bool = False) -> bool:
    """Say whether a list of domains as in relay_domains names *domain*. subdomains: a name stands for its own too."""
    for entry in entries:
        negated, pattern = entry.startswith("!"), entry.lstrip("!")
        names = [domain, *(_parents(domain) if subdomains else [])]
        if _REVERSE.match(pattern):
            found = False
        elif is_table(pattern):
            found = any(tables.query(pattern, name) is not None for name in names)
        elif pattern.startswith("/"):
            found = contains(tables, file_entries(pattern), domain, subdomains=subdomains)
        else:
            found = pattern.lower() in names
        if found:
            return not negated
    return False


def domain_list(tables: Tables, domain: str) -> Optional[str]:
    """Return the parameter of DOMAIN_LISTS that names *domain*, None where it is outside."""
    config = tables.config
    with_subdomains = config.entries("parent_domain_matches_subdomains")
    for name in DOMAIN_LISTS:
        if contains(tables, config.entries(name), domain, subdomains=name in with_subdomains):
            return name
    return None


def outside(tables: Tables, domains: Iterable[str]) -> list[str]:
    """Return which of *domains* Postfix takes for outside: in no list, and with no way of their own in transport_maps.

    Tables are asked about those only that nothing lists. What a table does not answer counts as known.
    """
    config = tables.config
    listed = {domain for name in DOMAIN_LISTS for domain, is_domain in _listing(tables, name) if is_domain}
    routes = config.entries("transport_maps")
    return [domain for domain in domains if domain not in listed and not _is_known(tables, domain, routes)]


def _listing(tables: Tables, name: str) -> Iterator[tuple[str, bool]]:
    try:
        yield from listed_domains(tables, name)
    except PostfixError:
        return


def _is_known(tables: Tables, domain: str, routes: list[str]) -> bool:
    try:
        return domain_list(tables, domain) is not None or any(tables.query(table, domain) for table in routes)
    except PostfixError:
        return True


def listed_domains(tables: Tables, name: str) -> Iterator[tuple[str, bool]]:
    """Yield each domain that a list names, with True; an entry that cannot be listed, with False."""
    for entry in tables.config.entries(name):
        yield from _listed(tables, entry)


def _listed(tables: Tables, entry: str) -> Iterator[tuple[str, bool]]:
    if entry.startswith("!") or _REVERSE.match(entry):
        return
    if is_table(entry):
        try:
            keys = [key for key, _ in tables.entries(entry)]
        except PostfixError:
            yield entry, False
            return
        # A table of virtual_alias_maps has addresses beside its domains.
        yield from ((key.lower(), True) for key in keys if "@" not in key and re.fullmatch(r"[\w-]+(\.[\w-]+)+", key))
    elif entry.startswith("/"):
        for inner in file_entries(entry):
            yield from _listed(tables, inner)
    else:
        yield entry.lower(), True


def file_entries(path: str) -> list[str]:
    """Return the entries of a list that stands in a file. Raises PostfixError."""
    return [entry for line in _lines(path) for entry in split(line.partition("#")[0])]


def _lines(path: str) -> list[str]:
    """Return the lines of a file but for comments."""
    try:
        lines = Path(path).read_text(errors="surrogateescape").splitlines()
    except OSError as error:
        raise PostfixError(f"{path}: {error.strerror}") from error
    return [line for line in lines if not line.lstrip().startswith("#")]


def _parents(domain: str) -> Iterator[str]:
    _, dot, rest = domain.partition(".")
    while dot:
        yield rest
        _, dot, rest = rest.partition(".")
