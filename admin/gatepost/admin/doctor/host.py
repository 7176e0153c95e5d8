# SPDX-License-Identifier: GPL-3.0-or-later
"""Checks of the host: who may read, write and reach gatepost's files and sockets, and room on the disk."""

from __future__ import annotations

import grp
import os
import pwd
import shlex
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Optional

from gatepost.admin.configuration import closed_to_owner
from gatepost.admin.doctor.model import (
    Check,
    Circumstances,
    Finding,
    as_root,
    error,
    ok,
    unknown,
    warning,
)
from gatepost.admin.doctor.store import sqlite_file
from gatepost.relay import enumeration
from gatepost.service import certificates
from gatepost.service.config import Config
from gatepost.service.snapshot import bypass_file

FULL_BYTES = 64 << 20
FULL_INODES = 1000
_SOON = 0.05
"""Share of the inodes."""
_WRITABLE = "Anybody on this host can change what gatepost does with mail."


def readable(circumstances: Circumstances) -> Iterator[Finding]:
    """Whether the daemons may read what the configuration names."""
    config = circumstances.config
    if not config.state_directory.is_dir():
        return
    if os.geteuid() != 0:
        yield unknown("whether the daemons may read their files can be told by root only", "", as_root(circumstances))
        return
    needed = [config.path, *([] if circumstances.missing_secret else [config.srs.secret_file])]
    wanted = named_files(config)
    folder = config.relay.certificate_folder
    user, closed = closed_to_owner(config, [*needed, *wanted])
    for path in closed:
        if folder in closed and folder in path.parents:
            continue
        yield (error if path in needed else warning)(
            f"{path}: the user of the daemons ({user}) may not read it",
            "The daemons do not start, or go on without it after the next reload.",
            f"chgrp {user} {quoted(path)} && chmod {'g+rx' if path.is_dir() else 'g+r'} {quoted(path)}",
        )
    if not closed:
        yield ok(f"{user} may read all files that the configuration names")


def named_files(config: Config) -> list[Path]:
    """Return what the daemons read beside gatepost.toml and the secret."""
    folder = config.relay.certificate_folder
    there = [folder, *certificates.files(folder)] if folder.is_dir() else []
    return [*config.exchange_exports, *config.srs.watched, *there]


def writable(circumstances: Circumstances) -> Iterator[Finding]:
    """Whether others may write what the daemons read."""
    config = circumstances.config
    paths = [config.path, config.path.absolute().parent, *config.exchange_exports, *config.srs.watched]
    paths += [config.relay.certificate_folder, config.state_directory]
    found = False
    for path in dict.fromkeys(paths):
        status = _stat(path)
        if status and status.st_mode & stat.S_IWOTH and not status.st_mode & stat.S_ISVTX:
            found = True
            yield error(
                f"{path} can be written by everybody (mode {stat.S_IMODE(status.st_mode):04o})",
                _WRITABLE,
                f"chmod o-w {quoted(path)}",
            )
    if not found:
        yield ok("nobody else may write the configuration or what it names")


def secret_readers(circumstances: Circumstances) -> Iterator[Finding]:
    """Whether nobody but the daemons and root may read the SRS secret. One open to all is never loaded."""
    config = circumstances.config
    status = _stat(config.srs.secret_file)
    if status is None:
        return
    daemons = _daemons_ids(config)
    strangers = []
    if daemons and status.st_uid not in (0, daemons[0]):
        strangers.append(_user(status.st_uid))
    if daemons and status.st_mode & stat.S_IRGRP and status.st_gid not in (0, daemons[1]):
        strangers.append(f"group {_group(status.st_gid)}")
    mode = _told(status)
    if daemons and strangers:
        yield warning(
            f"{config.srs.secret_file} ({mode}) can be read by {' and '.join(strangers)}",
            "Who has the secret can have any mail delivered here in the name of a bounce, to any address outside.",
            f"chown root:{_group(daemons[1])} {quoted(config.srs.secret_file)} && "
            f"chmod 0640 {quoted(config.srs.secret_file)}",
        )
    else:
        yield ok(f"{config.srs.secret_file}: {mode}")


def state_directory(circumstances: Circumstances) -> Iterator[Finding]:
    """Whether all in the state directory is the daemons', and nothing was left there by a run as root."""
    config = circumstances.config
    folder = config.state_directory
    status = _stat(folder)
    if status is None:
        yield warning(
            f"the state directory, {folder}, is not there",
            "The daemons cannot make it unless systemd or their user's rights let them: they do not start.",
            f"install -d -m 0750 -o gatepost -g gatepost {quoted(folder)}",
        )
        return
    owner = f"{_user(status.st_uid)}:{_group(status.st_gid)}"
    if status.st_uid == 0:
        yield warning(
            f"{folder} is root's",
            "The daemons run as root, or cannot write there: records, compact addresses and metrics need it.",
            f"chown -R gatepost:gatepost {quoted(folder)}",
        )
        return
    try:
        paths = [*_within(folder), *_database(config)]
        strange = [path for path in paths if (found := _stat(path)) and found.st_uid != status.st_uid]
    except PermissionError:
        yield unknown(f"{folder} cannot be read by this user", "", as_root(circumstances))
        return
    # Root's are welcome: the package makes the secret, and an administrator switches the bypass on.
    strange = [path for path in strange if path not in (config.srs.secret_file, bypass_file(config))]
    if strange:
        yield error(
            f"not {_user(status.st_uid)}'s, perhaps by a run as root: {enumeration([str(path) for path in strange])}",
            "The daemons cannot write there: records are lost, or mail is put off.",
            f"chown -R {owner} {quoted(folder)}",
        )
    else:
        yield ok(f"{folder}: all of it is {owner}'s")


