# SPDX-License-Identifier: GPL-3.0-or-later
"""Targets: addresses, domains, header From, SRS addresses both ways."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Optional

from gatepost.milter import header_from as long_way
from gatepost.milter.transaction import FROM_LIMIT, Transaction, header_addresses
from gatepost.policyd import decisions
from gatepost.policyd.decisions import Found
from gatepost.relay import Patterns, Rules, normalize_domain
from gatepost.relay.names import certificate_domain, is_normal
from gatepost.service import reversal, rewriting
from gatepost.service.addresses import decode_xtext, domain_of, parse_address, plain, routed, unquoted
from gatepost.service.certificates import NO_CERTIFICATE
from gatepost.service.client_names import tidy
from gatepost.service.config import parse
from gatepost.service.reversal import Bounce
from gatepost.service.rewriting import Egress
from gatepost.service.snapshot import Snapshot, build
from gatepost.srs import Address, AddressError, Classic, Keys, NotSrs, first_hop, inspect
from gatepost.srs.classic import is_tagged

from .engine import Target
from .reference import authentic

KEY = b"a key for nothing but this"
DAY = 20_000
NOW = DAY * 86400 + 43200
_UNSAFE = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")

ADDRESSES = (
    *("bob@fabrikam.com", "a.b+tag@Sub.Example.ORG", '"a b"@fabrikam.com', r'"a\"\\b"@x.example', "a..b@x.example"),
    *("user%other.example@contoso.com", "host!user@contoso.com", "a@b@c.example", "@route.example:a@b.example"),
    *("bøb@bücher.example", "bob@xn--bcher-kva.example", "bob@[192.0.2.1]", "bob@[IPv6:2001:db8::1]", "bob@x.example."),
    *("=?utf-8?q?bob?=@x.example", "a=b@x.example", "SRS0=abcd=AA=y.example=z@w.example", "postmaster", "", "<>"),
    *("b" * 64 + "@" + ".".join(["d" * 60] * 3) + ".example", "x+SRS=aaaaaaaa=AA=y.example=z@w.example"),
    *("SRS1=abcd=y.example==abcd=AA=w.example=z@v.example", "bounces+SRS=AbCdE=AA@v.example", "ann@CONTOSO.com"),
)
SYNTAX = (
    *(b"+SRS=", b"+srs=", b"%2BSRS%3D", b"SRS0=", b"SRS1=", b"srs0+", b"SRS0-", b"bounces", b"@contoso.com", b'"@'),
    *(b"contoso.com", b"=AA=", b"==", b"xn--", b"xn--a", b"[IPv6:", b'\\"', b"rfc822;", b"+2B", b"+40", b"IPv6:::1"),
)


def contoso(**tables: object) -> Snapshot:
    """Return the snapshot of a configuration with *tables* and the organization contoso."""
    organization = {
        "name": "contoso",
        "accepted_domain": [{"domain": "contoso.com"}],
        "connector": [
            {"name": "office", "sender_ip_addresses": ["192.0.2.0/28"]},
            {"name": "crm", "tls_sender_certificate_name": "mail.contoso.com"},
        ],
    }
    return build(parse({**tables, "organization": [organization]}, Path("gatepost.toml")), Keys([KEY]), 0.0)


def snapshot(form: str = "auto", style: str = "exchange") -> Snapshot:
    """Return one of contoso.com, which reverses every format."""
    srs = {"format": style, "form": form, "also_reverse": ["exchange", "srs0", "compact"]}
    return contoso(relay={"mode": "enforce"}, egress={}, srs=srs)


def made(style: Snapshot, store: dict[str, str]) -> Iterator[str]:
    """Yield the SRS addresses of ADDRESSES, and what receivers make of some."""
    for text in ADDRESSES:
        try:
            found = rewriting.relayed(style, text, None, NOW)
        except AddressError:
            continue
        if found.token:
            store[found.token] = found.original
        yield found.address
        yield found.address.lower()
        yield found.address.replace("+", "%2B").replace("=", "%3d")
        mailbox = Address("john.work", "contoso.com")
        yield rewriting.forwarded(style, text, mailbox, NOW - 86400 * 20).address


def text_of(octets: bytes) -> str:
    return octets.decode("utf-8", "surrogateescape")


def safe(text: str) -> None:
    """Fail where *text* can't stand in SMTP, or in a line of anything."""
    assert not _UNSAFE.search(text), f"unsafe: {text!r}"


def address(folder: Path) -> Target:
    samples = [text.encode() for text in ADDRESSES]
    oracle = "AddressError or an address that reads back as itself in every spelling; nothing unsafe in it"
    return Target("address", "envelope addresses, ORCPT", oracle, _address, samples, SYNTAX)


