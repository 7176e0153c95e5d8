# SPDX-License-Identifier: GPL-3.0-or-later
"""Checks of gatepost's sockets: who may reach them, whether a daemon answers there, and with which configuration."""

from __future__ import annotations

import os
import pwd
import shlex
import socket
import stat
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Optional

from gatepost.admin.doctor.model import (
    Check,
    Circumstances,
    Finding,
    as_root,
    edit,
    error,
    ok,
    reload_daemons,
    unknown,
    warning,
)
from gatepost.admin.doctor.postfix import topology
from gatepost.admin.setup import sockets as setup_sockets
from gatepost.admin.setup.sockets import UnreachableError
from gatepost.policyd import decisions
from gatepost.policyd.wire import netstring
from gatepost.service import rewriting
from gatepost.service.fields import Listen
from gatepost.srs import AddressError

_TIMEOUT_S = 5.0
_STRANGER = "doctor@gatepost.invalid"
"""An address in a domain that is nobody's (RFC 6761, 6.4)."""
_NEGOTIATION = struct.pack("!IcIII", 13, b"O", 6, 0x1FF, 0x1FFFFF)
"""SMFIC_OPTNEG of milter protocol 6: all actions, all protocol steps."""


def _used(circumstances: Circumstances) -> list[tuple[str, Listen]]:
    """Return the sockets that an MTA asks, with the key in gatepost.toml that names each."""
    config = circumstances.config
    milter = not circumstances.has_postfix or topology(circumstances).has_milter
    policyd = config.policyd
    return [
        *([("milter.listen", config.milter.listen)] if milter else []),
        *(("policyd.listen", listen) for listen in policyd.listen),
        *(("policyd.tcp_table_forward", listen) for listen in policyd.tcp_table_forward),
        *(("policyd.tcp_table_reverse", listen) for listen in policyd.tcp_table_reverse),
    ]


def chroot(circumstances: Circumstances) -> Iterator[Finding]:
    """Whether Postfix's daemons, chrooted or not, can see the sockets."""
    postfix = circumstances.postfix
    try:
        found = setup_sockets.sockets(postfix, circumstances.config, topology(circumstances))
    except UnreachableError as unreachable:
        yield error(
            str(unreachable),
            "To a chrooted daemon the queue directory is the root of all paths; it cannot open what is elsewhere.",
            edit(circumstances, f'listen = "unix:{postfix.queue_directory}/gatepost/…"'),
        )
    else:
        yield ok(f"within Postfix's reach: {', '.join(filter(None, (found.milter, found.policyd)))}")


# Modes


@dataclass(frozen=True)
class _User:
    """Whom a daemon of Postfix is: mail_owner with its primary group, and no other group."""

    name: str
    uid: int
    gid: int
    group: str


def modes(circumstances: Circumstances) -> Iterator[Finding]:
    """Whether Postfix's user may open the sockets, and others may not."""
    name = circumstances.postfix.expanded("mail_owner")
    try:
        account = pwd.getpwnam(name)
    except KeyError:
        yield unknown(f"mail_owner is {name}, and there is no such user")
        return
    group = _group_name(account.pw_gid)
    user = _User(name, account.pw_uid, account.pw_gid, group)
    for key, listen in _used(circumstances):
        if listen.path:
            yield from _modes(circumstances, key, Path(listen.path), user)


def _group_name(gid: int) -> str:
    import grp

    try:
        return grp.getgrgid(gid).gr_name
    except KeyError:
        return str(gid)


def _modes(circumstances: Circumstances, key: str, path: Path, user: _User) -> Iterator[Finding]:
    try:
        found = path.stat()
        folders = [folder.stat() for folder in path.parents]
    except FileNotFoundError:
        return  # the check of who answers says so
    except PermissionError:
        yield unknown(f"{key}: {path} could not be looked at", "", as_root(circumstances))
        return
    closed = next((folder for folder, its in zip(path.parents, folders) if not _may(user, its, stat.S_IXUSR)), None)
    if closed:
        yield error(
            f"{key}: Postfix's user {user.name} may not enter {closed} ({_mode(closed)})",
            "Postfix cannot reach gatepost: mail is put off, and bounces wait in the queue.",
            *_opened(user, closed, "2750"),
        )
    elif not _may(user, found, stat.S_IWUSR):
        yield error(
            f"{key}: Postfix's user {user.name} may not write to {path} ({_mode(path)})",
            "Postfix cannot reach gatepost: mail is put off, and bounces wait in the queue.",
            *_opened(user, path.parent, "2750"),
            *_opened(user, path, "0660"),
        )
    elif found.st_mode & stat.S_IWOTH and all(its.st_mode & stat.S_IXOTH for its in folders):
        yield warning(
            f"{key}: every user of this host may write to {path} ({_mode(path)})",
            "Any program here can pass itself off as Postfix: claim to be a client that may relay, and ask for the "
            "senders behind SRS addresses.",
            f"chmod 2750 {shlex.quote(str(path.parent))}",
            f"chmod 0660 {shlex.quote(str(path))}",
        )
    else:
        yield ok(f"{path}: {user.name} may write to it")


def _opened(user: _User, path: Path, mode: str) -> list[str]:
    """Return the commands that open *path* to Postfix's group."""
    return [f"chgrp {user.group} {shlex.quote(str(path))}", f"chmod {mode} {shlex.quote(str(path))}"]


def _may(user: _User, its: os.stat_result, bit: int) -> bool:
    """Tell whether *user* has the permission *bit* (of the owner's three) on a file."""
    if its.st_uid == user.uid:
        return bool(its.st_mode & bit)
    if its.st_gid == user.gid:
        return bool(its.st_mode & bit >> 3)
    return bool(its.st_mode & bit >> 6)


