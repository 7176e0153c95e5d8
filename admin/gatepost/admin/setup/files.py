# SPDX-License-Identifier: GPL-3.0-or-later
"""Keep main.cf and master.cf as they were before setup, and put them back byte for byte."""

from __future__ import annotations

import contextlib
import difflib
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Optional

FOLDER = "gatepost-setup"
NAMES = ("main.cf", "master.cf")
_RECORD = "setup.json"
_APPLIED = ".applied"


@dataclass(frozen=True)
class Saved:
    """A file's content and whose it was. link: where it led, if it was a symbolic link (postconf replaces those)."""

    octets: bytes
    mode: int
    uid: int
    gid: int
    link: Optional[str] = None

    @staticmethod
    def of(path: Path) -> Saved:
        status = path.stat()
        link = os.readlink(path) if path.is_symlink() else None
        return Saved(path.read_bytes(), status.st_mode & 0o7777, status.st_uid, status.st_gid, link)

    def restore(self, path: Path) -> None:
        """Put the file back, in one step."""
        if self.link is not None and not path.is_symlink():
            path.unlink()
            path.symlink_to(self.link)
        write(Path(os.path.realpath(path)), self.octets, self.mode, (self.uid, self.gid))


def write(path: Path, octets: bytes, mode: int, owner: tuple[int, int]) -> None:
    """Write a file under another name first, so that nobody ever reads half of it."""
    beside = path.with_name(f"{path.name}.gatepost")
    descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600)
    try:
        with open(descriptor, "wb") as file:
            file.write(octets)
            file.flush()
            os.fchown(file.fileno(), *owner)
            os.fchmod(file.fileno(), mode)
            os.fsync(file.fileno())
        os.replace(beside, path)
    except BaseException:
        with contextlib.suppress(OSError):
            beside.unlink()
        raise


@dataclass(frozen=True)
class Record:
    """What setup has done in a configuration directory. edits: what somebody changed by hand between two runs."""

    topology: str
    created: tuple[str, ...]
    modes: dict[str, tuple[int, int, int, Optional[str]]]
    edits: str = ""


class Copies:
    """The copies beside main.cf, in a folder that root alone may enter.

    Not in gatepost's state directory: its user could replace them there, and --undo would hand that to Postfix.
    """

    def __init__(self, config_directory: Path) -> None:
        self._directory = config_directory
        self._folder = config_directory / FOLDER

    @property
    def folder(self) -> Path:
        return self._folder

    def record(self) -> Optional[Record]:
        """Return what was done before, None where nothing was."""
        try:
            found = json.loads((self._folder / _RECORD).read_text())
        except FileNotFoundError:
            return None
        modes = {name: tuple(mode) for name, mode in found["modes"].items()}
        return Record(found["topology"], tuple(found["created"]), modes, found["edits"])

    def keep(self, topology: str, created: Sequence[str]) -> None:
        """Copy both files as they are now, or note that they were changed by hand since the last time."""
        before = self.record()
        if before is not None:
            edits = before.edits + "".join(self.edits())
            self._note(Record(topology, tuple(sorted({*before.created, *created})), before.modes, edits))
            return
        self._folder.mkdir(mode=0o700, exist_ok=True)
        modes = {}
        for name in NAMES:
            saved = Saved.of(self._directory / name)
            write(self._folder / name, saved.octets, 0o600, (os.geteuid(), os.getegid()))
            modes[name] = (saved.mode, saved.uid, saved.gid, saved.link)
        self._note(Record(topology, tuple(sorted(created)), modes))

    def _note(self, record: Record) -> None:
        text = json.dumps(asdict(record), indent=1)
        write(self._folder / _RECORD, text.encode(), 0o600, (os.geteuid(), os.getegid()))

    def applied(self) -> None:
        """Note the files as setup leaves them, to know later whether somebody else has changed them."""
        record = self.record()
        for name in (*NAMES, *(record.created if record else ())):
            octets = (self._directory / name).read_bytes()
            write(self._folder / f"{name}{_APPLIED}", octets, 0o600, (os.geteuid(), os.getegid()))

    def edits(self) -> Iterator[str]:
        """Yield the lines of a diff: what was changed since setup left the files. An interrupted setup left none."""
        record = self.record()
        for name in (*NAMES, *(record.created if record else ())):
            left = self._folder / f"{name}{_APPLIED}"
            if not left.exists():
                left = self._folder / name
            before, after = (_lines(path) for path in (left, self._directory / name))
            yield from difflib.unified_diff(before, after, f"{name} as setup left it", f"{name} as it is")

    def restore(self) -> None:
        """Put main.cf and master.cf back."""
        record = self.record()
        if record is None:
            return
        for name, (mode, uid, gid, link) in record.modes.items():
            Saved((self._folder / name).read_bytes(), mode, uid, gid, link).restore(self._directory / name)

    def forget(self) -> None:
        """Delete the copies, and what setup has added beside main.cf."""
        record = self.record()
        for name in record.created if record else ():
            (self._directory / name).unlink(missing_ok=True)
        shutil.rmtree(self._folder, ignore_errors=True)


def _lines(path: Path) -> list[str]:
    try:
        text = path.read_bytes().decode(errors="backslashreplace")
    except OSError:
        return []
    return [line if line.endswith("\n") else f"{line}\n" for line in text.splitlines(keepends=True)]
