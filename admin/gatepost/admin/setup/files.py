# SPDX-License-Identifier: GPL-3.0-or-later
"""Keep main.cf and master.cf as they were before setup, and put them back byte for byte.

Whatever ends the program, each file is whole, and its content one that the record knows: that from before, or one of
setup's own. Anything else is somebody's edit.
"""

from __future__ import annotations

import contextlib
import difflib
import hashlib
import json
import os
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Optional

from gatepost.admin.setup.merge import without

FOLDER = "gatepost-setup"
_RECORD = "setup.json"
_APPLIED = ".applied"
_ABSENT = "absent"

Contents = Mapping[str, Optional[bytes]]
"""Files of the configuration directory by name; None for one that there is not."""


class DamagedError(Exception):
    """The record of what setup has done cannot be understood; the text says what to do."""


class EditedError(Exception):
    """Somebody else writes a file at the same time."""


def write(path: Path, octets: bytes, *, mode: int) -> None:
    """Write a file in one step: it is the old one or the new one after a power cut, too."""
    _exchange({path: octets}, {}, mode)


def _exchange(wanted: Mapping[Path, Optional[bytes]], like: Mapping[Path, Path], mode: int) -> None:
    """Write or delete files, in that order. All are written elsewhere first, so that a full disk changes none.

    A link stays a link. like: the file whose owner, mode, ACL and other attributes one gets in place of root's and
    *mode*.
    """
    ready: dict[Path, Path] = {}
    try:
        for path, octets in wanted.items():
            if octets is not None:
                with _named(path):
                    ready[path] = _prepare(path, octets, mode, like.get(path))
        for path in wanted:
            with _named(path):
                target = Path(os.path.realpath(path))
                if path in ready:
                    os.replace(ready[path], target)
                else:
                    path.unlink(missing_ok=True)
                _sync(target.parent)
    finally:
        for beside in ready.values():
            with contextlib.suppress(OSError):
                beside.unlink()


def _prepare(path: Path, octets: bytes, mode: int, like: Optional[Path]) -> Path:
    beside = _beside(path)
    beside.unlink(missing_ok=True)  # left by one that was killed
    descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    try:
        with open(descriptor, "wb") as file:
            file.write(octets)
            file.flush()
            if like is None:
                os.fchmod(descriptor, mode)
            else:
                _resemble(beside, like)
            # Every program of Postfix waits until main.cf has been left alone for two seconds.
            os.utime(beside, (time.time() - 3,) * 2)
            os.fsync(descriptor)
    except BaseException:
        with contextlib.suppress(OSError):
            beside.unlink()
        raise
    return beside


