# SPDX-License-Identifier: GPL-3.0-or-later
"""Mail addresses as values, read from and written to the text of SMTP (RFC 5321, 4.1.2; RFC 6531)."""

from __future__ import annotations

import re
from dataclasses import dataclass

from .errors import AddressError

# Refused: controls, the two Unicode line breaks and lone surrogates (octets that were no UTF-8).
_LOCAL_PART = re.compile("[^\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]+")
_LABEL = r"[^\x00-,./:-@\[-^`{-\x9f\s\ud800-\udfff]+"
_DOMAIN = re.compile(rf"{_LABEL}(?:\.{_LABEL})*|\[[0-9A-Za-z.:-]+\]")

_ATOM = r'[^\x00- "(),.:;<>@\[\\\]]+'
_DOT_STRING = re.compile(rf"{_ATOM}(?:\.{_ATOM})*")
# Wider than RFC 5321, for mail as it is: misplaced dots and an extra @ pass. A source route starts with @.
_UNQUOTED = re.compile(r'[^ "(),:;<>@\[\\\]][^ "(),:;<>\[\\\]]*')
_QUOTED = re.compile(r'"([^"\\]*(?:\\.[^"\\]*)*)"@(.*)', re.DOTALL)
_QUOTED_PAIR = re.compile(r"\\(.)", re.DOTALL)
_TO_ESCAPE = re.compile(r'(["\\])')


@dataclass(frozen=True)
class Address:
    """A mailbox address that can be written into SMTP as it is: no control character, no empty part.

    local: the local part's value, without quotes and backslashes. domain: a name as A-labels or U-labels, or
    an address literal with its brackets, as written. Two spellings of one domain are two values. The
    constructor checks both and is the way in for text that an MTA has already unquoted. Raises AddressError.
    """

    local: str
    domain: str

    def __post_init__(self) -> None:
        if not _LOCAL_PART.fullmatch(self.local):
            raise AddressError("the local part is empty, or holds a control character or no UTF-8")
        if not _DOMAIN.fullmatch(self.domain):
            raise AddressError("the domain is no domain name and no address literal")

    @classmethod
    def parse(cls, text: str) -> Address:
        """Read an addr-spec without angle brackets; the last @ outside quotes splits it.

        Quoted local parts are unquoted. Source routes and the null reverse-path are no addresses here. Raises
        AddressError and nothing else.
        """
        if text.startswith('"'):
            quoted = _QUOTED.fullmatch(text)
            if quoted is None:
                raise AddressError("the quotes of the local part are not closed in front of the @")
            local, domain = quoted.groups()
            return cls(_QUOTED_PAIR.sub(r"\1", local) if "\\" in local else local, domain)
        local, _, domain = text.rpartition("@")
        if not _UNQUOTED.fullmatch(local):
            raise AddressError("the local part is empty, a source route, or needs quotes")
        return cls(local, domain)

    def __str__(self) -> str:
        if _DOT_STRING.fullmatch(self.local):
            return f"{self.local}@{self.domain}"
        escaped = _TO_ESCAPE.sub(r"\\\1", self.local)
        return f'"{escaped}"@{self.domain}'