def _address(octets: bytes) -> str:
    text = text_of(octets)
    decode_xtext(text)
    routed(text)
    domain_of(text)
    try:
        found = Address.parse(text)
    except AddressError as error:
        assert unquoted(text) == text or text.startswith('"')
        try:
            safe(str(parse_address(text)))
        except AddressError:
            return str(error)
        return "bare"
    written = str(found)
    safe(written)
    quoted = '"' + re.sub(r'(["\\])', r"\\\1", found.local) + f'"@{found.domain}'
    for same in (
        parse_address(text),
        Address.parse(written),
        Address(found.local, found.domain),
        Address.parse(quoted),
    ):
        assert same == found
        assert str(same) == written
    assert unquoted(text) == (f"{found.local}@{found.domain}" if text.startswith('"') else text)
    if plain(text):
        assert written in (text, str(Address(*text.split("@"))))
    return f"address {text.startswith(chr(34))} {plain(text)} {routed(text)} {found.local.isascii()}"


def domain(folder: Path) -> Target:
    samples = [text.rpartition("@")[2].encode() for text in ADDRESSES]
    samples += [
        b"*.contoso.com",
        b"192.0.2.1",
        b"a_b.example",
        b"stra\xc3\x9fe.example",
        b"unknown",
        b"x" * 63 + b".example",
    ]
    oracle = "None or a normal form that is its own normal form, in upper case and with a final dot, too"
    return Target("domain", "domains, client and certificate names", oracle, _domain, samples, SYNTAX)


_PATTERNS = Patterns(["contoso.com", "*.example"])


def _domain(octets: bytes) -> str:
    text = text_of(octets)
    name = tidy(text)
    assert re.fullmatch(r"[a-z0-9._-]{0,255}", name)
    certificate_domain(text)
    found = normalize_domain(text)
    if found is None:
        return f"no domain {text.isascii()} {bool(name)}"
    assert is_normal(found)
    assert re.fullmatch(r"[a-z0-9._-]{1,253}", found)
    assert normalize_domain(found) == normalize_domain(found.upper()) == normalize_domain(f"{found}.") == found
    return f"domain {text.isascii()} {_PATTERNS.match(found)} {'xn--' in found}"


def header_from(folder: Path) -> Target:
    samples = [
        *(b"app@vendor.example", b"The App\n <app@contoso.com>", b'"Invoices, vendor" <app@CONTOSO.com>'),
        *(b"Apps: app@vendor.example, app@contoso.com;", b"=?utf-8?q?J=C3=B6rg?= <joerg@contoso.com>", b"<a@b>\x1ec@d"),
        *(b"(comment) a@b.example (other)", b'"a\\"b" <"x y"@contoso.com>', b"a@b, c@d,, e@f", b"undisclosed:;"),
        *(b"bob <@route.example:bob@contoso.com>", b"a <a@b> <c@d>", b"J\xc3\xb6rg <j@b\xc3\xbccher.example>"),
    ]
    tokens = [
        b"(",
        b")",
        b"<",
        b">",
        b",",
        b":",
        b";",
        b'"',
        b"\\",
        b"=?utf-8?b?",
        b"?=",
        b"\n ",
        b"\x1e",
        b"@",
        b"()" * 50,
    ]
    oracle = "texts, in the quick way the same as in the long one; no more than 8 kB is read"
    return Target("header-from", "header From (P2)", oracle, _header_from, samples, tokens)


_CLIENT = Rules([]).client(None)


def _header_from(octets: bytes) -> str:
    transaction = Transaction("", _CLIENT, NO_CERTIFICATE, False)
    values = text_of(octets).split("\x1e")
    for value in values:
        transaction.add_from(value)
    kept = transaction.headers_from
    assert sum(map(len, kept)) <= FROM_LIMIT
    found = header_addresses(kept)
    assert found == tuple(item for value in kept for item in long_way.addresses(value))
    for item in found:
        assert not re.search(r"[\x00-\x08\x0a-\x1f\x7f]", item), f"a control character: {item!r}"
        assert item.startswith('"') or not re.search(r"[\s(),:;<>]", item), f"no address: {item!r}"
    return f"{min(len(found), 3)} of {min(len(kept), 3)} {[is_normal(domain_of(item) or '') for item in found[:3]]}"


def reverse(folder: Path) -> Target:
    store: dict[str, str] = {}
    styles = [snapshot(form, style) for form in ("auto", "long", "compact") for style in ("exchange", "srs0")]
    samples = [text.encode() for style in styles for text in made(style, store)]
    classic = Classic(Keys([KEY]), separator="-", base64url=True)
    chained = classic.forward(Address("SRS0=abcd=AA=y.example=z", "first.example"), "contoso.com", DAY)
    samples += [str(chained).encode(), *(text.encode() for text in ADDRESSES)]
    oracle = (
        "no original without the right hash, in date, by a slow reckoning of its own; nothing unsafe in it; what is "
        "rewritten comes back as it was, from lower case in lower case"
    )

    def check(octets: bytes) -> str:
        text = text_of(octets)
        style = styles[len(octets) % len(styles)]
        found = _reversed(style, text, store)
        return f"{found.value} {_returned(style, text, store)}"

    return Target("reverse", "recipients, keys of the map reverse", oracle, check, samples, SYNTAX)


