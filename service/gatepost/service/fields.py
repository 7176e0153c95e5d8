# SPDX-License-Identifier: GPL-3.0-or-later
"""Values of the configuration file that have a form of their own: domains, domain patterns, addresses to listen on."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Optional

from gatepost.relay import normalize_domain
from gatepost.service.regular import read_regular
from gatepost.service.tables import Table


@dataclass(frozen=True)
class Listen:
    """An address to listen on: *path* for a Unix socket, else *host* and *port*."""

    path: str = ""
    host: str = ""
    port: int = 0

    def __str__(self) -> str:
        return f"unix:{self.path}" if self.path else f"inet:{self.host_and_port}"

    @property
    def host_and_port(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def libmilter(self) -> str:
        """The same in libmilter's spelling (smfi_setconn)."""
        if self.path:
            return f"unix:{self.path}"
        return f"{'inet6' if ':' in self.host else 'inet'}:{self.port}@{self.host}"


def domain(table: Table, name: str, text: str) -> str:
    """Return *text* in normal form; "" and a problem where it is no domain."""
    found = normalize_domain(text)
    if found is None:
        table.problem(name, f'"{text}" is not a domain name (e.g. "contoso.com")')
    return found or ""


def domains(table: Table, name: str) -> tuple[str, ...]:
    """Return the domains in the list *name*."""
    found = (domain(table, f"{name}[{index}]", text) for index, text in enumerate(table.strings(name)))
    return tuple(filter(None, found))


def patterns(table: Table, name: str) -> tuple[str, ...]:
    """Return the domain patterns in the list *name*."""
    return _patterns(table, [(f"{name}[{index}]", text) for index, text in enumerate(table.strings(name))])


def pattern_file(table: Table, name: str, folder: Path) -> tuple[Optional[Path], tuple[str, ...]]:
    """Return the file that *name* gives, relative to *folder*, and the domain patterns in it, one a line."""
    given = table.optional_string(name)
    if not given:
        return None, ()
    path = folder / given
    try:
        lines = read_regular(path).decode("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        why = "is not UTF-8" if isinstance(error, UnicodeDecodeError) else f"cannot be read: {error.strerror}"
        table.problem(name, f"{path}: {why}")
        return path, ()
    texts = ((number, line.partition("#")[0].strip()) for number, line in enumerate(lines, 1))
    return path, _patterns(table, [(f"{name}: {path} line {number}", text) for number, text in texts if text])


def _patterns(table: Table, entries: list[tuple[str, str]]) -> tuple[str, ...]:
    found = []
    for name, text in entries:
        wildcard = "*." if text.startswith("*.") else ""
        normal = normalize_domain(text[len(wildcard) :])
        if normal is None:
            examples = 'e.g. "fabrikam.com", "*.fabrikam.com"'
            fitting = f'subdomains are "*{text}"' if text.startswith(".") else examples
            table.problem(name, f'"{text}" is no domain and no pattern ({fitting})')
        else:
            found.append(wildcard + normal)
    return tuple(found)


def listen(table: Table, name: str, text: str) -> Listen:
    """Return the address that *text* gives, with its scheme."""
    kind, _, rest = text.partition(":")
    if kind == "unix" and rest.startswith("/"):
        if len(os.fsencode(rest)) <= 107:  # sun_path of Linux, less the closing NUL
            return Listen(path=rest)
        table.problem(name, f'"{rest}" is longer than the 107 octets that a Unix socket may have')
        return Listen()
    found = host_and_port(rest) if kind == "inet" else None
    if found is None:
        table.problem(name, f'"{text}" is no address (e.g. "unix:/run/x.sock", "inet:127.0.0.1:10041")')
    return found or Listen()


def listens(table: Table, name: str, default: tuple[Listen, ...] = ()) -> tuple[Listen, ...]:
    """Return the addresses in the list *name*."""
    texts = table.strings(name, [str(item) for item in default])
    return tuple(listen(table, f"{name}[{index}]", text) for index, text in enumerate(texts))


def host_and_port(text: str) -> Optional[Listen]:
    """Return the address that `host:port` or `[host]:port` gives, None where it is none."""
    host, _, port = text.rpartition(":")
    if not host or not (port.isascii() and port.isdigit()) or not (len(port) < 6 and 0 < int(port) < 65536):
        return None
    return Listen(host=host.strip("[]"), port=int(port))
