# SPDX-License-Identifier: GPL-3.0-or-later
"""Read a TOML document key by key and collect everything that is wrong with it.

A `Table` hands out typed values and notes a `Problem` for each that is missing, of a wrong type or out of bounds, so
that one run shows the operator all of them. Keys that nobody asked for are unknown and are problems too.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date, datetime, timezone
from typing import Optional

_INTEGER_BITS = 64
_PASSWORD = re.compile(r"(?i)((?:^|[?&;\s])\w*passw(?:or)?d\s*=)([^&]*)")
"""As in the query of a URL and in libpq's connection strings."""


class ConfigError(Exception):
    """The configuration cannot be used; *problems* holds one line for each reason."""

    def __init__(self, problems: Sequence[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = tuple(problems)


@dataclass
class Notes:
    """What one reading of a configuration found: *problems* stop it, *warnings* do not."""

    file: str
    problems: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def problem(self, path: str, text: str) -> None:
        self.problems.append(_one_line(f"{self.file}: {path}: {text}"))

    def warn(self, path: str, text: str) -> None:
        self.warnings.append(_one_line(f"{self.file}: {path}: {text}"))


class Table:
    """One table of the document; *path* is its key path, "" for the document itself."""

    def __init__(self, raw: Mapping[str, object], path: str, notes: Notes) -> None:
        self._raw = raw
        self._known: set[str] = set()
        self.path = path
        self.notes = notes

    def key(self, name: str) -> str:
        """Return the full key path of *name*."""
        return f"{self.path}.{name}" if self.path else name

    def problem(self, name: str, text: str) -> None:
        self.notes.problem(self.key(name), text)

    def _take(self, name: str) -> object:
        self._known.add(name)
        return self._raw.get(name)

    def is_absent(self, name: str) -> bool:
        self._known.add(name)
        return name not in self._raw

    def is_empty(self, name: str) -> bool:
        """Tell whether *name* is absent or an empty list."""
        return self._raw.get(name, []) == []

    def string(
        self, name: str, default: Optional[str] = None, *, allowed: Sequence[str] = (), may_be_empty: bool = False
    ) -> str:
        """Return a string; without *default* the key is required."""
        value = self._take(name)
        if value is None:
            if default is None:
                self.problem(name, "missing" + (f", must be one of {_quoted(allowed)}" if allowed else ""))
            return default or ""
        if not isinstance(value, str):
            self.problem(name, f"{_shown(value)} is not a string")
        elif allowed and value not in allowed:
            self.problem(name, f"{_shown(value)} is not one of {_quoted(allowed)}{_guess(value, allowed)}")
        elif not (value or may_be_empty):
            self.problem(name, '"" is empty')
        elif not value.isprintable():
            self.problem(name, f"{_shown(value)} has a character in it that can't be printed")
        else:
            return value
        return default or ""

    def optional_string(self, name: str) -> Optional[str]:
        """Return a string, or None where the key is absent."""
        self._known.add(name)
        return self.string(name) if name in self._raw else None

    def integer(self, name: str, default: int, *, lowest: int, highest: int) -> int:
        value = self._take(name)
        if value is None:
            return default
        if isinstance(value, bool) or not isinstance(value, int):
            self.problem(name, f"{_shown(value)} is not a whole number")
        elif not lowest <= value <= highest:
            self.problem(name, f"{_shown(value)} is not in the range {lowest} to {highest}")
        else:
            return value
        return default

    def boolean(self, name: str, *, default: bool) -> bool:
        value = self._take(name)
        if value is None or isinstance(value, bool):
            return default if value is None else value
        self.problem(name, f"{_shown(value)} is neither true nor false")
        return default

    def instant(self, name: str) -> Optional[datetime]:
        """Return a moment, None where the key is absent. A date is its 00:00 UTC."""
        value = self._take(name)
        if isinstance(value, datetime) and value.tzinfo:
            return value
        if isinstance(value, date) and not isinstance(value, datetime):
            return datetime(value.year, value.month, value.day, tzinfo=timezone.utc)
        if value is not None:
            shown = value.isoformat() if isinstance(value, datetime) else _shown(value)
            self.problem(name, f"{shown} is no date and time with a zone (e.g. 2026-12-01T09:00:00Z, 2026-12-01)")
        return None

    def strings(self, name: str, default: Sequence[str] = (), *, allowed: Sequence[str] = ()) -> tuple[str, ...]:
        """Return a list of strings; a bare string counts as a list of one."""
        value = self._take(name)
        if value is None:
            return tuple(default)
        values = [value] if isinstance(value, str) else value
        if not isinstance(values, list) or not all(isinstance(item, str) for item in values):
            self.problem(name, f"{_shown(value)} is not a list of strings")
            return tuple(default)
        for index, item in enumerate(values):
            if not item.isprintable():
                self.problem(f"{name}[{index}]", f"{_shown(item)} has a character in it that can't be printed")
            elif allowed and item not in allowed:
                self.problem(
                    f"{name}[{index}]",
                    f"{_shown(item)} is not one of {_quoted(allowed)}{_guess(item, allowed)}",
                )
        return tuple(values)

    def table(self, name: str) -> Table:
        """Return the sub-table *name*, an empty one where it is absent."""
        value = self._take(name)
        if value is not None and not isinstance(value, dict):
            self.problem(name, f"{_shown(value)} is not a table; write [{self.key(name)}]")
        return Table(value if isinstance(value, dict) else {}, self.key(name), self.notes)

    def optional_table(self, name: str) -> Optional[Table]:
        self._known.add(name)
        return self.table(name) if name in self._raw else None

    def tables(self, name: str) -> list[Table]:
        """Return the array of tables *name*."""
        value = self._take(name)
        if value is None:
            return []
        if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
            header = re.sub(r"\[\d+\]", "", self.key(name))
            self.problem(name, f"{_shown(value)} is not a list of tables; write [[{header}]]")
            return []
        return [Table(item, f"{self.key(name)}[{index}]", self.notes) for index, item in enumerate(value)]

    def close(self) -> None:
        """Note every key that was not asked for."""
        if self._raw.keys() <= self._known:
            return
        for name in self._raw:
            if name not in self._known:
                self.problem(name, f"unknown key{_guess(name, sorted(self._known))}")


def _one_line(text: str) -> str:
    return "".join(character if character.isprintable() else "?" for character in text)


def without_password(url: str) -> str:
    """Return *url* fit to be shown, malformed or not."""
    # An @ of the query's password stays, for what stands before it may be a password as well.
    url = _PASSWORD.sub(lambda found: f"{found[1]}***{'@' if '@' in found[2] else ''}", url)
    head, at, tail = url.rpartition("@")
    scheme, slashes, user = head.partition("://") if "://" in head else ("", "", head)
    return f"{scheme}{slashes}{user.partition(':')[0]}:***@{tail}" if at and ":" in user else url


def _shown(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        if "://" in value or _PASSWORD.search(value):
            value = without_password(value)
        return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'
    if isinstance(value, dict):
        return "a table"
    if isinstance(value, list):
        return f"[{', '.join(map(_shown, value))}]"
    if isinstance(value, int) and value.bit_length() > _INTEGER_BITS:  # Python writes no number of 4,300 digits
        return f"a number of more than {_INTEGER_BITS} bits"
    return repr(value)


def _quoted(values: Sequence[str]) -> str:
    return ", ".join(f'"{value}"' for value in values)


def _guess(word: str, known: Sequence[str]) -> str:
    import difflib

    near = difflib.get_close_matches(word, known, n=1)
    return f', did you mean "{near[0]}"?' if near else ""