def socket_folders(circumstances: Circumstances) -> Iterator[Finding]:
    """Whether the folders of the sockets are there, and hand their group, which is Postfix's, on to the sockets."""
    if not circumstances.has_mta:
        return  # its package makes the group, and what starts the daemons then the folder
    config = circumstances.config
    paths = [listen.path for listen in (config.milter.listen, *config.policyd.listen) if listen.path]
    for folder in dict.fromkeys(Path(path).parent for path in paths):
        status = _stat(folder)
        if status is None:
            yield error(
                f"the folder of the sockets, {folder}, is not there",
                "The daemons do not start, or listen where nobody comes: Postfix puts mail off.",
                f"install -d -m 2750 -o gatepost -g postfix {quoted(folder)}",
                "systemctl restart gatepost.target",
            )
        elif status.st_mode & (stat.S_ISGID | stat.S_IWOTH) or _group_of_user(status) == status.st_gid:
            yield ok(f"{folder}: {_told(status)}")
        else:
            yield warning(
                f"{folder} ({_told(status)}) does not hand its group on to the sockets",
                f"After the next start they have the daemons' group in place of {_group(status.st_gid)}, and Postfix "
                "may not use them.",
                f"chmod g+s {quoted(folder)}",
            )


def disk(circumstances: Circumstances) -> Iterator[Finding]:
    """Whether there is room for records and addresses."""
    config = circumstances.config
    folders = [config.state_directory, *(path.parent for path in _database(config))]
    for folder in dict.fromkeys(folders):
        try:
            room = os.statvfs(folder)
        except OSError:
            continue
        yield from judged_room(config, folder, room.f_bavail * room.f_frsize, room.f_favail, room.f_files)


def judged_room(config: Config, folder: Path, free_bytes: int, free_inodes: int, inodes: int) -> Iterator[Finding]:
    """Yield what is to be said of so much room in *folder*; inodes 0: it has no such limit."""
    told = f"{folder}: {free_bytes >> 20} MiB free"
    lost = "Records of the ledger are lost, compact addresses cannot be made, and mail may be put off."
    remedy = f"df -h {quoted(folder)}; df -i {quoted(folder)}; du -xsh {quoted(folder)}/*"
    if free_bytes < FULL_BYTES:
        yield error(told, lost, remedy)
    elif inodes and free_inodes < FULL_INODES:
        yield error(f"{folder}: {free_inodes} inodes free", lost, remedy)
    elif config.ledger.days and free_bytes < config.ledger.spool_bytes:
        limit = config.ledger.spool_bytes >> 20
        why = f"While the store is away the spool may take {limit} MiB (ledger.spool_megabytes). {lost}"
        yield warning(told, why, remedy)
    elif inodes and free_inodes < inodes * _SOON:
        yield warning(f"{folder}: {free_inodes} inodes of {inodes} free", lost, remedy)
    else:
        yield ok(told)


def quoted(path: Path) -> str:
    return shlex.quote(str(path))


def _stat(path: Path) -> Optional[os.stat_result]:
    try:
        return path.stat()
    except OSError:
        return None


def _database(config: Config) -> list[Path]:
    """Return the files of an SQLite store elsewhere."""
    file = sqlite_file(config)
    if file is None or file.parent == config.state_directory:
        return []
    return [file.with_name(file.name + suffix) for suffix in ("", "-wal", "-shm")]


def _within(folder: Path) -> Iterator[Path]:
    for path in sorted(folder.iterdir()):
        yield path
        if path.is_dir() and not path.is_symlink():
            yield from sorted(path.iterdir())


def _daemons_ids(config: Config) -> Optional[tuple[int, int]]:
    """Return user and group of the daemons, as the state directory has them; None where it is not there, or root's."""
    status = _stat(config.state_directory)
    return (status.st_uid, status.st_gid) if status and status.st_uid else None


def _group_of_user(status: os.stat_result) -> int:
    """Return the primary group of a file's owner, -1 where nobody is called so."""
    try:
        return pwd.getpwuid(status.st_uid).pw_gid
    except KeyError:
        return -1


def _told(status: os.stat_result) -> str:
    return f"{stat.S_IMODE(status.st_mode):04o}, {_user(status.st_uid)}:{_group(status.st_gid)}"


def _user(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def _group(gid: int) -> str:
    try:
        return grp.getgrgid(gid).gr_name
    except KeyError:
        return str(gid)


CHECKS = (
    Check("files-readable", "Host", readable),
    Check("files-writable", "Host", writable),
    Check("secret-readers", "Host", secret_readers),
    Check("state-directory", "Host", state_directory),
    Check("socket-folders", "Host", socket_folders),
    Check("disk", "Host", disk),
)
