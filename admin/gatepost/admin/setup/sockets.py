# SPDX-License-Identifier: GPL-3.0-or-later
"""Work out how an instance of Postfix is to call gatepost's sockets, chrooted daemons included."""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Optional

from gatepost.admin.postfix.config import PostfixConfig, split
from gatepost.admin.postfix.wiring import Sockets, Topology
from gatepost.service.config import Config
from gatepost.service.fields import Listen

_ASKING = {"milter": ("smtpd", "cleanup"), "policyd": ("smtpd", "cleanup", "trivial-rewrite", "qmgr")}
_TIMEOUT_S = 2.0


class UnreachableError(Exception):
    """A chrooted daemon of Postfix could not reach a socket; the text says which, and what helps."""


def sockets(config: PostfixConfig, gatepost: Config, topology: Topology) -> Sockets:
    """Return what main.cf calls them. Raises UnreachableError."""
    policyd, _ = _called(config, gatepost.policyd.listen, "policyd")
    milter, _ = _called(config, [gatepost.milter.listen], "milter") if topology.has_milter else ("", None)
    if topology is not Topology.POSTSRSD_REPLACEMENT:
        return Sockets(milter, policyd)
    forward, reverse = gatepost.policyd.tcp_table_forward, gatepost.policyd.tcp_table_reverse
    return Sockets(milter, policyd, _tcp_table(forward), _tcp_table(reverse))


def silent(config: PostfixConfig, gatepost: Config, topology: Topology) -> list[Listen]:
    """Return the sockets that Postfix is to call and where nothing answers: mail would be put off until it does."""
    wanted = [_called(config, gatepost.policyd.listen, "policyd")[1]]
    if topology.has_milter:
        wanted.append(_called(config, [gatepost.milter.listen], "milter")[1])
    if topology is Topology.POSTSRSD_REPLACEMENT:
        tables = (gatepost.policyd.tcp_table_forward, gatepost.policyd.tcp_table_reverse)
        wanted += [listens[0] for listens in tables if listens]
    return [listen for listen in wanted if not answers(listen)]


def _tcp_table(listens: Sequence[Listen]) -> Optional[str]:
    """Return the tcp_table that takes postsrsd's place, where gatepost listens for one."""
    return next((f"tcp:{_local(listen)}" for listen in listens if listen.host), None)


def _called(config: PostfixConfig, listens: Sequence[Listen], section: str) -> tuple[str, Listen]:
    """Return what Postfix is to call one of *listens*, and which one that is. Raises UnreachableError."""
    queue = config.queue_directory
    for listen in listens:
        inside = _below(listen.path, queue) if listen.path else None
        if inside:
            return f"unix:{inside}", listen
    for listen in listens:
        if listen.host:
            return f"inet:{_local(listen)}", listen
    chrooted = [item.key for item in config.services if item.command in _ASKING[section] and config.is_chrooted(item)]
    if not chrooted:
        return f"unix:{listens[0].path}", listens[0]
    port = 10040 if section == "milter" else 10041
    raise UnreachableError(
        f"{', '.join(chrooted)} in master.cf: chrooted to {queue}, so {listens[0].path} is out of reach."
        f' In gatepost.toml, [{section}] listen, use "unix:{queue}/gatepost/{section}.sock" or "inet:127.0.0.1:{port}"'
    )


def _below(path: str, queue: Path) -> Optional[str]:
    """Return *path* relative to the queue directory, None where it is elsewhere."""
    for given, folder in ((path, str(queue)), (os.path.realpath(path), os.path.realpath(queue))):
        relative = os.path.relpath(given, folder)
        if not relative.startswith(".."):
            return relative
    return None


def _local(listen: Listen) -> str:
    """Return host and port at which this host reaches what listens there, on all addresses maybe."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(listen.host, listen.host)
    return str(Listen(host=host, port=listen.port)).partition(":")[2]


def endpoint(entry: str) -> str:
    """Return the socket that an entry of smtpd_milters or check_policy_service names, in braces or not."""
    inner = split(entry.strip("{} \t")) if entry.startswith("{") else [entry]
    return inner[0] if inner else ""


def same(config: PostfixConfig, one: str, other: str) -> bool:
    """Say whether two endpoints are the same socket: a path in the queue directory counts from there."""
    return _absolute(config, one) == _absolute(config, other)


def _absolute(config: PostfixConfig, text: str) -> str:
    kind, _, rest = text.partition(":")
    if kind == "unix":
        return f"unix:{os.path.realpath(config.queue_directory / rest)}"
    return re.sub(r"\blocalhost\b", "127.0.0.1", text)


def answers(listen: Listen) -> bool:
    """Say whether something listens there. A socket that may not be opened counts as one that does."""
    family = socket.AF_UNIX if listen.path else socket.AF_INET6 if ":" in listen.host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as client:
        client.settimeout(_TIMEOUT_S)
        try:
            client.connect(listen.path or (listen.host, listen.port))
        except PermissionError:
            return True
        except OSError:
            return False
    return True
