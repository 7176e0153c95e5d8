# SPDX-License-Identifier: GPL-3.0-or-later
"""Reads log files in the order of time, compressed or not, in lines of bounded length."""

from __future__ import annotations

import bz2
import gzip
import lzma
import os
import re
import sys
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO, cast

LONGEST_LINE = 8 << 10
_CHUNK = 1 << 18
_COMPRESSED = (".gz", ".bz2", ".xz")
_ROTATED = re.compile(r"(.+?)(?:\.(\d{1,4})|[.-](\d{8}(?:-?\d{2,6})?))")


class LogUnreadableError(Exception):
    """A file cannot be read."""


def in_order(names: Sequence[str]) -> list[str]:
    """Return *names* with rotated files of one log (mail.log.2.gz, mail.log-20261122) the oldest first.

    The shell sorts `mail.log*` the other way round. Logs of different names stay in the order given.
    """
    places: dict[str, int] = {}
    keys = {}
    for name in names:
        plain, ending = os.path.splitext(name)
        found = _ROTATED.fullmatch(plain if ending in _COMPRESSED else name)
        base, number, date = found.groups() if found else (plain if ending in _COMPRESSED else name, None, None)
        age = (1, 0, "") if not found else (0, -int(number or 0), date or "")
        keys[name] = (places.setdefault(base, len(places)), *age)
    return sorted(names, key=lambda name: keys[name])


def total_size(names: Sequence[str]) -> int:
    """Return the size of all files in bytes, as they are on the disk; 0 where one of them is no file."""
    try:
        sizes = [os.stat(name).st_size for name in names if name != "-" and Path(name).is_file()]
    except OSError as error:
        raise LogUnreadableError(f"{error.filename}: {error.strerror}") from None
    return sum(sizes) if len(sizes) == len(names) else 0


def chunks(
    names: Sequence[str], advance: Callable[[int], None], shortened: Callable[[], None]
) -> Iterator[list[bytes]]:
    """Yield lines without their ends, LF or CR LF, many at a time. "-" is standard input.

    advance: is told how many more bytes of the files were read, as they are on the disk. shortened: is told of a line
    that is too long; its begin is read. Raises LogUnreadableError.
    """
    for name in names:
        try:
            if name == "-":
                yield from _lines(sys.stdin.buffer, sys.stdin.buffer, advance, shortened)
                continue
            with open(name, "rb") as raw:
                yield from _lines(_decompressed(raw, os.path.splitext(name)[1]), raw, advance, shortened)
        except (OSError, EOFError, lzma.LZMAError, zlib.error) as error:
            raise LogUnreadableError(f"{name}: {getattr(error, 'strerror', None) or error}") from None


def _decompressed(raw: BinaryIO, ending: str) -> BinaryIO:
    if ending == ".gz":
        return cast(BinaryIO, gzip.GzipFile(fileobj=raw))
    if ending == ".bz2":
        return cast(BinaryIO, bz2.BZ2File(raw))
    return cast(BinaryIO, lzma.LZMAFile(raw)) if ending == ".xz" else raw


def _lines(
    stream: BinaryIO, raw: BinaryIO, advance: Callable[[int], None], shortened: Callable[[], None]
) -> Iterator[list[bytes]]:
    rest, skipping, place = b"", False, 0
    while True:
        chunk = stream.read(_CHUNK)
        if not chunk:
            break
        lines = (rest + chunk).replace(b"\r\n", b"\n").split(b"\n")
        rest = lines.pop()
        if skipping and lines:
            del lines[0]
            skipping = False
        if len(rest) > LONGEST_LINE:
            if not skipping:
                shortened()
                lines.append(rest[:LONGEST_LINE])
            rest, skipping = b"", True
        yield _cut(lines, shortened)
        if raw.seekable():
            place, before = raw.tell(), place
            advance(place - before)
    if rest and not skipping:
        yield [rest.rstrip(b"\r")]


def _cut(lines: list[bytes], shortened: Callable[[], None]) -> list[bytes]:
    if max(map(len, lines), default=0) <= LONGEST_LINE:
        return lines
    for line in lines:
        if len(line) > LONGEST_LINE:
            shortened()
    return [line[:LONGEST_LINE] for line in lines]
