# SPDX-License-Identifier: GPL-3.0-or-later
"""What is right, worked out anew and the slow way, to compare with: SRS hashes, and the relay rule."""

from __future__ import annotations

import base64
import hashlib
import hmac
import ipaddress
import re
from collections.abc import Mapping, Sequence
from typing import Optional
from urllib.parse import unquote

from gatepost.relay import normalize_domain

BASE32 = "ABCDEFGHIJKLMNOPQRSTUVWXYZ234567"
VALIDITY_DAYS = 21
_MARK = re.compile(r"\+[Ss][Rr][Ss]=")
_CLASSIC = re.compile(r"[Ss][Rr][Ss]([01])[=+-](.*)", re.DOTALL)


def authentic(rcpt: str, original: str, key: bytes, day: int, store: Mapping[str, str]) -> bool:
    """Tell whether *rcpt* is an SRS address of the only *key*, in date, that stands for *original*.

    original: in its written form. store: the original for each token.
    """
    local, domain = _parts(rcpt)
    domain = normalize_domain(domain.rstrip(".")) or ""
    wanted = _parts(original)
    for spelling in (local, unquote(local)):
        mark = _MARK.search(spelling)
        if mark and _exchange(spelling, mark, domain, wanted, key, day, store, original):
            return True
        tagged = _CLASSIC.fullmatch(spelling)
        if tagged and _classic(tagged, wanted, key, day):
            return True
    return False


def _exchange(
    local: str,
    mark: re.Match[str],
    domain: str,
    wanted: tuple[str, str],
    key: bytes,
    day: int,
    store: Mapping[str, str],
    original: str,
) -> bool:
    mailbox, fields = local[: mark.start()], local[mark.end() :].split("=", 3)
    if len(fields) == 4:
        given, made, of, user = fields
        digest = _hmac(key, "sha256", _prefixed(*(_lower(item) for item in (mailbox, made, of, user, domain))))
        return (given.lower(), (user, of)) == (_base32(digest)[:8], wanted) and _in_date(made, day)
    if len(fields) != 2 or mailbox.lower() != "bounces":
        return False
    given, made = fields
    user, of = wanted
    octets = _prefixed(made.upper().encode(), of.encode(), user.encode(), _lower(domain))
    digest = _hmac(key, "sha256", b"compact" + octets)
    return given.lower() == _base32(digest)[:16] and _in_date(made, day) and store.get(given.lower()) == original


def _classic(tagged: re.Match[str], wanted: tuple[str, str], key: bytes, day: int) -> bool:
    kind, rest = tagged.groups()
    if rest.count("=") < (2 if kind == "1" else 3):
        return False
    if kind == "1":
        given, host, inner = rest.split("=", 2)
        return ("SRS0" + inner, host) == wanted and _folded(given) == _sha1(key, host + inner, given)
    given, made, of, user = rest.split("=", 3)
    for written in (user, _quoted(user), _quoted(_parts(f"{user}@")[0])):
        right = _folded(given) == _sha1(key, made + of + written, given) and len(given) >= 4 and _in_date(made, day)
        if right and _parts(f"{written}@{of}") == wanted:
            return True
    return False


def _quoted(local: str) -> str:
    return '"' + local.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _sha1(key: bytes, text: str, given: str) -> str:
    return _folded(base64.b64encode(_hmac(key, "sha1", _lower(text))).decode()[: len(given)])


def _folded(text: str) -> str:
    return _lower(text).decode().replace("-", "+").replace("_", "/")


def _hmac(key: bytes, digest: str, message: bytes) -> bytes:
    return hmac.new(key, message, getattr(hashlib, digest)).digest()


def _base32(digest: bytes) -> str:
    return base64.b32encode(digest).decode().lower()


def _prefixed(*fields: bytes) -> bytes:
    return b"".join(len(octets).to_bytes(4, "big") + octets for octets in fields)


def _lower(text: str) -> bytes:
    return text.encode().lower()


def _in_date(made: str, day: int) -> bool:
    high, low = (BASE32.index(character) for character in made.upper())
    return (day - 32 * high - low) % 1024 <= VALIDITY_DAYS


def _parts(address: str) -> tuple[str, str]:
    """Return the value of the local part, and the domain."""
    local, _, domain = address.rpartition("@")
    if len(local) > 1 and local.startswith('"') and local.endswith('"'):
        local = re.sub(r"(?s)\\(.)", r"\1", local[1:-1])
    return local, domain


def relays(
    ip: str,
    certificate_names: Sequence[str],
    addresses: Sequence[Optional[str]],
    accepted: Sequence[str],
    networks: Sequence[str],
    certificate_domain: str,
) -> bool:
    """Tell whether the rule lets a client relay (R1), for one organization and no MatchSubDomains.

    addresses: P1, and under the rule set legacy P2. networks, certificate_domain: those of its connectors.
    """
    names = [normalize_domain(name[2:] if name.startswith("*.") else name) or "" for name in certificate_names]
    by_address = [normalize_domain(text.rpartition("@")[2]) for text in addresses if text and "@" in text]
    one = any(domain in accepted for domain in by_address)
    one = one or any(name in accepted or name.partition(".")[2] in accepted for name in names)
    return one and (certificate_domain in names or any(_within(ip, network) for network in networks))


def _within(ip: str, network: str) -> bool:
    try:
        address = ipaddress.ip_address(ip)
    except ValueError:
        return False
    if isinstance(address, ipaddress.IPv6Address):
        mapped = address.ipv4_mapped
        if mapped is None:
            return False
        address = mapped
    return address in ipaddress.ip_network(network)