def _reversed(style: Snapshot, text: str, store: dict[str, str]) -> Bounce:
    found = reversal.reverse(style, text, NOW, store.get)
    token = reversal.token(style, text)
    if found.bounce is Bounce.ORIGINAL:
        safe(found.original)
        assert str(Address.parse(found.original)) == found.original
        assert authentic(text, found.original, KEY, DAY, store), f"not authentic: {found.original!r}"
    elif found.bounce is Bounce.UNKNOWN:
        assert token is not None or "%" in text, "the store is asked unforeseen"
    key = decisions.look_up(style, "reverse", text, NOW, store.get)
    assert (key.found is Found.OK) == (found.bounce is Bounce.ORIGINAL)
    assert key.text == found.original
    return found.bounce


def _returned(style: Snapshot, text: str, store: dict[str, str]) -> str:
    """Rewrite the sender *text*, and bring a bounce back to it."""
    leaving = rewriting.leaving(style, text)
    if leaving is not Egress.REWRITE:
        return str(leaving.value)
    sender = parse_address(text)
    new = rewriting.relayed(style, text, None, NOW)
    safe(new.address)
    assert len(new.address.encode()) <= 254, f"{new.form}: {new.address!r}"
    known = {**store, new.token: new.original} if new.token else store
    back = reversal.reverse(style, new.address, NOW, known.get)
    if first_hop(sender) == sender and not is_tagged(sender.local):
        assert back.bounce is Bounce.ORIGINAL, f"{back.bounce}: {new.address!r}"
        assert Address.parse(back.original) == sender
        if text.isascii():
            lower = reversal.reverse(style, new.address.lower(), NOW, known.get)
            assert lower.original.lower() == back.original.lower()
    return f"{new.form} {back.bounce.value} {is_tagged(sender.local)}"


def rewrite(folder: Path) -> Target:
    store: dict[str, str] = {}
    styles = [snapshot(form, style) for form in ("auto", "long", "compact") for style in ("exchange", "srs0")]
    samples = [text.encode() for text in ADDRESSES]
    samples += [text.encode() for style in styles[:2] for text in made(style, store)]
    samples += [b"rfc822;john.work+40contoso.com", b"john+tag@contoso.com", b"utf-8;j\xc3\xb6rg@contoso.com"]
    oracle = "the map egress, the milter's rewriting and the map forward agree, and nothing is rewritten twice"

    def check(octets: bytes) -> str:
        return _rewritten(styles[len(octets) % len(styles)], text_of(octets))

    return Target("rewrite", "senders, ORCPT, keys of egress and forward", oracle, check, samples, SYNTAX)


def _rewritten(style: Snapshot, text: str) -> str:
    leaving = rewriting.leaving(style, text)
    entry = decisions.look_up(style, "egress", text, NOW, lambda token: None)
    forwarded = decisions.forward(style, text, NOW) if text.find("@") > 0 else None
    mailbox = rewriting.forwarder(style, text, "x@example.com") or rewriting.mailbox_of(style, text, "x@example.com")
    if mailbox:
        assert style.rules.accepted(mailbox.domain)
        safe(str(mailbox))
    new: Optional[str] = None
    try:
        new = rewriting.relayed(style, text, None, NOW).address
        if mailbox:
            safe(rewriting.forwarded(style, text, mailbox, NOW).address)
    except AddressError:
        assert leaving is not Egress.REWRITE
    if leaving is Egress.REWRITE and new is not None:
        assert rewriting.leaving(style, new) is Egress.OUT, f"rewritten twice: {new!r}"
        assert normalize_domain(new.rpartition("@")[2]) == "contoso.com"
    if leaving is Egress.IMPOSSIBLE:
        assert new is None
    if text.find("@") > 0:
        assert (entry.found is Found.NOTFOUND) == (leaving is Egress.OUT)
        assert (forwarded is None) == (leaving is Egress.OUT)
    return f"{leaving.value} {mailbox is None} {_inspected(text)}"


def _inspected(text: str) -> str:
    try:
        return str(inspect(Address.parse(text), DAY).form)
    except (AddressError, NotSrs) as error:
        return str(error)


TARGETS = {
    "address": address,
    "domain": domain,
    "header-from": header_from,
    "reverse": reverse,
    "rewrite": rewrite,
}
