# SPDX-License-Identifier: GPL-3.0-or-later
"""Reads what PowerShell wrote: the records of a ConvertTo-Json or Export-Csv file.

A field may look different in each dialect, so a record hands out values in one form; what the file does not say is
None, and not false.
"""

from __future__ import annotations

import codecs
import csv
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime, timedelta, timezone
from typing import Optional

USE_JSON = "export again with ConvertTo-Json"

_MARKS = ((codecs.BOM_UTF8, "utf-8"), (codecs.BOM_UTF16_LE, "utf-16-le"), (codecs.BOM_UTF16_BE, "utf-16-be"))
_LOST = re.compile(r"(System\.(Collections|String|Object)|Microsoft\.Exchange\.|Deserialized\.)")
_DATE = re.compile(r"/Date\((-?\d{1,15})(?:[+-]\d{4})?\)/")
_ISO = re.compile(r"(\d{4}-\d\d-\d\d)T(\d\d:\d\d:\d\d)(?:\.\d+)?(Z|[+-]\d\d:\d\d)?")
_EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)
# What an object stands for, by its properties: enums and dates, IP ranges and addresses, domains, and links by name.
_SCALARS = ("value", "expression", "ipaddresstostring", "address", "domain", "name")


class UnreadableError(Exception):
    """The file, or a field of it, is not what PowerShell writes; the text says what it is instead."""


class Record:
    """One object of the file; field names are compared without case, as PowerShell does."""

    def __init__(self, fields: Mapping[str, object]) -> None:
        self._fields = {name.lower(): value for name, value in fields.items()}
        self.names = tuple(fields)

    def has(self, name: str) -> bool:
        """Tell whether the file has the field, be it empty."""
        return name.lower() in self._fields

    def text(self, name: str) -> Optional[str]:
        """Return a field with one value; None where it is missing, null or empty. Raises UnreadableError."""
        return _text(self._fields.get(name.lower()))

    def boolean(self, name: str) -> Optional[bool]:
        """Return a truth value; None where it is missing, null or empty. Raises UnreadableError."""
        text = self.text(name)
        if text is None or text.lower() in ("true", "false"):
            return None if text is None else text.lower() == "true"
        raise UnreadableError(f'"{text}" is neither true nor false')

    def texts(self, name: str) -> tuple[str, ...]:
        """Return a field with any number of values. Raises UnreadableError where Export-Csv has lost them."""
        return tuple(_texts(self._fields.get(name.lower())))

    def moment(self, name: str) -> Optional[datetime]:
        """Return a date and time, one without a zone as UTC; None where there is none that can be told for sure."""
        try:
            text = self.text(name) or ""
            ticks, iso = _DATE.fullmatch(text), _ISO.fullmatch(text)
            if ticks:
                return _EPOCH + timedelta(milliseconds=int(ticks[1]))
            return datetime.fromisoformat(f"{iso[1]}T{iso[2]}{(iso[3] or 'Z').replace('Z', '+00:00')}") if iso else None
        except (UnreadableError, ValueError, OverflowError):
            return None


class _Fields(dict[str, object]):
    """An object of JSON or a row of CSV. twice: a name that it has more than once, case apart; "" where none is."""

    def __init__(self, pairs: Iterable[tuple[str, object]]) -> None:
        super().__init__()
        self.twice = ""
        names = set()
        for name, value in pairs:
            if name.lower() in names:
                self.twice = name
            names.add(name.lower())
            self[name] = value


def records(octets: bytes) -> list[Record]:
    """Return the records of a file, which may have one or many. Raises UnreadableError."""
    text = _decoded(octets).strip()
    if not text:
        raise UnreadableError("is empty: the command that should fill it printed nothing")
    if text[0] in "[{":
        found = _objects(text)
    else:
        found = list(_rows(text))
        if not found:
            raise UnreadableError("is neither JSON nor CSV with a header and records")
    for number, item in enumerate(found, 1):
        if item.twice:
            raise UnreadableError(f"record {number} has the field {item.twice} twice")
    return [Record(item) for item in found]


