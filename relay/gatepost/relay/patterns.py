# SPDX-License-Identifier: GPL-3.0-or-later
"""Lists of domains with wildcards, looked up in a time that does not grow with the list."""

from __future__ import annotations

from collections.abc import Iterable

from gatepost.relay.names import parent


class Patterns:
    """Domains in normal form; `*.contoso.com` stands for every subdomain of contoso.com, but not for itself."""

    def __init__(self, patterns: Iterable[str]) -> None:
        listed = set(patterns)
        self._exact = frozenset(item for item in listed if not item.startswith("*."))
        self._above = frozenset(item[2:] for item in listed if item.startswith("*."))

    def __bool__(self) -> bool:
        return bool(self._exact or self._above)

    def match(self, domain: str) -> bool:
        """Tell whether *domain*, in normal form, is in the list."""
        if domain in self._exact:
            return True
        above = parent(domain) if self._above else ""
        while above:
            if above in self._above:
                return True
            above = parent(above)
        return False