def _mode(path: Path) -> str:
    its = path.stat()
    try:
        owner = pwd.getpwuid(its.st_uid).pw_name
    except KeyError:
        owner = str(its.st_uid)
    return f"{stat.filemode(its.st_mode)} {owner}:{_group_name(its.st_gid)}"


# Answers


def answers(circumstances: Circumstances) -> Iterator[Finding]:
    """Whether a daemon answers at each socket, in its protocol."""
    for key, listen in _used(circumstances):
        if listen.path and not os.path.isdir(os.path.dirname(listen.path)):
            continue  # the check of the folders says so
        daemon = "milter" if key.startswith("milter") else "policyd"
        service = f"systemctl restart gatepost-{daemon}"
        try:
            problem = _broken(circumstances, key, listen)
        except PermissionError:
            yield unknown(f"{key}: {listen} may not be opened by this user", "", as_root(circumstances))
            continue
        except (FileNotFoundError, ConnectionRefusedError):
            yield error(
                f"{key}: nobody listens at {listen}",
                f"gatepost's {daemon} is not running, or listens elsewhere. Mail is put off until it is back.",
                service,  # which starts it where it does not run
                f"journalctl -u gatepost-{daemon} -n 50",
            )
            continue
        except OSError as failure:
            problem = str(failure) or type(failure).__name__
        if problem:
            yield error(
                f"{key}: what listens at {listen} does not answer as gatepost's {daemon} does: {problem}",
                "It hangs, or another program listens there. Mail is put off meanwhile.",
                service,
                f"journalctl -u gatepost-{daemon} -n 50",
            )
        else:
            yield ok(f"{daemon} answers at {listen}")


def _broken(circumstances: Circumstances, key: str, listen: Listen) -> str:
    """Return what is wrong with the answers at a socket, "" if nothing is. Raises OSError."""
    if key == "milter.listen":
        return _unlike(ask(listen, _NEGOTIATION, 5)[4:5], b"O")
    if key.startswith("policyd.tcp_table"):
        return _unlike(ask(listen, b"get @gatepost.invalid\n", 4)[:1], b"5")
    policy = b"request=smtpd_access_policy\nprotocol_state=CONNECT\n\n"
    answer = ask(listen, policy, len(b"action=DUNNO\n\n"))
    return _unlike(answer, b"action=DUNNO\n\n") or _unlike(_socketmap(listen, "reverse", "gatepost.invalid")[:2], "NO")


def _unlike(answer: object, expected: object) -> str:
    return "" if answer == expected else f"{answer!r}"


def _socketmap(listen: Listen, name: str, key: str) -> str:
    request = netstring(f"{name} {key}".encode("utf-8", "surrogateescape"))
    length, _, rest = ask(listen, request, 4).partition(b":")
    return rest[: int(length)].decode("utf-8", "replace") if length.isdigit() else ""


def ask(listen: Listen, request: bytes, octets: int) -> bytes:
    """Return the first answer to *request*, *octets* at least. Raises OSError."""
    family = socket.AF_UNIX if listen.path else socket.AF_INET6 if ":" in listen.host else socket.AF_INET
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(listen.host, listen.host)
    with socket.socket(family, socket.SOCK_STREAM) as client:
        client.settimeout(_TIMEOUT_S)
        client.connect(listen.path or (host, listen.port))
        client.sendall(request)
        answer = b""
        while len(answer) < octets:
            more = client.recv(4096)
            if not more:
                break
            answer += more
        return answer


# Configuration in force


def in_force(circumstances: Circumstances) -> Iterator[Finding]:
    """Whether the running policyd has the keys and the configuration that the files have."""
    snapshot = circumstances.snapshot
    if circumstances.missing_secret or not circumstances.config.organizations:
        return
    listen = circumstances.config.policyd.listen[0]
    try:
        minted = rewriting.relayed(snapshot, _STRANGER, None, int(circumstances.now))
        address = minted.otherwise if minted.token else minted.address
        back = _socketmap(listen, "reverse", address) if address else f"OK {_STRANGER}"
        way_out = _socketmap(listen, "egress", _STRANGER)
    except (OSError, AddressError, ValueError):
        return  # the check of who answers says so
    if back != f"OK {_STRANGER}":
        yield error(
            f"policyd does not bring an address back that {circumstances.config.srs.secret_file} signs: {back}",
            "The running daemons have other keys or another configuration than the files: bounces may fail.",
            reload_daemons(circumstances),
            "journalctl -u gatepost-policyd -n 20",
        )
        return
    meant = _egress(circumstances)
    if meant is not None and way_out.strip() != meant:
        yield warning(
            f"policyd answers {way_out.strip()} where {circumstances.config.path} says {meant} (map egress)",
            "The running daemons have another configuration than the file: it was changed and not loaded, or could not "
            "be.",
            reload_daemons(circumstances),
            "journalctl -u gatepost-policyd -n 20",
        )
        return
    yield ok("policyd runs with the keys and the configuration of the files")


def _egress(circumstances: Circumstances) -> Optional[str]:
    """Return what the map egress says of a stranger, None where the store or DNS would have to be asked."""
    if circumstances.config.srs.only_spf:
        return None
    entry = decisions.look_up(circumstances.snapshot, "egress", _STRANGER, int(circumstances.now), lambda token: None)
    return f"{entry.found.value} {entry.text}".strip()


CHECKS = (
    Check("sockets-and-chroot", "Sockets", chroot),
    Check("socket-modes", "Sockets", modes),
    Check("daemons-answer", "Sockets", answers),
    Check("configuration-in-force", "Sockets", in_force),
)
