# SPDX-License-Identifier: GPL-3.0-or-later
"""Mail addresses as values, read from and written to the text of SMTP (RFC 5321, 4.1.2; RFC 6531)."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from .errors import AddressError

# Patterns as text, which re compiles when one is first needed: seldom, and the start of a command is short of time.
# Refused: controls, the two Unicode line breaks and lone surrogates (octets that were no UTF-8).
_LOCAL_PART = "[^\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]+"
_LABEL = r"[^\x00-,./:-@\[-^`{-\x9f\s\ud800-\udfff]+"
_DOMAIN = rf"{_LABEL}(?:\.{_LABEL})*|\[[0-9A-Za-z.:-]+\]"

_ATOM = r'[^\x00- "(),.:;<>@\[\\\]]+'
_DOT_STRING = rf"{_ATOM}(?:\.{_ATOM})*"
# Wider than RFC 5321, for mail as it is: misplaced dots and an extra @ pass. A source route starts with @.
_UNQUOTED = r'[^ "(),:;<>@\[\\\]][^ "(),:;<>\[\\\]]*'
_QUOTED = r'(?s)"([^"\\]*(?:\\.[^"\\]*)*)"@(.*)'
_QUOTED_PAIR = r"(?s)\\(.)"
_TO_ESCAPE = r'(["\\])'

# Nearly every address there is: all of the above hold, and what is written is the value.
_ORDINARY = re.compile(
    r"[!#-'*+\-/-9=?A-Z^-~]+(?:\.[!#-'*+\-/-9=?A-Z^-~]+)*@[-0-9A-Z_a-z]+(?:\.[-0-9A-Z_a-z]+)*"
).fullmatch


@dataclass(frozen=True, init=False)
class Address:
    """A mailbox address that can be written into SMTP as it is: no control character, no empty part.

    local: the local part's value, without quotes and backslashes. domain: a name as A-labels or U-labels, or
    an address literal with its brackets, as written. Two spellings of one domain are two values. The
    constructor checks both and is the way in for text that an MTA has already unquoted. Raises AddressError.
    """

    local: str
    domain: str
    _text: str = field(init=False, repr=False, compare=False)

    def __init__(self, local: str, domain: str) -> None:
        text = f"{local}@{domain}"
        if not _ORDINARY(text):
            if not re.fullmatch(_LOCAL_PART, local):
                raise AddressError("the local part is empty, or holds a control character or no UTF-8")
            if not re.fullmatch(_DOMAIN, domain):
                raise AddressError("the domain is no domain name and no address literal")
            text = f"{_written(local)}@{domain}"
        self._set(local, domain, text)

    def _set(self, local: str, domain: str, text: str) -> None:
        values = self.__dict__  # frozen is for everyone else
        values["local"] = local
        values["domain"] = domain
        values["_text"] = text

    @classmethod
    def parse(cls, text: str) -> Address:
        """Read an addr-spec without angle brackets; the last @ outside quotes splits it.

        Quoted local parts are unquoted. Source routes and the null reverse-path are no addresses here. Raises
        AddressError and nothing else.
        """
        if _ORDINARY(text):
            address = object.__new__(cls)
            local, _, domain = text.partition("@")
            address._set(local, domain, text)
            return address
        if text.startswith('"'):
            quoted = re.fullmatch(_QUOTED, text)
            if quoted is None:
                raise AddressError("the quotes of the local part are not closed in front of the @")
            local, domain = quoted.groups()
            return cls(re.sub(_QUOTED_PAIR, r"\1", local) if "\\" in local else local, domain)
        local, _, domain = text.rpartition("@")
        if not re.fullmatch(_UNQUOTED, local):
            raise AddressError("the local part is empty, a source route, or needs quotes")
        return cls(local, domain)

    def __str__(self) -> str:
        return self._text


def _written(local: str) -> str:
    """Return a local part as SMTP has it, with its quotes where it needs them."""
    if re.fullmatch(_DOT_STRING, local):
        return local
    escaped = re.sub(_TO_ESCAPE, r"\\\1", local)
    return f'"{escaped}"'