def _decoded(octets: bytes) -> str:
    """Return the text. Without a byte order mark, UTF-16 shows by the zero octet beside the first ASCII character."""
    mark, encoding = next((item for item in _MARKS if octets.startswith(item[0])), (b"", ""))
    if not encoding:
        encoding = "utf-16-be" if octets[:1] == b"\0" else "utf-16-le" if octets[1:2] == b"\0" else "utf-8"
    try:
        return octets[len(mark) :].decode(encoding)
    except UnicodeDecodeError as error:
        raise UnreadableError(
            f"is not {encoding.upper()} (octet {error.start}); export again with -Encoding utf8"
        ) from error


def _objects(text: str) -> list[_Fields]:
    try:
        document = json.loads(text, object_pairs_hook=_Fields)
    except RecursionError as error:
        raise UnreadableError("is nested too deeply") from error
    except ValueError as error:
        raise UnreadableError(f"is not JSON: {error}") from error
    found = _unwrapped(document)
    items: list[_Fields] = []
    for number, item in enumerate(found if isinstance(found, list) else [found], 1):
        if not isinstance(item, _Fields):
            raise UnreadableError(f"record {number} is no object but {_shown(item)}")
        items.append(item)
    return items


def _unwrapped(value: object) -> object:
    """Return the list inside what Windows PowerShell 5.1 makes of some lists: {"value": [...], "Count": 2}."""
    if isinstance(value, dict) and {"value", "count"} == {name.lower() for name in value}:
        return next(inner for name, inner in value.items() if name.lower() == "value")
    return value


def _rows(text: str) -> Iterator[_Fields]:
    """Yield the rows under the header line, which tells the separator too."""
    if text.startswith("#TYPE"):
        text = text.partition("\n")[2].lstrip()
    try:
        lines = [f"{line}\n" for line in text.split("\n")]
        separator = max(",;\t", key=lambda mark: len(next(csv.reader(lines, delimiter=mark), [])))
        rows = csv.reader(lines, delimiter=separator, strict=True)
        header = next(rows, [])
        for number, cells in enumerate(filter(None, rows), 1):
            if len(cells) != len(header):
                raise UnreadableError(f"record {number} has {len(cells)} cells, the header has {len(header)}")
            yield _Fields(zip(header, cells))
    except csv.Error as error:
        raise UnreadableError(f"is neither JSON nor CSV: {error}") from error


def _text(value: object) -> Optional[str]:
    if isinstance(value, dict):
        value = _scalar(value)
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    if isinstance(value, bool):
        return "true" if value else "false"
    if value is None or isinstance(value, (str, int)):
        return str(value).strip() or None if value is not None else None
    raise UnreadableError(f"{_shown(value)} is not one value")


def _scalar(value: Mapping[str, object]) -> object:
    """Return what an object stands for: the first property known for it that is text, else the first number."""
    properties = sorted(value.items(), key=lambda item: not isinstance(item[1], str))
    for kind in (str, int):
        for known in _SCALARS:
            for name, inner in properties:
                if name.lower() == known and isinstance(inner, kind):
                    return inner
    raise UnreadableError(f"{_shown(value)} is none that is known")


def _texts(value: object) -> Iterator[str]:
    value = _unwrapped(value)
    if isinstance(value, list):
        for item in value:
            text = _text(item)
            if text is None:
                raise UnreadableError("one of its values is empty")
            yield text
        return
    text = _text(value) or ""
    if _LOST.match(text):
        raise UnreadableError(f'"{text}" is all that Export-Csv left of the values; {USE_JSON}')
    yield from filter(None, re.split(r"[\s,;|]+", text.strip("{}")))


def _shown(value: object) -> str:
    return (
        f"a list of {len(value)}"
        if isinstance(value, list)
        else "an object"
        if isinstance(value, dict)
        else repr(value)
    )
