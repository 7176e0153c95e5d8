# SPDX-License-Identifier: GPL-3.0-or-later
"""Reads the addresses of a From header (RFC 5322, 3.4; groups as in RFC 6854), and none where it can't be read.

Whether mail is relayed may rest on them (rule set legacy). `email.utils` of Pythons without the correction of
CVE-2023-27043 finds addresses in comments, too.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

_FOLD = re.compile(r"\r?\n(?=[ \t])")
_CONTROL = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")
_QUOTED = r'"(?:[^"\\]|\\.)*"'
_OUTSIDE_COMMENT = re.compile(rf'{_QUOTED}|\(|[^"()\\]+').match
_IN_COMMENT = re.compile(r"[()]|\\.|[^()\\]+").match
_PART = re.compile(rf'{_QUOTED}|<(?:{_QUOTED}|[^"<>])*>|\[[^][]*\]|[,:;[\]]|[^",:;<>[\]]+').match
_ROUTE = re.compile(r'[ \t]*@[^:"]*:').match
_SPACE = re.compile(r"[ \t]*([.@])[ \t]*")
_ADDRESS = re.compile(rf'(?:{_QUOTED}|[^\s"@(),:;<>\[\]\\]+)(?:@(?:[^\s"@(),:;<>\[\]\\]+|\[[^\s\[\]]*\]))?').fullmatch
_ATOM = r'[^\s\x00-\x1f\x7f"@(),:;<>\[\]\\]+'
_ONLY = re.compile(rf'(?:{_QUOTED}|[^"@<>()])*<({_ATOM}@{_ATOM})>').fullmatch


def addresses(value: str) -> tuple[str, ...]:
    """Return the addr-specs in the value of one From header as they stand there, without comments and white space.

    Also a mailbox without domain, as in `From: bob`. None at all where one of them has an @ and is no address, or
    where quotes, comments, brackets or groups are not closed: which part of it a reader would believe is not known.
    But an address in <> at the end that has the only @ is the author's whatever stands before it, as `Contoso: News` or
    `CONTOSO\\bob` of programs that forget to quote.
    """
    text = _FOLD.sub("", value.strip(" \t\r\n"))
    try:
        return tuple(_list(list(_parts(_without_comments(text)))))
    except _UnreadableError:
        only = _ONLY(text) if text.count("@") == 1 else None
        return (only[1],) if only else ()


class _UnreadableError(Exception):
    """The header can be read in several ways."""


def _without_comments(text: str) -> str:
    if _CONTROL.search(text):
        raise _UnreadableError
    kept, depth, position = [], 0, 0
    while position < len(text):
        found = (_IN_COMMENT if depth else _OUTSIDE_COMMENT)(text, position)
        if found is None:
            raise _UnreadableError
        position = found.end()
        if found[0] == "(":
            depth += 1
        elif depth:
            depth -= found[0] == ")"
            kept.append(" ")
        else:
            kept.append(found[0])
    if depth:
        raise _UnreadableError
    return "".join(kept)


def _parts(text: str) -> Iterator[str]:
    """Yield quoted strings, what is in <>, domain literals, the characters that separate, and what is between."""
    position = 0
    while position < len(text):
        found = _PART(text, position)
        if found is None:
            raise _UnreadableError
        position = found.end()
        yield found[0]


def _list(parts: list[str]) -> Iterator[str]:
    grouped = False
    element: list[str] = []
    for part in [*parts, ","]:
        if part == ":":
            if grouped or any("@" in item and not item.startswith('"') for item in element):
                raise _UnreadableError
            grouped, element = True, []
        elif part in (",", ";"):
            yield from _element(element)
            grouped, element = _grouped_after(part, grouped=grouped), []
        else:
            element.append(part)
    if grouped:
        raise _UnreadableError


def _grouped_after(separator: str, *, grouped: bool) -> bool:
    if separator == ",":
        return grouped
    if not grouped:
        raise _UnreadableError
    return False


def _element(parts: list[str]) -> Iterator[str]:
    text = "".join(parts).strip(" \t")
    bracketed = [part for part in parts if part.startswith("<")]
    if bracketed:
        if len(bracketed) > 1 or not text.endswith(bracketed[0]):
            raise _UnreadableError
        text = bracketed[0][1:-1]
        route = _ROUTE(text)
        text = (text[route.end() :] if route else text).strip(" \t")
    if not text.startswith('"'):
        text = _SPACE.sub(r"\1", text)
    if _ADDRESS(text):
        yield text
    elif "@" in text:
        raise _UnreadableError