@contextlib.contextmanager
def _named(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        error.filename, error.filename2 = str(path), None
        raise


def _beside(path: Path) -> Path:
    target = Path(os.path.realpath(path))
    return target.with_name(f"{target.name}.gatepost")


def _resemble(path: Path, like: Path) -> None:
    status = like.stat()
    os.chown(path, status.st_uid, status.st_gid)
    with contextlib.suppress(OSError):
        os.removexattr(path, "system.posix_acl_access")  # what the folder has given it
    shutil.copystat(like, path)


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@dataclass(frozen=True)
class Record:
    """What setup has done in a configuration directory.

    known: of each file that it changes, the digests of what was there and of what it has written. edits: what somebody
    changed by hand in its entries between two runs. adopted: the copies that have other edits, which take the place of
    the first ones.
    """

    topology: str
    known: dict[str, list[str]]
    edits: str = ""
    adopted: dict[str, str] = field(default_factory=dict)


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
        """Return what was done before, None where nothing was. Raises DamagedError."""
        try:
            found = json.loads((self._folder / _RECORD).read_bytes())
            known = {name: list(digests) for name, digests in found["known"].items()}
            return Record(str(found["topology"]), known, str(found["edits"]), dict(found["adopted"]))
        except FileNotFoundError:
            return None
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise DamagedError(
                f"{self._folder / _RECORD} is damaged. The files as they were before setup are beside it: compare them"
                f" with those in {self._directory}, put back what you want, and move {self._folder} away."
            ) from error

    def read(self, names: Sequence[str]) -> dict[str, Optional[bytes]]:
        """Return the files as they are."""
        return {name: _content(self._directory / name) for name in names}

    def keep(self, topology: str, old: Contents, made: Contents) -> None:
        """Copy what is to be changed, and note what is to be written, before anything is."""
        self._folder.mkdir(mode=0o700, exist_ok=True)
        edits = "" if self.adopt_edits() else "".join(self.edits())
        before = self.record() or Record(topology, {})
        known = {**before.known}
        new = {name: old[name] for name in made if name not in known}
        like = {self._folder / name: self._directory / name for name, octets in new.items() if octets is not None}
        _exchange({self._folder / name: octets for name, octets in new.items()}, like, 0o600)
        for name in made:
            known[name] = sorted({*known.get(name, ()), _digest(old[name]), _digest(made[name])})
        self._note(replace(before, known=known, edits=before.edits + edits))
        self.left(made)

    def _note(self, record: Record) -> None:
        write(self._folder / _RECORD, json.dumps(asdict(record), indent=1).encode(), mode=0o600)

    def put(self, made: Contents, old: Contents) -> None:
        """Write *made* where *old* is. Raises EditedError where it is not."""
        for name in made:
            if _content(self._directory / name) != old[name]:
                raise EditedError(f"{self._directory / name} has been changed by somebody else at the same time")
        self._put({name: octets for name, octets in made.items() if octets != old[name]})

    def take_back(self, made: Contents, old: Contents) -> None:
        """Write *old* where *made* is."""
        there = self.read(list(made))
        self._put({name: old[name] for name in reversed(list(made)) if made[name] == there[name] != old[name]})

    def left(self, files: Contents) -> None:
        """Note *files* as those that setup leaves, to show later what somebody else has changed."""
        _exchange({self._folder / f"{name}{_APPLIED}": octets or b"" for name, octets in files.items()}, {}, 0o600)

    def edits(self) -> Iterator[str]:
        """Yield the lines of a diff: what was changed since setup left the files. An interrupted setup left none."""
        for name, octets in self._edited().items():
            left = _content(self._folder / f"{name}{_APPLIED}") or _content(self._folder / name)
            yield from difflib.unified_diff(
                _lines(left), _lines(octets), f"{name} as setup left it", f"{name} as it is"
            )

    def adopt_edits(self) -> bool:
        """Make the edits in the copies, too. Say whether that could be: none of them touches what setup has changed."""
        record, edited = self.record(), self._edited()
        if record is None or not edited:
            return True
        merged = {name: self._without_ours(name, octets) for name, octets in edited.items()}
        if None in merged.values():
            return False
        # Under other names: the first ones count until the record says otherwise.
        adopted = {name: f"{name}.{_digest(octets)}" for name, octets in merged.items()}
        _exchange({self._folder / adopted[name]: octets for name, octets in merged.items()}, {}, 0o600)
        known = {name: [*record.known[name], _digest(edited[name]), _digest(merged[name])] for name in merged}
        self._note(replace(record, known={**record.known, **known}, adopted={**record.adopted, **adopted}))
        return True

    def _edited(self) -> Contents:
        record = self.record()
        known = record.known if record else {}
        return {name: octets for name, octets in self.read(list(known)).items() if _digest(octets) not in known[name]}

    def _without_ours(self, name: str, octets: Optional[bytes]) -> Optional[bytes]:
        made, before = _content(self._folder / f"{name}{_APPLIED}"), self._before(name)
        if octets is None or made is None or before is None:
            return None
        return without(made, before, octets)

    def _before(self, name: str) -> Optional[bytes]:
        record = self.record()
        return _content(self._folder / (record.adopted.get(name, name) if record else name))

    def restore(self) -> None:
        """Put back the files that were there before, main.cf first: whatever starts in between reads it."""
        record = self.record()
        known = record.known if record else {}
        before = {name: self._before(name) for name in reversed(list(known))}
        for name, octets in before.items():
            if octets is None and _ABSENT not in known[name]:
                raise DamagedError(f"{self._folder / name}, the file as it was before setup, has been deleted.")
        for name in before:
            with contextlib.suppress(OSError):  # room for them, on a full disk
                (self._folder / f"{name}{_APPLIED}").unlink()
        there = self.read(list(before))
        self._put({name: octets for name, octets in before.items() if octets not in (None, there[name])})

    def forget(self, names: Sequence[str] = ()) -> None:
        """Delete what setup has added beside main.cf, and the copies; also those of *names*, if it did not get far."""
        record = self.record()
        for name, digests in record.known.items() if record else ():
            path = self._directory / name
            _beside(path).unlink(missing_ok=True)
            if _ABSENT in digests and not (self._folder / name).exists():
                path.unlink(missing_ok=True)
        if self._folder.is_dir():
            (self._folder / _RECORD).unlink(missing_ok=True)  # from here on setup has changed nothing
            ours = (_RECORD, *names, *(record.known if record else ()))
            for copy in self._folder.iterdir():
                if copy.name.startswith(ours):
                    copy.unlink()
            with contextlib.suppress(OSError):  # not empty: somebody else's files
                self._folder.rmdir()

    def _put(self, files: Contents) -> None:
        like = {}
        for name in files:
            for file in (self._folder / name, self._directory / name):
                if file.exists():
                    like[self._directory / name] = file
        _exchange({self._directory / name: octets for name, octets in files.items()}, like, 0o644)


def _content(path: Path) -> Optional[bytes]:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None


def _digest(octets: Optional[bytes]) -> str:
    return _ABSENT if octets is None else hashlib.sha256(octets).hexdigest()


def _lines(octets: Optional[bytes]) -> list[str]:
    text = (octets or b"").decode(errors="backslashreplace")
    return [line if line.endswith("\n") else f"{line}\n" for line in text.splitlines(keepends=True)]
