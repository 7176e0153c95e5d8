# SPDX-License-Identifier: GPL-3.0-or-later
"""Take setup's changes out of a main.cf or master.cf that somebody has edited since, entry by entry."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from io import BytesIO
from typing import Optional


def without(made: bytes, before: bytes, now: bytes) -> Optional[bytes]:
    """Return *now* with what setup made of *before* taken back, None where an edit touches that.

    An entry is a line with those that continue it, so that none is left behind to continue another one.
    """
    entries = _entries(made)
    back, edits = (_changes(entries, _entries(octets)) for octets in (before, now))
    for change in back:
        if any(change.hinders(edit) for edit in edits):
            return None
    gone = {number for change in (*back, *edits) for number in range(change.start, change.end)}
    found: list[bytes] = []
    for number in range(len(entries) + 1):
        for change in dict.fromkeys((*edits, *back)):
            if change.start == number:
                found += change.entries
        if number < len(entries) and number not in gone:
            found.append(entries[number])
    return b"".join(found)


@dataclass(frozen=True)
class _Change:
    """*entries* in place of those from *start* to *end*."""

    start: int
    end: int
    entries: tuple[bytes, ...]

    def hinders(self, edit: _Change) -> bool:
        """Say whether this change and *edit* cannot both be made."""
        if self == edit:
            return False
        if not self.entries:  # setup has added something: it may be deleted by hand, and stand beside anything
            return bool(edit.entries) and edit.start < self.end and self.start < edit.end and edit.start < edit.end
        if self.start < self.end and edit.start < edit.end:
            return edit.start < self.end and self.start < edit.end
        return edit.start <= self.end and self.start <= edit.end  # which comes first would be a guess


def _changes(old: Sequence[bytes], new: Sequence[bytes]) -> list[_Change]:
    matcher = SequenceMatcher(None, old, new, autojunk=False)
    return [
        _Change(start, end, tuple(new[first:last]))
        for kind, start, end, first, last in matcher.get_opcodes()
        if kind != "equal"
    ]


def _entries(octets: bytes) -> list[bytes]:
    return list(_split(octets if octets.endswith(b"\n") or not octets else octets + b"\n"))


def _split(octets: bytes) -> Iterator[bytes]:
    entry, after = b"", []  # comments and empty lines may stand within an entry, and after it
    for line in BytesIO(octets):
        if not line.strip() or line.lstrip().startswith(b"#"):
            after.append(line)
        elif line[:1].isspace() and entry:
            entry, after = b"".join((entry, *after, line)), []
        else:
            if entry:
                yield entry
            yield from after
            entry, after = line, []
    if entry:
        yield entry
    yield from after
